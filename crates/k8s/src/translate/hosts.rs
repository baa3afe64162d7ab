//! Which Services the hosts of Istio's objects mean, for which of them an object holds from where it is (contract 7.4), and what is
//! said of that.

use std::collections::BTreeSet;

use stillmesh_core::model::{ServiceKey, Str};

use super::route::References;
use super::targets::ACCEPTED;
use super::{Mesh, service_key};
use crate::gateway::binding::Binding;
use crate::status::Condition;

/// An object with hosts.
pub(super) struct Holder<'a> {
    /// What it is called in messages.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The namespaces that it is for; empty: all.
    pub export_to: &'a [String],
    /// Whether one of the mesh's root namespace holds everywhere.
    pub holds_from_root: bool,
}

/// What its hosts come to.
#[derive(Default)]
pub(super) struct Hosts {
    /// The Services that it holds for, by namespace and name.
    pub services: BTreeSet<(Str, Str)>,
    /// The waypoints of these.
    waypoints: BTreeSet<String>,
    /// Services that are there and for which it does not hold from where it is.
    elsewhere: BTreeSet<String>,
}

/// The Service behind a host, as Istio resolves it: a name without dots is one of the own namespace.
pub(super) fn resolve(host: &str, namespace: &str, mesh: &Mesh) -> Option<(Str, Str)> {
    if !host.contains('.') {
        return Some((namespace.into(), host.into()));
    }
    let inner = host.strip_suffix(&*mesh.domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = inner.split_once('.')?;
    (!namespace.contains('.')).then(|| (namespace.into(), name.into()))
}

/// What is said of an object that is for waypoints.
pub(super) fn said(status: &'static str, reason: &'static str, message: String) -> Condition {
    Condition { type_: ACCEPTED, status, reason, message }
}

impl Holder<'_> {
    /// Finds the Services that the hosts mean.
    pub fn find<'h>(
        &self,
        hosts: impl IntoIterator<Item = &'h String>,
        references: &impl References,
        mesh: &Mesh,
    ) -> Hosts {
        let mut found = Hosts::default();
        for host in hosts {
            let matching: Vec<(Str, Str)> = match host.strip_prefix('*') {
                Some(end) => {
                    let fits = |(namespace, name): &(Str, Str)| {
                        let hostname = service_key(namespace, name, mesh).hostname;
                        hostname.len() > end.len() && hostname.ends_with(end)
                    };
                    references.services().into_iter().filter(fits).collect()
                }
                None => {
                    let there = |(namespace, name): &(Str, Str)| references.service_ports(namespace, name).is_some();
                    resolve(host, self.namespace, mesh).filter(there).into_iter().collect()
                }
            };
            for service in matching {
                self.take(service, references, mesh, host.starts_with('*'), &mut found);
            }
        }
        found
    }

    fn take(
        &self,
        (namespace, name): (Str, Str),
        references: &impl References,
        mesh: &Mesh,
        is_wild: bool,
        found: &mut Hosts,
    ) {
        let binding = references.binding(&namespace, &name);
        let waypoint = match &binding {
            Binding::Bound { waypoint, .. } => Some(waypoint),
            _ => None,
        };
        let own = self.namespace;
        let whose = waypoint.map(|one| &*one.namespace);
        let is_root = self.holds_from_root && own == &*mesh.root_namespace;
        let holds = *namespace == *own || whose == Some(own) || is_root;
        let is_for = |whose: &str, one: &String| one == "*" || one == whose || (one == "." && whose == own);
        let is_seen =
            self.export_to.is_empty() || whose.is_none_or(|whose| self.export_to.iter().any(|one| is_for(whose, one)));
        if holds && is_seen {
            found.waypoints.extend(waypoint.map(ToString::to_string));
            found.services.insert((namespace, name));
        } else if !is_wild {
            found.elsewhere.insert(format!("{namespace}/{name}"));
        }
    }

    /// What is said of it. `notes`: what of it has no effect, or is not there.
    pub fn condition(&self, found: &Hosts, notes: &BTreeSet<String>) -> Condition {
        let list = |texts: &BTreeSet<String>| texts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if found.services.is_empty() {
            let root = if self.holds_from_root { ", or from the mesh's root namespace" } else { "" };
            let message = match found.elsewhere.is_empty() {
                true => "none of its hosts is a Service here".to_owned(),
                false => format!(
                    "it holds for none of its Services ({}): a {} holds from the namespace of the Service, or of its \
                     waypoint, to which it must be exported{root}",
                    list(&found.elsewhere),
                    self.kind
                ),
            };
            return said("False", "TargetNotFound", message);
        }
        let mut notes: Vec<String> = notes.iter().cloned().collect();
        if !found.elsewhere.is_empty() {
            notes.push(format!("it does not hold for {}", list(&found.elsewhere)));
        }
        let bound = match found.waypoints.is_empty() {
            true => "none of its Services is bound to a waypoint, which would carry it out".to_owned(),
            false => format!("bound to {}", list(&found.waypoints)),
        };
        let message = [bound].into_iter().chain(notes.iter().cloned()).collect::<Vec<_>>().join("; ");
        match (found.waypoints.is_empty(), notes.is_empty()) {
            (true, _) => said("False", "AncestorNotBound", message),
            (false, true) => said("True", "Accepted", message),
            (false, false) => said("False", "PartiallyInvalid", message),
        }
    }
}

impl Hosts {
    /// The Services as they are told.
    pub fn keys(&self, mesh: &Mesh) -> Vec<ServiceKey> {
        self.services.iter().map(|(namespace, name)| service_key(namespace, name, mesh)).collect()
    }
}
