//! What tests of routes need.

use serde_json::{Value, json};

use super::{References, Routed};
use crate::gateway::binding::Binding;
use crate::object::Kind;

/// Services `page` (80, 8080) and `details` (9080) of namespace `shop`, `page` of `else`, which is open to HTTPRoutes of `shop`.
/// GRPCRoutes take port 8080 of `page`, and all of it for clients of namespace `shop`.
pub(in crate::translate) struct World;

impl References for World {
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>> {
        match (namespace, name) {
            ("shop" | "else" | "closed", "page") => Some(vec![80, 8080]),
            ("shop", "details") => Some(vec![9080]),
            _ => None,
        }
    }

    fn binding(&self, _: &str, _: &str) -> Binding {
        Binding::Unasked
    }

    fn is_taken_by_grpc(&self, consumer: Option<&str>, namespace: &str, name: &str, port: Option<u16>) -> bool {
        (consumer, namespace, name, port) == (None, "shop", "page", Some(8080))
            || (consumer, namespace, name) == (Some("shop"), "closed", "page")
    }

    fn is_granted(&self, kind: Kind, from: &str, namespace: &str, name: &str) -> bool {
        (kind, from, namespace, name) == (Kind::HttpRoute, "shop", "else", "page")
    }
}

pub(in crate::translate) fn page() -> Value {
    json!({"group": "", "kind": "Service", "name": "page"})
}

/// Type, status and reason of what is said to the first parent about the route itself.
pub(in crate::translate) fn said(routed: &Routed) -> Vec<(&'static str, &'static str, &'static str)> {
    assert_eq!(routed.parents[0].1[2].type_, "ResolvedWaypoints");
    routed.parents[0].1[..2].iter().map(|one| (one.type_, one.status, one.reason)).collect()
}

pub(in crate::translate) fn message(routed: &Routed) -> String {
    routed.parents[0].1.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ")
}
