//! Istio's VirtualServices to routes for waypoints (contract 7.4), and what is to be said about them.
//!
//! A VirtualService holds at a waypoint for Services whose hostnames its hosts match, from the Service's namespace or the
//! waypoint's. One with a part that is not supported is refused as a whole; a destination that is not there is answered 500
//! for its share, and said.

mod action;
mod delegate;
mod matching;
mod streams;

use std::collections::BTreeSet;
use std::sync::Arc;

use stillmesh_core::model::http::{HttpRoute, Pattern, RouteKey, RouteKind, RouteParent, RouteRule};
use stillmesh_core::model::{AppProtocol, Str};

use super::Mesh;
use super::hosts::{Holder, resolve, said};
use super::route::References;
use crate::gateway::Gateway;
use crate::gateway::binding::Binding;
use crate::istio::virtual_service::{VirtualService, VirtualServiceSpec};
use crate::object::{DEFAULT_NAMESPACE, Kind};
use crate::status::Condition;

/// As it is called where it holds inside the mesh.
const MESH: &str = "mesh";

/// What a VirtualService means.
#[derive(Clone, Debug, PartialEq)]
pub struct Virtual {
    /// For waypoints; none where it is for none of the Services here.
    pub route: Option<HttpRoute>,
    /// What its status says; nothing where it is not for the mesh.
    pub condition: Option<Condition>,
    /// It cannot be carried out: the last version that could be stays, if there is one.
    pub refused: bool,
}

impl Virtual {
    /// Says that an earlier version stays in force.
    pub fn stays_as_it_was(&mut self) {
        if let Some(condition) = &mut self.condition {
            condition.message.push_str("; its last accepted version stays in force");
        }
    }
}

/// Translates a VirtualService.
pub fn virtual_service(written: &VirtualService, references: &impl References, mesh: &Mesh) -> Virtual {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let spec = &written.spec;
    if !spec.gateways.is_empty() && !spec.gateways.iter().any(|gateway| gateway == MESH) {
        return Virtual { route: None, condition: None, refused: false };
    }
    let mut reader = Reader { namespace, references, mesh, notes: BTreeSet::new() };
    let rules = reader.expanded(&spec.http).and_then(|rules| {
        let read = rules.iter().map(|(place, rule)| reader.rule(rule).map_err(|why| format!("{place}: {why}")));
        read.filter_map(Result::transpose).collect::<Result<Vec<RouteRule>, String>>()
    });
    let rules = rules.and_then(|rules| Ok((rules, reader.streams(spec)?)));
    let (rules, streams) = match rules {
        Ok(read) => read,
        Err(why) => {
            return Virtual { route: None, condition: Some(said("False", "Invalid", why)), refused: true };
        }
    };
    if spec.hosts.is_empty() {
        let condition = reader.of_delegate(spec);
        return Virtual { route: None, condition: Some(condition), refused: false };
    }
    let holder = Holder { kind: "VirtualService", namespace, export_to: &spec.export_to, holds_from_root: false };
    let found = holder.find(&spec.hosts, references, mesh);
    let condition = holder.condition(&found, &reader.notes);
    let created = written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let parents: Vec<RouteParent> =
        found.keys(mesh).into_iter().map(|service| RouteParent { service, port: None }).collect();
    let route = HttpRoute {
        key: RouteKey {
            kind: RouteKind::VirtualService,
            namespace: namespace.into(),
            name: written.metadata.name.as_deref().unwrap_or_default().into(),
        },
        parents,
        consumer: None,
        created,
        rules,
        streams,
    };
    let is_for_somebody = !route.parents.is_empty() && (!spec.http.is_empty() || route.is_for_streams());
    Virtual { route: is_for_somebody.then_some(route), condition: Some(condition), refused: false }
}

pub use delegate::delegates;

