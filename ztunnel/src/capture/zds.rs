//! The hand-over of pods from the node agent (contract 2.5), as this end does it. [`Session`] holds the rules and is
//! tested without sockets; [`run`] keeps a connection to the agent.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use stillmesh_api::zds::{ClientConnection, PodInfo, Request, ZdsError};
use stillmesh_runtime::Backoff;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// How often a pod that could not be taken up is tried again.
pub const RETRY: Duration = Duration::from_secs(5);

const FIRST_REDIAL: Duration = Duration::from_millis(10);
const LONGEST_REDIAL: Duration = Duration::from_secs(15);

/// What the pods' owner does for a session.
pub trait Proxies: Send {
    /// Whether a pod is served.
    fn has(&self, uid: &str) -> bool;
    /// Serves a pod. The same namespace again changes nothing; another one replaces what was there.
    fn start(&mut self, uid: &str, info: &PodInfo, netns: &OwnedFd) -> impl Future<Output = Result<(), String>> + Send;
    /// Lets a pod go. Returns at once.
    fn stop(&mut self, uid: &str);
    /// All pods that are served.
    fn uids(&self) -> Vec<String>;
    /// Tells how many pods wait to be taken up.
    fn pending(&self, _count: usize) {}
    /// All pods that the agent named are served.
    fn complete(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    /// Returns when the agent may be connected to: not while another ztunnel serves the pods, because the agent takes
    /// the last that connects for the newest.
    fn may_connect(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// The agent asked for what the protocol does not allow: the connection is of no use any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Keep is for the time before the snapshot's end.
    #[error("keep after the snapshot")]
    LateKeep,
    /// There is one snapshot per connection.
    #[error("a second snapshot")]
    SecondSnapshot,
}

/// One connection's state.
#[derive(Debug, Default)]
pub struct Session {
    named: HashSet<String>,
    complete: bool,
    pending: BTreeMap<String, (PodInfo, OwnedFd)>,
}

impl Session {
    /// Everything is named and served.
    pub fn ready(&self) -> bool {
        self.complete && self.pending.is_empty()
    }

    /// Whether pods wait to be tried again.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Does what the agent asks; the inner result is the answer.
    pub async fn handle(&mut self, request: Request, proxies: &mut impl Proxies) -> Result<Result<(), String>, Broken> {
        let answer = match request {
            Request::Add { uid, info, netns } => {
                self.named.insert(uid.clone());
                let started = proxies.start(&uid, &info, &netns).await;
                match &started {
                    Ok(()) => drop(self.pending.remove(&uid)),
                    Err(error) => {
                        tracing::warn!(%uid, pod = %info.name, namespace = %info.namespace, %error, "pod not taken up");
                        self.pending.insert(uid, (info, netns));
                    }
                }
                started
            }
            Request::Keep { uid } if !self.complete => {
                if proxies.has(&uid) {
                    self.named.insert(uid);
                    Ok(())
                } else {
                    Err(format!("pod {uid} is not known here: its network namespace is needed"))
                }
            }
            Request::Keep { .. } => return Err(Broken::LateKeep),
            Request::Del { uid } => {
                self.named.remove(&uid);
                self.pending.remove(&uid);
                if self.complete {
                    proxies.stop(&uid);
                }
                Ok(())
            }
            Request::SnapshotSent if self.complete => return Err(Broken::SecondSnapshot),
            Request::SnapshotSent => {
                for uid in proxies.uids() {
                    if !self.named.contains(&uid) {
                        proxies.stop(&uid);
                    }
                }
                self.complete = true;
                Ok(())
            }
        };
        proxies.pending(self.pending.len());
        Ok(answer)
    }

    /// Tries the pods that could not be taken up once more.
    pub async fn retry(&mut self, proxies: &mut impl Proxies) {
        for (uid, (info, netns)) in std::mem::take(&mut self.pending) {
            if proxies.start(&uid, &info, &netns).await.is_err() {
                self.pending.insert(uid, (info, netns));
            }
        }
        proxies.pending(self.pending.len());
    }
}

/// Keeps a connection to the agent, for ever. `ready` follows [`Session::ready`]: it stays as it was while the agent is
/// away, since all pods are still served then.
pub async fn run(path: &Path, proxies: &mut impl Proxies, ready: &watch::Sender<bool>) {
    let mut backoff = Backoff::new(FIRST_REDIAL, LONGEST_REDIAL);
    loop {
        proxies.may_connect().await;
        let ended = match ClientConnection::connect(path).await {
            Ok(connection) => {
                tracing::info!(path = %path.display(), "connected to the node agent");
                serve(connection, proxies, ready, &mut backoff).await
            }
            Err(error) => error,
        };
        proxies.pending(0);
        let wait = backoff.next(rand::random());
        tracing::warn!(error = %ended, ?wait, path = %path.display(), "not connected to the node agent");
        sleep(wait).await;
    }
}

async fn serve(
    mut connection: ClientConnection,
    proxies: &mut impl Proxies,
    ready: &watch::Sender<bool>,
    backoff: &mut Backoff,
) -> ZdsError {
    let mut session = Session::default();
    let mut retry_at = Instant::now() + RETRY;
    loop {
        let request = tokio::select! {
            request = connection.next() => request,
            () = sleep_until(retry_at), if session.has_pending() => {
                session.retry(proxies).await;
                retry_at = Instant::now() + RETRY;
                tell(&session, proxies, ready).await;
                continue;
            }
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => return error,
        };
        if !session.has_pending() {
            retry_at = Instant::now() + RETRY;
        }
        let answer = match session.handle(request, proxies).await {
            Ok(answer) => answer,
            Err(broken) => {
                // Told, if the agent still listens; the connection ends either way.
                let _ = connection.answer(Err(broken.to_string())).await;
                return ZdsError::Protocol(broken.to_string());
            }
        };
        tell(&session, proxies, ready).await;
        if let Err(error) = connection.answer(answer).await {
            return error;
        }
        // An agent that completes its snapshot is a working one.
        if session.complete {
            backoff.reset();
        }
    }
}

async fn tell(session: &Session, proxies: &mut impl Proxies, ready: &watch::Sender<bool>) {
    if session.ready() {
        proxies.complete().await;
    }
    ready.send_replace(session.ready());
}

#[cfg(test)]
mod tests;
