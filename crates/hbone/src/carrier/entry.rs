//! One stream, as its connection knows it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;

use super::receive::PIECES;
use super::windows::Taken;
use crate::chunks::Chunks;
use crate::copy::{Counters, write_now, write_unasked};
use crate::memory::Account;
use crate::{Ending, Memory};

/// The application's socket behind a stream, for what was received to be written to at once.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) socket: Arc<TcpStream>,
    /// What is written counts as backward.
    pub(crate) counters: Arc<Counters>,
}

impl Outlet {
    /// Writes what the socket takes now.
    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        write_now(&self.socket, slices).inspect(|written| self.count(*written))
    }

    /// Likewise, of a socket that was perhaps just made.
    fn write_first(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        write_unasked(&self.socket, slices).inspect(|written| self.count(*written))
    }

    fn count(&self, written: usize) {
        self.counters.backward.fetch_add(written as u64, Ordering::Relaxed);
    }
}

/// One stream. There are many, and most are idle: what only an end or a reader that is behind needs is elsewhere.
pub(crate) struct Entry {
    /// Received and not yet taken; credit for it is not given back before it is.
    pub(crate) unread: Chunks,
    pub(crate) account: Account,
    pub(super) taken: Taken,
    pub(crate) response: Option<Box<(StatusCode, HeaderMap)>>,
    /// How the receiving direction ended; told after all that was received.
    pub(crate) received: Option<Result<(), Box<Ending>>>,
    /// Why nothing can be sent any more.
    pub(crate) stopped: Option<Box<Ending>>,
    pub(crate) outlet: Option<Outlet>,
    /// What the application's socket said to the connection's task.
    pub(crate) outlet_broke: Option<io::Error>,
    /// It is in the connection's queue.
    pub(super) queued: bool,
    /// What it may send before it queues up again, bytes, as others wait too.
    pub(super) share: Option<usize>,
    pub(crate) reader: Waker,
    pub(crate) writer: Waker,
}

impl Entry {
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            unread: Chunks::default(),
            account: memory.account(),
            taken: Taken::default(),
            response: None,
            received: None,
            stopped: None,
            outlet: None,
            outlet_broke: None,
            queued: false,
            share: None,
            reader: Waker::noop().clone(),
            writer: Waker::noop().clone(),
        }
    }

    /// Writes what waits to the outlet, as what came behind the CONNECT; what comes later is written there as well. Says how much was
    /// passed on.
    pub(crate) fn begin(&mut self, outlet: Outlet) -> usize {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let used = self.unread.slices(&mut slices);
        let mut passed = 0;
        if used > 0 {
            match outlet.write_first(slices.get(..used).unwrap_or_default()) {
                Ok(written) => passed = written,
                Err(error) => self.outlet_broke = Some(error),
            }
        }
        self.outlet = Some(outlet);
        passed
    }

    /// Takes what was received for it: says how much of it was passed on at once.
    pub(super) fn receive(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let mut passed = 0;
        if let Some(outlet) = &self.outlet
            && self.unread.is_empty()
            && self.received.is_none()
            && self.outlet_broke.is_none()
        {
            match outlet.write(slices) {
                Ok(written) => passed = written,
                Err(error) => self.outlet_broke = Some(error),
            }
        }
        let mut skip = passed;
        let mut kept = 0;
        for slice in slices {
            let rest = slice.get(skip.min(slice.len())..).unwrap_or_default();
            skip -= slice.len() - rest.len();
            kept += rest.len();
            self.unread.push(rest);
        }
        if kept > 0 {
            self.account.receive(kept);
            self.reader.wake_by_ref();
        }
        passed
    }

    /// How the receiving direction ended; pending while more may come.
    pub(crate) fn poll_received(&self) -> Poll<Result<(), Ending>> {
        match &self.received {
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(ending)) => Poll::Ready(Err((**ending).clone())),
        }
    }

    /// The peer has ended its direction, or something has.
    pub(super) fn end_receiving(&mut self, how: Result<(), Ending>) {
        self.received.get_or_insert(how.map_err(Box::new));
        self.reader.wake_by_ref();
    }

    /// Both directions are over.
    pub(super) fn break_off(&mut self, ending: &Ending) {
        let how = if ending.is_calm() { Ok(()) } else { Err(ending.clone()) };
        self.stopped.get_or_insert_with(|| Box::new(ending.clone()));
        self.end_receiving(how);
        self.writer.wake_by_ref();
    }

    /// Throws away what is unread; says how much that was.
    pub(super) fn clear(&mut self) -> usize {
        self.outlet = None;
        let unread = self.unread.advance(usize::MAX);
        self.account.take(unread);
        unread
    }
}
