//! The node's pods and all namespaces, as the source of objects tells them, and what follows for each pod. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_api::probes::Notice;
use stillmesh_api::zds::PodInfo;
use stillmesh_k8s::labels::{self, Labels};
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::select::{self, Enrolment, NotEnrolled, REDIRECTION, why_not};
use stillmesh_k8s::steering::{CutReceipt, Order, Orders, OutReceipt, QUARANTINE, RECEIPT};
use stillmesh_k8s::translate::pod_addresses;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_objects::Change;
use tokio::time::Instant;

use crate::api::Seen;
use crate::enroll::steps::Wanted;
use crate::metrics::{EventLabels, EventType, Metrics};
use crate::probes::{self, Probes};
use crate::rules::plan::{Dns, Facts, Inbound, InterfaceName};
use crate::writeback::PodName;

const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const DEFAULT_ACCOUNT: &str = "default";
/// On the API server's copy of a static pod: the UID that the kubelet, runtime and cgroups know it by. Anybody who may
/// create pods may set it, to any value.
const STATIC_UID: &str = "kubernetes.io/config.mirror";

/// The objects that matter here.
#[derive(Debug)]
pub struct World {
    node: String,
    enrolment: Enrolment,
    dns: Dns,
    socket_probes: bool,
    pods: HashMap<PodName, Arc<Pod>>,
    namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    /// Pods that the API server was asked for and that the watch has not brought yet.
    ahead: HashSet<PodName>,
    /// Of those, pods of a name that the watch said is gone: it may have meant the one before.
    doubtful: BTreeSet<PodName>,
    /// Since when each pod is held: what was asked before says nothing of it.
    since: HashMap<PodName, Instant>,
    probes: Probes,
    /// Bypasses: which pods stay out of the mesh for a while.
    bypasses: Orders,
    /// Quarantines: which pods their tunnel cuts off. They come before Bypasses: who is out of the mesh cannot be cut off.
    quarantines: Orders,
    /// Which Bypass means a pod, by UID, and since when.
    meant: HashMap<PodName, (String, Instant)>,
    /// What tunnels have said of this node's pods, by UID, and of Quarantines that the watch has not brought yet.
    early: BTreeMap<String, Notice>,
}

/// A Bypass that keeps a pod out. What its status says changes nothing.
#[derive(Clone, Debug)]
pub struct Bypassed {
    /// The order.
    pub order: Arc<Order>,
    /// When this agent has heard that it takes this pod out.
    pub heard: Instant,
    /// What the pod's receipt says of it already.
    pub told: Option<OutReceipt>,
}

impl PartialEq for Bypassed {
    fn eq(&self, other: &Self) -> bool {
        self.order.uid == other.order.uid && self.told == other.told
    }
}

/// What follows from the objects for one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The pod's UID.
    pub uid: String,
    /// Captured, free, or gone when it has ended.
    pub wanted: Wanted,
    /// Why it is not captured.
    pub reason: Option<NotEnrolled>,
    /// Whether its annotation says that somebody captured it.
    pub marked: bool,
    /// What that annotation says.
    pub said: Option<String>,
    /// The Bypass that keeps it out, where that is the reason.
    pub bypassed: Option<Bypassed>,
    /// Whether its receipt is of a Bypass.
    pub was_bypassed: bool,
    /// The Quarantine that cuts it off, where it is in the mesh.
    pub quarantined: Option<ObjectKey>,
    /// Whether it has a sandbox, as far as the kubelet has said.
    pub placed: bool,
    /// The UID that the kubelet knows it by; a static pod has another one in the API.
    pub sandbox: String,
    /// Who it is.
    pub info: PodInfo,
    /// What its rules depend on.
    pub facts: Facts,
}

impl Verdict {
    /// The UID that its sandbox may be looked for by. A static pod's is what its copy says, and a copy is believed only
    /// once the kubelet has said that the pod runs: nobody else may write a status.
    pub fn sought(&self) -> Option<&str> {
        (self.placed || self.sandbox == self.uid).then_some(self.sandbox.as_str())
    }
}

impl World {
    /// No objects yet; `socket_probes` where the kernel holds rules for the ports of `tcpSocket` probes.
    pub fn new(node: String, enrolment: Enrolment, dns: Dns, socket_probes: bool) -> Self {
        Self {
            node,
            enrolment,
            dns,
            socket_probes,
            pods: HashMap::new(),
            namespaces: HashMap::new(),
            ahead: HashSet::new(),
            doubtful: BTreeSet::new(),
            since: HashMap::new(),
            probes: Probes::default(),
            bypasses: Orders::default(),
            quarantines: Orders::default(),
            meant: HashMap::new(),
            early: BTreeMap::new(),
        }
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
                (Kind::Bypass | Kind::Quarantine, change) => {
                    touched.extend(self.order(&key, change));
                    None
                }
                _ => None,
            };
            if let Some(r#type) = event {
                metrics.events.get_or_create(&EventLabels { r#type }).inc();
            }
        }
        touched
    }

