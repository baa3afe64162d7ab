//! One request and the endpoints that it is sent to, until one has answered for good: core says after each try whether there
//! is another one ([`retry`]).

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use hyper::{Request, Response};
use stillmesh_core::decide::OutboundPlan;
use stillmesh_core::decide::retry::{self, Again, Ask, Outcome};
use stillmesh_core::model::WorkloadUid;
use stillmesh_core::model::http::Retry;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::replay::{Gate, Replay};
use super::{PathError, RequestBody, Version, forward};
use crate::capture::Downstream;
use crate::record::Flag;
use crate::record::request::Request as Record;
use crate::upstream::clusters::Place;
use crate::upstream::connections::{InUse, Wanted};
use crate::upstream::{Upstream, dial, is_new};

/// What is sent.
pub struct Exchange<'a> {
    /// Whose request it is.
    pub downstream: &'a Arc<Downstream>,
    /// Its head, as the endpoint is to see it.
    pub head: &'a Parts,
    /// Its body.
    pub replay: &'a Replay,
    /// The endpoint's HTTP version.
    pub version: Version,
    /// Where it goes.
    pub upstream: &'a Upstream,
    /// When it is sent again; `None`: the default.
    pub rule: Option<&'a Retry>,
}

/// A response's head, and a place on a connection that is to be kept until its body has ended.
pub type Answered = (Response<Incoming>, Option<InUse>);

/// One try that did not bring what was wanted.
struct Failed {
    error: PathError,
    /// How it ended; `None`: the next one would end likewise.
    outcome: Option<Outcome>,
    /// It was the connection that was old; that says nothing about the endpoint.
    by_age: bool,
}

impl Exchange<'_> {
    /// Sends the request until it is answered.
    pub async fn run(&self, record: &mut Record) -> Result<Answered, PathError> {
        let Self { downstream, upstream, rule, .. } = *self;
        let waypoint = downstream.waypoint();
        let patience = upstream.patience(downstream);
        let mut deadline = Instant::now() + patience;
        let mut tried: Vec<WorkloadUid> = Vec::new();
        let (mut fresh, mut repicked, mut retried) = (false, 0, 0);
        let mut plan = upstream.choose(downstream, &tried)?;
        // A retry's place in the budget, until it has ended.
        let mut retrying: Option<Place> = None;
        loop {
            record.learn(&plan);
            let flight = upstream.flight(&plan);
            let mut trace = 0;
            let (sent, place) = self.attempt(&plan, fresh, deadline, retry::per_try(rule), &mut trace).await;
            record.carried(trace);
            let (outcome, by_age) = match &sent {
                Ok((response, _)) => (outcome(response), false),
                Err(Failed { outcome: Some(outcome), by_age, .. }) => (*outcome, *by_age),
                Err(Failed { outcome: None, .. }) => return sent.map_err(|failed| failed.error),
            };
            // It is held until the response's end, or until the next try.
            record.held((flight, place));
            if let Some(endpoint) = &plan.upstream {
                upstream.note(downstream, &endpoint.uid, outcome);
            }
            fresh = by_age;
            if !by_age {
                tried.extend(plan.upstream.as_ref().map(|workload| workload.uid.clone()));
            }
            if outcome != Outcome::NotConnected {
                deadline = Instant::now() + patience;
            }
            let choose = || upstream.choose(downstream, &tried).ok();
            let mut next = if outcome == Outcome::NotConnected { choose() } else { None };
            let again = retry::again(&Ask {
                rule,
                outcome,
                is_idempotent: forward::is_idempotent(&self.head.method),
                has_other: next.as_ref().is_some_and(|next| is_new(next, &tried)),
                repicked,
                retried,
                entropy: rand::random(),
            });
            let is_possible = again != Again::No && self.replay.may_repeat() && Instant::now() < deadline;
            if is_possible && next.is_none() {
                next = choose();
            }
            let wait = match (again, next) {
                (Again::Exhausted, _) => {
                    record.met(Flag::RetryLimit);
                    return sent.map_err(|failed| failed.error);
                }
                (Again::AtOnce, Some(next)) if is_possible => {
                    repicked += 1;
                    record.retried();
                    waypoint.metrics.repicked.inc();
                    plan = next;
                    Duration::ZERO
                }
                (Again::After(wait), Some(next)) if is_possible => {
                    drop(retrying.take());
                    retrying = upstream.retry(downstream);
                    if retrying.is_none() {
                        waypoint.metrics.refuse("retry_budget");
                        record.met(Flag::Overflow);
                        return sent.map_err(|failed| failed.error);
                    }
                    retried += 1;
                    record.retried();
                    waypoint.metrics.retried.inc();
                    plan = next;
                    wait
                }
                _ => return sent.map_err(|failed| failed.error),
            };
            record.held((None, None));
            match sent {
                Ok((response, in_use)) => {
                    tracing::debug!(status = %response.status(), "sending a request again");
                    discard(response.into_body(), in_use);
                }
                Err(failed) => tracing::debug!(error = %failed.error.text(), "sending a request again"),
            }
            if !wait.is_zero() {
                sleep(wait).await;
                // The mesh may be another one by now.
                plan = upstream.choose(downstream, &tried).unwrap_or(plan);
            }
        }
    }

    /// One try. `trace` becomes that of the CONNECT that carries it.
    async fn attempt(
        &self,
        plan: &OutboundPlan,
        fresh: bool,
        deadline: Instant,
        limit: Option<Duration>,
        trace: &mut u128,
    ) -> (Result<Answered, Failed>, Option<Place>) {
        // HTTP/2 carries many requests on one connection; HTTP/1.1 one.
        let place = match self.version {
            Version::One => self.upstream.connection(deadline).await,
            Version::Two => Ok(None),
        };
        let place = match place {
            Ok(place) => place,
            Err(error) => return (Err(Failed { error, outcome: None, by_age: false }), None),
        };
        let sent = self.send(plan, fresh, deadline, trace);
        let sent = match limit {
            None => sent.await,
            Some(limit) => timeout(limit, sent).await.unwrap_or_else(|_| {
                Err(Failed { error: PathError::TimedOut { limit }, outcome: Some(Outcome::TimedOut), by_age: false })
            }),
        };
        (sent, place)
    }

    async fn send(
        &self,
        plan: &OutboundPlan,
        fresh: bool,
        deadline: Instant,
        trace: &mut u128,
    ) -> Result<Answered, Failed> {
        let connections = &self.downstream.waypoint().connections;
        *trace = dial::trace(plan);
        let wanted = Wanted { plan, version: self.version, fresh, trace: *trace, deadline };
        let leased = connections.lease(self.downstream, self.upstream, wanted).await;
        let lease = leased.map_err(|error| {
            let may_repick = error.may_repick() || matches!(error, PathError::Upstream { .. });
            let outcome = may_repick.then_some(Outcome::NotConnected);
            Failed { error, outcome, by_age: false }
        })?;
        let reused = lease.reused;
        *trace = lease.trace;
        if self.head.method == Method::CONNECT && !lease.takes_connect().await {
            return Err(Failed { error: PathError::NoConnect, outcome: None, by_age: false });
        }
        let (request, wanted) = build(self.head, self.replay, self.version);
        let sent = lease.send(request).await;
        // Whatever it is: an answer is one to the question whether the body is wanted.
        wanted.iter().for_each(CancellationToken::cancel);
        sent.map_err(|error| {
            let unsent = error.message().is_some();
            let error = error.into_error();
            let outcome = if is_refused(&error) {
                Outcome::Refused
            } else if unsent || is_gone_away(&error) {
                Outcome::Closing
            } else if reused && is_closed(&error) {
                Outcome::Stale
            } else {
                Outcome::Reset
            };
            let by_age = reused && matches!(outcome, Outcome::Closing | Outcome::Stale);
            Failed { error: PathError::Upstream { source: Arc::new(error) }, outcome: Some(outcome), by_age }
        })
    }
}

