//! Connections from a node to its pods, as a kubelet makes them for probes.
//!
//! They come from [`PROBE_SOURCE`], which only the node itself can use as its address: the mesh lets probes pass
//! by it (contract 2.1), and packets with it that come from a pod are dropped by the kernel as having a local source.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use stillmesh_runtime::sys::socket::tcp_connect_socket;
use tokio::net::TcpStream;

use super::network::Node;
use crate::cluster::access::causes;

/// Source address of probes.
pub const PROBE_SOURCE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Largest body that is read, in bytes.
const BODY_BYTES: usize = 4 << 20;

/// Connects from a node; to its pods, from the address of probes.
pub async fn connect(node: &Node, target: SocketAddr, probe: bool) -> anyhow::Result<TcpStream> {
    let source = (probe && target.is_ipv4()).then_some(SocketAddr::from((PROBE_SOURCE, 0)));
    let socket = node.thread.run(move || tcp_connect_socket(target, None, source)).await??;
    socket.connect(target).await.with_context(|| format!("connecting to {target}"))
}

/// Sends a GET and returns the answer's status, whatever its body is.
pub async fn status(stream: TcpStream, host: &str, path: &str, headers: &[(String, String)]) -> anyhow::Result<u16> {
    Ok(send(stream, host, path, headers).await?.0)
}

/// Sends a GET and returns the answer's status and body. Errors: of an answer of status 200 not all has come, or its body is
/// longer than 4 MiB.
pub async fn exchange(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
) -> anyhow::Result<(u16, Bytes)> {
    match send(stream, host, path, headers).await? {
        (200, body) => Ok((200, body?)),
        (status, body) => Ok((status, body.unwrap_or_default())),
    }
}

/// Sends a GET; the answer's status, and its body as far as that can be had.
async fn send(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
) -> anyhow::Result<(u16, anyhow::Result<Bytes>)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = hyper::Request::get(path).header(http::header::HOST, host);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = async {
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            anyhow!("the answer to {path} is not read whole (at most {BODY_BYTES} bytes are): {}", causes(&*error))
        });
        anyhow::Ok((status, body))
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // How it has ended is told to who reads the answer, after all that came before.
        _ended = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What is made of an answer by who exchanges and by who goes by its status; the server closes after it.
    async fn answered(answer: &str) -> (anyhow::Result<(u16, Bytes)>, anyhow::Result<u16>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap());
        let serve = || async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut asked).await.unwrap() > 0, "it was closed without a request");
            }
            // Who has read enough closes too.
            let _ = stream.write_all(answer.as_bytes()).await;
        };
        let (exchanged, ()) = tokio::join!(exchange(connect().await.unwrap(), "host", "/page", &[]), serve());
        let (status, ()) = tokio::join!(status(connect().await.unwrap(), "host", "/page", &[]), serve());
        (exchanged, status)
    }

    #[tokio::test]
    async fn a_good_answer_is_read_whole_or_is_an_error() {
        let answer = |status: &str, length: usize, body: &str| {
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        let (whole, status) = answered(&answer("200 OK", 5, "hello")).await;
        assert_eq!((whole.unwrap(), status.unwrap()), ((200, Bytes::from("hello")), 200));
        let broken = answer("200 OK", 9, "hello");
        let long = answer("200 OK", BODY_BYTES + 1, &"x".repeat(BODY_BYTES + 1));
        for not_whole in [broken, long] {
            let (exchanged, status) = answered(&not_whole).await;
            let error = exchanged.unwrap_err().to_string();
            assert!(error.starts_with("the answer to /page is not read whole"), "{error}");
            assert_eq!(status.unwrap(), 200, "a probe goes by the status");
        }
        let (refused, _) = answered(&answer("503 Service Unavailable", 9, "hello")).await;
        assert_eq!(refused.unwrap().0, 503);
    }
}
