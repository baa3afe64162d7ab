//! A CA without a network, and certificates that lie: for tests, here and in the crates built on this one.
#![expect(clippy::expect_used, reason = "tests end where their fixtures fail")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, SanType};
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_runtime::Tasks;
use tokio::sync::Semaphore;

use crate::issuer::{DEFAULT_TTL, IssueError};
use crate::{Clock, Issuer, Leaf, SecretLimits, Secrets, Sign, SignFailure, TokioClock, csr};

/// How old the certificates of [`LocalCa`] are when they are issued.
const AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// `spiffe://cluster.local/ns/default/sa/<account>`.
pub fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "default", account)
}

/// A CA of `cluster.local` that signs at once, counts, and can be made to fail or to wait.
pub struct LocalCa {
    /// What it signs with.
    pub issuer: Issuer,
    clock: Arc<dyn Clock>,
    ttl: Mutex<Option<Duration>>,
    broken: Mutex<bool>,
    calls: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
    gate: Semaphore,
}

impl LocalCa {
    /// A CA on tokio's clock. Needs a runtime.
    pub fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(TokioClock::new()))
    }

    /// A CA on a given clock.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        let issuer = Issuer::create(&TrustDomain::default(), clock.now()).expect("a root can be made");
        Arc::new(Self {
            issuer,
            clock,
            ttl: Mutex::default(),
            broken: Mutex::default(),
            calls: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    /// The life of what it signs from now on, whatever is asked for.
    pub fn set_ttl(&self, ttl: Duration) {
        *self.ttl.lock() = Some(ttl);
    }

    /// Whether it refuses from now on.
    pub fn set_broken(&self, broken: bool) {
        *self.broken.lock() = broken;
    }

    /// Makes calls wait until [`LocalCa::let_through`].
    pub fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets this many waiting calls through.
    pub fn let_through(&self, calls: usize) {
        self.gate.add_permits(calls);
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// The most calls that ran side by side.
    pub fn most_at_once(&self) -> usize {
        self.most_running.load(Ordering::Relaxed)
    }

    /// The clock it signs by.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// A cache fed by this CA.
    pub fn secrets(self: &Arc<Self>, tasks: &Tasks) -> Secrets {
        Secrets::new(Arc::clone(self) as Arc<dyn Sign>, self.clock(), SecretLimits::default(), tasks)
    }

    /// A certificate as a node would get it.
    pub fn leaf(&self, identity: &Identity) -> Arc<Leaf> {
        let request = csr::request(identity).expect("a key can be made");
        let ttl = self.ttl.lock().unwrap_or(DEFAULT_TTL);
        let entries = self.issue(&request.csr_pem, identity, ttl).expect("the CA signs");
        Arc::new(Leaf::from_signed(request.key, &entries, identity, self.clock.now()).expect("a good answer"))
    }

    /// Valid since long ago: where time is paused its clock runs ahead of the one that handshakes look at.
    fn issue(&self, csr_pem: &str, identity: &Identity, ttl: Duration) -> Result<Vec<String>, IssueError> {
        self.issuer.issue(csr_pem, identity, Some(ttl + AGE), self.clock.now() - AGE)
    }

    /// A certificate with these URI names and this life that its holder takes for `identity`'s.
    pub fn forged(&self, identity: &Identity, names: &[&str], life: (SystemTime, SystemTime)) -> Arc<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        (params.not_before, params.not_after) = (life.0.into(), life.1.into());
        let uri = |name: &&str| SanType::URI(Ia5String::try_from(*name).expect("ASCII"));
        params.subject_alt_names = names.iter().map(uri).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (leaf, key) = self.issuer.forge(&params).expect("the CA signs anything");
        let bundle = Arc::new(self.issuer.bundle().clone());
        Arc::new(Leaf::unchecked(vec![leaf], key, bundle, identity).expect("parts that fit"))
    }
}

impl Sign for LocalCa {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let running = Running::begin(&self.running);
            self.most_running.fetch_max(running.0.load(Ordering::Relaxed), Ordering::Relaxed);
            self.gate.acquire().await.expect("the gate is never closed for ever").forget();
            if *self.broken.lock() {
                return Err(Arc::new(io::Error::other("the CA is broken")) as SignFailure);
            }
            let ttl = self.ttl.lock().unwrap_or(ttl);
            let issued = self.issue(csr_pem, identity, ttl);
            issued.map_err(|problem| Arc::new(problem) as SignFailure)
        })
    }
}

/// Counts a call that runs, also when it is dropped.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
