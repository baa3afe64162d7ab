//! The agent's side of the plugin's socket: `POST /cmdadd`, answered when the pod is captured, or why it is not.
//!
//! Bounded in every direction: connections, body, and time; a request that cannot be served in time is refused, and
//! the kubelet tries again. The pod is worked on all the same.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use stillmesh_runtime::admin::{Limits, Request, Response, Server};
use stillmesh_runtime::sys::netns::Netns;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::enroll::pod::Status;
use crate::metrics::{Metrics, ResponseLabels};
use crate::plugin::{DEADLINE, Event};
use crate::writeback::PodName;

/// Requests that wait for the agent; one more is refused.
pub const QUEUE: usize = 64;
/// Under the plugin's own deadline, so that it hears the reason.
const WITHIN: Duration = DEADLINE.saturating_sub(Duration::from_secs(1));
/// How often the agent is asked for a pod that it has not heard of yet.
const LOOKUPS: u32 = 10;
const LOOKUP_EVERY: Duration = Duration::from_millis(10);
const BODY_BYTES: usize = 64 * 1024;

/// A pod that is about to start.
pub struct Start {
    /// Which.
    pub pod: PodName,
    /// Its namespace.
    pub netns: Netns,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Started>,
}

/// What the agent says to a [`Start`].
pub enum Started {
    /// It works on it.
    Working(watch::Receiver<Status>),
    /// It has not heard of the pod.
    Unknown,
    /// The pod is not to be captured, as far as the agent knows.
    NotEnrolled(String),
}

/// The server for the plugin.
pub fn server(starts: mpsc::Sender<Start>, metrics: Metrics) -> Server {
    let limits = Limits {
        connections: QUEUE,
        head: DEADLINE,
        body: DEADLINE,
        body_bytes: BODY_BYTES,
        handler: DEADLINE,
        stall: DEADLINE,
    };
    let handler = move |request: Request| {
        let (starts, metrics) = (starts.clone(), metrics.clone());
        async move {
            let (status, text) = match add(&request.body, &starts).await {
                Ok(()) => (StatusCode::OK, String::new()),
                Err(refused) => refused,
            };
            let labels = ResponseLabels { response_code: status.as_u16() };
            metrics.plugin_requests.get_or_create(&labels).inc();
            if status == StatusCode::OK {
                return Response::empty(status);
            }
            tracing::warn!(%status, reason = text, "a pod's start is refused");
            Response::text(status, text)
        }
    };
    Server::new("plugin").limits(limits).route(Method::POST, "/cmdadd", handler)
}

type Refused = (StatusCode, String);

async fn add(body: &[u8], starts: &mpsc::Sender<Start>) -> Result<(), Refused> {
    let deadline = Instant::now() + WITHIN;
    let event: Event = serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is not a CNI event: {error}")))?;
    let pod = PodName { namespace: event.pod_namespace, name: event.pod_name };
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("{}/{}: {text}", pod.namespace, pod.name));
    let netns = Netns::open(&event.netns).map_err(|error| {
        failed(format!("its network namespace {} cannot be opened: {error}", event.netns.display()))
    })?;
    let inode = netns.inode();
    let mut status = None;
    for _ in 0..LOOKUPS {
        match ask(starts, &pod, &netns).await.map_err(&failed)? {
            Started::Working(found) => {
                status = Some(found);
                break;
            }
            Started::NotEnrolled(reason) => status_after(&mut status, Some(reason)),
            Started::Unknown => status_after(&mut status, None),
        }
        sleep(LOOKUP_EVERY).await;
    }
    let Some(mut status) = status else {
        return Err(failed("the agent does not know this pod as one to be captured".to_owned()));
    };
    let done = |status: &Status| {
        status.captured == Some(inode) || status.failed.as_ref().is_some_and(|(failed, _)| *failed == inode)
    };
    let outcome = timeout_at(deadline, status.wait_for(done)).await.map(|status| status.map(|status| status.clone()));
    match outcome {
        Ok(Ok(now)) if now.captured == Some(inode) => Ok(()),
        Ok(Ok(now)) => {
            let reason = now.failed.map_or_else(|| Arc::from("capture failed"), |(_, reason)| reason);
            Err(failed(reason.to_string()))
        }
        Ok(Err(_)) => Err(failed("the pod went away".to_owned())),
        Err(_) => {
            let waiting_for = status.borrow().waiting_for.clone();
            let reason = waiting_for.unwrap_or_else(|| "its rules are not in force yet".into());
            Err(failed(format!("not captured within {WITHIN:?}: {reason}")))
        }
    }
}

/// Nothing to wait on yet; the loop asks again, because labels and pods may be on their way to the agent.
fn status_after(status: &mut Option<watch::Receiver<Status>>, reason: Option<String>) {
    *status = None;
    if let Some(reason) = reason {
        tracing::debug!(reason, "the plugin asks for a pod that is not to be captured");
    }
}

async fn ask(starts: &mpsc::Sender<Start>, pod: &PodName, netns: &Netns) -> Result<Started, String> {
    let (answer, answered) = oneshot::channel();
    let start = Start { pod: pod.clone(), netns: netns.clone(), answer };
    starts.try_send(start).map_err(|_| "the agent has too many pods to start".to_owned())?;
    answered.await.map_err(|_| "the agent is ending".to_owned())
}