/// How a response is judged by.
fn outcome(response: &Response<Incoming>) -> Outcome {
    let grpc = response.headers().get("grpc-status").and_then(|value| value.to_str().ok());
    Outcome::Answered { status: response.status().as_u16(), grpc: grpc.and_then(|code| code.parse().ok()) }
}

/// Throws a response away. One that is there already is read, so that its connection serves further requests; for more
/// nobody waits: dropped, it ends its stream, or its HTTP/1.1 connection.
fn discard(mut body: Incoming, in_use: Option<InUse>) {
    let mut left = MOST_DISCARDED;
    while let Some(Some(Ok(frame))) =
        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).now_or_never()
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 || body.is_end_stream() {
            break;
        }
    }
    drop(in_use);
}

/// Of a response that is thrown away, bytes.
const MOST_DISCARDED: usize = 64 << 10;

/// How long an endpoint may take to say that a body is wanted. One that knows nothing of the question never says.
const CONTINUE: Duration = Duration::from_secs(1);

/// One try's request, and what says that its body is wanted, where the client asks.
fn build(head: &Parts, replay: &Replay, version: Version) -> (Request<RequestBody>, Option<CancellationToken>) {
    let wanted = (version == Version::One && expects_continue(&head.headers)).then(CancellationToken::new);
    let gate = wanted.clone().map(|wanted| -> Gate {
        // Past it the body is sent unasked.
        Box::pin(async move { drop(timeout(CONTINUE, wanted.cancelled()).await) })
    });
    let mut request = Request::new(replay.again(gate));
    request.method_mut().clone_from(&head.method);
    request.uri_mut().clone_from(&head.uri);
    *request.version_mut() = head.version;
    request.headers_mut().clone_from(&head.headers);
    if let Some(protocol) = head.extensions.get::<Protocol>() {
        request.extensions_mut().insert(protocol.clone());
    }
    if let Some(wanted) = wanted.clone() {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                wanted.cancel();
            }
        });
    }
    (request, wanted)
}

fn expects_continue(headers: &HeaderMap<HeaderValue>) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The endpoint has refused the request without looking at it (RFC 9113 section 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    http2(error).is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// The endpoint was closing the connection, and has not looked at the request (RFC 9113 section 6.8).
fn is_gone_away(error: &hyper::Error) -> bool {
    http2(error).is_some_and(|error| error.is_go_away() && error.is_remote())
}

fn http2(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref() {
            return Some(error);
        }
        source = cause.source();
    }
    None
}

/// The connection ended before an answer began.
fn is_closed(error: &hyper::Error) -> bool {
    let is_reset = |error: &hyper::Error| {
        let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
        io.is_some_and(|io| kinds.contains(&io.kind()))
    };
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error)
}
