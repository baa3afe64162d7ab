//! The policy by which a service's endpoints take connections to its ports from its waypoint and from nobody else, so that
//! dialling a pod's address is no way round what the waypoint enforces. Kubelets' probes are not subject to policies.

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stillmesh_core::model::{Action, Clause, Identity, Match, Policy, PolicyKey, Rule, Scope, ServiceKey, StringMatch};

use super::endpoints::endpoint_ports;
use super::service::tcp_ports;
use crate::labels;

/// Annotation of a Service that opts out.
pub const BYPASS: &str = "stillmesh.io/waypoint-bypass";
/// The one thing it may say: endpoints take connections from anybody whom L4 policies let pass.
pub const ALLOW: &str = "allow";

/// No user's object can have such a name: Kubernetes names have no `_`.
const PREFIX: &str = "stillmesh_waypoint_only_";

/// The key of a service's policy, whether there is one or not.
pub fn waypoint_only_key(service: &ServiceKey) -> PolicyKey {
    let name = service.hostname.split('.').next().unwrap_or_default();
    PolicyKey::new(service.namespace.clone(), format!("{PREFIX}{name}"))
}

/// The name of the service that a policy of such a name is about.
pub fn waypoint_only_service(policy: &str) -> Option<&str> {
    policy.strip_prefix(PREFIX)
}

/// Whether a service names ports that its endpoints define, so that [`waypoint_only`] depends on these.
pub fn has_named_ports(service: &Service) -> bool {
    let is_named = |port: &ServicePort| matches!(port.target_port, Some(IntOrString::String(_)));
    service.spec.as_ref().is_some_and(|spec| tcp_ports(spec).any(is_named))
}

/// The policy of a service whose waypoints run as these; `None` where the service opts out or has no port.
pub fn waypoint_only<'a>(
    key: &ServiceKey,
    service: &Service,
    endpoints: impl Iterator<Item = &'a Pod>,
    waypoints: &[Identity],
) -> Option<Policy> {
    if labels::of(&service.metadata.annotations).get(BYPASS).is_some_and(|text| text == ALLOW) {
        return None;
    }
    let everywhere = tcp_ports(service.spec.as_ref()?).filter_map(|port| match &port.target_port {
        None | Some(IntOrString::Int(0)) => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(_)) => None,
    });
    let on_pods = endpoints.flat_map(|pod| endpoint_ports(service, pod)).map(|port| port.target_port);
    let mut ports: Vec<u16> = everywhere.chain(on_pods).filter(|port| *port != 0).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return None;
    }
    let matched = Match {
        not_principals: waypoints.iter().map(|one| StringMatch::Exact(one.principal().into())).collect(),
        destination_ports: ports,
        ..Match::default()
    };
    Some(Policy {
        key: waypoint_only_key(key),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![matched] }] }],
        dry_run: false,
        unreadable: None,
        order: None,
    })
}
