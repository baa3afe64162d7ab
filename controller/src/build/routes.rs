//! HTTPRoutes, and what they refer to: a Service or ReferenceGrant that changes costs the routes that name it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use stillmesh_core::model::Str;
use stillmesh_core::model::http as model;
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::http_route::{HttpRoute, ReferenceGrant};
use stillmesh_k8s::translate::{self, Mesh, References};

use super::world::{Grouped, Name};

/// The routes, and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub written: Grouped<HttpRoute>,
    grants: Grouped<ReferenceGrant>,
    /// The routes that name a Service, as parent or backend.
    naming: HashMap<Name, BTreeSet<Name>>,
    published: HashMap<Name, Vec<Arc<model::HttpRoute>>>,
}

impl Routes {
    /// A route came, changed or went.
    pub fn replace(&mut self, name: &Name, route: Option<Arc<HttpRoute>>) {
        let old = self.written.replace(name, route.clone());
        for service in old.iter().flat_map(|old| services(name, old)) {
            if let Some(routes) = self.naming.get_mut(&service) {
                routes.remove(name);
                if routes.is_empty() {
                    self.naming.remove(&service);
                }
            }
        }
        for service in route.iter().flat_map(|route| services(name, route)) {
            self.naming.entry(service).or_default().insert(name.clone());
        }
    }

    /// A grant came, changed or went: the routes that may be concerned.
    pub fn replace_grant(&mut self, name: &Name, grant: Option<Arc<ReferenceGrant>>) -> BTreeSet<Name> {
        let old = self.grants.replace(name, grant.clone());
        let from = old.iter().chain(&grant).flat_map(|grant| grant.spec.from.iter());
        from.flat_map(|from| self.written.names_of(&Str::from(from.namespace.as_str())).collect::<Vec<_>>()).collect()
    }

    /// The routes that name a Service.
    pub fn naming(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.naming.get(service).into_iter().flatten()
    }

    /// Builds a route anew.
    pub fn build(
        &mut self,
        name: &Name,
        all: &Grouped<Service>,
        mesh: &Mesh,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) {
        let known = Known { services: all, grants: &self.grants };
        let routed = self.written.get(name).map(|written| translate::http_route(written, &known, mesh));
        let new: Vec<Arc<model::HttpRoute>> =
            routed.into_iter().flat_map(|routed| routed.routes).map(Arc::new).collect();
        let old = self.published.remove(name).unwrap_or_default();
        let gone = old.iter().filter(|old| !new.iter().any(|new| new.key == old.key));
        removed.extend(gone.map(|old| Change::RouteRemoved(old.key.clone())));
        set.extend(new.iter().filter(|new| !old.contains(new)).map(|new| Change::Route(Arc::clone(new))));
        if !new.is_empty() {
            self.published.insert(name.clone(), new);
        }
    }

    /// All that is published.
    pub fn published(&self) -> impl Iterator<Item = &Arc<model::HttpRoute>> {
        self.published.values().flatten()
    }
}

/// The Services that a route names.
fn services(name: &Name, route: &HttpRoute) -> Vec<Name> {
    let named = |namespace: Option<&String>, service: &str| -> Name {
        (namespace.map_or_else(|| name.0.clone(), |other| other.as_str().into()), service.into())
    };
    let parents = route.spec.parent_refs.iter().map(|parent| named(parent.namespace.as_ref(), &parent.name));
    let backends = route.spec.rules.iter().flat_map(|rule| {
        let mirrors = rule.filters.iter().filter_map(|filter| Some(&filter.request_mirror.as_ref()?.backend_ref));
        let backends = rule.backend_refs.iter().map(|one| &one.backend).chain(mirrors);
        backends.map(|one| named(one.namespace.as_ref(), &one.name))
    });
    parents.chain(backends).collect()
}

struct Known<'a> {
    services: &'a Grouped<Service>,
    grants: &'a Grouped<ReferenceGrant>,
}

impl References for Known<'_> {
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>> {
        let service = self.services.get(&(namespace.into(), name.into()))?;
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        Some(ports.filter_map(|port| u16::try_from(port.port).ok()).collect())
    }

    fn is_granted(&self, from: &str, namespace: &str, name: &str) -> bool {
        self.grants.of(namespace).any(|(_, grant)| grant.covers_http_routes(from, name))
    }
}
