//! What all records of one CONNECT have.

use crate::counted::{Counted, Handle};
use crate::record::{Address, Record};

/// Places of CONNECTs that came lately; of two that come by one place the later one is found.
const LATELY: usize = 1024;

/// What a CONNECT's records have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub(crate) struct Connect {
    pub(crate) id: u128,
    pub(crate) source: Address,
    pub(crate) original: Address,
    /// The client's group of texts.
    pub(crate) client: Handle,
}

impl Connect {
    /// A record's, with its client's texts.
    pub(crate) fn of(record: &Record, client: Handle) -> Self {
        Self { id: record.id, source: record.source, original: record.original, client }
    }

    fn place(self) -> usize {
        usize::try_from(self.id % LATELY as u128).unwrap_or_default()
    }
}

/// CONNECTs that there are records of. One that comes again after long may be held twice: most that come again come soon, and of many a
/// tunnel has one record, so that an index would cost more than it spares.
#[derive(Debug, Default)]
pub(crate) struct Connects {
    counted: Counted<Connect>,
    /// Those that came lately, each at the place that its id says.
    lately: Vec<Handle>,
}

impl Connects {
    /// Holds one that came lately once more.
    pub(crate) fn again(&mut self, connect: Connect) -> Option<Handle> {
        let handle = *self.lately.get(connect.place())?;
        self.counted.again(handle, |there| *there == connect)
    }

    /// Holds one that did not.
    pub(crate) fn add(&mut self, connect: Connect) -> Handle {
        let handle = self.counted.add(connect);
        if self.lately.is_empty() {
            self.lately = vec![Handle::NONE; LATELY];
        }
        if let Some(last) = self.lately.get_mut(connect.place()) {
            *last = handle;
        }
        handle
    }

    /// Lets go of one once. With its last use it is gone; then it is told.
    pub(crate) fn release(&mut self, handle: Handle) -> Option<Connect> {
        self.counted.release(handle)
    }

    /// One that is held.
    pub(crate) fn get(&self, handle: Handle) -> Option<&Connect> {
        self.counted.get(handle)
    }

    /// How often all together are held.
    #[cfg(test)]
    pub(crate) fn uses(&self) -> usize {
        self.counted.uses()
    }

    /// What they take, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.counted.bytes() + self.lately.len() * size_of::<Handle>()
    }
}
