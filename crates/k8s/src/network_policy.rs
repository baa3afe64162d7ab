//! Kubernetes' NetworkPolicies, which filter packets below the mesh: whether they let tunnels pass. In the mesh a pod's TCP
//! connections arrive at port 15008, whatever port the application has. A NetworkPolicy that lets clients reach the
//! application's port alone therefore lets nobody reach it any more.
//!
//! Meaning: `networking.k8s.io/v1` as the API's reference has it. A pod that a policy selects for a direction is reached (or
//! reaches others) only by what one of the policies that select it says; policies add up. Pods on their node's network are not
//! filtered. `ipBlock` is compared with pods' addresses too; network plugins differ in that (Cilium does not).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::labels::{self, Labels};
use crate::object::DEFAULT_NAMESPACE;
use crate::translate::pod_addresses;

/// Where tunnels arrive, in the pod (contract 2.1).
pub const TUNNEL_PORT: u16 = 15008;

/// Which way a policy filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What reaches the selected pods.
    Ingress,
    /// What the selected pods reach.
    Egress,
}

impl Direction {
    /// As `policyTypes` calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct End<'a> {
    /// The pod; `None` for whoever is none.
    pub pod: Option<&'a Pod>,
    /// The labels of its namespace. Kubernetes gives each its name as `kubernetes.io/metadata.name`, and so does [`End::pod`].
    pub namespace_labels: Labels,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<IpAddr>,
}

/// Label that Kubernetes gives every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

impl<'a> End<'a> {
    /// A pod, in this namespace as far as that is known.
    pub fn pod(pod: &'a Pod, namespace: Option<&Namespace>) -> Self {
        let mut namespace_labels = namespace.map_or_else(Labels::new, |one| labels::of(&one.metadata.labels).clone());
        namespace_labels.insert(NAMESPACE_NAME.to_owned(), namespace_of(&pod.metadata).to_owned());
        Self { pod: Some(pod), namespace_labels, addresses: pod_addresses(pod) }
    }

    /// An address that is no pod's.
    pub fn address(ip: IpAddr) -> Self {
        Self { pod: None, namespace_labels: Labels::new(), addresses: vec![ip] }
    }

    fn namespace(&self) -> &str {
        self.pod.map_or("", |pod| namespace_of(&pod.metadata))
    }

    /// A pod with a network of its own: others are neither filtered nor found by their labels.
    fn own_network(&self) -> Option<&'a Pod> {
        self.pod.filter(|pod| pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true)))
    }
}

fn namespace_of(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

/// What policies say of a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// None is about it: it passes.
    NotSelected,
    /// This one lets it pass.
    Admitted(&'a NetworkPolicy),
    /// These select the pod, and none lets it pass. Never empty.
    Refused(Vec<&'a NetworkPolicy>),
}

impl Verdict<'_> {
    /// Whether it passes.
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// What policies say of a TCP connection to a port, at the subject's end of it: from `peer` for [`Direction::Ingress`], to
/// `peer` for [`Direction::Egress`]. Policies of other namespaces are passed over.
pub fn verdict<'a>(
    policies: impl IntoIterator<Item = &'a NetworkPolicy>,
    direction: Direction,
    subject: &End<'_>,
    peer: &End<'_>,
    port: u16,
) -> Verdict<'a> {
    let selecting: Vec<&NetworkPolicy> =
        policies.into_iter().filter(|policy| selects(policy, direction, subject)).collect();
    if selecting.is_empty() {
        return Verdict::NotSelected;
    }
    match selecting.iter().find(|policy| admits(policy, direction, subject, peer, port)) {
        Some(policy) => Verdict::Admitted(policy),
        None => Verdict::Refused(selecting),
    }
}

/// Whether a policy filters a pod in a direction.
pub fn selects(policy: &NetworkPolicy, direction: Direction, subject: &End<'_>) -> bool {
    let Some(pod) = subject.own_network() else { return false };
    let Some(spec) = &policy.spec else { return false };
    let selector = spec.pod_selector.clone().unwrap_or_default();
    filters(spec, direction)
        && namespace_of(&policy.metadata) == namespace_of(&pod.metadata)
        && labels::selects(&selector, labels::of(&pod.metadata.labels))
}

