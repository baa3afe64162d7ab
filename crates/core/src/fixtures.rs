//! Builders for tests: a small mesh in a few words.
//!
//! ```
//! # use stillmesh_core::fixtures::World;
//! let world = World::new().strict().workload("a").workload("b").policy_ref("b", "ns/not-sent-yet");
//! let decision = world.connect("a", "b", 8080);
//! assert!(!decision.allowed());
//! assert_eq!(decision.reason().code(), "POLICY_UNKNOWN");
//! ```
//!
//! Names are `namespace/name`, or `name` in namespace `ns`. Misuse panics: this module is for tests only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::attrs::{Authority, ConnectAttrs, InboundAttrs, OutboundAttrs};
use crate::decide::{self, Dial, InboundPlan, OutboundPlan, OutboundProtocol, Refusal, Verdict};
use crate::explain::Reason;
use crate::model::{
    Action, Clause, Gateway, GatewayDestination, Health, Identity, IpFamilies, LoadBalancing, Locality, Match,
    NetworkAddress, NetworkMode, Policy, PolicyKey, PortMapping, Rule, Scope, Service, ServiceKey, ServicePort,
    StringMatch, TrustDomain, TunnelProtocol, Visibility, Workload, WorkloadType, WorkloadUid,
};
use crate::snapshot::{Change, Snapshot, UnknownPolicies};

/// The policy that STRICT becomes (contract 5.4).
pub const STATIC_STRICT: &str = "istio-system/istio_converted_static_strict";

