//! HTTPRoutes, and what they refer to: a Service or ReferenceGrant that changes costs the routes that name it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use stillmesh_core::model::Str;
use stillmesh_core::model::http as model;
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::{Binding, Target};
use stillmesh_k8s::gateway::http_route::{HttpRoute, ReferenceGrant};
use stillmesh_k8s::translate::{self, Mesh, References, Routed};
use stillmesh_k8s::{Kind, ObjectKey};

use super::world::{Grouped, Name, World};
use super::{Builder, Parents, Verdict};

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

    /// Takes what was made of a route. What changes is told; a route whose new version is refused stays as it was.
    fn publish(&mut self, name: &Name, routed: Option<&mut Routed>, set: &mut Vec<Change>, removed: &mut Vec<Change>) {
        let old = self.published.remove(name).unwrap_or_default();
        let new: Vec<Arc<model::HttpRoute>> = match routed {
            Some(routed) if routed.refused && !old.is_empty() => {
                routed.stays_as_it_was();
                old.clone()
            }
            Some(routed) => std::mem::take(&mut routed.routes).into_iter().map(Arc::new).collect(),
            None => Vec::new(),
        };
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

impl Builder {
    /// Builds a route anew, and says what its status should say.
    pub(super) fn build_route(&mut self, name: &Name, set: &mut Vec<Change>, removed: &mut Vec<Change>) -> Verdict {
        let written = self.world.routes.written.get(name).cloned();
        let known = Known { world: &self.world, mesh: &self.mesh };
        let mut routed = written.as_ref().map(|written| translate::http_route(written, &known, &self.mesh));
        self.world.routes.publish(name, routed.as_mut(), set, removed);
        let metadata = written.as_ref().map(|written| &written.metadata);
        let existing = written.as_ref().and_then(|written| written.status.as_ref());
        let existing = existing.map(|status| status.parents.clone()).unwrap_or_default();
        Verdict {
            object: ObjectKey::new(Kind::HttpRoute, &name.0, &name.1),
            condition: None,
            retracted: None,
            generation: metadata.and_then(|metadata| metadata.generation),
            version: metadata.and_then(|metadata| metadata.resource_version.clone()),
            existing: Vec::new(),
            parents: routed.map(|routed| Parents { said: routed.parents, existing }),
        }
    }
}

struct Known<'a> {
    world: &'a World,
    mesh: &'a Mesh,
}

impl References for Known<'_> {
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>> {
        let service = self.world.services.get(&(namespace.into(), name.into()))?;
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        Some(ports.filter_map(|port| u16::try_from(port.port).ok()).collect())
    }

    fn binding(&self, namespace: &str, name: &str) -> Binding {
        let service = self.world.services.get(&(namespace.into(), name.into()));
        service.map_or(Binding::Unasked, |service| self.world.bound(Target::Service, &service.metadata, self.mesh))
    }

    fn is_granted(&self, from: &str, namespace: &str, name: &str) -> bool {
        self.world.routes.grants.of(namespace).any(|(_, grant)| grant.covers_http_routes(from, name))
    }
}
