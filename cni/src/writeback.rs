//! Annotations written back to pods, in the background: enrolment never waits for it.
//!
//! In a cluster they go to the API server as a merge patch on `pods/status` with the pod's UID as precondition, so that
//! a pod that comes under the same name never gets them.
//!
//! Only the latest wish per pod is kept, so a server that is away costs one small map per pod. Writes are repeated
//! with growing delays until the server has taken them or says that there is no such pod.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::Client;
use tokio::sync::Notify;
use tokio::time::timeout;

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
    /// Whether one is being written.
    busy: bool,
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

    /// Writes wishes until dropped.
    pub async fn serve(self, sink: Sink, metrics: Metrics) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let Some((pod, wish)) = self.take() else {
                self.wishes.some.notified().await;
                continue;
            };
            let written = sink.write(&pod, &wish).await;
            self.wishes.pods.lock().busy = false;
            match written {
                Written::Done => backoff.reset(),
                Written::Refused(reason) => {
                    tracing::warn!(?pod, reason, "the annotation of a pod is refused");
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

    /// Returns when every wish has been written. Waits for ever where the server takes none.
    pub async fn idle(&self) {
        let written = || {
            let queue = self.wishes.pods.lock();
            queue.order.is_empty() && !queue.busy
        };
        while !written() {
            tokio::time::sleep(FIRST_WAIT).await;
        }
    }

    fn take(&self) -> Option<(PodName, Wish)> {
        let mut queue = self.wishes.pods.lock();
        let pod = queue.order.pop_front()?;
        let wish = queue.wanted.remove(&pod)?;
        queue.busy = true;
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

/// Where annotations are written to.
#[derive(Clone)]
pub enum Sink {
    /// Nowhere.
    None,
    /// The API server's stand-in of the one-machine mesh.
    Machine(Client),
    /// The API server.
    Cluster(kube::Client),
}

impl Sink {
    /// The stand-in on this socket.
    pub fn machine(socket: &std::path::Path) -> Self {
        Self::Machine(Client::unix(socket).deadline(DEADLINE).body_bytes(ANSWER_BYTES))
    }

    async fn write(&self, pod: &PodName, wish: &Wish) -> Written {
        match self {
            Self::None => Written::Done,
            Self::Machine(client) => to_machine(client, pod, wish).await,
            Self::Cluster(client) => to_cluster(client.clone(), pod, wish).await,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Written {
    Done,
    Refused(String),
    Later(String),
}

async fn to_machine(client: &Client, pod: &PodName, wish: &Wish) -> Written {
    let Ok(body) = serde_json::to_vec(&wish.annotations) else { return Written::Done };
    let path = format!("/pods/{}/{}/annotations", pod.namespace, pod.name);
    match client.request(Method::PATCH, &path, body).await {
        Ok(answer) => judge(answer.status, &answer.text()),
        Err(error) => Written::Later(error.to_string()),
    }
}

async fn to_cluster(client: kube::Client, pod: &PodName, wish: &Wish) -> Written {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let (body, parameters) = (patch(wish), PatchParams::default());
    let patch = Patch::Merge(&body);
    match timeout(DEADLINE, api.patch_status(&pod.name, &parameters, &patch)).await {
        Ok(Ok(_)) => Written::Done,
        Ok(Err(kube::Error::Api(status))) => {
            judge(StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status.message)
        }
        Ok(Err(error)) => Written::Later(error.to_string()),
        Err(_) => Written::Later(format!("no answer within {DEADLINE:?}")),
    }
}

/// A merge patch of the annotations alone; a pod with another UID is not patched.
fn patch(wish: &Wish) -> Value {
    json!({"metadata": {"uid": wish.uid, "annotations": wish.annotations}})
}

fn judge(status: StatusCode, answer: &str) -> Written {
    match status {
        status if status.is_success() => Written::Done,
        // The pod went away; whoever comes under its name gets wishes of its own.
        StatusCode::NOT_FOUND => Written::Done,
        StatusCode::CONFLICT if answer.contains("UID") => Written::Done,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Written::Refused(format!("{status}: {answer}")),
        // Permission may come, too: what it is about is not installed at once.
        status => Written::Later(format!("{status}: {answer}")),
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

    #[test]
    fn a_patch_touches_annotations_of_that_pod_only() {
        let wish = Wish { uid: "7".into(), annotations: [("x", Some("1".into())), ("y", None)].into() };
        assert_eq!(patch(&wish), json!({"metadata": {"uid": "7", "annotations": {"x": "1", "y": null}}}));
    }

    #[test]
    fn answers_are_final_only_when_repeating_cannot_help() {
        let taken = "Precondition failed: UID in precondition: 7, UID in object meta: 8";
        assert_eq!(judge(StatusCode::CONFLICT, taken), Written::Done);
        assert_eq!(judge(StatusCode::NOT_FOUND, ""), Written::Done);
        assert!(matches!(judge(StatusCode::CONFLICT, "the object has been modified"), Written::Later(_)));
        assert!(matches!(judge(StatusCode::FORBIDDEN, "no"), Written::Later(_)));
        assert!(matches!(judge(StatusCode::UNPROCESSABLE_ENTITY, "no"), Written::Refused(_)));
    }

    #[tokio::test]
    async fn the_api_server_gets_a_merge_patch_of_the_status() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let kind = request.headers().get(http::header::CONTENT_TYPE).cloned();
            heard.lock().push((request.method().clone(), request.uri().path().to_owned(), kind));
            let pod = json!({"metadata": {"name": "a"}}).to_string().into_bytes();
            let response = http::Response::new(kube::client::Body::from(pod));
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let sink = Sink::Cluster(kube::Client::new(service, "default"));
        let wish = Wish { uid: "7".into(), annotations: [("x", None)].into() };
        assert_eq!(sink.write(&pod(), &wish).await, Written::Done);
        let asked = asked.lock();
        let (method, path, kind) = asked.first().unwrap();
        assert_eq!((method, path.as_str()), (&Method::PATCH, "/api/v1/namespaces/shop/pods/a/status"));
        assert_eq!(kind.as_ref().unwrap(), "application/merge-patch+json");
    }
}
