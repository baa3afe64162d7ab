//! Moves bytes between a socket and a tunnel, or two sockets, until both directions have ended.
//!
//! Each direction ends by itself: an end of one becomes a half-close of the other. An error ends both. There is no idle
//! timeout: a healthy connection may be silent for ever.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::memory::{Holding, UNCOUNTED};
use crate::stream::COLLECT;
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

/// Moves bytes between a socket (first) and a tunnel (second). On an error both are broken: the tunnel is reset here, the
/// socket by the caller, who drops it.
pub async fn tunnel<S>(socket: &mut S, stream: &mut Stream, counters: &Counters) -> Result<(), CopyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forward, mut backward) = (Forward::new(stream.holding()), Backward::default());
    let copied = poll_fn(|cx| {
        let there = forward.poll(cx, socket, stream, &counters.forward)?;
        let back = backward.poll(cx, socket, stream, &counters.backward)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    if copied.is_err() {
        stream.reset();
    }
    copied
}

/// Moves bytes between two sockets.
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

fn first(source: io::Error) -> CopyError {
    CopyError { side: Side::First, source }
}

fn second(source: io::Error) -> CopyError {
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

    /// Whether more may be read before what was read is gone.
    fn may_collect(&self) -> bool {
        self.buffer.is_empty() || (self.buffer.len() < COLLECT && !self.holding.is_short())
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
            ready!(Pin::new(socket).poll_read(cx, &mut lent))?;
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
            Poll::Pending => {
                self.busy = false;
                if self.buffer.is_empty() {
                    // A connection that waits holds no buffer.
                    self.buffer = BytesMut::new();
                }
                Poll::Pending
            }
        }
    }
}

/// Socket to tunnel. The buffer that was read into becomes the DATA frame.
struct Forward {
    reader: Reader,
    /// The socket has no more.
    ended: bool,
    /// Nothing is left to send, or nobody wants it.
    done: bool,
}

impl Forward {
    fn new(holding: Holding) -> Self {
        Self { reader: Reader::new(holding), ended: false, done: false }
    }

    fn poll<S>(&mut self, cx: &mut Context<'_>, socket: &mut S, stream: &mut Stream, counter: &AtomicU64) -> Progress
    where
        S: AsyncRead + Unpin,
    {
        let progress = self.turn(cx, socket, stream, counter);
        self.reader.count();
        progress
    }

    fn turn<S>(&mut self, cx: &mut Context<'_>, socket: &mut S, stream: &mut Stream, counter: &AtomicU64) -> Progress
    where
        S: AsyncRead + Unpin,
    {
        while !self.done {
            while !self.reader.buffer.is_empty() {
                // Not ready: there is no room yet. A small piece may be joined by more below.
                if stream.poll_send(cx, &mut self.reader.buffer, self.ended).map_err(second)?.is_pending() {
                    break;
                }
            }
            if self.ended && self.reader.buffer.is_empty() {
                stream.finish().map_err(second)?;
                self.done = true;
                break;
            }
            if self.ended || !self.reader.may_collect() {
                return Ok(Poll::Pending);
            }
            match self.reader.poll(cx, socket).map_err(first)? {
                Poll::Pending => match stream.poll_unwanted(cx).map_err(second)? {
                    Poll::Ready(()) => self.done = true,
                    Poll::Pending => return Ok(Poll::Pending),
                },
                Poll::Ready(0) => self.ended = true,
                Poll::Ready(length) => count(counter, length),
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// Tunnel to socket. The peer gets its credit back when the socket has taken the bytes.
#[derive(Default)]
struct Backward {
    shut: bool,
}

/// Why a connection is broken when memory is short.
const STUCK: &str = "it does not read, and memory for tunnels is used up";

/// Pieces written by one call.
const VECTORED: usize = 16;

impl Backward {
    fn poll<S>(&mut self, cx: &mut Context<'_>, socket: &mut S, stream: &mut Stream, counter: &AtomicU64) -> Progress
    where
        S: AsyncWrite + Unpin,
    {
        while !self.shut {
            let Poll::Ready(received) = stream.poll_unread(cx) else { return Ok(Poll::Pending) };
            received.map_err(second)?;
            if stream.unread().is_empty() {
                let Poll::Ready(()) = shutdown(cx, socket).map_err(first)? else { return Ok(Poll::Pending) };
                self.shut = true;
                break;
            }
            let mut slices = [IoSlice::new(&[]); VECTORED];
            let used = stream.unread().slices(&mut slices);
            let slices = slices.get(..used).unwrap_or_default();
            let Poll::Ready(written) = Pin::new(&mut *socket).poll_write_vectored(cx, slices).map_err(first)? else {
                if stream.is_overdrawn() {
                    return Err(first(io::Error::new(io::ErrorKind::OutOfMemory, STUCK)));
                }
                return Ok(Poll::Pending);
            };
            if written == 0 {
                return Err(first(io::ErrorKind::WriteZero.into()));
            }
            count(counter, written);
            stream.take(written);
        }
        Ok(Poll::Ready(()))
    }
}

/// Closes the sending half; a peer that is gone already has it closed.
fn shutdown<S: AsyncWrite + Unpin>(cx: &mut Context<'_>, socket: &mut S) -> io::Result<Poll<()>> {
    match Pin::new(socket).poll_shutdown(cx) {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        Poll::Ready(_) => Ok(Poll::Ready(())),
    }
}

/// One direction between sockets.
struct OneWay {
    reader: Reader,
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
        Self { reader: Reader::new(holding), ended: false, shut: false }
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
                continue;
            }
            if self.ended {
                if !self.shut {
                    self.shut = shutdown(cx, to).map_err(WayError::Writing)?.is_ready();
                }
                return Ok(if self.shut { Poll::Ready(()) } else { Poll::Pending });
            }
            match self.reader.poll(cx, from).map_err(WayError::Reading)? {
                Poll::Pending => return Ok(Poll::Pending),
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
