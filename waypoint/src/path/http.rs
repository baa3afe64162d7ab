//! HTTP: each request is planned, sent to an endpoint, to another one where the first has not taken it, and answered.
//! Bodies stream both ways; neither side is read faster than the other takes.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use stillmesh_core::decide::Target;
use stillmesh_core::decide::retry::Outcome;
use stillmesh_core::model::AppProtocol;
use stillmesh_core::model::destination::EndpointVersion;
use stillmesh_hbone::Stream;
use stillmesh_runtime::drain::Watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::authorize::Admitted;
use super::cors::Crossed;
use super::exchange::{Answered, Exchange};
use super::keep_alive::{KeepAlive, Requests};
use super::pace::Pace;
use super::plan::{self, Action, Plan, Taken};
use super::replay::Replay;
use super::response::Overdue;
use super::streams::Streams;
use super::upgrade::Upgrading;
use super::{Carried, PathError, RequestId, ResponseBody, Rewound, Version, authorize, fault, forward, mirror, reply};
use crate::capture::Downstream;
use crate::config::Limits;
use crate::record::request::Request as Record;
use crate::upstream::Upstream;
use crate::upstream::connections::{CONNECTION_WINDOW, InUse, SEND_BUFFER, STREAM_WINDOW};

/// Serves one client's HTTP/1.1 connection to its end.
pub async fn one(downstream: &Arc<Downstream>, stream: Rewound<Stream>) {
    let pace = Pace::new(stream.bytes());
    let limits = &downstream.waypoint().config.limits;
    let connection = KeepAlive::new(stream, requests(downstream, Version::One, &pace), pace.clone(), limits);
    let leave = async {
        tokio::select! {
            () = quiet(&downstream.waypoint().watch, limits.quiet) => {}
            () = last_answer(&pace, limits.client_age(), &downstream.client.leave) => {}
        }
    };
    let graceful = |one: Pin<&mut KeepAlive<Stream>>| one.get_mut().graceful_shutdown();
    told(run(pin!(connection), graceful, pin!(leave), &pace, limits).await);
}

/// Serves one client's HTTP/2 connection to its end.
pub async fn two(downstream: &Arc<Downstream>, stream: Rewound<Stream>) {
    let pace = Pace::new(stream.bytes());
    let waypoint = downstream.waypoint();
    let limits = &waypoint.config.limits;
    let streams = Streams { tasks: waypoint.tasks.clone(), idle: limits.stream_idle };
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(limits.concurrent)
        .max_pending_accept_reset_streams(MOST_RESET)
        .max_local_error_reset_streams(MOST_ERRORS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(stream), requests(downstream, Version::Two, &pace));
    let leave = async {
        tokio::select! {
            _ = waypoint.watch.signaled() => {}
            () = pace.idle(limits.idle) => {}
            () = sleep(limits.client_age()) => {}
            () = downstream.client.leave.cancelled() => {}
        }
    };
    told(run(pin!(connection), |two| two.graceful_shutdown(), pin!(leave), &pace, limits).await);
}

fn requests(downstream: &Arc<Downstream>, version: Version, pace: &Arc<Pace>) -> Requests {
    let (downstream, pace) = (downstream.clone(), pace.clone());
    Requests::new(move |request| answer(downstream.clone(), request, version, pace.clone()))
}

fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's HTTP connection ended early");
    }
}

/// Largest frame taken from a client, bytes.
const FRAME: u32 = 16 << 10;

/// Streams that a client may have opened and reset before anybody looked at them; more end its connection («rapid reset»,
/// CVE-2023-44487).
const MOST_RESET: usize = 20;

/// Streams that the server may have reset because the client broke the protocol; more end its connection (CVE-2025-8671).
const MOST_ERRORS: usize = 100;

/// How long a connection that was told to end may go on without requests.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Runs a connection to its end; after `leave` it takes no new requests. One on which nothing passes any more is cut.
async fn run<C>(
    mut connection: Pin<&mut C>,
    graceful: impl Fn(Pin<&mut C>),
    mut leave: Pin<&mut impl Future<Output = ()>>,
    pace: &Pace,
    limits: &Limits,
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut is_leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = leave.as_mut(), if !is_leaving => {
                is_leaving = true;
                graceful(connection.as_mut());
            }
            () = pace.stalled(limits.stream_idle) => {
                pace.cut();
                return Ok(());
            }
            () = pace.idle(LAST_WORDS), if is_leaving => return Ok(()),
        }
    }
}

