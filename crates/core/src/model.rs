//! What exists in a mesh: names, identities, addresses, workloads, services and policies.
//!
//! These types mirror the workload API (contract 4.3) and the authorization API (contract 5.1) one to one, after
//! the codec has refused what is malformed: a value of these types is always meaningful.

pub mod access;
mod address;
pub mod destination;
pub mod http;
mod identity;
mod name;
mod policy;
mod quarantine;
mod service;
pub mod stream;
pub mod telemetry;
mod workload;

pub use address::{NetworkAddress, NetworkCidr};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use name::{PolicyKey, ServiceKey, Str, WorkloadUid};
pub use policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use service::RoutingScope;
pub use service::{
    AppProtocol, Gateway, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing, Mode, Service, ServicePort,
    Visibility,
};
pub use workload::{
    ApplicationTunnel, Health, Locality, NetworkMode, PortMapping, TunnelProtocol, Workload, WorkloadType,
};
