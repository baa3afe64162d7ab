//! HTTPS for the API server: bounded in connections, size and time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use stillmesh_k8s::translate::Mesh;
use stillmesh_runtime::Tasks;
use stillmesh_runtime::accept::{Accepted, Acceptor};
use stillmesh_runtime::drain::Watch;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::review::review;
use crate::metrics::Metrics;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Time for the handshake, and for a request's body.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for a request's head, which is also the longest that a connection may be idle: it gives way to others. The API
/// server connects anew.
const HEAD: Duration = Duration::from_secs(10);
/// The longest that a connection lives.
const LIFE: Duration = Duration::from_secs(300);
/// The largest request: an object of the largest size that the API server stores, twice.
const MAX_BYTES: usize = 4 << 20;

/// The webhook's server.
pub(crate) struct Webhook {
    pub tls: Arc<ServerConfig>,
    pub mesh: Mesh,
    pub metrics: Arc<Metrics>,
}

impl Webhook {
    /// Serves until the drain starts, then lets requests end until its deadline.
    pub async fn serve(self, listener: TcpListener, drain: Watch) {
        let tasks = Tasks::new("webhook");
        let acceptor = Acceptor::new("webhook", listener, CONNECTIONS);
        let mut tls = ServerConfig::clone(&self.tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let webhook = Arc::new(self);
        let signal = loop {
            let accepted = tokio::select! {
                accepted = acceptor.accept() => accepted,
                signal = drain.signaled() => break signal,
            };
            let serving = Arc::clone(&webhook).connection(tls.clone(), accepted, drain.clone());
            tasks.spawn("connection", async move {
                if timeout(LIFE, serving).await.is_err() {
                    debug!("a connection to the webhook has become old");
                }
            });
        };
        drop(acceptor);
        tasks.shutdown(signal.left()).await;
    }

    async fn connection(self: Arc<Self>, tls: TlsAcceptor, accepted: Accepted<TcpStream, SocketAddr>, drain: Watch) {
        let Accepted { connection, peer, permit } = accepted;
        let stream = match timeout(PATIENCE, tls.accept(connection)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake with the webhook failed"),
            Err(_) => return debug!(%peer, "TLS handshake with the webhook was slow"),
        };
        self.exchange(stream, peer, drain).await;
        drop(permit);
    }

    async fn exchange<S>(self: Arc<Self>, stream: S, peer: SocketAddr, drain: Watch)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request| {
            let webhook = Arc::clone(&self);
            async move { Ok::<_, Infallible>(webhook.answer(request).await) }
        });
        let http = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let mut http = std::pin::pin!(http);
        let ended = tokio::select! {
            ended = http.as_mut() => ended,
            _signal = drain.signaled() => {
                http.as_mut().graceful_shutdown();
                http.await
            }
        };
        if let Err(error) = ended {
            debug!(%peer, %error, "connection to the webhook ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/validate" {
            return plain(StatusCode::NOT_FOUND, "not found\n");
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "accepted: POST\n");
        }
        let body = match timeout(PATIENCE, Limited::new(request.into_body(), MAX_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return plain(StatusCode::PAYLOAD_TOO_LARGE, "too large\n");
            }
            Ok(Err(_)) => return plain(StatusCode::BAD_REQUEST, "the body broke off\n"),
            Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n"),
        };
        match review(&body, &self.mesh) {
            Ok(reviewed) => {
                if let Some((kind, passed)) = reviewed.checked {
                    self.metrics.validated(kind, passed);
                }
                let mut answer = plain(StatusCode::OK, reviewed.answer.to_string());
                let json = http::HeaderValue::from_static("application/json");
                answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
                answer
            }
            Err(problem) => {
                warn!(problem, "a request to the webhook cannot be read");
                plain(StatusCode::BAD_REQUEST, format!("{problem}\n"))
            }
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillmesh_runtime::drain;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_gives_its_place_away() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls =
            tls.with_no_client_auth().with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        let metrics = Arc::new(Metrics::new());
        let webhook = Arc::new(Webhook { tls: Arc::new(tls), mesh: Mesh::default(), metrics });
        let (_trigger, watch) = drain::channel();
        let asked = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        for sent in ["", "POST /validate HTTP/1.1\r\n", asked] {
            let (mut client, server) = tokio::io::duplex(4096);
            let peer = SocketAddr::from(([10, 0, 0, 1], 4000));
            let served = timeout(HEAD * 2, Arc::clone(&webhook).exchange(server, peer, watch.clone()));
            let client = async {
                client.write_all(sent.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                let _closed = client.read_to_end(&mut answer).await;
                String::from_utf8(answer).unwrap()
            };
            let (served, answer) = tokio::join!(served, client);
            assert!(served.is_ok(), "{sent:?} keeps its place");
            assert_eq!(answer.contains("404"), sent == asked, "{answer}");
        }
    }
}
