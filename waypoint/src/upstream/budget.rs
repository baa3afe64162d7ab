//! The budget of retries: of the requests of a service that are under way, only a share may be retries, so that a service in
//! trouble is not given more work than it had.
//!
//! A fixed number of counters, found by the service's name: no lock, no growth. Two services that share one share a budget.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stillmesh_core::model::ServiceKey;

/// Retries of a service that are always allowed at a time: a share of few requests is none.
pub const FLOOR: usize = 3;

const SLOTS: usize = 256;

/// One per waypoint.
#[derive(Debug)]
pub struct Budget {
    slots: Box<[Slot]>,
    percent: usize,
    names: RandomState,
}

#[derive(Debug, Default)]
struct Slot {
    requests: AtomicUsize,
    retries: AtomicUsize,
}

impl Budget {
    /// Lets `percent` of the requests under way be retries, and always [`FLOOR`].
    pub fn new(percent: usize) -> Arc<Self> {
        let slots = (0..SLOTS).map(|_| Slot::default()).collect();
        Arc::new(Self { slots, percent, names: RandomState::new() })
    }

    /// Counts a request for as long as what is returned is held.
    pub fn enter(self: &Arc<Self>, service: Option<&ServiceKey>) -> Active {
        let index = usize::try_from(self.names.hash_one(service)).unwrap_or_default() % SLOTS;
        if let Some(slot) = self.slots.get(index) {
            slot.requests.fetch_add(1, Ordering::Relaxed);
        }
        Active { budget: self.clone(), index }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct Active {
    budget: Arc<Budget>,
    index: usize,
}

impl Active {
    /// The right to one retry, given back when dropped; `None`: the budget is used up.
    pub fn retry(&self) -> Option<Retrying> {
        let slot = self.budget.slots.get(self.index)?;
        let requests = slot.requests.load(Ordering::Relaxed);
        let most = (requests.saturating_mul(self.budget.percent) / 100).max(FLOOR);
        // The place is taken first: two who ask at once do not both get the last one.
        let retrying = Retrying { budget: self.budget.clone(), index: self.index };
        (slot.retries.fetch_add(1, Ordering::Relaxed) < most).then_some(retrying)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(slot) = self.budget.slots.get(self.index) {
            slot.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A retry that is under way.
#[derive(Debug)]
pub struct Retrying {
    budget: Arc<Budget>,
    index: usize,
}

impl Drop for Retrying {
    fn drop(&mut self) {
        if let Some(slot) = self.budget.slots.get(self.index) {
            slot.retries.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_core::fixtures::service_key;

    use super::*;

    #[test]
    fn a_share_of_the_requests_under_way_may_be_retries_and_a_few_always() {
        let budget = Budget::new(20);
        let key = service_key("shop/web");
        let mut requests: Vec<Active> = (0..10).map(|_| budget.enter(Some(&key))).collect();
        let first = requests.first().map(|request| (0..9).filter_map(|_| request.retry()).collect::<Vec<_>>());
        assert_eq!(first.as_ref().map(Vec::len), Some(FLOOR), "two of ten would be fewer than the floor");
        drop(first);
        requests.extend((0..40).map(|_| budget.enter(Some(&key))));
        let held: Vec<Retrying> = requests.iter().filter_map(Active::retry).collect();
        assert_eq!(held.len(), 10, "a fifth of fifty");
        drop(held);
        drop(requests);
        let slots = budget.slots.iter();
        assert!(
            slots
                .map(|slot| slot.retries.load(Ordering::Relaxed) + slot.requests.load(Ordering::Relaxed))
                .all(|n| n == 0)
        );
    }
}
