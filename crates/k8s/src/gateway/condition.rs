//! What is said about Gateways, their classes, and to the parents of routes (contract 7.6).

use std::net::IpAddr;

use super::binding::service_name;
use super::class::{FEATURES, WAYPOINTS};
use super::http_route::{ParentRef, RouteParentStatus};
use super::{
    Address, Feature, Gateway, GatewayClass, GatewayClassStatus, GatewayStatus, HBONE, Listener, ListenerStatus,
};
use crate::istio::StatusCondition;
use crate::object::DEFAULT_NAMESPACE;
use crate::status::{Condition, merged};
use crate::translate::{Mesh, service_key};

/// As whom things are said to Services that are parents of routes. To waypoints they are said as who runs them.
pub const ROUTES: &str = "istio.io/gateway-controller";

/// What is said to one parent of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The parent.
    pub parent: ParentRef,
    /// As whom.
    pub controller: &'static str,
    /// What.
    pub conditions: Vec<Condition>,
}

/// How far a Gateway's objects are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Addresses of its Service.
    pub addresses: Vec<IpAddr>,
    /// Pods that take traffic.
    pub ready: u32,
    /// Why the objects cannot be made.
    pub problem: Option<String>,
    /// What is wrong with its overlays. What runs is as it was before.
    pub parameters: Option<String>,
}

/// The status that a class of ours should have; `None` where it has it. `now` is RFC 3339.
pub fn class_status(class: &GatewayClass, now: &str) -> Option<GatewayClassStatus> {
    let before = class.status.clone().unwrap_or_default();
    let message = "Handled by Stillmesh's controller".to_owned();
    let accepted = condition("Accepted", "True", "Accepted", message);
    let conditions = all(&before.conditions, &[accepted], class.metadata.generation, now);
    let supported_features = FEATURES.iter().map(|name| Feature { name: (*name).to_owned() }).collect();
    let after = GatewayClassStatus { conditions, supported_features };
    (after != before).then_some(after)
}

/// The entries of `status.parents` that a route should have: what is said to each of its parents that is a Service or a
/// waypoint of ours. `None` where it has them. What others have said, and to parents of other kinds, is left alone; what was
/// said to those that are parents no more goes. `now` is RFC 3339.
pub fn parents(
    before: &[RouteParentStatus],
    said: &[Said],
    generation: Option<i64>,
    now: &str,
) -> Option<Vec<RouteParentStatus>> {
    let mut after: Vec<RouteParentStatus> = before.iter().filter(|one| !is_ours(one)).cloned().collect();
    let ours =
        said.iter().enumerate().filter(|(at, one)| !said.iter().take(*at).any(|before| before.parent == one.parent));
    after.extend(ours.map(|(_, Said { parent, controller, conditions: said })| {
        let is_it = |one: &&RouteParentStatus| one.parent_ref == *parent && one.controller_name == *controller;
        let known = before.iter().find(is_it);
        // A condition that is not said any more goes.
        let known = known.map_or(&[][..], |one| &one.conditions);
        let known: Vec<_> = known.iter().filter(|one| said.iter().any(|new| new.type_ == one.type_)).cloned().collect();
        RouteParentStatus {
            parent_ref: parent.clone(),
            controller_name: (*controller).to_owned(),
            conditions: all(&known, said, generation, now),
        }
    }));
    let same = after.len() == before.len() && after.iter().all(|one| before.contains(one));
    (!same).then_some(after)
}

/// Whether it is us who say something to a parent: Istio speaks to Gateways as [`ROUTES`], and they are its own.
fn is_ours(one: &RouteParentStatus) -> bool {
    let is_waypoints = || WAYPOINTS.iter().any(|own| own.controller == one.controller_name);
    match one.parent_ref.is_service() {
        true => one.controller_name == ROUTES,
        false => one.parent_ref.is_gateway() && is_waypoints(),
    }
}

