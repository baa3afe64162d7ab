//! The kinds of objects that the mesh reads, behind one type.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, Serializer};

use crate::finding::Position;
use crate::gateway::grpc_route::GrpcRoute;
use crate::gateway::http_route::{HttpRoute, ReferenceGrant};
use crate::gateway::stream_route::{TcpRoute, TlsRoute};
use crate::gateway::{Gateway, GatewayClass};
use crate::istio::destination_rule::DestinationRule;
use crate::istio::telemetry::Telemetry;
use crate::istio::virtual_service::VirtualService;
use crate::istio::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::steering::{Bypass, Quarantine};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

macro_rules! kinds {
    ($($kind:ident { $text:literal, $versions:expr, $namespaced:literal }),+ $(,)?) => {
        /// What an object is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("A ", $text, ".")] $kind,)+
        }

        impl Kind {
            /// Every kind that is read.
            pub const ALL: &[Kind] = &[$(Kind::$kind),+];

            /// Its name, as written under `kind`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text),+ }
            }

            /// The `apiVersion`s that are read; the first is the one written.
            pub const fn api_versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => $versions),+ }
            }

            /// Whether its objects live in namespaces.
            pub const fn namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced),+ }
            }
        }

        /// One object of a kind that is read. Cheap to clone: the content is shared.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("A ", $text, ".")] $kind(Arc<$kind>),)+
        }

        impl Object {
            /// What it is.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),+ }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),+ }
            }

            /// Its metadata, to be changed; the content is copied if it is shared.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => &mut Arc::make_mut(object).metadata),+ }
            }
        }

        impl Serialize for Object {
            /// As Kubernetes writes it, `apiVersion` and `kind` included.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self { $(Self::$kind(object) => object.serialize(serializer)),+ }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })+
    };
}

kinds! {
    Namespace { "Namespace", &["v1"], false },
    Node { "Node", &["v1"], false },
    ServiceAccount { "ServiceAccount", &["v1"], true },
    ConfigMap { "ConfigMap", &["v1"], true },
    Secret { "Secret", &["v1"], true },
    Pod { "Pod", &["v1"], true },
    Deployment { "Deployment", &["apps/v1"], true },
    HorizontalPodAutoscaler { "HorizontalPodAutoscaler", &["autoscaling/v2"], true },
    PodDisruptionBudget { "PodDisruptionBudget", &["policy/v1"], true },
    Service { "Service", &["v1"], true },
    EndpointSlice { "EndpointSlice", &["discovery.k8s.io/v1"], true },
    NetworkPolicy { "NetworkPolicy", &["networking.k8s.io/v1"], true },
    AuthorizationPolicy { "AuthorizationPolicy", &["security.istio.io/v1", "security.istio.io/v1beta1"], true },
    PeerAuthentication { "PeerAuthentication", &["security.istio.io/v1", "security.istio.io/v1beta1"], true },
    RequestAuthentication {
        "RequestAuthentication", &["security.istio.io/v1", "security.istio.io/v1beta1"], true
    },
    GatewayClass { "GatewayClass", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], false },
    Gateway { "Gateway", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], true },
    GrpcRoute { "GRPCRoute", &["gateway.networking.k8s.io/v1"], true },
    HttpRoute { "HTTPRoute", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], true },
    TlsRoute {
        "TLSRoute",
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha3",
            "gateway.networking.k8s.io/v1alpha2"
        ],
        true
    },
    TcpRoute { "TCPRoute", &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"], true },
    VirtualService {
        "VirtualService",
        &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"],
        true
    },
    DestinationRule {
        "DestinationRule",
        &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"],
        true
    },
    Telemetry { "Telemetry", &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"], true },
    ReferenceGrant {
        "ReferenceGrant", &["gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1"], true
    },
    Bypass { "Bypass", &["stillmesh.io/v1alpha1"], true },
    Quarantine { "Quarantine", &["stillmesh.io/v1alpha1"], true },
}

impl Kind {
    /// The kind of this name, exactly as written.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Object {
    /// Its namespace; empty for kinds that have none.
    pub fn namespace(&self) -> &str {
        if !self.kind().namespaced() {
            return "";
        }
        self.metadata().namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// What identifies it among all objects.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind(), self.namespace(), self.name())
    }
}

/// What identifies an object. Displays as `Service shop/page`, or `Namespace shop`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Builds the key; the namespace is dropped for kinds that have none.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {}/{}", self.kind, namespace, self.name),
        }
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An object and where it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The object.
    pub object: Object,
    /// Its first line.
    pub at: Position,
}
