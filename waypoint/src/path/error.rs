//! Why something was not carried.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_core::decide::Refusal;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::Str;
use stillmesh_core::{Diagnose, Fault};
use stillmesh_hbone::TunnelError;
use stillmesh_hbone::server::ServeError;
use stillmesh_identity::{SecretError, TlsError};

use crate::record::Flag;

/// Every way in which a CONNECT or a request fails. Cheap to clone: all who wait for one connection learn the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PathError {
    /// The control plane has not told about the waypoint itself.
    #[error("the waypoint's own workload {pod} was not known within {limit:?}")]
    NoOwnWorkload {
        /// `namespace/name`.
        pod: String,
        /// The deadline.
        limit: Duration,
    },
    /// There is nowhere to carry it to.
    #[error("{}", .0.reason)]
    Refused(Refusal),
    /// It was open, and policies have changed.
    #[error("closed due to policy change: {}", .0.reason)]
    Closed(Refusal),
    /// A bound was reached.
    #[error("refused: {limit} {what} are open already")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A bound of the service's DestinationRule was reached.
    #[error("refused: {limit} {what} are open already, which the connectionPool of its DestinationRule allows")]
    Pool {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: u32,
    },
    /// An endpoint was not reached.
    #[error("cannot connect to {to}")]
    Connect {
        /// The endpoint.
        to: SocketAddr,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// An endpoint did not answer in time.
    #[error("{to} did not answer within {limit:?}")]
    Slow {
        /// The endpoint as it was to be dialled.
        to: String,
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
        source: Arc<io::Error>,
    },
    /// The tunnel to an endpoint was not opened.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// HTTP did not start with an endpoint, or broke before the answer.
    #[error("HTTP with the endpoint failed")]
    Upstream {
        /// What was wrong.
        #[source]
        source: Arc<hyper::Error>,
    },
    /// There is no certificate to show.
    #[error(transparent)]
    Identity(#[from] SecretError),
    /// A client's handshake failed.
    #[error("TLS handshake failed")]
    Handshake(#[from] Arc<TlsError>),
    /// A client's HTTP/2 connection broke.
    #[error("a client's tunnel broke")]
    Serve(#[from] Arc<ServeError>),
    /// The client sent something else than a CONNECT with an authority.
    #[error("not a CONNECT to ip:port or hostname:port: {authority:?}")]
    NotConnect {
        /// What it sent.
        authority: String,
    },
    /// The client went before its answer.
    #[error("the client is gone")]
    ClientGone {
        /// How it went.
        #[source]
        source: Arc<io::Error>,
    },
    /// One of the two ends broke the connection.
    #[error("the connection broke")]
    Broken {
        /// How.
        #[source]
        source: Arc<io::Error>,
    },
    /// The request took longer than its route allows.
    #[error("no response began within {limit:?}, which the route allows")]
    TimedOut {
        /// The route's timeout.
        limit: Duration,
    },
    /// The endpoint answered, and does not speak the protocol that the client wants to go on in.
    #[error("the endpoint did not switch protocols: it answered {status}")]
    NotSwitched {
        /// Its answer.
        status: http::StatusCode,
    },
    /// The endpoint speaks HTTP/2, and not CONNECT for the protocol that the client wants to go on in.
    #[error("the endpoint does not take CONNECT for other protocols on HTTP/2 (RFC 8441)")]
    NoConnect,
    /// The request cannot be forwarded.
    #[error("{what}")]
    BadRequest {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl From<Refusal> for PathError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TlsError> for PathError {
    fn from(error: TlsError) -> Self {
        Self::Handshake(Arc::new(error))
    }
}

impl From<ServeError> for PathError {
    fn from(error: ServeError) -> Self {
        Self::Serve(Arc::new(error))
    }
}

impl PathError {
    /// What core decided by, where it was core.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Refused(refusal) | Self::Closed(refusal) => Some(&refusal.reason),
            _ => None,
        }
    }

    /// As metrics and logs say it, in Envoy's words (contract 9.2).
    pub fn flag(&self) -> Flag {
        match self {
            Self::Refused(refusal) => match refusal.reason {
                Reason::NoHealthyEndpoint { .. } | Reason::EndpointsEjected { .. } => Flag::NoHealthyUpstream,
                Reason::SubsetUnknown { .. } => Flag::NoCluster,
                _ => Flag::NoRoute,
            },
            Self::Closed(_) => Flag::Denied,
            Self::NoOwnWorkload { .. } => Flag::NoRoute,
            Self::Full { .. } | Self::Pool { .. } => Flag::Overflow,
            Self::Connect { .. } | Self::Resolve { .. } | Self::Tunnel(_) | Self::Slow { .. } | Self::Identity(_) => {
                Flag::UpstreamFailure
            }
            Self::Upstream { source } if is_reset(source) => Flag::UpstreamReset,
            Self::Upstream { .. } | Self::Broken { .. } | Self::NotSwitched { .. } | Self::NoConnect => {
                Flag::UpstreamTermination
            }
            Self::Handshake(_) | Self::Serve(_) | Self::NotConnect { .. } | Self::ClientGone { .. } => {
                Flag::DownstreamTermination
            }
            Self::TimedOut { .. } => Flag::UpstreamTimeout,
            Self::BadRequest { .. } => Flag::DownstreamProtocol,
        }
    }

    /// As a metric's label: why a CONNECT was refused.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoOwnWorkload { .. } => "own_workload",
            Self::Refused(refusal) if refusal.reason.is_denial() => "denied",
            Self::Refused(_) => "not_bound",
            Self::Closed(_) => "denied",
            Self::Full { .. } | Self::Pool { .. } => "full",
            Self::Handshake(_) => "tls",
            Self::Serve(_) => "tunnel",
            Self::NotConnect { .. } => "not_connect",
            Self::Identity(_) => "identity",
            _ => "upstream",
        }
    }

    /// Whether a failure says nothing about other endpoints: this one has not taken anything, and no policy refused.
    pub fn may_repick(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Slow { .. } | Self::Resolve { .. } => true,
            Self::Tunnel(error) => error.may_repick(),
            _ => false,
        }
    }

    /// The error with its causes, on one line.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// Whether the endpoint ended one stream, and not its connection.
fn is_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.is_reset() && error.is_remote();
        }
        source = cause.source();
    }
    false
}

