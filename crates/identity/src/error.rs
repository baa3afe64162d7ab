//! Why a handshake failed, told apart so that it can be logged, counted and mended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{CertificateError, Error};
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::{Identity, TrustDomain};

use crate::verify::NameError;

/// Why there is no TLS connection. Cheap to clone, so that all who wait for one dial learn the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate has expired.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate is of the future.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// The peer's certificate is revoked.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// The peer's certificate does not chain to our roots.
    #[error("the peer's certificate is signed by nobody whom we trust")]
    UnknownIssuer,
    /// The peer's certificate names no workload.
    #[error("the peer's certificate carries no SPIFFE identity")]
    NoIdentity,
    /// The peer is of another trust domain.
    #[error("the peer is {found}, of another trust domain than {own}")]
    ForeignTrustDomain {
        /// Who it is.
        found: Identity,
        /// Whom we accept.
        own: TrustDomain,
    },
    /// The peer is a workload, but not the expected one.
    #[error("the peer is {found:?}, not one of {expected:?}")]
    WrongIdentity {
        /// The URI SANs that it showed.
        found: Vec<String>,
        /// Who was expected.
        expected: Vec<Identity>,
    },
    /// The peer's certificate is wrong in another way.
    #[error("the peer's certificate is not accepted: {problem}")]
    BadCertificate {
        /// What rustls says.
        problem: String,
    },
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer refused us.
    #[error("the peer ended the handshake with the alert {alert}")]
    Refused {
        /// The TLS alert.
        alert: String,
    },
    /// The peer does not speak TLS, or breaks its rules.
    #[error("the peer does not speak TLS as it should: {problem}")]
    Protocol {
        /// What rustls says.
        problem: String,
    },
    /// The peer has no version, suite, key exchange or application protocol in common with us.
    #[error("the peer has no TLS 1.3 parameters in common with us: {problem}")]
    Incompatible {
        /// What rustls says.
        problem: String,
    },
    /// The connection ended during the handshake.
    #[error("the connection ended during the handshake")]
    Closed(#[source] Arc<io::Error>),
    /// The handshake took too long.
    #[error("the handshake took longer than {limit:?}")]
    Slow {
        /// The deadline.
        limit: Duration,
    },
    /// Our own configuration cannot be made.
    #[error("TLS cannot be set up: {problem}")]
    Setup {
        /// What rustls says.
        problem: String,
    },
}

impl TlsError {
    /// Reads the error of a handshake, as `tokio_rustls` tells it.
    pub fn from_handshake(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            Some(problem) => Self::from_rustls(problem),
            None => Self::Closed(Arc::new(error)),
        }
    }

    fn from_rustls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(problem) => Self::from_certificate(problem),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => Self::Refused { alert: format!("{alert:?}") },
            Error::PeerIncompatible(problem) => Self::Incompatible { problem: format!("{problem:?}") },
            Error::NoApplicationProtocol => Self::Incompatible { problem: "no common ALPN protocol".to_owned() },
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord
            | Error::DecryptError => Self::Protocol { problem: error.to_string() },
            other => Self::Setup { problem: other.to_string() },
        }
    }

    fn from_certificate(problem: &CertificateError) -> Self {
        match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Other(other) => match other.0.downcast_ref::<NameError>() {
                Some(NameError::NoIdentity) => Self::NoIdentity,
                Some(NameError::ForeignTrustDomain { found, own }) => {
                    Self::ForeignTrustDomain { found: found.clone(), own: own.clone() }
                }
                Some(NameError::WrongIdentity { found, expected }) => {
                    Self::WrongIdentity { found: found.clone(), expected: expected.clone() }
                }
                None => Self::BadCertificate { problem: other.to_string() },
            },
            other => Self::BadCertificate { problem: other.to_string() },
        }
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self::from_rustls(&error)
    }
}

impl Diagnose for TlsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Expired => "TLS001",
            Self::NotYetValid => "TLS002",
            Self::UnknownIssuer => "TLS003",
            Self::NoIdentity => "TLS004",
            Self::ForeignTrustDomain { .. } => "TLS005",
            Self::WrongIdentity { .. } => "TLS006",
            Self::BadCertificate { .. } => "TLS007",
            Self::NoCertificate => "TLS008",
            Self::Refused { .. } => "TLS009",
            Self::Protocol { .. } => "TLS010",
            Self::Incompatible { .. } => "TLS011",
            Self::Closed(_) => "TLS012",
            Self::Slow { .. } => "TLS013",
            Self::Setup { .. } => "TLS014",
            Self::Revoked => "TLS015",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Setup { .. } => Fault::Internal,
            _ => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Expired | Self::NotYetValid => {
                "compare the clocks of both nodes and check that the peer can reach its CA"
            }
            Self::UnknownIssuer => "check that both sides have their certificates from the same mesh's CA",
            Self::NoIdentity | Self::ForeignTrustDomain { .. } => "check the trust domain of both sides",
            Self::WrongIdentity { .. } => {
                "the address belongs to another workload than the mesh believes: check for reused IPs"
            }
            Self::Refused { .. } => "look at the peer's log: it says why it does not accept our certificate",
            Self::NoCertificate | Self::Protocol { .. } | Self::Incompatible { .. } => {
                "check that what listens on or dials this port is a part of the mesh"
            }
            Self::Revoked => "if the peer is what it should be, restart it: it then gets another certificate",
            Self::BadCertificate { .. } => "check how the peer's certificate was issued",
            Self::Closed(_) | Self::Slow { .. } => "check that the peer runs and that nothing between drops packets",
            Self::Setup { .. } => "report this: the mesh's own certificate or configuration is unusable",
        }
    }
}
