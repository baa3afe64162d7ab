//! Routes and rules that do not do what they look like.

use std::collections::{BTreeMap, BTreeSet};

use stillmesh_core::model::http::{HttpRoute, RouteAction, RouteBackend, RouteKind};
use stillmesh_core::model::{AppProtocol, ServiceKey};
use stillmesh_k8s::istio::virtual_service::{HttpMatch, StringMatch, VirtualService};
use stillmesh_k8s::{Kind, Object, ObjectKey};

use super::code;
use super::message::Message;
use super::policies::gateways;
use super::world::World;

/// All that is to be said of routes and rules.
pub(super) fn said(world: &World) -> Vec<Message> {
    let mut all = Vec::new();
    same_hosts(world, &mut all);
    for (key, object) in world.of_kind(Kind::VirtualService) {
        if let Object::VirtualService(written) = object {
            unreachable(world, key, written, &mut all);
        }
    }
    subsets(world, &mut all);
    ports(world, &mut all);
    all
}

fn key_of(route: &HttpRoute) -> ObjectKey {
    let kind = match route.key.kind {
        RouteKind::Http => Kind::HttpRoute,
        RouteKind::Grpc => Kind::GrpcRoute,
        RouteKind::Tls => Kind::TlsRoute,
        RouteKind::Tcp => Kind::TcpRoute,
        RouteKind::VirtualService => Kind::VirtualService,
    };
    // A route for clients of its own namespace alone has a name of its own.
    let name = route.key.name.strip_suffix("@consumer").unwrap_or(&route.key.name);
    ObjectKey::new(kind, &route.key.namespace, name)
}

/// Several VirtualServices about one Service: the rules of the older come first, then those of the other.
fn same_hosts(world: &World, all: &mut Vec<Message>) {
    let mut about: BTreeMap<&ServiceKey, BTreeSet<(i64, ObjectKey)>> = BTreeMap::new();
    for route in world.known.snapshot.all_routes().filter(|one| one.key.kind == RouteKind::VirtualService) {
        for parent in &route.parents {
            about.entry(&parent.service).or_default().insert((route.created, key_of(route)));
        }
    }
    for (service, routes) in about.iter().filter(|(_, routes)| routes.len() > 1) {
        let names: Vec<String> = routes.iter().map(|(_, key)| format!("{}/{}", key.namespace, key.name)).collect();
        for (_, key) in routes {
            let text = format!(
                "several VirtualServices are about {}: {}; their rules are tried in this order, the first that matches \
                 counts",
                service.hostname,
                names.join(", ")
            );
            all.push(world.message(code::SAME_HOSTS, key, text));
        }
    }
}

/// Rules that earlier ones leave nothing for.
fn unreachable(world: &World, key: &ObjectKey, written: &VirtualService, all: &mut Vec<Message>) {
    let mut seen: Vec<(usize, HttpMatch)> = Vec::new();
    let mut everything: Option<usize> = None;
    for (at, rule) in written.spec.http.iter().enumerate() {
        let plain: Vec<HttpMatch> = rule.matches.iter().map(bare).collect();
        let before = plain.iter().map(|one| seen.iter().find(|(_, earlier)| earlier == one).map(|(at, _)| *at));
        let before: Option<Vec<usize>> = before.collect();
        let by = everything.or_else(|| before.filter(|all| !all.is_empty()).and_then(|all| all.first().copied()));
        if let Some(by) = by {
            let name = if rule.name.is_empty() { String::new() } else { format!(" ({})", rule.name) };
            let why = match everything {
                Some(_) => "takes every request",
                None => "takes the same requests",
            };
            let text = format!("spec.http[{at}]{name} is never reached: spec.http[{by}] {why}");
            all.push(world.message(code::UNREACHABLE, key, text));
        }
        if everything.is_none() && (plain.is_empty() || plain.iter().any(takes_all)) {
            everything = Some(at);
        }
        seen.extend(plain.into_iter().map(|one| (at, one)));
    }
}

