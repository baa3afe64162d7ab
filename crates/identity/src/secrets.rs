//! A node's certificates: fetched when first needed, renewed at half of their life, forgotten when told.
//!
//! One task per identity owns its renewal. Callers share what it fetched; those who come before wait, with a
//! deadline. A certificate that is still valid is kept when renewal fails.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use foldhash::quality::RandomState;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::Identity;
use stillmesh_runtime::tasks::CutOnDrop;
use stillmesh_runtime::{Backoff, Tasks};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::clock::until;
use crate::{Clock, Leaf, LeafError, Revocations, csr};

/// What a signer's failure is: any error, shared by all who waited.
pub type SignFailure = Arc<dyn Error + Send + Sync>;

/// Has keys certified. The control plane's client implements it.
pub trait Sign: Send + Sync + 'static {
    /// Sends a CSR for `identity`. Answers PEM entries: the leaf first, the roots last.
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>>;
}

/// How [`Secrets`] behave.
#[derive(Clone, Debug)]
pub struct SecretLimits {
    /// The life that is asked for (contract 6.3, `SECRET_TTL`).
    pub ttl: Duration,
    /// How long one call to the CA may take.
    pub call: Duration,
    /// How long a caller of [`Secrets::leaf`] waits.
    pub wait: Duration,
    /// CA calls at once (contract 6.3).
    pub calls: usize,
    /// The first and the longest delay after a failure (contract 6.3: 0.5-1 s, doubling to 150 s).
    pub backoff: (Duration, Duration),
    /// Identities at once; one more is refused.
    pub identities: usize,
}

impl Default for SecretLimits {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            call: Duration::from_secs(10),
            wait: Duration::from_secs(10),
            calls: 8,
            backoff: (Duration::from_secs(1), Duration::from_secs(150)),
            identities: 4096,
        }
    }
}

/// CA calls that only [`Secrets::leaf`]'s callers may use, so that renewals never make a connection wait.
const RESERVED_CALLS: usize = 2;

/// Longest single sleep: a machine that was suspended notices soon that its certificates are old.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The certificates of a node's own identities. Cheap to clone; the last clone dropped ends all renewals.
#[derive(Clone)]
pub struct Secrets {
    shared: Arc<Shared>,
}

struct Shared {
    fetcher: Arc<Fetcher>,
    tasks: Tasks,
    runtime: Handle,
    entries: Mutex<HashMap<Identity, Entry, RandomState>>,
}

/// One identity's place in the cache. Dropping it ends its task.
struct Entry {
    state: watch::Receiver<State>,
    demand: Arc<Demand>,
    _task: CutOnDrop,
}

/// Whether somebody waits.
#[derive(Default)]
struct Demand {
    waiting: AtomicBool,
    arrived: Notify,
}

#[derive(Clone, Default)]
struct State {
    leaf: Option<Arc<Leaf>>,
    failure: Option<FetchError>,
}

/// How one identity stands: for the admin port.
#[derive(Clone, Debug)]
pub struct SecretStatus {
    /// Whose.
    pub identity: Identity,
    /// The certificate in use, also when expired.
    pub leaf: Option<Arc<Leaf>>,
    /// Why the last request failed, if it did.
    pub failure: Option<FetchError>,
}

impl SecretStatus {
    /// The last failure with its causes, if there was one since the last certificate.
    pub fn why_not(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| chain(failure))
    }
}

impl Secrets {
    /// An empty cache. Renewal tasks run on the current runtime, as a group of `tasks`.
    ///
    /// Panics outside a tokio runtime.
    pub fn new(signer: Arc<dyn Sign>, clock: Arc<dyn Clock>, limits: SecretLimits, tasks: &Tasks) -> Self {
        Self::minding(signer, clock, limits, tasks, Arc::default())
    }

