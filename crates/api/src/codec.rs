//! Wire to model and back. Bad input is refused here, once, with an error that names the resource and the field.
//!
//! Called by the delta client for everything the control plane sends, and by the store for everything it
//! publishes. Never panics on a peer's bytes.

pub mod access;
pub mod address;
pub mod authorization;
pub mod destination;
mod fields;
pub mod route;
mod scan;
#[cfg(test)]
pub(crate) mod tests;
mod texts;

use bytes::Bytes;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::{PolicyKey, ServiceKey, WorkloadUid};
use stillmesh_core::snapshot::Change;

use crate::xds::ResourceType;

/// A resource that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {problem}")]
pub struct CodecError {
    /// The resource's name as sent.
    pub resource: String,
    /// The field, with the path to it.
    pub field: String,
    /// What is wrong with it and what is accepted.
    pub problem: String,
}

impl CodecError {
    /// Field and problem without the resource's name: a NACK has that beside it.
    pub fn reason(&self) -> String {
        format!("{}: {}", self.field, self.problem)
    }
}

impl Diagnose for CodecError {
    fn code(&self) -> &'static str {
        "API001"
    }

    fn fault(&self) -> Fault {
        Fault::Upstream
    }

    fn remedy(&self) -> &'static str {
        "the control plane sent a resource that this node cannot use: compare their versions"
    }
}

/// A field's problem, before the resource is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldError {
    field: String,
    problem: String,
}

impl FieldError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// Puts an outer field's name in front.
    fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), problem: self.problem }
    }

    fn of(self, resource: &str) -> CodecError {
        CodecError { resource: resource.to_owned(), field: self.field, problem: self.problem }
    }
}

/// Reads one resource of a response. A policy that cannot be read in full comes back as a change whose policy says
/// so in [`stillmesh_core::model::Policy::unreadable`].
pub fn decode(kind: ResourceType, name: &str, bytes: Bytes) -> Result<Change, CodecError> {
    match kind {
        ResourceType::Address => address::decode(name, bytes),
        ResourceType::Authorization => authorization::decode(name, bytes).map(|policy| Change::Policy(policy.into())),
        ResourceType::Route => route::decode(name, bytes).map(|route| Change::Route(route.into())),
        ResourceType::Access => access::decode(name, bytes).map(|access| Change::Access(access.into())),
        ResourceType::Destination => destination::decode(name, bytes).map(|rule| Change::Destination(rule.into())),
    }
}

/// A resource as it is sent; `None` for a removal, which is a name alone.
pub fn encode(change: &Change) -> Option<Vec<u8>> {
    Some(match change {
        Change::Workload(workload) => address::encode_workload(workload),
        Change::Service(service) => address::encode_service(service),
        Change::Policy(policy) => authorization::encode(policy),
        Change::Route(route) => route::encode(route),
        Change::Access(access) => access::encode(access),
        Change::Destination(rule) => destination::encode(rule),
        Change::WorkloadRemoved(_)
        | Change::ServiceRemoved(_)
        | Change::PolicyRemoved(_)
        | Change::RouteRemoved(_)
        | Change::AccessRemoved(_)
        | Change::DestinationRemoved(_) => return None,
    })
}

/// What the removal of a name means; `None` where it is no policy's or route's key. A name that nothing has (an alias, say) may
/// come out: its removal changes nothing.
pub fn removed(kind: ResourceType, name: &str) -> Option<Change> {
    match kind {
        ResourceType::Authorization => PolicyKey::parse(name).map(Change::PolicyRemoved),
        ResourceType::Route => route::key(name).map(Change::RouteRemoved),
        ResourceType::Access => access::key(name).map(Change::AccessRemoved),
        ResourceType::Destination => PolicyKey::parse(name).map(Change::DestinationRemoved),
        // Contract 4.2: more than one slash is a workload, else a service; what cannot be a service's key is neither
        // or a workload of a foreign control plane.
        ResourceType::Address => Some(match ServiceKey::parse(name) {
            Some(key) => Change::ServiceRemoved(key),
            None => Change::WorkloadRemoved(WorkloadUid(name.into())),
        }),
    }
}

/// The type and name under which a change travels.
pub fn name(change: &Change) -> (ResourceType, String) {
    match change {
        Change::Workload(workload) => (ResourceType::Address, workload.uid.to_string()),
        Change::WorkloadRemoved(uid) => (ResourceType::Address, uid.to_string()),
        Change::Service(service) => (ResourceType::Address, service.key.to_string()),
        Change::ServiceRemoved(key) => (ResourceType::Address, key.to_string()),
        Change::Policy(policy) => (ResourceType::Authorization, policy.key.to_string()),
        Change::PolicyRemoved(key) => (ResourceType::Authorization, key.to_string()),
        Change::Route(route) => (ResourceType::Route, route::name(&route.key)),
        Change::RouteRemoved(key) => (ResourceType::Route, route::name(key)),
        Change::Access(access) => (ResourceType::Access, access::name(&access.key())),
        Change::AccessRemoved(key) => (ResourceType::Access, access::name(key)),
        Change::Destination(rule) => (ResourceType::Destination, rule.key.to_string()),
        Change::DestinationRemoved(key) => (ResourceType::Destination, key.to_string()),
    }
}
