//! The CA's protocol (contract 6.1): the node's client and the glue of the control plane's service.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use stillmesh_core::model::Identity;

use crate::proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::{Authenticate, Caller, ControlPlane, ControlPlaneError};

/// Asks the control plane for certificates. Cheap to clone; calls may run side by side.
#[derive(Clone)]
pub struct Client {
    control_plane: ControlPlane,
}

impl Client {
    /// How long one call may take.
    pub const DEADLINE: Duration = Duration::from_secs(10);

    /// A client; it dials when first used.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane }
    }

    /// Sends a CSR. `impersonated` is whose certificate a shared ztunnel asks for. Returns at least two PEM
    /// entries: the leaf first, the roots last.
    pub async fn sign(
        &self,
        _csr_pem: &str,
        _impersonated: Option<&Identity>,
        _ttl: Duration,
    ) -> Result<Vec<String>, CaError> {
        let _ = &self.control_plane;
        todo!()
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The channel cannot be made.
    #[error("cannot reach the CA")]
    ControlPlane(#[from] ControlPlaneError),
    /// The CA refused.
    #[error("the CA answered {code}: {message}")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// Its message.
        message: String,
    },
    /// No answer in time.
    #[error("the CA did not answer within {limit:?}")]
    Slow {
        /// The deadline.
        limit: Duration,
    },
    /// The answer has no root.
    #[error("the CA answered with {entries} certificates: the leaf and the roots are needed")]
    NoRoot {
        /// How many came.
        entries: usize,
    },
}

/// A request for a certificate by an authenticated caller. Whether the caller may is the signer's decision.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// Who asks.
    pub caller: Caller,
    /// The CSR, PEM. Only its key counts.
    pub csr_pem: String,
    /// For whom; `None` asks for the caller's own.
    pub impersonated: Option<Identity>,
    /// For how long; `None` is the CA's default.
    pub ttl: Option<Duration>,
    /// The `clusterid` header.
    pub cluster_id: Option<String>,
}

/// Why a certificate is not issued. The texts are told to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Impersonation is not permitted.
    #[error("request impersonation authentication failure: {0}")]
    Impersonation(String),
    /// A bad CSR, or a time that is too long.
    #[error("{0}")]
    Invalid(String),
    /// The CA cannot sign.
    #[error("{0}")]
    Internal(String),
}

/// Signs. The controller implements it over its issuer.
pub trait SignRequest: Send + Sync + 'static {
    /// PEM entries: the leaf, intermediates, the roots as one entry.
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>>;
}

/// The gRPC service; add it to [`crate::serve::serve`].
pub struct Service {}

/// The CA service over a signer.
pub fn service(
    _signer: Arc<dyn SignRequest>,
    _authenticate: Arc<dyn Authenticate>,
) -> IstioCertificateServiceServer<Service> {
    todo!()
}
