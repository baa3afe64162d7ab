//! Pods and the programs in them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stillmesh_cni::rules::{apply, plan};
use stillmesh_runtime::sys::socket;
use stillmesh_test_support::net::{Place, join};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A network namespace with one pair of addresses.
#[derive(Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// Its namespace.
    pub place: Place,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its addresses.
    pub v6: Ipv6Addr,
}

impl Pod {
    /// A pod joined to the router by a network of its own.
    pub(crate) fn new(router: &Place, name: &str, number: u8) -> Self {
        let place = Place::new(&format!("pod{number}"));
        let subnet = u16::from(number);
        let (v4, v6) = (Ipv4Addr::new(10, 244, number, 2), Ipv6Addr::new(0xfd00, 0x244, subnet, 0, 0, 0, 0, 2));
        let router_v6 = Ipv6Addr::new(0xfd00, 0x244, subnet, 0, 0, 0, 0, 1);
        let router_v4 = Ipv4Addr::new(10, 244, number, 1);
        let link = format!("to-pod{number}");
        join(
            (router, &link, &[&format!("{router_v4}/24"), &format!("{router_v6}/64")]),
            (&place, "eth0", &[&format!("{v4}/24"), &format!("{v6}/64")]),
        );
        place.route_via("0.0.0.0/0", &router_v4.to_string());
        place.route_via("::/0", &router_v6.to_string());
        Self { name: name.to_owned(), place, v4, v6 }
    }

    /// Another pod at the same place: it was deleted and made again, and got the same addresses.
    #[must_use]
    pub fn reborn(&self, name: &str) -> Self {
        Self { name: name.to_owned(), place: self.place.clone(), v4: self.v4, v6: self.v6 }
    }

    /// The UID that ztunnel knows it by.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("uid-of-{}", self.name)
    }

    /// Puts the capture rules in place.
    pub async fn capture(&self) {
        let capturing = self.place.run_async(|| apply::install(&plan::capture(&plan::Facts::default())));
        capturing.await.expect("capture rules");
    }

    /// An address of it with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), port)
    }

    /// The same over IPv6.
    #[must_use]
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.v6), port)
    }

    /// Listens as a program in the pod would.
    pub async fn listen(&self, port: u16) -> TcpListener {
        let listener = self.place.run_async(move || socket::tcp_listener_any(port, socket::Options::default())).await;
        TcpListener::from_std(listener.expect("a listener in the pod")).expect("a listener")
    }

    /// Connects as a program in the pod would.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.place.run_async(move || socket::tcp_connect_socket(to, None, None)).await?.connect(to).await
    }

    /// How a connection fails whose client says nothing: while it is made, or when it is read.
    ///
    /// # Panics
    /// Where it ends without an error, or is open for long.
    pub async fn failure(&self, to: SocketAddr) -> io::ErrorKind {
        let failing = async { self.connect(to).await?.read(&mut [0]).await };
        let failed = tokio::time::timeout(crate::mesh::PATIENCE, failing).await;
        failed.expect("it is still open").expect_err("it looks like an end").kind()
    }

    /// A datagram socket of a program in the pod.
    pub async fn datagrams(&self) -> UdpSocket {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = self.place.run_async(move || socket::udp_socket(any, socket::Options::default())).await;
        UdpSocket::from_std(socket.expect("a socket in the pod")).expect("a socket")
    }

    /// Runs an echo server on a port: sends back what it gets, then ends. The first line it sends is its client's
    /// address.
    pub async fn echo(&self, port: u16) {
        let listener = self.listen(port).await;
        let tasks = stillmesh_runtime::tasks::Tasks::new("echo");
        let owned = tasks.clone();
        let accepting = async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                owned.spawn("echo", async move {
                    let greeting = format!("{}\n", peer.ip().to_canonical());
                    stream.write_all(greeting.as_bytes()).await?;
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.shutdown().await
                });
            }
        };
        // Lives as long as the test.
        tasks.spawn("accept", accepting);
        std::mem::forget(tasks);
    }

    /// Connects to an echo server, sends `text`, ends, and reads all: the address it was seen from, and the echo.
    pub async fn ask(&self, to: SocketAddr, text: &str) -> io::Result<(String, String)> {
        let asking = async {
            let mut stream = self.connect(to).await?;
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (seen, echo) = answer.split_once('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok((seen.to_owned(), echo.to_owned()))
        };
        tokio::time::timeout(crate::mesh::PATIENCE, asking).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}
