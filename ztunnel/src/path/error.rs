//! Why a connection ended before its ends wanted it to. The texts are what users search for (contract 9.4).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use stillmesh_core::decide::Refusal;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::Str;
use stillmesh_core::{Diagnose, Fault};
use stillmesh_hbone::TunnelError;
use stillmesh_hbone::copy::CopyError;
use stillmesh_hbone::server::ServeError;
use stillmesh_identity::{SecretError, TlsError};

use crate::record::{Ending, Flag, Outcome};

/// Every way in which a connection fails.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The control plane has not told about the captured pod.
    #[error("failed to fetch information about local workload: {service_account}.{namespace} ({name})")]
    NoLocalWorkload {
        /// Pod name.
        name: Str,
        /// Its namespace.
        namespace: Str,
        /// Its account.
        service_account: Str,
    },
    /// There is nowhere to carry it to.
    #[error("{}", refusal_text(reason, *destination))]
    Refused {
        /// Where it was to go.
        destination: SocketAddr,
        /// Why not.
        reason: Reason,
    },
    /// A policy refuses it.
    #[error("connection closed due to policy rejection: {}", denial_text(reason))]
    Denied {
        /// Which, and why.
        reason: Reason,
    },
    /// It was open and was ended from outside.
    #[error("{}", outcome.error.as_deref().unwrap_or("connection closed"))]
    Cut {
        /// Why.
        outcome: Outcome,
    },
    /// It was open when the time to drain was over.
    #[error("connection closed due to connection drain")]
    Drained,
    /// A bound was reached.
    #[error("refused: {what} ({limit}) are open already")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The socket of a captured connection says nothing usable.
    #[error("cannot tell where the connection was going")]
    NoDestination {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The next hop was not reached.
    #[error("connection failed: {to}: {source}")]
    Connect {
        /// The next hop.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The next hop did not answer.
    #[error("connection timed out: {to} did not answer within {limit:?}")]
    Slow {
        /// The next hop.
        to: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// An endpoint's name has no address.
    #[error("cannot resolve {name}")]
    Resolve {
        /// The name.
        name: Str,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The tunnel was not opened.
    #[error("{}", tunnel_text(source))]
    Tunnel {
        /// Why.
        source: TunnelError,
    },
    /// There is no certificate to show to the peer.
    #[error("{}", chain(source))]
    Identity {
        /// Why.
        source: SecretError,
    },
    /// The peer's handshake failed.
    #[error("TLS handshake failed: {}", chain(source))]
    Handshake {
        /// Why.
        source: TlsError,
    },
    /// The peer sent something else than a CONNECT with an authority.
    #[error("not a CONNECT to ip:port or hostname:port: {authority:?}")]
    NotConnect {
        /// What it sent.
        authority: String,
    },
    /// The peer's HTTP/2 connection broke.
    #[error("tunnel connection: {}", chain(source))]
    Serve {
        /// Why.
        source: ServeError,
    },
    /// Bytes could not be carried on.
    #[error("{}", copy_text(source))]
    Copy {
        /// Why.
        source: CopyError,
    },
}

impl PathError {
    /// A refusal of core's for a destination.
    pub fn refused(destination: SocketAddr, refusal: Refusal) -> Self {
        Self::Refused { destination, reason: refusal.reason }
    }
}

impl Ending for PathError {
    fn flag(&self) -> Flag {
        match self {
            Self::Denied { .. } => Flag::Deny,
            Self::Refused { reason, .. } if reason.is_denial() || reason.is_undecided() => Flag::Deny,
            Self::Cut { outcome } => outcome.flag,
            Self::Refused { .. } | Self::Connect { .. } | Self::Slow { .. } | Self::Resolve { .. } => Flag::Connect,
            Self::Handshake { source: TlsError::Revoked } => Flag::CertRevoked,
            Self::Handshake { .. } => Flag::TlsFailure,
            Self::Identity { .. } => Flag::IdentityError,
            Self::Tunnel { source } => Flag::from_text(source.response_flag()),
            Self::NotConnect { .. }
            | Self::Serve { .. }
            | Self::NoLocalWorkload { .. }
            | Self::Drained
            | Self::Full { .. }
            | Self::NoDestination { .. }
            | Self::Copy { .. } => Flag::None,
        }
    }

    fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Refused { reason, .. } | Self::Denied { reason } => Some(reason),
            Self::Cut { outcome } => outcome.reason.as_ref(),
            _ => None,
        }
    }
}

impl Diagnose for PathError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoLocalWorkload { .. } => "PATH001",
            Self::Refused { reason, .. } | Self::Denied { reason } => reason.code(),
            Self::Cut { .. } => "PATH002",
            Self::Drained => "PATH003",
            Self::Full { .. } => "PATH004",
            Self::NoDestination { .. } => "PATH005",
            Self::Connect { .. } => "PATH006",
            Self::Slow { .. } => "PATH007",
            Self::Resolve { .. } => "PATH008",
            Self::Tunnel { source } => source.code(),
            Self::Handshake { source } => source.code(),
            Self::Identity { source } => source.code(),
            Self::NotConnect { .. } => "PATH009",
            Self::Serve { .. } => "PATH011",
            Self::Copy { .. } => "PATH010",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Refused { reason, .. } | Self::Denied { reason } => reason.fault(),
            Self::Connect { .. } | Self::Slow { .. } => Fault::Upstream,
            Self::Resolve { .. } => Fault::Config,
            Self::Tunnel { source } => source.fault(),
            Self::Handshake { source } => source.fault(),
            Self::Identity { source } => source.fault(),
            Self::Copy { .. } | Self::Full { .. } | Self::NotConnect { .. } | Self::Serve { .. } => Fault::Downstream,
            Self::NoLocalWorkload { .. } | Self::NoDestination { .. } => Fault::Internal,
            Self::Cut { .. } | Self::Drained => Fault::Config,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::NoLocalWorkload { .. } => {
                "check that ztunnel is connected to its control plane and NODE_NAME is right"
            }
            Self::Refused { reason, .. } | Self::Denied { reason } => reason.remedy(),
            Self::Cut { .. } => "see the policy that the record names",
            Self::Drained => "give connections more time: terminationGracePeriodSeconds of ztunnel",
            Self::Full { .. } => "close unused connections, or raise the bound in ztunnel's environment",
            Self::NoDestination { .. } => "connect to the service's address, not to ztunnel's port",
            Self::Connect { .. } => "check that the destination listens on that port",
            Self::Slow { .. } => "check that the destination is up and that no NetworkPolicy drops the traffic",
            Self::Resolve { .. } => "check the endpoint's name and ztunnel's resolvers",
            Self::Tunnel { source } => source.remedy(),
            Self::Handshake { source } => source.remedy(),
            Self::Identity { source } => source.remedy(),
            Self::NotConnect { .. } => "port 15008 is for HBONE peers only",
            Self::Serve { .. } => "check the peer's ztunnel and the network between",
            Self::Copy { .. } => "one end closed the connection hard; see its own log",
        }
    }
}

