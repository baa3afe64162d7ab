//! The CA of a cluster, kept in Secret `stillmesh-ca`, or plugged in as Secret `cacerts` (contract 6.4).
//!
//! Any replica may make the first Secret, by a plain create: one wins, all sign with what it holds. From then on only
//! the leader writes it, always whole, so that what is kept is usable at any moment. A Secret that is deleted or
//! damaged while the CA is known is written back. One that is damaged from the start is not replaced: a new root would
//! cut the mesh in two. See [`decide`](decide::decide) for the rules.

mod decide;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use stillmesh_cluster::{Cluster, KubernetesSource, Leader, Watch};
use stillmesh_core::model::TrustDomain;
use stillmesh_identity::Issuer;
use stillmesh_identity::rotation::{Kept, Times};
use stillmesh_k8s::{Finding, Kind, Object};
use stillmesh_objects::{Change, Source};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use self::decide::{Decision, Held, Memory, Write, decide};
use super::roots::ROOT_MAP;
use crate::monitoring::Shown;

/// The Secret of the CA's own.
pub(crate) const OWN: &str = "stillmesh-ca";
/// The Secret that is plugged in.
pub(crate) const PLUGGED: &str = "cacerts";

/// How long the API server may take for a write.
const DEADLINE: Duration = Duration::from_secs(5);
/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often the clock is looked at when nothing is due.
const LOOK: Duration = Duration::from_secs(60);

/// Finds out which CA signs, and keeps it.
pub(crate) struct Authorities {
    api: Api<Secret>,
    source: KubernetesSource,
    namespace: String,
    trust_domain: TrustDomain,
    times: Times,
    leader: Leader,
    shown: Arc<Shown>,
    held: Held,
    memory: Memory,
    /// The objects have been read.
    complete: bool,
    told: Vec<Finding>,
    /// Revoked certificates, PEM, for everybody.
    crl: watch::Sender<Option<Arc<str>>>,
}

impl Authorities {
    pub fn new(
        cluster: &Cluster,
        namespace: &str,
        trust_domain: TrustDomain,
        times: Times,
        leader: Leader,
        shown: Arc<Shown>,
    ) -> Self {
        let watches = vec![
            Watch::named(Kind::Secret, namespace, OWN),
            Watch::named(Kind::Secret, namespace, PLUGGED),
            Watch::named(Kind::ConfigMap, namespace, ROOT_MAP),
        ];
        Self {
            api: Api::namespaced(cluster.client(), namespace),
            source: KubernetesSource::open(cluster, watches),
            namespace: namespace.to_owned(),
            trust_domain,
            times,
            leader,
            shown,
            held: Held::default(),
            memory: Memory::default(),
            complete: false,
            told: Vec::new(),
            crl: watch::channel(None).0,
        }
    }

    /// The revoked certificates that are distributed.
    pub fn crl(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.crl.subscribe()
    }

    /// Waits for the CA that signs first.
    pub async fn first(&mut self) -> Arc<Issuer> {
        loop {
            let (issuer, wait) = self.look().await;
            if let Some(issuer) = issuer {
                return Arc::new(issuer);
            }
            self.wait(wait).await;
        }
    }

    /// Follows the Secrets and the clock, for ever.
    pub async fn keep(mut self, issuers: watch::Sender<Arc<Issuer>>) {
        loop {
            let (issuer, wait) = self.look().await;
            if let Some(issuer) = issuer
                && !issuer.same(&issuers.borrow())
            {
                info!("the certificate authority or its roots have changed");
                issuers.send_replace(Arc::new(issuer));
            }
            self.wait(wait).await;
        }
    }

    /// Waits until something may have changed.
    async fn wait(&mut self, at_most: Duration) {
        tokio::select! {
            update = self.source.next() => {
                let Some(update) = update else { return std::future::pending().await };
                self.complete |= update.complete;
                for change in update.changes {
                    self.take(change);
                }
            }
            () = self.leader.changed() => {}
            () = tokio::time::sleep(at_most) => {}
        }
    }

