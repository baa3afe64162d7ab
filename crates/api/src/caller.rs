//! Who is calling the control plane, and the trait that finds out. Used by the xDS and CA services; the
//! controller implements it (join tokens, TokenReview, client certificates).

use futures::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use stillmesh_core::model::Str;
use stillmesh_core::{Diagnose, Fault};

use crate::serve::Peer;

/// What a caller presented. Borrowed from the call; never logged.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// The token of `authorization: Bearer …`.
    pub bearer: Option<&'a str>,
    /// The client's certificate chain as verified by TLS, leaf first; empty without one.
    pub peer_certificates: &'a [CertificateDer<'static>],
    /// The `clusterid` header.
    pub cluster_id: Option<&'a str>,
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of its service account.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
    /// The node that it runs on, where the credentials say so.
    pub node: Option<Str>,
    /// Its pod's name and UID, where the credentials say so.
    pub pod: Option<(Str, Str)>,
}

/// Why a caller is not let in. The text is told to the caller: no secrets in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The credentials are missing, wrong or expired.
    #[error("request authenticate failure: {0}")]
    Unauthenticated(String),
    /// The caller is known and may not do this.
    #[error("permission denied: {0}")]
    Denied(String),
    /// It cannot be found out now.
    #[error("authentication is unavailable: {0}")]
    Unavailable(String),
}

impl Diagnose for AuthError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "API050",
            Self::Denied(_) => "API051",
            Self::Unavailable(_) => "API052",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Unauthenticated(_) | Self::Denied(_) => Fault::Downstream,
            Self::Unavailable(_) => Fault::Internal,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "check that the node's token is this mesh's and has not expired",
            Self::Denied(_) => "check which service accounts may act for others",
            Self::Unavailable(_) => "check what the controller authenticates against",
        }
    }
}

/// Finds out who is calling. Called once per stream or call, within [`AUTHENTICATE_DEADLINE`].
pub trait Authenticate: Send + Sync + 'static {
    /// Who presents these credentials.
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>>;
}

/// How long an authentication may take.
pub const AUTHENTICATE_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Authenticates a call by its metadata and its connection, and tells the connection when that went well.
pub(crate) async fn authenticate<T>(
    request: &tonic::Request<T>,
    authenticate: &dyn Authenticate,
) -> Result<Caller, tonic::Status> {
    let peer = request.extensions().get::<Peer>();
    let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
    let credentials = Credentials {
        bearer: text("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::trim),
        peer_certificates: peer.map_or(&[], |peer| peer.certificates()),
        cluster_id: text("clusterid"),
    };
    let answer = tokio::time::timeout(AUTHENTICATE_DEADLINE, authenticate.authenticate(credentials)).await;
    let answer = answer.unwrap_or_else(|_| Err(AuthError::Unavailable("it took too long".to_owned())));
    match answer {
        Ok(caller) => {
            if let Some(peer) = peer {
                peer.authenticated();
            }
            Ok(caller)
        }
        Err(error) => {
            tracing::info!(%error, peer = ?peer.map(Peer::address), "caller refused");
            Err(match error {
                AuthError::Unauthenticated(_) => tonic::Status::unauthenticated(error.to_string()),
                AuthError::Denied(_) => tonic::Status::permission_denied(error.to_string()),
                AuthError::Unavailable(_) => tonic::Status::unavailable(error.to_string()),
            })
        }
    }
}