/// A policy's refusal in Istio's words.
fn denial_text(reason: &Reason) -> String {
    match reason {
        Reason::NoAllowMatched { .. } => "allow policies exist, but none allowed".to_owned(),
        Reason::DeniedBy { policy, .. } | Reason::MutualTlsRequired { policy } => {
            format!("explicitly denied by: {policy}")
        }
        other => other.to_string(),
    }
}

/// A missing way in Istio's words.
fn refusal_text(reason: &Reason, destination: SocketAddr) -> String {
    match reason {
        Reason::NoHealthyEndpoint { .. } => format!("no healthy upstream: {destination}"),
        Reason::WaypointUnavailable { waypoint } => format!("unknown waypoint: {waypoint}"),
        other => format!("{other}: {destination}"),
    }
}
/// A tunnel's failure in Istio's words.
fn tunnel_text(error: &TunnelError) -> String {
    match error {
        TunnelError::Refused { status, .. } => format!("http status: {status}"),
        TunnelError::ConnectSlow { destination, .. } => {
            let port = destination.port();
            format!("connection timed out, maybe a NetworkPolicy is blocking HBONE port {port}: {destination}")
        }
        TunnelError::Identity(source) => format!("connection failed: {}", chain(source)),
        other => format!("connection failed: {}", chain(other)),
    }
}

/// Both what broke and who broke it.
fn copy_text(error: &CopyError) -> String {
    chain(error)
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
