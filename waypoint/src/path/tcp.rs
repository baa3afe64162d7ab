//! TCP, and TLS that is passed through: routes say to which service (core's [`stillmesh_core::decide::stream`]), an endpoint
//! is picked, another one where it does not take the connection, and bytes are carried until both sides have ended.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_core::attrs::{Opening, StreamAttrs};
use stillmesh_core::decide::stream::Asked;
use stillmesh_core::decide::{self, Target};
use stillmesh_core::model::AppProtocol;
use stillmesh_hbone::Stream;
use stillmesh_hbone::copy::{CopyError, Counters, sockets};
use stillmesh_hbone::server::Incoming;
use tokio::time::{sleep, timeout};

use super::hello::Hello;
use super::pace::unchanged;
use super::sniff::Seen;
use super::{Bytes, Carried, PathError, Rewound, authorize, go_on};
use crate::capture::{Downstream, status};
use crate::clients::Entered;
use crate::record::Flag;
use crate::record::connection::Connection;
use crate::upstream::{self, Opened, Upstream};

/// A port that is TCP: the client's tunnel is opened when the endpoint is reached.
pub async fn carry(downstream: &Arc<Downstream>, incoming: Incoming) {
    let mut record = Connection::new(downstream);
    let opened = match open(downstream, &mut record, Opening::Bytes).await {
        Ok(opened) => opened,
        Err(error) => {
            incoming.refuse(status(&error));
            return record.fail(&error);
        }
    };
    match super::accept(downstream, incoming) {
        Some(stream) => copy(Rewound::new(stream), opened, record).await,
        None => record.gone(),
    }
}

/// A client whose tunnel is open and that speaks no HTTP.
pub async fn after_accept(downstream: &Arc<Downstream>, mut stream: Rewound<Stream>) {
    let mut record = Connection::new(downstream);
    let hello = match super::asked(downstream) {
        Asked::Opening => hello(downstream, &mut stream).await,
        Asked::Nothing | Asked::Port => Hello::Other,
    };
    let opening = match &hello {
        Hello::Tls(name) => Opening::Tls(name.as_deref()),
        Hello::Other | Hello::Unclear => Opening::Bytes,
    };
    match open(downstream, &mut record, opening).await {
        Ok(opened) => copy(stream, opened, record).await,
        Err(error) => fail(stream, record, &error),
    }
}

/// A client that has been silent for as long as a client that speaks first is given. An endpoint is connected to, and
/// whoever speaks first decides: a server's first byte makes it TCP; a client that comes late with HTTP is still served as
/// such, so that being slow is no way round what HTTP requests are subject to.
pub async fn or_http(downstream: &Arc<Downstream>, mut stream: Rewound<Stream>) {
    if authorize::connection(downstream, None).is_err() {
        return or_requests(downstream, stream).await;
    }
    let mut record = Connection::new(downstream);
    let mut opened = match open(downstream, &mut record, Opening::Bytes).await {
        Ok(opened) => opened,
        Err(error) => return fail(stream, record, &error),
    };
    let client_first = tokio::select! {
        refusal = opened.carried.refused() => {
            record.fail(&PathError::Closed(refusal));
            return Box::pin(or_requests(downstream, stream)).await;
        }
        greeted = poll_fn(|cx| opened.endpoint.way.poll_more(cx)) => {
            if let Err(source) = greeted {
                let error = PathError::Broken { source: Arc::new(source) };
                return fail(stream, record, &error);
            }
            false
        }
        began = poll_fn(|cx| stream.poll_more(cx)) => match began {
            Ok(has_begun) => has_begun,
            Err(source) => return record.fail(&PathError::ClientGone { source: Arc::new(source) }),
        },
    };
    if client_first {
        let limit = downstream.waypoint().config.limits.detection;
        let seen = timeout(limit, super::look(&mut stream)).await.unwrap_or(Seen::Other);
        if matches!(seen, Seen::One | Seen::Two) {
            // The endpoint has been sent nothing; requests find their own ways.
            record.forget();
            return Box::pin(go_on(downstream, stream, seen)).await;
        }
    }
    copy(stream, opened, record).await;
}