    /// [`Secrets::new`], where certificates may be revoked.
    ///
    /// Panics outside a tokio runtime.
    pub fn minding(
        signer: Arc<dyn Sign>,
        clock: Arc<dyn Clock>,
        limits: SecretLimits,
        tasks: &Tasks,
        revocations: Arc<Revocations>,
    ) -> Self {
        let calls = limits.calls.max(1);
        let fetcher = Fetcher {
            signer,
            clock,
            slots: Semaphore::new(calls),
            background: Semaphore::new(calls.saturating_sub(RESERVED_CALLS).max(1)),
            limits,
            revocations,
        };
        Self {
            shared: Arc::new(Shared {
                fetcher: Arc::new(fetcher),
                tasks: tasks.child("secrets"),
                runtime: Handle::current(),
                entries: Mutex::default(),
            }),
        }
    }

    /// The certificate of `identity`, fetched now if need be. Waits at most [`SecretLimits::wait`]. Cancel-safe.
    pub async fn leaf(&self, identity: &Identity) -> Result<Arc<Leaf>, SecretError> {
        let now = self.shared.fetcher.clock.now();
        let (mut state, demand) = self.entry(identity)?;
        if let Some(leaf) = usable(&state.borrow(), now) {
            return Ok(leaf);
        }
        demand.waiting.store(true, Ordering::Relaxed);
        demand.arrived.notify_one();
        let clock = Arc::clone(&self.shared.fetcher.clock);
        let limit = self.shared.fetcher.limits.wait;
        let arrived = timeout(limit, state.wait_for(|state| usable(state, clock.now()).is_some())).await;
        let arrived = arrived.map(|outcome| outcome.ok().and_then(|state| state.leaf.clone()));
        let identity = identity.clone();
        match arrived {
            Ok(Some(leaf)) => Ok(leaf),
            Ok(None) => Err(SecretError::Forgotten { identity }),
            Err(_) => match state.borrow().failure.clone() {
                Some(source) => Err(SecretError::Failed { identity, limit, source }),
                None => Err(SecretError::Slow { identity, limit }),
            },
        }
    }

    /// The certificate of `identity` if it is here and valid; fetches nothing.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Leaf>> {
        let entries = self.shared.entries.lock();
        let state = entries.get(identity)?.state.borrow();
        usable(&state, self.shared.fetcher.clock.now())
    }

    /// Starts to hold a certificate for `identity` without waiting for it.
    pub fn prefetch(&self, identity: &Identity) -> Result<(), SecretError> {
        self.entry(identity).map(drop)
    }

    /// Follows the certificates of `identity`: the current one, then each new one.
    pub fn watch(&self, identity: &Identity) -> Result<LeafWatch, SecretError> {
        let (state, _) = self.entry(identity)?;
        Ok(LeafWatch { state })
    }

    /// Drops the certificate of `identity` and ends its renewal; who waits for it is told.
    pub fn forget(&self, identity: &Identity) {
        let entry = self.shared.entries.lock().remove(identity);
        drop(entry);
    }

    /// How every identity stands.
    pub fn status(&self) -> Vec<SecretStatus> {
        let entries = self.shared.entries.lock();
        let status = |(identity, entry): (&Identity, &Entry)| {
            let state = entry.state.borrow().clone();
            SecretStatus { identity: identity.clone(), leaf: state.leaf, failure: state.failure }
        };
        entries.iter().map(status).collect()
    }

    /// What is revoked.
    pub fn revocations(&self) -> Arc<Revocations> {
        Arc::clone(&self.shared.fetcher.revocations)
    }

    /// The clock that certificates are judged by.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.shared.fetcher.clock)
    }

    /// The entry of an identity, made if it is not there.
    fn entry(&self, identity: &Identity) -> Result<(watch::Receiver<State>, Arc<Demand>), SecretError> {
        let mut entries = self.shared.entries.lock();
        if let Some(entry) = entries.get(identity) {
            return Ok((entry.state.clone(), Arc::clone(&entry.demand)));
        }
        let limit = self.shared.fetcher.limits.identities;
        if entries.len() >= limit {
            return Err(SecretError::TooMany { identity: identity.clone(), limit });
        }
        let (sender, state) = watch::channel(State::default());
        let demand = Arc::new(Demand::default());
        let renewal = Renewal {
            fetcher: Arc::clone(&self.shared.fetcher),
            identity: identity.clone(),
            demand: Arc::downgrade(&demand),
            state: sender,
        };
        let task = self.shared.tasks.spawn_on(&self.shared.runtime, "renewal", renewal.run());
        let entry = Entry { state: state.clone(), demand: Arc::clone(&demand), _task: task.cut_on_drop() };
        entries.insert(identity.clone(), entry);
        Ok((state, demand))
    }
}

