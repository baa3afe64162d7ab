//! Moves bytes between a socket and a tunnel, or two sockets, until both directions have ended.
//!
//! Each direction ends by itself: an end of one becomes a half-close of the other. An error ends both. There is no idle
//! timeout: a healthy connection may be silent for ever.

mod splice;

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

pub use splice::{Pipes, spliced};

use crate::carrier::Outlet;
use crate::memory::{Holding, UNCOUNTED};
use crate::stream::Filled;
use crate::{Memory, Stream};

/// Bytes moved so far; may be read while they move.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the first side to the second.
    pub forward: AtomicU64,
    /// From the second side to the first.
    pub backward: AtomicU64,
}

/// Which side broke the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first one given.
    First,
    /// The second one given.
    Second,
}

/// Why copying ended before both directions had.
#[derive(Debug, thiserror::Error)]
#[error("the {} side broke the connection", match side { Side::First => "first", Side::Second => "second" })]
pub struct CopyError {
    /// Who.
    pub side: Side,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// How much is read from a busy socket at once, bytes.
const BULK: usize = 128 << 10;

/// What a quiet socket is read into first, bytes: on the stack, so that a connection that waits holds no buffer.
const SMALL: usize = UNCOUNTED;

/// A socket that is copied to and from a tunnel.
pub trait Socket {
    /// Reads into slices, in order; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, slices: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>>;
    /// Writes from slices, in order.
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
    /// Ends the sending direction.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// The same socket for the connection's task, which may write to it without waiting.
    fn shared(&self) -> Option<Arc<TcpStream>> {
        None
    }
}

impl Socket for Arc<TcpStream> {
    fn poll_read(&mut self, cx: &mut Context<'_>, slices: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.poll_read_ready(cx))?;
            let mut length = None;
            let outcome = self.try_io(Interest::READABLE, || {
                let read = readv(self, slices)?;
                length = Some(read);
                // Less than there is room for: nothing is left, and nobody has to ask again to know it.
                if read > 0 && read < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (length, outcome) {
                (Some(length), _) => return Poll::Ready(Ok(length)),
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match write_now(self, slices) {
                Ok(0) => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&**self).shutdown(Shutdown::Write))
    }

    fn shared(&self) -> Option<Arc<TcpStream>> {
        Some(Arc::clone(self))
    }
}

fn readv(socket: &TcpStream, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    match slices {
        [one] => (&*SockRef::from(socket)).read(one),
        several => (&*SockRef::from(socket)).read_vectored(several),
    }
}

/// Writes what a socket takes now: 0 when it takes nothing.
pub(crate) fn write_now(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut written = 0;
    let outcome = socket.try_io(Interest::WRITABLE, || {
        written = send(socket, slices)?;
        // Less than all: it takes no more for now, and nobody has to ask again to know it.
        if written < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match outcome {
        Err(error) if written == 0 && error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(written),
    }
}

/// Likewise, without asking first whether it takes something: of a connection that was just made, epoll has not told yet.
pub(crate) fn write_unasked(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match send(socket, slices) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent,
    }
}

fn send(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        [one] => SockRef::from(socket).send(one),
        several => SockRef::from(socket).send_vectored(several),
    }
}

/// How far the bytes between a socket (first) and a tunnel (second) were moved.
#[derive(Debug, Default)]
pub struct Tunnelling {
    forward: Forward,
    backward: Backward,
    /// What is received is written to the socket at once.
    began: bool,
}

impl Tunnelling {
    /// Moves what can be moved now; ready when both directions have ended or one is broken. Then the socket, too, is to be broken by
    /// who has it. Cancel-safe: what is moved is counted.
    pub fn poll<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        stream: &mut Stream,
        counters: &Arc<Counters>,
    ) -> Poll<Result<(), CopyError>> {
        if !std::mem::replace(&mut self.began, true)
            && let Some(socket) = socket.shared()
        {
            stream.set_outlet(Outlet { socket, counters: Arc::clone(counters) });
        }
        let copied = self.turn(cx, socket, stream, counters);
        if matches!(copied, Poll::Ready(Err(_))) {
            stream.reset();
        }
        copied
    }

    fn turn<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        stream: &mut Stream,
        counters: &Counters,
    ) -> Poll<Result<(), CopyError>> {
        let there = self.forward.poll(cx, socket, stream, &counters.forward)?;
        let back = self.backward.poll(cx, socket, stream, &counters.backward, self.forward.ended)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// Moves bytes between a socket (first) and a tunnel (second). On an error both are broken: the tunnel is reset here, the
/// socket by the caller, who drops it. So he does when both directions have ended: what ends last is not told to the socket otherwise.
pub async fn tunnel<S: Socket>(socket: &mut S, stream: &mut Stream, counters: &Arc<Counters>) -> Result<(), CopyError> {
    let mut copying = Tunnelling::default();
    poll_fn(|cx| copying.poll(cx, socket, stream, counters)).await
}

/// Moves bytes between two sockets, or what else has two directions. While nothing moves, no buffer is held.
pub async fn sockets<A, B>(first: &mut A, second: &mut B, counters: &Counters) -> Result<(), CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let memory = Memory::of_process();
    let (mut forward, mut backward) = (OneWay::new(memory.holding()), OneWay::new(memory.holding()));
    poll_fn(|cx| {
        let there = forward.poll(cx, first, second, &counters.forward).map_err(|error| error.of(Side::First))?;
        let back = backward.poll(cx, second, first, &counters.backward).map_err(|error| error.of(Side::Second))?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// How far a direction is; ready when it has ended.
type Progress<E = CopyError> = Result<Poll<()>, E>;

pub(crate) fn first(source: io::Error) -> CopyError {
    CopyError { side: Side::First, source }
}

pub(crate) fn second(source: io::Error) -> CopyError {
    CopyError { side: Side::Second, source }
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Reads a socket: small pieces by way of the stack, and straight into large buffers while it is busy.
struct Reader {
    buffer: BytesMut,
    busy: bool,
    holding: Holding,
}

impl Reader {
    fn new(holding: Holding) -> Self {
        Self { buffer: BytesMut::new(), busy: false, holding }
    }

    /// Tells how much is left; called when a turn is over.
    fn count(&mut self) {
        self.holding.set(self.buffer.len());
    }

    /// Reads once into the buffer; 0 is the end.
    fn poll<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Poll<io::Result<usize>> {
        if !self.busy || self.holding.is_short() {
            let mut small = [MaybeUninit::uninit(); SMALL];
            let mut lent = ReadBuf::uninit(&mut small);
            let Poll::Ready(read) = Pin::new(socket).poll_read(cx, &mut lent) else { return self.wait() };
            read?;
            self.busy = lent.remaining() == 0;
            self.buffer.extend_from_slice(lent.filled());
            return Poll::Ready(Ok(lent.filled().len()));
        }
        if self.buffer.capacity() - self.buffer.len() < BULK / 4 {
            self.buffer.reserve(BULK);
        }
        match poll_read_buf(Pin::new(socket), cx, &mut self.buffer) {
            Poll::Ready(Ok(length)) => {
                self.busy = length >= SMALL;
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(),
        }
    }

    /// A connection that waits holds no buffer.
    fn wait<T>(&mut self) -> Poll<T> {
        self.busy = false;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Poll::Pending
    }
}

/// Socket to tunnel: read straight into records.
#[derive(Debug, Default)]
struct Forward {
    /// The last read brought all that it had room for.
    busy: bool,
    /// The socket has no more.
    ended: bool,
    /// The tunnel knows, or does not want more.
    done: bool,
}

impl Forward {
    fn poll<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        stream: &mut Stream,
        counter: &AtomicU64,
    ) -> Progress {
        while !self.done {
            if self.ended {
                let Poll::Ready(finished) = stream.poll_finish(cx) else { return Ok(Poll::Pending) };
                finished.map_err(second)?;
                self.done = true;
                break;
            }
            let Poll::Ready(filled) = stream.poll_fill(cx, socket, self.busy) else {
                self.busy = false;
                return Ok(Poll::Pending);
            };
            match filled? {
                Filled::Bytes(length, more) => {
                    count(counter, length);
                    self.busy = more;
                }
                Filled::End => self.ended = true,
                Filled::Unwanted => self.done = true,
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// Tunnel to socket. The peer gets its credit back when the socket has taken the bytes.
#[derive(Debug, Default)]
struct Backward {
    drained: bool,
    shut: bool,
}

impl Backward {
    fn poll<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        stream: &mut Stream,
        counter: &AtomicU64,
        last: bool,
    ) -> Progress {
        if !self.drained {
            let Poll::Ready(drained) = stream.poll_drain(cx, socket, counter) else { return Ok(Poll::Pending) };
            drained?;
            self.drained = true;
        }
        // A socket that has ended as well is closed next, which says the same.
        if !self.shut && !last {
            let Poll::Ready(()) = gone_is_shut(socket.poll_shutdown(cx)).map_err(first)? else {
                return Ok(Poll::Pending);
            };
            self.shut = true;
        }
        Ok(Poll::Ready(()))
    }
}

/// A peer that is gone already has the sending half closed.
fn gone_is_shut(shut: Poll<io::Result<()>>) -> io::Result<Poll<()>> {
    match shut {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        Poll::Ready(_) => Ok(Poll::Ready(())),
    }
}

/// One direction between sockets.
struct OneWay {
    reader: Reader,
    /// Something was written that may wait within what it was written to.
    unflushed: bool,
    ended: bool,
    shut: bool,
}

/// Which end of a direction failed.
enum WayError {
    Reading(io::Error),
    Writing(io::Error),
}

impl WayError {
    /// Says it of the sides, given which one was read.
    fn of(self, read: Side) -> CopyError {
        match (self, read) {
            (Self::Reading(source), Side::First) | (Self::Writing(source), Side::Second) => first(source),
            (Self::Reading(source), Side::Second) | (Self::Writing(source), Side::First) => second(source),
        }
    }
}

impl OneWay {
    fn new(holding: Holding) -> Self {
        Self { reader: Reader::new(holding), unflushed: false, ended: false, shut: false }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W, counter: &AtomicU64) -> Progress<WayError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let progress = self.turn(cx, from, to, counter);
        self.reader.count();
        progress
    }

    fn turn<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W, counter: &AtomicU64) -> Progress<WayError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let waiting = &mut self.reader.buffer;
            if !waiting.is_empty() {
                let Poll::Ready(written) = Pin::new(&mut *to).poll_write(cx, waiting).map_err(WayError::Writing)?
                else {
                    return Ok(Poll::Pending);
                };
                if written == 0 {
                    return Err(WayError::Writing(io::ErrorKind::WriteZero.into()));
                }
                waiting.advance(written);
                self.unflushed = true;
                continue;
            }
            if self.ended {
                if !self.shut {
                    self.shut =
                        gone_is_shut(Pin::new(&mut *to).poll_shutdown(cx)).map_err(WayError::Writing)?.is_ready();
                }
                return Ok(if self.shut { Poll::Ready(()) } else { Poll::Pending });
            }
            match self.reader.poll(cx, from).map_err(WayError::Reading)? {
                Poll::Pending => {
                    if self.unflushed {
                        self.unflushed = Pin::new(&mut *to).poll_flush(cx).map_err(WayError::Writing)?.is_pending();
                    }
                    return Ok(Poll::Pending);
                }
                Poll::Ready(0) => {
                    self.ended = true;
                    self.reader.buffer = BytesMut::new();
                }
                Poll::Ready(length) => count(counter, length),
            }
        }
    }
}

#[cfg(test)]
mod tests;