/// A match without what decides nothing.
fn bare(written: &HttpMatch) -> HttpMatch {
    HttpMatch { name: String::new(), stat_prefix: String::new(), ..written.clone() }
}

fn takes_all(one: &HttpMatch) -> bool {
    let uri = one.uri.as_ref();
    let is_any = uri.is_none_or(|uri| *uri == StringMatch { prefix: Some("/".to_owned()), ..StringMatch::default() });
    is_any && HttpMatch { uri: None, ignore_uri_case: false, ..one.clone() } == HttpMatch::default()
}

/// Subsets without pods, and subsets that no rule defines.
fn subsets(world: &World, all: &mut Vec<Message>) {
    let snapshot = &world.known.snapshot;
    for rule in snapshot.destination_rules() {
        let key = ObjectKey::new(Kind::DestinationRule, &rule.key.namespace, &rule.key.name);
        for subset in rule.subsets.iter().filter(|subset| subset.members.is_empty()) {
            let text =
                format!("no pod of its Services has the labels of subset {}: what goes there fails", subset.name);
            all.push(world.message(code::EMPTY_SUBSET, &key, text));
        }
    }
    for route in snapshot.all_routes() {
        let forwards = route.rules.iter().filter_map(|rule| match &rule.action {
            RouteAction::Forward(forward) => Some(forward),
            _ => None,
        });
        let backends = forwards.flat_map(|forward| &forward.backends).map(|one| &one.backend);
        let streams = route.streams.iter().flat_map(|rule| &rule.backends).map(|one| &one.backend);
        let parents = route.parents.iter().filter_map(|parent| snapshot.service(&parent.service));
        let waypoints: BTreeSet<_> =
            parents.flat_map(|service| gateways(service.waypoints())).map(|key| key.namespace).collect();
        for backend in backends.chain(streams) {
            let RouteBackend::Service { service, port, subset: Some(subset) } = backend else { continue };
            let port = port.map_or(0, u16::from);
            let is_unknown = waypoints.iter().any(|namespace| {
                let destination = snapshot.destination(service, namespace);
                destination.is_none_or(|one| one.treatment(port, Some(subset)).is_none())
            });
            if is_unknown {
                let text = format!(
                    "no DestinationRule for {} defines subset {subset} where its waypoint is: what goes there fails",
                    service.hostname
                );
                all.push(world.message(code::NOT_FOUND, &key_of(route), text));
            }
        }
    }
}

/// What ports say of what is spoken there, where a waypoint goes by it.
fn ports(world: &World, all: &mut Vec<Message>) {
    let known = &world.known;
    for service in known.services.iter().filter(|service| service.waypoint.is_some()) {
        for port in service.ports.iter().filter(|port| port.protocol() == AppProtocol::Unknown) {
            let text = format!(
                "port {} does not say what is spoken: the waypoint goes by the first bytes, and protocols whose server \
                 speaks first wait for that; say it by appProtocol, or by a name that begins with http, http2, grpc, tls or tcp",
                port.mapping.service_port
            );
            all.push(world.message(code::UNNAMED_PORT, &world.service(&service.key), text));
        }
    }
    for route in known.snapshot.all_routes().filter(|route| !route.rules.is_empty()) {
        for parent in &route.parents {
            let Some(service) = known.snapshot.service(&parent.service) else { continue };
            let is_meant = |port: u16| parent.port.is_none_or(|only| only == port);
            for port in service.ports.iter().filter(|port| is_meant(port.mapping.service_port)) {
                let spoken = match port.protocol() {
                    AppProtocol::Tcp => "TCP",
                    AppProtocol::Tls => "TLS",
                    _ => continue,
                };
                // Of several ports only some may be for requests.
                if parent.port.is_none() && service.ports.len() > 1 {
                    continue;
                }
                let text = format!(
                    "port {} of {} says by its appProtocol or name that it speaks {spoken}: requests are not read there, \
                     and the route has no effect",
                    port.mapping.service_port, parent.service.hostname
                );
                all.push(world.message(code::NOT_HTTP, &key_of(route), text));
            }
        }
    }
}
