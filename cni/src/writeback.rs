//! Annotations written back to pods, in the background: enrolment never waits for it.
//!
//! Only the latest wish per pod is kept, so a server that is away costs one small map per pod. Writes are repeated
//! with growing delays until the server has taken them or says that there is no such pod.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::{Client, ClientError};
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// How long one write may take.
const DEADLINE: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const ANSWER_BYTES: usize = 64 * 1024;

/// Annotations of one pod: new values, `None` to remove one.
pub type Annotations = BTreeMap<&'static str, Option<String>>;

/// A pod by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Takes wishes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    wishes: Arc<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    pods: Mutex<Queue>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// At most one wish per pod.
    wanted: HashMap<PodName, Wish>,
    order: VecDeque<PodName>,
}

#[derive(Clone, Debug)]
struct Wish {
    uid: String,
    annotations: Annotations,
}

impl Writer {
    /// Wishes that the pod with this UID has these annotations; adds to what was wished and not yet written.
    pub fn set(&self, pod: &PodName, uid: &str, annotations: Annotations) {
        let mut queue = self.wishes.pods.lock();
        match queue.wanted.get_mut(pod) {
            Some(wish) if wish.uid == uid => wish.annotations.extend(annotations),
            _ => {
                let wish = Wish { uid: uid.to_owned(), annotations };
                if queue.wanted.insert(pod.clone(), wish).is_none() {
                    queue.order.push_back(pod.clone());
                }
            }
        }
        drop(queue);
        self.wishes.some.notify_one();
    }

    /// The pod is gone: what was wished for it must not reach another one of the same name.
    pub fn forget(&self, pod: &PodName, uid: &str) {
        let mut queue = self.wishes.pods.lock();
        if queue.wanted.get(pod).is_some_and(|wish| wish.uid == uid) {
            queue.wanted.remove(pod);
            queue.order.retain(|queued| queued != pod);
        }
    }

    /// Writes wishes until dropped. Without a socket they are dropped.
    pub async fn serve(self, socket: Option<&Path>, metrics: Metrics) {
        let client = socket.map(|path| Client::unix(path).deadline(DEADLINE).body_bytes(ANSWER_BYTES));
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let Some((pod, wish)) = self.take() else {
                self.wishes.some.notified().await;
                continue;
            };
            let Some(client) = &client else { continue };
            match write(client, &pod, &wish).await {
                Written::Done => backoff.reset(),
                Written::Refused(status, answer) => {
                    tracing::warn!(?pod, %status, answer, "the annotation of a pod is refused");
                    backoff.reset();
                }
                Written::Later(reason) => {
                    metrics.failed_writes.inc();
                    self.put_back(pod.clone(), wish);
                    let wait = backoff.next(1.0);
                    tracing::debug!(?pod, reason, ?wait, "the annotation of a pod cannot be written yet");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn take(&self) -> Option<(PodName, Wish)> {
        let mut queue = self.wishes.pods.lock();
        let pod = queue.order.pop_front()?;
        let wish = queue.wanted.remove(&pod)?;
        Some((pod, wish))
    }

    /// Puts an unwritten wish at the end, under whatever was wished since.
    fn put_back(&self, pod: PodName, mut wish: Wish) {
        let mut queue = self.wishes.pods.lock();
        match queue.wanted.get_mut(&pod) {
            Some(newer) if newer.uid == wish.uid => {
                wish.annotations.append(&mut newer.annotations);
                newer.annotations = wish.annotations;
            }
            Some(_) => {}
            None => {
                queue.order.push_back(pod.clone());
                queue.wanted.insert(pod, wish);
            }
        }
    }
}

enum Written {
    Done,
    Refused(StatusCode, String),
    Later(String),
}

async fn write(client: &Client, pod: &PodName, wish: &Wish) -> Written {
    let Ok(body) = serde_json::to_vec(&wish.annotations) else { return Written::Done };
    let path = format!("/pods/{}/{}/annotations", pod.namespace, pod.name);
    match client.request(Method::PATCH, &path, body).await {
        Ok(answer) if answer.status.is_success() => Written::Done,
        // The pod went away; whoever comes under its name gets wishes of its own.
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => Written::Done,
        Ok(answer) if answer.status.is_client_error() => Written::Refused(answer.status, answer.text()),
        Ok(answer) => Written::Later(format!("{}: {}", answer.status, answer.text())),
        Err(error @ (ClientError::Connect { .. } | ClientError::Exchange { .. } | ClientError::Slow { .. })) => {
            Written::Later(error.to_string())
        }
        Err(error) => Written::Later(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodName {
        PodName { namespace: "shop".into(), name: "a".into() }
    }

    #[test]
    fn the_latest_wish_of_a_pod_counts() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("old".into())), ("y", None)].into());
        writer.set(&pod(), "1", [("x", Some("new".into()))].into());
        let (_, wish) = writer.take().unwrap();
        assert_eq!(wish.annotations, [("x", Some("new".into())), ("y", None)].into());
        assert!(writer.take().is_none());
    }

    #[test]
    fn an_unwritten_wish_comes_back_under_newer_ones() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("old".into())), ("y", Some("old".into()))].into());
        let (name, wish) = writer.take().unwrap();
        writer.set(&pod(), "1", [("x", None)].into());
        writer.put_back(name, wish);
        let (_, wish) = writer.take().unwrap();
        assert_eq!(wish.annotations, [("x", None), ("y", Some("old".into()))].into());
    }

    #[test]
    fn a_pod_of_the_same_name_does_not_inherit() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("1".into()))].into());
        let (name, wish) = writer.take().unwrap();
        writer.set(&pod(), "2", [("y", Some("2".into()))].into());
        writer.put_back(name, wish);
        writer.forget(&pod(), "1");
        let (_, wish) = writer.take().unwrap();
        assert_eq!(wish.annotations, [("y", Some("2".into()))].into());
        writer.set(&pod(), "2", [("y", None)].into());
        writer.forget(&pod(), "2");
        assert!(writer.take().is_none());
    }
}
