//! Which waypoint a service or workload is bound to, and why (contract 1.2, 7.2). One code for what nodes are told and for
//! what statuses say.
//!
//! Where we differ from the contract: a waypoint of ours is bound as soon as its Gateway is there. Until it is ready, those
//! that are bound to it are refused and not let round it, unless the Gateway has annotation
//! `stillmesh.io/waypoint-fallback: direct`.

pub mod canary;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use stillmesh_core::model::{Gateway as Destination, GatewayDestination, NetworkAddress, Str};

use super::{Gateway, GatewayClass, HBONE_PORT, class};
use crate::labels::{self, Labels};
use crate::object::DEFAULT_NAMESPACE;
use crate::status::Condition;
use crate::translate::{Mesh, service_key};

/// Label that names the waypoint of a Service, a pod, or all of a namespace; `none` asks for none.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label beside it with the waypoint's namespace, where that is another one.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label of a Gateway or its class that says what traffic it is for.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// What it may say; the first is meant where it says nothing.
pub const TRAFFIC: [&str; 4] = ["service", "workload", "all", "none"];
/// Label of what a Gateway controller has made, with which one.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// The controllers of waypoints and of gateways between networks, as they are called in it.
pub const MANAGERS: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];
/// Annotation of a Gateway that says what becomes of traffic while it is not ready.
pub const FALLBACK: &str = "stillmesh.io/waypoint-fallback";
/// The one thing it may say: traffic goes round it.
pub const DIRECT: &str = "direct";
/// Annotation of a Gateway with the name of what is made for it, where that is another one.
pub const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// The condition of services that are bound.
pub const BOUND: &str = "istio.io/WaypointBound";

/// What is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A service: traffic to its addresses.
    Service,
    /// A workload: traffic to its own addresses.
    Workload,
}

/// What traffic a waypoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// To services.
    Service,
    /// To workloads' own addresses.
    Workload,
    /// Both.
    All,
    /// None at all.
    None,
}

impl Traffic {
    fn read(text: &str) -> Self {
        match text {
            "workload" => Self::Workload,
            "all" => Self::All,
            "none" => Self::None,
            _ => Self::Service,
        }
    }

    fn is_for(self, target: Target) -> bool {
        matches!((self, target), (Self::All, _) | (Self::Service, Target::Service) | (Self::Workload, Target::Workload))
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        })
    }
}

/// A Gateway as far as binding is concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct Waypoint {
    namespace: Str,
    traffic: Traffic,
    from: Allowed,
    place: Place,
    ready: bool,
    falls_back: bool,
}

/// Namespaces that may bind.
#[derive(Clone, Debug, PartialEq)]
enum Allowed {
    Same,
    All,
    Selected(LabelSelector),
    None,
}

/// Where a waypoint is.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// One of ours: behind the Service of this name.
    Service(Str),
    /// Somebody else's: where its status says, once it says so.
    Hostname(Str),
    Address(IpAddr),
    Unknown,
}

impl Waypoint {
    /// Reads a Gateway, of this class as far as it is known.
    pub fn read(gateway: &Gateway, class: Option<&GatewayClass>) -> Self {
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let traffic = labels::of(&gateway.metadata.labels)
            .get(WAYPOINT_FOR)
            .or_else(|| labels::of(&class?.metadata.labels).get(WAYPOINT_FOR));
        let addresses = gateway.status.as_ref().map_or(&[][..], |status| &status.addresses);
        let place = match class::is_waypoint(&gateway.spec.gateway_class_name, class) {
            true => Place::Service(service_name(gateway).into()),
            false => elsewhere(gateway),
        };
        let annotations = labels::of(&gateway.metadata.annotations);
        Self {
            namespace: namespace.into(),
            traffic: traffic.map_or(Traffic::Service, |text| Traffic::read(text)),
            from: allowed(gateway),
            ready: !addresses.is_empty() && gateway.tunnel_listener().is_some(),
            falls_back: annotations.get(FALLBACK).is_some_and(|text| text == DIRECT),
            place,
        }
    }

    fn allows(&self, namespace: &str, its_labels: &Labels) -> bool {
        match &self.from {
            Allowed::Same => *self.namespace == *namespace,
            Allowed::All => true,
            Allowed::Selected(selector) => labels::selects(selector, its_labels),
            Allowed::None => false,
        }
    }

