//! Who runs where: what the CA asks before it certifies an identity for a node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use stillmesh_core::model::Str;
use tokio::sync::watch;

use super::world::{Name, node_of};

/// Namespace and service account.
type Account = (Str, Str);

/// The accounts of the pods on every node. Shared between the builder, which writes, and the CA.
#[derive(Debug)]
pub struct Running {
    accounts: RwLock<HashMap<Str, HashMap<Account, usize>>>,
    changed: watch::Sender<()>,
}

impl Default for Running {
    fn default() -> Self {
        Self { accounts: RwLock::default(), changed: watch::channel(()).0 }
    }
}

impl Running {
    /// Whether a pod that has not failed runs on this node under this account.
    pub fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        let account = (Str::from(namespace), Str::from(account));
        self.accounts.read().get(node).is_some_and(|accounts| accounts.contains_key(&account))
    }

    /// As [`Running::runs`], but waits a little for a pod that is only just starting: its node may ask before its
    /// object has been read here.
    pub async fn comes_to_run(
        self: &Arc<Self>,
        node: &str,
        namespace: &str,
        account: &str,
        patience: Duration,
    ) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = async { while !self.runs(node, namespace, account) && changed.changed().await.is_ok() {} };
        // Timing out and being told end alike: by looking once more.
        let _ = tokio::time::timeout(patience, waiting).await;
        self.runs(node, namespace, account)
    }

    /// A pod has changed.
    pub(super) fn replace(&self, name: &Name, old: Option<&Pod>, new: Option<&Pod>) {
        let (old, new) = (old.and_then(|pod| place(name, pod)), new.and_then(|pod| place(name, pod)));
        if old == new {
            return;
        }
        let mut accounts = self.accounts.write();
        if let Some((node, account)) = new {
            *accounts.entry(node).or_default().entry(account).or_default() += 1;
        }
        if let Some((node, account)) = old
            && let Some(on_node) = accounts.get_mut(&node)
        {
            match on_node.get_mut(&account) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    on_node.remove(&account);
                }
            }
            if on_node.is_empty() {
                accounts.remove(&node);
            }
        }
        drop(accounts);
        self.changed.send_replace(());
    }
}

fn place(name: &Name, pod: &Pod) -> Option<(Str, Account)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let node = node_of(pod).filter(|_| phase != Some("Failed"))?;
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    Some((node.into(), (name.0.clone(), account.filter(|name| !name.is_empty()).unwrap_or("default").into())))
}
