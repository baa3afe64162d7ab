//! Who of several replicas writes: a Lease that one of them holds (`coordination.k8s.io/v1`).
//!
//! The holder renews it well before others may take it. What it may still write ends earlier than that, by its own
//! clock, so that two never write even when one of them was stopped in between, or cannot reach the API server. How
//! old another's lease is counts from when it was seen to change here: clocks of different machines are not compared.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::Cluster;

/// How long the phases of a lease last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long others wait for a sign of life before they take over.
    pub lease: Duration,
    /// How long the holder writes after its last sign of life; well under `lease`.
    pub hold: Duration,
    /// How often the lease is looked at or renewed; well under `hold`.
    pub every: Duration,
}

impl Default for Terms {
    /// As usual in Kubernetes: 15 s, 10 s, 2 s.
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), hold: Duration::from_secs(10), every: Duration::from_secs(2) }
    }
}

/// What one replica knows about its own leadership. Clones share it.
#[derive(Clone, Debug)]
pub struct Leader {
    until: watch::Receiver<Option<Instant>>,
}

/// The replica does not lead, or stopped leading before the write was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another replica leads, or none does now")]
pub struct NotLeading;

impl Leader {
    /// Whether it leads now.
    pub fn leads(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Carries out one write if it leads, and gives it up when it no longer does.
    pub async fn write<T>(&self, write: impl Future<Output = T>) -> Result<T, NotLeading> {
        let until = (*self.until.borrow()).ok_or(NotLeading)?;
        if Instant::now() >= until {
            return Err(NotLeading);
        }
        timeout_at(until, write).await.map_err(|_| NotLeading)
    }

    /// Waits until it begins or ends to lead; an end by the lease's running out is not told here.
    pub async fn changed(&mut self) {
        let before = self.until.borrow_and_update().is_some();
        while self.until.borrow_and_update().is_some() == before {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it leads.
    pub async fn gained(&mut self) {
        while !self.leads() {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it does not lead.
    pub async fn lost(&mut self) {
        loop {
            let Some(until) = *self.until.borrow_and_update() else { return };
            tokio::select! {
                changed = self.until.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    /// Does `work` whenever it leads, dropping it when that ends. For ever.
    pub async fn lead<F: Future<Output = ()>>(mut self, mut work: impl FnMut() -> F) {
        loop {
            self.gained().await;
            let mut leader = self.clone();
            tokio::select! {
                () = work() => tokio::time::sleep(Duration::from_secs(1)).await,
                () = leader.lost() => {}
            }
        }
    }
}

/// One replica's candidature. Run it with [`Candidate::run`].
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
    until: watch::Sender<Option<Instant>>,
    /// The lease as it was seen last, and since when it has been like that.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A candidature for the Lease of this namespace and name. `identity` differs from replica to replica, and from
    /// start to start.
    pub fn new(cluster: &Cluster, namespace: &str, name: &str, identity: &str, terms: Terms) -> (Self, Leader) {
        let (until, receiver) = watch::channel(None);
        let api = Api::namespaced(cluster.client(), namespace);
        let (name, identity) = (name.to_owned(), identity.to_owned());
        (Self { api, name, identity, terms, until, seen: None }, Leader { until: receiver })
    }

    /// Takes the lease when it is free and keeps it, until told to end; then gives it back.
    pub async fn run(mut self, end: CancellationToken) {
        loop {
            let started = Instant::now();
            let attempt = timeout(self.terms.hold / 2, self.attempt());
            let held = tokio::select! {
                attempt = attempt => match attempt {
                    Ok(Ok(held)) => held,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, lease = self.name, "the lease cannot be looked at");
                        None
                    }
                    Err(_) => {
                        tracing::warn!(lease = self.name, "the API server does not answer about the lease");
                        None
                    }
                },
                () = end.cancelled() => break,
            };
            match held {
                Some(true) => self.holds(Some(started + self.terms.hold)),
                Some(false) => self.holds(None),
                // What was held is held for as long as it was granted.
                None => {
                    let over = self.until.borrow().is_some_and(|until| Instant::now() >= until);
                    if over {
                        self.holds(None);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(started + self.terms.every) => {}
                () = end.cancelled() => break,
            }
        }
        let held = self.until.borrow().is_some();
        self.holds(None);
        if held && timeout(self.terms.every, self.release()).await.is_err() {
            tracing::debug!(lease = self.name, "the lease was not given back in time; it runs out");
        }
    }

    fn holds(&self, until: Option<Instant>) {
        let before = self.until.send_replace(until).is_some();
        match (before, until.is_some()) {
            (false, true) => tracing::info!(lease = self.name, identity = self.identity, "this replica leads"),
            (true, false) => tracing::info!(lease = self.name, identity = self.identity, "this replica leads no more"),
            _ => {}
        }
    }

    /// Looks at the lease, and takes or renews it. Says whether it is held; nothing where another write came first.
    async fn attempt(&mut self) -> Result<Option<bool>, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease { spec: Some(self.spec(None)), ..Lease::default() };
            lease.metadata.name = Some(self.name.clone());
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((same, since)) if *same == spec => *since,
            _ => {
                self.seen = Some((spec.clone(), now));
                now
            }
        };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let theirs = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let patience = theirs.map_or(self.terms.lease, Duration::from_secs).max(self.terms.lease);
        if holder != self.identity && !holder.is_empty() && now < since + patience {
            return Ok(Some(false));
        }
        // The version that was read goes along: whoever writes in between wins.
        let lease = Lease { spec: Some(self.spec(Some(&spec))), ..lease };
        written(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let same = before.filter(|before| before.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.terms.lease.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: same.and_then(|same| same.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(before.is_some() && same.is_none())),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that another need not wait for it to run out.
    async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        if let Err(error) = self.api.replace(&self.name, &PostParams::default(), &lease).await {
            tracing::debug!(%error, lease = self.name, "the lease was not given back; it runs out");
        }
    }
}

/// Whether a write was made that another one may have overtaken.
fn written<T>(result: Result<T, kube::Error>) -> Result<Option<bool>, kube::Error> {
    match result {
        Ok(_) => Ok(Some(true)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}