    /// Returns the pods that it means or has meant.
    fn order(&mut self, key: &ObjectKey, change: Change) -> Vec<PodName> {
        let order = match &change {
            Change::Set(placed) => Order::of(&placed.object, &self.enrolment.system_namespace),
            Change::Removed(_) => None,
        };
        let orders = if key.kind == Kind::Quarantine { &mut self.quarantines } else { &mut self.bypasses };
        let before = orders.replace(key, order);
        let after = orders.get(key).cloned();
        let meant = |name: &&PodName| {
            let labels = self.pods.get(*name).map(|pod| labels::of(&pod.metadata.labels));
            let means = |order: &Arc<Order>| labels.is_some_and(|one| order.means(&name.namespace, &name.name, one));
            before.iter().chain(&after).any(means)
        };
        let meant: Vec<PodName> = self.pods.keys().filter(meant).cloned().collect();
        meant.iter().for_each(|name| self.mark(name));
        meant
    }

    /// The Bypass that takes a pod out.
    fn bypass<'a>(&'a self, pod: &'a Pod) -> Option<&'a Arc<Order>> {
        self.bypasses.in_force(pod).filter(|_| self.quarantines.in_force(pod).is_none())
    }

    /// Remembers since when a Bypass takes a pod out: nobody has heard of it before.
    fn mark(&mut self, name: &PodName) {
        let order = self.pods.get(name).and_then(|pod| self.bypass(pod)).map(|order| order.uid.clone());
        let known = self.meant.remove(name);
        if let Some(uid) = order {
            let since = known.filter(|(before, _)| *before == uid).map_or_else(Instant::now, |(_, since)| since);
            self.meant.insert(name.clone(), (uid, since));
        }
    }

    fn bypassed(&self, name: &PodName, pod: &Pod) -> Option<Bypassed> {
        let order = self.bypass(pod)?;
        let heard = self.meant.get(name).map_or_else(Instant::now, |(_, since)| *since);
        let told = OutReceipt::of(&pod.metadata).filter(|receipt| receipt.order == order.uid);
        Some(Bypassed { order: Arc::clone(order), heard, told })
    }

    fn pod(&mut self, name: &PodName, change: Change) -> Option<EventType> {
        let set = match change {
            Change::Set(placed) => match placed.object {
                Object::Pod(pod) => Some(pod),
                _ => None,
            },
            Change::Removed(_) => None,
        };
        let ahead = self.ahead.contains(name);
        match (&set, self.pods.get(name)) {
            // On its way since before the API server was asked.
            (Some(pod), Some(held))
                if (ahead || held.metadata.uid == pod.metadata.uid) && is_older(&pod.metadata, &held.metadata) =>
            {
                return None;
            }
            (None, Some(_)) if ahead => {
                self.doubtful.insert(name.clone());
                return None;
            }
            _ => _ = self.ahead.remove(name),
        }
        match set.filter(|pod| self.is_ours(pod)) {
            Some(pod) => match self.hold(name, pod) {
                Some(_) => Some(EventType::update),
                None => Some(EventType::add),
            },
            None => self.release(name).map(|_| EventType::delete),
        }
    }

    fn hold(&mut self, name: &PodName, pod: Arc<Pod>) -> Option<Arc<Pod>> {
        let is_same = |before: &Arc<Pod>| before.metadata.uid == pod.metadata.uid;
        let is_known = self.pods.get(name).is_some_and(is_same);
        let known = self.since.get(name).copied().filter(|_| is_known);
        let meant = self.meant.remove(name).filter(|_| is_known);
        let before = self.release(name);
        self.probes.learn(&pod);
        self.pods.insert(name.clone(), pod);
        self.since.insert(name.clone(), known.unwrap_or_else(Instant::now));
        meant.and_then(|meant| self.meant.insert(name.clone(), meant));
        self.mark(name);
        before
    }

    fn release(&mut self, name: &PodName) -> Option<Arc<Pod>> {
        let before = self.pods.remove(name);
        self.since.remove(name);
        self.meant.remove(name);
        if let Some(before) = &before {
            self.probes.forget(before);
        }
        before
    }

    /// The probe ports of this node's pods.
    pub fn probes(&self) -> Probes {
        self.probes.clone()
    }

    /// Forgets the probe ports of pods that are not held.
    pub fn forget_other_probes(&self) {
        let uids = self.pods.values().filter_map(|pod| pod.metadata.uid.clone());
        self.probes.keep_only(&uids.collect());
    }