fn usable(state: &State, now: SystemTime) -> Option<Arc<Leaf>> {
    state.leaf.clone().filter(|leaf| leaf.valid_at(now))
}

/// Follows one identity's certificates.
#[derive(Clone)]
pub struct LeafWatch {
    state: watch::Receiver<State>,
}

impl LeafWatch {
    /// The newest certificate.
    pub fn current(&self) -> Option<Arc<Leaf>> {
        self.state.borrow().leaf.clone()
    }

    /// Waits until the certificate is another than `known`; `None` when the identity is forgotten. Cancel-safe.
    pub async fn newer_than(&mut self, known: &Arc<Leaf>) -> Option<Arc<Leaf>> {
        let newer = |state: &State| state.leaf.as_ref().is_some_and(|leaf| !Arc::ptr_eq(leaf, known));
        self.state.wait_for(newer).await.ok()?.leaf.clone()
    }
}

/// What all renewals share.
struct Fetcher {
    signer: Arc<dyn Sign>,
    clock: Arc<dyn Clock>,
    limits: SecretLimits,
    slots: Semaphore,
    background: Semaphore,
    revocations: Arc<Revocations>,
}

/// The task of one identity.
struct Renewal {
    fetcher: Arc<Fetcher>,
    identity: Identity,
    demand: Weak<Demand>,
    state: watch::Sender<State>,
}

impl Renewal {
    async fn run(self) {
        let (first, longest) = self.fetcher.limits.backoff;
        let mut backoff = Backoff::new(first, longest);
        while let Some(demand) = self.demand.upgrade() {
            let begun = Instant::now();
            match self.fetch(&demand).await {
                Ok(leaf) => {
                    backoff.reset();
                    demand.waiting.store(false, Ordering::Relaxed);
                    let renew_at = renewal_time(&leaf, self.fetcher.clock.now(), rand::random());
                    tracing::info!(identity = %self.identity, serial = leaf.serial(), "certificate received");
                    self.state.send_replace(State { leaf: Some(Arc::new(leaf)), failure: None });
                    drop(demand);
                    self.sleep_to(renew_at).await;
                }
                Err(failure) => {
                    let delay = backoff.next(rand::random());
                    tracing::warn!(
                        error.code = failure.code(),
                        error = %chain(&failure),
                        identity = %self.identity,
                        again_in = ?delay,
                        "no certificate"
                    );
                    self.state.send_modify(|state| state.failure = Some(failure));
                    self.back_off(&demand, begun, delay, first).await;
                }
            }
        }
    }

    async fn fetch(&self, demand: &Demand) -> Result<Leaf, FetchError> {
        let fetcher = &self.fetcher;
        let (_slot, _background) = fetcher.permit(demand).await;
        let request = csr::request(&self.identity).map_err(|problem| FetchError::Key(problem.to_string()))?;
        let limit = fetcher.limits.call;
        let call = fetcher.signer.sign(&request.csr_pem, &self.identity, fetcher.limits.ttl);
        let entries = match timeout(limit, call).await {
            Ok(answer) => answer.map_err(FetchError::Refused)?,
            Err(_) => return Err(FetchError::Slow { limit }),
        };
        let leaf = Leaf::from_signed(request.key, &entries, &self.identity, fetcher.clock.now())?;
        Ok(leaf.minding(Arc::clone(&fetcher.revocations)))
    }

    /// Waits out a failure. Somebody who needs the certificate now shortens the wait, never below the first delay.
    async fn back_off(&self, demand: &Demand, begun: Instant, delay: Duration, first: Duration) {
        let end = Instant::now() + delay;
        tokio::select! {
            () = sleep_until(end) => {}
            () = self.wanted(demand) => sleep_until(end.min(begun + first)).await,
        }
    }

    /// Returns when somebody asks and there is nothing valid to give.
    async fn wanted(&self, demand: &Demand) {
        loop {
            demand.arrived.notified().await;
            if usable(&self.state.borrow(), self.fetcher.clock.now()).is_none() {
                return;
            }
        }
    }

