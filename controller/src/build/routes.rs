//! Routes, and what they refer to: a Service or ReferenceGrant that changes costs the routes that name it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use stillmesh_core::model::http::{self as model, RouteKind, RouteParent};
use stillmesh_core::model::{AppProtocol, ServiceKey, Str};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::{Binding, Named, Target};
use stillmesh_k8s::gateway::http_route::{
    BackendRef, HttpBackendRef, HttpFilter, ParentRef, ReferenceGrant, RouteStatus,
};
use stillmesh_k8s::gateway::{Gateway, class};
use stillmesh_k8s::istio::virtual_service::VirtualService;
use stillmesh_k8s::translate::{self, Mesh, References, Routed, Virtual};
use stillmesh_k8s::{Kind, Object, ObjectKey};

use super::made::Before;
use super::world::{Grouped, Name, World};
use super::{About, Builder, Dirty, Made, Parents, Verdict};

/// The kinds of routes. What some take decides about those after them.
const KINDS: [Kind; 5] = [Kind::GrpcRoute, Kind::HttpRoute, Kind::TlsRoute, Kind::TcpRoute, Kind::VirtualService];

/// The kind that is without effect beside routes of another.
fn gives_way_to(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::GrpcRoute => Some(Kind::HttpRoute),
        Kind::TlsRoute => Some(Kind::TcpRoute),
        _ => None,
    }
}

/// The routes, and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    written: BTreeMap<ObjectKey, Object>,
    grants: Grouped<ReferenceGrant>,
    /// The routes that name a Service or Gateway, as parent or backend.
    naming: HashMap<Name, BTreeSet<ObjectKey>>,
    published: HashMap<ObjectKey, Vec<Arc<model::HttpRoute>>>,
    /// Those that may mean Services which they do not name.
    wild: BTreeSet<ObjectKey>,
    /// VirtualServices that delegate, and to which others.
    delegating: BTreeMap<ObjectKey, Vec<ObjectKey>>,
    /// What routes take of Services beside which others are without effect: for whose clients, and which port.
    taken: HashMap<Name, BTreeMap<ObjectKey, Vec<Taken>>>,
}

/// For clients of one namespace, or for everybody; one port, or all of them.
type Taken = (Option<Str>, Option<u16>);

impl Routes {
    /// A route came, changed or went.
    pub fn replace(&mut self, key: &ObjectKey, route: Option<Object>, mesh: &Mesh) {
        let named = |route: &Object| names(key, route, mesh);
        let (new, is_wild) = route.as_ref().map(named).unwrap_or_default();
        match is_wild {
            true => self.wild.insert(key.clone()),
            false => self.wild.remove(key),
        };
        let delegates: Vec<ObjectKey> = match &route {
            Some(Object::VirtualService(written)) => {
                let named = translate::delegates(written);
                named.map(|(namespace, name)| ObjectKey::new(Kind::VirtualService, namespace, name)).collect()
            }
            _ => Vec::new(),
        };
        match delegates.is_empty() {
            true => self.delegating.remove(key),
            false => self.delegating.insert(key.clone(), delegates),
        };
        let old = match route {
            Some(route) => self.written.insert(key.clone(), route),
            None => self.written.remove(key),
        };
        for service in old.iter().flat_map(|old| named(old).0) {
            if let Some(routes) = self.naming.get_mut(&service) {
                routes.remove(key);
                if routes.is_empty() {
                    self.naming.remove(&service);
                }
            }
        }
        for service in new {
            self.naming.entry(service).or_default().insert(key.clone());
        }
    }

    /// A grant came, changed or went: the routes that may be concerned.
    pub fn replace_grant(&mut self, name: &Name, grant: Option<Arc<ReferenceGrant>>) -> BTreeSet<ObjectKey> {
        let old = self.grants.replace(name, grant.clone());
        let from: Vec<&str> =
            old.iter().chain(&grant).flat_map(|grant| &grant.spec.from).map(|from| from.namespace.as_str()).collect();
        self.written.keys().filter(|key| from.contains(&&*key.namespace)).cloned().collect()
    }

