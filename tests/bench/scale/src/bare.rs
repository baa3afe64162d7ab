//! A bare watch beside the controller's: when the API server itself passes a change on. What a change takes from there on
//! is the mesh's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use parking_lot::Mutex;
use stillmesh_k8s::istio::AuthorizationPolicy;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Notes when policies of any namespace are heard of.
pub struct Bare {
    shared: Arc<Shared>,
    _watch: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// By `namespace/name`: what is waited for, and when it came.
    awaited: Mutex<HashMap<String, Option<Instant>>>,
    news: Notify,
}

impl Bare {
    pub async fn start(client: kube::Client) -> anyhow::Result<Self> {
        let api = Api::<AuthorizationPolicy>::all(client);
        let mut version = api.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
        let shared = Arc::new(Shared::default());
        let note = Arc::clone(&shared);
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            // Streams end now and then; each goes on where the last was.
            loop {
                let from = version.clone().unwrap_or_default();
                let Ok(stream) = api.watch_metadata(&WatchParams::default(), &from).await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let mut stream = stream.boxed();
                while let Some(Ok(event)) = stream.next().await {
                    let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
                    let metadata = object.metadata;
                    version.clone_from(&metadata.resource_version);
                    let key =
                        format!("{}/{}", metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
                    if let Some(heard) = note.awaited.lock().get_mut(&key) {
                        heard.get_or_insert_with(Instant::now);
                        note.news.notify_waiters();
                    }
                }
            }
        });
        Ok(Self { shared, _watch: watch })
    }

    /// From now on notes when this policy is next heard of.
    pub fn expect(&self, key: &str) {
        self.shared.awaited.lock().insert(key.to_owned(), None);
    }

    /// When it was heard of.
    pub async fn heard(&self, key: &str, patience: Duration) -> anyhow::Result<Instant> {
        let heard = async {
            loop {
                let news = self.shared.news.notified();
                if let Some(at) = self.shared.awaited.lock().get(key).copied().flatten() {
                    return at;
                }
                news.await;
            }
        };
        let at = timeout(patience, heard).await.with_context(|| format!("nothing was heard of policy {key}"));
        self.shared.awaited.lock().remove(key);
        at
    }
}
