//! One captured pod: its namespace's thread, its listeners, its connections, its end.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stillmesh_api::zds::PodInfo;
use stillmesh_runtime::accept::{Acceptor, Permit};
use stillmesh_runtime::drain::{self, Drained, Mode, Watch};
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};
use stillmesh_runtime::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::canonical;
use super::listeners::{self, ListenError, Listeners};
use crate::node::Node;
use crate::path::{PathError, inbound, outbound, passthrough};
use crate::tunnel::Pools;
use crate::workers::Place;
use crate::{dns, lookup};

/// A pod that this ztunnel serves.
#[derive(Debug)]
pub struct Pod {
    /// The pod's UID.
    pub uid: String,
    /// Name, namespace and account: how its workload is found.
    pub info: PodInfo,
    /// Makes sockets in its namespace.
    pub thread: Arc<NetnsThread>,
    /// Its tunnels to others.
    pub pools: Pools,
    /// When it was taken up.
    pub since: SystemTime,
    places: Arc<Semaphore>,
    limit: usize,
    tasks: Tasks,
    drain: drain::Trigger,
}

/// Why a pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its namespace cannot be entered.
    #[error("cannot enter the pod's network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// A listener cannot be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener cannot be used.
    #[error("cannot use the pod's listener: {0}")]
    Listener(#[source] io::Error),
}

/// How long what is still running after a drain may take to let go.
const AFTER_DRAIN: Duration = Duration::from_secs(1);

impl Pod {
    /// Takes a pod up: enters its namespace, listens, accepts.
    pub async fn start(
        node: &Arc<Node>,
        tasks: &Tasks,
        uid: String,
        info: PodInfo,
        netns: Netns,
    ) -> Result<Arc<Self>, StartError> {
        let thread = Arc::new(NetnsThread::spawn(thread_name(&info), netns).map_err(StartError::Namespace)?);
        let listeners = listeners::listen(&thread, &node.config).await?;
        let (trigger, watch) = drain::channel();
        let limit = node.config.limits.connections_per_pod;
        let tasks = tasks.child(format!("pod {}/{}", info.namespace, info.name));
        let pod = Arc::new(Self {
            pools: Pools::new(node, &thread, &tasks),
            tasks,
            uid,
            info,
            thread,
            since: SystemTime::now(),
            places: Arc::new(Semaphore::new(limit)),
            limit,
            drain: trigger,
        });
        pod.accept_all(node, listeners, watch)?;
        let (prefetching, its_node) = (pod.clone(), node.clone());
        pod.tasks.spawn("prefetch", async move { prefetching.prefetch(&its_node).await });
        Ok(pod)
    }

    /// The namespace's number; another one under the same UID is another pod.
    pub fn inode(&self) -> u64 {
        self.thread.netns().inode()
    }

