//! What policies for requests are attached to (contract 7.4): which of it is there, and which waypoints it means.

use std::fmt;

use stillmesh_core::model::{ServiceKey, Str};

use super::{Mesh, service_key};
use crate::gateway::binding::{Binding, Named};
use crate::istio::PolicyTargetReference;
use crate::status::Condition;

/// How many `targetRefs` a policy may have.
pub const MOST_TARGETS: usize = 16;

/// Something that a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A Service.
    Service(Named),
    /// A Gateway: all that this waypoint carries.
    Gateway(Named),
    /// A GatewayClass: all that its waypoints carry.
    Class(Str),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(named) => write!(f, "Service {named}"),
            Self::Gateway(named) => write!(f, "Gateway {named}"),
            Self::Class(name) => write!(f, "GatewayClass {name}"),
        }
    }
}

/// What a policy's targets are found by.
pub trait Targets {
    /// How a Service is bound; `None` where there is none of this name.
    fn service(&self, named: &Named) -> Option<Binding>;
    /// The name of the Service in front of a waypoint of ours; `None` where there is no such waypoint.
    fn gateway(&self, named: &Named) -> Option<Str>;
    /// The waypoints of a class, each with the name of its Service; `None` where the class is not one of waypoints.
    fn class(&self, name: &str) -> Option<Vec<(Named, Str)>>;
}

/// Reads what a policy in `namespace` is attached to; in its place what is wrong with a reference.
pub fn targets<'a>(
    refs: impl Iterator<Item = &'a PolicyTargetReference>,
    namespace: &str,
    mesh: &Mesh,
) -> Vec<Result<Target, String>> {
    refs.map(|one| target(one, namespace, mesh)).collect()
}

fn target(written: &PolicyTargetReference, namespace: &str, mesh: &Mesh) -> Result<Target, String> {
    let PolicyTargetReference { group, kind, name, .. } = written;
    let here = || Named { namespace: namespace.into(), name: name.as_str().into() };
    if written.namespace.as_deref().is_some_and(|other| !other.is_empty() && other != namespace) {
        return Err(format!("{kind} {name} is in another namespace: a policy is attached in its own"));
    }
    match (group.as_str(), kind.as_str()) {
        ("" | "core", "Service") => Ok(Target::Service(here())),
        ("gateway.networking.k8s.io", "Gateway") => Ok(Target::Gateway(here())),
        ("gateway.networking.k8s.io", "GatewayClass") if *namespace == *mesh.root_namespace => {
            Ok(Target::Class(name.as_str().into()))
        }
        ("gateway.networking.k8s.io", "GatewayClass") => Err(format!(
            "GatewayClass {name}: only policies of the root namespace ({}) are attached to classes",
            mesh.root_namespace
        )),
        (group, kind) => {
            Err(format!("{kind} {name} of group {group:?} is not supported: Service, Gateway and GatewayClass are"))
        }
    }
}

/// What a policy turned out to be attached to.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// As waypoints are told.
    pub services: Vec<ServiceKey>,
    bound: Vec<String>,
    /// By reason, in the order in which they come: the first is the condition's where nothing is bound.
    problems: Vec<(&'static str, String)>,
}

const INVALID: &str = "Invalid";
const NOT_FOUND: &str = "TargetNotFound";
const NOT_BOUND: &str = "AncestorNotBound";

impl Found {
    pub(super) fn new(refs: &[Result<Target, String>], known: &dyn Targets, mesh: &Mesh) -> Self {
        let mut found = Self::default();
        if refs.len() > MOST_TARGETS {
            let message = format!("{} targetRefs: at most {MOST_TARGETS} are accepted", refs.len());
            found.problems.push((INVALID, message));
            return found;
        }
        refs.iter().for_each(|one| found.add(one, known, mesh));
        found.services.sort();
        found.services.dedup();
        found
    }

    fn add(&mut self, target: &Result<Target, String>, known: &dyn Targets, mesh: &Mesh) {
        let missing = |target: &Target| (NOT_FOUND, format!("{target} is not there"));
        match target {
            Err(message) => self.problems.push((INVALID, message.clone())),
            Ok(target @ Target::Service(named)) => match known.service(named) {
                None => self.problems.push(missing(target)),
                Some(binding) => {
                    self.services.push(service_key(&named.namespace, &named.name, mesh));
                    match binding {
                        Binding::Bound { waypoint, .. } => self.bound.push(waypoint.to_string()),
                        _ => {
                            let message = format!("{target} is not bound to a waypoint: nobody enforces it there");
                            self.problems.push((NOT_BOUND, message));
                        }
                    }
                }
            },
            Ok(target @ Target::Gateway(named)) => match known.gateway(named) {
                None => self.problems.push(missing(target)),
                Some(service) => {
                    self.services.push(service_key(&named.namespace, &service, mesh));
                    self.bound.push(named.to_string());
                }
            },
            Ok(target @ Target::Class(name)) => match known.class(name) {
                None => self.problems.push(missing(target)),
                Some(gateways) => {
                    let key = |(named, service): (Named, Str)| service_key(&named.namespace, &service, mesh);
                    self.services.extend(gateways.into_iter().map(key));
                    self.bound.push(name.to_string());
                }
            },
        }
    }

    /// The condition of the policy; `flaws` is what of its content is not carried out as written.
    pub(super) fn condition(&self, flaws: &[String]) -> Condition {
        let mut bound = self.bound.clone();
        bound.sort();
        bound.dedup();
        let told: Vec<&str> =
            self.problems.iter().map(|(_, message)| message.as_str()).chain(flaws.iter().map(String::as_str)).collect();
        let bound_to = format!("bound to {}", bound.join(", "));
        let (status, reason, message) = match (bound.is_empty(), told.is_empty()) {
            (false, true) => ("True", "Accepted", bound_to),
            (false, false) => ("True", "PartiallyInvalid", format!("{bound_to}; {}", told.join("; "))),
            (true, _) => {
                let reason = self.problems.first().map_or(INVALID, |(reason, _)| reason);
                ("False", reason, told.join("; "))
            }
        };
        Condition { type_: ACCEPTED, status, reason, message }
    }

    /// The condition of a policy that is refused as a whole.
    pub(super) fn refused(message: String) -> Condition {
        Condition { type_: ACCEPTED, status: "False", reason: INVALID, message }
    }
}

/// The condition of policies for requests.
pub const ACCEPTED: &str = "WaypointAccepted";
