//! What is there of waypoints, and what is to be written next. Without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;
use stillmesh_k8s::gateway::binding::service_name;
use stillmesh_k8s::gateway::class::{self, Own};
use stillmesh_k8s::gateway::condition::{self, Progress};
use stillmesh_k8s::gateway::generate::{self, ASKED_FOR, Generated, Settings, Unmade};
use stillmesh_k8s::gateway::overlay::{self, Overlay};
use stillmesh_k8s::gateway::{Gateway, GatewayClass, GatewayStatus, revision};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_objects::{Change, Update};
use tokio::time::Instant;

use super::same;

/// The least time between two writes of one thing; doubled while somebody else goes on writing it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a kind or a namespace is looked for that is not there.
const ABSENT_PAUSE: Duration = Duration::from_secs(5);

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Object(ObjectKey),
    Status(ObjectKey),
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// Makes a class.
    Class(Own),
    /// Applies an object; a fresh one is not there as far as is known.
    Object {
        key: ObjectKey,
        object: Value,
        fresh: bool,
    },
    /// Takes an object away that is not asked for any more, as long as it is this one.
    Delete {
        key: ObjectKey,
        uid: String,
    },
    Status {
        key: ObjectKey,
        version: Option<String>,
        status: Value,
    },
}

/// A write that is to be made now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Due {
    pub key: Key,
    pub write: Write,
}

/// Whose Gateways are handled (contract 7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whose {
    /// The revision of this control plane.
    pub revision: String,
    /// This replica leads the mesh, and not only its revision.
    pub leads_mesh: bool,
    /// Replicas of the default revision run here.
    pub default_runs: bool,
}

/// What is known of a ConfigMap: it, that there is none, or why it cannot be read.
pub(super) type Asked = Result<Option<Arc<ConfigMap>>, String>;

/// What the objects of a Gateway are made with.
struct Chosen {
    overlays: Result<Vec<Overlay>, Unmade>,
    /// What is wrong with those that it asks for.
    problem: Option<String>,
}

/// What is there.
pub(super) struct Known {
    settings: Settings,
    mesh: Mesh,
    /// Whose Gateways are handled.
    pub whose: Whose,
    /// Another control plane runs in this cluster, as far as is known.
    pub rival: bool,
    classes: BTreeMap<ObjectKey, Arc<GatewayClass>>,
    gateways: BTreeMap<ObjectKey, Arc<Gateway>>,
    /// What runs them.
    made: BTreeMap<ObjectKey, Object>,
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    /// What Gateways name as their overlays, once it has been asked for.
    overlays: BTreeMap<ObjectKey, Asked>,
    /// Overlays for classes.
    defaults: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    /// The overlays of each Gateway that were good last.
    good: BTreeMap<ObjectKey, Vec<Overlay>>,
    /// What was applied since this replica leads: earlier ones may have applied more.
    applied: BTreeMap<ObjectKey, Value>,
    /// The same as the server wrote it.
    answered: BTreeMap<ObjectKey, Value>,
    /// What cannot be made, and why.
    problems: BTreeMap<ObjectKey, String>,
    /// When the next write may be, and after how long a pause the one after that.
    pauses: BTreeMap<Key, (Instant, Duration)>,
    unsettled: bool,
}

impl Known {
    pub fn new(settings: Settings, mesh: Mesh, whose: Whose) -> Self {
        Self {
            settings,
            mesh,
            whose,
            rival: false,
            classes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            made: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            overlays: BTreeMap::new(),
            defaults: BTreeMap::new(),
            good: BTreeMap::new(),
            applied: BTreeMap::new(),
            answered: BTreeMap::new(),
            problems: BTreeMap::new(),
            pauses: BTreeMap::new(),
            unsettled: false,
        }
    }