    fn namespace(&mut self, name: &Arc<str>, change: Change) -> Option<EventType> {
        match change {
            Change::Set(placed) => {
                let Object::Namespace(namespace) = placed.object else { return None };
                let held = self.namespaces.get(name).map(|held| &held.metadata);
                if held.is_some_and(|held| held.uid == namespace.metadata.uid && is_older(&namespace.metadata, held)) {
                    return None;
                }
                match self.namespaces.insert(Arc::clone(name), namespace) {
                    Some(_) => Some(EventType::update),
                    None => Some(EventType::add),
                }
            }
            Change::Removed(_) => self.namespaces.remove(name).map(|_| EventType::delete),
        }
    }

    /// Takes in what the API server said when asked; returns the pods that it may matter to.
    pub fn learn(&mut self, name: &PodName, seen: Seen) -> BTreeSet<PodName> {
        let mut touched = BTreeSet::from([name.clone()]);
        let newer = |new: &ObjectMeta, held: Option<&ObjectMeta>| held.is_none_or(|held| !is_older(new, held));
        if let Some(namespace) = seen.namespace {
            let held = self.namespaces.get(name.namespace.as_str()).map(|held| &held.metadata);
            if newer(&namespace.metadata, held) {
                self.namespaces.insert(name.namespace.as_str().into(), Arc::new(namespace));
                touched.extend(self.pods.keys().filter(|pod| pod.namespace == name.namespace).cloned());
            }
        }
        // It was asked about the one before of this name.
        let uid = seen.pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        let is_other = self.pods.get(name).is_some_and(|held| held.metadata.uid != uid);
        if is_other && self.since.get(name).is_some_and(|since| *since > seen.asked) {
            return touched;
        }
        match seen.pod {
            Some(pod) => {
                let held = self.pods.get(name).map(|held| &held.metadata);
                if self.is_ours(&pod) && newer(&pod.metadata, held) {
                    let known = held.is_some_and(|held| held.uid == pod.metadata.uid);
                    if !known {
                        self.ahead.insert(name.clone());
                    }
                    self.hold(name, Arc::new(pod));
                }
            }
            None => {
                self.ahead.remove(name);
                self.release(name);
            }
        }
        touched
    }

    /// Pods that the API server should be asked for again.
    pub fn doubtful(&mut self) -> BTreeSet<PodName> {
        std::mem::take(&mut self.doubtful)
    }

    /// Whether pods of a namespace are in the mesh unless they say otherwise; `None` where it has not been heard of.
    pub fn is_enrolled(&self, namespace: &str) -> Option<bool> {
        self.namespaces.get(namespace).map(|found| self.enrols(namespace, found))
    }

    /// The namespaces whose pods are in the mesh unless they say otherwise.
    pub fn enrolled(&self) -> BTreeSet<String> {
        let chosen = |(name, found): &(&Arc<str>, &Arc<Namespace>)| self.enrols(name, found);
        self.namespaces.iter().filter(chosen).map(|(name, _)| name.to_string()).collect()
    }

