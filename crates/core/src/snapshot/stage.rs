//! Holds back workload updates that name policies which have not arrived: the previous complete view stays in
//! force for a bounded time. A state machine: the clock is passed in.

use std::time::{Duration, Instant};

use super::{Change, Snapshot, Touched};

/// What to do about a policy that a workload names and that has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownPolicies {
    /// Hold back, then refuse new connections (our own control plane).
    Refuse,
    /// Let pass and count, as Istio does (a foreign control plane).
    Allow,
}

/// The one writer's state: the current snapshot and what is held back.
#[derive(Debug)]
pub struct Stage {}

impl Stage {
    /// How long an incomplete workload update is held back.
    pub const HOLD: Duration = Duration::from_secs(5);

    /// Starts from an empty view.
    pub fn new(_initial: Snapshot, _unknown: UnknownPolicies) -> Self {
        todo!()
    }

    /// Takes a batch. Returns the next view and what it touched.
    pub fn apply(&mut self, _changes: Vec<Change>, _now: Instant) -> (Snapshot, Touched) {
        todo!()
    }

    /// When [`Stage::apply`] must be called next, with no changes if there are none.
    pub fn deadline(&self) -> Option<Instant> {
        todo!()
    }
}
