//! HTTP: each request is planned, sent to an endpoint, to another one where the first has not taken it, and answered.
//! Bodies stream both ways; neither side is read faster than the other takes.

use std::convert::Infallible;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use stillmesh_core::model::WorkloadUid;
use stillmesh_hbone::Stream;
use stillmesh_runtime::drain::Watch;
use tokio::io::copy_bidirectional;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::last_words::LastWords;
use super::plan::{self, Answer, Forwarded, Plan};
use super::replay::{Gate, Replay};
use super::{PathError, ResponseBody, Rewound, Version, forward};
use crate::capture::Downstream;
use crate::record::request::Request as Record;
use crate::upstream;
use crate::upstream::connections::{CONNECTION_WINDOW, InUse, Owned, SEND_BUFFER, STREAM_WINDOW};

/// Serves one client's HTTP connection to its end.
pub async fn serve(downstream: Arc<Downstream>, stream: Rewound<Stream>, version: Version) {
    let waypoint = downstream.waypoint().clone();
    let limits = waypoint.config.limits;
    let service = service_fn(move |request: Request<Incoming>| {
        let downstream = downstream.clone();
        async move { Ok::<_, Infallible>(answer(downstream, request, version).await) }
    });
    let watch = &waypoint.watch;
    let ended = match version {
        Version::One => {
            let (stream, clean) = LastWords::new(stream);
            let io = TokioIo::new(stream);
            let mut connection = std::pin::pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(limits.idle)
                    .max_buf_size(limits.head_bytes)
                    .serve_connection(io, service)
                    .with_upgrades()
            );
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = quiet(watch, limits.quiet) => {
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().await
                }
            };
            if ended.as_ref().is_err_and(hyper::Error::is_parse) {
                // It was answered: what was wrong is the client's to know.
                clean.set();
            }
            ended
        }
        Version::Two => {
            let io = TokioIo::new(stream);
            let mut connection = std::pin::pin!(
                http2::Builder::new(Owned(waypoint.tasks.clone()))
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_send_buf_size(SEND_BUFFER)
                    .max_concurrent_streams(limits.concurrent)
                    .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
                    .serve_connection(io, service)
            );
            tokio::select! {
                ended = connection.as_mut() => ended,
                _ = watch.signaled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's HTTP connection ended early");
    }
}

/// Waits until idle HTTP/1.1 connections are to be closed.
async fn quiet(watch: &Watch, period: Duration) {
    let signal = watch.signaled().await;
    sleep(period.min(signal.left() / 2)).await;
}

