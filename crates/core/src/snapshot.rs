//! What is known: an immutable view of the mesh with a generation. One writer makes the next from a batch of
//! changes; a change costs what it touches.
//!
//! A policy whose newest version cannot be read ([`Policy::unreadable`]) keeps its last good version here. Without one
//! it stays as it is and counts as unknown for everything in its scope. [`Stage`] is the writer's side of the promise
//! that a policy is never skipped.

mod accesses;
mod departed;
mod destinations;
mod edit;
mod index;
mod routes;
mod shards;
mod sorted;
mod stage;
mod streams;

use std::net::IpAddr;
use std::sync::Arc;

use departed::Departed;
pub use destinations::{Destination, Treatment};
use edit::Edit;
use index::{Tables, pod_hash};
pub use routes::{Entry, RouteTable, Routes};
use serde::Serialize;
use sorted::{Few, Sorted};
pub use stage::{Stage, UnknownPolicies};
pub use streams::{StreamEntry, StreamTable};

use crate::model::access::{Access, AccessKey, RequestAuthentication, RequestPolicy, RequestSettings};
use crate::model::destination::DestinationRule;
use crate::model::http::{HttpRoute, RouteKey};
use crate::model::telemetry::{Telemetry, TelemetrySettings};
use crate::model::{
    Health, HealthPolicy, NetworkAddress, Policy, PolicyKey, Service, ServiceKey, Str, TunnelProtocol, Visibility,
    Workload, WorkloadUid,
};

/// One change to what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A workload is new or different.
    Workload(Arc<Workload>),
    /// A workload is gone.
    WorkloadRemoved(WorkloadUid),
    /// A service is new or different.
    Service(Arc<Service>),
    /// A service is gone.
    ServiceRemoved(ServiceKey),
    /// A policy is new or different.
    Policy(Arc<Policy>),
    /// A policy is gone.
    PolicyRemoved(PolicyKey),
    /// A route is new or different.
    Route(Arc<HttpRoute>),
    /// A route is gone.
    RouteRemoved(RouteKey),
    /// An object that decides about requests is new or different.
    Access(Arc<Access>),
    /// An object that decides about requests is gone.
    AccessRemoved(AccessKey),
    /// A rule about a service's endpoints is new or different.
    Destination(Arc<DestinationRule>),
    /// A rule about a service's endpoints is gone.
    DestinationRemoved(PolicyKey),
}

/// What a batch of changes may have altered for live connections: which destinations must be decided again.
///
/// A batch that ends where it began touches nothing. A workload that is gone is not in here: nothing is left to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// Every destination must be decided again (a mesh-wide policy changed, or what holds for all requests).
    pub everything: bool,
    /// Every destination in these namespaces. Sorted.
    pub namespaces: Vec<Str>,
    /// These destinations: other policies apply to them, a policy that they name changed, they are new, or they may not be
    /// connected without a tunnel any more. Sorted.
    pub workloads: Vec<WorkloadUid>,
    /// What a waypoint carries for these services: what is attached to them changed. Sorted.
    pub services: Vec<ServiceKey>,
}

impl Touched {
    /// Whether no live connection can be affected.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.namespaces.is_empty() && self.workloads.is_empty() && self.services.is_empty()
    }

    /// Whether connections to `destination` must be decided again.
    pub fn includes(&self, destination: &Workload) -> bool {
        self.everything
            || self.namespaces.binary_search(&destination.namespace).is_ok()
            || self.workloads.binary_search(&destination.uid).is_ok()
    }

    /// Adds what a later batch touched, for readers that take several batches in one pass.
    pub fn merge(&mut self, later: Touched) {
        self.everything |= later.everything;
        self.namespaces.extend(later.namespaces);
        self.namespaces.sort();
        self.namespaces.dedup();
        self.workloads.extend(later.workloads);
        self.workloads.sort();
        self.workloads.dedup();
        self.services.extend(later.services);
        self.services.sort();
        self.services.dedup();
    }
}

/// An immutable view of the mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    generation: u64,
    network: Str,
    unknown: UnknownPolicies,
    tables: Tables,
    departed: Departed,
}

impl Snapshot {
    /// Nothing known yet. `network` is the network that this node is on. Unknown policies are refused.
    pub fn empty(network: impl Into<Str>) -> Self {
        let unknown = UnknownPolicies::Refuse;
        Self {
            generation: 0,
            network: network.into(),
            unknown,
            tables: Tables::default(),
            departed: Departed::default(),
        }
    }

    /// The same view, under which policies that are named and not known do as `unknown` says.
    pub fn with_unknown_policies(self, unknown: UnknownPolicies) -> Self {
        Self { unknown, ..self }
    }

    /// What is done about policies that are named and not known.
    pub fn unknown_policies(&self) -> UnknownPolicies {
        self.unknown
    }