/// Nobody is connected to for a client that is still silent; requests may pass where a connection as such may not.
async fn or_requests(downstream: &Arc<Downstream>, mut stream: Rewound<Stream>) {
    let limit = downstream.waypoint().config.limits.idle;
    let seen = timeout(limit, super::look(&mut stream)).await.unwrap_or(Seen::Gone);
    Box::pin(go_on(downstream, stream, seen)).await;
}

/// A connection that is open at its endpoint.
struct Open {
    endpoint: Opened,
    carried: Entered<Carried>,
}

/// How a client begins. One whose port says that it speaks TLS has as long as for any head; another one may wait for the
/// server, and has as long as is waited for first bytes.
async fn hello(downstream: &Downstream, stream: &mut Rewound<Stream>) -> Hello {
    let limits = &downstream.waypoint().config.limits;
    let is_tls = matches!(&downstream.target, Target::Service { port, .. } if port.protocol() == AppProtocol::Tls);
    let first = if is_tls { limits.head } else { limits.detection };
    if stream.seen().is_empty() && !matches!(timeout(first, super::read(stream)).await, Ok(Some(()))) {
        return Hello::Other;
    }
    timeout(limits.head, super::greeting(stream)).await.unwrap_or(Hello::Other)
}

async fn open(downstream: &Arc<Downstream>, record: &mut Connection, opening: Opening<'_>) -> Result<Open, PathError> {
    let server_name = match opening {
        Opening::Tls(name) => name,
        Opening::Bytes => None,
    };
    let waypoint = downstream.waypoint();
    // Known first: what changes from now on is not missed.
    let carried = waypoint.clients.carry(Carried::connection(downstream, server_name));
    authorize::connection(downstream, server_name)?;
    let permit = waypoint.requests.clone().try_acquire_owned();
    let limit = waypoint.config.limits.requests;
    record.hold(permit.map_err(|_| PathError::Full { what: "requests and connections", limit })?);
    let streamed = {
        let (target, client_namespace) = (&downstream.target, &*downstream.client.identity.namespace);
        let attrs = StreamAttrs { target, client_namespace, opening, entropy: rand::random() };
        decide::stream::stream(&waypoint.snapshots.load(), &attrs)?
    };
    record.routed(&streamed);
    let upstream = Upstream::new(downstream, streamed.target, None)?;
    let opened = upstream::open(downstream, &upstream, |plan, trace| record.learn(plan, trace)).await;
    if opened.as_ref().is_err_and(PathError::may_repick) {
        record.exhausted();
    }
    Ok(Open { endpoint: opened?, carried })
}

async fn copy(mut stream: Rewound<Stream>, opened: Open, mut record: Connection) {
    let Open { mut endpoint, carried } = opened;
    let bytes = stream.bytes();
    record.opened(bytes.clone());
    let (idle, age) = (endpoint.idle, endpoint.age);
    let too_old = async {
        match age {
            Some(age) => sleep(age).await,
            None => std::future::pending().await,
        }
    };
    // What passed is counted by the stream.
    let counters = Counters::default();
    let ended = tokio::select! {
        ended = sockets(&mut stream, &mut endpoint.way, &counters) => Some(ended),
        () = quiet(&bytes, idle) => None,
        () = too_old => None,
        refusal = carried.refused() => return fail(stream, record, &PathError::Closed(refusal)),
    };
    match ended {
        Some(Ok(())) => record.complete(),
        None => {
            stream.get_mut().reset();
            record.cut(Flag::StreamIdle);
        }
        Some(Err(CopyError { source, .. })) => {
            // Both are broken for both: a peer must not take a cut for an end.
            stream.get_mut().reset();
            record.fail(&PathError::Broken { source: Arc::new(source) });
        }
    }
}

/// Waits until nothing has passed for as long as `limit`, and less than twice that.
pub async fn quiet(bytes: &Bytes, limit: Option<Duration>) {
    match limit {
        Some(limit) => unchanged(limit, || Some((bytes.received(), bytes.sent()))).await,
        None => std::future::pending().await,
    }
}

fn fail(mut stream: Rewound<Stream>, record: Connection, error: &PathError) {
    stream.get_mut().reset();
    record.fail(error);
}
