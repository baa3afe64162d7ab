//! Sockets for connections from a pod's namespace, some of them made before they are needed: who connects then waits for no other
//! thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::Socket;
use stillmesh_runtime::sys::netns::NetnsThread;
use stillmesh_runtime::sys::socket::{self, Mark};
use tokio::net::TcpStream;

/// Sockets of one family that are kept ready, once one was needed.
const READY: usize = 8;

/// With fewer than this left, others are made.
const FEW: usize = 4;

/// Makes sockets in a namespace. Clones share what is ready.
#[derive(Clone, Debug)]
pub struct Sockets {
    thread: Arc<NetnsThread>,
    mark: Mark,
    stocks: Arc<[Mutex<Stock>; 2]>,
}

/// What is ready of one family.
#[derive(Debug, Default)]
struct Stock {
    ready: Vec<Socket>,
    /// More are being made.
    filling: bool,
}

impl Sockets {
    /// Sockets made by this thread, with this mark.
    pub fn new(thread: Arc<NetnsThread>, mark: Mark) -> Self {
        Self { thread, mark, stocks: Arc::default() }
    }

    /// Connects to `destination`, from `source` if that is given: see [`socket::connect`]. With TCP_NODELAY.
    pub async fn connect(&self, destination: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
        let socket = match self.take(destination.is_ipv4()) {
            Some(socket) => socket,
            None => {
                let (is_ipv4, mark) = (destination.is_ipv4(), self.mark);
                self.thread.run(move || make(is_ipv4, mark)).await??
            }
        };
        socket::connect(socket, destination, source).await
    }

    /// One that is ready; has others made in time.
    fn take(&self, is_ipv4: bool) -> Option<Socket> {
        let [v4, v6] = &*self.stocks;
        let mut stock = if is_ipv4 { v4 } else { v6 }.lock();
        let socket = stock.ready.pop();
        if stock.ready.len() < FEW && !stock.filling {
            let (stocks, mark) = (Arc::downgrade(&self.stocks), self.mark);
            let fill = move || {
                let Some(stocks) = stocks.upgrade() else { return };
                let [v4, v6] = &*stocks;
                fill(if is_ipv4 { v4 } else { v6 }, is_ipv4, mark);
            };
            // A thread that is too busy is asked the next time.
            stock.filling = self.thread.begin(fill).is_ok();
        }
        socket
    }
}

/// Makes what is missing. Where the kernel makes none, whoever needs one is told why.
fn fill(stock: &Mutex<Stock>, is_ipv4: bool, mark: Mark) {
    let missing = READY.saturating_sub(stock.lock().ready.len());
    let made: Vec<Socket> = (0..missing).map_while(|_| make(is_ipv4, mark).ok()).collect();
    let mut stock = stock.lock();
    stock.ready.extend(made);
    stock.filling = false;
}

fn make(is_ipv4: bool, mark: Mark) -> io::Result<Socket> {
    let socket = socket::tcp_socket(is_ipv4, Some(mark))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}
