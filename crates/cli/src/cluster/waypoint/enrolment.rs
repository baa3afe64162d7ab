//! What binding a namespace to a waypoint does to the policies of its pods: nodes then see the waypoint as the client,
//! not whoever stands behind it. Asked of the engine itself: the controller's builder and core's decision.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde_json::Value;
use stillmesh_controller::build::Builder;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide::authorize;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Action, Identity, Match, Policy, PolicyKey, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_k8s::translate::Mesh;

use crate::cluster::objects::{Objects, Resource};
use crate::offline::{self, settings};

/// What a policy would then do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// Refuse all that comes through the waypoint.
    Refuses,
    /// Let pass whom it refuses now.
    Misses,
}

/// A policy that would do something else than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Concern {
    policy: PolicyKey,
    effect: Effect,
    waypoint: Identity,
    /// Names of pods that it applies to, in order.
    pods: Vec<String>,
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, effect, waypoint, pods } = self;
        write!(f, "AuthorizationPolicy {}/{} ", policy.namespace, policy.name)?;
        match effect {
            Effect::Refuses => write!(f, "would refuse all that comes through the waypoint")?,
            Effect::Misses => write!(f, "would let pass whom it refuses now")?,
        }
        write!(f, ": its pods would see clients as {waypoint} (")?;
        let more = pods.len().saturating_sub(SHOWN);
        let shown: Vec<&str> = pods.iter().take(SHOWN).map(String::as_str).collect();
        write!(f, "{}", shown.join(", "))?;
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        f.write_str(")")
    }
}

/// So many pods are named.
const SHOWN: usize = 3;

/// Asks the cluster for what matters and says what would change.
pub(super) async fn look(
    objects: &Objects,
    mesh_namespace: &str,
    namespace: &str,
    waypoint: &str,
) -> anyhow::Result<Vec<Concern>> {
    let mesh = settings::assumed(objects, mesh_namespace).await?;
    let mut all = Vec::new();
    let root = &*mesh.root_namespace;
    all.extend(objects.get(&Resource::new("v1", "Namespace"), "", namespace).await?);
    all.extend(objects.get(&Resource::new("v1", "ConfigMap"), root, "istio").await?);
    for (version, kind) in [("v1", "Pod"), ("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice")] {
        all.extend(objects.list(&Resource::new(version, kind), namespace, "").await?);
    }
    for place in BTreeSet::from([namespace, root]) {
        all.extend(objects.list(&Resource::new("security.istio.io/v1", "AuthorizationPolicy"), place, "").await?);
    }
    Ok(concerns(&all, mesh, namespace, waypoint))
}

/// What would change. Pure.
fn concerns(all: &[Value], mesh: Mesh, namespace: &str, waypoint: &str) -> Vec<Concern> {
    let mut builder = Builder::new(mesh);
    let (snapshot, workloads) = offline::decided(&mut builder, all.iter().flat_map(offline::placed));
    let identity = Identity::new(builder.mesh().trust_domain.clone(), namespace, waypoint);
    let mut found: Vec<Concern> = Vec::new();
    for workload in workloads.iter().filter(|workload| &*workload.namespace == namespace) {
        for (policy, effect) in effects(&snapshot, workload, &identity) {
            match found.iter_mut().find(|one| one.policy == policy && one.effect == effect) {
                Some(concern) => concern.pods.push(workload.name.to_string()),
                None => found.push(Concern {
                    policy,
                    effect,
                    waypoint: identity.clone(),
                    pods: vec![workload.name.to_string()],
                }),
            }
        }
    }
    for concern in &mut found {
        concern.pods.sort_unstable();
    }
    found.sort_by(|one, other| (&one.policy, one.effect).cmp(&(&other.policy, other.effect)));
    found
}

