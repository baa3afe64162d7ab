//! The control plane's CA as a signer: what a node's [`Secrets`](crate::Secrets) are fed from.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use stillmesh_core::model::Identity;

use crate::{Sign, SignFailure};

impl Sign for stillmesh_api::ca::Client {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>> {
        Box::pin(async move {
            // A shared ztunnel names the identity on every call (contract 6.1).
            self.sign(csr_pem, Some(identity), ttl).await.map_err(|failure| Arc::new(failure) as SignFailure)
        })
    }
}

/// A caller that asks for nobody's certificate but its own: what its token says it is.
#[derive(Clone)]
pub struct OwnIdentity(pub stillmesh_api::ca::Client);

impl Sign for OwnIdentity {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        _identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>> {
        Box::pin(
            async move { self.0.sign(csr_pem, None, ttl).await.map_err(|failure| Arc::new(failure) as SignFailure) },
        )
    }
}
