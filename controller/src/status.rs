//! Writes status conditions back to where the objects come from. What waits is at most one condition per object.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use serde_json::json;
use stillmesh_k8s::{ObjectKey, status};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::Client;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::build::Verdict;
use crate::metrics::Metrics;

/// What is to be written, the newest per object.
pub(crate) struct Statuses {
    waiting: Mutex<BTreeMap<ObjectKey, Verdict>>,
    news: Notify,
    metrics: Arc<Metrics>,
}

impl Statuses {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), metrics }
    }

    /// Takes over what policies' statuses should say.
    pub fn take(&self, verdicts: Vec<Verdict>) {
        let mut waiting = self.waiting.lock();
        for verdict in verdicts {
            match verdict.condition {
                Some(_) => waiting.insert(verdict.object.clone(), verdict),
                None => waiting.remove(&verdict.object),
            };
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Writes, for ever. What cannot be written now is tried again.
    pub async fn write(&self, socket: PathBuf) {
        let client = Client::unix(&socket).deadline(Duration::from_secs(5));
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            let next = self.waiting.lock().pop_first();
            let Some((key, verdict)) = next else {
                self.news.notified().await;
                continue;
            };
            if let Err(reason) = write_one(&client, &key, &verdict).await {
                self.metrics.statuses_failed.inc();
                if backoff.tries() == 0 {
                    warn!(object = %key, reason, "a status cannot be written; it will be tried again");
                }
                // Unless something newer waits by now.
                self.waiting.lock().entry(key).or_insert(verdict);
                tokio::time::sleep(backoff.next(rand::random())).await;
            } else {
                backoff.reset();
            }
        }
    }
}

async fn write_one(client: &Client, key: &ObjectKey, verdict: &Verdict) -> Result<(), String> {
    let Some(condition) = &verdict.condition else { return Ok(()) };
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string();
    let Some(conditions) = status::merged(&verdict.existing, condition, verdict.generation, &now) else {
        return Ok(());
    };
    let path = format!("/status/{}/{}/{}", key.kind, key.namespace, key.name);
    let body = json!({"conditions": conditions}).to_string();
    let answer = client.request(Method::PATCH, &path, body).await.map_err(|error| chain(&error))?;
    match answer.status.as_u16() {
        200..=299 => {
            debug!(object = %key, reason = condition.reason, "status written");
            Ok(())
        }
        // The object is gone, or is no longer what it was: whatever comes next tells.
        404 | 409 | 410 => Ok(()),
        _ => Err(format!("{}: {}", answer.status, answer.text())),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
