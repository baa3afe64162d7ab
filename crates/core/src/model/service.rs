//! A service: a name and addresses in front of endpoints (contract 4.3).

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Serialize;

use super::{NetworkAddress, NetworkCidr, PortMapping, ServiceKey, Str};

/// Everything the mesh knows about one service. Its endpoints are the workloads that name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Name of the Kubernetes object.
    pub name: Str,
    /// Primary key: namespace and hostname.
    pub key: ServiceKey,
    /// Virtual addresses; empty for headless services.
    pub vips: Vec<NetworkAddress>,
    /// Virtual ranges.
    pub cidr_vips: Vec<NetworkCidr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Further SPIFFE URIs that its endpoints may present.
    pub subject_alt_names: Vec<Str>,
    /// The waypoint that its traffic goes through.
    pub waypoint: Option<Gateway>,
    /// Several waypoints with weights; chosen per connection.
    pub weighted_waypoints: Vec<(Gateway, u32)>,
    /// How an endpoint is picked.
    pub load_balancing: LoadBalancing,
    /// Which IP families it serves.
    pub ip_families: IpFamilies,
    /// Preferred among services of one hostname.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// The mapping of `service_port`, if the service has that port.
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.mapping.service_port == service_port)
    }

    /// Every waypoint that is bound to it.
    pub fn waypoints(&self) -> impl Iterator<Item = &Gateway> {
        self.waypoint.iter().chain(self.weighted_waypoints.iter().map(|(gateway, _)| gateway))
    }
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The port and its target.
    pub mapping: PortMapping,
    /// Application protocol as numbered on the wire (contract 4.3, `app_protocol`); 0 is unknown.
    pub app_protocol: i32,
}

impl ServicePort {
    /// What its application speaks.
    pub fn protocol(&self) -> AppProtocol {
        match self.app_protocol {
            1 => AppProtocol::Http1,
            2 => AppProtocol::Http2,
            3 => AppProtocol::Grpc,
            4 => AppProtocol::Tcp,
            5 => AppProtocol::Tls,
            _ => AppProtocol::Unknown,
        }
    }
}

/// What the application behind a port speaks, as its user says (contract 4.3, `app_protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum AppProtocol {
    /// Not said: to be seen from what the client sends first.
    Unknown,
    /// HTTP.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

/// Where a gateway (waypoint or network gateway) is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// A service's name or an address.
    pub destination: GatewayDestination,
    /// Port of its HBONE listener, usually 15008.
    pub hbone_mtls_port: NonZeroU16,
}

/// How a gateway is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum GatewayDestination {
    /// By the service in front of it.
    Hostname(ServiceKey),
    /// By an address: a service's VIP or a workload's.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    /// `namespace/hostname` or `network/ip`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(service) => service.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    /// What to prefer, the most significant first.
    pub routing_preferences: Vec<RoutingScope>,
    /// How binding the preferences are.
    pub mode: Mode,
    /// Whether unready endpoints count.
    pub health_policy: HealthPolicy,
}

/// A property that a preferred endpoint shares with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RoutingScope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How binding routing preferences are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// No preferences.
    #[default]
    Standard,
    /// Only full matches.
    Strict,
    /// The best match there is.
    Failover,
    /// No picking: traffic goes to the original destination.
    Passthrough,
}

/// Whether unready endpoints take traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// Ready ones only.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// IP families that a service serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum IpFamilies {
    /// Not said.
    #[default]
    Automatic,
    /// IPv4 only.
    #[serde(rename = "IPv4")]
    Ipv4Only,
    /// IPv6 only.
    #[serde(rename = "IPv6")]
    Ipv6Only,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether a service of these families may be served at `address`.
    pub fn accept(self, address: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => address.is_ipv4(),
            Self::Ipv6Only => address.is_ipv6(),
        }
    }
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own namespace only.
    Namespace,
}