    fn destination(&self, mesh: &Mesh) -> Option<Destination> {
        let destination = match &self.place {
            Place::Service(name) => GatewayDestination::Hostname(service_key(&self.namespace, name, mesh)),
            Place::Hostname(hostname) => GatewayDestination::Hostname(stillmesh_core::model::ServiceKey::new(
                self.namespace.clone(),
                hostname.clone(),
            )),
            Place::Address(ip) => GatewayDestination::Address(NetworkAddress::new(mesh.network.clone(), *ip)),
            Place::Unknown => return None,
        };
        Some(Destination { destination, hbone_mtls_port: NonZeroU16::new(HBONE_PORT)? })
    }
}

/// The name of the Service in front of a waypoint of ours.
pub fn service_name(gateway: &Gateway) -> &str {
    let other = labels::of(&gateway.metadata.annotations).get(NAME_OVERRIDE).filter(|name| !name.is_empty());
    other.or(gateway.metadata.name.as_ref()).map_or("", String::as_str)
}

fn allowed(gateway: &Gateway) -> Allowed {
    let namespaces = gateway.tunnel_listener().and_then(|one| one.allowed_routes.as_ref()?.namespaces.as_ref());
    let Some(namespaces) = namespaces else { return Allowed::Same };
    match namespaces.from.as_deref() {
        Some("All") => Allowed::All,
        Some("None") => Allowed::None,
        // A selector that is not there selects nothing.
        Some("Selector") => namespaces.selector.clone().map_or(Allowed::None, Allowed::Selected),
        _ => Allowed::Same,
    }
}

fn elsewhere(gateway: &Gateway) -> Place {
    let addresses = gateway.status.as_ref().map_or(&[][..], |status| &status.addresses);
    let hostname = addresses.iter().find(|one| one.type_ == "Hostname");
    let ip = addresses.iter().find_map(|one| one.value.parse::<IpAddr>().ok());
    match (hostname, ip) {
        (Some(hostname), _) => Place::Hostname(hostname.value.as_str().into()),
        (None, Some(ip)) => Place::Address(ip),
        (None, None) => Place::Unknown,
    }
}

/// The waypoint that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What one object's labels ask for; `namespace` is its own, or itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// No waypoint.
    None,
    /// This one.
    Waypoint(Named),
}

/// Reads an object's labels.
pub fn asked(own: &Labels, namespace: &str) -> Ask {
    match own.get(USE_WAYPOINT).map_or("", String::as_str) {
        "" => Ask::Nothing,
        "none" => Ask::None,
        name => {
            let other = own.get(USE_WAYPOINT_NAMESPACE).filter(|other| !other.is_empty());
            let namespace = other.map_or(namespace, String::as_str);
            Ask::Waypoint(Named { namespace: namespace.into(), name: name.into() })
        }
    }
}

/// Which waypoint something is bound to, and why.
#[derive(Clone, Debug, PartialEq)]
pub enum Binding {
    /// No label asks for one.
    Unasked,
    /// A label of its own asks for none.
    OptedOut,
    /// It is a waypoint's, or a gateway's between networks: these are reached as they are.
    OfGateway,
    /// Its namespace asks for a waypoint that is not for this kind of traffic.
    NotMeant,
    /// It is reached through this one or not at all.
    Bound {
        /// The Gateway.
        waypoint: Named,
        /// As nodes are told.
        destination: Destination,
        /// Whether the Gateway has an address.
        ready: bool,
    },
    /// It asks for one that does not take it: its traffic goes without.
    Unbound {
        /// The Gateway that it asks for.
        waypoint: Named,
        /// Why not.
        why: Why,
    },
}

/// Why something is not bound to the waypoint that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no such Gateway.
    Missing,
    /// It does not let this namespace bind.
    NotAllowed,
    /// It is not for this kind of traffic.
    WrongTraffic(Traffic),
    /// It is not ready, and its traffic is to go round it meanwhile.
    FallsBack,
    /// It is another controller's and has no address.
    NoAddress,
}

