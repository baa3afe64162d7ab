//! What a control plane in a cluster has besides: who calls ([`TokenReviews`]), the CA kept in a Secret
//! ([`Authorities`]), its roots in every namespace ([`Roots`]), waypoints ([`Gateways`]). Several replicas serve; one of them leads and writes.

mod authority;
mod gateways;
mod reviews;
mod rival;
mod roots;
mod summaries;

pub(crate) use authority::Authorities;
pub(crate) use gateways::Gateways;
pub(crate) use reviews::TokenReviews;
pub(crate) use roots::Roots;
pub(crate) use summaries::Summaries;

use stillmesh_cluster::Watch;
use stillmesh_k8s::gateway::revision;
use stillmesh_k8s::{Kind, mesh_config};

/// The Lease that the mesh's leader holds.
pub const LEASE: &str = "stillmesh-leader";

/// The Lease of a revision's own leader.
pub fn lease_of(revision: &str) -> String {
    let revision = if revision::is_default(revision) { revision::DEFAULT } else { revision };
    format!("{LEASE}-{revision}")
}

/// As whom the controller writes.
pub(crate) const MANAGER: &str = "stillmesh-controller";

/// The kinds that resources are built from, besides ConfigMap `istio` of the root namespace.
pub const KINDS: [Kind; 21] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::GrpcRoute,
    Kind::HttpRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Telemetry,
    Kind::ReferenceGrant,
    Kind::Bypass,
    Kind::Quarantine,
];

/// What resources are built from, as it is followed in a cluster.
pub fn watches(root_namespace: &str) -> Vec<Watch> {
    let mesh = Watch::named(Kind::ConfigMap, root_namespace, mesh_config::CONFIG_MAP);
    KINDS.into_iter().map(Watch::all).chain([mesh]).collect()
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
