//! Pods on their way to the node's tunnels: who has been offered, who was taken, which tunnel is the newest.
//!
//! Owns the list of pods that every connecting tunnel is told of. A pod is added at the newest tunnel only and deleted
//! at all of them. Each connection has one task and a bounded inbox: a tunnel that is too slow to be told of a
//! deletion is cut off and learns of it when it connects again.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use parking_lot::Mutex;
use stillmesh_api::zds::{Listener, PodInfo, ServerConnection, ZdsError};
use stillmesh_runtime::Tasks;
use stillmesh_runtime::sys::netns::Netns;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Tunnels connected at a time; one more is refused. Two are the most that an upgrade needs.
const MAX_CONNECTIONS: usize = 8;
/// Messages that wait for one tunnel. Full: an addition is offered again later, a deletion ends the connection.
const INBOX: usize = 1024;

/// What has become of an offered pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// No tunnel has answered yet.
    Waiting,
    /// A tunnel has it.
    Accepted,
    /// The newest tunnel could not take it; the reason.
    Refused(Arc<str>),
}

/// The pods to hand over, and the tunnels. Clones share it.
#[derive(Clone)]
pub struct Handover {
    state: Arc<Mutex<State>>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Entry>,
    /// Oldest first.
    tunnels: Vec<TunnelEntry>,
    last_tunnel: u64,
    last_offer: u64,
}

struct Entry {
    info: PodInfo,
    /// Absent where the agent does not have it; the tunnel is then asked to keep what it has.
    netns: Option<Netns>,
    taken: watch::Sender<Taken>,
    /// Tells an answer for this offer from one for an earlier namespace.
    offer: u64,
}

struct TunnelEntry {
    number: u64,
    inbox: mpsc::Sender<Command>,
    cut: CancellationToken,
    /// Pods that it took.
    has: HashSet<String>,
}

enum Command {
    Add(String),
    Del(String),
}

impl Handover {
    /// No pods, no tunnels.
    pub fn new(metrics: Metrics) -> Self {
        Self { state: Arc::default(), metrics }
    }

