//! One tunnelled connection, as either end holds it: bytes in, bytes out, each direction ended by itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use stillmesh_http2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Ending;
use crate::carrier::{Carrier, Outlet};
use crate::copy::{CopyError, Socket, first, second};
use crate::memory::UNCOUNTED;

/// A CONNECT stream. Half-close is END_STREAM (contract 3.2). Dropped before the sending direction was ended, it is reset;
/// dropped after that, what was sent still goes out, and the peer is told that no more is wanted.
///
/// What is written leaves soon, flushed or not.
pub struct Stream {
    carrier: Arc<Carrier>,
    id: u32,
    sent_all: bool,
    is_server: bool,
    _slot: Slot,
}

/// A place among a connection's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    carrier: Arc<Carrier>,
}

impl Slot {
    pub(crate) fn take(carrier: &Arc<Carrier>) -> Self {
        carrier.lock().take_place();
        Self { carrier: Arc::clone(carrier) }
    }

    pub(crate) fn carrier(&self) -> &Arc<Carrier> {
        &self.carrier
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.carrier.lock().give_place();
    }
}

/// Pieces written to an application's socket by one call.
const VECTORED: usize = 16;

/// Why a connection is broken when memory is short.
const STUCK: &str = "it does not read, and memory for tunnels is used up";

/// What one turn of reading an application's socket came to.
pub(crate) enum Filled {
    /// So many bytes are on their way; whether the socket may have more.
    Bytes(usize, bool),
    /// The socket has ended.
    End,
    /// The peer wants no more.
    Unwanted,
}

impl Stream {
    pub(crate) fn new(id: u32, is_server: bool, slot: Slot) -> Self {
        Self { carrier: Arc::clone(&slot.carrier), id, sent_all: false, is_server, _slot: slot }
    }

    // ---- for copying ----

    /// What was received, as what was sent behind the CONNECT, is written to this socket now, and what is received later as soon as it
    /// comes.
    pub(crate) fn set_outlet(&mut self, outlet: Outlet) {
        let mut inner = self.carrier.lock();
        let Some(entry) = inner.entry(self.id) else { return };
        let passed = entry.begin(outlet);
        if passed > 0 {
            inner.take(self.id, passed);
        }
    }

