//! The server: requests of all connections by one thread, streams of bulk by one each, so that the server itself makes
//! nobody wait behind a stream.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use clap::Args;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::{BULK, CHUNK, allow_descriptors};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Tells the listener from connections, which are known by their descriptors.
const LISTENER: u64 = u64::MAX;

/// Serves every load.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Port to listen on.
    #[arg(long, default_value_t = 7000)]
    port: u16,
}

/// A connection on which requests come.
struct Peer {
    stream: TcpStream,
    /// Its first byte was read.
    known: bool,
}

impl Server {
    /// Serves until the process ends.
    pub(super) fn run(self) -> anyhow::Result<()> {
        allow_descriptors();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
        socket.bind(&address.into()).with_context(|| format!("listen on port {}", self.port))?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let mut peers: HashMap<u64, Peer> = HashMap::new();
        let mut events = [EpollEvent::empty(); 256];
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("wait for connections"),
            };
            for event in events.iter().take(count) {
                let key = event.data();
                if key == LISTENER {
                    if let Some(peer) = accept(&listener) {
                        let key = u64::try_from(peer.stream.as_raw_fd())?;
                        epoll.add(&peer.stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
                        peers.insert(key, peer);
                    }
                    continue;
                }
                match peers.get_mut(&key).map(|peer| peer.turn(&mut buffer)) {
                    Some(Turn::Stays) | None => {}
                    // Closed, it is out of the epoll as well.
                    Some(Turn::Ended) => drop(peers.remove(&key)),
                    Some(Turn::Bulk(come)) => {
                        let Some(peer) = peers.remove(&key) else { continue };
                        epoll.delete(&peer.stream)?;
                        std::thread::Builder::new().name("bulk".to_owned()).spawn(move || {
                            // A client that breaks off reports it itself.
                            let _ = swallow(peer.stream, come);
                        })?;
                    }
                }
            }
        }
    }
}

/// What became of a connection.
enum Turn {
    Stays,
    Ended,
    /// It is for bulk, and so many bytes have come.
    Bulk(u64),
}

impl Peer {
    /// Reads once, and answers.
    fn turn(&mut self, buffer: &mut [u8]) -> Turn {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Turn::Ended,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => return Turn::Stays,
            Err(_) => return Turn::Ended,
        };
        let mut come = buffer.get(..count).unwrap_or_default();
        if !self.known {
            let Some((first, rest)) = come.split_first() else { return Turn::Stays };
            if *first == BULK {
                return Turn::Bulk(u64::try_from(rest.len()).unwrap_or(0));
            }
            (self.known, come) = (true, rest);
        }
        // It is a few bytes, which the client reads: there is room for them.
        if self.stream.write_all(come).is_ok() { Turn::Stays } else { Turn::Ended }
    }
}

fn accept(listener: &TcpListener) -> Option<Peer> {
    // One that is gone by now, or for which there is no descriptor, is not there; the client sees it.
    let (stream, _) = listener.accept().ok()?;
    stream.set_nodelay(true).ok()?;
    Some(Peer { stream, known: false })
}

/// Reads a stream of bulk to its end, and answers with how many bytes came.
fn swallow(mut stream: TcpStream, mut total: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => total += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(&total.to_be_bytes())?;
    stream.shutdown(Shutdown::Both)
}
