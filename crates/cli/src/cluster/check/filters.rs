//! Facts about NetworkPolicies: whether they let the mesh's tunnels, and the kubelet's probes, reach pods. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use stillmesh_k8s::gateway::binding::{Ask, asked};
use stillmesh_k8s::labels::{self, Labels};
use stillmesh_k8s::network_policy::{Direction, End, verdict};
use stillmesh_k8s::select::{SIDECAR_STATUS, why_not};

use super::pods::{rules, typed};
use super::{Fact, foreign_in};
use crate::blocked::{self, Blocked, Member};
use crate::cluster::foreign::Role;
use crate::cluster::value::{is_waypoints, map, name, namespace, text};
use crate::cluster::view::View;

/// Where a foreign node agent lets the kubelet's probes come from (contract 2.2).
const PROBES: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127));

/// Which pods are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those that are in the mesh by their labels.
    Enrolled,
    /// All: what would be if they were in the mesh.
    All,
}

/// Whether NetworkPolicies let tunnels pass.
pub(super) fn tunnels(view: &View, whose: Whose) -> Vec<Fact> {
    let policies: Vec<NetworkPolicy> = view.list("NetworkPolicy").iter().filter_map(typed).collect();
    if policies.is_empty() {
        return Vec::new();
    }
    let pods: Vec<(Pod, Option<Namespace>)> = members(view, whose);
    let waypoints = waypoints(view);
    let members: Vec<Member<'_>> = pods
        .iter()
        .map(|(pod, namespace)| Member { end: End::pod(pod, namespace.as_ref()), waypoints: waypoints.of(pod) })
        .collect();
    let all: Vec<&NetworkPolicy> = policies.iter().collect();
    let found = blocked::find(&all, &members);
    let mut facts: Vec<Fact> = found.iter().map(|one| blocks(one, whose)).collect();
    facts.extend(probes(view, &all, &pods));
    if facts.is_empty() {
        let text = format!("{} NetworkPolicies let the mesh's tunnels pass (port 15008)", policies.len());
        facts.push(Fact::good("network-policies", text));
    }
    facts
}

fn blocks(found: &Blocked<'_>, whose: Whose) -> Fact {
    let what = match found.direction {
        Direction::Ingress => "what reaches",
        Direction::Egress => "what leaves",
    };
    let (name, apart) = (found.name(), found.text());
    let fact = match whose {
        Whose::Enrolled => Fact::bad(
            "network-policies",
            format!("NetworkPolicy {name} filters {what} pods of the mesh, and keeps tunnels from them: {apart}"),
            "apply beside it what follows (stillmesh check -o json has it as `patch`); which port of the application \
             clients may reach is then for AuthorizationPolicies to say",
        ),
        Whose::All => Fact::doubt(
            "network-policies",
            format!("NetworkPolicy {name} would keep tunnels from pods, were these in the mesh: {apart}"),
            "before their namespace joins, apply beside it what follows",
        ),
    };
    Fact { patch: Some(found.patch()), ..fact }
}

/// Pods with a network of their own that run.
fn members(view: &View, whose: Whose) -> Vec<(Pod, Option<Namespace>)> {
    let namespaces: BTreeMap<&str, Namespace> =
        view.list("Namespace").iter().filter_map(|one| Some((name(one), typed(one)?))).collect();
    let rules = rules(view);
    let is_meant = |object: &Value, pod: &Pod| {
        let has_sidecar = labels::of(&pod.metadata.annotations).contains_key(SIDECAR_STATUS);
        let has_ended = matches!(text(&object["status"]["phase"]), "Succeeded" | "Failed");
        match whose {
            _ if has_ended => false,
            Whose::Enrolled => {
                is_waypoints(object) || why_not(pod, namespaces.get(namespace(object)), &rules).is_none()
            }
            Whose::All => !has_sidecar && !rules.excluded_namespaces.contains(namespace(object)),
        }
    };
    let pods = view.list("Pod").iter().filter_map(|object| Some((object, typed::<Pod>(object)?)));
    let pods = pods.filter(|(object, pod)| is_meant(object, pod));
    pods.map(|(object, pod)| (pod, namespaces.get(namespace(object)).cloned())).collect()
}

/// Which waypoints Services ask for, by whom they select.
struct Waypoints(Vec<(String, Labels, String)>);

