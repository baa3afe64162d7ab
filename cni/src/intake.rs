//! The agent's side of the plugin's socket: `POST /cmdadd`, answered when the pod is captured, or why it is not.
//!
//! Our plugin leaves the decision to the agent; Istio's has decided, and takes anything but 200 for a failure. Either
//! comes often before the watch has brought the pod, or its namespace's new label: then the API server is asked, until
//! it answers or time is up. A pod that nobody can be asked about does not start, unless it is a static one of a
//! namespace outside of the mesh: no API server need ever have known it.
//!
//! Other nodes send a pod tunnelled traffic once they see its annotation, so its write is waited for, too, for a little.
//!
//! Bounded in every direction: connections, body, and time; a request that cannot be served in time is refused, and
//! the kubelet tries again. The pod is worked on all the same.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use stillmesh_api::probes::Notice;
use stillmesh_k8s::select::NotEnrolled;
use stillmesh_runtime::admin::{Limits, Request, Response, Server};
use stillmesh_runtime::sys::netns::Netns;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::{Questions, Seen};
use crate::enroll::pod::Status;
use crate::metrics::{Metrics, ResponseLabels};
use crate::netns::Opener;
use crate::plugin::{DEADLINE, Decision, Event};
use crate::world::is_static_uid;
use crate::writeback::{PodName, Writer};

/// Requests that wait for the agent; one more is refused.
pub const QUEUE: usize = 64;
/// Under the plugin's own deadline, so that it hears the reason.
const WITHIN: Duration = DEADLINE.saturating_sub(Duration::from_secs(1));
/// How often the agent is asked for a pod that it has not heard of yet.
const LOOKUPS: u32 = 10;
const FEW_LOOKUPS: u32 = 3;
const LOOKUP_EVERY: Duration = Duration::from_millis(10);
/// How long after a question that the API server did not answer the next one comes.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a captured pod waits for its annotation to be written.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
const BODY_BYTES: usize = 64 * 1024;

/// What the agent is asked or told.
pub enum Ask {
    /// A pod is about to start.
    Start(Start),
    /// What the API server said of a pod.
    Seen(PodName, Box<Seen>),
    /// What the tunnel says of where a pod stands.
    CutOff(Notice),
}

/// A pod that is about to start.
pub struct Start {
    /// Which.
    pub pod: PodName,
    /// Its UID, where the plugin knows it.
    pub uid: Option<String>,
    /// Its namespace.
    pub netns: Netns,
    /// Whether the API server has been asked: what is known is as new as can be.
    pub looked: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Started>,
}

/// What the agent says to a [`Start`].
pub enum Started {
    /// It works on it.
    Working(watch::Receiver<Status>),
    /// It has not heard of the pod.
    Unknown {
        /// Whether the pod's namespace is in the mesh, where it has been heard of.
        enrolled: Option<bool>,
    },
    /// The pod is not to be captured, as far as the agent knows.
    NotEnrolled(NotEnrolled),
}

/// What requests need.
#[derive(Clone)]
pub struct Desk {
    /// The way to the agent.
    pub asks: mpsc::Sender<Ask>,
    /// The API server, where there is one.
    pub questions: Option<Questions>,
    /// Opens the namespaces that the plugin names.
    pub opener: Opener,
    /// Writes annotations.
    pub writer: Writer,
    /// Counters.
    pub metrics: Metrics,
}

/// The server for the plugin.
pub fn server(desk: Desk) -> Server {
    let limits = Limits {
        connections: QUEUE,
        head: DEADLINE,
        body: DEADLINE,
        body_bytes: BODY_BYTES,
        handler: DEADLINE,
        stall: DEADLINE,
    };
    let handler = move |request: Request| {
        let desk = desk.clone();
        async move {
            let done = add(&request.body, &desk).await;
            let status = done.as_ref().map_or_else(|(status, _)| *status, |_| StatusCode::OK);
            let labels = ResponseLabels { response_code: status.as_u16() };
            desk.metrics.plugin_requests.get_or_create(&labels).inc();
            match done {
                Ok(Some(decision)) => Response::json(status, &decision),
                Ok(None) => Response::empty(status),
                Err((status, text)) => {
                    tracing::warn!(%status, reason = text, "a pod's start is refused");
                    Response::text(status, text)
                }
            }
        }
    };
    Server::new("plugin").limits(limits).route(Method::POST, "/cmdadd", handler)
}

type Refused = (StatusCode, String);