/// The status that a Gateway of ours should have; `None` where it has it. `now` is RFC 3339.
pub fn gateway_status(gateway: &Gateway, progress: &Progress, mesh: &Mesh, now: &str) -> Option<GatewayStatus> {
    let before = gateway.status.clone().unwrap_or_default();
    let generation = gateway.metadata.generation;
    let hostname = hostname(gateway, mesh);
    let accepted = accepted(gateway, progress);
    let programmed = programmed(gateway, progress, &hostname);
    let said = [accepted, programmed];
    let conditions = all(&before.conditions, &said, generation, now);
    let listeners = gateway.spec.listeners.iter().map(|listener| {
        let before = before.listeners.iter().find(|one| one.name == listener.name).cloned().unwrap_or_default();
        let conditions = all(&before.conditions, &of_listener(listener), generation, now);
        ListenerStatus { name: listener.name.clone(), conditions, ..before }
    });
    let listeners = listeners.collect();
    let after = GatewayStatus { addresses: addresses(progress, hostname), conditions, listeners };
    (after != before).then_some(after)
}

fn condition(type_: &'static str, status: &'static str, reason: &'static str, message: String) -> Condition {
    Condition { type_, status, reason, message }
}

/// Conditions with several in them.
fn all(before: &[StatusCondition], said: &[Condition], generation: Option<i64>, now: &str) -> Vec<StatusCondition> {
    let step = |all: Vec<StatusCondition>, one: &Condition| merged(&all, one, generation, now).unwrap_or(all);
    said.iter().fold(before.to_vec(), step)
}

/// What others reach a waypoint by.
pub fn hostname(gateway: &Gateway, mesh: &Mesh) -> String {
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    service_key(namespace, service_name(gateway), mesh).hostname.to_string()
}

fn addresses(progress: &Progress, hostname: String) -> Vec<Address> {
    if progress.addresses.is_empty() {
        return Vec::new();
    }
    let ips = progress.addresses.iter().map(|ip| Address { type_: "IPAddress".to_owned(), value: ip.to_string() });
    [Address { type_: "Hostname".to_owned(), value: hostname }].into_iter().chain(ips).collect()
}

fn accepted(gateway: &Gateway, progress: &Progress) -> Condition {
    let (status, reason, message) = if gateway.tunnel_listener().is_none() {
        let message = "a waypoint needs a listener with protocol HBONE at port 15008".to_owned();
        ("False", "ListenersNotValid", message)
    } else if !gateway.spec.addresses.is_empty() {
        ("False", "UnsupportedAddress", "spec.addresses: a waypoint has the addresses of its Service".to_owned())
    } else if let Some(problem) = &progress.parameters {
        ("False", "InvalidParameters", format!("{problem}; what runs stays as it was"))
    } else {
        ("True", "Accepted", "Resource accepted".to_owned())
    };
    condition("Accepted", status, reason, message)
}

fn programmed(gateway: &Gateway, progress: &Progress, hostname: &str) -> Condition {
    let (status, reason, message) = match progress {
        Progress { problem: Some(problem), .. } => ("False", "Invalid", format!("it cannot be run: {problem}")),
        // With an overlay that is refused, what ran goes on running.
        _ if progress.parameters.is_none() && accepted(gateway, progress).status == "False" => {
            ("False", "Invalid", "it is not accepted".to_owned())
        }
        Progress { addresses, parameters: Some(_), .. } if addresses.is_empty() => {
            ("False", "Invalid", "it is not accepted".to_owned())
        }
        Progress { addresses, .. } if addresses.is_empty() => {
            ("False", "AddressNotAssigned", "its Service has no address yet".to_owned())
        }
        Progress { ready: 0, .. } => ("False", "Pending", "none of its pods is ready".to_owned()),
        Progress { .. } => {
            let port = super::HBONE_PORT;
            ("True", "Programmed", format!("Resource programmed, assigned to service(s) {hostname}:{port}"))
        }
    };
    condition("Programmed", status, reason, message)
}

fn of_listener(listener: &Listener) -> [Condition; 4] {
    let fits = listener.protocol == HBONE;
    let (accepted, programmed) = if fits {
        (
            condition("Accepted", "True", "Accepted", "No errors found".to_owned()),
            condition("Programmed", "True", "Programmed", "No errors found".to_owned()),
        )
    } else {
        let message = format!("a waypoint does not listen for {}", listener.protocol);
        (
            condition("Accepted", "False", "UnsupportedProtocol", message.clone()),
            condition("Programmed", "False", "Invalid", message),
        )
    };
    let conflicted = condition("Conflicted", "False", "NoConflicts", "No errors found".to_owned());
    [accepted, conflicted, programmed, condition("ResolvedRefs", "True", "ResolvedRefs", "No errors found".to_owned())]
}

#[cfg(test)]
mod tests;