/// An HTTP/1.1 connection that is old, or whose client had better go to another replica, ends with its next answer: closed at
/// once, it would break the request that may be on its way. Never ends.
async fn last_answer(pace: &Pace, age: Duration, moves: &CancellationToken) {
    tokio::select! {
        () = sleep(age) => {}
        () = moves.cancelled() => {}
    }
    pace.leave();
    std::future::pending().await
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
    pace: Arc<Pace>,
) -> Response<ResponseBody> {
    let under_way = pace.begin();
    let asked = match version {
        Version::One => forward::upgrade(request.headers()),
        Version::Two => forward::extended_connect(&mut request, rand::random()),
    };
    let upgrades = asked.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let id = RequestId::of(&mut head.headers, rand::random());
    let waypoint = downstream.waypoint().clone();
    let is_grpc = reply::is_grpc(&head.headers);
    let replay = Replay::new(body, waypoint.config.limits.replay_bytes, is_grpc);
    let is_head = head.method == Method::HEAD;
    let mut record = Record::new(downstream.clone(), &mut head, version, id, replay.received(), under_way);
    let entropy = rand::random();
    let admitted = match forward::check(&head, version) {
        Ok(()) => authorize::admit(&downstream, &mut head, &mut record).await,
        Err(error) => Err(error),
    };
    let mut client = None;
    let planned = admitted.and_then(|admitted| match admitted {
        Admitted::Answered(answer) => Ok(Plan::answered(answer)),
        Admitted::Passes(token) => {
            client = upgrades.map(|connection| {
                let carried = Carried::upgrade(&downstream, &head, token.as_ref());
                Upgrading { connection, version, carried }
            });
            let client_namespace = &*downstream.client.identity.namespace;
            let asked = plan::Asked { version, client_namespace, token: token.as_ref(), entropy };
            plan::plan(&downstream.target, &waypoint.snapshots.load(), &mut head, asked)
        }
    });
    let permit = waypoint.requests.clone().try_acquire_owned();
    let limit = waypoint.config.limits.requests;
    let permit = permit.map_err(|_| PathError::Full { what: "requests and connections", limit });
    let mut response = match planned.and_then(|planned| Ok((planned, permit?))) {
        Err(error) => reply::refuse(&error, is_grpc, record),
        Ok((Plan { taken, action }, permit)) => {
            record.hold(permit);
            record.planned(&taken);
            let fault = match taken.rule().and_then(|rule| rule.fault.as_ref()) {
                Some(rule) => fault::inject(rule, entropy, &mut record).await,
                None => None,
            };
            let crossed = taken.rule().and_then(|rule| rule.cors.as_ref()).map(|rule| Crossed::judge(rule, &head));
            let question = crossed.as_ref().and_then(Crossed::answer);
            let mut response = match (fault.or(question), action) {
                (Some(answer), _) | (None, Action::Answer(answer)) => reply::own(answer, is_grpc, record),
                (None, Action::Forward(target)) => {
                    let asked = Asked { head, replay, version, is_grpc, upgrade: asked, client, entropy };
                    forward(&downstream, asked, &taken, &target, record).await
                }
            };
            if let Some(crossed) = &crossed {
                crossed.apply(response.headers_mut());
            }
            for edit in taken.response_edits() {
                plan::edit(response.headers_mut(), edit);
            }
            response
        }
    };
    if is_head && let Some(length) = response.body_mut().silence() {
        // HTTP/2 would send the words all the same, and break the connection by it.
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if version == Version::One
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
        && (pace.is_leaving() || waypoint.watch.started().is_some())
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A client's request.
struct Asked {
    head: Parts,
    replay: Replay,
    version: Version,
    is_grpc: bool,
    /// What the connection is to become.
    upgrade: Option<HeaderValue>,
    /// Its connection, if it becomes something else.
    client: Option<Upgrading>,
    /// Of what is left to chance.
    entropy: u64,
}

/// Sends a request on and hands its response back.
async fn forward(
    downstream: &Arc<Downstream>,
    asked: Asked,
    taken: &Taken,
    target: &Target,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let Asked { mut head, replay, version, is_grpc, upgrade, client, entropy } = asked;
    let rule = taken.forward();
    let client_version = version;
    let mut upstream = match Upstream::new(downstream, target.clone(), Some(&head)) {
        Ok(upstream) => upstream,
        Err(error) => return reply::refuse(&error, is_grpc, record),
    };
    let version = upstream_version(&upstream, version, upgrade.as_ref());
    // HTTP/2 has CONNECT for it where the client speaks HTTP/2 too (RFC 8441); else it may be left out (RFC 9110 section 7.8).
    let connect = upgrade.clone().filter(|_| client_version == Version::Two && version == Version::Two);
    let upgrade = upgrade.filter(|_| version == Version::One);
    if let Err(error) = prepare(downstream, &mut head, version, upgrade.as_ref()) {
        return reply::refuse(&error, is_grpc, record);
    }
    if let Some(protocol) = &connect {
        forward::connect(&mut head, protocol);
    }
    let upgrades = upgrade.is_some() || connect.is_some();
    if let Some(rule) = rule.filter(|rule| !upgrades && !rule.mirrors.is_empty()) {
        mirror::send(downstream, &rule.mirrors, taken.is_virtual_service(), (&head, &replay), client_version, entropy);
    }
    let patience = rule.and_then(|rule| rule.timeout);
    let deadline = is_grpc.then(|| forward::grpc_timeout(&head.headers)).flatten();
    let mut overdue = overdue(patience, deadline, &replay);
    match upstream.request() {
        Ok(place) => record.active(place),
        Err(error) => return reply::refuse(&error, is_grpc, record),
    }
    let retry = rule.and_then(|rule| rule.retry.as_ref());
    let exchange = Exchange { downstream, head: &head, replay: &replay, version, upstream: &upstream, rule: retry };
    let sent = match &mut overdue {
        None => exchange.run(&mut record).await,
        Some(overdue) => tokio::select! {
            biased;
            sent = exchange.run(&mut record) => sent,
            limit = overdue => Err(PathError::TimedOut { limit }),
        },
    };
    if let (Err(PathError::TimedOut { .. }), Some(endpoint), Some(_)) = (&sent, record.endpoint(), patience) {
        upstream.note(downstream, &endpoint.uid, Outcome::TimedOut);
    }
    let cookie = upstream.cookie.take();
    match sent {
        Ok((response, in_use)) => {
            let body = |body, in_use, record| ResponseBody::of(body, in_use, record, overdue, is_grpc);
            let client = client.filter(|_| upgrades);
            let mut response = deliver(downstream, (response, in_use), body, client, record);
            if let Some(cookie) = cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            response
        }
        Err(error) => reply::refuse(&error, is_grpc, record),
    }
}

/// The endpoint's HTTP version: what a DestinationRule says, its port's where that is HTTP/2, else the client's. What turns its connection into something
/// else does so in HTTP/1.1.
pub fn upstream_version(upstream: &Upstream, client: Version, upgrade: Option<&HeaderValue>) -> Version {
    match (upstream.version(), upstream.target()) {
        (EndpointVersion::OfClient, _) => client,
        (EndpointVersion::Two, _) if upgrade.is_none() => Version::Two,
        (_, Target::Service { port, .. }) if matches!(port.protocol(), AppProtocol::Http2 | AppProtocol::Grpc) => {
            Version::Two
        }
        _ if upgrade.is_some() => Version::One,
        _ => client,
    }
}

/// What ends a request that takes too long: its route's timeout, from when the client has sent all of it, and the deadline
/// that a gRPC client has set itself, from its beginning.
fn overdue(patience: Option<Duration>, deadline: Option<Duration>, replay: &Replay) -> Option<Overdue> {
    if patience.is_none() && deadline.is_none() {
        return None;
    }
    let whole = patience.map(|_| replay.whole());
    Some(Box::pin(async move {
        let by_route = async {
            match (&whole, patience) {
                (Some(whole), Some(patience)) => {
                    whole.cancelled().await;
                    sleep(patience).await;
                    patience
                }
                _ => std::future::pending().await,
            }
        };
        let by_client = async {
            match deadline {
                Some(deadline) => {
                    sleep(deadline).await;
                    deadline
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            patience = by_route => patience,
            deadline = by_client => deadline,
        }
    }))
}

/// Makes a client's head what the endpoint is to see.
fn prepare(
    downstream: &Downstream,
    head: &mut Parts,
    version: Version,
    asked: Option<&HeaderValue>,
) -> Result<(), PathError> {
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
    let is_gateway = authorize::is_believed(downstream, &downstream.waypoint().snapshots.load());
    forward::introduce(&mut head.headers, &downstream.client.introduction, is_gateway);
    Ok(())
}

/// Hands an endpoint's answer to the client.
fn deliver(
    downstream: &Arc<Downstream>,
    (response, in_use): Answered,
    make: impl FnOnce(Incoming, Option<InUse>, Box<Record>) -> ResponseBody,
    client: Option<Upgrading>,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    record.answered(response.status(), response.headers());
    let is_connected = response.version() == http::Version::HTTP_2 && response.status().is_success();
    match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS || is_connected => {
            return client.switch(downstream, response, in_use, record);
        }
        None if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let error = PathError::BadRequest { what: "the endpoint switched protocols unasked" };
            return reply::refuse(&error, false, record);
        }
        Some(client) if client.version == Version::Two && response.status().is_success() => {
            // To a CONNECT this would say that it is open.
            return reply::refuse(&PathError::NotSwitched { status: response.status() }, false, record);
        }
        _ => {}
    }
    let (mut head, body) = response.into_parts();
    forward::strip(&mut head.headers);
    // The client's connection has its own.
    head.version = http::Version::default();
    Response::from_parts(head, make(body, in_use, record))
}