    /// Writes what was received to a socket, until all was and the peer has ended its direction. Credit goes back for what the
    /// socket has taken. Cancel-safe.
    pub(crate) fn poll_drain<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        counter: &AtomicU64,
    ) -> Poll<Result<(), CopyError>> {
        let mut inner = self.carrier.lock();
        loop {
            let Some(entry) = inner.entry(self.id) else { return Poll::Ready(Ok(())) };
            entry.reader.clone_from(cx.waker());
            if let Some(error) = entry.outlet_broke.take() {
                return Poll::Ready(Err(first(error)));
            }
            if entry.unread.is_empty() {
                return entry.poll_received().map_err(|ending| second(ending.into()));
            }
            let mut slices = [IoSlice::new(&[]); VECTORED];
            let used = entry.unread.slices(&mut slices);
            let slices = slices.get(..used).unwrap_or_default();
            let Poll::Ready(written) = socket.poll_write(cx, slices).map_err(first)? else {
                if entry.account.is_overdrawn() {
                    return Poll::Ready(Err(first(io::Error::new(io::ErrorKind::OutOfMemory, STUCK))));
                }
                return Poll::Pending;
            };
            if written == 0 {
                return Poll::Ready(Err(first(io::ErrorKind::WriteZero.into())));
            }
            counter.fetch_add(written as u64, Ordering::Relaxed);
            inner.take(self.id, written);
        }
    }

    /// Reads a socket straight into what is sent next, as much as there is room for: little, unless it is `busy`. Cancel-safe.
    pub(crate) fn poll_fill<S: Socket>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        busy: bool,
    ) -> Poll<Result<Filled, CopyError>> {
        let mut inner = self.carrier.lock();
        let room = match inner.poll_room(cx, self.id, busy) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(room)) => room,
            Poll::Ready(Err(ending)) if ending.is_calm() => return Poll::Ready(Ok(Filled::Unwanted)),
            Poll::Ready(Err(ending)) => return Poll::Ready(Err(second(ending.into()))),
        };
        let wanted = if busy { room } else { room.min(UNCOUNTED) };
        let places = inner.places(wanted).map_err(|ending| second(ending.into()))?;
        let mut slices: [IoSliceMut<'_>; VECTORED] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut most) = (0, 0);
        for (slot, place) in slices.iter_mut().zip(places.of(inner.buffer())) {
            most += place.len();
            *slot = IoSliceMut::new(place);
            used += 1;
        }
        let read = socket.poll_read(cx, slices.get_mut(..used).unwrap_or_default());
        match read {
            Poll::Ready(Ok(length)) if length > 0 => {
                inner.send(self.id, &places, length).map_err(|ending| second(ending.into()))?;
                Poll::Ready(Ok(Filled::Bytes(length, length == most)))
            }
            other => {
                inner.send_nothing();
                Poll::Ready(match ready!(other) {
                    Ok(_) => Ok(Filled::End),
                    Err(error) => Err(first(error)),
                })
            }
        }
    }

    /// Ends the sending direction. Doing it again does nothing. Cancel-safe.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_all {
            ready!(self.carrier.lock().poll_finish(cx, self.id))?;
            self.sent_all = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends both directions as broken, as a TCP reset does (RFC 9113 section 8.5).
    pub fn reset(&mut self) {
        self.sent_all = true;
        let mut inner = self.carrier.lock();
        inner.reset(self.id, Reason::CONNECT_ERROR);
        if let Some(entry) = inner.entry(self.id) {
            entry.received = Some(Err(Box::new(Ending::Here)));
            entry.stopped = Some(Box::new(Ending::Here));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.carrier.lock();
        let received = inner.entry(self.id).and_then(|entry| entry.received.clone());
        let reason = match received {
            _ if !self.sent_all => Reason::CONNECT_ERROR,
            Some(Err(_)) => Reason::CONNECT_ERROR,
            // All was said, and what else comes is not wanted: that is no complaint (RFC 9113 section 8.1).
            _ if self.is_server => Reason::NO_ERROR,
            _ => Reason::CANCEL,
        };
        inner.forget(self.id, reason);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut inner = this.carrier.lock();
        let Some(entry) = inner.entry(this.id) else { return Poll::Ready(Ok(())) };
        if entry.unread.is_empty() {
            entry.reader.clone_from(cx.waker());
            return entry.poll_received().map_err(Into::into);
        }
        let front = entry.unread.front();
        let length = front.len().min(buffer.remaining());
        buffer.put_slice(front.get(..length).unwrap_or_default());
        inner.take(this.id, length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let slices = [IoSlice::new(bytes)];
        self.poll_write_vectored(cx, &slices)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.sent_all {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the sending direction was ended")));
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut inner = this.carrier.lock();
        let room = ready!(inner.poll_room(cx, this.id, false))?;
        let places = inner.places(room.min(wanted))?;
        let mut from = (slices, 0);
        let length = places.of(inner.buffer()).map(|place| gather(place, &mut from)).sum();
        inner.send(this.id, &places, length)?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection's task sends everything by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx)
    }
}

/// Fills a place from slices, of whose first so many bytes are gone; says how far.
fn gather(place: &mut [u8], from: &mut (&[IoSlice<'_>], usize)) -> usize {
    let mut filled = 0;
    while let (Some((slice, rest)), free) = (from.0.split_first(), place.len() - filled)
        && free > 0
    {
        let bytes = slice.get(from.1..).unwrap_or_default();
        let bytes = bytes.get(..free).unwrap_or(bytes);
        if let Some(to) = place.get_mut(filled..filled + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        filled += bytes.len();
        from.1 += bytes.len();
        if from.1 == slice.len() {
            *from = (rest, 0);
        }
    }
    filled
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
