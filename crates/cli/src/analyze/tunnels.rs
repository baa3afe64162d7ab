//! What keeps tunnels from where they lead: NetworkPolicies, and policies that lock a waypoint out.

use std::collections::{BTreeMap, BTreeSet};

use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_k8s::gateway::class::is_of_waypoint;
use stillmesh_k8s::network_policy::{Direction, End};
use stillmesh_k8s::{Kind, Object, ObjectKey, labels};

use super::code;
use super::message::Message;
use super::policies::gateways;
use super::world::World;
use crate::blocked::{self, Member};

/// All that is to be said of what blocks tunnels.
pub(super) fn said(world: &World) -> Vec<Message> {
    let mut all = Vec::new();
    locked_out(world, &mut all);
    filtered(world, &mut all);
    all
}

/// Services whose endpoints refuse their own waypoint.
fn locked_out(world: &World, all: &mut Vec<Message>) {
    let snapshot = &world.known.snapshot;
    for service in &world.known.services {
        let mut told: BTreeMap<String, (String, u16)> = BTreeMap::new();
        for gateway in gateways(service.waypoints()) {
            let Some(waypoint) = snapshot.members(&gateway).next() else { continue };
            let (identity, source_ip) = (waypoint.identity(), waypoint.addresses.first().copied());
            for endpoint in snapshot.members(&service.key) {
                let Some((ip, source_ip)) = endpoint.addresses.first().copied().zip(source_ip) else { continue };
                if endpoint.tunnel_protocol != TunnelProtocol::Hbone {
                    continue;
                }
                for port in service.ports.iter().map(|port| port.mapping) {
                    let target = endpoint.target_port(&service.key, port.service_port).unwrap_or(port.target_port);
                    let attrs = InboundAttrs {
                        destination: endpoint,
                        upstream: (ip, target).into(),
                        source_ip,
                        source_identity: Some(&identity),
                    };
                    let verdict = decide::authorize(snapshot, &attrs);
                    if !verdict.allowed {
                        let (endpoint, by) = (endpoint.name.to_string(), identity.principal());
                        told.entry(format!("{} (the waypoint is {by})", verdict.reason)).or_insert((endpoint, target));
                    }
                }
            }
        }
        for (reason, (endpoint, port)) in told {
            let text = format!(
                "connections of its waypoint to port {port} of {endpoint} are refused: {reason}; let the waypoint's \
                 identity pass there, and decide about clients by a policy with targetRefs"
            );
            all.push(world.message(code::LOCKED_OUT, &world.service(&service.key), text));
        }
    }
}

/// NetworkPolicies that let clients reach applications and not tunnels.
fn filtered(world: &World, all: &mut Vec<Message>) {
    let policies: Vec<_> = world
        .of_kind(Kind::NetworkPolicy)
        .filter_map(|(_, object)| match object {
            Object::NetworkPolicy(policy) => Some(&**policy),
            _ => None,
        })
        .collect();
    let members: Vec<Member<'_>> = world
        .pods()
        .filter_map(|(key, pod)| {
            // Waypoints come between without being captured.
            let is_waypoint = is_of_waypoint(labels::of(&pod.metadata.labels));
            let workload = world.workload(key);
            let workload = workload.filter(|one| is_waypoint || one.tunnel_protocol == TunnelProtocol::Hbone)?;
            let services = workload.services.iter().map(|(service, _)| service);
            let waypoints: BTreeSet<_> = services
                .filter_map(|service| world.known.snapshot.service(service))
                .flat_map(|service| gateways(service.waypoints()))
                .collect();
            let end = End::pod(pod, world.namespace(&key.namespace));
            Some(Member {
                end,
                waypoints: waypoints.into_iter().filter_map(|gateway| waypoint(world, &gateway)).collect(),
            })
        })
        .collect();
    for found in blocked::find(&policies, &members) {
        let key = Object::NetworkPolicy(found.policy.clone().into()).key();
        let way = match found.direction {
            Direction::Ingress => "what reaches",
            Direction::Egress => "what leaves",
        };
        let text = format!(
            "it filters {way} pods of the mesh: {}; connections in the mesh arrive at port 15008; apply beside it:\n{}",
            found.text(),
            found.patch()
        );
        all.push(world.message(code::BLOCKED, &key, text.trim_end()));
    }
}

/// A pod of a waypoint, by the waypoint's Service.
fn waypoint(world: &World, gateway: &stillmesh_core::model::ServiceKey) -> Option<String> {
    let key: ObjectKey = world.service(gateway);
    world.has(Kind::Service, &key.namespace, &key.name).then(|| format!("{}/{}", key.namespace, key.name))
}
