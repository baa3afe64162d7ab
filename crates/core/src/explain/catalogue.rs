//! Every reason there is, for the documentation and for those who read codes: one row per variant, in one place.

use std::fmt;

use serde::Serialize;

use super::Reason;
use crate::diagnose::Fault;

/// What there is to say about one kind of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Stable code.
    pub code: &'static str,
    /// Whether a connection with this reason goes nowhere.
    pub refuses: bool,
    /// Whose fault a refusal is.
    pub fault: Fault,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: &'static str,
}

const fn carries(code: &'static str, meaning: &'static str) -> Entry {
    Entry { code, refuses: false, fault: Fault::Internal, meaning, remedy: "" }
}

const fn refuses(code: &'static str, fault: Fault, meaning: &'static str, remedy: &'static str) -> Entry {
    Entry { code, refuses: true, fault, meaning, remedy }
}

const NO_POLICY: Entry = carries("NO_POLICY", "No policy refuses it, and no allow policy applies to the destination.");
const ALLOWED_BY: Entry = carries("ALLOWED_BY", "A rule of an allow policy matched.");
const DENIED_BY: Entry = refuses(
    "DENIED_BY",
    Fault::Config,
    "A rule of a deny policy matched.",
    "if this caller is meant to pass, change the named rule; if not, this is the policy at work",
);
const NO_ALLOW_MATCHED: Entry = refuses(
    "NO_ALLOW_MATCHED",
    Fault::Config,
    "Allow policies apply to the destination, and none of them matched.",
    "if this caller is meant to pass, add it to a rule of one of the named policies",
);
const MUTUAL_TLS_REQUIRED: Entry = refuses(
    "MUTUAL_TLS_REQUIRED",
    Fault::Downstream,
    "The peer sent clear text where a PeerAuthentication requires mutual TLS.",
    "put the caller into the mesh (label istio.io/dataplane-mode=ambient), or make the PeerAuthentication PERMISSIVE",
);
const QUARANTINED: Entry = refuses(
    "QUARANTINED",
    Fault::Config,
    "A Quarantine cuts off the client or the destination: nothing is carried to or from it.",
    "the Quarantine says who asked for it and why; `stillmesh quarantine NAMESPACE --end` ends it",
);
const POLICY_UNKNOWN: Entry = refuses(
    "POLICY_UNKNOWN",
    Fault::Internal,
    "The destination names a policy that has not arrived at this node.",
    "check that the controller runs and that this node is connected to it; open connections are not cut",
);
const POLICY_UNREADABLE: Entry = refuses(
    "POLICY_UNREADABLE",
    Fault::Internal,
    "A policy that applies has content that this version cannot read, and no earlier version is known.",
    "bring the node parts to the controller's version; open connections are not cut",
);
const TOKEN_REFUSED: Entry = refuses(
    "TOKEN_REFUSED",
    Fault::Downstream,
    "A request carries a token that does not hold under the RequestAuthentications of what it asks for.",
    "see the problem: issuer, audience, time, signature, or keys of the issuer that cannot be had",
);
const TO_WORKLOAD: Entry = carries("TO_WORKLOAD", "Carried to the workload that was dialled.");
const TO_ENDPOINT: Entry = carries("TO_ENDPOINT", "Carried to an endpoint of the service that was dialled.");
const TO_WAYPOINT: Entry = carries("TO_WAYPOINT", "Carried to the waypoint of what was dialled.");
const UNMANAGED: Entry = carries("UNMANAGED", "The destination is not in the mesh: passed on unchanged.");
const NO_HEALTHY_ENDPOINT: Entry = refuses(
    "NO_HEALTHY_ENDPOINT",
    Fault::Upstream,
    "The service has no endpoint that takes traffic on this port.",
    "check that pods match the service's selector, are ready, and define the port that the service names",
);
const ENDPOINTS_EJECTED: Entry = refuses(
    "ENDPOINTS_EJECTED",
    Fault::Upstream,
    "Outlier detection leaves out every endpoint of the service for a while: they failed too often.",
    "see why the endpoints failed; maxEjectionPercent and minHealthPercent of the DestinationRule say how many may be left out",
);
const SUBSET_UNKNOWN: Entry = refuses(
    "SUBSET_UNKNOWN",
    Fault::Config,
    "A route leads to a subset of a service that no DestinationRule defines.",
    "add the subset to a DestinationRule for the service's host, in the namespace of the waypoint or of the service",
);
const NO_SERVICE_PORT: Entry = refuses(
    "NO_SERVICE_PORT",
    Fault::Downstream,
    "The service was dialled on a port that it does not have.",
    "dial one of the service's ports, or add this one to the Service",
);
const NO_ROUTE: Entry = refuses(
    "NO_ROUTE",
    Fault::Config,
    "Routes are attached to the port that was dialled, and none of them takes the connection or request.",
    "ask for what a route names (of TLS: a server name), or add a route that takes the rest",
);
const BACKEND_INVALID: Entry = refuses(
    "BACKEND_INVALID",
    Fault::Config,
    "The route that takes the connection has no backend, or one that is not there or not permitted.",
    "see the route's status: its ResolvedRefs condition, or Accepted of a VirtualService, names the backend",
);
const WAYPOINT_UNAVAILABLE: Entry = refuses(
    "WAYPOINT_UNAVAILABLE",
    Fault::Upstream,
    "A waypoint is bound, and none of its pods can be reached. It is never gone round: its policies would be skipped.",
    "check the waypoint's Gateway and pods, or unbind it (label istio.io/use-waypoint=none)",
);
const WORKLOAD_GONE: Entry = refuses(
    "WORKLOAD_GONE",
    Fault::Upstream,
    "A workload of the mesh had this address until less than a minute ago, and nobody is known there since.",
    "dial the service's name, and look it up again when a connection ends",
);
const NETWORK_UNREACHABLE: Entry = refuses(
    "NETWORK_UNREACHABLE",
    Fault::Config,
    "The destination is on another network that cannot be crossed from here.",
    "dial something on this network; connections between networks are not supported yet",
);
const PROXY_PORT: Entry = refuses(
    "PROXY_PORT",
    Fault::Downstream,
    "A port of ztunnel itself was asked for.",
    "use another port for the application: 15001, 15006 and 15008 are the mesh's",
);
const FOREIGN_AUTHORITY: Entry = refuses(
    "FOREIGN_AUTHORITY",
    Fault::Downstream,
    "A CONNECT asked a workload for an address that is not its own.",
    "if the peer is a mesh proxy, its view is stale: check that its node is connected to the controller",
);
const UNKNOWN_AUTHORITY: Entry = refuses(
    "UNKNOWN_AUTHORITY",
    Fault::Downstream,
    "A CONNECT asked for a service or port that is not known here.",
    "check that the service exists and has that port, and that this node is connected to the controller",
);

