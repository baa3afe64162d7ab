//! A collector of spans and logs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// What a collector was sent.
pub struct Sent {
    /// HTTP's path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// As it came: a gRPC message has five bytes before it.
    pub body: Bytes,
}

/// Takes everything, over gRPC (HTTP/2) or HTTP/1.1. `statuses` are what it answers over gRPC, `0` after the last.
pub async fn start(statuses: &[&'static str]) -> (SocketAddr, Receiver<Sent>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a collector that works");
    let address = listener.local_addr().expect("a collector that works");
    (address, at(listener, statuses))
}

/// [`start`] of one that listens already.
pub fn at(listener: TcpListener, statuses: &[&'static str]) -> Receiver<Sent> {
    let (sender, sent) = channel(64);
    let statuses = Arc::new(Mutex::new(statuses.iter().copied().collect::<VecDeque<_>>()));
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, statuses) = (sender.clone(), statuses.clone());
            tokio::spawn(async move {
                let mut preface = [0; 14];
                loop {
                    match stream.peek(&mut preface).await {
                        Ok(length) if length == preface.len() => break,
                        // It is gone already.
                        Ok(0) | Err(_) => return,
                        Ok(_) => tokio::task::yield_now().await,
                    }
                }
                let service = service_fn(move |request| take(request, sender.clone(), statuses.clone()));
                let stream = TokioIo::new(stream);
                // Whoever goes has what it came for.
                if preface.starts_with(b"PRI * HTTP/2.0") {
                    drop(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await);
                } else {
                    drop(http1::Builder::new().serve_connection(stream, service).await);
                }
            });
        }
    });
    sent
}

type Answer = Response<StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>>;

async fn take(
    request: Request<Incoming>,
    sender: Sender<Sent>,
    statuses: Arc<Mutex<VecDeque<&'static str>>>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a collector that works").to_bytes();
    let is_grpc = head.version == http::Version::HTTP_2;
    sender
        .send(Sent { path: head.uri.path().to_owned(), headers: head.headers, body })
        .await
        .expect("a collector that works");
    let mut frames = vec![];
    if is_grpc {
        frames.push(Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 0]))));
        let status = statuses.lock().pop_front().unwrap_or("0");
        let trailers = [(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))];
        frames.push(Ok(Frame::trailers(HeaderMap::from_iter(trailers))));
    }
    let answer =
        Response::builder().header("content-type", if is_grpc { "application/grpc" } else { "application/x-protobuf" });
    Ok(answer.body(StreamBody::new(futures::stream::iter(frames))).expect("a collector that works"))
}
