//! A workload: one pod, or something that stands for one (contract 4.3).

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Serialize;

use super::{Gateway, Identity, NetworkAddress, PolicyKey, ServiceKey, Str, TrustDomain, WorkloadUid};

/// Everything the mesh knows about one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Primary key.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: Str,
    /// Namespace.
    pub namespace: Str,
    /// Trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Service account of its identity.
    pub service_account: Str,
    /// Its addresses, at most one per IP family in practice.
    pub addresses: Vec<IpAddr>,
    /// Name to resolve when there is no address (DNS endpoints); empty where unused.
    pub hostname: Str,
    /// Network of its addresses; may be empty.
    pub network: Str,
    /// How other workloads reach it.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether its addresses are the node's own; such a workload is never found by address.
    pub network_mode: NetworkMode,
    /// Waypoint for traffic addressed to the workload itself.
    pub waypoint: Option<Gateway>,
    /// Gateway of the workload's network, for traffic from other networks. In a box: few have one, and there are many workloads.
    pub network_gateway: Option<Box<Gateway>>,
    /// The node it runs on.
    pub node: Str,
    /// Canonical service name, for telemetry.
    pub canonical_name: Str,
    /// Canonical revision, for telemetry.
    pub canonical_revision: Str,
    /// Kind of the owner, for telemetry.
    pub workload_type: WorkloadType,
    /// Name of the owner (a Deployment, say), for telemetry.
    pub workload_name: Str,
    /// Terminates HBONE itself.
    pub native_tunnel: bool,
    /// Protocol and port behind which the application expects tunnelled traffic.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Services it is an endpoint of, with its target ports.
    pub services: Vec<(ServiceKey, Vec<PortMapping>)>,
    /// Policies attached to it by selector.
    pub authorization_policies: Vec<PolicyKey>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Cluster it belongs to.
    pub cluster: Str,
    /// Where it runs.
    pub locality: Locality,
    /// Load balancing weight; at least 1.
    pub capacity: u32,
    /// Whether it and others of its node that say so, too, may be connected without a tunnel: its namespace asks for it, and
    /// nothing below the mesh filters its packets.
    pub direct: bool,
}

impl Workload {
    /// Who it is.
    pub fn identity(&self) -> Identity {
        Identity::new(self.trust_domain.clone(), self.namespace.clone(), self.service_account.clone())
    }

    /// Whether both are the same to a peer: one certificate would do for either.
    pub fn has_identity_of(&self, other: &Workload) -> bool {
        self.service_account == other.service_account
            && self.namespace == other.namespace
            && self.trust_domain == other.trust_domain
    }

    /// Whether it is an endpoint of a service.
    pub fn is_member_of(&self, service: &ServiceKey) -> bool {
        self.services.iter().any(|(key, _)| key == service)
    }

    /// Its own target port for a service's port, if it says so. 0 says nothing.
    pub fn target_port(&self, service: &ServiceKey, service_port: u16) -> Option<u16> {
        let (_, ports) = self.services.iter().find(|(key, _)| key == service)?;
        ports
            .iter()
            .find(|port| port.service_port == service_port)
            .map(|port| port.target_port)
            .filter(|port| *port > 0)
    }

    /// Its addresses with their network.
    pub fn network_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        self.addresses.iter().map(|address| NetworkAddress::new(self.network.clone(), *address))
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    #[serde(rename = "TCP")]
    None,
    /// HBONE on port 15008.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum NetworkMode {
    /// Its own addresses.
    #[default]
    Standard,
    /// The node's addresses: shared, hence not indexed.
    HostNetwork,
}

/// Kind of object that owns a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod, and anything else.
    #[default]
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// Lower-cased name, as used in baggage (contract 3.2).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or going away.
    Unhealthy,
}

/// A port that an application expects tunnelled traffic on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ApplicationTunnel {
    /// Whether a PROXY v2 header comes first.
    pub proxy_protocol: bool,
    /// The port; `None` keeps the one asked for.
    pub port: Option<NonZeroU16>,
}

/// One port of a service and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the service's VIP.
    pub service_port: u16,
    /// Port on the endpoint; 0 means that only the endpoint's own mapping knows it (a named port).
    pub target_port: u16,
}

/// Where something runs; empty parts are unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Locality {
    /// Region.
    pub region: Str,
    /// Zone in the region.
    pub zone: Str,
    /// Part of the zone.
    pub subzone: Str,
}

impl Default for Locality {
    fn default() -> Self {
        Self { region: "".into(), zone: "".into(), subzone: "".into() }
    }
}