/// A healthy HBONE workload without addresses, on node `node-1`, with a service account of its own name.
pub fn workload(name: &str) -> Workload {
    let (namespace, name) = names(name);
    Workload {
        uid: uid(&format!("{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
        trust_domain: TrustDomain::default(),
        service_account: name.into(),
        addresses: Vec::new(),
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        node: "node-1".into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: Vec::new(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        locality: Locality::default(),
        capacity: 1,
        direct: false,
    }
}

/// A canonical Kubernetes service without VIPs, with these ports as `(service port, target port)`.
pub fn service(name: &str, ports: &[(u16, u16)]) -> Service {
    let key = service_key(name);
    let port = |(service_port, target_port): &(u16, u16)| ServicePort {
        mapping: PortMapping { service_port: *service_port, target_port: *target_port },
        app_protocol: 0,
    };
    Service {
        name: names(name).1.into(),
        key,
        vips: Vec::new(),
        cidr_vips: Vec::new(),
        ports: ports.iter().map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        visibility: Visibility::Public,
    }
}

/// A policy whose rules each have one clause with one match.
pub fn policy(name: &str, scope: Scope, action: Action, matches: Vec<Match>) -> Policy {
    let rule = |matched| Rule { clauses: vec![Clause { matches: vec![matched] }] };
    let rules = matches.into_iter().map(rule).collect();
    Policy { key: policy_key(name), scope, action, rules, dry_run: false, unreadable: None, order: None }
}

/// Endpoints to which nothing has been sent, known for long.
#[derive(Debug)]
pub struct Idle;

impl decide::Live for Idle {
    fn active(&self, _: &WorkloadUid) -> u64 {
        0
    }

    fn is_ejected(&self, _: &WorkloadUid) -> bool {
        false
    }

    fn age(&self, _: &WorkloadUid) -> Duration {
        Duration::MAX
    }
}

/// Matches one workload's principal.
pub fn from(name: &str) -> Match {
    let principal = Identity::new(TrustDomain::default(), names(name).0, names(name).1).principal();
    Match { principals: vec![StringMatch::Exact(principal.into())], ..Match::default() }
}

/// Matches one target port.
pub fn to_port(port: u16) -> Match {
    Match { destination_ports: vec![port], ..Match::default() }
}

/// Matches clear text.
pub fn clear_text() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

/// A workload's primary key.
pub fn uid(name: &str) -> WorkloadUid {
    let (namespace, name) = names(name);
    WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}").into())
}

/// A service's primary key.
pub fn service_key(name: &str) -> ServiceKey {
    let (namespace, name) = names(name);
    ServiceKey::new(namespace, format!("{name}.{namespace}.svc.cluster.local"))
}

/// A policy's primary key.
pub fn policy_key(name: &str) -> PolicyKey {
    PolicyKey::new(names(name).0, names(name).1)
}

fn names(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("ns", name))
}

/// A small mesh. Each method adds to it and returns it.
#[derive(Clone, Debug)]
pub struct World {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    unknown: UnknownPolicies,
    is_strict: bool,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty mesh.
    pub fn new() -> Self {
        Self {
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            unknown: UnknownPolicies::Refuse,
            is_strict: false,
        }
    }

    /// Mutual TLS is required of every workload, as a PeerAuthentication in the root namespace would have it.
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self.policy(policy(STATIC_STRICT, Scope::WorkloadSelector, Action::Deny, vec![clear_text()]))
    }

    /// Under a foreign control plane: unknown policies are passed over.
    pub fn foreign(mut self) -> Self {
        self.unknown = UnknownPolicies::Allow;
        self
    }

    /// Adds a workload at the next free address of `10.0.0.0/16` and of `fd00::/112`.
    pub fn workload(self, name: &str) -> Self {
        self.workload_with(name, |_| ())
    }

    /// Adds a workload that is different from others in some way.
    pub fn workload_with(mut self, name: &str, change: impl FnOnce(&mut Workload)) -> Self {
        let mut new = workload(name);
        let number = u16::try_from(self.workloads.len()).unwrap_or(u16::MAX).saturating_add(1);
        let [high, low] = number.to_be_bytes();
        new.addresses =
            vec![Ipv4Addr::new(10, 0, high, low).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number).into()];
        change(&mut new);
        self.workloads.push(new);
        self
    }

    /// Adds a service at the next free VIP of `10.1.0.0/16` and of `fd01::/112`, with these workloads as endpoints.
    pub fn service(self, name: &str, ports: &[(u16, u16)], endpoints: &[&str]) -> Self {
        self.service_with(name, ports, endpoints, |_| ())
    }

    /// Adds a service that is different from others in some way.
    pub fn service_with(
        mut self,
        name: &str,
        ports: &[(u16, u16)],
        endpoints: &[&str],
        change: impl FnOnce(&mut Service),
    ) -> Self {
        let mut new = service(name, ports);
        let number = u16::try_from(self.services.len()).unwrap_or(u16::MAX).saturating_add(1);
        let [high, low] = number.to_be_bytes();
        let vips = [Ipv4Addr::new(10, 1, high, low).into(), Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number).into()];
        new.vips = vips.map(|vip: IpAddr| NetworkAddress::new("", vip)).to_vec();
        change(&mut new);
        for endpoint in endpoints {
            self = self.edit(endpoint, |workload| workload.services.push((new.key.clone(), Vec::new())));
        }
        self.services.push(new);
        self
    }

    /// Changes a workload.
    pub fn edit(mut self, name: &str, change: impl FnOnce(&mut Workload)) -> Self {
        let found = self.workloads.iter_mut().find(|workload| workload.uid == uid(name));
        assert!(found.is_some(), "no workload {name} in this world");
        found.into_iter().for_each(change_once(change));
        self
    }

    /// Adds a policy.
    pub fn policy(mut self, new: Policy) -> Self {
        self.policies.push(new);
        self
    }

    /// Adds an allow policy of its namespace.
    pub fn allow(self, name: &str, matches: Vec<Match>) -> Self {
        self.policy(policy(name, Scope::Namespace, Action::Allow, matches))
    }

    /// Adds a deny policy of its namespace.
    pub fn deny(self, name: &str, matches: Vec<Match>) -> Self {
        self.policy(policy(name, Scope::Namespace, Action::Deny, matches))
    }

    /// Makes a workload name a policy, known or not.
    pub fn policy_ref(self, workload: &str, policy: &str) -> Self {
        self.edit(workload, |workload| workload.authorization_policies.push(policy_key(policy)))
    }

    /// What would have to be sent to make this world known, policies first.
    pub fn changes(&self) -> Vec<Change> {
        let strict = |workload: &Workload| {
            let mut workload = workload.clone();
            workload.authorization_policies.extend(self.is_strict.then(|| policy_key(STATIC_STRICT)));
            Change::Workload(Arc::new(workload))
        };
        let policies = self.policies.iter().map(|policy| Change::Policy(Arc::new(policy.clone())));
        let services = self.services.iter().map(|service| Change::Service(Arc::new(service.clone())));
        policies.chain(services).chain(self.workloads.iter().map(strict)).collect()
    }

    /// The world as known.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::empty("").with_unknown_policies(self.unknown).apply(&self.changes()).0
    }

    /// A workload as known.
    pub fn get(&self, name: &str) -> Arc<Workload> {
        let snapshot = self.snapshot();
        let Some(workload) = snapshot.workload(&uid(name)) else { unreachable!("no workload {name} in this world") };
        workload.clone()
    }

    /// A service as known.
    pub fn get_service(&self, name: &str) -> Arc<Service> {
        let snapshot = self.snapshot();
        let found = snapshot.service(&service_key(name));
        let Some(service) = found else { unreachable!("no service {name} in this world") };
        service.clone()
    }

    /// The first address of a workload, or the first VIP of a service, of the given family.
    pub fn address(&self, name: &str, is_ipv6: bool) -> IpAddr {
        let workloads = self.workloads.iter().filter(|workload| workload.uid == uid(name));
        let services = self.services.iter().filter(|service| service.key == service_key(name));
        let mut all = workloads
            .flat_map(|workload| workload.addresses.clone())
            .chain(services.flat_map(|service| service.vips.iter().map(|vip| vip.address)))
            .filter(|address| address.is_ipv6() == is_ipv6);
        let Some(address) = all.next() else { unreachable!("no address of {name} in this world") };
        address
    }

    /// Plans a connection from a workload to any address.
    pub fn dial(&self, from: &str, to: SocketAddr) -> Result<OutboundPlan, Refusal> {
        self.dial_again(from, to, 0, &[])
    }

    /// Plans a connection with these random bits, after these endpoints failed.
    pub fn dial_again(
        &self,
        from: &str,
        to: SocketAddr,
        entropy: u64,
        tried: &[WorkloadUid],
    ) -> Result<OutboundPlan, Refusal> {
        let source = self.get(from);
        decide::outbound(&self.snapshot(), &OutboundAttrs { source: &source, destination: to, entropy, tried })
    }

    /// Plans a connection to a workload or service by name, over IPv4.
    pub fn dial_name(&self, from: &str, to: &str, port: u16) -> Result<OutboundPlan, Refusal> {
        self.dial(from, (self.address(to, false), port).into())
    }

    /// A connection from a workload to a workload or service by name: the plan, and what its destination says to it.
    pub fn connect(&self, from: &str, to: &str, port: u16) -> Connection {
        let plan = match self.dial_name(from, to, port) {
            Ok(plan) => plan,
            Err(refusal) => return Connection { plan: Err(refusal), verdict: None },
        };
        let source = self.get(from);
        let verdict = plan.upstream.as_ref().and_then(|destination| {
            let (upstream, identity) = match (&plan.protocol, &plan.dial) {
                (OutboundProtocol::Hbone { authority: Authority::Address(to), waypoint: false, .. }, _) => {
                    (*to, Some(source.identity()))
                }
                (OutboundProtocol::Tcp, Dial::Address(to)) => (*to, None),
                _ => return None,
            };
            Some(self.authorize(&destination.name_in_world(), upstream, self.address(from, false), identity))
        });
        Connection { plan: Ok(plan), verdict }
    }

    /// What a workload says to a connection in the clear from any address.
    pub fn clear_text(&self, from: IpAddr, to: &str, port: u16) -> Verdict {
        self.authorize(to, (self.address(to, false), port).into(), from, None)
    }

    /// What a workload says to a connection.
    pub fn authorize(&self, to: &str, upstream: SocketAddr, source_ip: IpAddr, from: Option<Identity>) -> Verdict {
        let destination = self.get(to);
        let attrs = InboundAttrs { destination: &destination, upstream, source_ip, source_identity: from.as_ref() };
        decide::authorize(&self.snapshot(), &attrs)
    }

    /// Where a CONNECT that arrives at a workload's IPv4 address leads.
    pub fn accept(&self, at: &str, authority: &Authority) -> Result<InboundPlan, Refusal> {
        let destination = self.get(at);
        let local_ip = self.address(at, false);
        decide::inbound(&self.snapshot(), &ConnectAttrs { destination: &destination, local_ip, authority })
    }
}

