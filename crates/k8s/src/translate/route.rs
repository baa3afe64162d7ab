//! What the Gateway API's kinds of routes on Services («GAMMA», contract 7.4) have in common: parents, backends, what is said
//! of them. Their rules are in [`super::http_route`], [`super::grpc_route`] and
//! [`super::stream_route`].

mod backends;
mod filters;
#[cfg(test)]
pub(super) mod fixtures;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::http::{HttpRoute, Pattern, RouteKey, RouteKind, RouteParent, RouteRule};
use stillmesh_core::model::stream::StreamRule;
use stillmesh_core::model::{AppProtocol, Str};

use super::{Mesh, service_key};
use crate::gateway::binding::Binding;
use crate::gateway::condition::{ROUTES, Said};
use crate::gateway::http_route::ParentRef;
use crate::gateway::{Gateway, Listener};
use crate::istio::virtual_service::VirtualService;
use crate::object::{DEFAULT_NAMESPACE, Kind};
use crate::status::Condition;

pub(super) use filters::Filters;

/// What a route refers to: looked up by whoever knows the objects.
pub trait References {
    /// The ports of a Service; `None` where there is none of that name.
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>>;
    /// What is spoken at a port of a Service, as far as it says so.
    fn protocol(&self, namespace: &str, name: &str, port: u16) -> AppProtocol;
    /// A VirtualService, to which others may delegate.
    fn virtual_service(&self, namespace: &str, name: &str) -> Option<Arc<VirtualService>>;
    /// All Services, by namespace and name.
    fn services(&self) -> Vec<(Str, Str)>;
    /// A Gateway, and as whom it is run, where it is a waypoint of ours.
    fn waypoint(&self, namespace: &str, name: &str) -> Option<(Arc<Gateway>, &'static str)>;
    /// Which waypoint a Service is bound to.
    fn binding(&self, namespace: &str, name: &str) -> Binding;
    /// Whether routes of a kind take a port of a Service, or all of them: those that give way to it have none of it then.
    /// For everybody's requests, or for those of a namespace's clients.
    fn is_taken(&self, by: RouteKind, consumer: Option<&str>, namespace: &str, name: &str, port: Option<u16>) -> bool;
    /// Whether a ReferenceGrant lets routes of a kind and namespace refer to a Service of another namespace.
    fn is_granted(&self, kind: Kind, from: &str, namespace: &str, name: &str) -> bool;
}

/// What a route means.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// For waypoints: one for everybody's requests, or one for those of its own namespace, or both. Empty where no parent
    /// is a Service, or none takes it.
    pub routes: Vec<HttpRoute>,
    /// What is said to each parent that is a Service, or a waypoint of ours.
    pub parents: Vec<Said>,
    /// The rules are such that no parent takes them: the last version that was taken stays, if there is one.
    pub refused: bool,
}

impl Routed {
    /// Says that an earlier version stays in force.
    pub fn stays_as_it_was(&mut self) {
        let services = self.parents.iter_mut().filter(|said| said.parent.is_service());
        let said = services.flat_map(|said| &mut said.conditions);
        for condition in said.filter(|one| one.type_ == "Accepted" && one.status == "False") {
            condition.message.push_str("; its last accepted version stays in force");
        }
    }
}

/// Why a part of a route is not used: a reason of the Gateway API, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub reason: &'static str,
    pub message: String,
}

impl Problem {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The rules of a route.
#[derive(Default)]
pub(super) struct Rules {
    requests: Vec<RouteRule>,
    streams: Vec<StreamRule>,
}

impl Rules {
    /// Rules for requests.
    pub fn requests(requests: Vec<RouteRule>) -> Self {
        Self { requests, ..Self::default() }
    }