/// Answers one request, whatever happens.
async fn answer(
    downstream: Arc<Downstream>,
    mut request: Request<Incoming>,
    version: Version,
) -> Response<ResponseBody> {
    let asked = (version == Version::One).then(|| forward::upgrade(request.headers())).flatten();
    let client = asked.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let id = forward::request_id(&mut head.headers, rand::random());
    let replay = Replay::new(body, downstream.waypoint().config.limits.replay_bytes);
    let is_grpc = is_grpc(&head.headers);
    let mut record = Record::new(downstream.clone(), &head, version, id, replay.received());
    let planned = forward::check(&head, version).and_then(|()| {
        let snapshot = downstream.waypoint().snapshots.load();
        plan::plan(&downstream, &snapshot, &mut head, version, rand::random())
    });
    let (exchanged, edits) = match planned {
        Ok(Plan::Answer(answer)) => (Ok(own(answer, is_grpc, record)), Vec::new()),
        Ok(Plan::Forward(planned)) => {
            let sent = exchange(&downstream, head, &replay, version, asked.as_ref(), (&planned, &mut record));
            let sent = match planned.timeout {
                Some(limit) => timeout(limit, sent).await.unwrap_or(Err(PathError::TimedOut { limit })),
                None => sent.await,
            };
            let response = match sent {
                Ok((response, in_use)) => Ok(deliver(&downstream, response, in_use, client, record)),
                Err(error) => Err((error, record)),
            };
            (response, planned.response)
        }
        Err(error) => (Err((error, record)), Vec::new()),
    };
    let mut response = exchanged.unwrap_or_else(|(error, record)| refuse(&error, is_grpc, record));
    for edit in &edits {
        plan::edit(response.headers_mut(), edit);
    }
    if version == Version::One
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
        && downstream.waypoint().watch.started().is_some()
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Sends a request to endpoints until one has taken it.
async fn exchange(
    downstream: &Arc<Downstream>,
    mut head: Parts,
    replay: &Replay,
    version: Version,
    asked: Option<&HeaderValue>,
    (planned, record): (&Forwarded, &mut Record),
) -> Result<(Response<Incoming>, Option<InUse>), PathError> {
    let waypoint = downstream.waypoint();
    let limit = waypoint.config.limits.requests;
    let permit = waypoint.requests.clone().try_acquire_owned();
    record.hold(permit.map_err(|_| PathError::Full { what: "requests and connections", limit })?);
    let Forwarded { target, retries, .. } = planned;
    let mut retries = *retries;
    prepare(downstream, &mut head, version, asked)?;
    let deadline = Instant::now() + waypoint.config.limits.connect;
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let (mut fresh, mut any_endpoint, mut failure) = (false, false, None);
    loop {
        let plan = match (upstream::choose(downstream, target, &tried), failure.take()) {
            (Ok(plan), None) => plan,
            (Ok(plan), Some(_)) if any_endpoint || upstream::is_new(&plan, &tried) => plan,
            // Without a further way the failure before is what the user should read.
            (Ok(_) | Err(_), Some(error)) => return Err(error),
            (Err(error), None) => return Err(error),
        };
        record.learn(&plan);
        let endpoint = plan.upstream.as_ref().map(|workload| workload.uid.clone());
        let leased = waypoint.connections.lease(downstream, &plan, version, fresh, deadline).await;
        let error = match leased {
            Ok(lease) => {
                let reused = lease.reused;
                let (request, wanted) = build(&head, replay, version);
                let sent = lease.send(request).await;
                // Whatever it is: an answer is one to the question whether the body is wanted.
                wanted.iter().for_each(CancellationToken::cancel);
                let error = match sent {
                    Ok(answered) => return Ok(answered),
                    Err(error) => error,
                };
                let unsent = error.message().is_some();
                let error = error.into_error();
                // Closed by the endpoint as the request came: no answer means that it was not looked at, if the method
                // allows to believe that (RFC 9112 section 9.3.1).
                let unlucky = reused && is_closed(&error) && forward::is_idempotent(&head.method);
                let (refused, gone_away) = (is_refused(&error), is_gone_away(&error));
                let error = PathError::Upstream { source: Arc::new(error) };
                if !unsent && !(replay.may_repeat() && (unlucky || refused || gone_away)) {
                    return Err(error);
                }
                // An endpoint that has too much to do is left for another one, if there is one. Otherwise it was the
                // connection that was old, and says nothing about the endpoint.
                any_endpoint = refused || reused;
                fresh = reused && !refused;
                if !fresh {
                    tried.extend(endpoint);
                }
                error
            }
            Err(error) if error.may_repick() => {
                tried.extend(endpoint);
                any_endpoint = false;
                error
            }
            Err(error) => return Err(error),
        };
        if retries == 0 || Instant::now() >= deadline {
            return Err(error);
        }
        retries -= 1;
        waypoint.metrics.repicked.inc();
        tracing::debug!(error = %error.text(), "sending a request again");
        failure = Some(error);
    }
}

/// Makes a client's head what the endpoint is to see.
fn prepare(
    downstream: &Downstream,
    head: &mut Parts,
    version: Version,
    asked: Option<&HeaderValue>,
) -> Result<(), PathError> {
    let config = &downstream.waypoint().config;
    forward::strip(&mut head.headers);
    forward::target(head, version)?;
    if version == Version::One {
        let wants_trailers = head.headers.contains_key(header::TE);
        let connection = match (asked, wants_trailers) {
            (Some(protocol), _) => {
                head.headers.insert(header::UPGRADE, protocol.clone());
                Some("upgrade")
            }
            (None, true) => Some("te"),
            (None, false) => None,
        };
        if let Some(connection) = connection {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
        }
    }
    let client = &downstream.client;
    let from = forward::From {
        address: client.address.ip(),
        identity: &client.identity,
        is_gateway: config.gateways.contains(&client.identity),
        own: &config.identity,
    };
    forward::introduce(&mut head.headers, from);
    Ok(())
}

/// How long an endpoint may take to say that a body is wanted. One that knows nothing of the question never says.
const CONTINUE: Duration = Duration::from_secs(1);

/// One try's request, and what says that its body is wanted, where the client asks.
fn build(head: &Parts, replay: &Replay, version: Version) -> (Request<super::RequestBody>, Option<CancellationToken>) {
    let expects =
        head.headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE_100));
    let wanted = (expects && version == Version::One).then(CancellationToken::new);
    let gate = wanted.clone().map(|wanted| -> Gate {
        // Past it the body is sent unasked.
        Box::pin(async move { drop(timeout(CONTINUE, wanted.cancelled()).await) })
    });
    let mut request = Request::new(replay.again(gate));
    request.method_mut().clone_from(&head.method);
    request.uri_mut().clone_from(&head.uri);
    *request.version_mut() = head.version;
    request.headers_mut().clone_from(&head.headers);
    if let Some(wanted) = wanted.clone() {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                wanted.cancel();
            }
        });
    }
    (request, wanted)
}

