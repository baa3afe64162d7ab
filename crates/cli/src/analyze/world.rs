//! The objects that are analyzed, and what the mesh makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use stillmesh_controller::build::origin;
use stillmesh_core::model::{ServiceKey, Workload};
use stillmesh_k8s::select::{Enrolment, enrolled};
use stillmesh_k8s::translate::{Mesh, workload_uid};
use stillmesh_k8s::{Kind, Object, ObjectKey, Placed, Position, labels};

use super::code::Code;
use super::message::Message;
use super::read::Input;
use crate::offline::{self, Known, Written};

/// Manifests and what runs. Gateways that run are as ready as they are; those of manifests are taken to be.
fn with_its_gateways(
    written: Written,
    running: &BTreeMap<ObjectKey, Placed>,
    mesh: &Mesh,
) -> anyhow::Result<(Written, Vec<String>)> {
    let is_as_it_runs = |(key, placed): &(&ObjectKey, &Placed)| {
        key.kind == Kind::Gateway && written.objects.get(*key).is_some_and(|one| one == *placed)
    };
    let gateways: Vec<Placed> = running.iter().filter(is_as_it_runs).map(|(_, placed)| placed.clone()).collect();
    let (mut completed, notes) = written.complete(mesh)?;
    completed.add(gateways);
    Ok((completed, notes))
}

/// Annotation of an object with codes that are not told of it: a list, or `*`.
const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Objects, and what the mesh makes of them.
pub(super) struct World {
    /// As they are written, with what a cluster would add.
    pub(super) objects: BTreeMap<ObjectKey, Placed>,
    pub(super) known: Known,
    /// Whether what runs is among it.
    pub(super) is_live: bool,
    are_accounts_unknown: bool,
    /// Those that somebody has written.
    written: BTreeSet<ObjectKey>,
    quiet: BTreeMap<String, Vec<String>>,
}

impl World {
    pub(super) fn new(input: Input, mesh: Mesh) -> anyhow::Result<Self> {
        let Input { written, running, are_accounts_unknown, notes: unread, .. } = input;
        let keys: BTreeSet<ObjectKey> = written.objects.keys().cloned().collect();
        let quiet = written.objects.iter().filter_map(|(key, placed)| {
            let codes = labels::of(&placed.object.metadata().annotations).get(SUPPRESS)?;
            Some((key.to_string(), codes.split(',').map(|code| code.trim().to_owned()).collect()))
        });
        let quiet = quiet.collect();
        let is_live = running.is_some();
        let (completed, mut notes) = match running {
            // What runs needs nothing more.
            Some(running) if running == written.objects => (written, Vec::new()),
            Some(running) => with_its_gateways(written, &running, &mesh)?,
            None => written.complete(&mesh)?,
        };
        notes.extend(unread);
        let objects = completed.objects.clone();
        let known = offline::known(completed, mesh, notes)?;
        Ok(Self { objects, known, is_live, are_accounts_unknown, written: keys, quiet })
    }

    /// What was assumed.
    pub(super) fn notes(&self) -> Vec<String> {
        let is_finding = |note: &&String| !self.known.findings.iter().any(|one| one.to_string() == **note);
        let is_rest = |note: &&String| !note.contains("more findings about the objects");
        self.known.notes.iter().filter(is_finding).filter(is_rest).cloned().collect()
    }

    /// A finding about an object.
    pub(super) fn message(&self, code: &'static Code, key: &ObjectKey, text: impl Into<String>) -> Message {
        let at = self.objects.get(key).filter(|_| self.written.contains(key)).map(origin);
        let is_named = |at: &Position| !at.file.starts_with('(');
        Message::new(code, key, at.filter(is_named).unwrap_or_else(|| Position::file("")), text)
    }

    /// Whether the object asks not to be told of.
    pub(super) fn is_suppressed(&self, message: &Message) -> bool {
        let codes = self.quiet.get(&message.object);
        codes.is_some_and(|codes| codes.iter().any(|code| code == "*" || code == message.code.id))
    }

    /// Whether all is known of who runs in a namespace. Of manifests it is where they have pods of it.
    pub(super) fn knows_clients_of(&self, namespace: &str) -> bool {
        !self.are_accounts_unknown && (self.is_live || self.pods().any(|(key, _)| &*key.namespace == namespace))
    }

    pub(super) fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.objects.contains_key(&ObjectKey::new(kind, namespace, name))
    }

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Object)> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(key, placed)| (key, &placed.object))
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Pod>)> {
        self.of_kind(Kind::Pod).filter_map(|(key, object)| match object {
            Object::Pod(pod) => Some((key, pod)),
            _ => None,
        })
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&Namespace> {
        match &self.objects.get(&ObjectKey::new(Kind::Namespace, "", name))?.object {
            Object::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// Whether a pod is in the mesh.
    pub(super) fn is_enrolled(&self, key: &ObjectKey, pod: &Pod) -> bool {
        enrolled(pod, self.namespace(&key.namespace), &Enrolment::default())
    }

    /// The object by which a pod is told: itself, or the Deployment of which it was assumed.
    pub(super) fn told(&self, pod: &ObjectKey) -> ObjectKey {
        if self.written.contains(pod) {
            return pod.clone();
        }
        let own = match self.objects.get(pod).map(|placed| &placed.object) {
            Some(Object::Pod(pod)) => labels::of(&pod.metadata.labels).clone(),
            _ => return pod.clone(),
        };
        let is_its = |(key, object): &(&ObjectKey, &Object)| match object {
            Object::Deployment(one) => key.namespace == pod.namespace && labels::selects(&one.spec.selector, &own),
            _ => false,
        };
        self.of_kind(Kind::Deployment).find(is_its).map_or_else(|| pod.clone(), |(key, _)| key.clone())
    }

    /// The workload that is made of a pod.
    pub(super) fn workload(&self, pod: &ObjectKey) -> Option<&Arc<Workload>> {
        self.known.snapshot.workload(&workload_uid(&pod.namespace, &pod.name, &self.known.mesh))
    }

    /// The Service that nodes know by this.
    pub(super) fn service(&self, key: &ServiceKey) -> ObjectKey {
        let name = key.hostname.split('.').next().unwrap_or_default();
        ObjectKey::new(Kind::Service, &key.namespace, name)
    }
}