    fn enrols(&self, name: &str, namespace: &Namespace) -> bool {
        let labels = labels::of(&namespace.metadata.labels);
        // The plugin goes by this while the agent cannot be asked: a Bypass is for services that must run now.
        !self.enrolment.excluded_namespaces.contains(name)
            && (!self.bypasses.is_whole(name) || self.quarantines.any_in(name))
            && select::selected(&Labels::default(), labels, &self.enrolment)
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&self.node)
    }

    /// What follows for a pod; `None` where there is no such pod on this node, or it has no UID.
    pub fn verdict(&self, name: &PodName) -> Option<Verdict> {
        let pod = self.pods.get(name)?;
        let uid = pod.metadata.uid.clone()?;
        let namespace = self.namespaces.get(name.namespace.as_str()).map(Arc::as_ref);
        let unfit = why_not(pod, namespace, &self.enrolment);
        let bypassed = if unfit.is_none() { self.bypassed(name, pod) } else { None };
        let reason = unfit.or(bypassed.as_ref().map(|_| NotEnrolled::Bypassed));
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
        let said = annotation(pod, REDIRECTION).map(str::to_owned);
        let of_static = annotation(pod, STATIC_UID).filter(|uid| is_static_uid(uid));
        let sandbox = of_static.map_or_else(|| uid.clone(), str::to_owned);
        let (marked, placed) = (said.is_some(), is_placed(pod));
        let was_bypassed = annotation(pod, RECEIPT).is_some() && OutReceipt::of(&pod.metadata).is_some();
        let facts = self.facts(pod);
        let quarantined = if reason.is_none() { self.quarantines.in_force(pod) } else { None };
        let quarantined = quarantined.map(|order| order.key.clone());
        Some(Verdict {
            uid,
            wanted,
            reason,
            marked,
            said,
            bypassed,
            was_bypassed,
            quarantined,
            placed,
            sandbox,
            info,
            facts,
        })
    }

    /// What a tunnel's notice changes: the pod that it is about, and the receipt that it is to have, or none. `None` where
    /// nothing changes, or there is no such pod, or no such Quarantine yet: see [`World::early`].
    pub fn cut_off(&mut self, notice: &Notice, now: impl FnOnce() -> String) -> Option<(PodName, Option<CutReceipt>)> {
        self.early.remove(&notice.uid);
        let is_it = |pod: &&Arc<Pod>| pod.metadata.uid.as_deref() == Some(&*notice.uid);
        let pod = self.pods.values().find(is_it)?;
        let before = CutReceipt::of(&pod.metadata);
        let Some(quarantine) = &notice.quarantine else {
            return annotation(pod, QUARANTINE).is_some().then(|| (name_of(pod), None));
        };
        let Some(order) = self.quarantine_of(notice) else {
            self.early.insert(notice.uid.clone(), notice.clone());
            return None;
        };
        let order_uid = order.uid.clone();
        let receipt = match before.clone().filter(|before| before.is_of(order)) {
            // A tunnel that has started anew counts from nothing.
            Some(before) => CutReceipt { cut: before.cut.max(notice.cut), order: order_uid, ..before },
            None => CutReceipt {
                quarantine: quarantine.clone(),
                order: order_uid,
                time: now(),
                took_ms: u64::try_from(notice.took.as_millis()).unwrap_or(u64::MAX),
                cut: notice.cut,
            },
        };
        (before.as_ref() != Some(&receipt)).then(|| (name_of(pod), Some(receipt)))
    }

    /// Takes notices that came before the Quarantine that they name and whose Quarantine is there by now.
    pub fn early(&mut self) -> Vec<Notice> {
        if self.early.is_empty() {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.early);
        let is_here = |uid: &str| self.pods.values().any(|pod| pod.metadata.uid.as_deref() == Some(uid));
        let is_known = |notice: &Notice| notice.quarantine.is_none() || self.quarantine_of(notice).is_some();
        let (known, early): (Vec<_>, Vec<_>) =
            all.into_iter().filter(|(uid, _)| is_here(uid)).partition(|(_, notice)| is_known(notice));
        self.early = early.into_iter().collect();
        known.into_iter().map(|(_, notice)| notice).collect()
    }

    /// The Quarantine that a notice names. One of the same name that is another one is not it: either side may be behind.
    fn quarantine_of(&self, notice: &Notice) -> Option<&Arc<Order>> {
        let order = self.quarantine(notice.quarantine.as_deref()?)?;
        notice.order.as_ref().is_none_or(|uid| *uid == order.uid).then_some(order)
    }

    /// The Quarantine of this name, as `namespace/name`.
    pub fn quarantine(&self, name: &str) -> Option<&Arc<Order>> {
        let (namespace, name) = name.split_once('/')?;
        self.quarantines.get(&ObjectKey::new(Kind::Quarantine, namespace, name))
    }

    /// The addresses of this node's pods that are to be captured.
    pub fn captured_addresses(&self) -> BTreeSet<IpAddr> {
        let captured = self
            .pods
            .keys()
            .filter(|name| self.verdict(name).is_some_and(|verdict| verdict.wanted == Wanted::Captured));
        captured.filter_map(|name| self.pods.get(name)).flat_map(|pod| pod_addresses(pod)).collect()
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
        let socket_probes = if self.socket_probes { probes::socket_ports(pod) } else { BTreeSet::new() };
        let socket_probes = socket_probes.into_iter().collect();
        Facts { dns, inbound, virtual_interfaces, socket_probes, ..Facts::default() }
    }
}

/// Namespace and name of a pod.
pub fn name_of(pod: &Pod) -> PodName {
    PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: pod.metadata.name.clone().unwrap_or_default(),
    }
}

/// Whether a UID is a static pod's: the kubelet makes it of a hash, while the API server's have dashes.
pub(crate) fn is_static_uid(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the kubelet has said that there is a sandbox: it knows addresses, or a container runs.
fn is_placed(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        status.pod_ip.as_ref().is_some_and(|address| !address.is_empty()) || status.phase.as_deref() == Some("Running")
    })
}

/// Whether one version of an object is older than another, as far as versions can be compared.
fn is_older(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let version = |meta: &ObjectMeta| meta.resource_version.as_deref()?.parse::<u64>().ok();
    version(one).zip(version(other)).is_some_and(|(one, other)| one < other)
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
