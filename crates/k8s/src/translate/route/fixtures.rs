//! What tests of routes need.

use std::sync::Arc;

use serde_json::{Value, json};

use stillmesh_core::model::http::RouteKind;
use stillmesh_core::model::{AppProtocol, Gateway, GatewayDestination, NetworkAddress, Str};

use super::{References, Routed};
use crate::gateway::Gateway as Waypoint;
use crate::gateway::binding::{Binding, Named};
use crate::istio::virtual_service::VirtualService;
use crate::object::Kind;

/// Services `page` (80, 8080), `mixed` (80, 8080), `details` (9080) and `bare` (no port) of namespace `shop`; `page` of `else`,
/// which is open to HTTPRoutes and TLSRoutes of `shop` and bound to a waypoint of `shop`, and of `closed`. GRPCRoutes and
/// TLSRoutes take port 8080 of `mixed`, and all of `page` in `closed` for clients of `shop`. Port 80 of `page` is HTTP, that of
/// `mixed` TCP, and 8080 of `mixed` TLS. Gateway `w` of `shop` is a waypoint.
pub(in crate::translate) struct World;

impl References for World {
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>> {
        match (namespace, name) {
            ("shop" | "else" | "closed", "page") | ("shop", "mixed") => Some(vec![80, 8080]),
            ("shop", "details") => Some(vec![9080]),
            ("shop", "bare") => Some(Vec::new()),
            _ => None,
        }
    }

    fn protocol(&self, namespace: &str, name: &str, port: u16) -> AppProtocol {
        match (namespace, name, port) {
            ("shop", "page", 80) => AppProtocol::Http1,
            ("shop", "mixed", 80) => AppProtocol::Tcp,
            ("shop", "mixed", 8080) => AppProtocol::Tls,
            _ => AppProtocol::Unknown,
        }
    }

    fn virtual_service(&self, namespace: &str, name: &str) -> Option<Arc<VirtualService>> {
        let spec = match (namespace, name) {
            ("shop", "inner") => json!({"http": [
                {"name": "deep", "match": [{"uri": {"prefix": "/api/v2"}}, {"headers": {"x": {"exact": "1"}}}],
                    "route": [{"destination": {"host": "page", "port": {"number": 80}}}], "timeout": "2s"},
                {"match": [{"uri": {"exact": "/other"}}], "redirect": {"uri": "/"}},
                {"route": [{"destination": {"host": "details"}}]}]}),
            ("else", "abroad") => json!({"http": [
                {"route": [{"destination": {"host": "page", "port": {"number": 80}}}]}]}),
            ("else", "hidden") => json!({"exportTo": ["."], "http": [{"redirect": {"uri": "/"}}]}),
            ("shop", "hosted") => json!({"hosts": ["page"], "http": [{"redirect": {"uri": "/"}}]}),
            ("shop", "nested") => json!({"http": [{"delegate": {"name": "inner"}}]}),
            ("shop", "broken") => json!({"http": [{"redirect": {"redirectCode": 200}}]}),
            _ => return None,
        };
        let written = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        serde_json::from_value(written).ok().map(Arc::new)
    }

    fn services(&self) -> Vec<(Str, Str)> {
        let all = [("shop", "page"), ("shop", "mixed"), ("shop", "details"), ("else", "page"), ("closed", "page")];
        all.map(|(namespace, name)| (namespace.into(), name.into())).into()
    }

    fn waypoint(&self, namespace: &str, name: &str) -> Option<(Arc<Waypoint>, &'static str)> {
        let listeners = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
        let written = json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": listeners}});
        let is_there = (namespace, name) == ("shop", "w");
        is_there
            .then(|| serde_json::from_value(written).ok())
            .flatten()
            .map(|gateway| (Arc::new(gateway), "istio.io/mesh-controller"))
    }

    fn binding(&self, namespace: &str, name: &str) -> Binding {
        let waypoint = match (namespace, name) {
            ("shop", "details") => Named { namespace: "shop".into(), name: "w".into() },
            ("else", _) => Named { namespace: "shop".into(), name: "other".into() },
            _ => return Binding::Unasked,
        };
        let address = NetworkAddress::new("", [10, 0, 0, 9].into());
        let destination = Gateway {
            destination: GatewayDestination::Address(address),
            hbone_mtls_port: 15008.try_into().expect("a port"),
        };
        Binding::Bound { waypoint, destination, ready: true }
    }

    fn is_taken(&self, by: RouteKind, consumer: Option<&str>, namespace: &str, name: &str, port: Option<u16>) -> bool {
        matches!(by, RouteKind::Grpc | RouteKind::Tls)
            && ((consumer, namespace, name, port) == (None, "shop", "mixed", Some(8080))
                || (consumer, namespace, name) == (Some("shop"), "closed", "page"))
    }

    fn is_granted(&self, kind: Kind, from: &str, namespace: &str, name: &str) -> bool {
        matches!(kind, Kind::HttpRoute | Kind::TlsRoute) && (from, namespace, name) == ("shop", "else", "page")
    }
}

pub(in crate::translate) fn page() -> Value {
    json!({"group": "", "kind": "Service", "name": "page"})
}

/// Type, status and reason of what is said to the first parent about the route itself.
pub(in crate::translate) fn said(routed: &Routed) -> Vec<(&'static str, &'static str, &'static str)> {
    assert_eq!(routed.parents[0].conditions[2].type_, "ResolvedWaypoints");
    routed.parents[0].conditions[..2].iter().map(|one| (one.type_, one.status, one.reason)).collect()
}

pub(in crate::translate) fn message(routed: &Routed) -> String {
    routed.parents[0].conditions.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ")
}
