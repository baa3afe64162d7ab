//! Route objects joined by service, each port's matches in the order in which they are asked, and an index so that a
//! thousand routes cost a request what one does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::shards::Shards;
use super::streams::StreamTable;
use crate::model::http::{HttpRoute, PathMatch, RequestMatch, RouteKey, RouteKind, RouteRule};
use crate::model::{ServiceKey, Str};

/// All routes. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    by_key: Shards<RouteKey, Arc<HttpRoute>>,
    by_service: Shards<ServiceKey, Arc<ServiceRoutes>>,
}

impl Routes {
    /// The route with this key.
    pub fn get(&self, key: &RouteKey) -> Option<&Arc<HttpRoute>> {
        self.by_key.get(key)
    }

    /// All routes, in no order.
    pub fn values(&self) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.by_key.values()
    }

    /// The routes for requests of `client_namespace` to a port of a service: a route of the client's own namespace
    /// stands in place of the service's own.
    pub fn table(&self, service: &ServiceKey, port: u16, client_namespace: Option<&str>) -> Option<&RouteTable> {
        of_client(&self.by_service.get(service)?.tables, port, client_namespace)
    }

    /// As [`Routes::table`], for connections that are no HTTP.
    pub fn streams(&self, service: &ServiceKey, port: u16, client_namespace: Option<&str>) -> Option<&StreamTable> {
        of_client(&self.by_service.get(service)?.streams, port, client_namespace)
    }

    /// Puts routes in and takes them out; joins each touched service once.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = (RouteKey, Option<Arc<HttpRoute>>)>) {
        let mut touched: BTreeMap<ServiceKey, BTreeSet<RouteKey>> = BTreeMap::new();
        let mut touch = |route: &HttpRoute| {
            for parent in &route.parents {
                touched.entry(parent.service.clone()).or_default().insert(route.key.clone());
            }
        };
        for (key, route) in changes {
            if self.by_key.get(&key) == route.as_ref() {
                continue;
            }
            route.as_deref().into_iter().for_each(&mut touch);
            let before = match route {
                Some(route) => self.by_key.insert(key, route),
                None => self.by_key.remove(&key),
            };
            before.as_deref().into_iter().for_each(&mut touch);
        }
        for (service, keys) in touched {
            let known = self.by_service.get(&service).map(|routes| routes.routes.as_slice()).unwrap_or_default();
            let mut routes: Vec<Arc<HttpRoute>> =
                known.iter().filter(|route| !keys.contains(&route.key)).cloned().collect();
            let is_of = |route: &&Arc<HttpRoute>| route.parents.iter().any(|parent| parent.service == service);
            routes.extend(keys.iter().filter_map(|key| self.by_key.get(key)).filter(is_of).cloned());
            if routes.is_empty() {
                self.by_service.remove(&service);
            } else {
                let joined = Arc::new(ServiceRoutes::new(&service, routes));
                self.by_service.insert(service, joined);
            }
        }
    }
}

/// By whose clients they are for (`None`: everybody's), then by port (`None`: every other port).
type Tables<T> = HashMap<Option<Str>, HashMap<Option<u16>, T, RandomState>, RandomState>;

fn of_client<'a, T>(tables: &'a Tables<T>, port: u16, client_namespace: Option<&str>) -> Option<&'a T> {
    let of = |consumer: &Option<Str>| {
        let ports = tables.get(consumer)?;
        ports.get(&Some(port)).or_else(|| ports.get(&None))
    };
    let is_for_some = tables.keys().any(Option::is_some);
    let own = client_namespace.filter(|_| is_for_some).and_then(|namespace| of(&Some(namespace.into())));
    own.or_else(|| of(&None))
}

/// The routes of one service.
#[derive(Debug)]
struct ServiceRoutes {
    routes: Vec<Arc<HttpRoute>>,
    tables: Tables<RouteTable>,
    streams: Tables<StreamTable>,
}

impl PartialEq for ServiceRoutes {
    fn eq(&self, other: &Self) -> bool {
        // The tables are made of nothing else, in whatever order the routes came.
        self.routes.len() == other.routes.len() && self.routes.iter().all(|route| other.routes.contains(route))
    }
}

impl ServiceRoutes {
    fn new(service: &ServiceKey, routes: Vec<Arc<HttpRoute>>) -> Self {
        let of_requests = routes.iter().filter(|route| route.is_for_requests());
        let of_streams = routes.iter().filter(|route| route.is_for_streams());
        let tables = joined(service, of_requests, |routes| RouteTable::new(routes.into_iter()));
        let streams = joined(service, of_streams, |routes| StreamTable::new(routes.into_iter()));
        Self { routes, tables, streams }
    }
}

/// The routes of a service by whose clients and which port they are for.
fn joined<'a, T>(
    service: &ServiceKey,
    routes: impl Iterator<Item = &'a Arc<HttpRoute>>,
    table: impl Fn(Vec<Arc<HttpRoute>>) -> T,
) -> Tables<T> {
    let ports_of = |route: &HttpRoute| -> Vec<Option<u16>> {
        route.parents.iter().filter(|parent| parent.service == *service).map(|parent| parent.port).collect()
    };
    let mut consumers: BTreeMap<Option<Str>, Vec<&Arc<HttpRoute>>> = BTreeMap::new();
    for route in routes {
        consumers.entry(route.consumer.clone()).or_default().push(route);
    }
    let tables = consumers.into_iter().map(|(consumer, routes)| {
        let ports: BTreeSet<Option<u16>> = routes.iter().flat_map(|route| ports_of(route)).collect();
        let on_port = |port: Option<u16>| {
            let on = |route: &&&Arc<HttpRoute>| {
                ports_of(route).into_iter().any(|of_route| of_route.is_none() || of_route == port)
            };
            let there: Vec<&Arc<HttpRoute>> = routes.iter().filter(on).copied().collect();
            let counts = |route: &&&Arc<HttpRoute>| {
                let before = route.key.kind.gives_way_to();
                before.is_none_or(|kind| there.iter().all(|other| other.key.kind != kind))
            };
            (port, table(there.iter().filter(counts).map(|route| Arc::clone(route)).collect()))
        };
        (consumer, ports.into_iter().map(on_port).collect())
    });
    tables.collect()
}

