//! Plain listeners in front of a waypoint, for clients that speak no HBONE: what ztunnel is to an application.

use std::net::SocketAddr;
use std::sync::Arc;

use stillmesh_runtime::tasks::Tasks;
use stillmesh_waypoint_tests::Client;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, sink, split};
use tokio::net::{TcpListener, TcpStream};

/// Where a plain listener's connections go.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// Each is one CONNECT to this address.
    Connect(SocketAddr),
    /// Each is a TLS connection to the waypoint's HBONE port; HBONE itself is the client's.
    Raw,
}

/// Listens at a free port of the loopback device; what comes there goes that way, byte for byte.
pub async fn listen(client: Arc<Client>, way: Way, tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("the port");
    let own = tasks.clone();
    tasks.spawn("plain listener", async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket option");
            let client = client.clone();
            own.spawn("plain connection", async move {
                match way {
                    Way::Connect(to) => match client.open(to).await {
                        Ok(tunnel) => carry(stream, tunnel).await,
                        Err(error) => println!("a CONNECT to {to} was refused: {error}"),
                    },
                    Way::Raw => carry(stream, client.raw().await).await,
                }
            });
        }
    });
    address
}

/// Either end may end as it likes: what comes of that is the client's to judge. What a client still sends when the waypoint has
/// ended is read all the same, since the kernel would answer it with a reset, and that would overtake the waypoint's last words.
async fn carry(plain: TcpStream, other: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = split(plain);
    let (mut from_waypoint, mut to_waypoint) = split(other);
    let up = async {
        let copied = copy(&mut from_client, &mut to_waypoint).await;
        drop(match copied {
            Ok(_) => to_waypoint.shutdown().await,
            Err(_) => copy(&mut from_client, &mut sink()).await.map(|_| ()),
        });
    };
    let down = async {
        drop(copy(&mut from_waypoint, &mut to_client).await);
        drop(to_client.shutdown().await);
    };
    tokio::join!(up, down);
}
