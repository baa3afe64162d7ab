//! Moves bytes between a socket and a tunnel, or two sockets, until both directions have ended.
//!
//! Each direction ends by itself: an end of one becomes a half-close of the other. An error ends both. There is no idle
//! timeout: a healthy connection may be silent for ever.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::Stream;

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
const SMALL: usize = 2 << 10;

/// Moves bytes between a socket (first) and a tunnel (second). On an error both are broken: the tunnel is reset here, the
/// socket by the caller, who drops it.
pub async fn tunnel<S>(socket: &mut S, stream: &mut Stream, counters: &Counters) -> Result<(), CopyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forward, mut backward) = (Forward::default(), Backward::default());
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
    let (mut forward, mut backward) = (OneWay::default(), OneWay::default());
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
#[derive(Default)]
struct Reader {
    buffer: BytesMut,
    busy: bool,
}

impl Reader {
    /// Reads once into the buffer; 0 is the end.
    fn poll<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Poll<io::Result<usize>> {
        if !self.busy {
            let mut small = [MaybeUninit::uninit(); SMALL];
            let mut lent = ReadBuf::uninit(&mut small);
            ready!(Pin::new(socket).poll_read(cx, &mut lent))?;
            self.busy = lent.remaining() == 0;
            self.buffer.extend_from_slice(lent.filled());
            return Poll::Ready(Ok(lent.filled().len()));
        }
        self.buffer.reserve(BULK);
        match poll_read_buf(Pin::new(socket), cx, &mut self.buffer) {
            Poll::Ready(Ok(length)) => {
                self.busy = length >= SMALL;
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                *self = Self::default();
                Poll::Pending
            }
        }
    }
}

/// Socket to tunnel. The buffer that was read into becomes the DATA frame.
#[derive(Default)]
struct Forward {
    reader: Reader,
    ended: bool,
}

impl Forward {
    fn poll<S>(&mut self, cx: &mut Context<'_>, socket: &mut S, stream: &mut Stream, counter: &AtomicU64) -> Progress
    where
        S: AsyncRead + Unpin,
    {
        while !self.ended {
            let waiting = &mut self.reader.buffer;
            if !waiting.is_empty() {
                let Poll::Ready(room) = stream.poll_room(cx, waiting.len()).map_err(second)? else {
                    return Ok(Poll::Pending);
                };
                let piece = waiting.split_to(room.min(waiting.len())).freeze();
                stream.send_chunk(piece).map_err(second)?;
                continue;
            }
            match self.reader.poll(cx, socket).map_err(first)? {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(0) => {
                    self.ended = true;
                    self.reader = Reader::default();
                    stream.finish().map_err(second)?;
                }
                Poll::Ready(length) => count(counter, length),
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// Tunnel to socket. The peer gets its credit back when the socket has taken the bytes.
#[derive(Default)]
struct Backward {
    chunk: Bytes,
    /// Written of the chunk and not given back yet.
    owed: usize,
    ended: bool,
    shut: bool,
}

impl Backward {
    fn poll<S>(&mut self, cx: &mut Context<'_>, socket: &mut S, stream: &mut Stream, counter: &AtomicU64) -> Progress
    where
        S: AsyncWrite + Unpin,
    {
        loop {
            if !self.chunk.is_empty() {
                let Poll::Ready(written) = Pin::new(&mut *socket).poll_write(cx, &self.chunk).map_err(first)? else {
                    return Ok(Poll::Pending);
                };
                if written == 0 {
                    return Err(first(io::ErrorKind::WriteZero.into()));
                }
                count(counter, written);
                self.chunk.advance(written);
                self.owed += written;
                continue;
            }
            stream.credit(std::mem::take(&mut self.owed)).map_err(second)?;
            if self.ended {
                return self.shut(cx, socket);
            }
            match stream.poll_chunk(cx).map_err(second)? {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(chunk) => {
                    self.ended = chunk.is_empty();
                    self.chunk = chunk;
                }
            }
        }
    }

    fn shut<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Progress {
        if !self.shut {
            self.shut = shutdown(cx, socket).map_err(first)?.is_ready();
        }
        Ok(if self.shut { Poll::Ready(()) } else { Poll::Pending })
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
#[derive(Default)]
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
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W, counter: &AtomicU64) -> Progress<WayError>
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
                    self.reader = Reader::default();
                }
                Poll::Ready(length) => count(counter, length),
            }
        }
    }
}

#[cfg(test)]
mod tests;
