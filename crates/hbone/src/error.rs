//! Why a tunnel did not open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_http2::SendError;
use stillmesh_identity::{SecretError, TlsError};

use crate::Ending;

/// Why a CONNECT stream did not open. Cheap to clone: all who wait for one dial learn the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    /// No certificate to show.
    #[error("there is no certificate to dial with")]
    Identity(#[from] SecretError),
    /// TCP did not connect.
    #[error("cannot connect to {destination}")]
    Connect {
        /// What was dialled.
        destination: SocketAddr,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// TCP did not connect in time.
    #[error("{destination} did not accept within {limit:?}: maybe a NetworkPolicy blocks HBONE port {}", .destination.port())]
    ConnectSlow {
        /// What was dialled.
        destination: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// TLS failed.
    #[error("no TLS with {destination}")]
    Tls {
        /// What was dialled.
        destination: SocketAddr,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// HTTP/2 did not start.
    #[error("no HTTP/2 with {destination}")]
    Http2 {
        /// What was dialled.
        destination: SocketAddr,
        /// Why.
        #[source]
        source: Ending,
    },
    /// The peer answered, and not with 200.
    #[error("{destination} refused the tunnel with status {status}")]
    Refused {
        /// Who.
        destination: SocketAddr,
        /// The answer: 401 is a policy's denial, 503 an application that cannot be reached (contract 3.2).
        status: StatusCode,
    },
    /// The stream or its connection ended before an answer.
    #[error("the tunnel to {destination} ended before it opened")]
    Reset {
        /// Who.
        destination: SocketAddr,
        /// Why.
        #[source]
        source: Ending,
    },
    /// No answer in time.
    #[error("{destination} did not answer the CONNECT within {limit:?}")]
    Slow {
        /// Who.
        destination: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// It failed in a way that does not say whether the peer delivered the first bytes, which were sent behind the CONNECT.
    #[error("the first bytes were sent already, so that no other endpoint may be tried")]
    Sent {
        /// How it failed.
        #[source]
        source: Box<TunnelError>,
    },
    /// Tunnels hold as much memory as they may.
    #[error("no memory for one more stream to {destination}")]
    Full {
        /// What was to be reached.
        destination: SocketAddr,
    },
    /// The CONNECT cannot be written: a header value is not legal.
    #[error("the CONNECT for {destination} cannot be written")]
    Request {
        /// Who.
        destination: SocketAddr,
        /// What is wrong.
        #[source]
        source: SendError,
    },
}

impl TunnelError {
    /// Whether another endpoint may be tried: no application byte was delivered, and no policy said no.
    pub fn may_repick(&self) -> bool {
        match self {
            Self::Refused { status, .. } => !is_denial(*status),
            Self::Identity(_) | Self::Request { .. } | Self::Full { .. } | Self::Sent { .. } => false,
            _ => true,
        }
    }

    /// Whether it was a shared connection that had just ended, and not the endpoint that failed: the same endpoint is
    /// worth another try.
    pub fn was_stale(&self) -> bool {
        match self {
            Self::Reset { source, .. } => source.is_stale(),
            _ => false,
        }
    }

    /// Istio's response flag (contract 9.1).
    pub fn response_flag(&self) -> &'static str {
        match self {
            Self::Identity(_) => "IDENTITY_ERROR",
            Self::ConnectSlow { .. } => "NETWORK_POLICY",
            Self::Tls { source: TlsError::Revoked, .. } => "CERT_REVOKED",
            Self::Tls { .. } => "TLS_FAILURE",
            Self::Http2 { .. } => "H2_HANDSHAKE_FAILURE",
            Self::Refused { status, .. } if is_denial(*status) => "DENY",
            Self::Sent { source } => source.response_flag(),
            _ => "CONNECT",
        }
    }
}

impl Diagnose for TunnelError {
    fn code(&self) -> &'static str {
        match self {
            Self::Identity(source) => source.code(),
            Self::Connect { .. } => "TUN001",
            Self::ConnectSlow { .. } => "TUN002",
            Self::Tls { source, .. } => source.code(),
            Self::Http2 { .. } => "TUN003",
            Self::Refused { .. } => "TUN004",
            Self::Reset { .. } => "TUN005",
            Self::Slow { .. } => "TUN006",
            Self::Request { .. } => "TUN007",
            Self::Full { .. } => "TUN008",
            Self::Sent { .. } => "TUN009",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Identity(source) => source.fault(),
            Self::Request { .. } | Self::Full { .. } => Fault::Internal,
            Self::Sent { source } => source.fault(),
            _ => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Identity(source) => source.remedy(),
            Self::Connect { .. } => "check that the destination's ztunnel runs",
            Self::ConnectSlow { .. } => "check that no NetworkPolicy or firewall blocks TCP 15008 between these pods",
            Self::Tls { source, .. } => source.remedy(),
            Self::Http2 { .. } => "check what listens on the destination's port 15008",
            Self::Refused { .. } => "the destination's ztunnel logged the reason: look for the same trace id",
            Self::Reset { .. } => "check whether the destination's ztunnel or pod was just restarted",
            Self::Sent { source } => source.remedy(),
            Self::Slow { .. } => "check whether the application accepts connections and its node is not overloaded",
            Self::Full { .. } => {
                "applications on this node do not read what they are sent: look for those, or give the node more memory"
            }
            Self::Request { .. } => "report this: a header was built that HTTP does not allow",
        }
    }
}

/// A policy said no (contract 3.2: 401; other implementations: 403). No other endpoint is to be tried.
fn is_denial(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denial_and_faults_of_our_own_forbid_another_endpoint() {
        let destination = SocketAddr::from(([10, 0, 0, 1], 15008));
        let refused = |status| TunnelError::Refused { destination, status };
        for (status, another, flag) in [
            (StatusCode::UNAUTHORIZED, false, "DENY"),
            (StatusCode::FORBIDDEN, false, "DENY"),
            (StatusCode::BAD_REQUEST, true, "CONNECT"),
            (StatusCode::NOT_FOUND, true, "CONNECT"),
            (StatusCode::SERVICE_UNAVAILABLE, true, "CONNECT"),
        ] {
            assert_eq!((refused(status).may_repick(), refused(status).response_flag()), (another, flag), "{status}");
        }
        let limit = Duration::from_secs(1);
        let slow = TunnelError::ConnectSlow { destination, limit };
        assert_eq!((slow.may_repick(), slow.response_flag()), (true, "NETWORK_POLICY"));
        assert!(!TunnelError::Full { destination }.may_repick());
        assert!(TunnelError::Slow { destination, limit }.may_repick());
        let tls = TunnelError::Tls { destination, source: TlsError::Expired };
        assert_eq!((tls.may_repick(), tls.response_flag(), tls.code()), (true, "TLS_FAILURE", "TLS001"));
    }
}
