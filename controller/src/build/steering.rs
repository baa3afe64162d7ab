//! Orders that steer: whose clear text STRICT destinations take meanwhile, and what the orders' statuses should say.
//!
//! A Bypass lets clear text pass from the addresses of the very pods that it keeps out, and from nobody else: from the
//! moment that the order is there, until a pod's annotation says that it is captured again. What a Quarantine does is in
//! [`super::quarantine`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use stillmesh_core::model::Str;
use stillmesh_k8s::istio::StatusCondition;
use stillmesh_k8s::select::{Enrolment, NotEnrolled, REDIRECTION, why_not};
use stillmesh_k8s::status::{self, Condition};
use stillmesh_k8s::steering::{KEPT, NodeSteering, Order, Orders, OutReceipt, SteeringStatus};
use stillmesh_k8s::translate::pod_addresses;
use stillmesh_k8s::{Kind, Object, ObjectKey, labels};

use super::quarantine::{self, CutOff};
use super::world::{Name, node_of};
use super::{Builder, Dirty, OutBy, Verdict};

/// Condition: whether the order is carried out on every pod that it means; after its end, whether all are back.
const DONE: &str = "Done";

/// Orders, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Steering {
    enrolment: Enrolment,
    bypasses: Orders,
    pub(super) quarantines: Orders,
    pub(super) cut: CutOff,
    /// Addresses from which STRICT destinations take clear text, by pod.
    clear: BTreeMap<Name, Vec<IpAddr>>,
    /// The same, each once.
    addresses: Vec<IpAddr>,
    now: Option<Timestamp>,
}

/// What is to be written of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Steered {
    /// The status that it should have.
    pub status: SteeringStatus,
    /// The status that it has.
    pub before: SteeringStatus,
    /// It ended long ago: the object goes. Its UID, so that no other one does.
    pub forget: Option<String>,
    /// Why.
    pub reason: String,
}

impl Steering {
    /// Orders of a mesh that itself runs in this namespace.
    pub fn of(system: &str) -> Self {
        let enrolment = Enrolment { system_namespace: system.to_owned(), ..Enrolment::default() };
        Self { enrolment, ..Self::default() }
    }

    /// Which pods are in the mesh.
    pub fn enrolment(&self) -> &Enrolment {
        &self.enrolment
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Order>> {
        self.bypasses.all().chain(self.quarantines.all())
    }

    fn of_kind(&mut self, kind: Kind) -> &mut Orders {
        if kind == Kind::Quarantine { &mut self.quarantines } else { &mut self.bypasses }
    }

    fn get(&self, key: &ObjectKey) -> Option<&Arc<Order>> {
        if key.kind == Kind::Quarantine { self.quarantines.get(key) } else { self.bypasses.get(key) }
    }

    /// The addresses from which STRICT destinations take clear text.
    pub fn clear(&self) -> &[IpAddr] {
        &self.addresses
    }
}

impl Builder {
    /// Orders for the whole mesh are those of this namespace, where the mesh itself runs; without it, the root namespace.
    #[must_use]
    pub fn in_namespace(self, system: &str) -> Self {
        Self { steering: Steering::of(system), ..self }
    }

    /// What the time is: orders end by it.
    pub fn set_now(&mut self, now: Timestamp) {
        self.steering.now = Some(now);
    }

    /// When the next order ends, or is to be forgotten.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.steering.all().filter_map(|order| due(order)).min()
    }

    /// What statuses of orders should say whose time has come.
    pub fn ended(&self) -> Vec<Verdict> {
        let Some(now) = self.steering.now else { return Vec::new() };
        let over = |order: &&Arc<Order>| due(order).is_some_and(|due| due <= now);
        self.steering.all().filter(over).map(|order| self.order_verdict(&order.key)).collect()
    }