    fn take(&mut self, change: Change) {
        let key = change.key();
        let object = match change {
            Change::Set(placed) => Some(placed.object),
            Change::Removed(_) => None,
        };
        match (key.kind, &*key.name, object) {
            (Kind::Secret, OWN, Some(Object::Secret(secret))) => self.held.own = Some(secret),
            (Kind::Secret, OWN, _) => self.held.own = None,
            (Kind::Secret, PLUGGED, Some(Object::Secret(secret))) => self.held.plugged = Some(secret),
            (Kind::Secret, PLUGGED, _) => self.held.plugged = None,
            (Kind::ConfigMap, ROOT_MAP, Some(Object::ConfigMap(map))) => self.held.distributed = Some(map),
            (Kind::ConfigMap, ROOT_MAP, _) => self.held.distributed = None,
            _ => {}
        }
    }

    /// Looks at everything, writes what is to be written, and says which CA signs and how long to wait.
    async fn look(&mut self) -> (Option<Issuer>, Duration) {
        if !self.complete {
            self.shown.waits("the Secrets of the CA have not been read yet");
            return (None, LOOK);
        }
        let now = SystemTime::now();
        let leads = self.leader.leads();
        let decision = decide(&self.held, &mut self.memory, leads, &self.trust_domain, &self.times, now);
        let Decision { issuer, write, problems, again, crl } = decision;
        self.tell(problems);
        self.crl.send_if_modified(|known| {
            let differs = *known != crl;
            *known = crl;
            differs
        });
        let mut wait = again.map_or(LOOK, |at| at.duration_since(now).unwrap_or_default()).min(LOOK);
        if let Some(write) = write {
            wait = wait.min(RETRY);
            if let Err(problem) = self.write(write).await {
                warn!(secret = OWN, problem, "the CA's Secret cannot be written; it will be tried again");
            }
        }
        (issuer, wait.max(Duration::from_millis(10)))
    }

    async fn write(&self, write: Write) -> Result<(), String> {
        let parameters = PostParams { field_manager: Some(super::MANAGER.to_owned()), ..PostParams::default() };
        let (result, what) = match write {
            Write::First(kept) => {
                let secret = fresh(&self.namespace, &kept);
                (timeout(DEADLINE, self.api.create(&parameters, &secret)).await, "made")
            }
            Write::Back(kept) => {
                let secret = fresh(&self.namespace, &kept);
                let create = timeout(DEADLINE, self.api.create(&parameters, &secret));
                (self.leader.write(create).await.map_err(|error| error.to_string())?, "written back")
            }
            Write::Instead(secret, kept) => {
                let secret = changed(&secret, &kept);
                let replace = timeout(DEADLINE, self.api.replace(OWN, &parameters, &secret));
                (self.leader.write(replace).await.map_err(|error| error.to_string())?, "changed")
            }
        };
        match result {
            Ok(Ok(_)) => {
                info!(secret = OWN, what, "the CA's Secret has been written");
                Ok(())
            }
            // Another replica was quicker: what it wrote comes by the watch.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
            Ok(Err(error)) => Err(super::chain(&error)),
            Err(_) => Err(format!("no answer within {DEADLINE:?}")),
        }
    }

    fn tell(&mut self, problems: Vec<Finding>) {
        if problems == self.told {
            return;
        }
        for finding in problems.iter().filter(|finding| !self.told.contains(finding)) {
            error!(error.code = finding.code, "{finding}");
        }
        if let Some(first) = problems.first() {
            self.shown.waits(&first.to_string());
        }
        self.shown.authority.store(Arc::new(problems.clone()));
        self.told = problems;
    }
}

/// A Secret that does not exist yet.
fn fresh(namespace: &str, kept: &Kept) -> Secret {
    let mut secret = Secret { type_: Some("stillmesh.io/ca".to_owned()), ..Secret::default() };
    secret.metadata.name = Some(OWN.to_owned());
    secret.metadata.namespace = Some(namespace.to_owned());
    let labels = [("app.kubernetes.io/part-of", "stillmesh"), ("app.kubernetes.io/managed-by", super::MANAGER)];
    secret.metadata.labels = Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
    changed(&secret, kept)
}

/// A Secret with other content; keys that are not ours stay.
fn changed(secret: &Secret, kept: &Kept) -> Secret {
    let mut secret = secret.clone();
    let mut data = secret.data.take().unwrap_or_default();
    data.retain(|key, _| !Kept::owns(key));
    data.extend(kept.write().into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))));
    secret.data = Some(data);
    secret
}