/// Matches in the order in which they are asked.
#[derive(Debug, Default)]
pub struct RouteTable {
    entries: Vec<Entry>,
    exact: HashMap<Str, Vec<usize>, RandomState>,
    prefixes: HashMap<Str, Vec<usize>, RandomState>,
    /// Of the prefixes; ascending.
    lengths: Vec<usize>,
    /// Entries whose path is not indexed.
    rest: Vec<usize>,
}

/// One match of a rule, or a rule without any.
#[derive(Debug)]
pub struct Entry {
    /// The route.
    pub route: Arc<HttpRoute>,
    /// Its rule, from 0.
    pub rule_index: usize,
    /// The match in the rule, from 0; `None`: the rule has none and takes every request.
    pub match_index: Option<usize>,
}

impl Entry {
    /// The rule. `None` cannot be: entries are made from the rules there are.
    pub fn rule(&self) -> Option<&RouteRule> {
        self.route.rules.get(self.rule_index)
    }

    /// What it asks of requests.
    pub fn matched(&self) -> Option<&RequestMatch> {
        self.rule()?.matches.get(self.match_index?)
    }
}

impl RouteTable {
    fn new(routes: impl Iterator<Item = Arc<HttpRoute>>) -> Self {
        let mut entries = Vec::new();
        for route in routes {
            for (rule_index, rule) in route.rules.iter().enumerate() {
                let entry = |match_index| Entry { route: route.clone(), rule_index, match_index };
                if rule.matches.is_empty() {
                    entries.push(entry(None));
                }
                entries.extend((0..rule.matches.len()).map(|index| entry(Some(index))));
            }
        }
        entries.sort_by(|one, other| standing(one).cmp(&standing(other)));
        let mut table = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            match entry.matched().and_then(|matched| matched.path.as_ref()) {
                Some(PathMatch::Exact(path)) => table.exact.entry(path.clone()).or_default().push(index),
                Some(PathMatch::Segments(prefix) | PathMatch::Prefix(prefix)) => {
                    table.prefixes.entry(prefix.clone()).or_default().push(index);
                }
                _ => table.rest.push(index),
            }
        }
        let lengths: BTreeSet<usize> = table.prefixes.keys().map(|prefix| prefix.len()).collect();
        table.lengths = lengths.into_iter().collect();
        table.entries = entries;
        table
    }

    /// The first entry that `holds`, in order. Asks only entries whose path may be that of the request.
    pub fn first(&self, path: &str, holds: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        let exact = self.exact.get(path).into_iter();
        let begins = self.lengths.iter().map_while(|length| (*length <= path.len()).then(|| path.get(..*length)));
        let prefixes = begins.flatten().filter_map(|begin| self.prefixes.get(begin));
        let mut first: Option<usize> = None;
        for list in exact.chain(prefixes).chain(std::iter::once(&self.rest)) {
            let before = list.iter().copied().take_while(|index| first.is_none_or(|first| *index < first));
            first = before.into_iter().find(|index| self.entries.get(*index).is_some_and(&holds)).or(first);
        }
        self.entries.get(first?)
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// Gateway API's order: exact paths, then the longest beginning, then patterns; then those that ask for a method, for most
/// headers, for most query parameters; then the oldest object, the first by name, and the order in it. Of GRPCRoutes the one
/// that asks for most of the service's name comes first, then of the method's, then for most headers. A VirtualService
/// keeps its own order, after all of those; of several the oldest comes first.
fn standing(entry: &Entry) -> impl Ord + '_ {
    let route = &*entry.route;
    let by_age = (route.created, &route.key.namespace, &route.key.name, route.key.kind);
    let by_place = (entry.rule_index, entry.match_index);
    if route.key.kind == RouteKind::VirtualService {
        return (1, (Reverse(0), Reverse(0), Reverse(false), Reverse(0), Reverse(0)), by_age, by_place);
    }
    let nothing = RequestMatch::default();
    let matched = entry.matched().unwrap_or(&nothing);
    if route.key.kind == RouteKind::Grpc {
        let (service, method) = matched.path.as_ref().map_or((0, 0), PathMatch::grpc_lengths);
        let asked = (
            Reverse(service),
            Reverse(method),
            Reverse(false),
            Reverse(matched.headers.len()),
            Reverse(matched.query.len()),
        );
        return (0, asked, by_age, by_place);
    }
    let (class, length) = match &matched.path {
        Some(PathMatch::Exact(path) | PathMatch::ExactIgnoringCase(path)) => (3, path.len()),
        Some(PathMatch::Segments(path) | PathMatch::Prefix(path) | PathMatch::PrefixIgnoringCase(path)) => {
            (2, path.len())
        }
        Some(PathMatch::Regex(pattern)) => (1, pattern.text().len()),
        // As «/», the beginning of every path.
        None => (2, 0),
    };
    let asked = (
        Reverse(class),
        Reverse(length),
        Reverse(matched.method.is_some()),
        Reverse(matched.headers.len()),
        Reverse(matched.query.len()),
    );
    (0, asked, by_age, by_place)
}
