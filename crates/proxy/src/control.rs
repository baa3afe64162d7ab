//! What is counted of the control plane's stream.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use stillmesh_api::xds::{Batch, Status};
use stillmesh_core::model::Str;
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