fn waypoints(view: &View) -> Waypoints {
    let of = |object: &Value| -> Labels {
        let all = map(&object["metadata"]["labels"]).map(|(key, value)| (key.clone(), text(value).to_owned()));
        all.collect()
    };
    let namespaces: BTreeMap<&str, Labels> = view.list("Namespace").iter().map(|one| (name(one), of(one))).collect();
    let none = Labels::new();
    let services = view.list("Service").iter().filter_map(|service| {
        let place = namespace(service);
        let waypoint = match (asked(&of(service), place), asked(namespaces.get(place).unwrap_or(&none), place)) {
            (Ask::Waypoint(waypoint), _) | (Ask::Nothing, Ask::Waypoint(waypoint)) => waypoint,
            _ => return None,
        };
        let selector = map(&service["spec"]["selector"]).map(|(key, value)| (key.clone(), text(value).to_owned()));
        let selector: Labels = selector.collect();
        (!selector.is_empty()).then(|| (place.to_owned(), selector, waypoint.to_string()))
    });
    Waypoints(services.collect())
}

impl Waypoints {
    fn of(&self, pod: &Pod) -> Vec<String> {
        let own = labels::of(&pod.metadata.labels);
        let place = pod.metadata.namespace.as_deref().unwrap_or_default();
        let its = self.0.iter().filter(|(namespace, wanted, _)| namespace == place && labels::match_all(wanted, own));
        let all: BTreeSet<String> = its.map(|(_, _, waypoint)| waypoint.clone()).collect();
        all.into_iter().collect()
    }
}

/// Whether the kubelet's probes pass where another mesh's node agent is in our agent's place: it has them come from an address of
/// no pod and no node. Ours leaves probes their address, which network plugins let pass.
fn probes(view: &View, policies: &[&NetworkPolicy], pods: &[(Pod, Option<Namespace>)]) -> Vec<Fact> {
    if !foreign_in(view).iter().any(|one| one.role == Role::Agent) {
        return Vec::new();
    }
    let mut refused: BTreeMap<String, String> = BTreeMap::new();
    for (pod, place) in pods {
        let end = End::pod(pod, place.as_ref());
        let blocks = |port: &u16| {
            !verdict(policies.iter().copied(), Direction::Ingress, &end, &End::address(PROBES), *port).passes()
        };
        if let Some(port) = probe_ports(pod).iter().find(|port| blocks(port)) {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            let name = pod.metadata.name.clone().unwrap_or_default();
            refused.entry(namespace).or_insert(format!("{name}, port {port}"));
        }
    }
    let fact = |(namespace, example): (String, String)| {
        let block = json!([{"ipBlock": {"cidr": format!("{PROBES}/32")}}]);
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "ambient-probes", "namespace": namespace},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": block}]},
        });
        let fact = Fact::doubt(
            "network-policies",
            format!(
                "NetworkPolicies in {namespace} do not let the kubelet's probes pass, which istio-cni has come from {PROBES} ({example})"
            ),
            "network plugins that filter what comes from a pod's own node (Cilium) refuse them then; apply what follows",
        );
        Fact { patch: serde_saphyr::to_string(&policy).ok(), ..fact }
    };
    refused.into_iter().map(fact).collect()
}

