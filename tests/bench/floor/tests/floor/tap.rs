//! Between the two ends: what changes and cuts the records of one connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context as _, Result};

use crate::process::{DEADLINE, accept, with_deadlines};

pub struct Tap {
    pub address: SocketAddr,
    listener: TcpListener,
    to: SocketAddr,
}

/// One connection that is carried.
pub struct Crossing(Receiver<Result<Vec<u8>>>);

impl Crossing {
    /// All that the client end has sent, when it has ended.
    pub fn seen(&self) -> Result<Vec<u8>> {
        self.0.recv_timeout(DEADLINE).context("the end of the tunnel")?
    }
}

impl Tap {
    pub fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Self { address: listener.local_addr()?, listener, to })
    }

    /// Carries the next connection; what the client end sends, as `change` makes it of each read and its number.
    pub fn carry(self, change: impl Fn(&[u8], usize) -> Vec<Vec<u8>> + Send + 'static) -> Crossing {
        let (tell, told) = channel();
        thread::spawn(move || {
            let _ = tell.send(self.run(change));
        });
        Crossing(told)
    }

    fn run(self, change: impl Fn(&[u8], usize) -> Vec<Vec<u8>>) -> Result<Vec<u8>> {
        let mut client = accept(&self.listener)?;
        let mut server = with_deadlines(TcpStream::connect(self.to)?)?;
        server.set_nodelay(true)?;
        let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
        let back = thread::spawn(move || {
            let copied = io::copy(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Write);
            copied
        });
        let (mut seen, mut buffer) = (Vec::new(), vec![0; 2048]);
        for number in 0.. {
            let length = client.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            seen.extend_from_slice(&buffer[..length]);
            for part in change(&buffer[..length], number) {
                server.write_all(&part)?;
            }
        }
        server.shutdown(Shutdown::Write)?;
        let _ = back.join();
        Ok(seen)
    }
}
