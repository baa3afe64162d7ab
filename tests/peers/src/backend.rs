//! Backends: HTTP/1.1 servers that answer with what they have seen.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use stillmesh_runtime::tasks::Tasks;
use tokio::net::TcpListener;

/// Starts one.
pub async fn start(name: &str, at: SocketAddr, tasks: &Tasks) {
    let listener = TcpListener::bind(at).await.expect("a backend's port");
    let (own, name) = (tasks.clone(), Arc::<str>::from(name));
    tasks.spawn("backend", async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket option");
            let name = name.clone();
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&name, &request))));
            own.spawn("backend's connection", async move {
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
}

fn answer(name: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let pairs =
        request.headers().iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    let seen = json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": pairs.collect::<Vec<_>>(),
    });
    let body = if request.method() == Method::HEAD { String::new() } else { seen.to_string() };
    let builder = Response::builder().header("content-type", "application/json");
    let builder = builder.header("x-backend", name).header("x-from", "backend").header("x-drop", "a");
    let builder = builder.header("x-multi", "1").header("x-multi", "2");
    builder.body(Full::new(body.into())).expect("a response")
}