    /// All routes.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.written.keys()
    }

    /// How many VirtualServices there are.
    pub fn virtual_services(&self) -> usize {
        self.written.keys().filter(|key| key.kind == Kind::VirtualService).count()
    }

    /// The routes that name a Service, or a Gateway.
    pub fn naming(&self, service: &Name) -> impl Iterator<Item = &ObjectKey> {
        self.naming.get(service).into_iter().flatten()
    }

    /// Takes what was made of a route. What changes is told; a route whose new version is refused stays as it was. Says
    /// whether it is.
    fn publish(
        &mut self,
        key: &ObjectKey,
        made: &mut Meaning,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) -> bool {
        let old = self.published.remove(key).unwrap_or_default();
        let (new, refused): (Vec<model::HttpRoute>, bool) = match made {
            Meaning::Nothing => (Vec::new(), false),
            Meaning::Route(routed) => (std::mem::take(&mut routed.routes), routed.refused),
            Meaning::Virtual(read) => (read.route.take().into_iter().collect(), read.refused),
        };
        let stays = refused && !old.is_empty();
        if stays {
            made.stays_as_it_was();
        }
        let new = if stays { old.clone() } else { new.into_iter().map(Arc::new).collect() };
        let gone = old.iter().filter(|old| !new.iter().any(|new| new.key == old.key));
        removed.extend(gone.map(|old| Change::RouteRemoved(old.key.clone())));
        set.extend(new.iter().filter(|new| !old.contains(new)).map(|new| Change::Route(Arc::clone(new))));
        if !new.is_empty() {
            self.published.insert(key.clone(), new);
        }
        refused
    }

    /// Notes what a route takes now. The routes that it may concern, of the kind that gives way to its own.
    fn note_taken(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let Some(concerned_kind) = gives_way_to(key.kind) else { return BTreeSet::new() };
        let mut now: HashMap<Name, Vec<Taken>> = HashMap::new();
        for route in self.published.get(key).into_iter().flatten() {
            for parent in &route.parents {
                now.entry(name_of(parent)).or_default().push((route.consumer.clone(), parent.port));
            }
        }
        let mut concerned: BTreeSet<Name> = BTreeSet::new();
        self.taken.retain(|service, takers| {
            if takers.get(key).is_some_and(|before| now.get(service) != Some(before)) {
                takers.remove(key);
                concerned.insert(service.clone());
            }
            !takers.is_empty()
        });
        for (service, taken) in now {
            let takers = self.taken.entry(service.clone()).or_default();
            if takers.insert(key.clone(), taken).is_none() {
                concerned.insert(service);
            }
        }
        let naming = concerned.iter().flat_map(|service| self.naming(service));
        naming.filter(|key| key.kind == concerned_kind).cloned().collect()
    }

    /// All that is published.
    pub fn published(&self) -> impl Iterator<Item = &Arc<model::HttpRoute>> {
        self.published.values().flatten()
    }
}

/// The Service that a route is attached to.
fn name_of(parent: &RouteParent) -> Name {
    service_name(&parent.service)
}

/// The Service that nodes know by this.
pub(super) fn service_name(service: &ServiceKey) -> Name {
    (service.namespace.clone(), service.hostname.split('.').next().unwrap_or_default().into())
}

/// What was made of a route.
enum Meaning {
    Nothing,
    Route(Routed),
    Virtual(Virtual),
}

impl Meaning {
    fn stays_as_it_was(&mut self) {
        match self {
            Self::Nothing => {}
            Self::Route(routed) => routed.stays_as_it_was(),
            Self::Virtual(read) => read.stays_as_it_was(),
        }
    }
}

/// The Services that a route names, and whether it may mean others besides.
fn names(key: &ObjectKey, route: &Object, mesh: &Mesh) -> (Vec<Name>, bool) {
    match route {
        Object::VirtualService(written) => translate::virtual_service_names(written, mesh),
        route => (read(route).map(|route| route.services(key)).unwrap_or_default(), false),
    }
}

/// A route of the Gateway API as it is written, of whatever kind.
struct Written<'a> {
    parents: &'a [ParentRef],
    status: Option<&'a RouteStatus>,
    /// The backends of all rules, mirrors included.
    backends: Vec<&'a BackendRef>,
}