/// What policies do to the waypoint at a workload.
fn effects(snapshot: &Snapshot, workload: &Workload, waypoint: &Identity) -> BTreeSet<(PolicyKey, Effect)> {
    let policies: Vec<&Arc<Policy>> = snapshot.policies_of(workload).collect();
    let by_source = |key: &PolicyKey| policies.iter().any(|policy| policy.key == *key && asks_for_source(policy));
    let address = workload.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut found = BTreeSet::new();
    for port in offline::served_ports(workload) {
        let verdict = authorize(
            snapshot,
            &InboundAttrs {
                destination: workload,
                upstream: SocketAddr::new(address, port),
                // Wherever its pods will be.
                source_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                source_identity: Some(waypoint),
            },
        );
        let refusing = match verdict.reason {
            Reason::DeniedBy { policy, .. } => vec![policy],
            Reason::NoAllowMatched { policies } => policies,
            _ => Vec::new(),
        };
        found.extend(refusing.into_iter().filter(by_source).map(|policy| (policy, Effect::Refuses)));
    }
    let refused: BTreeSet<PolicyKey> = found.iter().map(|(policy, _)| policy.clone()).collect();
    let misses = policies.iter().filter(|policy| {
        policy.action == Action::Deny && !policy.dry_run && asks_for_source(policy) && !refused.contains(&policy.key)
    });
    found.extend(misses.map(|policy| (policy.key.clone(), Effect::Misses)));
    found
}

/// Whether who the client is decides something.
fn asks_for_source(policy: &Policy) -> bool {
    let asks = |one: &Match| {
        !(one.namespaces.is_empty()
            && one.not_namespaces.is_empty()
            && one.principals.is_empty()
            && one.not_principals.is_empty()
            && one.source_ips.is_empty()
            && one.not_source_ips.is_empty()
            && one.service_accounts.is_empty()
            && one.not_service_accounts.is_empty())
    };
    policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches).any(asks)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(policies: &[Value]) -> Vec<String> {
        let mut all = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "namespace": "shop", "uid": "1", "labels": {"app": "web"},
                    "annotations": {"ambient.istio.io/redirection": "enabled"}},
                "spec": {"nodeName": "n", "serviceAccountName": "web", "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"clusterIP": "10.9.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        ];
        all.extend_from_slice(policies);
        concerns(&all, Mesh::default(), "shop", "waypoint").iter().map(ToString::to_string).collect()
    }

    fn policy(namespace: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    }

    fn from(principal: &str) -> Value {
        json!([{"from": [{"source": {"principals": [principal]}}]}])
    }

    const AS: &str = "its pods would see clients as spiffe://cluster.local/ns/shop/sa/waypoint (web)";

    #[test]
    fn policies_about_clients_are_named_once_the_waypoint_stands_between() {
        let page = from("cluster.local/ns/shop/sa/page");
        let refuses =
            |name: &str| format!("AuthorizationPolicy {name} would refuse all that comes through the waypoint: {AS}");
        let misses = |name: &str| format!("AuthorizationPolicy {name} would let pass whom it refuses now: {AS}");
        assert_eq!(
            told(&[policy("shop", "only-page", json!({"action": "ALLOW", "rules": page}))]),
            [refuses("shop/only-page")]
        );
        assert_eq!(
            told(&[policy("shop", "no-page", json!({"action": "DENY", "rules": page}))]),
            [misses("shop/no-page")]
        );
        let selected = json!({"selector": {"matchLabels": {"app": "web"}}, "action": "ALLOW", "rules": page});
        assert_eq!(told(&[policy("shop", "one", selected)]), [refuses("shop/one")]);
        assert_eq!(
            told(&[policy(
                "istio-system",
                "all",
                json!({"action": "DENY", "rules": [{"from": [{"source": {"notNamespaces": ["shop"]}}]}]})
            )]),
            [misses("istio-system/all")]
        );
    }

    #[test]
    fn policies_that_do_as_before_are_not_named() {
        let of_waypoint = from("cluster.local/ns/shop/sa/waypoint");
        let by_port = json!([{"to": [{"operation": {"ports": ["1"]}}]}]);
        let elsewhere =
            json!({"selector": {"matchLabels": {"app": "other"}}, "action": "ALLOW", "rules": from("x/ns/y/sa/z")});
        let at_waypoint = json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}],
            "action": "ALLOW", "rules": from("x/ns/y/sa/z")});
        for spec in [
            json!({"action": "ALLOW", "rules": of_waypoint}),
            json!({"action": "DENY", "rules": by_port}),
            // It refuses everybody now as well.
            json!({"action": "ALLOW", "rules": by_port}),
            elsewhere,
            at_waypoint,
        ] {
            assert_eq!(told(&[policy("shop", "p", spec.clone())]), Vec::<String>::new(), "{spec}");
        }
    }
}
