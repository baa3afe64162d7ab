//! Istio's DestinationRules to what waypoints treat endpoints by (contract 7.4), and what is to be said about them.
//!
//! One holds at a waypoint for Services whose hostnames its host matches, from the waypoint's namespace, the Service's or the
//! mesh's root. One with a part that is not supported is refused as a whole.

mod policy;

use std::collections::BTreeSet;

use stillmesh_core::model::destination::{DestinationRule as Model, Subset, Traffic};
use stillmesh_core::model::{PolicyKey, Str, WorkloadUid};

use super::Mesh;
use super::hosts::{Holder, resolve, said};
use super::route::References;
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
    let export_to = &written.spec.export_to;
    let holder = Holder { kind: "DestinationRule", namespace, export_to, holds_from_root: true };
    let found = holder.find([&written.spec.host], known, mesh);
    let condition = holder.condition(&found, &read.notes);
    let subsets = written.spec.subsets.iter().zip(read.subsets).map(|(subset, traffic)| {
        let of = |(namespace, name): &(Str, Str)| known.endpoints(namespace, name, &subset.labels);
        let members: BTreeSet<WorkloadUid> = found.services.iter().flat_map(of).collect();
        Subset { name: subset.name.as_str().into(), members: members.into_iter().collect(), traffic }
    });
    let services = found.keys(mesh);
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

#[cfg(test)]
mod tests;