/// Reads an object as a route.
fn read(object: &Object) -> Option<Written<'_>> {
    fn of_requests<'a>(filters: &'a [HttpFilter], backends: &'a [HttpBackendRef]) -> Vec<&'a BackendRef> {
        let mirrors = filters.iter().filter_map(|filter| Some(&filter.request_mirror.as_ref()?.backend_ref));
        backends.iter().map(|one| &one.backend).chain(mirrors).collect()
    }
    macro_rules! written {
        ($route:expr, $backends:expr) => {
            Written {
                parents: &$route.spec.parent_refs,
                status: $route.status.as_ref(),
                backends: $route.spec.rules.iter().flat_map($backends).collect(),
            }
        };
    }
    match object {
        Object::GrpcRoute(route) => Some(written!(route, |rule| of_requests(&rule.filters, &rule.backend_refs))),
        Object::HttpRoute(route) => Some(written!(route, |rule| of_requests(&rule.filters, &rule.backend_refs))),
        Object::TlsRoute(route) => Some(written!(route, |rule| rule.backend_refs.iter().map(|one| &one.backend))),
        Object::TcpRoute(route) => Some(written!(route, |rule| rule.backend_refs.iter().map(|one| &one.backend))),
        _ => None,
    }
}

impl Written<'_> {
    /// The Services that it names, and Gateways.
    fn services(&self, key: &ObjectKey) -> Vec<Name> {
        let named = |namespace: Option<&String>, service: &str| -> Name {
            (namespace.map_or_else(|| key.namespace.clone(), |other| other.as_str().into()), service.into())
        };
        let parents = self.parents.iter().map(|parent| named(parent.namespace.as_ref(), &parent.name));
        let backends = self.backends.iter().map(|one| named(one.namespace.as_ref(), &one.name));
        parents.chain(backends).collect()
    }
}

impl Builder {
    /// Builds the routes that are concerned, and says what their statuses should say.
    pub(super) fn build_routes(
        &mut self,
        dirty: &Dirty,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
        verdicts: &mut Vec<Verdict>,
        made: &mut Vec<Made>,
    ) {
        // What a route says depends on its Services, and what is said of it on what these are bound to.
        let routes = &self.world.routes;
        let named = dirty.services.iter().flat_map(|name| routes.naming(name));
        let wild = routes.wild.iter().filter(|_| !dirty.services.is_empty());
        let mut all: BTreeSet<ObjectKey> = dirty.routes.iter().chain(named).chain(wild).cloned().collect();
        let delegating = routes.delegating.iter().filter(|(_, to)| to.iter().any(|one| all.contains(one)));
        let delegating: Vec<ObjectKey> = delegating.map(|(key, _)| key.clone()).collect();
        all.extend(delegating);
        for kind in KINDS {
            let of_kind: Vec<ObjectKey> = all.iter().filter(|key| key.kind == kind).cloned().collect();
            for key in of_kind {
                let (verdict, one) = self.build_route(&key, set, removed);
                verdicts.push(verdict);
                made.push(one);
                all.extend(self.world.routes.note_taken(&key));
            }
        }
    }

    fn build_route(&mut self, key: &ObjectKey, set: &mut Vec<Change>, removed: &mut Vec<Change>) -> (Verdict, Made) {
        let before = Before::new(set, removed);
        let object = self.world.routes.written.get(key).cloned();
        let known = Known { world: &self.world, mesh: &self.mesh };
        let mut made = match &object {
            Some(Object::GrpcRoute(route)) => Meaning::Route(translate::grpc_route(route, &known, &self.mesh)),
            Some(Object::HttpRoute(route)) => Meaning::Route(translate::http_route(route, &known, &self.mesh)),
            Some(Object::TlsRoute(route)) => Meaning::Route(translate::tls_route(route, &known, &self.mesh)),
            Some(Object::TcpRoute(route)) => Meaning::Route(translate::tcp_route(route, &known, &self.mesh)),
            Some(Object::VirtualService(written)) => {
                Meaning::Virtual(translate::virtual_service(written, &known, &self.mesh))
            }
            _ => Meaning::Nothing,
        };
        let refused = self.world.routes.publish(key, &mut made, set, removed);
        let metadata = object.as_ref().map(Object::metadata);
        let published = self.world.routes.published.get(key);
        let about = (published.is_some() || refused).then(|| {
            let parents = published.into_iter().flatten().flat_map(|route| &route.parents);
            let waypoints = parents.flat_map(|parent| self.waypoints_of(&name_of(parent))).collect();
            About { nodes: false, waypoints, refused }
        });
        let told = Made::new(key.clone(), metadata, before.since(set, removed), about);
        let mut verdict = Verdict::new(key.clone(), metadata, Vec::new());
        match (made, &object) {
            (Meaning::Route(routed), Some(object)) => {
                let existing = read(object).and_then(|written| written.status);
                let existing = existing.map(|status| status.parents.clone()).unwrap_or_default();
                verdict.parents = Some(Parents { said: routed.parents, existing });
            }
            (Meaning::Virtual(read), Some(Object::VirtualService(written))) => {
                let existing = written.status.as_ref().map(|status| status.conditions.clone());
                verdict.existing = existing.unwrap_or_default();
                verdict.retracted = read.condition.is_none().then_some(translate::ACCEPTED);
                verdict.condition = read.condition;
            }
            _ => {}
        }
        (verdict, told)
    }
}