    /// Counts up with every [`Snapshot::apply`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The network that this node is on.
    pub fn network(&self) -> &Str {
        &self.network
    }

    /// The next view. Never fails: changes to unknown names are what they say. Costs what the changes touch.
    pub fn apply(&self, changes: &[Change]) -> (Snapshot, Touched) {
        let mut edit = Edit::new(self);
        changes.iter().for_each(|change| edit.apply(change));
        edit.finish()
    }

    /// Whether `other` knows the same things. Generations, and who left lately, may differ.
    pub fn same_content(&self, other: &Self) -> bool {
        self.network == other.network && self.unknown == other.unknown && self.tables == other.tables
    }

    /// The workload with this key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.tables.workloads.get(uid)
    }

    /// The workload that owns an address (contract 4.5, step 1: pods first, then HBONE). Workloads on the host's
    /// network own none.
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        let standing = |workload: &&Arc<Workload>| {
            (!workload.uid.0.contains("//Pod/"), workload.tunnel_protocol != TunnelProtocol::Hbone)
        };
        self.tables.by_address.get(address)?.iter().min_by_key(standing)
    }

    /// Whether this was a workload's address in the mesh until lately ([`Stage::DEPARTED`]) and is nobody's since. A
    /// connection there must not go in clear: another workload may have the address before this node knows of it.
    pub fn is_departed(&self, address: &NetworkAddress) -> bool {
        self.departed.has(address) && self.workload_at(address).is_none()
    }

    /// The workload of a captured pod: by node, namespace, name and service account.
    pub fn local_workload(
        &self,
        node: &str,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let is_asked_for = |workload: &&Arc<Workload>| {
            (&*workload.node, &*workload.namespace) == (node, namespace)
                && (&*workload.name, &*workload.service_account) == (name, service_account)
        };
        self.tables.by_pod.get(&pod_hash(namespace, name))?.iter().find(is_asked_for)
    }

    /// The service with this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.tables.services.get(key)
    }

    /// The service that `client` reaches at a VIP (contract 4.5, step 1): visible; own namespace, then canonical, then
    /// first by name. Where no VIP is exact, ranges: own namespace, then the longest, then canonical.
    pub fn service_at(&self, client: &Workload, address: IpAddr) -> Option<&Arc<Service>> {
        let key = NetworkAddress::new(self.network.clone(), address);
        let exact = self.tables.by_vip.get(&key).and_then(|few| preferred(few, &client.namespace, None));
        exact.or_else(|| {
            let standing = |(length, service): &(u8, &Arc<Service>)| {
                (service.key.namespace != client.namespace, u8::MAX - length, !service.canonical)
            };
            let visible = |(_, service): &(u8, &Arc<Service>)| is_visible(service, &client.namespace);
            let around = self.tables.services_around(&self.network, address);
            around.filter(visible).min_by_key(standing).map(|(_, service)| service)
        })
    }

    /// The service that `client_namespace` means by a hostname: visible; own namespace, then canonical, then first by
    /// name. `hostname` is compared as it is: ask in lower case.
    pub fn service_named(&self, client_namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.service_named_preferring(client_namespace, hostname, None)
    }

    /// As [`Snapshot::service_named`], with a namespace preferred after the canonical one (DNS: contract 4.6).
    pub fn service_named_preferring(
        &self,
        client_namespace: &str,
        hostname: &str,
        preferred_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        preferred(self.tables.by_hostname.get(hostname)?, client_namespace, preferred_namespace)
    }

    /// Every service with exactly this VIP, seen by nobody in particular. In order of their keys.
    pub(crate) fn services_with_vip(&self, vip: &NetworkAddress) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.by_vip.get(vip).into_iter().flat_map(Few::iter)
    }

    /// Every service with a range around this address, seen by nobody in particular, and the length of its prefix.
    pub(crate) fn services_around(&self, address: IpAddr) -> impl Iterator<Item = (u8, &Arc<Service>)> {
        self.tables.services_around(&self.network, address)
    }

    /// Every service of this hostname, seen by nobody in particular. In order of their keys.
    pub(crate) fn services_called(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.by_hostname.get(hostname).into_iter().flat_map(Few::iter)
    }

    /// Workloads that are endpoints of a service, whether they take traffic or not. In order of their keys.
    pub fn members(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.tables.members.get(service).into_iter().flat_map(Sorted::iter)
    }

    /// Endpoints of a service that take traffic under its health policy (contract 4.5: unhealthy ones only under
    /// `ALLOW_ALL`). In order of their keys.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        let all =
            self.service(service).is_some_and(|known| known.load_balancing.health_policy == HealthPolicy::AllowAll);
        self.members(service).filter(move |workload| all || workload.health == Health::Healthy)
    }

    /// The policy with this key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.tables.policies.get(key)
    }

    /// The policies that apply to a workload and are known: mesh-wide ones, its namespace's, those it names. A policy
    /// may come twice.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let of_namespace = self.tables.by_namespace.get(&*workload.namespace).into_iter().flat_map(Sorted::iter);
        let named = workload.authorization_policies.iter().filter_map(|key| self.policy(key));
        self.tables.global.iter().chain(of_namespace).chain(named)
    }

    /// What this view knows of a workload; what the caller has where it knows nothing.
    pub(crate) fn newest<'a>(&'a self, workload: &'a Workload) -> &'a Workload {
        self.workload(&workload.uid).map_or(workload, Arc::as_ref)
    }

    /// The policies that a workload names and that are not known.
    pub fn missing_policies<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a PolicyKey> {
        workload.authorization_policies.iter().filter(|key| self.policy(key).is_none())
    }

    /// The workloads that name a policy, in order of their keys.
    pub fn workloads_naming(&self, policy: &PolicyKey) -> impl Iterator<Item = &WorkloadUid> {
        self.tables.named_by.get(policy).into_iter().flat_map(Sorted::iter)
    }

    /// The routes for requests to a port of a service that come from `client_namespace`. `None`: no route is attached
    /// to it, and requests go to the service itself.
    pub fn routes(&self, service: &ServiceKey, port: u16, client_namespace: Option<&str>) -> Option<&RouteTable> {
        self.tables.routes.table(service, port, client_namespace)
    }

    /// As [`Snapshot::routes`], for connections that are no HTTP.
    pub fn streams(&self, service: &ServiceKey, port: u16, client_namespace: Option<&str>) -> Option<&StreamTable> {
        self.tables.routes.streams(service, port, client_namespace)
    }

    /// The route with this key.
    pub fn route(&self, key: &RouteKey) -> Option<&Arc<HttpRoute>> {
        self.tables.routes.get(key)
    }

    /// All routes, in no order.
    pub fn all_routes(&self) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.tables.routes.values()
    }

    /// How a waypoint of `namespace` treats a service's endpoints. `None`: nothing is said of them.
    pub fn destination(&self, service: &ServiceKey, namespace: &str) -> Option<&Destination> {
        self.tables.destinations.of(service, namespace)
    }

    /// The rule about a service's endpoints with this key.
    pub fn destination_rule(&self, key: &PolicyKey) -> Option<&Arc<DestinationRule>> {
        self.tables.destinations.get(key)
    }

    /// All rules about services' endpoints, in no order.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.tables.destinations.values()
    }

    /// What is attached to a service that `waypoint` carries requests for, or to the waypoint itself: policies, in order
    /// of their names. `None` for a service: to the waypoint itself alone.
    pub fn request_policies(&self, waypoint: &Workload, service: Option<&ServiceKey>) -> Vec<&RequestPolicy> {
        self.tables.accesses.policies(self.newest(waypoint), service)
    }

    /// As [`Snapshot::request_policies`], whose tokens are believed.
    pub fn request_authentications(
        &self,
        waypoint: &Workload,
        service: Option<&ServiceKey>,
    ) -> Vec<&RequestAuthentication> {
        self.tables.accesses.authentications(self.newest(waypoint), service)
    }

    /// What holds for all requests; `None` where nothing was said.
    pub fn request_settings(&self) -> Option<&RequestSettings> {
        self.tables.accesses.settings()
    }

    /// What is told of requests at a waypoint, and by whom: [`decide::telemetry`](crate::decide::telemetry).
    pub fn telemetry(&self) -> impl Iterator<Item = &Telemetry> {
        self.tables.accesses.telemetry()
    }

    /// What the mesh's configuration says of it; `None` where it says nothing.
    pub fn telemetry_settings(&self) -> Option<&TelemetrySettings> {
        self.tables.accesses.telemetry_settings()
    }

    /// An object that decides about requests.
    pub fn access(&self, key: &AccessKey) -> Option<&Arc<Access>> {
        self.tables.accesses.get(key)
    }

    /// All objects that decide about requests, in no order.
    pub fn accesses(&self) -> impl Iterator<Item = &Arc<Access>> {
        self.tables.accesses.values()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.tables.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.tables.policies.values()
    }

    /// How many workloads, services and policies are known.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.tables.workloads.len(), self.tables.services.len(), self.tables.policies.len())
    }
}

fn is_visible(service: &Service, namespace: &str) -> bool {
    service.visibility == Visibility::Public || &*service.key.namespace == namespace
}

/// Of several services the one that a client of `namespace` means. Ties go to the first by name.
fn preferred<'a>(few: &'a Few<Arc<Service>>, namespace: &str, then: Option<&str>) -> Option<&'a Arc<Service>> {
    let standing = |service: &&Arc<Service>| {
        let owner = &*service.key.namespace;
        (owner != namespace, !service.canonical, Some(owner) != then)
    };
    few.iter().filter(|service| is_visible(service, namespace)).min_by_key(standing)
}

#[cfg(test)]
mod tests;
