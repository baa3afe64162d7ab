//! What is there of waypoints, and what is to be written next. Without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stillmesh_k8s::gateway::class::{self, Own};
use stillmesh_k8s::gateway::condition::{self, Progress};
use stillmesh_k8s::gateway::generate::{self, Settings};
use stillmesh_k8s::gateway::{Gateway, GatewayClass, GatewayStatus};
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

/// What is there.
pub(super) struct Known {
    settings: Settings,
    mesh: Mesh,
    /// Another control plane runs in this cluster, as far as is known.
    pub rival: bool,
    classes: BTreeMap<ObjectKey, Arc<GatewayClass>>,
    gateways: BTreeMap<ObjectKey, Arc<Gateway>>,
    /// What runs them.
    made: BTreeMap<ObjectKey, Object>,
    /// What was applied since this replica leads: earlier ones may have applied more.
    applied: BTreeMap<ObjectKey, Value>,
    /// What cannot be made, and why.
    problems: BTreeMap<ObjectKey, String>,
    /// When the next write may be, and after how long a pause the one after that.
    pauses: BTreeMap<Key, (Instant, Duration)>,
    unsettled: bool,
}

impl Known {
    pub fn new(settings: Settings, mesh: Mesh) -> Self {
        Self {
            settings,
            mesh,
            rival: false,
            classes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            made: BTreeMap::new(),
            applied: BTreeMap::new(),
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
                        made => drop(self.made.insert(key, made)),
                    }
                }
                Change::Removed(key) => {
                    self.classes.remove(&key);
                    self.gateways.remove(&key);
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

    /// What is to be written now, and when there is more. `time` is RFC 3339.
    pub fn due(&mut self, now: Instant, time: &str) -> (Vec<Due>, Option<Instant>) {
        self.unsettled = false;
        let mut all = Vec::new();
        self.classes_due(time, &mut all);
        let mut wanted = BTreeSet::new();
        for (key, gateway) in &self.gateways {
            if self.is_ours(&gateway.spec.gateway_class_name) && gateway.metadata.deletion_timestamp.is_none() {
                self.gateway_due(key, gateway, time, &mut wanted, &mut all);
            }
        }
        self.applied.retain(|key, _| wanted.contains(key));
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

    fn gateway_due(
        &self,
        key: &ObjectKey,
        gateway: &Gateway,
        time: &str,
        wanted: &mut BTreeSet<ObjectKey>,
        all: &mut Vec<Due>,
    ) {
        let mut progress = Progress::default();
        if self.settings.image.is_empty() {
            progress.problem = Some("WAYPOINT_IMAGE of the controller is not set".to_owned());
        } else if gateway.tunnel_listener().is_some() {
            match generate::generate(gateway, &self.settings, &self.mesh) {
                Err(problem) => progress.problem = Some(problem),
                Ok(made) => {
                    let account = made.account.map(Object::from);
                    let objects = account.into_iter().chain([made.service.into(), made.deployment.into()]);
                    for object in objects {
                        let own = object.key();
                        self.object_due(&own, &object, all);
                        progress.problem = progress.problem.or_else(|| self.problems.get(&own).cloned());
                        self.progress(&own, &mut progress);
                        wanted.insert(own);
                    }
                }
            }
        }
        let status = condition::gateway_status(gateway, &progress, &self.mesh, time);
        if let Some(status) = status.and_then(|status| merging(&status, gateway)) {
            let version = gateway.metadata.resource_version.clone();
            let write = Write::Status { key: key.clone(), version, status };
            all.push(Due { key: Key::Status(key.clone()), write });
        }
    }

    fn object_due(&self, key: &ObjectKey, object: &Object, all: &mut Vec<Due>) {
        let Ok(object) = serde_json::to_value(object) else { return };
        let there = self.made.get(key).and_then(|there| serde_json::to_value(there).ok());
        let fresh = there.is_none();
        let as_wanted = there.is_some_and(|there| same::contains(&there, &object));
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
        if let (Key::Object(key), Write::Object { object: applied, .. }) = (key, write) {
            self.unsettled = true;
            self.applied.insert(key.clone(), applied);
            self.problems.remove(key);
            if let Some(object) = object {
                self.made.insert(key.clone(), object);
            }
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
