//! Something that happens once and that many wait for. Who waits costs a place in one table, 16 bytes, where a
//! [`tokio::sync::Notify`] or a token costs its waiters three times as much each: that is what connections wait with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use slab::Slab;

/// Rung once, it stays so.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    waiting: Mutex<Slab<Waker>>,
}

/// A place in a bell's table, or none yet. To be given back to the same bell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Place {
    /// None yet: no table is so long.
    pub(crate) const NONE: Self = Self(usize::MAX);
}

impl Bell {
    /// Wakes all who wait, and lets all pass who come later.
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Ready once it is rung; until then `place` is where it finds who waits.
    pub(crate) fn poll(&self, cx: &Context<'_>, place: &mut Place) -> Poll<()> {
        if self.is_rung() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        // Who rings takes the table after it is rung.
        if self.is_rung() {
            return Poll::Ready(());
        }
        let mut before = None;
        match waiting.get_mut(place.0) {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            Some(waker) => before = Some(std::mem::replace(waker, cx.waker().clone())),
            None => place.0 = waiting.insert(cx.waker().clone()),
        }
        drop(waiting);
        // Only now: it may be the last thing that keeps a task, which leaves as well.
        drop(before);
        Poll::Pending
    }

    /// Nobody waits in this place any more.
    pub(crate) fn leave(&self, place: &mut Place) {
        let Place(key) = std::mem::replace(place, Place::NONE);
        if key == Place::NONE.0 {
            return;
        }
        let mut waiting = self.waiting.lock();
        let waker = waiting.try_remove(key);
        if waiting.is_empty() {
            // What many needed is not kept when nobody is left.
            *waiting = Slab::new();
        }
        drop(waiting);
        // As above.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_are_woken_and_who_comes_later_is_let_pass() {
        let (bell, cx) = (Bell::default(), Context::from_waker(Waker::noop()));
        let (mut one, mut other) = (Place::NONE, Place::NONE);
        for _ in 0..3 {
            assert!(bell.poll(&cx, &mut one).is_pending() && bell.poll(&cx, &mut other).is_pending());
        }
        assert_eq!(bell.waiting.lock().len(), 2);
        bell.ring();
        assert!(bell.is_rung() && bell.waiting.lock().is_empty());
        let mut later = Place::NONE;
        assert!(bell.poll(&cx, &mut one).is_ready() && bell.poll(&cx, &mut later).is_ready());
        bell.leave(&mut one);
        bell.leave(&mut other);
    }

    #[test]
    fn who_stops_to_wait_leaves_nothing() {
        let (bell, cx) = (Bell::default(), Context::from_waker(Waker::noop()));
        let mut places = [Place::NONE, Place::NONE];
        for place in &mut places {
            assert!(bell.poll(&cx, place).is_pending());
        }
        for (left, place) in places.iter_mut().enumerate() {
            assert_eq!(bell.waiting.lock().len(), 2 - left);
            bell.leave(place);
            bell.leave(place);
        }
        assert_eq!(bell.waiting.lock().capacity(), 0);
    }
}