    pub(super) fn take_order(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let system = &self.steering.enrolment.system_namespace;
        let order = object.and_then(|object| Order::of(object, system));
        let mut of_mesh = order.as_ref().is_some_and(Order::is_of_mesh);
        let uid = order.as_ref().map(|order| order.uid.clone());
        let before = self.steering.of_kind(key.kind).replace(key, order);
        if key.kind == Kind::Quarantine && before.as_ref().map(|before| &before.uid) != uid.as_ref() {
            // Its policy says which object it is.
            self.dirty.quarantines.insert(key.clone());
        }
        of_mesh |= before.is_some_and(|before| before.is_of_mesh());
        if of_mesh {
            self.dirty.pods.extend(self.world.pods.all().map(|(name, _)| name));
        } else {
            self.dirty.pods.extend(self.world.pods.names_of(&key.namespace));
        }
        self.dirty.orders.insert(key.clone());
    }

    /// Before anything is built of dirty pods: from which of them clear text passes, and which orders mean them.
    pub(super) fn steer(&mut self, dirty: &mut Dirty) {
        self.cut_off(dirty);
        if self.steering.bypasses.is_empty() && self.steering.clear.is_empty() {
            return;
        }
        let mut changed = false;
        for name in &dirty.pods {
            let addresses = self.world.pods.get(name).map(|pod| self.clear_of(pod)).unwrap_or_default();
            let clear = &mut self.steering.clear;
            changed |= match addresses.is_empty() {
                true => clear.remove(name).is_some(),
                false => {
                    clear.get(name) != Some(&addresses) && {
                        clear.insert(name.clone(), addresses);
                        true
                    }
                }
            };
            let concerns = |order: &&Arc<Order>| order.is_of_mesh() || order.key.namespace == name.0;
            let orders = self.steering.bypasses.all().filter(concerns);
            dirty.orders.extend(orders.map(|order| order.key.clone()));
        }
        if changed {
            let mut addresses: Vec<IpAddr> = self.steering.clear.values().flatten().copied().collect();
            addresses.sort_unstable();
            addresses.dedup();
            self.steering.addresses = addresses;
            dirty.peers.extend(self.world.peers.all().map(|(name, _)| name));
        }
    }

    pub(super) fn is_in_mesh(&self, pod: &Pod) -> bool {
        self.why_not(pod).is_none()
    }

    fn why_not(&self, pod: &Pod) -> Option<NotEnrolled> {
        let namespace = self.world.namespaces.get(pod.metadata.namespace.as_deref().unwrap_or_default());
        why_not(pod, namespace.map(|one| &**one), &self.steering.enrolment)
    }

    /// How a Bypass stands that has taken a pod out. A Quarantine comes before it.
    pub(super) fn out_by(&self, pod: &Pod) -> OutBy {
        match (self.steering.bypasses.in_force(pod), self.steering.quarantines.in_force(pod)) {
            (None, _) => OutBy::Over,
            (Some(_), None) => OutBy::Holds,
            (Some(_), Some(quarantine)) => OutBy::Overridden(quarantine.name().into()),
        }
    }

    /// A pod's addresses, where clear text passes from it.
    fn clear_of(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut orders = self.steering.bypasses.about(pod).peekable();
        // A Quarantine comes before a Bypass.
        let is_cut_off = self.steering.quarantines.in_force(pod).is_some();
        if orders.peek().is_none() || is_cut_off || !self.is_in_mesh(pod) {
            return Vec::new();
        }
        let receipt = OutReceipt::of(&pod.metadata);
        // One that is over counts until the pod has been captured again.
        let counts = |order: &Arc<Order>| {
            order.is_in_force() || receipt.as_ref().is_some_and(|receipt| receipt.order == order.uid)
        };
        if !orders.any(counts) {
            return Vec::new();
        }
        pod_addresses(pod)
    }

    /// What an order's status should say now.
    pub(super) fn order_verdict(&self, key: &ObjectKey) -> Verdict {
        let Some(order) = self.steering.get(key) else { return Verdict::new(key.clone(), None, Vec::new()) };
        let (status, forget) = self.order_status(order);
        Verdict {
            generation: order.generation,
            version: order.version.clone(),
            gone: false,
            steered: Some(Steered { status, before: order.status.clone(), forget, reason: order.reason.clone() }),
            ..Verdict::new(key.clone(), None, order.status.conditions.clone())
        }
    }

