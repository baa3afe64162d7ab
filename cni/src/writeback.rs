//! Annotations written back to pods, in the background: enrolment never waits for it.
//!
//! In a cluster they go to the API server as a merge patch on `pods/status` with the pod's UID as precondition, so that
//! a pod that comes under the same name never gets them.
//!
//! Only the latest wish per pod is kept, so a server that is away costs one small map per pod. Each pod's write is
//! repeated on its own, with growing delays, until the server has taken it or says that there is no such pod: one that
//! is refused, which an admission policy may do, keeps no other waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::Client;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics::Metrics;

/// How long one write may take.
const DEADLINE: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long until a write is repeated that the server does not want as it is: what refuses it may be changed.
const AFTER_REFUSAL: Duration = Duration::from_secs(300);
/// Writes at a time.
const MOST_WRITES: usize = 8;
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
    /// At most one per pod.
    pods: Mutex<HashMap<PodName, Wish>>,
    some: Notify,
    /// One is settled.
    settled: Notify,
}

/// What a pod is to be told, until it is.
#[derive(Debug)]
struct Wish {
    uid: String,
    /// What no write has with it yet.
    annotations: Annotations,
    is_writing: bool,
    due: Instant,
    backoff: Backoff,
    was_refused: bool,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    pod: PodName,
    uid: String,
    annotations: Annotations,
}

impl Writer {
    /// Wishes that the pod with this UID has these annotations; adds to what was wished and not yet written.
    pub fn set(&self, pod: &PodName, uid: &str, annotations: Annotations) {
        let mut pods = self.wishes.pods.lock();
        match pods.get_mut(pod) {
            Some(wish) if wish.uid == uid => {
                wish.annotations.extend(annotations);
                wish.due = Instant::now();
            }
            _ => {
                let wish = Wish {
                    uid: uid.to_owned(),
                    annotations,
                    is_writing: false,
                    due: Instant::now(),
                    backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
                    was_refused: false,
                };
                pods.insert(pod.clone(), wish);
            }
        }
        drop(pods);
        self.wishes.some.notify_one();
    }

    /// The pod is gone: what was wished for it must not reach another one of the same name.
    pub fn forget(&self, pod: &PodName, uid: &str) {
        let mut pods = self.wishes.pods.lock();
        if pods.get(pod).is_some_and(|wish| wish.uid == uid) {
            pods.remove(pod);
            self.wishes.settled.notify_waiters();
        }
    }