const CONTINUE_100: &[u8] = b"100-continue";

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

/// Hands an endpoint's answer to the client.
fn deliver(
    downstream: &Arc<Downstream>,
    mut response: Response<Incoming>,
    in_use: Option<InUse>,
    client: Option<OnUpgrade>,
    mut record: Record,
) -> Response<ResponseBody> {
    record.answered(response.status(), response.headers());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return refuse(&PathError::BadRequest { what: "the endpoint switched protocols unasked" }, false, record);
        };
        let endpoint = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        let protocol = head.headers.get(header::UPGRADE).cloned();
        forward::strip(&mut head.headers);
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            head.headers.insert(header::UPGRADE, protocol);
        }
        downstream.waypoint().tasks.spawn("upgraded", tunnel(client, endpoint, record));
        return Response::from_parts(head, ResponseBody::empty());
    }
    let (mut head, body) = response.into_parts();
    forward::strip(&mut head.headers);
    Response::from_parts(head, ResponseBody::of(body, in_use, record))
}

/// Carries what a connection was upgraded to, until both sides have ended.
async fn tunnel(client: OnUpgrade, endpoint: OnUpgrade, mut record: Record) {
    let (client, endpoint) = match tokio::try_join!(client, endpoint) {
        Ok(both) => both,
        Err(error) => return record.broke_off(&error),
    };
    let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
    match copy_bidirectional(&mut client, &mut endpoint).await {
        Ok((_, sent)) => {
            record.sent(usize::try_from(sent).unwrap_or(usize::MAX));
            record.complete();
        }
        Err(error) => record.failed(&PathError::Broken { source: Arc::new(error) }),
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content.is_some_and(|content| content.starts_with("application/grpc"))
}

/// The waypoint's own answer, as a route has it. A gRPC client is told by a status of its own (gRPC, «HTTP to gRPC status
/// code mapping»).
fn own(answer: Answer, is_grpc: bool, mut record: Record) -> Response<ResponseBody> {
    let Answer { status, mut headers, body, response: edits } = answer;
    plan::edit(&mut headers, &edits);
    let code = match status {
        StatusCode::NOT_FOUND => Some("12"),
        status if status.is_server_error() => Some("14"),
        _ => None,
    };
    let (status, body) = match code.filter(|_| is_grpc) {
        Some(code) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(code));
            record.refused(StatusCode::OK, Some(code));
            (StatusCode::OK, Bytes::new())
        }
        None => {
            record.refused(status, None);
            (status, body)
        }
    };
    let mut response = Response::new(ResponseBody::own(body, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The answer to a request that cannot be carried. The client is told what it can do something about; the rest is in the
/// log, under the request's id.
fn refuse(error: &PathError, is_grpc: bool, mut record: Record) -> Response<ResponseBody> {
    let (status, text) = match error {
        PathError::BadRequest { what } => (StatusCode::BAD_REQUEST, *what),
        PathError::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time"),
        PathError::Refused(_) => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint"),
        PathError::Upstream { .. } => (StatusCode::SERVICE_UNAVAILABLE, "the endpoint broke off before its answer"),
        PathError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "the request took too long"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint was reached"),
    };
    record.failed(error);
    if is_grpc {
        // UNAVAILABLE, INTERNAL for what is no request, DEADLINE_EXCEEDED (gRPC over HTTP/2: a response of trailers alone).
        let code = match status {
            StatusCode::BAD_REQUEST => "13",
            StatusCode::GATEWAY_TIMEOUT => "4",
            _ => "14",
        };
        record.refused(StatusCode::OK, Some(code));
        let mut response = Response::new(ResponseBody::own(Bytes::new(), record));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        headers.insert("grpc-message", HeaderValue::from_static(text));
        return response;
    }
    record.refused(status, None);
    let mut response = Response::new(ResponseBody::own(Bytes::from_static(text.as_bytes()), record));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
