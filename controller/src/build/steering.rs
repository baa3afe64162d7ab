//! Orders that steer: whose clear text STRICT destinations take meanwhile, and what the orders' statuses should say.
//!
//! A Bypass lets clear text pass from the addresses of the very pods that it keeps out, and from nobody else: from the
//! moment that the order is there, until a pod's annotation says that it is captured again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use stillmesh_core::model::Str;
use stillmesh_k8s::istio::StatusCondition;
use stillmesh_k8s::select::{Enrolment, REDIRECTION, why_not};
use stillmesh_k8s::status::{self, Condition};
use stillmesh_k8s::steering::{KEPT, NodeSteering, Order, Orders, OutReceipt, SteeringStatus};
use stillmesh_k8s::{Object, ObjectKey, labels};

use super::world::{Name, node_of};
use super::{Builder, Dirty, Verdict};

/// Condition: whether the order is carried out on every pod that it means; after its end, whether all are back.
const DONE: &str = "Done";

/// Orders, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Steering {
    enrolment: Enrolment,
    bypasses: Orders,
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
        self.steering.bypasses.all().filter_map(|order| due(order)).min()
    }

    /// What statuses of orders should say whose time has come.
    pub fn ended(&self) -> Vec<Verdict> {
        let Some(now) = self.steering.now else { return Vec::new() };
        let over = |order: &&Arc<Order>| due(order).is_some_and(|due| due <= now);
        self.steering.bypasses.all().filter(over).map(|order| self.order_verdict(&order.key)).collect()
    }

    pub(super) fn take_order(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let system = &self.steering.enrolment.system_namespace;
        let order = object.and_then(|object| Order::of(object, system));
        let mut of_mesh = order.as_ref().is_some_and(Order::is_of_mesh);
        let before = self.steering.bypasses.replace(key, order);
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

    fn is_in_mesh(&self, pod: &Pod) -> bool {
        let namespace = self.world.namespaces.get(pod.metadata.namespace.as_deref().unwrap_or_default());
        why_not(pod, namespace.map(|one| &**one), &self.steering.enrolment).is_none()
    }

    /// A pod's addresses, where clear text passes from it.
    fn clear_of(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut orders = self.steering.bypasses.about(pod).peekable();
        if orders.peek().is_none() || !self.is_in_mesh(pod) {
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
        let status = pod.status.as_ref();
        let all = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|one| one.ip.as_str());
        let first = status.and_then(|status| status.pod_ip.as_deref());
        let mut addresses: Vec<IpAddr> = all.chain(first).filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// What an order's status should say now.
    pub(super) fn order_verdict(&self, key: &ObjectKey) -> Verdict {
        let Some(order) = self.steering.bypasses.get(key) else { return Verdict::new(key.clone(), None, Vec::new()) };
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
        let Counted { nodes, returned } = self.count(order);
        status.returned = returned;
        if over {
            status.phase = "Ended".to_owned();
            status.ended_at = before.ended_at.clone().or_else(|| now.map(text));
            // What was done stays as it was.
            (status.pods, status.done) = (nodes.iter().map(|node| node.pods).sum(), before.done);
            (status.nodes, status.connections) = (before.nodes.clone(), before.connections);
            status.summary = format!("{returned}/{} pods back in the mesh", status.pods);
            let all = returned == status.pods;
            let (is, reason) = if all { ("True", "BackInMesh") } else { ("False", "Returning") };
            status.conditions = said(order, now, is, reason, status.summary.clone());
        } else {
            status.phase = "Active".to_owned();
            status.pods = nodes.iter().map(|node| node.pods).sum();
            status.done = nodes.iter().map(|node| node.done).sum();
            status.connections = nodes.iter().map(|node| node.connections).sum();
            let whole = nodes.iter().filter(|node| node.done == node.pods).count();
            status.summary = format!("{whole}/{} nodes, {}/{} pods out", nodes.len(), status.done, status.pods);
            let lagging: Vec<&str> =
                nodes.iter().filter(|node| node.done < node.pods).map(|node| node.node.as_str()).collect();
            let (is, reason, message) = match lagging.is_empty() {
                true => ("True", "OutOfMesh", status.summary.clone()),
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

    /// The pods of the mesh that an order means, node by node, and how many of them are captured.
    fn count(&self, order: &Order) -> Counted {
        let mut nodes: BTreeMap<String, NodeSteering> = BTreeMap::new();
        let mut returned = 0;
        let all: Box<dyn Iterator<Item = (Str, &Arc<Pod>)>> = match order.is_of_mesh() {
            true => Box::new(self.world.pods.all().map(|(name, pod)| (name.1, pod))),
            false => Box::new(self.world.pods.of(&order.key.namespace).map(|(name, pod)| (name.clone(), pod))),
        };
        for (name, pod) in all {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(node) = node_of(pod) else { continue };
            if !order.means(namespace, &name, labels::of(&pod.metadata.labels)) || !self.is_in_mesh(pod) {
                continue;
            }
            let one = nodes
                .entry(node.to_owned())
                .or_insert_with(|| NodeSteering { node: node.to_owned(), ..NodeSteering::default() });
            one.pods += 1;
            let captured = labels::of(&pod.metadata.annotations).get(REDIRECTION).is_some_and(|says| says == "enabled");
            returned += u32::from(captured);
            if let Some(receipt) =
                OutReceipt::of(&pod.metadata).filter(|receipt| receipt.order == order.uid && !captured)
            {
                one.done += 1;
                one.connections = one.connections.saturating_add(u32::try_from(receipt.carried).unwrap_or(u32::MAX));
                one.took_ms = one.took_ms.max(Some(receipt.took_ms));
                one.at = one.at.take().max(Some(receipt.time));
            }
        }
        Counted { nodes: nodes.into_values().collect(), returned }
    }
}

struct Counted {
    nodes: Vec<NodeSteering>,
    returned: u32,
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