    fn order_status(&self, order: &Order) -> (SteeringStatus, Option<String>) {
        let now = self.steering.now;
        let text = |time: Timestamp| time.round(jiff::Unit::Second).unwrap_or(time).to_string();
        let before = &order.status;
        let mut status = SteeringStatus {
            requested_by: order.requested_by.clone(),
            ended_by: order.ended_by.clone(),
            since: order.since.map(text),
            until: order.until.map(text),
            observed_generation: order.generation,
            ..SteeringStatus::default()
        };
        if let Some(problem) = &order.problem {
            status.phase = "Refused".to_owned();
            status.summary.clone_from(problem);
            status.conditions = said(order, now, "False", "Refused", problem.clone());
            return (status, None);
        }
        let over = order.is_over() || now.zip(order.until).is_some_and(|(now, until)| until <= now);
        let Counted { nodes, returned, outside, overridden } = self.count(order, over);
        let words = if order.key.kind == Kind::Quarantine { &quarantine::WORDS } else { &BYPASS };
        status.returned = returned;
        if over {
            status.phase = "Ended".to_owned();
            status.ended_at = before.ended_at.clone().or_else(|| now.map(text));
            // What was done stays as it was.
            (status.pods, status.done) = (nodes.iter().map(|node| node.pods).sum(), before.done);
            (status.nodes, status.connections) = (before.nodes.clone(), before.connections);
            status.summary = format!("{returned}/{} pods {}", status.pods, words.returned);
            let all = returned == status.pods;
            let (is, reason) = if all { ("True", words.is_returned) } else { ("False", "Returning") };
            status.conditions = said(order, now, is, reason, status.summary.clone());
        } else {
            status.phase = "Active".to_owned();
            status.pods = nodes.iter().map(|node| node.pods).sum();
            status.done = nodes.iter().map(|node| node.done).sum();
            status.connections = nodes.iter().map(|node| node.connections).sum();
            let whole = nodes.iter().filter(|node| node.done == node.pods).count();
            status.summary =
                format!("{whole}/{} nodes, {}/{} pods {}", nodes.len(), status.done, status.pods, words.done);
            if outside > 0 && order.key.kind == Kind::Quarantine {
                status.summary += &format!("; {outside} more are not in the mesh and go on");
            }
            let pods: usize = overridden.values().sum();
            if pods > 0 {
                let quarantines: Vec<&str> = overridden.keys().map(String::as_str).collect();
                let names = named(&quarantines);
                status.summary += &format!("; {pods} more are cut off by Quarantine {names}, and out again after it");
            }
            let lagging: Vec<&str> =
                nodes.iter().filter(|node| node.done < node.pods).map(|node| node.node.as_str()).collect();
            let (is, reason, message) = match lagging.is_empty() {
                true if nodes.is_empty() && pods > 0 => ("False", "Overridden", status.summary.clone()),
                true => ("True", words.is_done, status.summary.clone()),
                false => ("False", "Waiting", format!("{}; waiting for {}", status.summary, named(&lagging))),
            };
            status.conditions = said(order, now, is, reason, message);
            status.nodes = nodes;
        }
        let ended_at = status.ended_at.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
        let forgotten =
            ended_at.and_then(|ended| ended.checked_add(KEPT).ok()).zip(now).is_some_and(|(due, now)| due <= now);
        (status, (over && forgotten).then(|| order.uid.clone()))
    }