impl Workload {
    fn name_in_world(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn change_once<T>(change: impl FnOnce(&mut T)) -> impl FnMut(&mut T) {
    let mut change = Some(change);
    move |item| {
        if let Some(change) = change.take() {
            change(item);
        }
    }
}

/// A waypoint bound by the name of a service in front of it.
pub fn waypoint(service: &str) -> Gateway {
    let port = std::num::NonZeroU16::MIN.saturating_add(decide::HBONE_PORT - 1);
    Gateway { destination: GatewayDestination::Hostname(service_key(service)), hbone_mtls_port: port }
}

/// Both ends' decisions about a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The source's.
    pub plan: Result<OutboundPlan, Refusal>,
    /// The destination's; `None` where no ztunnel is asked or the connection goes to a waypoint.
    pub verdict: Option<Verdict>,
}

impl Connection {
    /// Whether both let it pass.
    pub fn allowed(&self) -> bool {
        self.plan.is_ok() && self.verdict.as_ref().is_none_or(|verdict| verdict.allowed)
    }

    /// The reason of whoever decided last.
    pub fn reason(&self) -> &Reason {
        match (&self.verdict, &self.plan) {
            (Some(verdict), _) => &verdict.reason,
            (None, Ok(plan)) => &plan.reason,
            (None, Err(refusal)) => &refusal.reason,
        }
    }
}