    /// Takes in what has changed.
    pub fn take(&mut self, update: Update) {
        for change in update.changes {
            match change {
                Change::Set(placed) => {
                    let key = placed.object.key();
                    match placed.object {
                        Object::GatewayClass(class) => drop(self.classes.insert(key, class)),
                        Object::Gateway(gateway) => drop(self.gateways.insert(key, gateway)),
                        Object::Namespace(namespace) => drop(self.namespaces.insert(key.name, namespace)),
                        Object::ConfigMap(map) => drop(self.defaults.insert(key, map)),
                        made => drop(self.made.insert(key, made)),
                    }
                }
                Change::Removed(key) => {
                    self.classes.remove(&key);
                    self.gateways.remove(&key);
                    self.defaults.remove(&key);
                    if key.kind == Kind::Namespace {
                        self.namespaces.remove(&key.name);
                    }
                    self.made.remove(&key);
                    self.problems.remove(&key);
                    self.pauses.remove(&Key::Object(key.clone()));
                    self.pauses.remove(&Key::Status(key));
                }
            }
        }
    }

    /// Whether the Gateways of a class are run by this control plane.
    fn is_ours(&self, name: &str) -> bool {
        let class = self.classes.get(&ObjectKey::new(Kind::GatewayClass, "", name)).map(|class| &**class);
        let controller = class.map_or_else(
            || class::WAYPOINTS.iter().find(|own| own.name == name).map_or("", |own| own.controller),
            |class| class.spec.controller_name.as_str(),
        );
        class::is_waypoint(name, class) && !(self.rival && controller.starts_with("istio.io/"))
    }

    /// Whether this control plane is the one that handles a Gateway.
    fn handles(&self, key: &ObjectKey, gateway: &Gateway) -> bool {
        let handled = match revision::of(gateway, self.namespaces.get(&key.namespace).map(|one| &**one)) {
            Some(revision) => revision == self.whose.revision,
            None => {
                let only = self.whose.leads_mesh && !self.whose.default_runs;
                revision::is_default(&self.whose.revision) || only
            }
        };
        handled && self.is_ours(&gateway.spec.gateway_class_name) && gateway.metadata.deletion_timestamp.is_none()
    }

    /// The ConfigMaps that are to be asked for: all that Gateways name, or only those that may yet come.
    pub fn overlays_to_ask_for(&mut self, all: bool) -> Vec<ObjectKey> {
        let ours = self.gateways.iter().filter(|(key, gateway)| self.handles(key, gateway));
        let named: BTreeSet<ObjectKey> =
            ours.filter_map(|(_, gateway)| overlay::named(gateway).ok().flatten()).collect();
        self.overlays.retain(|key, _| named.contains(key));
        named.into_iter().filter(|key| all || !matches!(self.overlays.get(key), Some(Ok(Some(_))))).collect()
    }

    /// Whether some Gateway names a ConfigMap.
    pub fn has_overlays(&self) -> bool {
        !self.overlays.is_empty()
    }

    /// Takes in what was asked for.
    pub fn told(&mut self, key: ObjectKey, asked: Asked) {
        self.overlays.insert(key, asked);
    }

    /// What is to be written now, and when there is more. `time` is RFC 3339.
    pub fn due(&mut self, now: Instant, time: &str) -> (Vec<Due>, Option<Instant>) {
        self.unsettled = false;
        let mut all = Vec::new();
        if self.whose.leads_mesh {
            self.classes_due(time, &mut all);
        }
        let (mut wanted, mut good) = (BTreeSet::new(), BTreeMap::new());
        for (key, gateway) in &self.gateways {
            if self.handles(key, gateway) {
                let overlays = self.gateway_due(key, gateway, time, &mut wanted, &mut all);
                good.extend(overlays.map(|overlays| (key.clone(), overlays)));
            }
        }
        self.good = good;
        self.applied.retain(|key, _| wanted.contains(key));
        self.answered.retain(|key, _| wanted.contains(key));
        self.problems.retain(|key, _| wanted.contains(key));
        let mut later: Option<Instant> = None;
        all.retain(|due| match self.pauses.get(&due.key) {
            Some((until, _)) if *until > now => {
                later = Some(later.map_or(*until, |one| one.min(*until)));
                false
            }
            _ => true,
        });
        (all, later)
    }

