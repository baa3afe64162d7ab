//! What this ztunnel does for the one that comes after it: gives it the sockets of each pod, lets go of the pods that
//! the other says it serves, and serves them again should the other end before this one.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use stillmesh_api::succession::{Ask, Listener, Predecessor, Successor};
use tokio::time::sleep;

use super::pods::{Heir, Shared};

/// How long a path that cannot be listened at is left alone.
const AGAIN: Duration = Duration::from_secs(5);

/// Begins to listen for a successor, instead of whoever did.
pub(super) fn offer(shared: &Arc<Shared>) {
    let Some(path) = shared.node.config.handover.clone() else { return };
    let weak = Arc::downgrade(shared);
    let token = shared.tasks.token();
    shared.tasks.spawn("succession", async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = serve(weak, path) => {}
        }
    });
}

async fn serve(shared: Weak<Shared>, path: PathBuf) {
    let mut listener = listen(&path).await;
    let mut current: Option<Successor> = None;
    loop {
        let asked = tokio::select! {
            successor = listener.accept() => {
                let Some(shared) = shared.upgrade() else { return };
                if current.replace(successor).is_some() {
                    shared.lost().await;
                }
                shared.heir.send_replace(Heir::Taking);
                tracing::info!("a successor is connected");
                continue;
            }
            asked = next(&mut current) => asked,
        };
        let Some(shared) = shared.upgrade() else { return };
        let Some(successor) = current.as_mut() else { continue };
        let done = match asked {
            Ok(ask) => shared.answer(successor, ask).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the successor is gone");
            current = None;
            shared.lost().await;
            // The path is its, unless it had not got so far.
            if matches!(Predecessor::connect(&path).await, Ok(None)) {
                listener = listen(&path).await;
            }
        }
    }
}

async fn listen(path: &std::path::Path) -> Listener {
    loop {
        match Listener::take_over(path) {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no successor can connect");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn next(current: &mut Option<Successor>) -> Result<Ask, stillmesh_api::succession::SuccessionError> {
    match current {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    }
}

impl Shared {
    async fn answer(
        self: &Arc<Self>,
        successor: &mut Successor,
        ask: Ask,
    ) -> Result<(), stillmesh_api::succession::SuccessionError> {
        match ask {
            Ask::Hello { .. } => successor.answer(Ok(&[])).await,
            Ask::Take { uid, inode } => {
                let pod = self.table.get(&uid).filter(|pod| pod.inode() == inode);
                let sockets = match pod {
                    Some(pod) => pod.pass_on(),
                    None => {
                        let given = self.given.lock();
                        let given = given.get(&uid).filter(|given| given.netns.inode() == inode);
                        given.map_or(Ok(Vec::new()), |given| {
                            given.sockets.iter().map(|(place, fd)| Ok((*place, fd.try_clone()?))).collect()
                        })
                    }
                };
                match sockets {
                    Ok(sockets) if sockets.is_empty() => successor.answer(Err("not served here".to_owned())).await,
                    Ok(sockets) => {
                        let borrowed: Vec<_> =
                            sockets.iter().map(|(place, fd)| (*place, std::os::fd::AsFd::as_fd(fd))).collect();
                        successor.answer(Ok(&borrowed)).await
                    }
                    Err(error) => successor.answer(Err(error.to_string())).await,
                }
            }
            Ask::Serving { uid } => {
                let done = self.give_away(&uid);
                successor.answer(done.map(|()| [].as_slice())).await
            }
            Ask::Forget { uid } => {
                self.given.lock().remove(&uid);
                successor.answer(Ok(&[])).await
            }
            Ask::Ready => {
                tracing::info!("the successor serves all pods");
                self.heir.send_replace(Heir::Serves);
                successor.answer(Ok(&[])).await
            }
        }
    }

    /// The successor is gone: what it was given is served here again. Where this ztunnel ends itself the sockets are
    /// only kept open, for the next successor.
    async fn lost(&self) {
        self.heir.send_replace(Heir::None);
        if self.is_ending() {
            return;
        }
        let given = std::mem::take(&mut *self.given.lock());
        for (uid, given) in given {
            if let Err(error) = self.take_up(&uid, given.info, given.netns, given.sockets).await {
                tracing::error!(uid, error, "a pod is not served any more");
            }
        }
    }
}