/// Whether a policy is about a direction. Without `policyTypes` it is about what reaches pods, and about what they reach where
/// it has rules for that.
fn filters(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match (spec.policy_types.as_deref(), direction) {
        (Some([_, ..]), _) => spec.policy_types.iter().flatten().any(|one| one == direction.as_str()),
        (_, Direction::Ingress) => true,
        (_, Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// A rule of either direction.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .map(|one| Rule {
                peers: one.from.as_deref().unwrap_or_default(),
                ports: one.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .map(|one| Rule {
                peers: one.to.as_deref().unwrap_or_default(),
                ports: one.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// Whether a rule of a policy lets a connection pass. The policy is taken to select the subject.
fn admits(policy: &NetworkPolicy, direction: Direction, subject: &End<'_>, peer: &End<'_>, port: u16) -> bool {
    // Ports are those of the end that is reached.
    let reached = match direction {
        Direction::Ingress => subject,
        Direction::Egress => peer,
    };
    let own = namespace_of(&policy.metadata);
    policy.spec.iter().flat_map(|spec| rules(spec, direction)).any(|rule| {
        (rule.ports.is_empty() || rule.ports.iter().any(|one| has_port(one, reached, port)))
            && (rule.peers.is_empty() || rule.peers.iter().any(|one| is_peer(one, own, peer)))
    })
}

fn has_port(written: &NetworkPolicyPort, reached: &End<'_>, port: u16) -> bool {
    if written.protocol.as_deref().is_some_and(|protocol| !matches!(protocol, "" | "TCP")) {
        return false;
    }
    match (&written.port, written.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(port)),
        (Some(IntOrString::Int(only)), None) => *only == i32::from(port),
        (Some(IntOrString::String(name)), _) => named_ports(reached).any(|(own, number)| own == name && number == port),
    }
}

/// The TCP ports that a pod's containers name.
fn named_ports<'a>(end: &End<'a>) -> impl Iterator<Item = (&'a str, u16)> {
    let spec = end.pod.and_then(|pod| pod.spec.as_ref());
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|one| one.ports.iter().flatten());
    let is_tcp = |protocol: Option<&str>| matches!(protocol, None | Some("" | "TCP"));
    ports
        .filter(move |port| is_tcp(port.protocol.as_deref()))
        .filter_map(|port| Some((port.name.as_deref()?, u16::try_from(port.container_port).ok()?)))
}

fn is_peer(written: &NetworkPolicyPeer, own_namespace: &str, peer: &End<'_>) -> bool {
    if let Some(block) = &written.ip_block {
        return peer.addresses.iter().any(|ip| is_in(block, *ip));
    }
    let Some(pod) = peer.own_network() else { return false };
    let is_there = match &written.namespace_selector {
        Some(selector) => labels::selects(selector, &peer.namespace_labels),
        None => peer.namespace() == own_namespace,
    };
    let selects = |selector| labels::selects(selector, labels::of(&pod.metadata.labels));
    is_there && written.pod_selector.as_ref().is_none_or(selects)
}

/// A block that cannot be read holds nothing, and one that is excepted and cannot be read everything.
fn is_in(block: &IPBlock, ip: IpAddr) -> bool {
    let within = |text: &str| text.parse::<IpNet>().ok().map(|net| net.contains(&ip));
    within(&block.cidr) == Some(true) && block.except.iter().flatten().all(|one| within(one) == Some(false))
}

/// The ports at which a policy's rules for a direction let a peer reach the end that is reached, 15008 aside; `declared` is
/// what stands for rules that name no port.
pub fn ports_admitted(
    policy: &NetworkPolicy,
    direction: Direction,
    subject: &End<'_>,
    peer: &End<'_>,
    declared: &[u16],
) -> Vec<u16> {
    let reached = match direction {
        Direction::Ingress => subject,
        Direction::Egress => peer,
    };
    let named = |port: &NetworkPolicyPort| match &port.port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => named_ports(reached).find(|(own, _)| own == name).map(|(_, number)| number),
        None => None,
    };
    let written = policy.spec.iter().flat_map(|spec| rules(spec, direction)).flat_map(|rule| rule.ports);
    let mut ports: Vec<u16> = written.filter_map(named).chain(declared.iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.retain(|port| *port != TUNNEL_PORT && admits(policy, direction, subject, peer, *port));
    ports
}

/// What lets tunnels pass where a policy lets connections to applications pass: a policy to be applied beside it, since policies
/// add up. Each rule's peers are let through to port 15008, and `waypoints` besides; who may ask what of these is for
/// AuthorizationPolicies to say. `None` where the policy is not about the direction.
pub fn mended(policy: &NetworkPolicy, direction: Direction, waypoints: &[NetworkPolicyPeer]) -> Option<NetworkPolicy> {
    let spec = policy.spec.as_ref().filter(|spec| filters(spec, direction))?;
    let ports = || {
        let tunnel = NetworkPolicyPort {
            port: Some(IntOrString::Int(i32::from(TUNNEL_PORT))),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        };
        Some(vec![tunnel])
    };
    let all = rules(spec, direction);
    let may_be_tcp = |rule: &&Rule<'_>| {
        let is_tcp = |one: &NetworkPolicyPort| matches!(one.protocol.as_deref(), None | Some("" | "TCP"));
        rule.ports.is_empty() || rule.ports.iter().any(is_tcp)
    };
    let concerned: Vec<&Rule<'_>> = all.iter().filter(may_be_tcp).collect();
    let everybody = concerned.iter().any(|rule| rule.peers.is_empty());
    let mut peers: Vec<NetworkPolicyPeer> = Vec::new();
    if !everybody {
        for peer in concerned.iter().flat_map(|rule| rule.peers).chain(waypoints) {
            if !peers.contains(peer) {
                peers.push(peer.clone());
            }
        }
        if peers.is_empty() {
            return None;
        }
    }
    let peers = (!everybody).then_some(peers);
    let mut mended = NetworkPolicySpec {
        pod_selector: Some(spec.pod_selector.clone().unwrap_or_default()),
        policy_types: Some(vec![direction.as_str().to_owned()]),
        ..NetworkPolicySpec::default()
    };
    match direction {
        Direction::Ingress => mended.ingress = Some(vec![NetworkPolicyIngressRule { from: peers, ports: ports() }]),
        Direction::Egress => mended.egress = Some(vec![NetworkPolicyEgressRule { to: peers, ports: ports() }]),
    }
    let suffix = match direction {
        Direction::Ingress => "hbone-in",
        Direction::Egress => "hbone-out",
    };
    let name = format!("{}-{suffix}", policy.metadata.name.as_deref().unwrap_or_default());
    let metadata =
        ObjectMeta { name: Some(name), namespace: policy.metadata.namespace.clone(), ..ObjectMeta::default() };
    Some(NetworkPolicy { metadata, spec: Some(mended) })
}

#[cfg(test)]
mod tests;