    fn classes_due(&self, time: &str, all: &mut Vec<Due>) {
        for own in class::WAYPOINTS.iter().filter(|own| self.is_ours(own.name)) {
            let key = ObjectKey::new(Kind::GatewayClass, "", own.name);
            if !self.classes.contains_key(&key) {
                all.push(Due { key: Key::Object(key), write: Write::Class(*own) });
            }
        }
        for (key, class) in self.classes.iter().filter(|(key, _)| self.is_ours(&key.name)) {
            let status = condition::class_status(class, time).and_then(|status| serde_json::to_value(status).ok());
            if let Some(status) = status {
                let version = class.metadata.resource_version.clone();
                let write = Write::Status { key: key.clone(), version, status };
                all.push(Due { key: Key::Status(key.clone()), write });
            }
        }
    }

    /// What a Gateway's objects are made with, and what is wrong with what it asks for: then with what was good last.
    /// `None` where it has to be asked for first.
    fn overlays_of(&self, key: &ObjectKey, gateway: &Gateway) -> Option<Chosen> {
        let own = match overlay::named(gateway) {
            Ok(Some(named)) => self.overlays.get(&named)?.clone(),
            // What is wrong with it is found below.
            Ok(None) | Err(_) => Ok(None),
        };
        let defaults = self.defaults.values().map(|map| &**map);
        let read = own.and_then(|own| overlay::of(gateway, own.as_deref(), defaults));
        let problem = match read
            .map_err(Unmade::Parameters)
            .and_then(|overlays| generate::generate(gateway, &self.settings, &self.mesh, &overlays).map(|_| overlays))
        {
            Ok(overlays) => return Some(Chosen { overlays: Ok(overlays), problem: None }),
            Err(Unmade::Parameters(problem)) => problem,
            Err(unmade) => return Some(Chosen { overlays: Err(unmade), problem: None }),
        };
        let overlays = self.good.get(key).cloned().ok_or_else(|| Unmade::Parameters(problem.clone()));
        Some(Chosen { overlays, problem: Some(problem) })
    }

    /// Says which overlays were good.
    fn gateway_due(
        &self,
        key: &ObjectKey,
        gateway: &Gateway,
        time: &str,
        wanted: &mut BTreeSet<ObjectKey>,
        all: &mut Vec<Due>,
    ) -> Option<Vec<Overlay>> {
        let mut progress = Progress::default();
        let mut good = None;
        if self.settings.image.is_empty() {
            progress.problem = Some("WAYPOINT_IMAGE of the controller is not set".to_owned());
        } else if gateway.tunnel_listener().is_some() {
            let Chosen { overlays, problem } = self.overlays_of(key, gateway)?;
            progress.parameters = problem;
            let made = overlays.and_then(|overlays| {
                let made = generate::generate(gateway, &self.settings, &self.mesh, &overlays);
                good = Some(overlays);
                made
            });
            match made {
                Ok(made) => self.objects_due(gateway, made, &mut progress, wanted, all),
                // Whatever an earlier leader has made of it stays as it is.
                Err(Unmade::Parameters(_)) => {
                    for kind in [Kind::ServiceAccount, Kind::Service, Kind::Deployment].into_iter().chain(ASKED_FOR) {
                        self.progress(&ObjectKey::new(kind, &key.namespace, service_name(gateway)), &mut progress);
                    }
                }
                Err(Unmade::Gateway(problem)) => progress.problem = Some(problem),
            }
        }
        let status = condition::gateway_status(gateway, &progress, &self.mesh, time);
        if let Some(status) = status.and_then(|status| merging(&status, gateway)) {
            let version = gateway.metadata.resource_version.clone();
            let write = Write::Status { key: key.clone(), version, status };
            all.push(Due { key: Key::Status(key.clone()), write });
        }
        good
    }

    fn objects_due(
        &self,
        gateway: &Gateway,
        made: Generated,
        progress: &mut Progress,
        wanted: &mut BTreeSet<ObjectKey>,
        all: &mut Vec<Due>,
    ) {
        let mut own_kinds = BTreeSet::new();
        let namespace = made.service.metadata.namespace.clone().unwrap_or_default();
        for object in made.objects() {
            let own = object.key();
            self.object_due(&own, &object, all);
            progress.problem = progress.problem.take().or_else(|| self.problems.get(&own).cloned());
            self.progress(&own, progress);
            own_kinds.insert(own.kind);
            wanted.insert(own);
        }
        for kind in ASKED_FOR.into_iter().filter(|kind| !own_kinds.contains(kind)) {
            let key = ObjectKey::new(kind, &namespace, service_name(gateway));
            let Some(there) = self.made.get(&key).map(Object::metadata) else { continue };
            let owned = |owner: &OwnerReference| is_owner(owner, gateway);
            let its = there.owner_references.iter().flatten().any(owned) && there.deletion_timestamp.is_none();
            if let Some(uid) = there.uid.clone().filter(|_| its) {
                all.push(Due { key: Key::Object(key.clone()), write: Write::Delete { key, uid } });
            }
        }
    }

