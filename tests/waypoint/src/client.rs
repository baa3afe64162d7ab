//! Clients: ztunnels' HBONE, and HTTP in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use stillmesh_api::BoxFuture;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::{Dial, Dialling, Key, Limits, Pool, Stream, Transport, TunnelError};
use stillmesh_identity::tls::{client_config, dummy_server_name};
use stillmesh_identity::{Issuer, SecretLimits, Secrets, Sign, SignFailure, SystemClock};
use stillmesh_runtime::tasks::Tasks;
use stillmesh_waypoint::upstream::connections::Owned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::World;

/// A client's tunnel to the waypoint.
pub struct Client {
    pool: Pool,
    key: Key,
    secrets: Secrets,
    tasks: Tasks,
}

/// Signs by an issuer that is here.
pub(crate) struct Local(pub(crate) Arc<Issuer>);

impl Sign for Local {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>> {
        let signed = self.0.issue(csr_pem, identity, Some(ttl), SystemTime::now());
        Box::pin(std::future::ready(signed.map_err(|error| Arc::new(error) as SignFailure)))
    }
}

/// Dials from a client's address.
struct From(IpAddr);

impl Dial for From {
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a> {
        Box::pin(async move {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind((self.0, 0).into())?;
            let stream = socket.connect(key.destination).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Transport>)
        })
    }
}

impl Client {
    pub(crate) fn new(world: &World, name: &str, address: IpAddr, waypoint: SocketAddr) -> Self {
        let tasks = world.tasks.clone();
        let signer = Arc::new(Local(world.control.issuer.clone()));
        let secrets = Secrets::new(signer, Arc::new(SystemClock), SecretLimits::default(), &tasks);
        let pool = Pool::new(Limits::default(), secrets.clone(), Arc::new(From(address)), tasks.clone());
        let identity = |namespace: &str, account: &str| Identity::new(TrustDomain::default(), namespace, account);
        let key = Key {
            source: identity("shop", name),
            source_ip: address,
            destination: waypoint,
            expected: vec![identity("gate", "w")],
        };
        Self { pool, key, secrets, tasks }
    }

    /// Sends a CONNECT.
    pub async fn open(&self, to: SocketAddr) -> Result<Stream, TunnelError> {
        let opened = self.pool.open(&self.key, &Authority::Address(to), &ConnectHeaders::default()).await;
        opened.map(|opened| opened.stream)
    }

    /// A CONNECT that is answered.
    pub async fn stream(&self, to: SocketAddr) -> Stream {
        self.open(to).await.expect("the waypoint to take it")
    }

    /// Mutual TLS to the waypoint, before HTTP/2 begins in it: for a test that speaks HBONE by itself.
    pub async fn raw(&self) -> TlsStream<TcpStream> {
        let leaf = self.secrets.leaf(&self.key.source).await.expect("a certificate");
        let config = client_config(&leaf, &self.key.expected).expect("a TLS configuration");
        let stream = TcpStream::connect(self.key.destination).await.expect("the waypoint to listen");
        TlsConnector::from(config).connect(dummy_server_name(), stream).await.expect("a TLS handshake")
    }

    /// HTTP/1.1 in a CONNECT.
    pub async fn http1(&self, to: SocketAddr) -> Http {
        let (sender, connection) = http1::handshake(TokioIo::new(self.stream(to).await)).await.expect("a connection");
        self.tasks.spawn("http1", connection.with_upgrades());
        Http::One(sender)
    }

    /// HTTP/2 in a CONNECT.
    pub async fn http2(&self, to: SocketAddr) -> Http {
        let io = TokioIo::new(self.stream(to).await);
        let handshake = http2::handshake(Owned(self.tasks.clone()), io).await;
        let (sender, connection) = handshake.expect("a connection");
        self.tasks.spawn("http2", connection);
        Http::Two(sender)
    }
}

/// A body of any kind.
pub type Body = BoxBody<Bytes, hyper::Error>;

/// A client's HTTP connection.
pub enum Http {
    /// HTTP/1.1.
    One(http1::SendRequest<Body>),
    /// HTTP/2.
    Two(http2::SendRequest<Body>),
}

impl Http {
    /// Sends a request and waits for the head of its response.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// A request as this connection writes it, for host `web`.
    pub fn request(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
        self.request_with(method, path, body)
    }

    /// [`Http::request`] with any body.
    pub fn request_with(&self, method: &str, path: &str, body: Body) -> Request<Body> {
        let builder = match self {
            Self::One(_) => Request::builder().uri(path).header("host", "web"),
            Self::Two(_) => Request::builder().uri(format!("http://web{path}")).version(http::Version::HTTP_2),
        };
        builder.method(method).body(body).expect("a request")
    }

    /// GET, and the response's body as text.
    pub async fn get(&mut self, path: &str) -> (http::StatusCode, String) {
        let response = self.send(self.request("GET", path, "")).await.expect("an answer");
        let status = response.status();
        let body = response.collect().await.expect("a whole answer").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}
