//! What was made of an object that carries a receipt: which resources changed, and who has to have them for it to be in force.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_api::codec;
use stillmesh_api::xds::ResourceType;
use stillmesh_core::model::Str;
use stillmesh_core::model::access::AccessKind;
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::{Binding, Named, Target};
use stillmesh_k8s::translate::Target as Attached;
use stillmesh_k8s::{Kind, ObjectKey};

use super::Builder;
use super::world::Name;

/// What came of an object that was looked at again.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Which one.
    pub object: ObjectKey,
    /// Its generation as it was read; `None` where it has none.
    pub generation: Option<i64>,
    /// Resources of its own that were published (`true`) or taken back (`false`).
    pub changed: Vec<(ResourceType, Str, bool)>,
    /// Who carries it out; `None` where it is gone, or nobody does.
    pub about: Option<About>,
}

/// Who carries an object out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Every node's tunnel.
    pub nodes: bool,
    /// The replicas of these Gateways.
    pub waypoints: BTreeSet<Named>,
    /// Its newest version is not used: an earlier one stays, or nothing of it is in force.
    pub refused: bool,
}

impl Made {
    /// Of an object with this metadata (`None`: it is gone), with the changes that it led to.
    pub(super) fn new(
        object: ObjectKey,
        metadata: Option<&ObjectMeta>,
        changes: impl IntoIterator<Item = Change>,
        about: Option<About>,
    ) -> Self {
        let changed = changes.into_iter().map(|change| {
            let (kind, name) = codec::name(&change);
            (kind, name.into(), !is_removal(&change))
        });
        let generation = metadata.and_then(|metadata| metadata.generation);
        Self { object, generation, changed: changed.collect(), about: about.filter(|_| metadata.is_some()) }
    }
}

fn is_removal(change: &Change) -> bool {
    match change {
        Change::WorkloadRemoved(_)
        | Change::ServiceRemoved(_)
        | Change::PolicyRemoved(_)
        | Change::RouteRemoved(_)
        | Change::AccessRemoved(_)
        | Change::DestinationRemoved(_) => true,
        Change::Workload(_)
        | Change::Service(_)
        | Change::Policy(_)
        | Change::Route(_)
        | Change::Access(_)
        | Change::Destination(_) => false,
    }
}

/// How many changes there were before an object was built; those after are its own.
pub(super) struct Before(usize, usize);

impl Before {
    pub fn new(set: &[Change], removed: &[Change]) -> Self {
        Self(set.len(), removed.len())
    }

    /// The changes since.
    pub fn since(&self, set: &[Change], removed: &[Change]) -> Vec<Change> {
        let since = |all: &[Change], before: usize| all.get(before..).unwrap_or_default().to_vec();
        [since(set, self.0), since(removed, self.1)].concat()
    }
}

impl Builder {
    /// The Gateways that a service is bound to, its canary's too.
    pub(super) fn waypoints_of(&self, service: &Name) -> Vec<Named> {
        let Some(written) = self.world.services.get(service) else { return Vec::new() };
        let binding = self.world.bound(Target::Service, &written.metadata, &self.mesh);
        let canary = self.world.canary(&written.metadata, &binding, &self.mesh);
        match binding {
            Binding::Bound { waypoint, .. } => canary.bound().cloned().into_iter().chain([waypoint]).collect(),
            _ => Vec::new(),
        }
    }

    /// Who carries out what decides about requests, by what it is attached to. Nodes' tunnels too: they let nobody go round
    /// the waypoint.
    pub(super) fn carriers(&self, kind: AccessKind, name: &Name) -> BTreeSet<Named> {
        let of_target = |target: &Attached| match target {
            Attached::Service(named) => self.waypoints_of(&(named.namespace.clone(), named.name.clone())),
            Attached::Gateway(named) => vec![named.clone()],
            Attached::Class(class) => {
                self.world.waypoints.of_class(class).into_iter().map(|(named, _)| named).collect()
            }
        };
        self.world.accesses.targets_of(&(kind, name.clone())).iter().flat_map(of_target).collect()
    }

    /// Whether the newest version of an object cannot be read.
    pub(super) fn is_unusable(&self, kind: Kind, name: &Name) -> bool {
        self.unusable.contains_key(&ObjectKey::new(kind, &name.0, &name.1))
    }
}
