//! Istio's DestinationRules to what waypoints treat endpoints by (contract 7.4), and what is to be said about them.
//!
//! One holds at a waypoint for Services whose hostnames its host matches, from the waypoint's namespace, the Service's or the
//! mesh's root. One with a part that is not supported is refused as a whole.

mod policy;

use std::collections::BTreeSet;

use stillmesh_core::model::destination::{DestinationRule as Model, Subset, Traffic};
use stillmesh_core::model::{PolicyKey, ServiceKey, Str, WorkloadUid};

use super::route::References;
use super::targets::ACCEPTED;
use super::virtual_service::resolve;
use super::{Mesh, service_key};
use crate::gateway::binding::Binding;
use crate::istio::destination_rule::DestinationRule;
use crate::labels::Labels;
use crate::object::DEFAULT_NAMESPACE;
use crate::status::Condition;

/// What a DestinationRule refers to beside Services.
pub trait Endpoints: References {
    /// The endpoints of a Service whose pods have these labels.
    fn endpoints(&self, namespace: &str, name: &str, labels: &Labels) -> Vec<WorkloadUid>;
}

/// What a DestinationRule means.
#[derive(Clone, Debug, PartialEq)]
pub struct Destined {
    /// For waypoints; none where it is for none of the Services here.
    pub rule: Option<Model>,
    /// What its status says.
    pub condition: Condition,
    /// It cannot be carried out: the last version that could be stays, if there is one.
    pub refused: bool,
}

/// Translates a DestinationRule.
pub fn destination_rule(written: &DestinationRule, known: &impl Endpoints, mesh: &Mesh) -> Destined {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let read = match read(written) {
        Ok(read) => read,
        Err(why) => {
            return Destined { rule: None, condition: said("False", "Invalid", why), refused: true };
        }
    };
    let found = find(written, namespace, known, mesh);
    let condition = condition(&found, read.notes);
    let subsets = written.spec.subsets.iter().zip(read.subsets).map(|(subset, traffic)| {
        let of = |(namespace, name): &(Str, Str)| known.endpoints(namespace, name, &subset.labels);
        let members: BTreeSet<WorkloadUid> = found.services.iter().flat_map(of).collect();
        Subset { name: subset.name.as_str().into(), members: members.into_iter().collect(), traffic }
    });
    let services: Vec<ServiceKey> =
        found.services.iter().map(|(namespace, name)| service_key(namespace, name, mesh)).collect();
    let rule = Model {
        key: PolicyKey::new(namespace, written.metadata.name.as_deref().unwrap_or_default()),
        exactness: match written.spec.host.strip_prefix('*') {
            Some(end) => u32::try_from(end.len()).unwrap_or(Model::WHOLE - 1),
            None => Model::WHOLE,
        },
        is_mesh_wide: namespace == &*mesh.root_namespace,
        created: written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        traffic: read.traffic,
        subsets: subsets.collect(),
        services,
    };
    Destined { rule: (!rule.services.is_empty()).then_some(rule), condition, refused: false }
}

impl Destined {
    /// Says that an earlier version stays in force.
    pub fn stays_as_it_was(&mut self) {
        self.condition.message.push_str("; its last accepted version stays in force");
    }
}

/// The Service that a DestinationRule names, if it is one, and whether it may mean others.
pub fn destination_rule_names(written: &DestinationRule, mesh: &Mesh) -> (Option<(Str, Str)>, bool) {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let host = written.spec.host.as_str();
    (resolve(host, namespace, mesh), host.starts_with('*'))
}

/// What is wrong with its content, or not supported, whatever else there is.
pub(crate) fn destination_rule_flaw(written: &DestinationRule) -> Option<String> {
    read(written).err()
}

/// What is written, read.
struct Read {
    traffic: Traffic,
    subsets: Vec<Traffic>,
    /// What has no effect.
    notes: BTreeSet<String>,
}

