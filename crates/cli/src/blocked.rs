//! NetworkPolicies that were written for applications' ports and keep the mesh's tunnels out: who may reach an application by
//! them and cannot, since in the mesh it would arrive at port 15008. Pure. `stillmesh analyze` and `stillmesh check` tell it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use stillmesh_k8s::gateway::generate::GATEWAY_NAME;
use stillmesh_k8s::labels;
use stillmesh_k8s::network_policy::{Direction, End, TUNNEL_PORT, mended, ports_admitted, selects, verdict};
use stillmesh_k8s::object::DEFAULT_NAMESPACE;

/// Labels that tell replicas of one workload apart.
const OF_ONE: [&str; 2] = ["statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"];
/// Pairs of pods that are looked at for one policy, at most; beyond them a policy may go untold.
const MOST_PAIRS: usize = 200_000;

/// A pod of the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Member<'a> {
    /// The pod.
    pub(crate) end: End<'a>,
    /// The waypoints of its Services: `namespace/name`.
    pub(crate) waypoints: Vec<String>,
}

impl Member<'_> {
    /// `namespace/name`.
    fn name(&self) -> String {
        let metadata = self.end.pod.map(|pod| &pod.metadata);
        let namespace = metadata.and_then(|one| one.namespace.as_deref()).unwrap_or(DEFAULT_NAMESPACE);
        format!("{namespace}/{}", metadata.and_then(|one| one.name.as_deref()).unwrap_or_default())
    }

    /// The waypoint that it runs, if it does: `namespace/name`.
    fn runs(&self) -> Option<String> {
        let metadata = &self.end.pod?.metadata;
        let name = labels::of(&metadata.labels).get(GATEWAY_NAME)?;
        Some(format!("{}/{name}", metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)))
    }

    /// The TCP ports that its containers declare.
    fn declared(&self) -> Vec<u16> {
        let containers = self.end.pod.and_then(|pod| pod.spec.as_ref()).into_iter().flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|one| one.ports.iter().flatten());
        let is_tcp = |protocol: Option<&str>| matches!(protocol, None | Some("" | "TCP"));
        let ports = ports.filter(|port| is_tcp(port.protocol.as_deref()));
        ports.filter_map(|port| u16::try_from(port.container_port).ok()).collect()
    }
}

/// A policy that keeps tunnels out.
#[derive(Clone, Debug)]
pub(crate) struct Blocked<'a> {
    /// The policy.
    pub(crate) policy: &'a NetworkPolicy,
    /// Which way.
    pub(crate) direction: Direction,
    /// An example: who, whom, and at which ports it may.
    example: Option<(String, String, Vec<u16>)>,
    /// Waypoints that it keeps from pods behind them, or pods from.
    waypoints: BTreeSet<String>,
}

/// The policies that keep tunnels out, in their order.
pub(crate) fn find<'a>(policies: &[&'a NetworkPolicy], members: &[Member<'_>]) -> Vec<Blocked<'a>> {
    let members = &kinds(members);
    let mut found = Vec::new();
    for policy in policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut blocked = Blocked { policy, direction, example: None, waypoints: BTreeSet::new() };
            look(&mut blocked, policies, members);
            if blocked.example.is_some() || !blocked.waypoints.is_empty() {
                found.push(blocked);
            }
        }
    }
    found
}

/// Two pods for all of a namespace that have the same labels, ports and waypoints: replicas, which may speak to each other.
fn kinds<'a>(members: &[Member<'a>]) -> Vec<Member<'a>> {
    let mut seen: BTreeMap<_, usize> = BTreeMap::new();
    let is_new = |member: &&Member<'a>| {
        let metadata = member.end.pod.map(|pod| &pod.metadata);
        let mut own = metadata.map(|one| labels::of(&one.labels).clone()).unwrap_or_default();
        OF_ONE.iter().for_each(|key| drop(own.remove(*key)));
        let namespace = metadata.and_then(|one| one.namespace.clone());
        let count = seen.entry((namespace, own, member.declared(), member.waypoints.clone())).or_default();
        *count += 1;
        *count <= 2
    };
    members.iter().filter(is_new).cloned().collect()
}

