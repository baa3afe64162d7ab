//! The CA's protocol (contract 6.1): the node's client and the glue of the control plane's service.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use stillmesh_core::model::{Identity, IdentityError};
use stillmesh_core::{Diagnose, Fault};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::caller::authenticate;
use crate::proto::google::protobuf::value::Kind;
use crate::proto::google::protobuf::{Struct, Value};
use crate::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use crate::xds::client::causes;
use crate::{Authenticate, Caller, ControlPlane, ControlPlaneError};

/// Asks the control plane for certificates. Cheap to clone; calls may run side by side.
#[derive(Clone)]
pub struct Client {
    control_plane: Arc<ControlPlane>,
    channel: Arc<Mutex<Option<Trusting>>>,
}

/// A channel and the trusted certificates that it was made with.
struct Trusting {
    root: Vec<u8>,
    channel: Channel,
}

impl Client {
    /// How long one call may take.
    pub const DEADLINE: Duration = Duration::from_secs(10);

    /// A client; it dials when first used.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane: Arc::new(control_plane), channel: Arc::default() }
    }

    /// Sends a CSR. `impersonated` is whose certificate a shared ztunnel asks for. Returns at least two PEM
    /// entries: the leaf first, the roots last.
    pub async fn sign(
        &self,
        csr_pem: &str,
        impersonated: Option<&Identity>,
        ttl: Duration,
    ) -> Result<Vec<String>, CaError> {
        let call = self.call(csr_pem, impersonated, ttl);
        timeout(Self::DEADLINE, call).await.unwrap_or(Err(CaError::Slow { limit: Self::DEADLINE }))
    }

    async fn call(&self, csr_pem: &str, whose: Option<&Identity>, ttl: Duration) -> Result<Vec<String>, CaError> {
        let text = |identity: &Identity| Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let metadata = whose.map(|identity| Struct { fields: [(IMPERSONATED.to_owned(), text(identity))].into() });
        let message = IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata,
        };
        let request = self.control_plane.request(message).await?;
        let mut service = IstioCertificateServiceClient::new(self.channel().await?);
        let answer = service.create_certificate(request).await.map_err(|status| CaError::Refused {
            code: status.code(),
            message: match std::error::Error::source(&status) {
                Some(source) => format!("{}: {}", status.message(), causes(source)),
                None => status.message().to_owned(),
            },
        })?;
        let chain = answer.into_inner().cert_chain;
        if chain.len() < 2 {
            return Err(CaError::NoRoot { entries: chain.len() });
        }
        Ok(chain)
    }

    /// The channel; a new one when the trusted certificates have changed.
    async fn channel(&self) -> Result<Channel, ControlPlaneError> {
        let root = self.control_plane.root_pem().await?;
        let mut current = self.channel.lock();
        match &*current {
            Some(same) if same.root == root => Ok(same.channel.clone()),
            _ => {
                let channel = self.control_plane.lazy()?;
                *current = Some(Trusting { root, channel: channel.clone() });
                Ok(channel)
            }
        }
    }
}

const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The channel cannot be made.
    #[error("cannot reach the CA")]
    ControlPlane(#[from] ControlPlaneError),
    /// The CA refused.
    #[error("the CA answered {code:?}: {message}")]
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

impl Diagnose for CaError {
    fn code(&self) -> &'static str {
        match self {
            Self::ControlPlane(error) => error.code(),
            Self::Refused { .. } => "API030",
            Self::Slow { .. } => "API031",
            Self::NoRoot { .. } => "API032",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::ControlPlane(error) => error.fault(),
            Self::Refused { .. } | Self::Slow { .. } | Self::NoRoot { .. } => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::ControlPlane(error) => error.remedy(),
            Self::Refused { .. } => "check the token, and that a pod with this service account runs on this node",
            Self::Slow { .. } => "check that the controller is healthy",
            Self::NoRoot { .. } => "check the CA's root certificate",
        }
    }
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

impl Diagnose for SignError {
    fn code(&self) -> &'static str {
        match self {
            Self::Impersonation(_) => "API040",
            Self::Invalid(_) => "API041",
            Self::Internal(_) => "API042",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Impersonation(_) | Self::Invalid(_) => Fault::Downstream,
            Self::Internal(_) => Fault::Internal,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Impersonation(_) => "a node gets certificates only for service accounts of pods that run on it",
            Self::Invalid(_) => "send a signed PEM CSR and ask for at most the CA's longest validity",
            Self::Internal(_) => "see the controller's log",
        }
    }
}

/// Signs. The controller implements it over its issuer.
pub trait SignRequest: Send + Sync + 'static {
    /// PEM entries: the leaf, intermediates, the roots as one entry.
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>>;
}

/// The gRPC service; add it to [`crate::serve::serve`].
pub struct Service {
    signer: Arc<dyn SignRequest>,
    authenticate: Arc<dyn Authenticate>,
}

/// The CA service over a signer.
pub fn service(
    signer: Arc<dyn SignRequest>,
    authenticate: Arc<dyn Authenticate>,
) -> IstioCertificateServiceServer<Service> {
    IstioCertificateServiceServer::new(Service { signer, authenticate }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// A CSR with a P-256 key is under 1 KiB, one with an RSA key under 4.
const MAX_REQUEST_BYTES: usize = 64 << 10;

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = authenticate(&request, &*self.authenticate).await?;
        let cluster_id = request.metadata().get("clusterid").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let message = request.into_inner();
        let impersonated = impersonated(message.metadata.as_ref())?;
        let ttl = u64::try_from(message.validity_duration).ok().filter(|seconds| *seconds > 0);
        let asked = CertificateRequest {
            caller,
            csr_pem: message.csr,
            impersonated,
            ttl: ttl.map(Duration::from_secs),
            cluster_id,
        };
        let signed = timeout(Client::DEADLINE, self.signer.sign(asked)).await;
        let signed = signed.map_err(|_| Status::deadline_exceeded("signing took too long"))?;
        let cert_chain = signed.map_err(|error| match error {
            SignError::Impersonation(_) => Status::unauthenticated(error.to_string()),
            SignError::Invalid(_) => Status::invalid_argument(error.to_string()),
            SignError::Internal(_) => Status::internal(error.to_string()),
        })?;
        if cert_chain.len() < 2 {
            return Err(Status::internal("the signer gave no root"));
        }
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// Whose certificate is asked for, if not the caller's own.
fn impersonated(metadata: Option<&Struct>) -> Result<Option<Identity>, Status> {
    let Some(value) = metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED)) else { return Ok(None) };
    let refused = |why: String| Status::unauthenticated(SignError::Impersonation(why).to_string());
    match &value.kind {
        Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
        Some(Kind::StringValue(text)) => {
            text.parse().map(Some).map_err(|error: IdentityError| refused(error.to_string()))
        }
        _ => Err(refused("ImpersonatedIdentity is not text".to_owned())),
    }
}