    fn object_due(&self, key: &ObjectKey, object: &Object, all: &mut Vec<Due>) {
        let Ok(object) = serde_json::to_value(object) else { return };
        let there = self.made.get(key).and_then(|there| serde_json::to_value(there).ok());
        let fresh = there.is_none();
        let settled = self.answered.get(key);
        let as_wanted = there.is_some_and(|there| {
            same::contains(&there, &object) || settled.is_some_and(|settled| same::contains(&there, settled))
        });
        if !as_wanted || self.applied.get(key) != Some(&object) {
            let write = Write::Object { key: key.clone(), object, fresh };
            all.push(Due { key: Key::Object(key.clone()), write });
        }
    }

    fn progress(&self, key: &ObjectKey, progress: &mut Progress) {
        match self.made.get(key) {
            Some(Object::Service(service)) => {
                let spec = service.spec.as_ref();
                let several = spec.and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
                progress.addresses = several.iter().filter_map(|ip| ip.parse().ok()).collect();
            }
            Some(Object::Deployment(deployment)) => {
                let ready = deployment.status.as_ref().and_then(|status| status.available_replicas);
                progress.ready = ready.and_then(|ready| u32::try_from(ready).ok()).unwrap_or_default();
            }
            _ => {}
        }
    }

    /// A write was tried: the next one waits. Says until when.
    pub fn written(&mut self, key: &Key, absent: bool, now: Instant) -> Instant {
        // Whoever was quiet for long begins anew.
        let streak = self.pauses.get(key).filter(|(until, pause)| now < *until + *pause * 4);
        let pause = match streak {
            _ if absent => ABSENT_PAUSE,
            Some((_, pause)) => (*pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        self.pauses.insert(key.clone(), (now + pause, pause));
        now + pause
    }

    /// A write was made; an object is what the server made of it.
    pub fn succeeded(&mut self, key: &Key, write: Write, object: Option<Object>) {
        match (key, write) {
            (Key::Object(key), Write::Object { object: applied, .. }) => {
                self.unsettled = true;
                self.problems.remove(key);
                if let Some(object) = object {
                    if let Ok(answer) = serde_json::to_value(&object) {
                        self.answered.insert(key.clone(), same::as_answered(&applied, &answer));
                    }
                    self.made.insert(key.clone(), object);
                }
                self.applied.insert(key.clone(), applied);
            }
            (Key::Object(key), Write::Delete { .. }) => drop(self.made.remove(key)),
            _ => {}
        }
    }

    /// A write was refused. Says whether that is news.
    pub fn refused(&mut self, key: &Key, problem: &str) -> bool {
        let Key::Object(key) = key else { return true };
        let news = self.problems.insert(key.clone(), problem.to_owned()).as_deref() != Some(problem);
        self.unsettled |= news;
        news
    }

    /// Whether what was written may call for more.
    pub fn unsettled(&self) -> bool {
        self.unsettled
    }
}

fn is_owner(owner: &OwnerReference, gateway: &Gateway) -> bool {
    owner.kind == "Gateway" && Some(&owner.uid) == gateway.metadata.uid.as_ref()
}

/// A Gateway's status as it is merged into what it has: addresses that are gone are taken away by name.
fn merging(status: &GatewayStatus, before: &Gateway) -> Option<Value> {
    let mut value = serde_json::to_value(status).ok()?;
    if status.addresses.is_empty() && before.status.as_ref().is_some_and(|status| !status.addresses.is_empty()) {
        value.as_object_mut()?.insert("addresses".to_owned(), Value::Null);
    }
    Some(value)
}

#[cfg(test)]
mod tests;
