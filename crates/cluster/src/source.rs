//! Objects from the Kubernetes API, followed by watch streams.
//!
//! One task per watch lists and follows a kind; what it hears is merged into one pending update until the owner takes
//! it, so that a slow owner costs no more memory than the objects themselves. A watch that breaks, or whose position
//! the server has forgotten (410), lists again: objects that are as before are no change, objects that are gone are
//! removed, and until the list is complete everything stays as it was. A kind that the server does not have counts as
//! having no objects, and is looked for again; so does, with a finding, a kind that the mesh can do without and that the
//! server has refused to list for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use parking_lot::Mutex;
use stillmesh_k8s::{Finding, Kind, Object, ObjectKey, Placed, Position, Severity, Unusable};
use stillmesh_objects::{Change, Source, Update};
use stillmesh_runtime::Backoff;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::kinds::{self, Read};
use crate::{Cluster, trim};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often a kind is looked for that the server does not have.
const ABSENT: Duration = Duration::from_secs(5);
/// How long a kind that one can do without may be refused before it is done without.
const REFUSED: Duration = Duration::from_secs(10);

/// What of a kind is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The kind.
    pub kind: Kind,
    /// Where.
    pub scope: Scope,
}

/// Which objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Everywhere,
    /// Those of a namespace.
    Namespace(String),
    /// The one of this namespace and name.
    Named(String, String),
    /// Those of this name, in any namespace.
    NamedAnywhere(String),
    /// Pods of a node.
    Node(String),
    /// Those that a label selector matches, in any namespace.
    Labelled(String),
    /// Those that a label selector matches, in this namespace.
    LabelledIn(String, String),
}

impl Watch {
    /// All objects of a kind.
    pub fn all(kind: Kind) -> Self {
        Self { kind, scope: Scope::Everywhere }
    }

    /// One object.
    pub fn named(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, scope: Scope::Named(namespace.to_owned(), name.to_owned()) }
    }

    /// All objects of a kind that have this name.
    pub fn named_anywhere(kind: Kind, name: &str) -> Self {
        Self { kind, scope: Scope::NamedAnywhere(name.to_owned()) }
    }

    /// All objects of a kind that a label selector matches.
    pub fn labelled(kind: Kind, selector: &str) -> Self {
        Self { kind, scope: Scope::Labelled(selector.to_owned()) }
    }

    /// The objects of a namespace that a label selector matches.
    pub fn labelled_in(kind: Kind, namespace: &str, selector: &str) -> Self {
        Self { kind, scope: Scope::LabelledIn(namespace.to_owned(), selector.to_owned()) }
    }

    /// Whether the mesh works without it as it did before there was any of it. Policies are not among that: one that cannot
    /// be seen is one that is not enforced. Without a RequestAuthentication no token is believed.
    fn is_optional(&self) -> bool {
        is_optional(self.kind) || matches!((self.kind, &self.scope), (Kind::ConfigMap, Scope::LabelledIn(..)))
    }

    fn config(&self) -> watcher::Config {
        match &self.scope {
            Scope::Everywhere | Scope::Namespace(_) => watcher::Config::default(),
            Scope::Named(_, name) | Scope::NamedAnywhere(name) => {
                watcher::Config::default().fields(&format!("metadata.name={name}"))
            }
            Scope::Labelled(selector) | Scope::LabelledIn(_, selector) => watcher::Config::default().labels(selector),
            Scope::Node(node) => watcher::Config::default().fields(&format!("spec.nodeName={node}")),
        }
    }

    /// The namespace to ask in; `None` is all.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match &self.scope {
            Scope::Namespace(namespace) | Scope::Named(namespace, _) | Scope::LabelledIn(namespace, _) => {
                Some(namespace)
            }
            Scope::Everywhere | Scope::NamedAnywhere(_) | Scope::Node(_) | Scope::Labelled(_) => None,
        }
    }
}

/// The objects that some watches bring.
#[derive(Debug)]
pub struct KubernetesSource {
    shared: Arc<Shared>,
    /// Ended with the source.
    _watches: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    news: Notify,
}

