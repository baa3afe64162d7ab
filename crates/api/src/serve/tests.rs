//! Peers that are slow, silent or strangers, on real sockets.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::service::Routes;

use super::Limits;
use crate::fixtures::{Authority, OneToken, Server};
use crate::xds::{Store, service};

const NAME: &str = "istiod.istio-system.svc";
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(3600);

fn limits() -> Limits {
    Limits { handshake: LATER, authenticate: LATER, silence: LATER, ..Limits::default() }
}

async fn server(authority: &Authority, limits: Limits) -> Server {
    let routes = Routes::new(service(Arc::new(Store::new()), Arc::new(OneToken), Arc::new(())));
    Server::start(authority.server(&[NAME]), routes, limits).await
}

async fn tls(server: &Server, authority: &Authority) -> tokio_rustls::client::TlsStream<TcpStream> {
    let uri = format!("https://{}", server.address).parse().unwrap();
    server.control_plane(authority).dial(&uri).await.unwrap()
}

/// Reads until the server closes, in whatever way.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

#[tokio::test]
async fn a_peer_that_does_not_shake_hands_is_closed() {
    let authority = Authority::new();
    let server = server(&authority, Limits { handshake: SOON, ..limits() }).await;
    closed(TcpStream::connect(server.address).await.unwrap()).await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_closed() {
    let authority = Authority::new();
    let server = server(&authority, limits()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_after_the_handshake_is_closed() {
    let authority = Authority::new();
    let server = server(&authority, Limits { silence: SOON, ..limits() }).await;
    closed(tls(&server, &authority).await).await;
}

#[tokio::test]
async fn a_peer_that_never_authenticates_is_closed() {
    let authority = Authority::new();
    let server = server(&authority, Limits { authenticate: SOON, ..limits() }).await;
    let mut stream = tls(&server, &authority).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn a_peer_that_speaks_garbage_inside_tls_is_closed() {
    let authority = Authority::new();
    let server = server(&authority, limits()).await;
    let mut stream = tls(&server, &authority).await;
    stream.write_all(&[0xff; 512]).await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let authority = Authority::new();
    let server = server(&authority, Limits { connections: 1, ..limits() }).await;
    let first = tls(&server, &authority).await;
    let mut second = Box::pin(tls(&server, &authority));
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    second.await;
}
