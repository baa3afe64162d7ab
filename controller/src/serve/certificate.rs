//! The certificate that the controller itself answers with, renewed while it serves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use stillmesh_identity::{Issuer, serving_config};
use tracing::{info, warn};

/// Its life; it is replaced at half of it.
const LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How soon a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// The serving certificate.
pub(crate) struct ServingCertificate {
    issuer: Arc<Issuer>,
    names: Vec<String>,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<ServerConfig>);

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().cert_resolver.resolve(hello)
    }
}

impl ServingCertificate {
    /// Issues the first one, for these DNS names and addresses.
    pub fn issue(issuer: Arc<Issuer>, names: Vec<String>) -> anyhow::Result<Self> {
        let config = Self::fresh(&issuer, &names)?;
        Ok(Self { issuer, names, current: Arc::new(Current(ArcSwap::new(config))) })
    }

    /// The TLS configuration to serve with; it always answers with the newest certificate.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.current.0.load());
        config.cert_resolver = Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>;
        Arc::new(config)
    }

    /// Renews the certificate, for ever.
    pub async fn keep(self) {
        let mut wait = LIFE / 2;
        loop {
            tokio::time::sleep(wait).await;
            wait = match Self::fresh(&self.issuer, &self.names) {
                Ok(config) => {
                    info!("serving certificate renewed");
                    self.current.0.store(config);
                    LIFE / 2
                }
                Err(error) => {
                    warn!(%error, "serving certificate not renewed");
                    RETRY
                }
            };
        }
    }

    fn fresh(issuer: &Issuer, names: &[String]) -> anyhow::Result<Arc<ServerConfig>> {
        Ok(serving_config(&issuer.serving(names, LIFE, SystemTime::now())?)?)
    }
}