/// What the owner has not taken yet. Bounded by the number of objects.
#[derive(Debug, Default)]
struct Pending {
    changes: HashMap<ObjectKey, Change>,
    /// Of those that changed last, the ones that cannot be read.
    unusable: HashMap<ObjectKey, Unusable>,
    findings: BTreeMap<(usize, ObjectName), Vec<Finding>>,
    findings_changed: bool,
    /// Watches whose first list is not complete.
    incomplete: usize,
    /// Whether completion has been told.
    told: bool,
}

type ObjectName = (String, String);

impl Pending {
    fn has_news(&self) -> bool {
        !self.changes.is_empty() || !self.unusable.is_empty() || self.findings_changed
    }
}

impl KubernetesSource {
    /// Starts the watches. Errors of the server are logged and tried again, for ever; the first update comes when
    /// every watch has had its first list.
    pub fn open(cluster: &Cluster, watches: Vec<Watch>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.pending.lock().incomplete = watches.len();
        let mut tasks = JoinSet::new();
        for (number, watch) in watches.into_iter().enumerate() {
            let config = watch.config();
            let follower = Follower {
                number,
                watch: watch.clone(),
                shared: Arc::clone(&shared),
                known: HashMap::new(),
                listing: None,
                complete: false,
                failing: false,
                refused: None,
                backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            };
            kinds::spawn(&mut tasks, cluster.client(), &watch, config, follower);
        }
        Self { shared, _watches: tasks }
    }
}

impl Source for KubernetesSource {
    async fn next(&mut self) -> Option<Update> {
        loop {
            {
                let mut pending = self.shared.pending.lock();
                let complete = pending.incomplete == 0;
                let completed = complete && !pending.told;
                if completed || pending.told && pending.has_news() {
                    pending.told = true;
                    let findings = std::mem::take(&mut pending.findings_changed)
                        .then(|| pending.findings.values().flatten().cloned().collect());
                    let changes = std::mem::take(&mut pending.changes).into_values().collect();
                    let unusable = std::mem::take(&mut pending.unusable).into_values().collect();
                    return Some(Update { changes, unusable, moved: Vec::new(), findings, complete });
                }
            }
            self.shared.news.notified().await;
        }
    }
}

/// One watch.
pub(crate) struct Follower {
    number: usize,
    watch: Watch,
    shared: Arc<Shared>,
    /// Version of every object that the owner knows or is about to.
    known: HashMap<ObjectName, String>,
    /// What a list that is not complete has held so far.
    listing: Option<HashMap<ObjectName, String>>,
    complete: bool,
    /// Nothing was heard since the last error.
    failing: bool,
    /// Since when the server has refused to list a kind that one can do without.
    refused: Option<Instant>,
    backoff: Backoff,
}

impl Follower {
    /// Follows a stream until the task is ended.
    pub async fn follow<K: Read>(mut self, stream: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send) {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    // That a list begins is said before the server has been asked.
                    if !matches!(event, Event::Init) {
                        self.backoff.reset();
                        self.failing = false;
                        if self.refused.take().is_some() {
                            self.tell(Vec::new());
                        }
                    }
                    self.take(event);
                }
                Err(error) => {
                    let wait = self.failed(&error);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn failed(&mut self, error: &watcher::Error) -> Duration {
        let kind = self.watch.kind;
        if is_absent(error) {
            // Objects that are known stay: a server that starts may not know its kinds yet, and one that forgets a kind
            // tells of every object before.
            self.listing = None;
            if !self.complete {
                tracing::info!(%kind, "the API server does not have this kind");
                self.completed();
            }
            return ABSENT;
        }
        let wait = self.backoff.next(1.0);
        if is_forbidden(error) && self.watch.is_optional() {
            self.listing = None;
            let since = *self.refused.get_or_insert_with(Instant::now);
            // Rights may only just be coming.
            if since.elapsed() >= REFUSED && !self.complete {
                self.tell(vec![refused(kind)]);
                self.completed();
            }
        }
        // A watch that the server ends after its time, or whose position it has forgotten, is everyday.
        match error {
            watcher::Error::WatchError(status) if status.code == 410 => {
                tracing::debug!(%kind, "the watch has expired: listing again");
            }
            _ if std::mem::replace(&mut self.failing, true) => {
                tracing::warn!(%kind, %error, ?wait, "objects cannot be watched; what is known stays");
            }
            _ => tracing::debug!(%kind, %error, "the watch broke off"),
        }
        wait
    }

    fn take<K: Read>(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listing = Some(HashMap::new()),
            Event::InitApply(object) => {
                let (name, version) = identify(object.meta());
                if let Some(listing) = &mut self.listing {
                    listing.insert(name.clone(), version.clone());
                }
                if self.known.get(&name) != Some(&version) {
                    self.set(name, version, object);
                }
            }
            Event::InitDone => self.listed(),
            Event::Apply(object) => {
                let (name, version) = identify(object.meta());
                self.set(name, version, object);
            }
            Event::Delete(object) => {
                let (name, _) = identify(object.meta());
                self.remove(&name);
                self.shared.news.notify_one();
            }
        }
    }