/// The decision is for who leaves it to the agent.
async fn add(body: &[u8], desk: &Desk) -> Result<Option<Decision>, Refused> {
    let deadline = Instant::now() + WITHIN;
    let event: Event = serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is not a CNI event: {error}")))?;
    let pod = PodName { namespace: event.pod_namespace, name: event.pod_name };
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("{}/{}: {text}", pod.namespace, pod.name));
    let netns = desk.opener.open(&event.netns).map_err(|error| {
        failed(format!("its network namespace {} cannot be opened: {error}", event.netns.display()))
    })?;
    let inode = netns.inode();
    let is_static = event.pod_uid.as_deref().is_some_and(is_static_uid);
    let request = Asking { desk, pod: &pod, uid: event.pod_uid, netns, deadline };
    let (started, trouble) = request.settle().await.map_err(&failed)?;
    // Whether the answer is about this pod, or the API server said that there is none.
    let sure = trouble.is_none() || !open(&started);
    let trouble = trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
    let free = |reason: String| {
        tracing::debug!(?pod, reason, "a pod starts without the mesh");
        Ok(Some(Decision { captured: false, reason: Some(reason) }))
    };
    match (started, event.agent_decides) {
        (Started::Working(status), decides) => {
            wait(status, inode, deadline).await.map_err(failed)?;
            let told = deadline.min(Instant::now() + TOLD_WITHIN);
            if timeout_at(told, desk.writer.written(&pod)).await.is_err() {
                tracing::debug!(?pod, "a pod starts before its annotation is written");
            }
            Ok(decides.then_some(Decision { captured: true, reason: None }))
        }
        (Started::NotEnrolled(reason @ NotEnrolled::Bypassed), true) => free(reason.to_string()),
        // Who has decided by labels alone.
        (Started::NotEnrolled(NotEnrolled::Bypassed), false) => Ok(None),
        (Started::NotEnrolled(reason), true) if sure => free(reason.to_string()),
        // Static pods start where nobody knows of them.
        (Started::Unknown { enrolled }, true)
            if enrolled != Some(true) && (sure || enrolled.is_some() && is_static) =>
        {
            free(format!("its namespace is not in the mesh, and the agent does not know the pod{trouble}"))
        }
        (Started::Unknown { .. }, _) | (Started::NotEnrolled(_), true) => {
            Err(failed(format!("the agent does not know this pod{trouble}")))
        }
        (Started::NotEnrolled(reason), false) => {
            Err(failed(format!("the agent does not know this pod as one to be captured: {reason}{trouble}")))
        }
    }
}

/// One pod that is asked for.
struct Asking<'a> {
    desk: &'a Desk,
    pod: &'a PodName,
    uid: Option<String>,
    netns: Netns,
    deadline: Instant,
}

impl Asking<'_> {
    /// Asks until the answer can be relied on; beside it, why it is not as new as could be.
    async fn settle(&self) -> Result<(Started, Option<String>), String> {
        let mut last = self.ask(false).await?;
        for _ in 1..self.lookups() {
            if !open(&last) {
                break;
            }
            sleep(LOOKUP_EVERY).await;
            last = self.ask(false).await?;
        }
        let Some(questions) = &self.desk.questions else { return Ok((last, None)) };
        let mut trouble = "the API server was not asked in time".to_owned();
        while open(&last) || may_be_old(&last) {
            match timeout_at(self.deadline, questions.look(self.pod)).await {
                Ok(Ok(seen)) => {
                    self.desk.tell(Ask::Seen(self.pod.clone(), Box::new(seen)))?;
                    return Ok((self.ask(true).await?, None));
                }
                Ok(Err(reason)) => trouble = reason,
                Err(_) => return Ok((last, Some(trouble))),
            }
            if timeout_at(self.deadline, sleep(ASK_AGAIN)).await.is_err() {
                return Ok((last, Some(trouble)));
            }
            // The watch may have brought it meanwhile.
            last = self.ask(false).await?;
        }
        Ok((last, None))
    }

    /// Where nobody else can be asked, what is on its way is waited for.
    fn lookups(&self) -> u32 {
        if self.desk.questions.is_some() { FEW_LOOKUPS } else { LOOKUPS }
    }

    async fn ask(&self, looked: bool) -> Result<Started, String> {
        let (answer, answered) = oneshot::channel();
        let (pod, uid, netns) = (self.pod.clone(), self.uid.clone(), self.netns.clone());
        self.desk.tell(Ask::Start(Start { pod, uid, netns, looked, answer }))?;
        answered.await.map_err(|_| "the agent is ending".to_owned())
    }
}

impl Desk {
    fn tell(&self, ask: Ask) -> Result<(), String> {
        self.asks.try_send(ask).map_err(|_| "the agent has too many pods to start".to_owned())
    }
}

/// Whether the answer is about no pod that could be about to start: not heard of, or the one before under this name.
fn open(started: &Started) -> bool {
    use NotEnrolled::{HostNetwork, Terminal};
    matches!(started, Started::Unknown { .. } | Started::NotEnrolled(HostNetwork | Terminal))
}

/// Whether a label that has just been set would change the answer.
fn may_be_old(started: &Started) -> bool {
    matches!(started, Started::NotEnrolled(NotEnrolled::NotSelected))
}

/// Returns when the pod is captured in the namespace with this inode; the error is in words.
async fn wait(mut status: watch::Receiver<Status>, inode: u64, deadline: Instant) -> Result<(), String> {
    let done = |status: &Status| {
        status.captured == Some(inode) || status.failed.as_ref().is_some_and(|(failed, _)| *failed == inode)
    };
    let outcome = timeout_at(deadline, status.wait_for(done)).await.map(|status| status.map(|status| status.clone()));
    match outcome {
        Ok(Ok(now)) if now.captured == Some(inode) => Ok(()),
        Ok(Ok(now)) => {
            let reason = now.failed.map_or_else(|| Arc::from("capture failed"), |(_, reason)| reason);
            Err(reason.to_string())
        }
        Ok(Err(_)) => Err("the pod went away".to_owned()),
        Err(_) => {
            let waiting_for = status.borrow().waiting_for.clone();
            let reason = waiting_for.unwrap_or_else(|| "its rules are not in force yet".into());
            Err(format!("not captured within {WITHIN:?}: {reason}"))
        }
    }
}