    /// A place for one more connection of this pod.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, PathError> {
        let full = |_| PathError::Full { what: "connections of this pod", limit: self.limit };
        self.places.clone().try_acquire_owned().map_err(full)
    }

    /// Its own workload, waited for within the bound.
    pub async fn workload(&self, node: &Node) -> Result<Arc<stillmesh_core::model::Workload>, PathError> {
        lookup::own_workload(&node.snapshots, &node.config.node, &self.info, node.config.limits.own_workload).await
    }

    /// Takes nothing new; what is open goes on for at most `grace`, then is cut. May be called again to shorten it.
    pub async fn stop(&self, grace: Duration) {
        let drained = self.drain.drain(grace).await;
        if let Drained::Late { held } = drained {
            tracing::info!(pod = %self.info.name, namespace = %self.info.namespace, held, "cutting what is left");
            self.drain.start(Mode::Immediate, AFTER_DRAIN);
            self.drain.finished().await;
        }
        self.pools.close();
        self.tasks.shutdown(AFTER_DRAIN).await;
    }

    /// Shortens a running [`Pod::stop`].
    pub fn hurry(&self, grace: Duration) {
        self.drain.start(Mode::Graceful, grace);
    }

    /// Has the certificate ready before the first connection needs it.
    async fn prefetch(&self, node: &Node) {
        let found = node.snapshots.wait_for(Duration::MAX, |snapshot| {
            let info = &self.info;
            let workload =
                snapshot.local_workload(&node.config.node, &info.namespace, &info.name, &info.service_account)?;
            Some(workload.identity())
        });
        if let Some(identity) = found.await {
            node.identities.prefetch(&identity);
        }
    }

    fn accept_all(self: &Arc<Self>, node: &Arc<Node>, listeners: Listeners, watch: Watch) -> Result<(), StartError> {
        let home = node.workers.of(&self.uid).handle.clone();
        let acceptor = |name, listener: StdListener| {
            let _runtime = home.enter();
            let listener = TcpListener::from_std(listener).map_err(StartError::Listener)?;
            Ok::<_, StartError>(Acceptor::new(name, listener, self.limit))
        };
        let outbound = acceptor("outbound", listeners.outbound)?;
        let inbound_plain = acceptor("inbound plaintext", listeners.inbound_plain)?;
        let inbound_hbone = acceptor("inbound HBONE", listeners.inbound_hbone)?;

        let spawn = |name, acceptor, serve: Serve| {
            let accepting = accept(self.clone(), node.clone(), acceptor, watch.clone(), serve);
            self.tasks.spawn_on(&home, name, accepting);
        };
        spawn("accept outbound", outbound, Serve::Outbound);
        spawn("accept inbound plaintext", inbound_plain, Serve::Plain);
        spawn("accept inbound HBONE", inbound_hbone, Serve::Hbone);
        for (udp, tcp) in listeners.dns {
            let server = dns::server::Server::new(self.clone(), node.clone(), &self.tasks, watch.clone());
            server.start(udp, tcp).map_err(StartError::Listener)?;
        }
        Ok(())
    }

    /// Owns everything that runs for this pod.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Runs a future on the current runtime, owned by this pod.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(name, future);
    }

    /// Moves an accepted connection to a worker and runs what carries it there, owned by this pod.
    pub fn adopt<F>(
        &self,
        place: Place,
        name: &'static str,
        stream: TcpStream,
        carry: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let handle = place.handle.clone();
        if handle.id() == Handle::current().id() {
            self.tasks.spawn(name, async move {
                let _place = place;
                carry(stream).await;
            });
            return;
        }
        // From here on its readiness is polled by the worker that carries it.
        let detached = stream.into_std();
        self.tasks.spawn_on(&handle, name, async move {
            let _place = place;
            match detached.and_then(TcpStream::from_std) {
                Ok(stream) => carry(stream).await,
                Err(error) => tracing::warn!(%error, "a connection cannot be moved to its worker"),
            }
        });
    }
}

/// What a listener's connections are.
#[derive(Clone, Copy)]
enum Serve {
    Outbound,
    Plain,
    Hbone,
}

/// Accepts until the pod drains. The listener closes then.
async fn accept(pod: Arc<Pod>, node: Arc<Node>, acceptor: Acceptor<TcpListener>, watch: Watch, serve: Serve) {
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            _ = watch.signaled() => return,
        };
        let held = Held { _permit: accepted.permit, watch: watch.clone() };
        let (stream, peer) = (accepted.connection, canonical(accepted.peer));
        let (pod, node) = (pod.clone(), node.clone());
        match serve {
            Serve::Outbound => outbound::start(pod, node, stream, peer, held),
            Serve::Plain => passthrough::start(pod, node, stream, peer, held),
            Serve::Hbone => inbound::start(pod, node, stream, peer, held),
        }
    }
}

/// What a connection holds as long as it lives.
#[derive(Debug)]
pub struct Held {
    _permit: Permit,
    /// Tells when to end; held, it keeps the drain waiting.
    pub watch: Watch,
}

fn thread_name(info: &PodInfo) -> String {
    let mut name = format!("ns {}", info.name);
    name.truncate(name.char_indices().map(|(at, _)| at).take_while(|at| *at <= 15).last().unwrap_or(0));
    name
}