    /// Sets what is to be said about the watch itself.
    fn tell(&self, findings: Vec<Finding>) {
        let place = (self.number, ObjectName::default());
        let mut pending = self.shared.pending.lock();
        let changed = match findings.is_empty() {
            true => pending.findings.remove(&place).is_some(),
            false => pending.findings.insert(place, findings).is_none(),
        };
        pending.findings_changed |= changed;
    }

    fn set<K: Read>(&mut self, name: ObjectName, version: String, object: K) {
        let place = (self.number, name.clone());
        let read = object.read();
        let mut pending = self.shared.pending.lock();
        if let Some(mut object) = read.object {
            trim::trim(&mut object);
            let placed = Placed { object, at: Position::file("") };
            let key = placed.object.key();
            pending.unusable.remove(&key);
            pending.changes.insert(key, Change::Set(placed));
        }
        if let Some(unusable) = read.unusable {
            pending.unusable.insert(unusable.key(), unusable);
        }
        let before = if read.findings.is_empty() {
            pending.findings.remove(&place)
        } else {
            pending.findings.insert(place, read.findings.clone())
        };
        pending.findings_changed |= before.unwrap_or_default() != read.findings;
        drop(pending);
        self.known.insert(name, version);
        self.shared.news.notify_one();
    }

    fn remove(&mut self, name: &ObjectName) {
        if self.known.remove(name).is_none() {
            return;
        }
        let key = ObjectKey::new(self.watch.kind, &name.0, &name.1);
        let mut pending = self.shared.pending.lock();
        pending.unusable.remove(&key);
        pending.changes.insert(key.clone(), Change::Removed(key));
        pending.findings_changed |= pending.findings.remove(&(self.number, name.clone())).is_some();
    }

    /// A list is complete: what it did not hold is gone.
    fn listed(&mut self) {
        let Some(listing) = self.listing.take() else { return };
        let gone: Vec<ObjectName> = self.known.keys().filter(|name| !listing.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.remove(name);
        }
        self.completed();
    }

    /// The first list is no longer waited for.
    fn completed(&mut self) {
        if !self.complete {
            self.complete = true;
            self.shared.pending.lock().incomplete -= 1;
        }
        self.shared.news.notify_one();
    }
}

fn identify(meta: &ObjectMeta) -> (ObjectName, String) {
    let name = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    (name, meta.resource_version.clone().unwrap_or_default())
}

fn is_optional(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::GatewayClass
            | Kind::Gateway
            | Kind::GrpcRoute
            | Kind::HttpRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Telemetry
            | Kind::ReferenceGrant
            | Kind::RequestAuthentication
            | Kind::HorizontalPodAutoscaler
            | Kind::PodDisruptionBudget
            | Kind::Bypass
            | Kind::Quarantine
    )
}

fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(
        error,
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 403
    )
}

fn refused(kind: Kind) -> Finding {
    Finding {
        at: Position::file(""),
        severity: Severity::Warning,
        code: "MAN019",
        object: kind.to_string(),
        path: String::new(),
        message: "the API server does not let the controller see objects of this kind: they are without effect"
            .to_owned(),
        hint: "apply the roles of this version's chart".to_owned(),
    }
}

/// Whether the server does not know the kind: its CRD is not there, or not yet.
fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(
        error,
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404
    )
}

/// What is made of an object as the server sends it.
pub(crate) struct Found {
    /// The object, if it can be used.
    pub object: Option<Object>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// What is left of it where it cannot be used and may not be skipped.
    pub unusable: Option<Unusable>,
}

#[cfg(test)]
mod tests;