fn read(written: &DestinationRule) -> Result<Read, String> {
    let spec = &written.spec;
    if spec.workload_selector.is_some() {
        return Err(
            "spec.workloadSelector is not supported: a waypoint is the client of its Services for everybody".to_owned()
        );
    }
    let mut notes = BTreeSet::new();
    let traffic = policy::traffic(spec.traffic_policy.as_ref(), "spec.trafficPolicy", &mut notes)?;
    let mut names = BTreeSet::new();
    let mut subsets = Vec::new();
    for (at, subset) in spec.subsets.iter().enumerate() {
        let place = format!("spec.subsets[{at}]");
        if subset.name.is_empty() {
            return Err(format!("{place}.name is missing: routes name a subset by it"));
        }
        if !names.insert(&subset.name) {
            return Err(format!("{place}.name: {} is there twice", subset.name));
        }
        subsets.push(policy::traffic(subset.traffic_policy.as_ref(), &format!("{place}.trafficPolicy"), &mut notes)?);
    }
    Ok(Read { traffic, subsets, notes })
}

/// What the host of a DestinationRule comes to.
#[derive(Default)]
struct Found {
    services: BTreeSet<(Str, Str)>,
    /// The waypoints of these.
    waypoints: BTreeSet<String>,
    /// Services that are there and for which it does not hold from where it is.
    elsewhere: BTreeSet<String>,
}

fn find(written: &DestinationRule, own: &str, known: &impl Endpoints, mesh: &Mesh) -> Found {
    let (host, export_to) = (&written.spec.host, &written.spec.export_to);
    let matching: Vec<(Str, Str)> = match host.strip_prefix('*') {
        Some(end) => {
            let all = known.services().into_iter();
            let fits = |(namespace, name): &(Str, Str)| service_key(namespace, name, mesh).hostname.ends_with(end);
            all.filter(fits).collect()
        }
        None => {
            let there = |(namespace, name): &(Str, Str)| known.service_ports(namespace, name).is_some();
            resolve(host, own, mesh).filter(there).into_iter().collect()
        }
    };
    let mut found = Found::default();
    for (namespace, name) in matching {
        let binding = known.binding(&namespace, &name);
        let waypoint = match &binding {
            Binding::Bound { waypoint, .. } => Some(waypoint),
            _ => None,
        };
        let whose = waypoint.map(|one| &*one.namespace);
        let holds = *namespace == *own || whose == Some(own) || own == &*mesh.root_namespace;
        let is_seen = export_to.is_empty()
            || whose.is_none_or(|whose| {
                export_to.iter().any(|one| one == "*" || one == whose || (one == "." && whose == own))
            });
        if holds && is_seen {
            found.waypoints.extend(waypoint.map(ToString::to_string));
            found.services.insert((namespace, name));
        } else if !host.starts_with('*') {
            found.elsewhere.insert(format!("{namespace}/{name}"));
        }
    }
    found
}

fn condition(found: &Found, notes: BTreeSet<String>) -> Condition {
    let list = |texts: &BTreeSet<String>| texts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if found.services.is_empty() {
        let message = match found.elsewhere.is_empty() {
            true => "its host is no Service here".to_owned(),
            false => format!(
                "it does not hold for {}: a DestinationRule holds from the namespace of the waypoint, to which it must be \
                 exported, of the Service, or from the mesh's root namespace",
                list(&found.elsewhere)
            ),
        };
        return said("False", "TargetNotFound", message);
    }
    let bound = match found.waypoints.is_empty() {
        true => "its Service is not bound to a waypoint, which would carry it out".to_owned(),
        false => format!("bound to {}", list(&found.waypoints)),
    };
    let is_whole = notes.is_empty();
    let message = [bound].into_iter().chain(notes).collect::<Vec<_>>().join("; ");
    match (found.waypoints.is_empty(), is_whole) {
        (true, _) => said("False", "AncestorNotBound", message),
        (false, true) => said("True", "Accepted", message),
        (false, false) => said("False", "PartiallyInvalid", message),
    }
}

fn said(status: &'static str, reason: &'static str, message: String) -> Condition {
    Condition { type_: ACCEPTED, status, reason, message }
}

#[cfg(test)]
mod tests;
