//! What goes: HTTP/2's own frames, DATA of streams, and the last words.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::MutexGuard;
use stillmesh_http2::{Role, Room, SendError};
use stillmesh_tls::SealError;
use tokio::io::ReadBuf;

use super::buffers::SIZE;
use super::outgoing::{PIECES, Place, RESERVE};
use super::{Closing, Inner, buffers};
use crate::memory::UNCOUNTED;
use crate::{Ending, Transport};

/// Writes of one turn: the second one is of what stood behind the first, or was held up by it.
const WRITES: usize = 2;

/// How many streams that wait for room are told of it at a time.
const TOLD: usize = 4;

impl Inner {
    /// Writes what may be written now. Ready when it is over and said.
    pub(super) fn flush(inner: &mut MutexGuard<'_, Self>, cx: &mut Context<'_>, io: &mut dyn Transport) -> Poll<()> {
        match inner.closing {
            Closing::Done => return Poll::Ready(()),
            Closing::Shut => return inner.linger(cx, io),
            Closing::No | Closing::Said => {}
        }
        inner.put_output();
        inner.end_if_done();
        if inner.ended.is_some() && inner.closing == Closing::No {
            inner.put_last_words();
        }
        let mut written = Poll::Ready(Ok(()));
        for _ in 0..WRITES {
            inner.seal();
            let Some(mut flight) = inner.outgoing.take() else { break };
            written = MutexGuard::unlocked(inner, || flight.poll_write(cx, io));
            if inner.closing == Closing::Done {
                // Somebody was in a hurry.
                return Poll::Ready(());
            }
            inner.outgoing.put_back(flight);
            if !matches!(written, Poll::Ready(Ok(()))) {
                break;
            }
        }
        inner.written(cx, io, written)
    }

    fn seal(&mut self) {
        if let Err(error) = self.outgoing.seal(&mut self.tls) {
            self.end(internal(error));
            self.outgoing.abandon();
        }
    }

    /// What is to be done behind a write.
    fn written(&mut self, cx: &mut Context<'_>, io: &mut dyn Transport, written: Poll<io::Result<()>>) -> Poll<()> {
        if self.limits.memory.is_short() {
            self.outgoing.shrink();
        }
        self.holding.set(self.outgoing.held() + self.partial.len());
        if let Err(error) = ready!(written) {
            self.end(Ending::Io(Arc::new(error)));
            self.done();
            return Poll::Ready(());
        }
        if !self.outgoing.is_empty() {
            // Streams have sent more meanwhile.
            self.wake();
            if self.closing == Closing::Said {
                return Poll::Pending;
            }
        }
        // A transport that is a tunnel itself has nothing to flush later.
        let _ = Pin::new(&mut *io).poll_flush(cx);
        if self.closing == Closing::Said {
            // Whether the peer hears the end does not matter any more.
            let _ = ready!(Pin::new(&mut *io).poll_shutdown(cx));
            self.closing = Closing::Shut;
            return self.linger(cx, io);
        }
        let share = self.share();
        for _ in 0..TOLD {
            let Some(stream) = self.queue.pop_front() else { break };
            if let Some(entry) = self.streams.get_mut(&stream) {
                entry.queued = false;
                entry.share = share;
                entry.writer.wake_by_ref();
            }
        }
        if !self.queue.is_empty() || self.http2.has_output() {
            self.wake();
        }
        // Once more to say that it is over.
        if self.is_done() {
            self.wake();
        }
        Poll::Pending
    }