impl Reason {
    pub(super) fn entry(&self) -> &'static Entry {
        match self {
            Self::NoPolicy => &NO_POLICY,
            Self::AllowedBy { .. } => &ALLOWED_BY,
            Self::DeniedBy { .. } => &DENIED_BY,
            Self::NoAllowMatched { .. } => &NO_ALLOW_MATCHED,
            Self::MutualTlsRequired { .. } => &MUTUAL_TLS_REQUIRED,
            Self::Quarantined { .. } => &QUARANTINED,
            Self::PolicyUnknown { .. } => &POLICY_UNKNOWN,
            Self::PolicyUnreadable { .. } => &POLICY_UNREADABLE,
            Self::TokenRefused { .. } => &TOKEN_REFUSED,
            Self::ToWorkload { .. } => &TO_WORKLOAD,
            Self::ToEndpoint { .. } => &TO_ENDPOINT,
            Self::ToWaypoint { .. } => &TO_WAYPOINT,
            Self::Unmanaged => &UNMANAGED,
            Self::NoHealthyEndpoint { .. } => &NO_HEALTHY_ENDPOINT,
            Self::EndpointsEjected { .. } => &ENDPOINTS_EJECTED,
            Self::SubsetUnknown { .. } => &SUBSET_UNKNOWN,
            Self::NoServicePort { .. } => &NO_SERVICE_PORT,
            Self::NoRoute { .. } => &NO_ROUTE,
            Self::BackendInvalid { .. } => &BACKEND_INVALID,
            Self::WaypointUnavailable { .. } => &WAYPOINT_UNAVAILABLE,
            Self::WorkloadGone { .. } => &WORKLOAD_GONE,
            Self::NetworkUnreachable { .. } => &NETWORK_UNREACHABLE,
            Self::ProxyPort { .. } => &PROXY_PORT,
            Self::ForeignAuthority { .. } => &FOREIGN_AUTHORITY,
            Self::UnknownAuthority { .. } => &UNKNOWN_AUTHORITY,
        }
    }
}

/// Every kind of reason. Displays as a Markdown table, serializes as a list.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct Catalogue(&'static [Entry]);

/// Every kind of reason, those that carry first.
pub fn catalogue() -> Catalogue {
    const ALL: [Entry; 25] = [
        NO_POLICY,
        ALLOWED_BY,
        TO_WORKLOAD,
        TO_ENDPOINT,
        TO_WAYPOINT,
        UNMANAGED,
        DENIED_BY,
        NO_ALLOW_MATCHED,
        MUTUAL_TLS_REQUIRED,
        QUARANTINED,
        POLICY_UNKNOWN,
        POLICY_UNREADABLE,
        TOKEN_REFUSED,
        NO_HEALTHY_ENDPOINT,
        ENDPOINTS_EJECTED,
        SUBSET_UNKNOWN,
        NO_SERVICE_PORT,
        NO_ROUTE,
        BACKEND_INVALID,
        WAYPOINT_UNAVAILABLE,
        WORKLOAD_GONE,
        NETWORK_UNREACHABLE,
        PROXY_PORT,
        FOREIGN_AUTHORITY,
        UNKNOWN_AUTHORITY,
    ];
    Catalogue(&ALL)
}

impl Catalogue {
    /// The rows.
    pub fn entries(&self) -> &'static [Entry] {
        self.0
    }

    /// The row of a code.
    pub fn find(&self, code: &str) -> Option<&'static Entry> {
        self.0.iter().find(|entry| entry.code == code)
    }
}

impl fmt::Display for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| code | refuses | meaning | what to do |")?;
        writeln!(f, "| --- | --- | --- | --- |")?;
        for Entry { code, refuses, meaning, remedy, .. } in self.0 {
            writeln!(f, "| `{code}` | {} | {meaning} | {remedy} |", if *refuses { "yes" } else { "no" })?;
        }
        Ok(())
    }
}