fn look(blocked: &mut Blocked<'_>, policies: &[&NetworkPolicy], members: &[Member<'_>]) {
    let Blocked { policy, direction, .. } = *blocked;
    // Those of other namespaces say nothing of its pods.
    let is_near = |one: &&&NetworkPolicy| one.metadata.namespace == policy.metadata.namespace;
    let policies: Vec<&NetworkPolicy> = policies.iter().filter(is_near).copied().collect();
    let passes = |subject: &Member<'_>, peer: &Member<'_>| {
        verdict(policies.iter().copied(), direction, &subject.end, &peer.end, TUNNEL_PORT).passes()
    };
    let subjects = members.iter().filter(|one| selects(policy, direction, &one.end));
    let pairs = subjects.flat_map(|subject| members.iter().map(move |peer| (subject, peer)));
    for (subject, peer) in pairs.take(MOST_PAIRS).filter(|(subject, peer)| !std::ptr::eq(*subject, *peer)) {
        let reached = if direction == Direction::Ingress { subject } else { peer };
        let ports = ports_admitted(policy, direction, &subject.end, &peer.end, &reached.declared());
        if ports.is_empty() {
            continue;
        }
        if blocked.example.is_none() && !passes(subject, peer) {
            let (from, to) = if direction == Direction::Ingress { (peer, subject) } else { (subject, peer) };
            blocked.example = Some((from.name(), to.name(), ports));
        }
        // In place of the client its waypoint comes; in place of the server the client reaches its waypoint.
        for waypoint in reached.waypoints.iter().filter(|one| subject.runs().as_ref() != Some(*one)) {
            let mut runs = members.iter().filter(|one| one.runs().as_ref() == Some(waypoint));
            if !blocked.waypoints.contains(waypoint) && runs.any(|one| !passes(subject, one)) {
                blocked.waypoints.insert(waypoint.clone());
            }
        }
    }
}