/// The ports that the kubelet asks.
fn probe_ports(pod: &Pod) -> Vec<u16> {
    let mut ports = Vec::new();
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let named = |wanted: &IntOrString| match wanted {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let own = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
                own.and_then(|port| u16::try_from(port.container_port).ok())
            }
        };
        for probe in [&container.liveness_probe, &container.readiness_probe, &container.startup_probe] {
            let Some(probe) = probe else { continue };
            ports.extend(probe.http_get.as_ref().and_then(|one| named(&one.port)));
            ports.extend(probe.tcp_socket.as_ref().and_then(|one| named(&one.port)));
            ports.extend(probe.grpc.as_ref().and_then(|one| u16::try_from(one.port).ok()));
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use stillmesh_k8s::gateway::generate::{CLASS_NAME, GATEWAY_NAME};

    use super::*;
    use crate::output::Mark;

    fn pod(name: &str, namespace: &str, extra: Value) -> Value {
        let mut labels = json!({"app": name});
        for (key, value) in map(&extra) {
            labels[key] = value.clone();
        }
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"port": 8080}}}]},
            "status": {"phase": "Running"}})
    }

    fn policy(ports: Value) -> Value {
        let from = json!([{"podSelector": {"matchLabels": {"app": "page"}}}]);
        json!({"kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from, "ports": ports}]}})
    }

    fn shop(mode: &str, ports: Value) -> Vec<Value> {
        let namespace =
            json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": mode}}});
        vec![namespace, pod("page", "shop", json!({})), pod("web", "shop", json!({})), policy(ports)]
    }

    #[test]
    fn a_policy_that_keeps_tunnels_out_is_wrong_and_what_mends_it_is_printed() {
        let view = View::of("m", shop("ambient", json!([{"port": 8080}])));
        let facts = tunnels(&view, Whose::Enrolled);
        assert_eq!((facts.len(), facts[0].mark), (1, Mark::Bad), "{facts:?}");
        assert!(facts[0].text.contains("shop/page may reach shop/web at 8080 and not at 15008"), "{facts:?}");
        let patch = facts[0].patch.clone().unwrap();
        assert!(patch.contains("name: web-hbone-in") && patch.contains("port: 15008"), "{patch}");
        let open = View::of("m", shop("ambient", json!([{"port": 8080}, {"port": 15008}])));
        assert_eq!(tunnels(&open, Whose::Enrolled)[0].mark, Mark::Good);
        assert!(tunnels(&View::of("m", vec![]), Whose::Enrolled).is_empty());
    }

    #[test]
    fn pods_outside_the_mesh_have_no_tunnels_and_before_an_installation_it_is_a_doubt() {
        let view = View::of("m", shop("none", json!([{"port": 8080}])));
        assert_eq!(tunnels(&view, Whose::Enrolled)[0].mark, Mark::Good);
        assert_eq!(tunnels(&view, Whose::All)[0].mark, Mark::Doubt);
    }

    #[test]
    fn waypoints_that_come_in_place_of_clients_are_let_through() {
        let mut all = shop("ambient", json!([{"port": 8080}, {"port": 15008}]));
        all.push(pod("waypoint-1", "shop", json!({GATEWAY_NAME: "waypoint", CLASS_NAME: "istio-waypoint"})));
        all.push(json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "waypoint"}},
            "spec": {"selector": {"app": "web"}}}));
        let facts = tunnels(&View::of("m", all), Whose::Enrolled);
        assert!(
            facts[0].text.contains("waypoint shop/waypoint may not reach the pods behind it at 15008"),
            "{facts:?}"
        );
        assert!(facts[0].patch.as_ref().unwrap().contains("gateway-name: waypoint"), "{facts:?}");
    }

    #[test]
    fn a_gateway_at_the_edge_is_no_waypoint_and_needs_no_tunnels() {
        let told = |class: &str| {
            let mut all = shop("ambient", json!([{"port": 8080}, {"port": 15008}]));
            let mut edge = pod(
                "edge-1",
                "shop",
                json!({GATEWAY_NAME: "edge", CLASS_NAME: class, "istio.io/dataplane-mode": "none"}),
            );
            edge["metadata"]["labels"]["app"] = json!("edge");
            all.push(edge);
            let from = json!([{"podSelector": {"matchLabels": {"app": "page"}}}]);
            all.push(json!({"kind": "NetworkPolicy", "metadata": {"name": "edge", "namespace": "shop"},
                "spec": {"podSelector": {"matchLabels": {"app": "edge"}}, "ingress": [{"from": from, "ports": [{"port": 8080}]}]}}));
            tunnels(&View::of("m", all), Whose::Enrolled)[0].mark
        };
        assert_eq!((told("istio"), told("istio-waypoint")), (Mark::Good, Mark::Bad));
    }

    #[test]
    fn the_address_of_probes_matters_beside_a_foreign_agent_alone() {
        let mut all = shop("ambient", json!([{"port": 8080}, {"port": 15008}]));
        all.push(json!({"kind": "DaemonSet", "metadata": {"name": "istio-cni-node", "namespace": "istio-system"}}));
        let facts = tunnels(&View::of("m", all), Whose::Enrolled);
        assert_eq!((facts.len(), facts[0].mark), (1, Mark::Doubt), "{facts:?}");
        assert!(facts[0].patch.as_ref().unwrap().contains("169.254.7.127/32"), "{facts:?}");
    }
}
