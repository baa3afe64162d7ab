//! Who runs where: what the CA asks before it certifies an identity for a node.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::RwLock;
use stillmesh_core::model::Str;
use stillmesh_k8s::gateway::binding::Named;
use stillmesh_k8s::labels;
use tokio::sync::watch;

use super::world::{Name, node_of};

/// A kubelet makes the pods that have this annotation itself, in whatever namespace it likes.
const MIRROR: &str = "kubernetes.io/config.mirror";
const DEFAULT_ACCOUNT: &str = "default";

/// Namespace and service account.
type Account = (Str, Str);

/// Where a pod is that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of all pods of its name.
    pub uid: Str,
    /// Its node.
    pub node: Str,
    /// Its service account.
    pub account: Str,
}

/// The pods of every node and their accounts. Shared between the builder, which writes, and the CA.
#[derive(Debug)]
pub struct Running {
    pods: RwLock<Pods>,
    changed: watch::Sender<()>,
    unnamed: Unnamed,
    /// Nodes that are not ready: nothing is expected of what runs there.
    unready: RwLock<HashSet<Str>>,
    /// Accounts of waypoints, by namespace and Gateway.
    waypoints: RwLock<HashMap<Str, HashMap<Str, Str>>>,
}

/// What a pod has that names no account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unnamed {
    /// No right to a certificate: an API server has given each pod an account that is not a kubelet's own.
    #[default]
    Nothing,
    /// The account `default`: nobody has completed manifests.
    Default,
}

#[derive(Debug, Default)]
struct Pods {
    places: HashMap<Name, Place>,
    accounts: HashMap<Str, HashMap<Account, usize>>,
    of_account: HashMap<Account, BTreeSet<Str>>,
}

/// A pod that enforces what the mesh says: it is expected to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Namespace and name of the pod.
    pub pod: (Str, Str),
    /// Its node.
    pub node: Str,
    /// What it is.
    pub role: Role,
}

/// What a proxy is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A node's tunnel.
    Tunnel,
    /// A replica of a waypoint.
    Waypoint(Named),
}

impl Default for Running {
    fn default() -> Self {
        Self::new(Unnamed::default())
    }
}

impl Running {
    /// Nobody runs yet.
    pub fn new(unnamed: Unnamed) -> Self {
        let changed = watch::channel(()).0;
        Self { pods: RwLock::default(), changed, unnamed, unready: RwLock::default(), waypoints: RwLock::default() }
    }

    /// Whether a pod that has not ended runs on this node under this account.
    pub fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        let account = (Str::from(namespace), Str::from(account));
        self.pods.read().accounts.get(node).is_some_and(|accounts| accounts.contains_key(&account))
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

    /// Where this very pod is; waits a little for one that is only just starting.
    pub async fn comes_to_be(&self, namespace: &str, name: &str, uid: &str, patience: Duration) -> Option<Place> {
        let name: Name = (namespace.into(), name.into());
        let place = || self.pods.read().places.get(&name).filter(|place| *place.uid == *uid).cloned();
        let mut changed = self.changed.subscribe();
        let waiting = async { while place().is_none() && changed.changed().await.is_ok() {} };
        // Timing out and being told end alike: by looking once more.
        let _ = tokio::time::timeout(patience, waiting).await;
        place()
    }

    /// Whether waypoints run under this account: there is a Gateway of ours that does.
    pub fn is_waypoint(&self, namespace: &str, account: &str) -> bool {
        self.waypoints.read().get(namespace).is_some_and(|all| all.values().any(|one| **one == *account))
    }

    /// What runs under an account: a node's tunnel, if it is one of these accounts, or a waypoint of ours.
    pub fn role(&self, tunnels: &[(Str, Str)], namespace: &str, account: &str) -> Option<Role> {
        if tunnels.iter().any(|(of, name)| **of == *namespace && **name == *account) {
            return Some(Role::Tunnel);
        }
        let waypoints = self.waypoints.read();
        let gateway = waypoints.get(namespace)?.iter().find(|(_, own)| ***own == *account)?.0.clone();
        Some(Role::Waypoint(Named { namespace: namespace.into(), name: gateway }))
    }

