//! Addresses that workloads of the mesh had until lately. Bounded in time and number.

use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;

use crate::model::NetworkAddress;

/// More are not kept; those that left first give way.
const MOST: usize = 4096;

/// The addresses, each with the end of its time, in order of departure. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Departed(Arc<IndexMap<NetworkAddress, Instant>>);

impl Departed {
    pub(super) fn has(&self, address: &NetworkAddress) -> bool {
        self.0.contains_key(address)
    }

    /// When the first of them is forgotten.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().next().copied()
    }

    /// Forgets those whose time is over, and adds some until `deadline`, which must not be before those of earlier ones.
    pub(super) fn turn(&mut self, now: Instant, new: Vec<NetworkAddress>, deadline: Instant) {
        if new.is_empty() && self.deadline().is_none_or(|first| first > now) {
            return;
        }
        let all = Arc::make_mut(&mut self.0);
        for address in new {
            all.shift_remove(&address);
            all.insert(address, deadline);
        }
        let over = all.values().take_while(|deadline| **deadline <= now).count();
        all.drain(..over.max(all.len().saturating_sub(MOST)));
    }
}
