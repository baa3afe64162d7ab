//! The connections of one key, and who waits for the next.

use std::sync::Arc;

use parking_lot::Mutex;
use stillmesh_identity::Leaf;
use tokio::sync::watch;

use super::tunnel::{Place, Tunnel};
use crate::{Limits, TunnelError};

/// The connections of one key.
#[derive(Default)]
pub(super) struct Slot {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tunnels: Vec<Arc<Tunnel>>,
    /// The dial under way.
    dialled: Option<Dialled>,
}

/// What there is for one more stream.
pub(super) enum Vacancy {
    /// A place on an open connection.
    Place(Place),
    /// A connection that is being dialled.
    Dialled(Dialled),
    /// Nothing: the caller dials, and keeps this promise to those who come now.
    None(Promise),
}

impl Slot {
    /// Takes what there is. Connections that must not be used any more are let go.
    pub(super) fn vacancy(self: Arc<Self>, leaf: &Arc<Leaf>, limits: &Limits) -> Vacancy {
        let mut inner = self.inner.lock();
        inner.tunnels.retain(|tunnel| {
            // Who asked before a renewal may come after who asked later: only what is older goes.
            if tunnel.leaf().not_before() < leaf.not_before() {
                tunnel.retire();
            }
            !tunnel.is_retired()
        });
        // The lock makes looking for a place and taking it one step.
        if let Some(place) = inner.tunnels.iter().find_map(|tunnel| tunnel.place(limits)) {
            return Vacancy::Place(place);
        }
        if let Some(dialled) = &inner.dialled {
            return Vacancy::Dialled(dialled.clone());
        }
        let (sender, receiver) = watch::channel(None);
        inner.dialled = Some(Dialled { receiver });
        drop(inner);
        Vacancy::None(Promise { slot: self, sender })
    }

    pub(super) fn tunnels(&self) -> usize {
        self.inner.lock().tunnels.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.inner.lock();
        inner.tunnels.is_empty() && inner.dialled.is_none()
    }

    pub(super) fn remove(&self, tunnel: &Arc<Tunnel>) {
        self.inner.lock().tunnels.retain(|other| !Arc::ptr_eq(other, tunnel));
    }

    pub(super) fn retire_all(&self) {
        for tunnel in self.inner.lock().tunnels.drain(..) {
            tunnel.retire();
        }
    }
}

/// How a dial ends: the same for all who wait.
type Outcome = Result<Arc<Tunnel>, TunnelError>;

/// A dial that others wait for.
#[derive(Clone)]
pub(super) struct Dialled {
    receiver: watch::Receiver<Option<Outcome>>,
}

impl Dialled {
    /// Waits for the end; `None` when the dial was cut. Cancel-safe.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        self.receiver.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Owed to those who wait for a dial. Dropped unkept, as when all tasks are ended, it has them fail.
pub(super) struct Promise {
    slot: Arc<Slot>,
    sender: watch::Sender<Option<Outcome>>,
}

impl Promise {
    pub(super) fn follow(&self) -> Dialled {
        Dialled { receiver: self.sender.subscribe() }
    }

    /// The connection is there, or there is none.
    pub(super) fn keep(self, outcome: Outcome) {
        let mut inner = self.slot.inner.lock();
        inner.tunnels.extend(outcome.iter().cloned());
        inner.dialled = None;
        drop(inner);
        self.sender.send_replace(Some(outcome));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut inner = self.slot.inner.lock();
        let mine =
            inner.dialled.as_ref().is_some_and(|dialled| dialled.receiver.same_channel(&self.sender.subscribe()));
        if mine {
            inner.dialled = None;
        }
    }
}
