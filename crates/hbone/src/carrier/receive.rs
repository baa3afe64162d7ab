//! What comes: bytes from the socket, records, events of HTTP/2, and what those mean for streams.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::MutexGuard;
use stillmesh_http2::{ConnectionError, Event};
use stillmesh_tls::Received;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::{Entry, Inner, buffers};
use crate::{Ending, Transport};

/// Full buffers that are read in one turn, before others have theirs.
const READS: usize = 4;

/// Pieces of DATA that are written to an application's socket at once.
pub(super) const PIECES: usize = 16;

impl Inner {
    /// Reads what there is. `true`: there may be more. With `fresh`, what was kept may hold whole records.
    pub(super) fn receive(
        inner: &mut MutexGuard<'_, Self>,
        cx: &mut Context<'_>,
        io: &mut dyn Transport,
        fresh: bool,
    ) -> bool {
        let mut buffer = buffers::take();
        let mut have = inner.partial.len();
        if let Some(start) = buffer.get_mut(..have) {
            start.copy_from_slice(&inner.partial);
        }
        inner.partial = Vec::new();
        let mut outcome = Ok(false);
        if fresh {
            outcome = inner.open(&mut buffer, &mut have).map(|()| false);
        }
        for read in 0..READS {
            if outcome.is_err() {
                break;
            }
            let mut free = ReadBuf::new(buffer.get_mut(have..).unwrap_or_default());
            let came = MutexGuard::unlocked(inner, || Pin::new(&mut *io).poll_read(cx, &mut free));
            if inner.ended.is_some() {
                break;
            }
            outcome = match came {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => Err(Ending::Io(Arc::new(error))),
                Poll::Ready(Ok(())) if free.filled().is_empty() => Err(inner.end_of_stream()),
                Poll::Ready(Ok(())) => {
                    inner.heard = Instant::now();
                    // What is to be said to it goes with what waits.
                    inner.answers_wait = false;
                    have += free.filled().len();
                    inner.open(&mut buffer, &mut have).map(|()| read + 1 == READS)
                }
            };
        }
        inner.partial = buffer.get(..have).unwrap_or_default().to_vec();
        buffers::give(buffer);
        outcome.unwrap_or_else(|ending| {
            inner.end(ending);
            false
        })
    }

    fn end_of_stream(&mut self) -> Ending {
        if let Some(ending) = self.gone_away.clone() {
            return ending;
        }
        match self.tls.end_of_stream() {
            Ok(()) => Ending::Io(Arc::new(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Ending::Io(Arc::new(error.into())),
        }
    }

    /// Opens the records that have come whole, in place; what is left moves to the front.
    fn open(&mut self, buffer: &mut [u8], have: &mut usize) -> Result<(), Ending> {
        let came = buffer.get_mut(..*have).unwrap_or_default();
        let length = came.len();
        let outcome = self.records(came);
        let left = match &outcome {
            Ok(left) => *left,
            Err(_) => 0,
        };
        buffer.copy_within(length - left..length, 0);
        *have = left;
        outcome.map(drop)
    }

    /// Opens one record after the other; says how many bytes are left.
    fn records<'a>(&mut self, mut rest: &'a mut [u8]) -> Result<usize, Ending> {
        let mut batch = Batch::default();
        let outcome = loop {
            let (length, data) = match self.tls.open(rest) {
                Ok(Received::Incomplete) => break Ok(rest.len()),
                Ok(Received::Data { length, data }) => (length, data),
                Ok(Received::Other { length }) => (length, 0..0),
                Ok(Received::Closed) => break Err(self.end_of_stream()),
                Err(error) => break Err(Ending::Tls(error)),
            };
            let (record, after) = rest.split_at_mut(length.min(rest.len()));
            rest = after;
            let mut input = (record as &'a [u8]).get(data).unwrap_or_default();
            if let Err(error) = self.events(&mut input, &mut batch) {
                break Err(Ending::Http2(error));
            }
        };
        self.deliver(&mut batch);
        outcome
    }

    fn events<'a>(&mut self, input: &mut &'a [u8], batch: &mut Batch<'a>) -> Result<(), ConnectionError> {
        while let Some(event) = self.http2.receive(input)? {
            if let Event::Data { stream, bytes } = event {
                if batch.stream != stream || batch.count == PIECES {
                    self.deliver(batch);
                }
                batch.add(stream, bytes);
            } else {
                self.deliver(batch);
                self.tell(event);
            }
        }
        Ok(())
    }

    /// Hands DATA to its stream; what is passed on at once, or nobody reads, goes back as credit.
    fn deliver(&mut self, batch: &mut Batch<'_>) {
        let Batch { stream, slices, count, bytes } = std::mem::take(batch);
        if count == 0 {
            return;
        }
        let gone = match self.streams.get_mut(&stream) {
            None => bytes,
            Some(entry) => {
                let passed = entry.receive(slices.get(..count).unwrap_or_default());
                self.windows.taken(&mut entry.taken, passed);
                passed
            }
        };
        self.http2.release(stream, u32::try_from(gone).unwrap_or(u32::MAX));
    }

    /// What an event that is not DATA means.
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Data { .. } => {}
            Event::Request { stream, request } => {
                self.streams.insert(stream, Box::new(Entry::new(&self.limits.memory)));
                self.requests.push_back((stream, request));
                self.watcher.wake_by_ref();
            }
            Event::Response { stream, status, headers } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.response = Some(Box::new((status, headers)));
                    entry.reader.wake_by_ref();
                }
            }
            Event::End { stream } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.end_receiving(Ok(()));
                }
            }
            Event::Reset { stream, reason } => self.broke(stream, &Ending::Reset(reason)),
            Event::Failed { stream, reason, why } => self.broke(stream, &Ending::Misused { reason, why }),
            Event::NotProcessed { stream } => self.broke(stream, &Ending::NotProcessed),
            Event::StreamRoom { stream } => {
                if let Some(entry) = self.streams.get(&stream) {
                    entry.writer.wake_by_ref();
                }
            }
            Event::ConnectionRoom => {
                for stream in std::mem::take(&mut self.starved) {
                    self.enqueue(stream);
                }
            }
            Event::Pong { payload } => self.pong(payload),
            Event::GoAway { reason, debug, .. } => {
                self.gone_away = Some(Ending::GoneAway { reason, debug });
                self.watcher.wake_by_ref();
            }
            // A client that waits for a place among the peer's streams looks again, and so does who waits for the first SETTINGS.
            Event::Settings => {
                for entry in self.streams.values() {
                    entry.writer.wake_by_ref();
                }
                self.watcher.wake_by_ref();
            }
            // Windows that could not be changed meanwhile are looked at in every turn.
            Event::SettingsAcknowledged => {}
        }
    }

    fn broke(&mut self, stream: u32, ending: &Ending) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.break_off(ending);
        }
    }
}

/// DATA of one stream that lies in the buffer.
struct Batch<'a> {
    stream: u32,
    slices: [IoSlice<'a>; PIECES],
    count: usize,
    bytes: usize,
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self { stream: 0, slices: [IoSlice::new(&[]); PIECES], count: 0, bytes: 0 }
    }
}

impl<'a> Batch<'a> {
    fn add(&mut self, stream: u32, bytes: &'a [u8]) {
        self.stream = stream;
        if let Some(slot) = self.slices.get_mut(self.count) {
            *slot = IoSlice::new(bytes);
            self.count += 1;
            self.bytes += bytes.len();
        }
    }
}