    /// Sleeps by the wall clock: a jump of it is noticed within [`LONGEST_SLEEP`].
    async fn sleep_to(&self, time: SystemTime) {
        loop {
            let left = until(time, self.fetcher.clock.now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}

impl Fetcher {
    /// Waits for its turn: who has somebody waiting goes before renewals and prefetches (contract 6.3).
    async fn permit(&self, demand: &Demand) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let mut background = None;
        if !demand.waiting.load(Ordering::Relaxed) {
            tokio::select! {
                permit = self.background.acquire() => background = permit.ok(),
                () = demand.arrived.notified() => {}
            }
        }
        (self.slots.acquire().await.ok(), background)
    }
}

/// Half of the life that is left, less up to a tenth of that half, so that nodes do not renew together.
fn renewal_time(leaf: &Leaf, now: SystemTime, jitter: f64) -> SystemTime {
    let half = until(leaf.not_after(), now) / 2;
    let delay = half.mul_f64(1.0 - 0.1 * jitter.clamp(0.0, 1.0));
    now + delay.max(SHORTEST_RENEWAL)
}

/// A CA that hands out lives of seconds is not asked more often than this.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(1);

/// An error with its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why one request for a certificate failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The CA refused or cannot be reached.
    #[error("the CA did not sign")]
    Refused(#[source] SignFailure),
    /// The CA did not answer.
    #[error("the CA did not answer within {limit:?}")]
    Slow {
        /// The deadline.
        limit: Duration,
    },
    /// The CA's answer is unusable.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// No key could be made here.
    #[error("no key could be made: {0}")]
    Key(String),
}

impl Diagnose for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "IDT020",
            Self::Slow { .. } => "IDT021",
            Self::Leaf(inner) => inner.code(),
            Self::Key(_) => "IDT022",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Refused(_) | Self::Slow { .. } | Self::Leaf(_) => Fault::Upstream,
            Self::Key(_) => Fault::Internal,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Refused(_) => {
                "check that the controller runs and knows this node's token, and that the pod runs here"
            }
            Self::Slow { .. } => "check that the controller runs and can be reached on CA_ADDRESS",
            Self::Leaf(inner) => inner.remedy(),
            Self::Key(_) => "report this: the node cannot make keys",
        }
    }
}

/// Why a caller got no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecretError {
    /// Requests failed until the deadline; the last failure.
    #[error("no certificate for {identity} within {limit:?}")]
    Failed {
        /// For whom.
        identity: Identity,
        /// The deadline.
        limit: Duration,
        /// The last failure.
        #[source]
        source: FetchError,
    },
    /// Nothing was heard until the deadline.
    #[error("no certificate for {identity} within {limit:?}, no answer yet")]
    Slow {
        /// For whom.
        identity: Identity,
        /// The deadline.
        limit: Duration,
    },
    /// The identity was forgotten while somebody waited.
    #[error("{identity} has no workload here any more")]
    Forgotten {
        /// Whose.
        identity: Identity,
    },
    /// The cache is full.
    #[error("{identity} would be more than {limit} identities on this node")]
    TooMany {
        /// Whose.
        identity: Identity,
        /// The bound.
        limit: usize,
    },
}

impl Diagnose for SecretError {
    fn code(&self) -> &'static str {
        match self {
            Self::Failed { source, .. } => source.code(),
            Self::Slow { .. } => "IDT030",
            Self::Forgotten { .. } => "IDT031",
            Self::TooMany { .. } => "IDT032",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Failed { source, .. } => source.fault(),
            Self::Slow { .. } => Fault::Upstream,
            Self::Forgotten { .. } | Self::TooMany { .. } => Fault::Internal,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Failed { source, .. } => source.remedy(),
            Self::Slow { .. } => "check that the controller runs and can be reached on CA_ADDRESS",
            Self::Forgotten { .. } => "nothing: the pod was deleted while its connection was being opened",
            Self::TooMany { .. } => "run fewer service accounts on one node",
        }
    }
}

#[cfg(test)]
mod tests;
