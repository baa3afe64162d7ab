//! One tunnelled connection, as either end holds it: bytes in, bytes out, each direction ended by itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the stream keeps alive on its connection: dropped with the stream.
type Guard = Box<dyn Send + Sync>;

/// A CONNECT stream. Half-close is END_STREAM (contract 3.2); dropping it before both directions ended resets it.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not yet read; credit for it is not given back before it is read.
    unread: Bytes,
    received_all: bool,
    sent_all: bool,
    /// Capacity asked of flow control and not used yet.
    asked: usize,
    _guard: Option<Guard>,
}

/// The largest piece that is handed to flow control at once, bytes.
const PIECE: usize = 256 << 10;

impl Stream {
    pub(crate) fn new(send: SendStream<Bytes>, receive: RecvStream, guard: Option<Guard>) -> Self {
        let received_all = receive.is_end_stream();
        Self { send, receive, unread: Bytes::new(), received_all, sent_all: false, asked: 0, _guard: guard }
    }

    /// The next received bytes without a copy; empty at the end. The peer may send as much again only after
    /// [`Stream::credit`]. Cancel-safe.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        ready!(self.poll_fill(context))?;
        Poll::Ready(Ok(std::mem::take(&mut self.unread)))
    }

    /// Waits for received bytes in `unread`; leaves it empty at the end.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.received_all {
            match ready!(self.receive.poll_data(context)) {
                Some(Ok(chunk)) => self.unread = chunk,
                // A reset without an error is an end (contract 3.2).
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    self.received_all = true;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => self.received_all = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the peer credit for bytes that were passed on.
    pub fn credit(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match self.receive.flow_control().release_capacity(bytes) {
            Ok(()) => Ok(()),
            // Nothing is owed to a stream that has ended.
            Err(_) if self.received_all || self.receive.is_end_stream() => Ok(()),
            Err(error) => Err(broken(error)),
        }
    }

    /// Waits until at least one byte may be sent; says how many, at most `wanted`. Cancel-safe.
    pub fn poll_room(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let wanted = wanted.clamp(1, PIECE);
        if self.asked < wanted {
            self.asked = wanted;
            self.send.reserve_capacity(wanted);
        }
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(self.closed(context))),
            }
        }
    }

    /// Sends what there is room for; see [`Stream::poll_room`].
    pub fn send_chunk(&mut self, chunk: Bytes) -> io::Result<()> {
        self.asked = self.asked.saturating_sub(chunk.len());
        self.send.send_data(chunk, false).map_err(broken)
    }

    /// Ends the sending direction. Doing it again does nothing.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.sent_all {
            return Ok(());
        }
        self.sent_all = true;
        self.send.send_data(Bytes::new(), true).map_err(broken)
    }

    /// Ends both directions as broken: the peer's application sees a reset.
    pub fn reset(&mut self) {
        self.sent_all = true;
        self.send.send_reset(Reason::INTERNAL_ERROR);
    }

    /// Why nothing can be sent any more.
    fn closed(&mut self, context: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(context) {
            Poll::Ready(Ok(reason)) => {
                io::Error::new(io::ErrorKind::ConnectionReset, format!("the peer reset: {reason}"))
            }
            _ => io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel does not take more"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_fill(context))?;
        let length = this.unread.len().min(buffer.remaining());
        if let Some(bytes) = this.unread.get(..length) {
            buffer.put_slice(bytes);
        }
        this.unread.advance(length);
        this.credit(length)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(context, bytes.len()))?;
        let piece = bytes.get(..room).unwrap_or(bytes);
        this.send_chunk(Bytes::copy_from_slice(piece))?;
        Poll::Ready(Ok(piece.len()))
    }

    /// The connection's own task sends what is queued.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}

fn broken(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(_) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        None => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
    }
}
