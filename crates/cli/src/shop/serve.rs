//! The shop's four HTTP services. Each answer is JSON and names the pod that gave it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use stillmesh_runtime::tasks::Tasks;
use tokio::sync::{Mutex, Semaphore};

use super::client::KeepAlive;
use super::{Listen, stop_asked};

/// Connections served at a time; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 1024;

pub(super) async fn page(listen: Listen) -> anyhow::Result<()> {
    let tasks = Tasks::new("shop");
    let details = upstream("details", &listen, &tasks);
    let reviews = upstream("reviews", &listen, &tasks);
    serve(&listen, tasks, move |_path| {
        let (details, reviews) = (details.clone(), reviews.clone());
        async move {
            let details = ask(&details, "/details").await?;
            let reviews = ask(&reviews, "/reviews").await?;
            Ok(json!({ "page": "The Comedy of Errors", "served-by": pod(), "details": details, "reviews": reviews }))
        }
    })
    .await
}

pub(super) async fn details(listen: Listen) -> anyhow::Result<()> {
    serve(&listen, Tasks::new("shop"), |_path| async {
        Ok(json!({ "author": "William Shakespeare", "year": 1595, "pages": 200, "served-by": pod() }))
    })
    .await
}

pub(super) async fn reviews(listen: Listen, version: String, failing: u64) -> anyhow::Result<()> {
    let tasks = Tasks::new("shop");
    let ratings = upstream("ratings", &listen, &tasks);
    let version: Arc<str> = version.into();
    let asked = Arc::new(AtomicU64::new(0));
    serve(&listen, tasks, move |_path| {
        let (ratings, version) = (ratings.clone(), version.clone());
        let turn = asked.fetch_add(1, Ordering::Relaxed);
        async move {
            anyhow::ensure!(failing == 0 || !turn.is_multiple_of(failing), "failing on purpose");
            let text = "An extremely entertaining play by Shakespeare";
            let mut answer = json!({ "text": text, "version": &*version, "served-by": pod() });
            if &*version != "v1" {
                answer["ratings"] = ask(&ratings, "/ratings").await?;
            }
            Ok(answer)
        }
    })
    .await
}

pub(super) async fn ratings(listen: Listen) -> anyhow::Result<()> {
    serve(&listen, Tasks::new("shop"), |_path| async { Ok(json!({ "stars": [5, 4], "served-by": pod() })) }).await
}

type Upstream = Arc<Mutex<KeepAlive>>;

fn upstream(service: &str, listen: &Listen, tasks: &Tasks) -> Upstream {
    Arc::new(Mutex::new(KeepAlive::new(&format!("{service}:9080"), listen.max_age(), tasks.clone())))
}

async fn ask(upstream: &Upstream, path: &str) -> anyhow::Result<Value> {
    let body = upstream.lock().await.get(path).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// The pod's name: its host name.
fn pod() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Answers every request with what `answer` makes of its path: 200 and JSON, or 503 and the error.
async fn serve<F, Fut>(listen: &Listen, tasks: Tasks, answer: F) -> anyhow::Result<()>
where
    F: Fn(String) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = anyhow::Result<Value>> + Send,
{
    let listener = listen.bind()?;
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await?;
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => { tokio::task::yield_now().await; continue }
            },
            () = stop_asked() => break,
        };
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request.uri().path().to_owned());
            async move {
                let (status, body) = match answer.await {
                    Ok(value) => (StatusCode::OK, value),
                    Err(error) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": format!("{error:#}") })),
                };
                let body = Full::new(Bytes::from(body.to_string()));
                Response::builder().status(status).header("content-type", "application/json").body(body)
            }
        });
        tasks.spawn("shop-connection", async move {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
            // A client that goes away is its own business.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
    Ok(())
}