/// The Services that a VirtualService names, and whether it may mean others besides.
pub fn virtual_service_names(written: &VirtualService, mesh: &Mesh) -> (Vec<(Str, Str)>, bool) {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let routes = &written.spec.http;
    let destinations = routes.iter().flat_map(|route| {
        let routed = route.route.iter().map(|one| &one.destination);
        routed.chain(&route.mirror).chain(route.mirrors.iter().map(|one| &one.destination))
    });
    let tls = written.spec.tls.iter().flat_map(|rule| &rule.route);
    let streams = tls.chain(written.spec.tcp.iter().flat_map(|rule| &rule.route)).map(|one| &one.destination);
    let hosts = written.spec.hosts.iter().chain(destinations.chain(streams).map(|one| &one.host));
    let named = hosts.filter_map(|host| resolve(host, namespace, mesh)).collect();
    (named, written.spec.hosts.iter().any(|host| host.starts_with('*')))
}

/// What is wrong with its rules, or not supported, whatever else there is: each by its list and its place in it.
pub(crate) fn virtual_service_flaws(written: &VirtualService, mesh: &Mesh) -> Vec<(&'static str, usize, String)> {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let mut reader = Reader { namespace, references: &Nothing, mesh, notes: BTreeSet::new() };
    let spec = &written.spec;
    let mut flaws = Vec::new();
    let mut note = |list, at, flaw: Option<String>| flaws.extend(flaw.map(|flaw| (list, at, flaw)));
    for (at, rule) in spec.http.iter().enumerate() {
        let flaw = if rule.delegate.is_some() { delegate::flaw(rule) } else { reader.rule(rule).err() };
        note("http", at, flaw);
    }
    for (at, rule) in spec.tls.iter().enumerate() {
        note("tls", at, reader.tls(rule).err());
    }
    for (at, rule) in spec.tcp.iter().enumerate() {
        note("tcp", at, reader.tcp(rule).err());
    }
    flaws
}

/// Where nothing is known of what a route refers to.
struct Nothing;

impl References for Nothing {
    fn service_ports(&self, _: &str, _: &str) -> Option<Vec<u16>> {
        None
    }

    fn virtual_service(&self, _: &str, _: &str) -> Option<Arc<VirtualService>> {
        None
    }

    fn services(&self) -> Vec<(Str, Str)> {
        Vec::new()
    }

    fn waypoint(&self, _: &str, _: &str) -> Option<(Arc<Gateway>, &'static str)> {
        None
    }

    fn binding(&self, _: &str, _: &str) -> Binding {
        Binding::Unasked
    }

    fn protocol(&self, _: &str, _: &str, _: u16) -> AppProtocol {
        AppProtocol::Unknown
    }

    fn is_taken(&self, _: RouteKind, _: Option<&str>, _: &str, _: &str, _: Option<u16>) -> bool {
        false
    }

    fn is_granted(&self, _: Kind, _: &str, _: &str, _: &str) -> bool {
        false
    }
}

/// A regular expression, or what is wrong with it.
fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|error| error.to_string())
}

struct Reader<'a, R> {
    namespace: &'a str,
    references: &'a R,
    mesh: &'a Mesh,
    /// What has no effect, or is not there.
    notes: BTreeSet<String>,
}

impl<R: References> Reader<'_, R> {
    /// What is said of one without hosts.
    fn of_delegate(&self, spec: &VirtualServiceSpec) -> Condition {
        if spec.http.is_empty() || !spec.tls.is_empty() || !spec.tcp.is_empty() {
            let message = "without hosts it is for others to delegate to, and then it has http and nothing else";
            return said("False", "Invalid", message.to_owned());
        }
        let notes = self.notes.iter().map(String::as_str);
        let holds = "it has no hosts: its rules hold in VirtualServices that delegate to it";
        let message = [holds].into_iter().chain(notes).collect::<Vec<_>>().join("; ");
        match self.notes.is_empty() {
            true => said("True", "Accepted", message),
            false => said("False", "PartiallyInvalid", message),
        }
    }
}

#[cfg(test)]
mod tests;
