//! The life of one pod: namespaces, network, capture by the mesh, init containers, containers, end.
//!
//! One task per pod owns all of it and is the only writer of the pod's status. What fails before the first container is
//! tried again, with growing delays; a lost sandbox starts the pod anew. Ends when it is told to, or when every container
//! has ended for good.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use futures::future::{join, join_all};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use stillmesh_cni::plugin;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::sys::netns::Netns;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::log::Log;
use super::plan::{PodPlan, Restart};
use super::sandbox::{Sandbox, SandboxSpec};
use super::status::{ContainerRecord, Doing, Phase, PodRecordStatus};
use crate::machine::bootstrap::ROOT;
use crate::machine::ipam::{self, PodAddresses};
use crate::machine::network::{self, Node};
use crate::machine::state::Machine;

/// First and longest wait before namespaces, network and capture are tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Failed tries that are not worth a word.
const QUIET: u32 = 4;

/// A pod with its place.
#[derive(Debug)]
pub struct Assignment {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Told apart from any other pod, earlier ones of its name included.
    pub uid: String,
    /// Index of its node.
    pub node: usize,
    /// Its addresses; none where it shares its node's network.
    pub addresses: Option<PodAddresses>,
    /// What it runs.
    pub plan: PodPlan,
    /// A part of the mesh itself: it sees what the machine keeps, and comes back quickly.
    pub system: bool,
    /// The object as it is now; labels and annotations follow edits.
    pub object: ArcSwap<Pod>,
}

impl Assignment {
    /// Its addresses as text, IPv4 first.
    pub fn ips(&self, node: &Node) -> Vec<String> {
        match self.addresses {
            Some(addresses) if node.ipv6 => vec![addresses.v4.to_string(), addresses.v6.to_string()],
            Some(addresses) => vec![addresses.v4.to_string()],
            None => node_ips(node),
        }
    }

    fn home(&self) -> PathBuf {
        Path::new(ROOT).join("pods").join(&self.uid)
    }

    /// Where its network namespace is kept while it runs.
    fn netns(&self) -> PathBuf {
        Path::new(ROOT).join("netns").join(&self.uid)
    }
}

/// A node's addresses as text, IPv4 first.
pub fn node_ips(node: &Node) -> Vec<String> {
    let mut ips = vec![ipam::node4(node.index).to_string()];
    if node.ipv6 {
        ips.push(ipam::node6(node.index).to_string());
    }
    ips
}

/// A running pod, as others see it. Dropping it does not end the pod.
#[derive(Debug)]
pub struct Handle {
    /// What and where.
    pub pod: Arc<Assignment>,
    /// How it is.
    pub status: Arc<Mutex<PodRecordStatus>>,
    /// Cancelled to end it.
    pub stop: CancellationToken,
    /// Whether its task has ended: nothing of it runs any more.
    pub gone: watch::Receiver<bool>,
}

/// Starts a pod's task.
pub fn start(machine: &Arc<Machine>, pod: Assignment) -> std::io::Result<Handle> {
    let home = pod.home();
    std::fs::create_dir_all(&home)?;
    let record = |plan: &super::plan::ContainerPlan, init: bool| -> std::io::Result<ContainerRecord> {
        let log = Log::create(&home.join(format!("{}.log", plan.name)))?;
        Ok(ContainerRecord::new(&plan.name, plan.written.image.as_deref().unwrap_or_default(), init, plan.sidecar, log))
    };
    let init = pod.plan.init.iter().map(|plan| record(plan, true));
    let containers = init.chain(pod.plan.containers.iter().map(|plan| record(plan, false)));
    let now = now();
    let status = PodRecordStatus {
        phase: Phase::Pending,
        containers: containers.collect::<Result<_, _>>()?,
        initialized: false,
        networked: false,
        message: String::new(),
        since: now.clone(),
        ready: (false, now),
    };
    let (sender, gone) = watch::channel(false);
    let handle =
        Handle { pod: Arc::new(pod), status: Arc::new(Mutex::new(status)), stop: CancellationToken::new(), gone };
    let worker = Worker {
        machine: Arc::clone(machine),
        pod: Arc::clone(&handle.pod),
        status: Arc::clone(&handle.status),
        stop: handle.stop.clone(),
        stirred: Notify::new(),
        told: OnceLock::new(),
    };
    machine.tasks.spawn("pod", async move {
        // Told also when the task panics.
        let told = Gone(sender, Arc::clone(&worker.machine));
        worker.run().await;
        drop(told);
    });
    Ok(handle)
}