impl Diagnose for PathError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoOwnWorkload { .. } => "WAY001",
            Self::Refused(refusal) | Self::Closed(refusal) => refusal.code(),
            Self::Full { .. } => "WAY002",
            Self::Connect { .. } => "WAY003",
            Self::Slow { .. } => "WAY004",
            Self::Resolve { .. } => "WAY005",
            Self::Tunnel(error) => error.code(),
            Self::Upstream { .. } => "WAY006",
            Self::Identity(error) => error.code(),
            Self::Handshake(error) => error.code(),
            Self::Serve(error) => error.code(),
            Self::NotConnect { .. } => "WAY007",
            Self::ClientGone { .. } => "WAY008",
            Self::Broken { .. } => "WAY009",
            Self::BadRequest { .. } => "WAY010",
            Self::TimedOut { .. } => "WAY011",
            Self::NotSwitched { .. } => "WAY012",
            Self::NoConnect => "WAY013",
            Self::Pool { .. } => "WAY014",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Refused(refusal) | Self::Closed(refusal) => refusal.fault(),
            Self::Tunnel(error) => error.fault(),
            Self::Identity(error) => error.fault(),
            Self::Handshake(error) => error.fault(),
            Self::Serve(error) => error.fault(),
            Self::NoOwnWorkload { .. } => Fault::Config,
            Self::NotConnect { .. } | Self::ClientGone { .. } | Self::BadRequest { .. } => Fault::Downstream,
            Self::Full { .. } => Fault::Downstream,
            Self::Pool { .. } => Fault::Config,
            Self::Connect { .. }
            | Self::Slow { .. }
            | Self::Resolve { .. }
            | Self::Upstream { .. }
            | Self::TimedOut { .. }
            | Self::NotSwitched { .. }
            | Self::NoConnect
            | Self::Broken { .. } => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Refused(refusal) | Self::Closed(refusal) => refusal.remedy(),
            Self::Tunnel(error) => error.remedy(),
            Self::Identity(error) => error.remedy(),
            Self::Handshake(error) => error.remedy(),
            Self::Serve(error) => error.remedy(),
            Self::NoOwnWorkload { .. } => {
                "check POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT and NODE_NAME of the waypoint"
            }
            Self::Full { .. } => "add replicas of the waypoint, or raise its bounds",
            Self::Pool { .. } => "add endpoints, or raise the bounds of the DestinationRule's connectionPool",
            Self::Connect { .. } | Self::Slow { .. } => {
                "check that the endpoint runs and that no NetworkPolicy blocks it"
            }
            Self::Resolve { .. } => "check the endpoint's name and the resolver of the waypoint",
            Self::Upstream { .. } | Self::Broken { .. } | Self::NotSwitched { .. } => "see the endpoint's log",
            Self::NoConnect => {
                "have the endpoint announce SETTINGS_ENABLE_CONNECT_PROTOCOL, or make its port one of HTTP/1.1"
            }
            Self::TimedOut { .. } => "see why the endpoint is slow, or allow more in the route's timeouts",
            Self::NotConnect { .. } => "dial this port through ztunnel",
            Self::ClientGone { .. } => "see the client's log",
            Self::BadRequest { .. } => "see RFC 9112: the client's request is not one that may be forwarded",
        }
    }
}
