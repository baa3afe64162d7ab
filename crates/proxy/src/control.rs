//! What is counted of the control plane's stream.

use std::time::UNIX_EPOCH;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use stillmesh_api::xds::{Batch, ResourceType, Status};
use stillmesh_core::model::Str;
use stillmesh_identity::Secrets;
use tokio::sync::watch;

use crate::labels::{Text, Word};

/// Label of the terminations of the control plane's stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Termination {
    /// `ConnectionError`, `Error`, `Reconnect` or `Complete`.
    reason: Word,
}

/// Label of the control plane's messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageUrl {
    /// Type URL.
    url: Text,
}

/// What is told of the certificates that a proxy holds. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    expiry: Gauge,
    failing: Gauge,
}

impl CertificateMetrics {
    /// Registers them; `own` puts the proxy's prefix before their names.
    pub fn register(&self, own: &mut Registry) {
        let help = "When the first of the certificates in use expires, Unix time; 0: there are none";
        own.register("certificate_expiry_timestamp_seconds", help, self.expiry.clone());
        own.register("certificate_failures", "Identities whose last request for one failed", self.failing.clone());
    }

    /// Brings them up to date; called before metrics are read.
    pub fn look(&self, secrets: &Secrets) {
        let all = secrets.status();
        let first = all.iter().filter_map(|one| one.leaf.as_ref()).map(|leaf| leaf.not_after()).min();
        let unix = first.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
        self.expiry.set(i64::try_from(unix).unwrap_or(i64::MAX));
        let failing = all.iter().filter(|one| one.failure.is_some()).count();
        self.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }
}

/// Counters of the control plane's stream, under Istio's names. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct XdsMetrics {
    terminations: Family<Termination, Counter>,
    messages: Family<MessageUrl, Counter>,
    message_bytes: Family<MessageUrl, Counter>,
}

impl XdsMetrics {
    /// Registers them; `istio` puts `istio_` before their names.
    pub fn register(&self, istio: &mut Registry) {
        // What has not happened yet is 0, not absent.
        for reason in ["Complete", "ConnectionError", "Error"] {
            drop(self.terminations.get_or_create(&Termination { reason: Word(reason) }));
        }
        for kind in [ResourceType::Address, ResourceType::Authorization] {
            let url = MessageUrl { url: Text::from(&Str::from(kind.url())) };
            drop(self.messages.get_or_create(&url));
            drop(self.message_bytes.get_or_create(&url));
        }
        istio.register("xds_connection_terminations", "Ended streams to the control plane", self.terminations.clone());
        istio.register("xds_message", "Messages from the control plane", self.messages.clone());
        istio.register("xds_message_bytes", "Their bytes", self.message_bytes.clone());
    }

    /// Counts a message.
    pub fn received(&self, batch: &Batch) {
        let url = MessageUrl { url: Text::from(&Str::from(batch.kind.url())) };
        self.messages.get_or_create(&url).inc();
        self.message_bytes.get_or_create(&url).inc_by(batch.bytes as u64);
    }

    /// Counts ended streams by how they ended, until the client is gone.
    pub async fn count_terminations(self, mut status: watch::Receiver<Status>) {
        let mut was_connected = false;
        while status.changed().await.is_ok() {
            let now = status.borrow_and_update().clone();
            let reason = match (was_connected, now.connected) {
                (true, false) if now.last_error.is_none() => Some("Complete"),
                (true, false) => Some("Error"),
                (false, false) if now.last_error.is_some() => Some("ConnectionError"),
                _ => None,
            };
            if let Some(reason) = reason {
                self.terminations.get_or_create(&Termination { reason: Word(reason) }).inc();
            }
            was_connected = now.connected;
        }
    }
}
