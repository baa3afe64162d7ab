//! The node's pods and all namespaces, as the source of objects tells them, and what follows for each pod. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use stillmesh_api::zds::PodInfo;
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::select::{Enrolment, NotEnrolled, REDIRECTION, why_not};
use stillmesh_k8s::{Kind, Object};
use stillmesh_objects::Change;

use crate::enroll::steps::Wanted;
use crate::metrics::{EventLabels, EventType, Metrics};
use crate::rules::plan::{Dns, Facts, Inbound, InterfaceName};
use crate::writeback::PodName;

const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const DEFAULT_ACCOUNT: &str = "default";

/// The objects that matter here.
#[derive(Debug)]
pub struct World {
    node: String,
    enrolment: Enrolment,
    dns: Dns,
    pods: HashMap<PodName, Arc<Pod>>,
    namespaces: HashMap<Arc<str>, Arc<Namespace>>,
}

/// What follows from the objects for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The pod's UID.
    pub uid: String,
    /// Captured, free, or gone when it has ended.
    pub wanted: Wanted,
    /// Why it is not captured.
    pub reason: Option<NotEnrolled>,
    /// Whether its annotation says that somebody captured it.
    pub marked: bool,
    /// Who it is.
    pub info: PodInfo,
    /// What its rules depend on.
    pub facts: Facts,
}

impl World {
    /// No objects yet.
    pub fn new(node: String, enrolment: Enrolment, dns: Dns) -> Self {
        Self { node, enrolment, dns, pods: HashMap::new(), namespaces: HashMap::new() }
    }

    /// Applies changes; returns the pods of this node that they may matter to, those that are gone included.
    pub fn apply(&mut self, changes: Vec<Change>, metrics: &Metrics) -> BTreeSet<PodName> {
        let mut touched = BTreeSet::new();
        for change in changes {
            let key = change.key();
            let event = match (key.kind, change) {
                (Kind::Pod, change) => {
                    let name = PodName { namespace: key.namespace.to_string(), name: key.name.to_string() };
                    let event = self.pod(&name, change);
                    if event.is_some() {
                        touched.insert(name);
                    }
                    event
                }
                (Kind::Namespace, change) => {
                    let event = self.namespace(&key.name, change);
                    let inside = |name: &&PodName| *name.namespace == *key.name;
                    touched.extend(self.pods.keys().filter(inside).cloned());
                    event
                }
                _ => None,
            };
            if let Some(r#type) = event {
                metrics.events.get_or_create(&EventLabels { r#type }).inc();
            }
        }
        touched
    }

    fn pod(&mut self, name: &PodName, change: Change) -> Option<EventType> {
        let ours = match change {
            Change::Set(placed) => match placed.object {
                Object::Pod(pod) => Some(pod).filter(|pod| self.is_ours(pod)),
                _ => None,
            },
            Change::Removed(_) => None,
        };
        match ours {
            Some(pod) => match self.pods.insert(name.clone(), pod) {
                Some(_) => Some(EventType::update),
                None => Some(EventType::add),
            },
            None => self.pods.remove(name).map(|_| EventType::delete),
        }
    }

    fn namespace(&mut self, name: &Arc<str>, change: Change) -> Option<EventType> {
        match change {
            Change::Set(placed) => {
                let Object::Namespace(namespace) = placed.object else { return None };
                match self.namespaces.insert(Arc::clone(name), namespace) {
                    Some(_) => Some(EventType::update),
                    None => Some(EventType::add),
                }
            }
            Change::Removed(_) => self.namespaces.remove(name).map(|_| EventType::delete),
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&self.node)
    }

    /// What follows for a pod; `None` where there is no such pod on this node, or it has no UID.
    pub fn verdict(&self, name: &PodName) -> Option<Verdict> {
        let pod = self.pods.get(name)?;
        let uid = pod.metadata.uid.clone()?;
        let namespace = self.namespaces.get(name.namespace.as_str()).map(Arc::as_ref);
        let reason = why_not(pod, namespace, &self.enrolment);
        let wanted = match reason {
            None => Wanted::Captured,
            Some(NotEnrolled::Terminal) => Wanted::Gone,
            Some(_) => Wanted::Free,
        };
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let info = PodInfo {
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
        };
        let marked = annotation(pod, REDIRECTION).is_some();
        Some(Verdict { uid, wanted, reason, marked, info, facts: self.facts(pod) })
    }

    /// The names of all pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = &PodName> {
        self.pods.keys()
    }

    fn facts(&self, pod: &Pod) -> Facts {
        let dns = match flag(pod, DNS_CAPTURE) {
            Some(true) => Dns::Captured,
            Some(false) => Dns::Direct,
            None => self.dns,
        };
        let inbound = if flag(pod, BYPASS_INBOUND) == Some(true) { Inbound::Bypassed } else { Inbound::Captured };
        let mut virtual_interfaces = Vec::new();
        for name in annotation(pod, VIRTUAL_INTERFACES).unwrap_or_default().split(',').map(str::trim) {
            match InterfaceName::new(name) {
                Some(name) if !virtual_interfaces.contains(&name) => virtual_interfaces.push(name),
                Some(_) => {}
                None if name.is_empty() => {}
                None => tracing::warn!(pod = ?pod.metadata.name, name, "{VIRTUAL_INTERFACES} names no interface"),
            }
        }
        Facts { dns, inbound, virtual_interfaces, ..Facts::default() }
    }
}

/// Namespace and name of a pod.
pub fn name_of(pod: &Pod) -> PodName {
    PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: pod.metadata.name.clone().unwrap_or_default(),
    }
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A switch in the forms of Go's `ParseBool`; anything else counts as absent.
fn flag(pod: &Pod, key: &str) -> Option<bool> {
    match annotation(pod, key)? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        other => {
            tracing::warn!(pod = ?pod.metadata.name, key, value = other, "an annotation is neither true nor false");
            None
        }
    }
}

#[cfg(test)]
mod tests;
