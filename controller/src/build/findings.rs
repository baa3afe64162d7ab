//! What is odd about objects that only shows when they are seen together.

use std::collections::BTreeMap;

use stillmesh_core::model::Str;
use stillmesh_k8s::finding::Severity;
use stillmesh_k8s::gateway::binding::canary::USE_CANARY;
use stillmesh_k8s::gateway::binding::{Binding, Target, USE_WAYPOINT, Why};
use stillmesh_k8s::translate::{self, Level};
use stillmesh_k8s::{Finding, Kind, ObjectKey, Placed, Position, labels};

use super::Builder;

/// Annotation by which whoever admitted an object says where its user wrote it: `file:line:column`.
pub const SOURCE: &str = "stillmesh.io/source";

/// Where an object was written by its user, as far as it is known.
pub fn origin(placed: &Placed) -> Position {
    let told = labels::of(&placed.object.metadata().annotations).get(SOURCE).and_then(|text| {
        let mut parts = text.rsplitn(3, ':');
        let column = parts.next()?.parse().ok()?;
        let line = parts.next()?.parse().ok()?;
        Some(Position::new(parts.next()?, line, column))
    });
    told.unwrap_or_else(|| placed.at.clone())
}

/// A trust domain that changed while nodes were being served.
pub(super) fn needs_restart(key: &ObjectKey, at: &Position) -> Finding {
    Finding {
        at: at.clone(),
        severity: Severity::Warning,
        code: "MAN014",
        object: key.to_string(),
        path: "data.mesh.trustDomain".to_owned(),
        message: "the trust domain changed while certificates of the old one are in use".to_owned(),
        hint: "it takes effect with the next start of the controller".to_owned(),
    }
}

impl Builder {
    /// Everything that is odd now, in order of place. Costs a look at every policy; not for every change.
    pub fn findings(&self) -> Vec<Finding> {
        let mut all = self.mesh_config.findings.clone();
        for ((namespace, name), policy) in self.world.policies.all() {
            let key = ObjectKey::new(Kind::AuthorizationPolicy, &namespace, &name);
            if let Some(condition) = self.oddity(policy) {
                all.push(self.odd("MAN016", &key, "spec.targetRefs", &condition.message, ""));
            }
            if let Some(selector) = &policy.spec.selector
                && !self.selects_something(&namespace, &selector.match_labels)
            {
                all.push(self.selects_nothing(&key));
            }
        }
        for ((namespace, name), peer) in self.world.peers.all() {
            let key = ObjectKey::new(Kind::PeerAuthentication, &namespace, &name);
            match (translate::level(peer, &self.mesh), &peer.spec.selector) {
                (Level::Nothing, _) => {
                    let hint = "write it in the namespace of the workloads";
                    let message = "a selector has no effect in the root namespace";
                    all.push(self.odd("MAN013", &key, "spec.selector", message, hint));
                }
                (Level::Workload, Some(selector)) if !self.selects_something(&namespace, &selector.match_labels) => {
                    all.push(self.selects_nothing(&key));
                }
                _ => {}
            }
        }
        self.bindings(&mut all);
        all.sort();
        all
    }

    /// Labels that ask in vain for a waypoint: each is told once, where it stands.
    fn bindings(&self, all: &mut Vec<Finding>) {
        // The others say themselves what to do.
        let hint = |why: &Why| match why {
            Why::Missing => "create the Gateway (stillmesh waypoint apply), or change the label",
            _ => "",
        };
        let path = format!("metadata.labels[{USE_WAYPOINT:?}]");
        let of_canary = format!("metadata.labels[{USE_CANARY:?}]");
        let mut namespaces = BTreeMap::new();
        for ((namespace, name), service) in self.world.services.all() {
            let binding = self.world.bound(Target::Service, &service.metadata, &self.mesh);
            let canary = self.world.canary(&service.metadata, &binding, &self.mesh);
            let (label, path, message, hint) = match (binding, canary.problem()) {
                (Binding::Unbound { waypoint, why }, _) => (USE_WAYPOINT, &path, why.message(&waypoint), hint(&why)),
                (_, Some(problem)) => (USE_CANARY, &of_canary, problem, ""),
                _ => continue,
            };
            if labels::of(&service.metadata.labels).contains_key(label) {
                let key = ObjectKey::new(Kind::Service, &namespace, &name);
                all.push(self.odd("MAN016", &key, path, &message, hint));
            } else {
                namespaces.insert((namespace, path), (message, hint));
            }
        }
        for ((namespace, path), (message, hint)) in namespaces {
            all.push(self.odd("MAN016", &ObjectKey::new(Kind::Namespace, "", &namespace), path, &message, hint));
        }
        for ((namespace, name), pod) in self.world.pods.all() {
            if labels::of(&pod.metadata.labels).contains_key(USE_WAYPOINT)
                && let Binding::Unbound { waypoint, why } =
                    self.world.bound(Target::Workload, &pod.metadata, &self.mesh)
            {
                let key = ObjectKey::new(Kind::Pod, &namespace, &name);
                all.push(self.odd("MAN016", &key, &path, &why.message(&waypoint), hint(&why)));
            }
        }
    }

    fn selects_something(&self, namespace: &Str, wanted: &labels::Labels) -> bool {
        if *namespace == self.mesh.root_namespace {
            self.world.namespaces_with_pods().any(|one| self.world.pods_with(one, wanted).next().is_some())
        } else {
            self.world.pods_with(namespace, wanted).next().is_some()
        }
    }

    fn selects_nothing(&self, key: &ObjectKey) -> Finding {
        let hint = "check the labels, and that the policy is in the namespace of the pods";
        self.odd("MAN013", key, "spec.selector", "no pod has these labels: the policy does nothing", hint)
    }

    fn odd(&self, code: &'static str, key: &ObjectKey, path: &str, message: &str, hint: &str) -> Finding {
        Finding {
            at: self.places.get(key).cloned().unwrap_or_else(|| Position::file("")),
            severity: Severity::Warning,
            code,
            object: key.to_string(),
            path: path.to_owned(),
            message: message.to_owned(),
            hint: hint.to_owned(),
        }
    }
}
