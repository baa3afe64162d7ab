//! One tunnelled connection, as either end holds it: bytes in, bytes out, each direction ended by itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::chunks::Chunks;
use crate::link::{Link, Taken};
use crate::memory::{Account, Frame, Holding};

/// A CONNECT stream. Half-close is END_STREAM (contract 3.2). Dropped before the sending direction was ended, it is reset;
/// dropped after that, what was sent still goes out, and the peer is told that no more is wanted.
///
/// As with any buffered writer, flush what must go.
pub struct Stream {
    send: SendStream<Frame>,
    receive: RecvStream,
    link: Arc<Link>,
    /// Received and not yet taken; credit for it is not given back before it is.
    unread: Chunks,
    account: Account,
    taken: Taken,
    /// How the receiving direction ended; told after all that was received.
    received: Option<Result<(), Broken>>,
    /// Written and not yet sent.
    unsent: BytesMut,
    /// Capacity asked of flow control and not used yet, bytes.
    asked: usize,
    sent_all: bool,
    _slot: Slot,
}

/// A place among a connection's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    link: Arc<Link>,
}

impl Slot {
    pub(crate) fn take(link: &Arc<Link>) -> Self {
        link.stream_opened();
        Self { link: Arc::clone(link) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.link.stream_closed();
    }
}

/// Why a direction broke.
#[derive(Clone, Copy, Debug)]
enum Broken {
    Reset(Reason),
    Connection(io::ErrorKind),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Reset(reason) => Self::new(io::ErrorKind::ConnectionReset, format!("the peer reset: {reason}")),
            Broken::Connection(kind) => Self::new(kind, "the tunnel's connection broke"),
        }
    }
}

/// The largest piece that is handed to flow control at once, bytes.
const PIECE: usize = 256 << 10;

/// Writes are collected up to this while they cannot be sent, bytes.
pub(crate) const COLLECT: usize = 8 << 10;

impl Stream {
    pub(crate) fn new(send: SendStream<Frame>, mut receive: RecvStream, slot: Slot) -> Self {
        let link = Arc::clone(&slot.link);
        link.receives(receive.flow_control().clone());
        Self {
            send,
            receive,
            account: link.memory().account(),
            link,
            unread: Chunks::default(),
            taken: Taken::default(),
            received: None,
            unsent: BytesMut::new(),
            asked: 0,
            sent_all: false,
            _slot: slot,
        }
    }

    // ---- receiving ----

