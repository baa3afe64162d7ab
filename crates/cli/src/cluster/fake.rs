//! An API server for tests, on loopback: it answers what the test says, and has no other kinds.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::args::Access;

/// What is answered to a path, and the path's query; 404 where it is nothing.
type Answers = dyn Fn(&str, &str) -> Option<(u16, Value)> + Send + Sync;

/// A server; it ends with this.
pub(crate) struct ApiServer {
    kubeconfig: NamedTempFile,
    _serving: JoinSet<()>,
}

impl ApiServer {
    /// Starts one. Watches bring no news.
    pub(crate) async fn start(
        answers: impl Fn(&str, &str) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let kubeconfig = NamedTempFile::new()?;
        let cluster = json!({"server": format!("http://{}", listener.local_addr()?)});
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": cluster}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        std::fs::write(kubeconfig.path(), config.to_string())?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::new(answers)));
        Ok(Self { kubeconfig, _serving: serving })
    }

    /// How it is reached.
    pub(crate) fn access(&self) -> Access {
        Access { kubeconfig: Some(self.kubeconfig.path().to_owned()), context: None }
    }

    /// The kubeconfig that means it, as it is typed.
    pub(crate) fn kubeconfig(&self) -> String {
        self.kubeconfig.path().display().to_string()
    }
}

/// A list of objects.
pub(crate) fn list(items: &[Value]) -> (u16, Value) {
    (200, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
}

/// What a user is answered who may not.
pub(crate) fn forbidden(what: &str) -> (u16, Value) {
    (403, json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": what}))
}

async fn serve(listener: TcpListener, answers: Arc<Answers>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let answers = Arc::clone(&answers);
        let service = service_fn(move |request| answer(request, Arc::clone(&answers)));
        connections.spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, answers: Arc<Answers>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    if query.contains("watch=true") {
        return std::future::pending().await;
    }
    let absent =
        || (404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none"}));
    let (code, body) = match path {
        "/version" => forbidden("the version"),
        _ => answers(path, query).unwrap_or_else(absent),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A server with nothing but a controller of this trust domain.
pub(crate) async fn of_trust_domain(domain: &'static str) -> anyhow::Result<ApiServer> {
    let env = [json!({"name": "TRUST_DOMAIN", "value": domain})];
    let spec = json!({"template": {"spec": {"containers": [{"env": env}]}}});
    let controller = json!({"metadata": {"name": "controller"}, "spec": spec});
    let of_controllers = "/apis/apps/v1/namespaces/stillmesh-system/deployments";
    ApiServer::start(move |path, _| (path == of_controllers).then(|| list(std::slice::from_ref(&controller)))).await
}