/// Decides for one object in one namespace; `find` finds Gateways.
pub fn bind<'a>(
    target: Target,
    object: &ObjectMeta,
    namespace: Option<&Namespace>,
    find: impl FnOnce(&Named) -> Option<&'a Waypoint>,
    mesh: &Mesh,
) -> Binding {
    let own = labels::of(&object.labels);
    let name = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let its_labels = namespace.map_or(labels::of(&None), |namespace| labels::of(&namespace.metadata.labels));
    if own.get(MANAGED).is_some_and(|manager| MANAGERS.contains(&manager.as_str())) {
        return Binding::OfGateway;
    }
    let (waypoint, itself) = match (asked(own, name), asked(its_labels, name)) {
        (Ask::None, _) => return Binding::OptedOut,
        (Ask::Waypoint(waypoint), _) => (waypoint, true),
        (Ask::Nothing, Ask::Waypoint(waypoint)) => (waypoint, false),
        (Ask::Nothing, Ask::Nothing | Ask::None) => return Binding::Unasked,
    };
    let Some(found) = find(&waypoint) else { return Binding::Unbound { waypoint, why: Why::Missing } };
    if !found.traffic.is_for(target) && !itself {
        return Binding::NotMeant;
    }
    let why = match found.destination(mesh) {
        _ if !found.traffic.is_for(target) => Why::WrongTraffic(found.traffic),
        _ if !found.allows(name, its_labels) => Why::NotAllowed,
        None => Why::NoAddress,
        Some(_) if found.falls_back && !found.ready => Why::FallsBack,
        Some(destination) => return Binding::Bound { waypoint, destination, ready: found.ready },
    };
    Binding::Unbound { waypoint, why }
}

impl Binding {
    /// The binding of something that must not be reached round its waypoint, because that enforces policies for it: the
    /// Gateway's wish to be gone round while it is not ready does not count.
    pub fn held(self, waypoint: Option<&Waypoint>, mesh: &Mesh) -> Self {
        match self {
            Self::Unbound { waypoint: named, why: Why::FallsBack } => {
                let found = waypoint.and_then(|waypoint| Some((waypoint.destination(mesh)?, waypoint.ready)));
                match found {
                    Some((destination, ready)) => Self::Bound { waypoint: named, destination, ready },
                    None => Self::Unbound { waypoint: named, why: Why::FallsBack },
                }
            }
            other => other,
        }
    }

    /// What nodes are told.
    pub fn destination(self) -> Option<Destination> {
        match self {
            Self::Bound { destination, .. } => Some(destination),
            _ => None,
        }
    }

    /// What the status of something that is bound, or asks to be, says.
    pub fn condition(&self) -> Option<Condition> {
        let (status, reason, message) = match self {
            Self::Unasked | Self::OptedOut | Self::OfGateway | Self::NotMeant => return None,
            Self::Bound { waypoint, ready: true, .. } => {
                ("True", "WaypointAccepted", format!("Successfully attached to waypoint {waypoint}"))
            }
            Self::Bound { waypoint, ready: false, .. } => (
                "False",
                NOT_READY,
                format!(
                    "waypoint {waypoint} is not ready, and connections are refused until it is; annotation {FALLBACK}: \
                     {DIRECT} on the Gateway lets them go round it meanwhile"
                ),
            ),
            Self::Unbound { waypoint, why } => ("False", why.reason(), why.message(waypoint)),
        };
        Some(Condition { type_: BOUND, status, reason, message })
    }
}

const NOT_READY: &str = "WaypointIsNotReady";

impl Why {
    fn reason(self) -> &'static str {
        match self {
            Self::Missing | Self::FallsBack | Self::NoAddress => NOT_READY,
            Self::NotAllowed => "AttachmentDenied",
            Self::WrongTraffic(_) => "UnsupportedTrafficType",
        }
    }

    /// What is wrong, in a sentence.
    pub fn message(self, waypoint: &Named) -> String {
        match self {
            Self::Missing => format!("there is no Gateway {waypoint}: traffic goes without a waypoint"),
            Self::NotAllowed => format!(
                "allowedRoutes of waypoint {waypoint} does not let this namespace attach: traffic goes without a waypoint"
            ),
            Self::WrongTraffic(traffic) => {
                format!(
                    "waypoint {waypoint} is for {traffic} traffic only ({WAYPOINT_FOR}): traffic goes without a waypoint"
                )
            }
            Self::FallsBack => {
                format!("waypoint {waypoint} is not ready: traffic goes round it until it is ({FALLBACK})")
            }
            Self::NoAddress => {
                format!(
                    "waypoint {waypoint} is another controller's and has no address: traffic goes without a waypoint"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
