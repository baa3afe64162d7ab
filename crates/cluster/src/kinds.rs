//! Which types stand behind the kinds, and how their objects are read.
//!
//! Kinds of Kubernetes itself are what the server says they are. The mesh's own kinds are read from the plain JSON by
//! the same checks as manifests: one bad object must not hide the others of its kind.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use stillmesh_k8s::gateway::grpc_route::GrpcRoute;
use stillmesh_k8s::gateway::http_route::{HttpRoute, ReferenceGrant};
use stillmesh_k8s::gateway::stream_route::{TcpRoute, TlsRoute};
use stillmesh_k8s::gateway::{Gateway, GatewayClass};
use stillmesh_k8s::istio::destination_rule::DestinationRule;
use stillmesh_k8s::istio::telemetry::Telemetry;
use stillmesh_k8s::istio::virtual_service::VirtualService;
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use stillmesh_k8s::steering::{Bypass, Quarantine};
use stillmesh_k8s::{Kind, Position, Unusable, parse};
use tokio::task::JoinSet;

use crate::source::{Follower, Found, Watch};

/// An object as it comes from the server.
pub(crate) trait Read: Resource + Clone + DeserializeOwned + Debug + Send + 'static {
    /// Makes it one of ours.
    fn read(self) -> Found;
}

macro_rules! typed {
    ($($kind:ident),+) => {
        $(impl Read for $kind {
            fn read(self) -> Found {
                Found { object: Some(self.into()), findings: Vec::new(), unusable: None }
            }
        })+
    };
}

typed!(Namespace, Node, ServiceAccount, ConfigMap, Secret, Pod, Deployment, Service, EndpointSlice);
typed!(HorizontalPodAutoscaler, PodDisruptionBudget, NetworkPolicy);

impl Read for DynamicObject {
    fn read(mut self) -> Found {
        self.metadata.managed_fields = None;
        let value = serde_json::to_value(&self).unwrap_or_default();
        let mut found = parse::documents("", &value.to_string());
        for finding in &mut found.findings {
            // Lines of a text that nobody wrote.
            finding.at = Position::file("");
        }
        let object = found.objects.pop().map(|placed| placed.object);
        let unusable = if object.is_none() { Unusable::read(&value, &found.findings) } else { None };
        Found { object, findings: found.findings, unusable }
    }
}

/// Starts following a watch's objects.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    client: Client,
    watch: &Watch,
    config: watcher::Config,
    follower: Follower,
) {
    macro_rules! global {
        ($kind:ty) => {{
            tasks.spawn(follower.follow(watcher(Api::<$kind>::all(client), config)));
        }};
    }
    macro_rules! namespaced {
        ($kind:ty) => {{
            let api = match watch.namespace() {
                Some(namespace) => Api::<$kind>::namespaced(client, namespace),
                None => Api::<$kind>::all(client),
            };
            tasks.spawn(follower.follow(watcher(api, config)));
        }};
    }
    macro_rules! checked {
        ($kind:ty) => {{
            let resource = ApiResource::erase::<$kind>(&());
            let api = match watch.namespace() {
                Some(namespace) => Api::<DynamicObject>::namespaced_with(client, namespace, &resource),
                None => Api::<DynamicObject>::all_with(client, &resource),
            };
            tasks.spawn(follower.follow(watcher(api, config)));
        }};
    }
    match watch.kind {
        Kind::Namespace => global!(Namespace),
        Kind::Node => global!(Node),
        Kind::ServiceAccount => namespaced!(ServiceAccount),
        Kind::ConfigMap => namespaced!(ConfigMap),
        Kind::Secret => namespaced!(Secret),
        Kind::Pod => namespaced!(Pod),
        Kind::Deployment => namespaced!(Deployment),
        Kind::HorizontalPodAutoscaler => namespaced!(HorizontalPodAutoscaler),
        Kind::PodDisruptionBudget => namespaced!(PodDisruptionBudget),
        Kind::Service => namespaced!(Service),
        Kind::EndpointSlice => namespaced!(EndpointSlice),
        Kind::NetworkPolicy => namespaced!(NetworkPolicy),
        Kind::AuthorizationPolicy => checked!(AuthorizationPolicy),
        Kind::PeerAuthentication => checked!(PeerAuthentication),
        Kind::RequestAuthentication => checked!(RequestAuthentication),
        Kind::GatewayClass => checked!(GatewayClass),
        Kind::Gateway => checked!(Gateway),
        Kind::GrpcRoute => checked!(GrpcRoute),
        Kind::VirtualService => checked!(VirtualService),
        Kind::DestinationRule => checked!(DestinationRule),
        Kind::Telemetry => checked!(Telemetry),
        Kind::HttpRoute => checked!(HttpRoute),
        Kind::TlsRoute => checked!(TlsRoute),
        Kind::TcpRoute => checked!(TcpRoute),
        Kind::ReferenceGrant => checked!(ReferenceGrant),
        Kind::Bypass => checked!(Bypass),
        Kind::Quarantine => checked!(Quarantine),
    }
}
