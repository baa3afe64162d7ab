//! What the control plane publishes, and the sessions that send it. One lock around plain data: it is held for as
//! long as a batch takes to spread, or a response to assemble, and never across a wait.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use stillmesh_core::model::Str;
use stillmesh_core::snapshot::Change;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::ResourceType;
use crate::delta::catalog::Catalog;
use crate::delta::server::{Event, Session, SessionError, Standing};
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The published resources of all types. Share it as an `Arc`.
pub struct Store {
    inner: Mutex<Inner>,
    /// Who may have a large response under way.
    large: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    catalog: Catalog,
    sessions: HashMap<u64, (Session, Arc<Notify>)>,
    streams: u64,
}

/// Large responses under way at a time: after a start every node wants one, and each is a copy of everything.
const LARGE_AT_ONCE: usize = 4;

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// Nothing published yet.
    pub fn new() -> Self {
        Self { inner: Mutex::default(), large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) }
    }

    /// Publishes changes at once. Resources equal to what is published are not sent again. Returns the generation
    /// that [`super::Observer::acked`] tells when a node has applied them. Nodes get policies before the workloads
    /// that come with them, and removals of policies after, whatever the order here.
    pub fn publish(&self, changes: Vec<Change>) -> u64 {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let touched = inner.catalog.apply(&changes);
        let generation = inner.catalog.generation();
        for (session, wake) in inner.sessions.values_mut() {
            let mut concerned = false;
            for touched in &touched {
                concerned |= session.touch(touched, generation);
            }
            if concerned {
                wake.notify_one();
            }
        }
        generation
    }

    /// How far every open stream is, by its number. Costs a look at each stream, whatever is published.
    pub fn standings(&self) -> Vec<(u64, Standing)> {
        self.inner.lock().sessions.iter().map(|(stream, (session, _))| (*stream, session.standing())).collect()
    }

    /// A hash of the content that is published under these names, and of `seed`.
    pub fn content<'a>(&self, seed: u64, names: impl Iterator<Item = &'a (ResourceType, Str)>) -> u64 {
        let inner = self.inner.lock();
        let mut text = format!("{seed:x}");
        for (kind, name) in names {
            if let Some(entry) = inner.catalog.entries(*kind).get(name) {
                text = format!("{text}\n{} {name} {}", kind.url(), entry.version);
            }
        }
        super::hash(text.as_bytes())
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        self.inner.lock().catalog.generation()
    }

    /// Streams that are open now.
    pub fn streams(&self) -> usize {
        self.inner.lock().sessions.len()
    }

    /// A session for a new stream; it ends when the handle is dropped.
    pub(super) fn open(self: &Arc<Self>, node: impl Into<Str>, now: Instant) -> Open {
        let wake = Arc::new(Notify::new());
        let mut inner = self.inner.lock();
        inner.streams += 1;
        let stream = inner.streams;
        inner.sessions.insert(stream, (Session::new(node, now), Arc::clone(&wake)));
        Open { store: Arc::clone(self), stream, wake }
    }
}

/// One stream's session in the store.
pub(super) struct Open {
    store: Arc<Store>,
    pub(super) stream: u64,
    wake: Arc<Notify>,
}

impl Open {
    pub(super) fn request(&self, request: DeltaDiscoveryRequest) -> Result<Event, SessionError> {
        self.with(|catalog, session| session.request(catalog, request)).unwrap_or(Ok(Event::None))
    }

    pub(super) fn next(&self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        self.with(|catalog, session| session.next(catalog, now)).flatten()
    }

    /// How many names the next response is about.
    pub(super) fn next_names(&self, now: Instant) -> usize {
        self.with(|catalog, session| session.next_names(catalog, now)).unwrap_or(0)
    }

    /// The generations that the last request confirmed.
    pub(super) fn confirmed(&self) -> Option<Range<u64>> {
        self.with(|_, session| session.take_confirmed()).flatten()
    }

    /// Whether the node has yet to acknowledge something.
    pub(super) fn waits(&self) -> bool {
        self.with(|_, session| session.waits()).unwrap_or(false)
    }

    pub(super) fn check(&self, now: Instant) -> Result<(), SessionError> {
        self.with(|_, session| session.check(now)).unwrap_or(Ok(()))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.with(|_, session| session.deadline()).flatten()
    }

    /// Waits for the turn to send a large response. Cancel-safe.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.store.large).acquire_owned().await.ok()
    }

    /// Returns when something was published for this session. Cancel-safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn with<T>(&self, act: impl FnOnce(&Catalog, &mut Session) -> T) -> Option<T> {
        let mut inner = self.store.inner.lock();
        let inner = &mut *inner;
        inner.sessions.get_mut(&self.stream).map(|(session, _)| act(&inner.catalog, session))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.store.inner.lock().sessions.remove(&self.stream);
    }
}
