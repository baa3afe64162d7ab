//! Objects to the model that nodes get (contract 4.3, "what istiod fills", 5.3 and 5.4).
//!
//! Every function is total: an object that means nothing to a node becomes `None`, never a failure. What belongs
//! together (endpoints, attached policies) is joined by the caller and passed in, so that one changed object touches
//! few resources.

mod authorization;
mod destination_rule;
mod endpoints;
mod grpc_route;
mod hosts;
mod http_route;
mod peer_authentication;
mod quarantine;
mod request_authentication;
mod request_authorization;
mod route;
mod service;
mod stream_route;
mod targets;
mod telemetry;
mod virtual_service;
mod waypoint_only;
mod workload;

pub use authorization::{Authorization, authorization};
pub(crate) use destination_rule::destination_rule_flaw;
pub use destination_rule::{Destined, Endpoints, destination_rule, destination_rule_names};
pub use endpoints::{SliceEndpoints, endpoint_ports, pod_serves, slice_endpoints, slice_ports, slice_service};
pub use grpc_route::grpc_route;
pub use http_route::http_route;
pub use peer_authentication::{
    Level, attached_policy, level, oldest, parent_is_strict, port_policy, port_policy_key, static_strict_key,
    static_strict_policy,
};
pub use quarantine::{from_quarantine, from_quarantine_key, of_quarantine, of_quarantine_key};
pub use request_authentication::{authentication_targets, request_authentication};
pub use request_authorization::{RequestAuthorization, guards, policy_targets, request_authorization};
pub use route::{References, Routed};
pub use service::{port_protocol, service, service_key};
pub use stream_route::{tcp_route, tls_route};
pub use targets::{ACCEPTED, MOST_TARGETS, Target, Targets, targets};
pub use telemetry::{Providers, telemetry, telemetry_targets};
pub(crate) use virtual_service::virtual_service_flaws;
pub use virtual_service::{Virtual, delegates, virtual_service, virtual_service_names};
pub use waypoint_only::{
    ALLOW as BYPASS_ALLOW, BYPASS, has_named_ports, waypoint_only, waypoint_only_key, waypoint_only_service,
};
pub use workload::{Attached, locality, owner, pod_addresses, pod_is_ready, slice_workload, workload, workload_uid};

use stillmesh_core::model::{Str, TrustDomain};

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// This cluster's name, for example `Kubernetes`.
    pub cluster: Str,
    /// The network that this cluster's pods are on; may be empty.
    pub network: Str,
    /// The domain of services, for example `cluster.local`.
    pub domain: Str,
    /// The trust domain of this cluster's identities.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: Str,
    /// Whether policies annotated `istio.io/dry-run` are sent to nodes, which only log them. Istio's default is to
    /// reject them (contract 5.3).
    pub dry_run: bool,
    /// Whether pods are connected without a tunnel where both ends are on one node, in namespaces that say nothing of it.
    pub same_node: bool,
}

impl Default for Mesh {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".into(),
            network: "".into(),
            domain: "cluster.local".into(),
            trust_domain: TrustDomain::default(),
            root_namespace: "istio-system".into(),
            dry_run: false,
            same_node: false,
        }
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it, which is how Istio reads annotations.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
