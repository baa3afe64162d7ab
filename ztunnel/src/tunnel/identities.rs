//! The certificates of this node's workloads, in the words that the rest of this crate needs.

use std::sync::Arc;

use stillmesh_api::ca::Client;
use stillmesh_core::model::Identity;
use stillmesh_identity::{Revocations, SecretLimits, Secrets, SystemClock};
use stillmesh_proxy::revocations;
use stillmesh_runtime::tasks::Tasks;

use crate::config::Config;

/// All certificates that this node holds.
#[derive(Clone)]
pub struct Identities {
    secrets: Secrets,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Identities {
    /// Fetches from the configured authority, on the current runtime.
    pub fn new(config: &Config, tasks: &Tasks) -> Self {
        let limits = SecretLimits { ttl: config.secret_ttl, ..SecretLimits::default() };
        let signer = Arc::new(Client::new(config.ca.clone()));
        let revocations = Arc::new(Revocations::default());
        if let Some(path) = &config.crl {
            tasks.spawn("crl", revocations::follow(path.clone(), revocations.clone()));
        }
        Self::with(Secrets::minding(signer, Arc::new(SystemClock), limits, tasks, revocations))
    }

    /// Over any source.
    pub fn with(secrets: Secrets) -> Self {
        Self { secrets }
    }

    /// The certificates themselves.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Has a certificate ready before it is needed.
    pub fn prefetch(&self, identity: &Identity) {
        if let Err(error) = self.secrets.prefetch(identity) {
            tracing::warn!(%error, %identity, "certificate not prefetched");
        }
    }

    /// The last pod of an account has gone.
    pub fn forget_account(&self, namespace: &str, service_account: &str) {
        for status in self.secrets.status() {
            let identity = status.identity;
            if &*identity.namespace == namespace && &*identity.service_account == service_account {
                self.secrets.forget(&identity);
            }
        }
    }
}