    /// Names a pod to the newest tunnel, and to every one that connects later. Repeating it is harmless: what was
    /// accepted stays so unless the namespace is another one; what was not is offered again.
    pub fn offer(&self, uid: &str, info: PodInfo, netns: Option<Netns>) -> watch::Receiver<Taken> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.last_offer += 1;
        let offer = state.last_offer;
        let entry = state.pods.entry(uid.to_owned()).or_insert_with(|| Entry {
            info: info.clone(),
            netns: netns.clone(),
            taken: watch::Sender::new(Taken::Waiting),
            offer,
        });
        let receiver = entry.taken.subscribe();
        let same = entry.netns == netns && entry.info == info;
        if same && *entry.taken.borrow() == Taken::Accepted {
            return receiver;
        }
        if !same {
            (entry.info, entry.netns, entry.offer) = (info, netns, offer);
        }
        entry.taken.send_replace(Taken::Waiting);
        // A keep after the snapshot is a protocol error.
        if entry.netns.is_some()
            && let Some(newest) = state.tunnels.last()
        {
            // Full: the pod is offered again, see above.
            let _ = newest.inbox.try_send(Command::Add(uid.to_owned()));
        }
        receiver
    }

    /// Takes a pod from every tunnel.
    pub fn take_back(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.pods.remove(uid).is_none() {
            return;
        }
        for tunnel in &mut state.tunnels {
            tunnel.has.remove(uid);
            if tunnel.inbox.try_send(Command::Del(uid.to_owned())).is_err() {
                tunnel.cut.cancel();
            }
        }
    }

    /// Tunnels connected now.
    pub fn tunnels(&self) -> usize {
        self.state.lock().tunnels.len()
    }

    /// Accepts tunnels until dropped. Start it only when every pod that a tunnel may have is offered: a tunnel drops
    /// what it is not told of.
    pub async fn serve(self, mut listener: Listener) {
        let tasks = Tasks::new("zds");
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let greeting = listener.accept().await;
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.tunnels_refused.inc();
                tracing::warn!(limit = MAX_CONNECTIONS, "too many tunnels are connected, one more is refused");
                continue;
            };
            let handover = self.clone();
            tasks.spawn("tunnel", async move {
                let _place = place;
                match greeting.hello().await {
                    Ok(connection) => handover.tunnel(connection).await,
                    Err(error) => {
                        handover.metrics.tunnels_refused.inc();
                        tracing::warn!(%error, "a tunnel connected and did not say hello");
                    }
                }
            });
        }
    }

    async fn tunnel(&self, mut connection: ServerConnection) {
        let (inbox, mut commands) = mpsc::channel(INBOX);
        let cut = CancellationToken::new();
        let (number, pods) = self.enter(inbox, cut.clone());
        tracing::info!(tunnel = number, pods = pods.len(), "a tunnel is connected");
        let talk = async {
            for uid in &pods {
                self.add(&mut connection, number, uid, Phase::Snapshot).await?;
            }
            connection.snapshot_sent().await?;
            loop {
                let command = tokio::select! {
                    // Dropped while idle only: both arms are cancel-safe.
                    command = commands.recv() => command,
                    error = connection.gone() => return Err::<(), _>(error),
                };
                match command {
                    Some(Command::Add(uid)) => self.add(&mut connection, number, &uid, Phase::Later).await?,
                    Some(Command::Del(uid)) => match connection.del(&uid).await {
                        Err(error @ (ZdsError::Refused(_) | ZdsError::TooLong { .. })) => {
                            tracing::warn!(tunnel = number, uid, %error, "the tunnel did not let a pod go");
                        }
                        done => done?,
                    },
                    None => return Err(ZdsError::Closed),
                }
            }
        };
        let error = tokio::select! {
            ended = talk => ended.err(),
            () = cut.cancelled() => None,
        };
        self.exit(number);
        match error {
            Some(ZdsError::Closed) => tracing::info!(tunnel = number, "a tunnel disconnected"),
            Some(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(tunnel = number, %error, cause, "a tunnel is disconnected");
            }
            None => tracing::warn!(tunnel = number, "a tunnel is too slow and is disconnected"),
        }
    }

    /// One pod to one tunnel. Errors end the connection; a refusal does not.
    async fn add(&self, to: &mut ServerConnection, number: u64, uid: &str, phase: Phase) -> Result<(), ZdsError> {
        let Some((info, netns, offer)) = self.pod(uid) else { return Ok(()) };
        let result = match (&netns, phase) {
            (Some(netns), _) => to.add(uid, &info, netns.as_fd()).await,
            (None, Phase::Snapshot) => to.keep(uid).await,
            (None, Phase::Later) => return Ok(()),
        };
        let result = match result {
            // Nothing was sent: this pod's names are too long, which is no reason to lose the others.
            Err(error @ ZdsError::TooLong { .. }) => Err(ZdsError::Refused(error.to_string())),
            result => result,
        };
        let taken = match result {
            Ok(()) => Taken::Accepted,
            Err(ZdsError::Refused(reason)) => {
                self.metrics.refusals.inc();
                let pod = format!("{}/{}", info.namespace, info.name);
                tracing::warn!(tunnel = number, pod, reason, "the tunnel could not take a pod");
                Taken::Refused(reason.into())
            }
            Err(error) => return Err(error),
        };
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(entry) = state.pods.get(uid).filter(|entry| entry.offer == offer) {
            if taken == Taken::Accepted
                && let Some(tunnel) = state.tunnels.iter_mut().find(|tunnel| tunnel.number == number)
            {
                tunnel.has.insert(uid.to_owned());
            }
            entry.taken.send_replace(taken);
        }
        Ok(())
    }

    fn pod(&self, uid: &str) -> Option<(PodInfo, Option<Netns>, u64)> {
        let state = self.state.lock();
        state.pods.get(uid).map(|entry| (entry.info.clone(), entry.netns.clone(), entry.offer))
    }

    /// Registers a tunnel as the newest; in the same moment, which pods it is to be told of.
    fn enter(&self, inbox: mpsc::Sender<Command>, cut: CancellationToken) -> (u64, Vec<String>) {
        let mut state = self.state.lock();
        state.last_tunnel += 1;
        let number = state.last_tunnel;
        state.tunnels.push(TunnelEntry { number, inbox, cut, has: HashSet::new() });
        self.metrics.tunnels.set(i64::try_from(state.tunnels.len()).unwrap_or(i64::MAX));
        (number, state.pods.keys().cloned().collect())
    }

    /// Forgets a tunnel. If it was the newest, the one before it is told of the pods that it has missed.
    fn exit(&self, number: u64) {
        let mut state = self.state.lock();
        let was_newest = state.tunnels.last().is_some_and(|tunnel| tunnel.number == number);
        state.tunnels.retain(|tunnel| tunnel.number != number);
        self.metrics.tunnels.set(i64::try_from(state.tunnels.len()).unwrap_or(i64::MAX));
        if let Some(newest) = state.tunnels.last().filter(|_| was_newest) {
            for (uid, _) in state.pods.iter().filter(|(uid, pod)| pod.netns.is_some() && !newest.has.contains(*uid)) {
                if newest.inbox.try_send(Command::Add(uid.clone())).is_err() {
                    newest.cut.cancel();
                    break;
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Snapshot,
    Later,
}
