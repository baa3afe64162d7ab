//! The certificate that the controller itself answers with, renewed while it serves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use stillmesh_identity::{Issuer, serving_config};
use tracing::{info, warn};

use super::Signing;
use crate::metrics::Metrics;

/// Its life; it is replaced at half of it.
const LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How soon a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// The serving certificate.
pub(crate) struct ServingCertificate {
    signing: Signing,
    names: Vec<String>,
    current: Arc<Current>,
    /// When to replace it.
    renew: SystemTime,
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
    pub fn issue(mut signing: Signing, names: Vec<String>) -> anyhow::Result<Self> {
        let issuer = Arc::clone(&signing.borrow_and_update());
        let (config, renew) = fresh(&issuer, &names)?;
        Ok(Self { signing, names, current: Arc::new(Current(ArcSwap::new(config))), renew })
    }

    /// The TLS configuration to serve with; it always answers with the newest certificate.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.current.0.load());
        config.cert_resolver = Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>;
        Arc::new(config)
    }

    /// Renews the certificate at half of its life and when the CA changes, for ever.
    pub async fn keep(mut self, metrics: Arc<Metrics>) {
        let mut changes = true;
        loop {
            let issuer = Arc::clone(&self.signing.borrow());
            metrics.authority(&issuer);
            let wait = self.renew.duration_since(SystemTime::now()).unwrap_or_default().max(RETRY);
            tokio::select! {
                changed = self.signing.changed(), if changes => changes = changed.is_ok(),
                () = tokio::time::sleep(wait) => {}
            }
            let issuer = Arc::clone(&self.signing.borrow_and_update());
            match fresh(&issuer, &self.names) {
                Ok((config, renew)) => {
                    info!("serving certificate renewed");
                    self.current.0.store(config);
                    self.renew = renew;
                }
                Err(error) => warn!(%error, "serving certificate not renewed"),
            }
        }
    }
}

/// A new certificate, and when to replace it.
fn fresh(issuer: &Issuer, names: &[String]) -> anyhow::Result<(Arc<ServerConfig>, SystemTime)> {
    let now = SystemTime::now();
    let serving = issuer.serving(names, LIFE, now)?;
    let life = serving.not_after.duration_since(now).unwrap_or_default();
    Ok((serving_config(&serving)?, now + life / 2))
}