    /// The pods of nodes' tunnels, which run under these accounts, and of waypoints that have not ended, on nodes that are
    /// ready. Costs a look at these alone.
    pub fn proxies(&self, tunnels: &[(Str, Str)]) -> Vec<Proxy> {
        let of_waypoints: Vec<(Account, Role)> = {
            let waypoints = self.waypoints.read();
            let each = waypoints.iter().flat_map(|(namespace, all)| all.iter().map(move |one| (namespace, one)));
            let role = |(namespace, (gateway, account)): (&Str, (&Str, &Str))| {
                let named = Named { namespace: namespace.clone(), name: gateway.clone() };
                ((namespace.clone(), account.clone()), Role::Waypoint(named))
            };
            each.map(role).collect()
        };
        let accounts = tunnels.iter().map(|account| (account.clone(), Role::Tunnel)).chain(of_waypoints);
        let (pods, unready) = (self.pods.read(), self.unready.read());
        let mut proxies = Vec::new();
        for (account, role) in accounts {
            for name in pods.of_account.get(&account).into_iter().flatten() {
                let pod = (account.0.clone(), name.clone());
                let Some(place) = pods.places.get(&pod).filter(|place| !unready.contains(&place.node)) else {
                    continue;
                };
                proxies.push(Proxy { pod, node: place.node.clone(), role: role.clone() });
            }
        }
        proxies
    }

    /// Whether a pod of this name is there that has not ended.
    pub fn is_there(&self, pod: &(Str, Str)) -> bool {
        self.pods.read().places.contains_key(pod)
    }

    /// Whether a node is ready, or says nothing of it.
    pub fn is_ready(&self, node: &str) -> bool {
        !self.unready.read().contains(node)
    }

    /// Word of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A node has changed, or is gone.
    pub(super) fn replace_node(&self, name: &Str, node: Option<&Node>) {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        let ready = conditions.into_iter().flatten().find(|one| one.type_ == "Ready");
        let changed = match ready.is_some_and(|ready| ready.status != "True") {
            true => self.unready.write().insert(name.clone()),
            false => self.unready.write().remove(name),
        };
        if changed {
            self.changed.send_replace(());
        }
    }

    /// A Gateway has changed; it runs under this account if it is one of ours.
    pub(super) fn replace_waypoint(&self, gateway: &Named, account: Option<&str>) {
        let mut waypoints = self.waypoints.write();
        match account {
            Some(account) => {
                let all = waypoints.entry(gateway.namespace.clone()).or_default();
                all.insert(gateway.name.clone(), account.into());
            }
            None => {
                if let Some(all) = waypoints.get_mut(&gateway.namespace) {
                    all.remove(&gateway.name);
                    if all.is_empty() {
                        waypoints.remove(&gateway.namespace);
                    }
                }
            }
        }
    }

    /// A pod has changed.
    pub(super) fn replace(&self, name: &Name, new: Option<&Pod>) {
        let new = new.and_then(|pod| place(pod, self.unnamed));
        let mut pods = self.pods.write();
        if pods.places.get(name) == new.as_ref() {
            return;
        }
        let account = |place: &Place| (name.0.clone(), place.account.clone());
        let old = match new {
            Some(new) => {
                *pods.accounts.entry(new.node.clone()).or_default().entry(account(&new)).or_default() += 1;
                pods.of_account.entry(account(&new)).or_default().insert(name.1.clone());
                let others = pods.places.get(name).filter(|old| old.account != new.account).map(account);
                if let Some(other) = others {
                    pods.leaves(&other, &name.1);
                }
                pods.places.insert(name.clone(), new)
            }
            None => {
                if let Some(account) = pods.places.get(name).map(account) {
                    pods.leaves(&account, &name.1);
                }
                pods.places.remove(name)
            }
        };
        if let Some(old) = old
            && let Some(on_node) = pods.accounts.get_mut(&old.node)
        {
            let account = account(&old);
            match on_node.get_mut(&account) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    on_node.remove(&account);
                }
            }
            if on_node.is_empty() {
                pods.accounts.remove(&old.node);
            }
        }
        drop(pods);
        self.changed.send_replace(());
    }
}

impl Pods {
    fn leaves(&mut self, account: &Account, pod: &Str) {
        if let Some(names) = self.of_account.get_mut(account) {
            names.remove(pod);
            if names.is_empty() {
                self.of_account.remove(account);
            }
        }
    }
}

/// Where a pod is that may have certificates of its account.
fn place(pod: &Pod, unnamed: Unnamed) -> Option<Place> {
    if labels::of(&pod.metadata.annotations).contains_key(MIRROR) {
        return None;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let node = node_of(pod).filter(|_| !matches!(phase, Some("Failed" | "Succeeded")))?;
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty());
    Some(Place {
        uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
        node: node.into(),
        account: account.or((unnamed == Unnamed::Default).then_some(DEFAULT_ACCOUNT))?.into(),
    })
}
