//! What has ended, as users are told of it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stillmesh_core::attrs::Authority;
use stillmesh_core::decide::Target;
use stillmesh_core::observe::{Captured, Facts};

use super::connection::Connection;
use super::decision::Rule;
use super::request::Request;
use super::{Flag, Flags};
use crate::capture::Downstream;
use crate::path::Version;

/// What is kept of a request because somebody asks for it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub request: Captured,
    pub response: Captured,
    /// Path and query.
    pub target: String,
    pub route: Option<Rule>,
}

/// What is known of a request.
pub(super) fn of_request(request: &Request, total: Duration, flags: Flags) -> Facts<'_> {
    let judged = request.judged.as_ref();
    let own = super::decision::denied(judged).and_then(|judged| judged.details());
    let details = own.map(Into::into).or_else(|| Some(details(request, flags).into()));
    Facts {
        request: Some(&request.kept.request),
        response: Some(&request.kept.response),
        method: Some(request.method.as_str()),
        target: Some(&request.kept.target),
        host: Some(&request.host),
        protocol: Some(match request.version {
            Version::One => "HTTP/1.1",
            Version::Two => "HTTP/2",
        }),
        id: request.id.header().to_str().ok(),
        code: request.status.map_or(0, |status| status.as_u16()),
        code_details: details,
        upstream_failure: request.error.as_deref().filter(|_| flags.has(Flag::UpstreamFailure)),
        grpc: request.grpc_status,
        answered_us: request.answered_after.map(micros),
        upstream_ms: request.answered_after.map(|after| micros(after.saturating_sub(request.decided)) / 1000),
        received: request.received.bytes(),
        sent: request.sent,
        attempts: request.upstream.map_or(0, |_| request.retries.saturating_add(1)),
        route: Some(request.kept.route.as_ref().map_or("default".into(), |rule| rule.dotted().into())),
        upstream: request.upstream,
        trace: request.context.map(|context| format!("{:032x}", context.trace).into()),
        ..common(&request.downstream, total, flags, "http")
    }
}

/// What is known of a connection.
pub(super) fn of_connection(connection: &Connection, total: Duration, flags: Flags) -> Facts<'_> {
    let (received, sent) = connection.flow.as_ref().map(|flow| flow.bytes()).unwrap_or_default();
    Facts {
        upstream_failure: connection.error.as_deref().filter(|_| flags.has(Flag::UpstreamFailure)),
        received,
        sent,
        attempts: connection.upstream.map_or(0, |_| connection.retries.saturating_add(1)),
        route: connection.route.as_ref().map(|rule| rule.dotted().into()),
        upstream: connection.upstream,
        ..common(&connection.downstream, total, flags, "tcp")
    }
}

fn common<'a>(downstream: &'a Downstream, total: Duration, flags: Flags, protocol: &str) -> Facts<'a> {
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros);
    let cluster = match &downstream.target {
        Target::Service { service, port, .. } => {
            Some(format!("inbound-vip|{}|{protocol}|{}", port.mapping.service_port, service.key.hostname).into())
        }
        Target::Workload { .. } => None,
    };
    Facts {
        began_us: ended.saturating_sub(micros(total)),
        duration_us: micros(total),
        flags: flags.to_string().into(),
        cluster,
        client: Some(downstream.client.address),
        local: Some(dialled(downstream)),
        peer: Some(downstream.client.identity.to_string().into()),
        hostname: Some(&downstream.waypoint().config.pod_name),
        ..Facts::default()
    }
}

/// What the client dialled: the service's address, where it is known.
fn dialled(downstream: &Downstream) -> SocketAddr {
    match (&downstream.authority, &downstream.target) {
        (Authority::Address(address), _) => *address,
        (_, Target::Service { address: Some(address), .. }) => *address,
        _ => downstream.client.local,
    }
}

/// Why a request was answered so, in Envoy's words.
fn details(request: &Request, flags: Flags) -> &'static str {
    let known = [
        (Flag::NoRoute, "route_not_found"),
        (Flag::NoCluster, "cluster_not_found"),
        (Flag::NoHealthyUpstream, "no_healthy_upstream"),
        (Flag::UpstreamTimeout, "response_timeout"),
        (Flag::UpstreamFailure, "upstream_reset_before_response_started{connection_failure}"),
        (Flag::UpstreamReset, "upstream_reset_before_response_started{remote_reset}"),
        (Flag::Overflow, "overload"),
        (Flag::FaultInjected, "fault_filter_abort"),
        (Flag::StreamIdle, "stream_idle_timeout"),
        (Flag::DownstreamProtocol, "http1.codec_error"),
    ];
    let found = known.into_iter().find(|(flag, _)| flags.has(*flag)).map(|(_, words)| words);
    match (found, request.answered_after) {
        (Some(words), None) => words,
        (_, Some(_)) => "via_upstream",
        (None, None) if flags.has(Flag::DownstreamTermination) => "downstream_remote_disconnect",
        (None, None) => "direct_response",
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