impl Blocked<'_> {
    /// `namespace/name` of the policy.
    pub(crate) fn name(&self) -> String {
        let metadata = &self.policy.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default())
    }

    /// What it keeps apart.
    pub(crate) fn text(&self) -> String {
        let example = self.example.iter().map(|(from, to, ports)| {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("{from} may reach {to} at {} and not at {TUNNEL_PORT}", ports.join(", "))
        });
        let way = match self.direction {
            Direction::Ingress => "may not reach the pods behind it",
            Direction::Egress => "may not be reached by its clients",
        };
        let waypoints = self.waypoints.iter().map(|one| format!("waypoint {one} {way} at {TUNNEL_PORT}"));
        example.chain(waypoints).collect::<Vec<_>>().join("; ")
    }

    /// What mends it, as YAML: a policy to be applied beside it.
    pub(crate) fn patch(&self) -> String {
        let labels = |key: &str, value: &str| LabelSelector {
            match_labels: Some([(key.to_owned(), value.to_owned())].into()),
            ..LabelSelector::default()
        };
        let peer = |waypoint: &String| {
            let (namespace, name) = waypoint.split_once('/')?;
            Some(NetworkPolicyPeer {
                namespace_selector: Some(labels("kubernetes.io/metadata.name", namespace)),
                pod_selector: Some(labels(GATEWAY_NAME, name)),
                ip_block: None,
            })
        };
        let waypoints: Vec<NetworkPolicyPeer> = self.waypoints.iter().filter_map(peer).collect();
        let mended = mended(self.policy, self.direction, &waypoints);
        mended.and_then(|one| serde_saphyr::to_string(&one).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};
    use stillmesh_k8s::{Object, parse};

    use super::*;

    fn pod(name: &str, label: (&str, &str)) -> Pod {
        let metadata = json!({"name": name, "namespace": "shop", "labels": {label.0: label.1}});
        let spec = json!({"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn policy(name: &str, spec: Value) -> NetworkPolicy {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
    }

    /// What is told of policies over a page, a till, and web behind a waypoint; and whether what mends it mends it.
    fn told(policies: &[NetworkPolicy], waypoints: &[&str]) -> Vec<String> {
        let pods = [
            pod("page", ("app", "page")),
            pod("web", ("app", "web")),
            pod("till", ("app", "till")),
            pod("waypoint-1", (GATEWAY_NAME, "waypoint")),
        ];
        let member = |pod| Member { end: End::pod(pod, None), waypoints: Vec::new() };
        let mut members: Vec<Member<'_>> = pods.iter().map(member).collect();
        members[1].waypoints = waypoints.iter().map(|one| (*one).to_owned()).collect();
        let all: Vec<&NetworkPolicy> = policies.iter().collect();
        let found = find(&all, &members);
        let patches: Vec<String> = found.iter().map(Blocked::patch).collect();
        let mended: Vec<NetworkPolicy> = patches
            .iter()
            .map(|text| match parse::documents("", text).objects.remove(0).object {
                Object::NetworkPolicy(policy) => NetworkPolicy::clone(&policy),
                other => panic!("{other:?}"),
            })
            .collect();
        let with: Vec<&NetworkPolicy> = all.iter().copied().chain(&mended).collect();
        let left: Vec<String> = find(&with, &members).iter().map(Blocked::text).collect();
        assert_eq!(left, Vec::<String>::new(), "{patches:?} mend it");
        found.iter().map(|one| format!("{}: {}", one.name(), one.text())).collect()
    }

    #[test]
    fn who_may_reach_the_application_and_not_the_tunnel_is_told_and_mended() {
        let page = json!([{"podSelector": {"matchLabels": {"app": "page"}}}]);
        let web = json!({"matchLabels": {"app": "web"}});
        let from = |ports: Value| json!({"podSelector": web, "ingress": [{"from": page, "ports": ports}]});
        let ingress = policy("in", from(json!([{"port": 8080}])));
        assert_eq!(
            told(std::slice::from_ref(&ingress), &[]),
            ["shop/in: shop/page may reach shop/web at 8080 and not at 15008"]
        );
        assert!(told(&[policy("in", from(json!([{"port": 8080}, {"port": 15008}])))], &[]).is_empty());
        let anywhere = policy("in", json!({"podSelector": web, "ingress": [{"from": page}]}));
        assert!(told(&[anywhere], &[]).is_empty(), "all ports are 15008 too");
        let nobody = policy("none", json!({"podSelector": {}}));
        assert!(told(std::slice::from_ref(&nobody), &[]).is_empty(), "who is let to nothing is not missed");
        assert_eq!(told(&[nobody, ingress], &[]).len(), 1, "the policy that lets it is the one that is told");
    }

    #[test]
    fn of_replicas_two_are_looked_at() {
        let web = |name: &str| pod(name, ("app", "web"));
        let pods = [web("a"), web("b"), pod("c", ("app", "page")), web("d")];
        let members: Vec<Member<'_>> =
            pods.iter().map(|pod| Member { end: End::pod(pod, None), waypoints: Vec::new() }).collect();
        assert_eq!(kinds(&members).iter().map(Member::name).collect::<Vec<_>>(), ["shop/a", "shop/b", "shop/c"]);
    }

    #[test]
    fn what_leaves_is_looked_at_too() {
        let web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
        let egress = policy(
            "out",
            json!({"podSelector": {"matchLabels": {"app": "page"}}, "policyTypes": ["Egress"], "egress": [{"to": web, "ports": [{"port": 8080}]}]}),
        );
        let expected = "shop/out: shop/page may reach shop/web at 8080 and not at 15008";
        assert_eq!(told(std::slice::from_ref(&egress), &[]), [expected]);
        let behind = format!("{expected}; waypoint shop/waypoint may not be reached by its clients at 15008");
        assert_eq!(told(&[egress], &["shop/waypoint"]), [behind]);
    }

    #[test]
    fn a_waypoint_comes_in_place_of_clients() {
        let page = json!([{"podSelector": {"matchLabels": {"app": "page"}}}]);
        let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": page, "ports": [{"port": 8080}, {"port": 15008}]}]});
        assert!(told(&[policy("in", spec.clone())], &[]).is_empty());
        assert_eq!(
            told(&[policy("in", spec)], &["shop/waypoint"]),
            ["shop/in: waypoint shop/waypoint may not reach the pods behind it at 15008"]
        );
    }
}
