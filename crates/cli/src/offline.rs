//! A mesh as its tunnels and waypoints would know it, made from objects alone: those of manifests, completed with what a
//! cluster would add ([`complete`]), or those of a mesh that runs ([`read`]). The controller's own [`Builder`] makes resources
//! of them, they take the form in which they are sent, and become the snapshot that every proxy decides by.

mod complete;
mod read;
pub(crate) mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::Value;
use stillmesh_api::codec;
use stillmesh_controller::build::{Builder, Verdict};
use stillmesh_core::model::access::Access;
use stillmesh_core::model::{Service, Workload};
use stillmesh_core::snapshot::{Change, Snapshot};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Finding, ObjectKey, Placed, Position};
use stillmesh_objects as objects;

pub(crate) use read::{FILE_BYTES, from_files, live, take_text};

/// Findings that are told one by one.
const MOST_FINDINGS: usize = 20;

/// Objects, and what is to be said of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// As they are there.
    pub(crate) objects: BTreeMap<ObjectKey, Placed>,
    /// Policies that are there and cannot be read.
    pub(crate) unusable: Vec<objects::Unusable>,
    /// What is odd about them.
    pub(crate) findings: Vec<Finding>,
}

impl Written {
    /// Takes objects in; one that is there already is replaced.
    pub(crate) fn add(&mut self, found: impl IntoIterator<Item = Placed>) {
        self.objects.extend(found.into_iter().map(|placed| (placed.object.key(), placed)));
    }

    /// The objects and what a cluster would add to them, with what was assumed for that.
    pub(crate) fn complete(self, mesh: &Mesh) -> anyhow::Result<(Self, Vec<String>)> {
        let completed = complete::complete(self.objects.values().map(|placed| placed.object.clone()), mesh)?;
        let at = |key: &ObjectKey| self.objects.get(key).map(|placed| placed.at.clone());
        let placed = |(key, object)| {
            let at = at(&key).unwrap_or_else(|| Position::file("(assumed)"));
            (key, Placed { object, at })
        };
        let objects = completed.objects.into_iter().map(placed).collect();
        Ok((Self { objects, ..self }, completed.notes))
    }
}

/// A mesh that is known.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// What proxies decide by.
    pub(crate) snapshot: Snapshot,
    /// What holds for the whole mesh.
    pub(crate) mesh: Mesh,
    /// The objects, as JSON.
    pub(crate) objects: Vec<Value>,
    /// All workloads.
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// All services.
    pub(crate) services: Vec<Arc<Service>>,
    /// All that decides about requests.
    pub(crate) accesses: Vec<Arc<Access>>,
    /// What was assumed or left out.
    pub(crate) notes: Vec<String>,
    /// What is odd about objects, as they are read and as they are seen together.
    pub(crate) findings: Vec<Finding>,
    /// What statuses should say.
    pub(crate) verdicts: Vec<Verdict>,
}

/// What nodes would know. `mesh` is what is configured beside the objects.
pub(crate) fn known(written: Written, mesh: Mesh, mut notes: Vec<String>) -> anyhow::Result<Known> {
    let Written { objects, unusable, findings } = written;
    let changes = objects.values().cloned().map(objects::Change::Set).collect();
    let mut builder = Builder::from_manifests(mesh);
    let built = builder.apply(&objects::Update { changes, unusable, complete: true, ..objects::Update::default() });
    let mesh = builder.mesh().clone();
    let sent: anyhow::Result<Vec<Change>> = built.changes.iter().filter_map(sent).collect();
    let sent = sent?;
    let (snapshot, _) = Snapshot::empty(mesh.network.clone()).apply(&sent);
    let (mut workloads, mut services, mut accesses) = (Vec::new(), Vec::new(), Vec::new());
    for change in sent {
        match change {
            Change::Workload(workload) => workloads.push(workload),
            Change::Service(service) => services.push(service),
            Change::Access(access) => accesses.push(access),
            _ => {}
        }
    }
    workloads.sort_by(|one, other| one.uid.cmp(&other.uid));
    services.sort_by(|one, other| one.key.cmp(&other.key));
    let findings = [findings, builder.findings()].concat();
    let said: BTreeSet<String> = findings.iter().map(ToString::to_string).collect();
    let more = said.len().saturating_sub(MOST_FINDINGS);
    notes.extend(said.into_iter().take(MOST_FINDINGS));
    if more > 0 {
        notes.push(format!("{more} more findings about the objects; `stillmesh up` tells them all"));
    }
    let values: Result<Vec<Value>, _> = objects.values().map(|placed| serde_json::to_value(&placed.object)).collect();
    let objects = values.context("writing the objects")?;
    Ok(Known { snapshot, mesh, objects, workloads, services, accesses, notes, findings, verdicts: built.verdicts })
}

/// What decides about connections, of objects as an API server has them: as built, without their way over the wire.
pub(crate) fn decided(builder: &mut Builder, objects: impl Iterator<Item = Placed>) -> (Snapshot, Vec<Arc<Workload>>) {
    let changes = objects.map(objects::Change::Set).collect();
    let built = builder.apply(&objects::Update { changes, complete: true, ..objects::Update::default() });
    let (snapshot, _) = Snapshot::empty(builder.mesh().network.clone()).apply(&built.changes);
    let workloads = built.changes.into_iter().filter_map(|change| match change {
        Change::Workload(workload) => Some(workload),
        _ => None,
    });
    (snapshot, workloads.collect())
}

/// An API server's object, as manifests are read.
pub(crate) fn placed(object: &Value) -> Vec<Placed> {
    stillmesh_k8s::parse::documents("", &object.to_string()).objects
}

/// Ports of a workload that services lead to. Where none does it is 0: what is refused at every port is refused there.
pub(crate) fn served_ports(workload: &Workload) -> BTreeSet<u16> {
    let ports: BTreeSet<u16> =
        workload.services.iter().flat_map(|(_, ports)| ports).map(|port| port.target_port).collect();
    if ports.is_empty() { BTreeSet::from([0]) } else { ports }
}

/// A change as it arrives: written and read as between controller and node.
fn sent(change: &Change) -> Option<anyhow::Result<Change>> {
    let (kind, name) = codec::name(change);
    let bytes = codec::encode(change)?;
    Some(codec::decode(kind, &name, bytes.into()).with_context(|| format!("{name} cannot be sent to nodes")))
}
