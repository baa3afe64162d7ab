//! How the API server is reached: the pod's own account inside a cluster, otherwise the user's kubeconfig.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::ProtocolVersion;
use rustls::crypto::CryptoProvider;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may be silent. It sends a bookmark every minute on a watch without news.
const SILENCE: Duration = Duration::from_secs(120);

/// Why there is no access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Neither an account of a pod nor a kubeconfig is there, or it cannot be read.
    #[error("no access to a Kubernetes cluster: {0}; set KUBECONFIG, or run in a pod with a service account")]
    Config(String),
    /// The client cannot be made from the configuration.
    #[error("the client for the Kubernetes API cannot be made")]
    Client(#[source] Box<kube::Error>),
}

/// Access to one cluster. Clones share connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    url: Arc<str>,
    namespace: Arc<str>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Access as the environment says: `KUBECONFIG` or the user's own file where there is one, otherwise the pod's
    /// account. Does not connect yet.
    pub async fn connect() -> Result<Self, AccessError> {
        let config = Config::infer().await.map_err(|error| AccessError::Config(one_line(&error)))?;
        Self::with(config)
    }

    /// Access as a kubeconfig says: this file, or the user's own; this context, or the current one.
    pub async fn from_kubeconfig(file: Option<PathBuf>, context: Option<String>) -> Result<Self, AccessError> {
        let bad = |error: &dyn std::error::Error| AccessError::Config(one_line(error));
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        let config = match file {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(|error| bad(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        Self::with(config.map_err(|error| bad(&error))?)
    }

    fn with(mut config: Config) -> Result<Self, AccessError> {
        // Two users of rustls in one process may each bring a provider along; ours is the one that counts.
        if CryptoProvider::get_default().is_none() {
            // Somebody else may have been quicker, with the same one.
            let _ = provider().install_default();
        }
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.write_timeout = Some(SILENCE);
        let (url, namespace) = (config.cluster_url.to_string().into(), config.default_namespace.as_str().into());
        let client = Client::try_from(config).map_err(|error| AccessError::Client(Box::new(error)))?;
        Ok(Self { client, url, namespace })
    }

    /// The client, for everything that is not watched here.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The namespace of whoever asks: the pod's own, or the kubeconfig context's.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// An error with its causes, in one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text.replace('\n', " ")
}

/// TLS 1.3 alone, which every API server speaks: the client takes whatever version the provider has suites for.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.version().version == ProtocolVersion::TLSv1_3);
    provider
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_spoken_to_in_tls_1_3_alone() {
        let all = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        assert!(all.iter().any(|suite| suite.version().version == ProtocolVersion::TLSv1_2), "there is a choice");
        let versions: Vec<_> = provider().cipher_suites.iter().map(|suite| suite.version().version).collect();
        assert!(!versions.is_empty() && versions.iter().all(|version| *version == ProtocolVersion::TLSv1_3));
    }
}
