//! What a Bypass would make policies refuse. Asked of the engine itself: the controller's builder, once as the mesh is and
//! once with the order, and core's decision for each caller that would have no identity any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use stillmesh_controller::build::Builder;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide::authorize;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, TunnelProtocol, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_k8s::steering::Order;
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Object, Placed, labels};

use super::place::Place;
use crate::offline::{self, settings};

/// Everything that policies for connections depend on.
const KINDS: [(&str, &str); 11] = [
    ("v1", "Namespace"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("security.istio.io/v1", "RequestAuthentication"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "GatewayClass"),
    ("stillmesh.io/v1alpha1", "Bypass"),
    ("v1", "ConfigMap"),
];

/// Who would be refused what, and by which policy: one line each.
pub(super) async fn of(place: &Place, mesh_namespace: &str, orders: &[Value]) -> anyhow::Result<Vec<String>> {
    let mesh = match place {
        Place::Here { .. } => Mesh::default(),
        Place::Cluster { objects } => settings::assumed(objects, mesh_namespace).await?,
    };
    let system = match place {
        Place::Here { .. } => mesh.root_namespace.to_string(),
        Place::Cluster { .. } => mesh_namespace.to_owned(),
    };
    let mut all = Vec::new();
    for (version, kind) in KINDS {
        // Of ConfigMaps only that of the mesh counts, and most users may not list others.
        let namespace = if kind == "ConfigMap" { &*mesh.root_namespace } else { "" };
        all.extend(place.objects(version, kind, namespace).await?);
    }
    Ok(refused(&all, orders, mesh, &system))
}

/// What would be refused then and is not now. Pure.
fn refused(all: &[Value], orders: &[Value], mesh: Mesh, system: &str) -> Vec<String> {
    let written: Vec<Placed> = all.iter().flat_map(offline::placed).collect();
    let ordered: Vec<Placed> = orders.iter().flat_map(offline::placed).collect();
    let means: Vec<Order> = ordered.iter().filter_map(|one| Order::of(&one.object, system)).collect();
    let meant: BTreeSet<(&str, &str)> = written
        .iter()
        .filter_map(|placed| {
            let Object::Pod(pod) = &placed.object else { return None };
            let (namespace, name) = (placed.object.namespace(), placed.object.name());
            let labels = labels::of(&pod.metadata.labels);
            means.iter().any(|order| order.means(namespace, name, labels)).then_some((namespace, name))
        })
        .collect();
    let builder = |mesh| Builder::new(mesh).in_namespace(system);
    let (now, workloads) = offline::decided(&mut builder(mesh.clone()), written.iter().cloned());
    let (then, _) = offline::decided(&mut builder(mesh), written.iter().chain(&ordered).cloned());
    let is_captured = |one: &&Arc<Workload>| one.tunnel_protocol == TunnelProtocol::Hbone;
    let (out, rest): (Vec<_>, Vec<_>) =
        workloads.iter().filter(is_captured).partition(|one| meant.contains(&(&*one.namespace, &*one.name)));
    // One caller for each identity, one destination for each set of pods that are alike.
    let mut callers: BTreeMap<String, (&Arc<Workload>, Identity)> = BTreeMap::new();
    for one in out {
        let identity = one.identity();
        callers.entry(identity.to_string()).or_insert((one, identity));
    }
    let mut seen = BTreeSet::new();
    let mut lines = BTreeSet::new();
    for destination in rest {
        let policies: Vec<String> = destination.authorization_policies.iter().map(ToString::to_string).collect();
        if !seen.insert((destination.namespace.clone(), destination.workload_name.clone(), policies)) {
            continue;
        }
        for (name, (caller, identity)) in &callers {
            for port in offline::served_ports(destination) {
                let allowed = ask(&now, destination, port, caller, Some(identity)).is_none();
                if let (true, Some(reason)) = (allowed, ask(&then, destination, port, caller, None)) {
                    let to = format!("{}/{}", destination.namespace, destination.workload_name);
                    let port = if port == 0 { String::new() } else { format!(" port {port}") };
                    lines.insert(format!("{name} at {to}{port}: {reason}"));
                }
            }
        }
    }
    lines.into_iter().collect()
}

/// Why a connection would be refused; `None` where it passes.
fn ask(
    snapshot: &Snapshot,
    destination: &Workload,
    port: u16,
    caller: &Workload,
    identity: Option<&Identity>,
) -> Option<Reason> {
    let destination = snapshot.workload(&destination.uid)?;
    let attrs = InboundAttrs {
        destination,
        upstream: SocketAddr::new(*destination.addresses.first()?, port),
        source_ip: *caller.addresses.first()?,
        source_identity: identity,
    };
    let verdict = authorize(snapshot, &attrs);
    (!verdict.allowed).then_some(verdict.reason)
}

#[cfg(test)]
mod tests {
    use stillmesh_k8s::Kind;

    use super::*;

    #[test]
    fn every_kind_that_is_asked_for_is_one() {
        assert!(
            KINDS
                .iter()
                .all(|(version, kind)| Kind::named(kind).is_some_and(|kind| kind.api_versions().contains(version)))
        );
    }
}