    /// Writes wishes until dropped.
    pub async fn serve(self, sink: Sink, metrics: Metrics) {
        let mut writes = FuturesUnordered::new();
        loop {
            let mut next = None;
            while writes.len() < MOST_WRITES {
                match self.take() {
                    Ok(write) => {
                        let sink = &sink;
                        writes.push(async move { (sink.write(&write).await, write) });
                    }
                    Err(due) => {
                        next = due;
                        break;
                    }
                }
            }
            let due = async {
                match next {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((written, write)) = writes.next() => {
                    if matches!(written, Written::Refused(_) | Written::Later(_)) {
                        metrics.failed_writes.inc();
                    }
                    self.settle(write, written);
                }
                () = self.wishes.some.notified() => {}
                () = due => {}
            }
        }
    }

    /// Returns when every wish has been written. Waits for ever where the server takes none.
    pub async fn idle(&self) {
        self.wait(HashMap::is_empty).await;
    }

    /// Returns when nothing is to be written to a pod.
    pub async fn written(&self, pod: &PodName) {
        self.wait(|pods| !pods.contains_key(pod)).await;
    }

    async fn wait(&self, done: impl Fn(&HashMap<PodName, Wish>) -> bool) {
        loop {
            // Made before the look: nothing is missed.
            let settled = self.wishes.settled.notified();
            if done(&self.wishes.pods.lock()) {
                return;
            }
            settled.await;
        }
    }

    /// The write that has been due longest; otherwise when the next one is.
    fn take(&self) -> Result<Write, Option<Instant>> {
        let mut pods = self.wishes.pods.lock();
        let waiting = pods.iter_mut().filter(|(_, wish)| !wish.is_writing);
        let (pod, wish) = waiting.min_by_key(|(_, wish)| wish.due).ok_or(None)?;
        if wish.due > Instant::now() {
            return Err(Some(wish.due));
        }
        wish.is_writing = true;
        Ok(Write { pod: pod.clone(), uid: wish.uid.clone(), annotations: std::mem::take(&mut wish.annotations) })
    }

    /// Takes in what became of a write: what is not written goes under whatever was wished since.
    fn settle(&self, write: Write, written: Written) {
        let Write { pod, uid, mut annotations } = write;
        let mut pods = self.wishes.pods.lock();
        // It may be gone, or another one's by now.
        let Some(wish) = pods.get_mut(&pod).filter(|wish| wish.uid == uid) else { return };
        wish.is_writing = false;
        let has_more = !wish.annotations.is_empty();
        let (wait, reason) = match written {
            Written::Done if has_more => {
                wish.backoff.reset();
                return;
            }
            Written::Done => {
                pods.remove(&pod);
                return self.wishes.settled.notify_waiters();
            }
            Written::Refused(reason) => {
                if !std::mem::replace(&mut wish.was_refused, true) {
                    tracing::warn!(?pod, reason, "the annotation of a pod is refused");
                }
                (AFTER_REFUSAL, reason)
            }
            Written::Later(reason) => (wish.backoff.next(1.0), reason),
        };
        annotations.append(&mut wish.annotations);
        wish.annotations = annotations;
        // What has been wished since may fare better.
        if !has_more {
            wish.due = Instant::now() + wait;
        }
        tracing::debug!(?pod, reason, due_in = ?wait, "the annotation of a pod cannot be written yet");
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

    async fn write(&self, write: &Write) -> Written {
        match self {
            Self::None => Written::Done,
            Self::Machine(client) => to_machine(client, write).await,
            Self::Cluster(client) => to_cluster(client.clone(), write).await,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Written {
    Done,
    Refused(String),
    Later(String),
}

async fn to_machine(client: &Client, write: &Write) -> Written {
    let Ok(body) = serde_json::to_vec(&write.annotations) else { return Written::Done };
    let path = format!("/pods/{}/{}/annotations", write.pod.namespace, write.pod.name);
    match client.request(Method::PATCH, &path, body).await {
        Ok(answer) => judge(answer.status, &answer.text()),
        Err(error) => Written::Later(error.to_string()),
    }
}

async fn to_cluster(client: kube::Client, write: &Write) -> Written {
    let api: Api<Pod> = Api::namespaced(client, &write.pod.namespace);
    let (body, parameters) = (patch(write), PatchParams::default());
    let patch = Patch::Merge(&body);
    match timeout(DEADLINE, api.patch_status(&write.pod.name, &parameters, &patch)).await {
        Ok(Ok(_)) => Written::Done,
        Ok(Err(kube::Error::Api(status))) => {
            judge(StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status.message)
        }
        Ok(Err(error)) => Written::Later(error.to_string()),
        Err(_) => Written::Later(format!("no answer within {DEADLINE:?}")),
    }
}

/// A merge patch of the annotations alone; a pod with another UID is not patched.
fn patch(write: &Write) -> Value {
    json!({"metadata": {"uid": write.uid, "annotations": write.annotations}})
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
    use stillmesh_runtime::Tasks;

    use super::*;

    fn pod() -> PodName {
        PodName { namespace: "shop".into(), name: "a".into() }
    }

    fn named(name: &str) -> PodName {
        PodName { namespace: "shop".into(), name: name.into() }
    }

    #[tokio::test]
    async fn the_latest_wish_of_a_pod_counts() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("old".into())), ("y", None)].into());
        writer.set(&pod(), "1", [("x", Some("new".into()))].into());
        let write = writer.take().unwrap();
        assert_eq!(write.annotations, [("x", Some("new".into())), ("y", None)].into());
        assert_eq!(writer.take(), Err(None), "one write of a pod at a time");
    }

    #[tokio::test]
    async fn an_unwritten_wish_comes_back_under_newer_ones() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("old".into())), ("y", Some("old".into()))].into());
        let write = writer.take().unwrap();
        writer.set(&pod(), "1", [("x", None)].into());
        writer.settle(write, Written::Later("away".into()));
        let write = writer.take().unwrap();
        assert_eq!(write.annotations, [("x", None), ("y", Some("old".into()))].into());
    }

    #[tokio::test]
    async fn a_pod_of_the_same_name_does_not_inherit() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", Some("1".into()))].into());
        let write = writer.take().unwrap();
        writer.set(&pod(), "2", [("y", Some("2".into()))].into());
        writer.settle(write, Written::Later("away".into()));
        writer.forget(&pod(), "1");
        let write = writer.take().unwrap();
        assert_eq!((write.uid.as_str(), write.annotations), ("2", [("y", Some("2".into()))].into()));
        writer.set(&pod(), "2", [("y", None)].into());
        writer.forget(&pod(), "2");
        assert_eq!(writer.take(), Err(None));
    }

    /// A server that answers for each pod by its name; what it was asked, and when.
    type Asked = Arc<Mutex<Vec<(String, Duration)>>>;

    fn serving(
        writer: &Writer,
        status: impl Fn(&str, usize) -> Option<u16> + Send + Sync + 'static,
    ) -> (Asked, Metrics, Tasks) {
        let (asked, metrics) = (Asked::default(), Metrics::default());
        let (heard, start, status) = (Arc::clone(&asked), Instant::now(), Arc::new(status));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let name = request.uri().path().split('/').nth(6).unwrap_or_default().to_owned();
            let before = heard.lock().iter().filter(|(asked, _)| *asked == name).count();
            heard.lock().push((name.clone(), start.elapsed()));
            let status = status(&name, before);
            async move {
                let Some(status) = status else { return std::future::pending().await };
                let body = match status {
                    200 => json!({"metadata": {"name": name}}),
                    code => json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": ""}),
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let response = http::Response::builder().status(status).body(body).expect("a response");
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let sink = Sink::Cluster(kube::Client::new(service, "default"));
        let tasks = Tasks::new("test");
        tasks.spawn("writer", writer.clone().serve(sink, metrics.clone()));
        (asked, metrics, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_be_written_to_keeps_no_other_waiting() {
        let writer = Writer::default();
        for number in 0..50 {
            writer.set(&named(&format!("forbidden-{number}")), "1", [("x", None)].into());
        }
        writer.set(&named("silent"), "1", [("x", None)].into());
        writer.set(&pod(), "1", [("x", None)].into());
        let (_asked, metrics, _tasks) = serving(&writer, |name, _| match name {
            "a" => Some(200),
            "silent" => None,
            _ => Some(403),
        });
        let start = Instant::now();
        writer.written(&pod()).await;
        assert!(start.elapsed() < FIRST_WAIT, "{:?}", start.elapsed());
        assert!(metrics.failed_writes.get() <= 51);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_repeated_slowly_and_at_once_when_something_else_is_wished() {
        let writer = Writer::default();
        writer.set(&pod(), "1", [("x", None)].into());
        let (asked, _metrics, _tasks) = serving(&writer, |_, before| Some(if before < 3 { 422 } else { 200 }));
        tokio::time::sleep(AFTER_REFUSAL + FIRST_WAIT).await;
        assert_eq!(asked.lock().len(), 2);
        writer.set(&pod(), "1", [("x", Some("1".into()))].into());
        tokio::time::sleep(FIRST_WAIT).await;
        assert_eq!(asked.lock().len(), 3);
        writer.idle().await;
        let at: Vec<u64> = asked.lock().iter().map(|(_, at)| at.as_secs()).collect();
        assert_eq!(at, [0, 300, 300, 600]);
    }

    #[test]
    fn a_patch_touches_annotations_of_that_pod_only() {
        let annotations = [("x", Some("1".into())), ("y", None)].into();
        let write = Write { pod: pod(), uid: "7".into(), annotations };
        assert_eq!(patch(&write), json!({"metadata": {"uid": "7", "annotations": {"x": "1", "y": null}}}));
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
        let write = Write { pod: pod(), uid: "7".into(), annotations: [("x", None)].into() };
        assert_eq!(sink.write(&write).await, Written::Done);
        let asked = asked.lock();
        let (method, path, kind) = asked.first().unwrap();
        assert_eq!((method, path.as_str()), (&Method::PATCH, "/api/v1/namespaces/shop/pods/a/status"));
        assert_eq!(kind.as_ref().unwrap(), "application/merge-patch+json");
    }
}