/// What routes and rules refer to.
pub(super) struct Known<'a> {
    pub world: &'a World,
    pub mesh: &'a Mesh,
}

impl References for Known<'_> {
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>> {
        let service = self.world.services.get(&(namespace.into(), name.into()))?;
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        Some(ports.filter_map(|port| u16::try_from(port.port).ok()).collect())
    }

    fn protocol(&self, namespace: &str, name: &str, port: u16) -> AppProtocol {
        let service = self.world.services.get(&(namespace.into(), name.into()));
        service.map_or(AppProtocol::Unknown, |service| translate::port_protocol(service, port))
    }

    fn virtual_service(&self, namespace: &str, name: &str) -> Option<Arc<VirtualService>> {
        match self.world.routes.written.get(&ObjectKey::new(Kind::VirtualService, namespace, name))? {
            Object::VirtualService(written) => Some(written.clone()),
            _ => None,
        }
    }

    fn services(&self) -> Vec<(Str, Str)> {
        self.world.services.all().map(|(name, _)| name).collect()
    }

    fn waypoint(&self, namespace: &str, name: &str) -> Option<(Arc<Gateway>, &'static str)> {
        let named = Named { namespace: namespace.into(), name: name.into() };
        let gateway = self.world.waypoints.gateway(&named)?;
        let class = gateway.spec.gateway_class_name.as_str();
        let controller = class::waypoint_controller(class, self.world.classes.get(class).map(|class| &**class))?;
        Some((gateway.clone(), controller))
    }

    fn binding(&self, namespace: &str, name: &str) -> Binding {
        let service = self.world.services.get(&(namespace.into(), name.into()));
        service.map_or(Binding::Unasked, |service| self.world.bound(Target::Service, &service.metadata, self.mesh))
    }

    fn is_taken(&self, by: RouteKind, consumer: Option<&str>, namespace: &str, name: &str, port: Option<u16>) -> bool {
        let takers = self.world.routes.taken.get(&(namespace.into(), name.into()));
        let of_kind = |(key, _): &(&ObjectKey, &Vec<Taken>)| match by {
            RouteKind::Grpc => key.kind == Kind::GrpcRoute,
            RouteKind::Tls => key.kind == Kind::TlsRoute,
            RouteKind::Http | RouteKind::Tcp | RouteKind::VirtualService => false,
        };
        let taken: Vec<Option<u16>> = takers
            .into_iter()
            .flat_map(|takers| takers.iter().filter(of_kind).flat_map(|(_, taken)| taken))
            .filter(|(whose, _)| whose.as_deref() == consumer)
            .map(|(_, port)| *port)
            .collect();
        let is_taken = |port: u16| taken.iter().any(|taken| taken.is_none_or(|taken| taken == port));
        match port {
            Some(port) => is_taken(port),
            None => {
                let mut ports = self.service_ports(namespace, name).unwrap_or_default().into_iter().peekable();
                ports.peek().is_some() && ports.all(is_taken)
            }
        }
    }

    fn is_granted(&self, kind: Kind, from: &str, namespace: &str, name: &str) -> bool {
        self.world.routes.grants.of(namespace).any(|(_, grant)| grant.covers(kind, from, name))
    }
}