    /// Waits for received bytes: ready with them in [`Stream::unread`], or with none at the end.
    ///
    /// Takes all that has arrived, also while its reader is behind: small frames are put together here, and no budget
    /// of the connection is used up by them. Cancel-safe.
    pub(crate) fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.received.is_none() {
            match self.receive.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(chunk))) => {
                    self.account.receive(chunk.len());
                    self.link.arrived(chunk.len());
                    self.unread.push(chunk);
                }
                Poll::Ready(Some(Err(error))) => self.received = Some(ending(&error)),
                Poll::Ready(None) => self.received = Some(Ok(())),
            }
        }
        match self.received {
            _ if !self.unread.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(broken)) => Poll::Ready(Err(broken.into())),
        }
    }

    pub(crate) fn unread(&self) -> &Chunks {
        &self.unread
    }

    /// Whether more is unread than memory allows: the reader is stuck, and the stream must be broken. To be asked when the
    /// reader takes no more. Counts it when so.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.account.is_overdrawn()
    }

    /// The first unread bytes were passed on: the peer gets its credit back.
    pub(crate) fn take(&mut self, bytes: usize) {
        let bytes = self.unread.advance(bytes);
        self.link.taken(&mut self.taken, bytes);
        self.let_go(bytes);
    }

    /// Bytes that had arrived are here no more.
    fn let_go(&mut self, bytes: usize) {
        self.account.take(bytes);
        self.link.gone(bytes);
        // Nothing is owed to a stream that has ended: an error here means no more than that.
        let _ = self.receive.flow_control().release_capacity(bytes);
    }

    // ---- sending ----

    /// Sends some of `data`, at least one byte, or waits until that is possible. With `last`, the end follows the last
    /// byte at once. Cancel-safe.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut BytesMut,
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let wanted = ready!(self.poll_capacity(cx, data.len()))?;
        let room = ready!(self.account.poll_room(cx, wanted));
        let piece = data.split_to(room.bytes().min(data.len())).freeze();
        let (length, end) = (piece.len(), last && data.is_empty());
        self.asked = self.asked.saturating_sub(length);
        self.sent_all |= end;
        self.send.send_data(room.fill(piece), end).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    /// Waits until at least one byte may be sent; says how many, at most `wanted`.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
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
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(self.closed(cx))),
            }
        }
    }

    /// Ends the sending direction. Doing it again does nothing.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.sent_all {
            return Ok(());
        }
        self.sent_all = true;
        self.send.send_data(Frame::empty(), true).map_err(broken)
    }

    /// Ready when the peer wants nothing more of what is sent: with an error when it says that something is wrong. To be
    /// asked while there is nothing to send.
    pub(crate) fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sent_all {
            return Poll::Pending;
        }
        match ready!(self.send.poll_reset(cx)) {
            Ok(Reason::NO_ERROR | Reason::CANCEL) => Poll::Ready(Ok(())),
            Ok(reason) => Poll::Ready(Err(Broken::Reset(reason).into())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }

    /// Ends both directions as broken, as a TCP reset does (RFC 9113 section 8.5).
    pub fn reset(&mut self) {
        self.sent_all = true;
        if !matches!(self.received, Some(Err(_))) {
            self.received = Some(Err(Broken::Connection(io::ErrorKind::ConnectionAborted)));
        }
        let unread = self.unread.advance(usize::MAX);
        self.let_go(unread);
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// What a buffer on the way to this stream holds.
    pub(crate) fn holding(&self) -> Holding {
        self.link.memory().holding()
    }

    /// Why nothing can be sent any more.
    fn closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Broken::Reset(reason).into(),
            _ => io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel does not take more"),
        }
    }

    /// Sends what is collected; ready when nothing is left.
    fn poll_unsent(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        let mut unsent = std::mem::take(&mut self.unsent);
        let mut sent = Poll::Ready(Ok(()));
        while !unsent.is_empty() {
            match self.poll_send(cx, &mut unsent, last) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    sent = Poll::Ready(Err(error));
                    break;
                }
                Poll::Pending => {
                    sent = Poll::Pending;
                    break;
                }
            }
        }
        if !unsent.is_empty() {
            self.unsent = unsent;
        }
        sent
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.receives_no_more(self.receive.stream_id().as_u32());
        let received_all = matches!(self.received, Some(Ok(()))) || self.receive.is_end_stream();
        let is_broken = matches!(self.received, Some(Err(_)));
        if !self.sent_all || is_broken {
            return self.reset();
        }
        // All was said, and what else comes is not wanted. A reset would take the place of what is still on its way out: the
        // library says so to the peer behind it, without a complaint (RFC 9113 section 8.1).
        if !received_all || !self.unread.is_empty() {
            let unread = self.unread.advance(usize::MAX);
            self.let_go(unread);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What was written and held back goes out also while its writer waits for the answer.
        let _ = this.poll_unsent(cx, false)?;
        ready!(this.poll_unread(cx))?;
        let front = this.unread.front();
        let length = front.len().min(buffer.remaining());
        if let Some(bytes) = front.get(..length) {
            buffer.put_slice(bytes);
        }
        this.take(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.sent_all {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the sending direction was ended")));
        }
        if this.unsent.len() >= COLLECT {
            ready!(this.poll_unsent(cx, false))?;
        }
        let bytes = bytes.get(..PIECE).unwrap_or(bytes);
        this.unsent.extend_from_slice(bytes);
        let _ = this.poll_unsent(cx, false)?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// Hands everything to the connection's task, which sends it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_unsent(cx, false)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx, true))?;
        Poll::Ready(this.finish())
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}

/// How a receiving direction ends with an error: a reset without a complaint is an end (contract 3.2).
fn ending(error: &h2::Error) -> Result<(), Broken> {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL) if error.is_reset() => Ok(()),
        _ => Err(cause(error)),
    }
}

fn cause(error: &h2::Error) -> Broken {
    match (error.reason(), error.get_io()) {
        (Some(reason), _) if error.is_reset() => Broken::Reset(reason),
        (_, Some(io)) => Broken::Connection(io.kind()),
        _ => Broken::Connection(io::ErrorKind::BrokenPipe),
    }
}

fn broken(error: h2::Error) -> io::Error {
    cause(&error).into()
}

#[cfg(test)]
mod tests;