    /// Rules for connections that are no HTTP.
    pub fn streams(streams: Vec<StreamRule>) -> Self {
        Self { streams, ..Self::default() }
    }
}

/// A route as it is being read.
pub(super) struct Reader<'a, R> {
    kind: Kind,
    metadata: &'a ObjectMeta,
    namespace: &'a str,
    parents: &'a [ParentRef],
    references: &'a R,
    mesh: &'a Mesh,
    /// What of its backends is not there, the first of all.
    unresolved: Option<Problem>,
}

impl<'a, R: References> Reader<'a, R> {
    /// Begins to read a route of a kind.
    pub fn new(
        kind: Kind,
        metadata: &'a ObjectMeta,
        parents: &'a [ParentRef],
        references: &'a R,
        mesh: &'a Mesh,
    ) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        Self { kind, metadata, namespace, parents, references, mesh, unresolved: None }
    }

    /// Whether the route is about one Service, and this is it: its requests go there anyway.
    fn is_only_parent(&self, namespace: &str, name: &str) -> bool {
        let is_it = |parent: &ParentRef| {
            let place = parent.namespace.as_deref().unwrap_or(self.namespace);
            parent.is_service() && place == namespace && parent.name == name
        };
        !self.parents.is_empty() && self.parents.iter().all(is_it)
    }

    /// Ends with its rules.
    pub fn finish(self, rules: Result<Rules, Problem>) -> Routed {
        let mut parents = Vec::new();
        let (mut own, mut consumed) = (Vec::new(), Vec::new());
        for parent in self.parents {
            if !parent.is_service() {
                parents.extend(self.said_to_gateway(parent));
                continue;
            }
            let taken = rules.as_ref().map(|_| ()).map_err(Clone::clone).and_then(|()| self.parent(parent));
            match &taken {
                Ok(found) if parent.namespace.as_deref().is_none_or(|other| other == self.namespace) => {
                    own.push(found.clone());
                }
                Ok(found) => consumed.push(found.clone()),
                Err(_) => {}
            }
            let conditions = self.said(parent, taken);
            parents.push(Said { parent: parent.clone(), controller: ROUTES, conditions });
        }
        let refused = rules.is_err();
        let rules = rules.unwrap_or_default();
        let created = self.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let kind = self.route_kind();
        let route = |suffix: &str, parents: Vec<RouteParent>, consumer: Option<Str>| HttpRoute {
            key: RouteKey { kind, namespace: self.namespace.into(), name: format!("{name}{suffix}").into() },
            parents,
            consumer,
            created,
            rules: rules.requests.clone(),
            streams: rules.streams.clone(),
        };
        // No object's name has an `@`.
        let own = (!own.is_empty()).then(|| route("", own, None));
        let consumed = (!consumed.is_empty()).then(|| route("@consumer", consumed, Some(self.namespace.into())));
        Routed { routes: own.into_iter().chain(consumed).collect(), parents, refused }
    }

    fn route_kind(&self) -> RouteKind {
        match self.kind {
            Kind::GrpcRoute => RouteKind::Grpc,
            Kind::TlsRoute => RouteKind::Tls,
            Kind::TcpRoute => RouteKind::Tcp,
            _ => RouteKind::Http,
        }
    }

    /// What is said to a parent.
    fn said(&self, parent: &ParentRef, taken: Result<RouteParent, Problem>) -> Vec<Condition> {
        let accepted = match taken {
            Ok(_) => Condition::accepted("Accepted", "Route was valid".to_owned()),
            Err(problem) => Condition::not_accepted(problem.reason, problem.message),
        };
        let binding = self.references.binding(parent.namespace.as_deref().unwrap_or(self.namespace), &parent.name);
        vec![accepted, self.resolved(), Condition::waypoints(&binding)]
    }

    /// Whether all that it refers to is there.
    fn resolved(&self) -> Condition {
        match &self.unresolved {
            None => Condition::resolved("All references resolved".to_owned()),
            Some(Problem { reason, message }) => Condition::unresolved(reason, message.clone()),
        }
    }

    /// What is said to a parent that is no Service: a waypoint of ours takes no routes, since its one listener takes tunnels.
    /// Who runs other Gateways speaks of them.
    fn said_to_gateway(&self, parent: &ParentRef) -> Option<Said> {
        if !parent.is_gateway() {
            return None;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
        let (gateway, controller) = self.references.waypoint(namespace, &parent.name)?;
        let is_meant = |listener: &&Listener| {
            parent.section_name.as_ref().is_none_or(|name| *name == listener.name)
                && parent.port.is_none_or(|port| port == listener.port)
        };
        let reason = match gateway.spec.listeners.iter().any(|listener| is_meant(&listener)) {
            true => "NotAllowedByListeners",
            false => "NoMatchingParent",
        };
        let message = format!(
            "Gateway {namespace}/{} is a waypoint, to which no route attaches: name as parent the Service whose traffic the \
             route is about (group: \"\", kind: Service)",
            parent.name
        );
        let conditions = vec![Condition::not_accepted(reason, message), self.resolved()];
        Some(Said { parent: parent.clone(), controller, conditions })
    }

    fn parent(&self, parent: &ParentRef) -> Result<RouteParent, Problem> {
        let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
        let Some(ports) = self.references.service_ports(namespace, &parent.name) else {
            let message = format!("Service {namespace}/{} is not there", parent.name);
            return Err(Problem::new("NoMatchingParent", message));
        };
        if let Some(port) = parent.port.filter(|port| !ports.contains(port)) {
            let message = format!("Service {namespace}/{} has no port {port}", parent.name);
            return Err(Problem::new("NoMatchingParent", message));
        }
        if let Some(section) = &parent.section_name {
            let message = format!("sectionName {section:?}: a Service is attached to by its port");
            return Err(Problem::new("NoMatchingParent", message));
        }
        let kind = self.route_kind();
        let at = parent.port.map_or_else(String::new, |port| format!(", port {port}"));
        let is_for = |port: &&u16| parent.port.is_none_or(|only| only == **port);
        let is_spoken = |port: &u16| fits(kind, self.references.protocol(namespace, &parent.name, *port));
        if !ports.is_empty() && !ports.iter().filter(is_for).any(is_spoken) {
            let needed = if kind == RouteKind::Tls { "TLS" } else { "TCP or TLS" };
            let message = format!(
                "Service {namespace}/{}{at} is by its appProtocol or name no {needed}, which a {kind} is for",
                parent.name
            );
            return Err(Problem::new("NoMatchingParent", message));
        }
        let consumer = (namespace != self.namespace).then_some(self.namespace);
        if let Some(other) = kind.gives_way_to()
            && self.references.is_taken(other, consumer, namespace, &parent.name, parent.port)
        {
            let article = if kind == RouteKind::Http { "an" } else { "a" };
            let message = format!(
                "Service {namespace}/{}{at} has {other}s, beside which {article} {kind} means nothing",
                parent.name
            );
            return Err(Problem::new("Conflicted", message));
        }
        Ok(RouteParent { service: service_key(namespace, &parent.name, self.mesh), port: parent.port })
    }
}

/// Whether connections to a port may be such that routes of a kind are for them.
fn fits(kind: RouteKind, spoken: AppProtocol) -> bool {
    match kind {
        RouteKind::Tls => matches!(spoken, AppProtocol::Tls | AppProtocol::Unknown),
        RouteKind::Tcp => matches!(spoken, AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Unknown),
        RouteKind::Http | RouteKind::Grpc | RouteKind::VirtualService => true,
    }
}

pub(super) fn unsupported(what: &str) -> Problem {
    Problem::new("UnsupportedValue", format!("{what} is not supported"))
}

/// Names of headers have no case.
pub(super) fn lower(name: &str) -> Str {
    name.to_ascii_lowercase().into()
}

pub(super) fn pattern(text: &str) -> Result<Pattern, Problem> {
    Pattern::new(text).map_err(|error| Problem::new("UnsupportedValue", error.to_string()))
}
