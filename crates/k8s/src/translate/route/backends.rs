//! Where a rule's requests go.

use std::num::NonZeroU16;

use stillmesh_core::model::http::{RouteBackend, WeightedBackend};

use super::{Filters, Problem, Reader, References, unsupported};
use crate::gateway::http_route::{BackendRef, HttpBackendRef};
use crate::translate::service_key;

impl<R: References> Reader<'_, R> {
    /// A backend with its share.
    pub fn weighted(&mut self, written: &HttpBackendRef) -> Result<WeightedBackend, Problem> {
        let filters = Filters::read(&written.filters, &mut |backend| self.backend(backend))?;
        let elsewhere = [
            ("RequestRedirect", filters.redirect.is_some()),
            ("RequestMirror", !filters.mirrors.is_empty()),
            ("CORS", filters.cors.is_some()),
            ("URLRewrite of a path", filters.rewrite.path.is_some()),
        ];
        if let Some((filter, _)) = elsewhere.iter().find(|(_, is_there)| *is_there) {
            return Err(unsupported(&format!("{filter} at a backendRef")));
        }
        Ok(WeightedBackend {
            backend: self.backend(&written.backend),
            weight: written.weight.unwrap_or(1),
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            authority: filters.rewrite.authority,
        })
    }

    /// A backend; what it lacks is noted.
    pub fn backend(&mut self, written: &BackendRef) -> RouteBackend {
        match self.resolve(written) {
            Ok(backend) => backend,
            Err(problem) => {
                let said = problem.message.clone();
                self.unresolved.get_or_insert(problem);
                RouteBackend::Invalid { problem: said.into() }
            }
        }
    }

    fn resolve(&self, written: &BackendRef) -> Result<RouteBackend, Problem> {
        let (group, kind) = (written.group.as_deref().unwrap_or(""), written.kind.as_deref().unwrap_or("Service"));
        let namespace = written.namespace.as_deref().unwrap_or(self.namespace);
        let name = &written.name;
        if (group, kind) != ("", "Service") {
            let message = format!("{kind} of group {group:?} cannot take requests: a Service can");
            return Err(Problem::new("InvalidKind", message));
        }
        let is_open = namespace == self.namespace
            || self.is_only_parent(namespace, name)
            || self.references.is_granted(self.kind, self.namespace, namespace, name);
        if !is_open {
            let message = format!(
                "Service {namespace}/{name} is not open to routes of namespace {}: a ReferenceGrant in {namespace} is needed",
                self.namespace
            );
            return Err(Problem::new("RefNotPermitted", message));
        }
        let Some(ports) = self.references.service_ports(namespace, name) else {
            return Err(Problem::new("BackendNotFound", format!("Service {namespace}/{name} is not there")));
        };
        let Some(port) = written.port.and_then(NonZeroU16::new) else {
            let message = format!("Service {namespace}/{name}: the port is missing");
            return Err(Problem::new("UnsupportedValue", message));
        };
        if !ports.contains(&port.get()) {
            let message = format!("Service {namespace}/{name} has no port {port}");
            return Err(Problem::new("BackendNotFound", message));
        }
        let service = service_key(namespace, name, self.mesh);
        Ok(RouteBackend::Service { service, port: Some(port), subset: None })
    }
}
