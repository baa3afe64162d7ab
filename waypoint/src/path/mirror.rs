//! Copies of requests for those whom a route names. Nobody waits for a copy, and what becomes of it changes nothing for the
//! request: it is sent once, when the request has come whole and was kept, and its response is thrown away.
//!
//! Bounds: so many copies at a time ([`crate::config::Limits::mirrors`]), each for at most [`PATIENCE`]; a body beyond what is
//! kept for another try is not copied. What is not sent is counted.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Uri};
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use stillmesh_core::decide::route::{Chance, is_hit};
use stillmesh_core::model::http::Mirror;
use tokio::time::{Instant, timeout};

use super::http::upstream_version;
use super::plan;
use super::replay::Replay;
use super::{PathError, Version, forward};
use crate::capture::Downstream;
use crate::upstream::connections::Wanted;
use crate::upstream::{Upstream, dial};

/// What one copy may take, its request's body and its response included.
const PATIENCE: Duration = Duration::from_secs(15);

/// Of a response that is thrown away, bytes: what is longer costs its connection.
const MOST_READ: usize = 1 << 20;

/// Sends copies of a request, whose head is as its endpoint sees it, to those who are to have one of it. `is_marked`: with
/// `-shadow` at the end of the host, as Istio has it for VirtualServices.
pub fn send(
    downstream: &Arc<Downstream>,
    mirrors: &[Mirror],
    is_marked: bool,
    (head, replay): (&Parts, &Replay),
    client: Version,
    entropy: u64,
) {
    let waypoint = downstream.waypoint();
    for (number, mirror) in (0u32..).zip(mirrors) {
        if !is_hit(mirror.share, Chance::Mirror(number), entropy) {
            continue;
        }
        let snapshot = waypoint.snapshots.load();
        let Some(target) = plan::target(&downstream.target, &snapshot, &mirror.backend) else {
            waypoint.metrics.refuse("mirror_backend");
            continue;
        };
        let Ok(permit) = waypoint.mirrors.clone().try_acquire_owned() else {
            waypoint.metrics.refuse("mirrors");
            continue;
        };
        let mut head = head.clone();
        head.headers.remove(header::EXPECT);
        if is_marked {
            mark(&mut head);
        }
        let upstream = match Upstream::new(downstream, target, Some(&head)) {
            Ok(upstream) => upstream,
            Err(_) => {
                waypoint.metrics.refuse("mirror_backend");
                continue;
            }
        };
        let version = upstream_version(&upstream, client, None);
        forward::strip(&mut head.headers);
        if forward::target(&mut head, version).is_err() {
            continue;
        }
        let (downstream, copy) = (downstream.clone(), replay.copy());
        waypoint.background.spawn("mirror", async move {
            let _permit = permit;
            let sent = timeout(PATIENCE, async {
                // What was too long, or never came whole, is not sent.
                let Ok(body) = copy.await else { return downstream.waypoint().metrics.refuse("mirror_body") };
                match once(&downstream, &upstream, head, &Replay::of(body), version).await {
                    Ok(()) => drop(downstream.waypoint().metrics.mirrored.inc()),
                    Err(error) => {
                        downstream.waypoint().metrics.refuse("mirror_upstream");
                        tracing::debug!(error = %error.text(), "a copy was not answered");
                    }
                }
            });
            if sent.await.is_err() {
                downstream.waypoint().metrics.refuse("mirror_slow");
            }
        });
    }
}

async fn once(
    downstream: &Downstream,
    upstream: &Upstream,
    head: Parts,
    body: &Replay,
    version: Version,
) -> Result<(), PathError> {
    let waypoint = downstream.waypoint();
    let _request = upstream.request()?;
    let plan = upstream.choose(downstream, &[])?;
    let deadline = Instant::now() + upstream.patience(downstream);
    let _flight = upstream.flight(&plan);
    let wanted = Wanted { plan: &plan, version, fresh: false, trace: dial::trace(&plan), deadline };
    let lease = waypoint.connections.lease(downstream, upstream, wanted).await?;
    let request = Request::from_parts(head, body.again(None));
    let sent = lease.send(request).await;
    let (response, _in_use) = sent.map_err(|error| PathError::Upstream { source: Arc::new(error.into_error()) })?;
    throw_away(response.into_body()).await;
    Ok(())
}

/// Reads a body to its end, so that its connection serves further requests; not beyond the bound.
async fn throw_away(mut body: Incoming) {
    let mut left = MOST_READ;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Appends `-shadow` to the host, before its port.
fn mark(head: &mut Parts) {
    let marked = |authority: &str| {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.is_empty() => {
                (host, Some(port))
            }
            _ => (authority, None),
        };
        port.map_or_else(|| format!("{host}-shadow"), |port| format!("{host}-shadow:{port}"))
    };
    if let Some(authority) = head.uri.authority() {
        let Ok(authority) = Authority::try_from(marked(authority.as_str())) else { return };
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.authority = Some(authority);
        head.uri = Uri::from_parts(parts).unwrap_or_default();
    } else {
        mark_host(&mut head.headers, marked);
    }
}

fn mark_host(headers: &mut HeaderMap, marked: impl FnOnce(&str) -> String) {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if let Some(host) = host.map(marked).and_then(|host| HeaderValue::try_from(host).ok()) {
        headers.insert(header::HOST, host);
    }
}