struct Gone(watch::Sender<bool>, Arc<Machine>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.send_replace(true);
        self.1.changed.notify_one();
    }
}

/// The time now, to the second, as Kubernetes writes it.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(now.round(jiff::Unit::Second).unwrap_or(now))
}

/// A pod's task.
pub(super) struct Worker {
    pub(super) machine: Arc<Machine>,
    pub(super) pod: Arc<Assignment>,
    pub(super) status: Arc<Mutex<PodRecordStatus>>,
    pub(super) stop: CancellationToken,
    /// Rung when the status has changed.
    stirred: Notify,
    /// Since when the pod ends: its grace period is one for all of its containers.
    pub(super) told: OnceLock<Instant>,
}

/// How one life of a sandbox went.
enum Life {
    /// It was told to end, or all containers have.
    Over,
    /// It could not be made, or was lost: try again.
    Again(String),
}

impl Worker {
    async fn run(&self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let life = match self.live().await {
                Ok(life) => life,
                Err(error) => Life::Again(format!("{error:#}")),
            };
            self.clean_up().await;
            match life {
                Life::Over => break,
                Life::Again(message) => {
                    // Pods start together with the mesh's own parts, whose sockets may not be there yet.
                    let message = if backoff.tries() < QUIET { String::new() } else { message };
                    let never_again = self.pod.plan.restart == Restart::Never;
                    self.change(|status| status.lost(message, never_again, &now()));
                    let wait = tokio::time::sleep(backoff.next(rand::random()));
                    if self.stop.run_until_cancelled(wait).await.is_none() {
                        break;
                    }
                }
            }
        }
        // A pod whose containers have all ended stays to be looked at until it is deleted.
        self.stop.cancelled().await;
        for one in &self.status.lock().containers {
            one.log.set_ended(true);
        }
        // Its logs go with it.
        let _ = std::fs::remove_dir_all(self.pod.home());
    }

    /// Changes the status and tells that it has.
    pub(super) fn change(&self, change: impl FnOnce(&mut PodRecordStatus)) {
        let mut status = self.status.lock();
        change(&mut status);
        status.settle(&now());
        drop(status);
        self.stirred.notify_waiters();
        self.machine.changed.notify_one();
    }

    async fn live(&self) -> anyhow::Result<Life> {
        let Some(node) = self.machine.nodes.get(self.pod.node) else { anyhow::bail!("the pod's node is not there") };
        let mut sandbox = tokio::select! {
            sandbox = self.sandbox(node) => sandbox?,
            () = self.stop.cancelled() => return Ok(Life::Over),
        };
        self.change(|status| {
            status.networked = true;
            status.message.clear();
        });
        let pid = sandbox.pid();
        tokio::select! {
            biased;
            () = self.containers(pid) => {
                sandbox.stop().await;
                Ok(Life::Over)
            }
            () = sandbox.ended() => Ok(Life::Again("the holder of the pod's namespaces was lost".to_owned())),
        }
    }

    /// Namespaces with a network, captured by the mesh where the pod belongs to it.
    async fn sandbox(&self, node: &Node) -> anyhow::Result<Sandbox> {
        let pod = &self.pod;
        let network = pod.addresses.is_none().then(|| node_netns(node));
        let spec = SandboxSpec {
            hostname: if pod.addresses.is_some() { pod.plan.hostname.clone() } else { node.name.clone() },
            network,
            etc: Some(self.write_etc(node).context("writing the pod's files of /etc")?),
            system: pod.system,
        };
        let sandbox = Sandbox::start(&spec).await?;
        let Some(addresses) = pod.addresses else { return Ok(sandbox) };
        let netns = Netns::from_fd(sandbox.netns.try_clone_fd()?)?;
        network::attach(node, netns, addresses).await.context("linking the pod to its node")?;
        let path = pod.netns();
        sandbox.netns.bind_to(&path).context("keeping the pod's network namespace")?;
        self.capture(node, addresses, &path).await?;
        Ok(sandbox)
    }

    /// What the chained plugin of a cluster does at this place.
    async fn capture(&self, node: &Node, addresses: PodAddresses, netns: &Path) -> anyhow::Result<()> {
        let object = self.pod.object.load_full();
        let objects = self.machine.objects.load();
        let namespace = match objects.get(&ObjectKey::new(Kind::Namespace, "", &self.pod.namespace)) {
            Some(Object::Namespace(namespace)) => Some(&**namespace),
            _ => None,
        };
        let mut given = vec![IpAddr::V4(addresses.v4)];
        if node.ipv6 {
            given.push(addresses.v6.into());
        }
        let addresses: Vec<plugin::Address> = given
            .into_iter()
            .map(|ip| plugin::Address { interface: None, address: IpNet::from(ip), gateway: None })
            .collect();
        let request = plugin::Request {
            socket: &node_home(node).join("pluginevent.sock"),
            pod: &object,
            namespace,
            rules: &self.machine.enrolment,
            netns,
            addresses: &addresses,
        };
        plugin::add(&request).await?;
        Ok(())
    }

    /// Removes what a life of the pod has left outside of its processes.
    async fn clean_up(&self) {
        // Each is gone already where it was never made.
        let _ = Netns::unbind(&self.pod.netns());
        if let (Some(addresses), Some(node)) = (self.pod.addresses, self.machine.nodes.get(self.pod.node)) {
            let _ = network::detach(node, addresses).await;
        }
    }

    /// Init containers one after the other, then all others until they have ended or are told to.
    async fn containers(&self, sandbox: u32) {
        let plan = &self.pod.plan;
        // Sidecars wait for their turn among the init containers, and end after the others.
        let (turns, gates): (Vec<_>, Vec<_>) = plan.init.iter().map(|_| watch::channel(false)).unzip();
        let last = CancellationToken::new();
        let sidecars = plan.init.iter().enumerate().zip(gates).filter(|((_, one), _)| one.sidecar).map(
            |((index, one), mut turn)| {
                let last = &last;
                async move {
                    let gone = turn.wait_for(|turn| *turn).await.is_err();
                    if !gone {
                        self.keep(index, one, sandbox, last).await;
                    }
                }
            },
        );
        let main = async {
            let mut done = true;
            for (index, (one, turn)) in plan.init.iter().zip(turns).enumerate() {
                if one.sidecar {
                    turn.send_replace(true);
                    done = self.stop.run_until_cancelled(self.started(index)).await.is_some();
                } else {
                    done = self.keep(index, one, sandbox, &self.stop).await == Some(0);
                }
                if !done {
                    break;
                }
            }
            if done {
                self.change(|status| status.initialized = true);
                let first = plan.init.len();
                let all = plan.containers.iter().enumerate();
                join_all(all.map(|(index, one)| self.keep(first + index, one, sandbox, &self.stop))).await;
            }
            last.cancel();
        };
        join(main, join_all(sidecars)).await;
        self.change(|status| {
            let bad = |one: &ContainerRecord| matches!(&one.doing, Doing::Ended { code, .. } if *code != 0);
            status.phase = if status.containers.iter().filter(|one| !one.sidecar).any(bad) {
                Phase::Failed
            } else {
                Phase::Succeeded
            };
        });
    }

    /// Waits until a container has passed its startup probe.
    async fn started(&self, index: usize) {
        loop {
            let stirred = self.stirred.notified();
            let started = self.status.lock().containers.get(index).is_some_and(|one| one.started);
            if started {
                return;
            }
            stirred.await;
        }
    }

    fn write_etc(&self, node: &Node) -> std::io::Result<PathBuf> {
        let (pod, plan) = (&self.pod, &self.pod.plan);
        let etc = pod.home().join("etc");
        std::fs::create_dir_all(&etc)?;
        let resolver = format!(
            "nameserver {}\nsearch {}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
            ipam::DNS_VIP,
            pod.namespace
        );
        std::fs::write(etc.join("resolv.conf"), resolver)?;
        std::fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")?;
        let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
        for ip in pod.ips(node) {
            let _ = writeln!(hosts, "{ip} {}", plan.hostname);
        }
        for (ip, names) in &plan.host_aliases {
            let _ = writeln!(hosts, "{ip} {}", names.join(" "));
        }
        std::fs::write(etc.join("hosts"), hosts)?;
        Ok(etc)
    }
}

/// Directory of a node.
pub fn node_home(node: &Node) -> PathBuf {
    Path::new(ROOT).join("nodes").join(&node.name)
}

fn node_netns(node: &Node) -> PathBuf {
    node_home(node).join("netns")
}
