//! The first bytes of an application's connection, sent behind the CONNECT and not only after its answer: a round trip less until the
//! other application has them. Never TLS 0-RTT: the tunnel is there already.
//!
//! Only to a peer that says that it keeps them until it answers 200 ([`stillmesh_http2::EARLY_DATA`]); so they are not delivered
//! where it refuses. Where it does not answer at all, nobody knows: no other endpoint may be tried then
//! ([`crate::TunnelError::Sent`]). So they are sent only in a tunnel whose peer was heard a moment ago.
//!
//! Until the answer, they stay in the socket as well, from where another try takes them again.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use stillmesh_runtime::sys::socket;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::carrier::Inner;

/// What a server of ours takes before it has answered, bytes.
pub(crate) const MOST: u32 = 16 << 10;

/// How long ago a peer may have been heard last for early bytes to be sent to it.
pub(crate) const FRESH: Duration = Duration::from_millis(100);

/// A connection that the first bytes are taken from. They are taken out of it when the stream is open.
#[derive(Debug)]
pub struct Early<'a> {
    socket: &'a TcpStream,
    /// On their way, bytes.
    sent: AtomicUsize,
}

impl<'a> Early<'a> {
    /// The connection whose bytes are to be sent. Nobody else reads it meanwhile.
    pub fn new(socket: &'a TcpStream) -> Self {
        Self { socket, sent: AtomicUsize::new(0) }
    }

    /// How many bytes are on their way to a peer that may deliver them; once the stream is open, how many were sent and taken out of the socket.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// A try begins, of which nothing is on its way.
    pub(crate) fn begin(&self) {
        self.sent.store(0, Ordering::Relaxed);
    }

    /// Sends what is there behind the CONNECT of a stream, once, if the peer takes it; else asks to be woken when there is something.
    pub(crate) fn send(&self, cx: &mut Context<'_>, inner: &mut Inner, stream: u32) {
        let most = inner.early_data(FRESH);
        if self.sent() > 0 || most == 0 {
            return;
        }
        let Poll::Ready(Ok(room)) = inner.poll_room(cx, stream, false) else { return };
        let Ok(places) = inner.places(room.min(most)) else { return };
        let read = match places.of(inner.buffer()).next() {
            Some(place) => self.peek(cx, place),
            None => Poll::Pending,
        };
        match read {
            Poll::Ready(Ok(length)) if length > 0 => {
                // Should it fail, they may still be on their way.
                self.sent.store(length, Ordering::Relaxed);
                // What is wrong shows in the stream.
                let _ = inner.send(stream, &places, length);
            }
            // An end, or an error, is told to who reads on.
            _ => inner.send_nothing(),
        }
    }

    /// Reads without taking out. At first without asking whether there is something: of a connection that was just accepted,
    /// epoll has not told yet.
    fn peek(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = socket::peek(self.socket, buffer);
        while read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            ready!(self.socket.poll_read_ready(cx))?;
            read = self.socket.try_io(Interest::READABLE, || socket::peek(self.socket, buffer));
        }
        Poll::Ready(read)
    }

    /// The stream is open: what was sent leaves the socket. It is there; an error is found again by who reads on.
    pub(crate) fn take(&self) {
        let mut left = self.sent();
        let mut buffer = [0; 4 << 10];
        while left > 0 {
            let length = left.min(buffer.len());
            match (&*SockRef::from(self.socket)).read(buffer.get_mut(..length).unwrap_or_default()) {
                Ok(read) if read > 0 => left -= read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
