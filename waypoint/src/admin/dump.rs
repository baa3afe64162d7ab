//! `/config_dump` of a waypoint (contract 9.5): what it knows, in the shape of ztunnel's, and what it makes of it: which services
//! are bound to it, where their connections and requests go, and how the endpoints do. No keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use stillmesh_core::decide::{Live as _, bound};
use stillmesh_core::model::http::{RouteAction, RouteBackend};
use stillmesh_core::model::{Service, ServiceKey, ServicePort, Str, TunnelProtocol, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_proxy::dump;

use crate::waypoint::{Waypoint, own_in};

/// What is known, what is held, and what is done.
pub fn config_dump(waypoint: &Waypoint) -> Value {
    let snapshot = waypoint.snapshots.load();
    let (workloads, services, policies) = snapshot.counts();
    let own = own_in(&waypoint.config, &snapshot);
    let mut all: Vec<&Arc<Service>> = own.iter().flat_map(|own| bound(&snapshot, own)).collect();
    all.sort_by(|one, other| one.key.cmp(&other.key));
    json!({
        "config": &waypoint.config,
        "version": dump::version(&waypoint.config.version),
        "generation": snapshot.generation(),
        "known": { "workloads": workloads, "services": services, "policies": policies },
        "certificates": dump::certificates(&waypoint.secrets),
        "tunnels": waypoint.pool.tunnels(),
        "upstreamConnections": waypoint.connections.open(),
        "workloads": dump::workloads(&snapshot),
        "services": dump::services(&snapshot),
        "policies": dump::policies(&snapshot),
        "bound": all.iter().map(|service| listener(service)).collect::<Vec<_>>(),
        "clusters": clusters(waypoint, &snapshot, &all),
        "routes": snapshot.all_routes().collect::<Vec<_>>(),
        "destinationRules": snapshot.destination_rules().collect::<Vec<_>>(),
        "accesses": snapshot.accesses().collect::<Vec<_>>(),
    })
}

/// A service that is bound to it: what clients dial.
fn listener(service: &Service) -> Value {
    let port = |port: &ServicePort| json!({ "port": port.mapping.service_port, "protocol": port.protocol() });
    json!({
        "namespace": &*service.key.namespace,
        "hostname": &*service.key.hostname,
        "vips": service.vips.iter().map(|vip| vip.address.to_string()).collect::<Vec<_>>(),
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
    })
}

/// Where something can be sent: ports of the bound services and of what their routes lead to, and subsets of them.
fn clusters(waypoint: &Waypoint, snapshot: &Snapshot, all: &[&Arc<Service>]) -> Vec<Value> {
    let mut keys: BTreeSet<&ServiceKey> = all.iter().map(|service| &service.key).collect();
    let is_ours = |key: &ServiceKey| all.iter().any(|service| service.key == *key);
    for route in snapshot.all_routes().filter(|route| route.parents.iter().any(|parent| is_ours(&parent.service))) {
        let requests = route.rules.iter().map(|rule| &rule.action);
        for action in requests {
            if let RouteAction::Forward(forward) = action {
                keys.extend(forward.backends.iter().filter_map(|one| backend(&one.backend)));
            }
        }
        keys.extend(route.streams.iter().flat_map(|rule| &rule.backends).filter_map(|one| backend(&one.backend)));
    }
    let namespace = &waypoint.config.identity.namespace;
    let mut found = Vec::new();
    for service in keys.into_iter().filter_map(|key| snapshot.service(key)) {
        let rules = snapshot.destination(&service.key, namespace);
        let mut subsets: Vec<&Str> = rules.into_iter().flat_map(|rules| rules.subsets()).collect();
        subsets.sort();
        for port in &service.ports {
            for subset in std::iter::once(None).chain(subsets.iter().copied().map(Some)) {
                found.push(cluster(waypoint, snapshot, service, *port, subset));
            }
        }
    }
    found
}

fn backend(backend: &RouteBackend) -> Option<&ServiceKey> {
    match backend {
        RouteBackend::Service { service, .. } => Some(service),
        RouteBackend::Invalid { .. } => None,
    }
}

fn cluster(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    service: &Service,
    port: ServicePort,
    subset: Option<&Str>,
) -> Value {
    let number = port.mapping.service_port;
    let treatment = snapshot
        .destination(&service.key, &waypoint.config.identity.namespace)
        .and_then(|rules| rules.treatment(number, subset.map(|name| &**name)));
    let members = treatment.and_then(|treatment| treatment.members);
    let live = waypoint.clusters.known(&service.key, number, subset);
    let endpoint = |workload: &Arc<Workload>| {
        let mapping = workload.services.iter().find(|(key, _)| *key == service.key)?.1.iter();
        let mapping = mapping.clone().find(|mapping| mapping.service_port == number)?;
        let addresses: Vec<String> = workload
            .addresses
            .iter()
            .map(|ip| std::net::SocketAddr::new(*ip, mapping.target_port).to_string())
            .collect();
        Some(json!({
            "addresses": addresses,
            "workload": format!("{}/{}", workload.namespace, workload.name),
            "status": format!("{:?}", workload.health),
            "protocol": if workload.tunnel_protocol == TunnelProtocol::Hbone { "HBONE" } else { "TCP" },
            "leftOut": live.as_ref().is_some_and(|live| live.is_ejected(&workload.uid)),
            "underWay": live.as_ref().map_or(0, |live| live.active(&workload.uid)),
        }))
    };
    let is_meant = |workload: &&Arc<Workload>| members.as_ref().is_none_or(|members| members.contains(&workload.uid));
    let endpoints: Vec<Value> = snapshot.members(&service.key).filter(is_meant).filter_map(endpoint).collect();
    let rules = snapshot.destination_rules().filter(|rule| rule.services.contains(&service.key));
    json!({
        "namespace": &*service.key.namespace,
        "hostname": &*service.key.hostname,
        "port": number,
        "protocol": port.protocol(),
        "subset": subset,
        "destinationRules": rules.map(|rule| rule.key.to_string()).collect::<Vec<_>>(),
        "endpoints": endpoints,
    })
}
