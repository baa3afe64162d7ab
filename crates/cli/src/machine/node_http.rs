//! Connections from a node to its pods, as a kubelet makes them for probes.
//!
//! They come from [`PROBE_SOURCE`], which only the node itself can use as its address: the mesh lets probes pass
//! by it (contract 2.1), and packets with it that come from a pod are dropped by the kernel as having a local source.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use stillmesh_runtime::sys::socket::tcp_connect_socket;
use tokio::net::TcpStream;

use super::network::Node;

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

/// Sends a GET and returns the answer's status.
pub async fn status(stream: TcpStream, host: &str, path: &str, headers: &[(String, String)]) -> anyhow::Result<u16> {
    Ok(exchange(stream, host, path, headers).await?.0)
}

/// Sends a GET and returns the answer's status and body.
pub async fn exchange(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
) -> anyhow::Result<(u16, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = hyper::Request::get(path).header(http::header::HOST, host);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = async {
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        anyhow::Ok((status, body))
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => {
            ended?;
            anyhow::bail!("the connection was closed without an answer")
        }
    }
}