    /// The pods of the mesh that an order means, node by node, and how many of them are captured. Nothing is expected of
    /// those that a Quarantine takes back from a Bypass.
    fn count(&self, order: &Order, over: bool) -> Counted {
        let mut nodes: BTreeMap<String, NodeSteering> = BTreeMap::new();
        let mut overridden: BTreeMap<String, usize> = BTreeMap::new();
        let (mut returned, mut outside) = (0, 0);
        let all: Box<dyn Iterator<Item = (Str, &Arc<Pod>)>> = match order.is_of_mesh() {
            true => Box::new(self.world.pods.all().map(|(name, pod)| (name.1, pod))),
            false => Box::new(self.world.pods.of(&order.key.namespace).map(|(name, pod)| (name.clone(), pod))),
        };
        for (name, pod) in all {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(node) = node_of(pod) else { continue };
            if !order.means(namespace, &name, labels::of(&pod.metadata.labels)) {
                continue;
            }
            match self.why_not(pod) {
                None => {}
                Some(NotEnrolled::Terminal) => continue,
                Some(_) => {
                    outside += 1;
                    continue;
                }
            }
            let quarantine = if over { None } else { self.steering.quarantines.in_force(pod) };
            if let Some(quarantine) = quarantine.filter(|_| order.key.kind == Kind::Bypass) {
                *overridden.entry(quarantine.name()).or_default() += 1;
                continue;
            }
            let one = nodes
                .entry(node.to_owned())
                .or_insert_with(|| NodeSteering { node: node.to_owned(), ..NodeSteering::default() });
            one.pods += 1;
            let Standing { done, as_before } = match order.key.kind {
                Kind::Quarantine => quarantine::standing(order, pod, &self.steering.quarantines),
                _ => standing(order, pod),
            };
            returned += u32::from(as_before);
            if let Some(Done { at, took_ms, connections }) = done {
                one.done += 1;
                one.connections = one.connections.saturating_add(connections);
                one.took_ms = one.took_ms.max(Some(took_ms));
                one.at = one.at.take().max(Some(at));
            }
        }
        Counted { nodes: nodes.into_values().collect(), returned, outside, overridden }
    }
}

/// How an order stands on one pod.
pub(super) struct Standing {
    /// What was done.
    pub(super) done: Option<Done>,
    /// The pod is as it was without the order.
    pub(super) as_before: bool,
}

/// What a pod's annotation says of an order.
pub(super) struct Done {
    pub(super) at: String,
    pub(super) took_ms: u64,
    pub(super) connections: u32,
}

/// How a Bypass stands on a pod.
fn standing(order: &Order, pod: &Pod) -> Standing {
    let captured = labels::of(&pod.metadata.annotations).get(REDIRECTION).is_some_and(|says| says == "enabled");
    let receipt = OutReceipt::of(&pod.metadata).filter(|receipt| receipt.order == order.uid && !captured);
    let done = receipt.map(|receipt| Done {
        at: receipt.time,
        took_ms: receipt.took_ms,
        connections: u32::try_from(receipt.carried).unwrap_or(u32::MAX),
    });
    Standing { done, as_before: captured }
}

/// What statuses say of a kind of order.
pub(super) struct Words {
    pub(super) done: &'static str,
    pub(super) is_done: &'static str,
    pub(super) returned: &'static str,
    pub(super) is_returned: &'static str,
}

const BYPASS: Words =
    Words { done: "out", is_done: "OutOfMesh", returned: "back in the mesh", is_returned: "BackInMesh" };

struct Counted {
    nodes: Vec<NodeSteering>,
    returned: u32,
    /// Pods that are meant and not in the mesh.
    outside: u32,
    /// How many pods each Quarantine, by `namespace/name`, takes back from a Bypass.
    overridden: BTreeMap<String, usize>,
}

/// When there is something to do about an order because of the time.
fn due(order: &Order) -> Option<Timestamp> {
    if !order.is_over() {
        return order.until.filter(|_| order.problem.is_none());
    }
    order.status.ended_at.as_deref()?.parse::<Timestamp>().ok()?.checked_add(KEPT).ok()
}

fn said(
    order: &Order,
    now: Option<Timestamp>,
    is: &'static str,
    reason: &'static str,
    message: String,
) -> Vec<StatusCondition> {
    let now = now.map(|now| now.round(jiff::Unit::Second).unwrap_or(now).to_string()).unwrap_or_default();
    let condition = Condition { type_: DONE, status: is, reason, message };
    status::merged(&order.status.conditions, &condition, order.generation, &now)
        .unwrap_or_else(|| order.status.conditions.clone())
}

/// Some names, and how many more there are.
fn named(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