    /// Waits for the peer's end. A socket that is closed while something comes is reset, and what the peer has not read of it
    /// is lost.
    fn linger(&mut self, cx: &mut Context<'_>, io: &mut dyn Transport) -> Poll<()> {
        let mut buffer = buffers::take();
        let ended = loop {
            let mut free = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *io).poll_read(cx, &mut free) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Ok(())) if !free.filled().is_empty() => {}
                Poll::Ready(_) => break Poll::Ready(()),
            }
        };
        buffers::give(buffer);
        if ended.is_ready() {
            self.done();
        }
        ended
    }

    /// What each of those who are told of room may take of it, bytes: whoever runs first leaves some to the others. `None`: there
    /// is nobody else, or no window that could be shared.
    fn share(&self) -> Option<usize> {
        let (waiting, window) = (self.queue.len(), self.http2.connection_room() as usize);
        (waiting > 1 && window > 0).then(|| (SIZE / waiting.min(TOLD)).min(window / waiting).max(UNCOUNTED))
    }

    /// Whether nothing is left to be done.
    fn is_done(&self) -> bool {
        let leaves =
            self.http2.is_done() || (self.leaving && self.windows.places == 0 && self.http2.role() == Role::Client);
        leaves && self.outgoing.is_empty() && !self.http2.has_output() && self.ended.is_none()
    }

    fn end_if_done(&mut self) {
        if self.is_done() {
            self.http2.go_away_now();
            let ending = self.gone_away.clone().unwrap_or(Ending::Here);
            self.end(ending);
        }
    }

    fn put_last_words(&mut self) {
        self.closing = Closing::Said;
        if matches!(self.ended, Some(Ending::Tls(_))) {
            self.outgoing.abandon();
        } else {
            self.put_output();
            // An error ends it as well.
            let _ = self.outgoing.seal(&mut self.tls);
            self.outgoing.abandon();
            self.tls.close_notify();
        }
    }

    /// Puts what HTTP/2 has to say into records. `false`: not all of it, there is no room.
    pub(super) fn put_output(&mut self) -> bool {
        while self.http2.has_output() {
            let output = self.http2.output();
            let length = output.len();
            match self.outgoing.append(&mut self.tls, output) {
                Ok(put) => {
                    self.http2.output_taken(put);
                    if put < length {
                        return false;
                    }
                }
                Err(error) => {
                    self.end(internal(error));
                    return false;
                }
            }
        }
        true
    }

    // ---- streams ----

    /// Waits until something may be sent on a stream: says how many bytes.
    pub(crate) fn poll_room(&mut self, cx: &Context<'_>, stream: u32, bulk: bool) -> Poll<Result<usize, Ending>> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(Ending::Here)) };
        entry.writer.clone_from(cx.waker());
        if let Some(ending) = entry.stopped.as_deref() {
            return Poll::Ready(Err(ending.clone()));
        }
        let share = entry.share.unwrap_or(usize::MAX);
        let room = if self.put_output() { self.room(bulk).min(share) } else { 0 };
        if room == 0 {
            self.enqueue(stream);
            self.wake();
            return Poll::Pending;
        }
        match self.http2.allowance(stream) {
            Room::Bytes(window) => Poll::Ready(Ok(room.min(window as usize))),
            Room::Stream => Poll::Pending,
            Room::Connection => {
                // Once, however often it is asked meanwhile.
                if !self.starved.contains(&stream) {
                    self.starved.push(stream);
                }
                Poll::Pending
            }
            Room::Never => Poll::Ready(Err(Ending::Send(SendError::NoStream(stream)))),
        }
    }

    /// What there is room for in the buffer, bytes.
    fn room(&self, bulk: bool) -> usize {
        let room = self.outgoing.room(&self.tls).saturating_sub(if bulk { RESERVE } else { 0 });
        if !self.limits.memory.is_short() {
            room
        } else if self.outgoing.is_empty() {
            room.min(UNCOUNTED)
        } else {
            0
        }
    }

    pub(super) fn enqueue(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get_mut(&stream)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.queue.push_back(stream);
            self.wake();
        }
    }

    /// Places in records for up to `wanted` bytes of DATA, which is not more than [`Inner::poll_room`] said.
    pub(crate) fn places(&mut self, wanted: usize) -> Result<Places, Ending> {
        let mut places = [Place::default(); PIECES];
        match self.outgoing.places(&mut self.tls, wanted, &mut places).map_err(internal)? {
            0 => Err(Ending::Send(SendError::NoRoom)),
            count => Ok(Places { places, count }),
        }
    }

    /// The bytes in these places.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        self.outgoing.buffer()
    }

    /// The first `length` bytes in the places are DATA of a stream.
    pub(crate) fn send(&mut self, stream: u32, places: &Places, mut length: usize) -> Result<(), Ending> {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.share = entry.share.map(|share| share.saturating_sub(length));
        }
        for place in places.all() {
            let now = place.length.min(length);
            if now == 0 {
                break;
            }
            let head = self.http2.data(stream, u32::try_from(now).unwrap_or(u32::MAX), false);
            let head = head.map_err(Ending::Send)?;
            let place = Place { length: now, ..*place };
            self.outgoing.commit(&mut self.tls, place, head).map_err(internal)?;
            length -= now;
        }
        self.wake();
        Ok(())
    }

    /// No DATA came of the places.
    pub(crate) fn send_nothing(&mut self) {
        self.outgoing.release();
    }

    /// Ends the sending direction of a stream; waits for room for that.
    pub(crate) fn poll_finish(&mut self, cx: &Context<'_>, stream: u32) -> Poll<Result<(), Ending>> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(Ending::Here)) };
        if let Some(ending) = entry.stopped.as_deref() {
            let ending = ending.clone();
            return Poll::Ready(if ending.is_calm() { Ok(()) } else { Err(ending) });
        }
        entry.writer.clone_from(cx.waker());
        if !self.put_output() || self.outgoing.room(&self.tls) == 0 {
            self.enqueue(stream);
            self.wake();
            return Poll::Pending;
        }
        let head = self.http2.data(stream, 0, true).map_err(Ending::Send);
        let put = head.and_then(|head| self.outgoing.append(&mut self.tls, &head).map_err(internal));
        self.wake();
        Poll::Ready(put.map(drop))
    }
}

/// Places in records for one stream's DATA.
pub(crate) struct Places {
    places: [Place; PIECES],
    count: usize,
}

impl Places {
    fn all(&self) -> &[Place] {
        self.places.get(..self.count).unwrap_or_default()
    }

    /// The parts of a buffer where they are, in order.
    pub(crate) fn of<'a>(&self, mut buffer: &'a mut [u8]) -> impl Iterator<Item = &'a mut [u8]> {
        let mut gone = 0;
        let Self { places, count } = *self;
        places.into_iter().take(count).filter_map(move |Place { start, length }| {
            let rest = std::mem::take(&mut buffer);
            let (_, rest) = rest.split_at_mut_checked(start - gone)?;
            let (place, rest) = rest.split_at_mut_checked(length)?;
            buffer = rest;
            gone = start + length;
            Some(place)
        })
    }
}

fn internal(error: SealError) -> Ending {
    Ending::Io(Arc::new(io::Error::other(error)))
}
