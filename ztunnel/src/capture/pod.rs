//! One captured pod: its namespace's thread, its listeners, its connections, its end.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use stillmesh_api::succession::Place as Passed;
use stillmesh_api::zds::PodInfo;
use stillmesh_runtime::accept::{Acceptor, Permit};
use stillmesh_runtime::drain::{self, Drained, Mode, Watch};
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};
use stillmesh_runtime::sys::socket::Mark;
use stillmesh_runtime::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::canonical;
use super::listeners::{self, Inherited, ListenError};
use super::open::{Open, Sockets};
use crate::node::Node;
use crate::path::probe::Had;
use crate::path::{PathError, inbound, outbound, passthrough};
use crate::tunnel::Pools;
use crate::workers::Place;
use crate::{deliver, dns, lookup};

/// A pod that this ztunnel serves.
#[derive(Debug)]
pub struct Pod {
    /// The pod's UID.
    pub uid: String,
    /// Name, namespace and account: how its workload is found.
    pub info: PodInfo,
    /// Makes sockets in its namespace.
    pub thread: Arc<NetnsThread>,
    /// What it connects with.
    pub connecting: deliver::sockets::Sockets,
    /// Its tunnels to others.
    pub pools: Pools,
    /// When it was taken up.
    pub since: SystemTime,
    /// Its probes, for when there is nobody to ask.
    pub(crate) had_probes: Had,
    /// Addresses that are known to be its own.
    addresses: Mutex<Vec<IpAddr>>,
    places: Arc<Semaphore>,
    limit: usize,
    tasks: Tasks,
    drain: drain::Trigger,
    sockets: Open,
    has_inherited: bool,
    is_shared: AtomicBool,
    given_away: AtomicBool,
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
/// How long what is open may go on once somebody else takes what is new: as long as this process.
const NO_HURRY: Duration = Duration::from_secs(365 * 24 * 3600);

impl Pod {
    /// Takes a pod up: enters its namespace, listens where it has not inherited, accepts.
    pub async fn start(
        node: &Arc<Node>,
        tasks: &Tasks,
        uid: String,
        info: PodInfo,
        netns: Netns,
        inherited: Vec<(Passed, OwnedFd)>,
    ) -> Result<Arc<Self>, StartError> {
        let thread = Arc::new(NetnsThread::spawn(thread_name(&info), netns).map_err(StartError::Namespace)?);
        let mark = Mark(node.config.mark.get());
        let connecting = deliver::sockets::Sockets::new(thread.clone(), mark);
        let inherited = Inherited::check(inherited, thread.netns(), mark);
        let has_inherited = !inherited.is_empty();
        let listeners = listeners::listen(&thread, &node.config, inherited).await?;
        let home = node.workers.of(&uid).handle().clone();
        let sockets = Sockets::of(listeners, &home).map_err(StartError::Listener)?;
        let (trigger, watch) = drain::channel();
        let limit = node.config.limits.connections_per_pod;
        let tasks = tasks.child(format!("pod {}/{}", info.namespace, info.name));
        let pod = Arc::new(Self {
            pools: Pools::new(node, &connecting, &tasks),
            connecting,
            tasks,
            uid,
            info,
            thread,
            since: SystemTime::now(),
            had_probes: Had::default(),
            addresses: Mutex::default(),
            places: Arc::new(Semaphore::new(limit)),
            limit,
            drain: trigger,
            sockets: sockets.watch(),
            has_inherited,
            is_shared: AtomicBool::new(has_inherited),
            given_away: AtomicBool::new(false),
        });
        pod.accept_all(node, &home, sockets, &watch);
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

    /// What tells one more connection of this pod to end; `None` once it takes nothing new.
    pub fn watch(&self) -> Option<Watch> {
        let watch = self.drain.watch();
        watch.started().is_none().then_some(watch)
    }

    /// Whether an address is its own, as its kernel has it.
    pub async fn has_address(&self, ip: IpAddr) -> bool {
        if self.addresses.lock().contains(&ip) {
            return true;
        }
        let bound = self.thread.run(move || UdpSocket::bind(SocketAddr::new(ip, 0))).await;
        let is_own = matches!(bound, Ok(Ok(_)));
        if is_own {
            self.addresses.lock().push(ip);
        }
        is_own
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

    /// Descriptors of its sockets, for who is to serve it next.
    pub fn pass_on(&self) -> io::Result<Vec<(Passed, OwnedFd)>> {
        self.is_shared.store(true, Ordering::Release);
        self.sockets.duplicate()
    }

    /// Somebody else serves it at the same sockets: nothing new is taken, what is open goes on until [`Pod::stop`].
    pub fn give_away(&self) {
        self.given_away.store(true, Ordering::Release);
        self.drain.start(Mode::Graceful, NO_HURRY);
    }

    /// Whether its sockets are those of the ztunnel before, which may let go of it.
    pub fn has_inherited(&self) -> bool {
        self.has_inherited
    }

    /// Whether its sockets may be somebody else's too: then nothing may be changed at them.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Acquire)
    }

    /// Whether somebody else takes what is new.
    pub fn is_given_away(&self) -> bool {
        self.given_away.load(Ordering::Acquire)
    }

    /// Waits until a drain that has begun is over, however long that takes.
    pub async fn drained(&self) {
        while matches!(self.drain.finished().await, Drained::Late { .. }) {
            tokio::time::sleep(AFTER_DRAIN).await;
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

    fn accept_all(self: &Arc<Self>, node: &Arc<Node>, home: &Handle, sockets: Sockets, watch: &Watch) {
        let spawn = |name, listener: Arc<TcpListener>, serve: Serve| {
            let acceptor = Acceptor::new(serve.name(), listener, self.limit);
            let accepting = accept(self.clone(), node.clone(), acceptor, watch.clone(), serve);
            self.tasks.spawn_on(home, name, accepting);
        };
        spawn("accept outbound", sockets.outbound, Serve::Outbound);
        spawn("accept inbound plaintext", sockets.inbound_plain, Serve::Plain);
        spawn("accept inbound HBONE", sockets.inbound_hbone, Serve::Hbone);
        for (udp, tcp) in sockets.dns {
            let server = dns::server::Server::new(self.clone(), node.clone(), &self.tasks, watch.clone());
            server.start(udp, tcp);
        }
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
    pub fn adopt<F>(&self, place: Place, name: &'static str, stream: TcpStream, carry: impl FnOnce(TcpStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stream = if place.is_here() {
            Ok(stream)
        } else {
            // From here on its readiness is polled by the worker that carries it.
            let _there = place.handle().enter();
            stream.into_std().and_then(TcpStream::from_std)
        };
        match stream.map(carry) {
            Ok(carrying) => {
                let handle = place.handle().clone();
                self.tasks.spawn_on(&handle, name, async move {
                    let _place = place;
                    carrying.await;
                });
            }
            Err(error) => tracing::warn!(%error, "a connection cannot be moved to its worker"),
        }
    }
}

/// What a listener's connections are.
#[derive(Clone, Copy)]
enum Serve {
    Outbound,
    Plain,
    Hbone,
}

impl Serve {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Plain => "inbound plaintext",
            Self::Hbone => "inbound HBONE",
        }
    }
}

/// Most connections that are taken from a listener's queue when it closes: what the queue holds.
const LONGEST_QUEUE: usize = 4096;

/// Accepts until the pod drains. Where nobody else has the listener it closes then, and who waits in its queue is
/// taken before.
async fn accept(pod: Arc<Pod>, node: Arc<Node>, acceptor: Acceptor<Arc<TcpListener>>, watch: Watch, serve: Serve) {
    let mut waiting = LONGEST_QUEUE;
    while waiting > 0 {
        let accepted = tokio::select! {
            biased;
            _ = watch.signaled(), if pod.is_given_away() => return,
            accepted = acceptor.accept() => accepted,
            _ = watch.signaled() => return,
        };
        if watch.started().is_some() {
            waiting -= 1;
        }
        let held = Held { permit: accepted.permit, watch: watch.clone() };
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
    /// Its place among the connections of its listener.
    pub permit: Permit,
    /// Tells when to end; held, it keeps the drain waiting.
    pub watch: Watch,
}

fn thread_name(info: &PodInfo) -> String {
    let mut name = format!("ns {}", info.name);
    name.truncate(name.char_indices().map(|(at, _)| at).take_while(|at| *at <= 15).last().unwrap_or(0));
    name
}
