//! One span for each connection and hop, where the operator asks for it: of what a record of a decision says, within the trace
//! of the CONNECT. Applications' traces are others; waypoints tell of those.

use std::sync::Arc;
use std::time::Duration;

use stillmesh_core::explain::Reason;
use stillmesh_hbone::headers::Traceparent;
use stillmesh_otlp::message::{CLIENT, ERROR, InstrumentationScope, KeyValue, Resource, SERVER, Span, Status};
use stillmesh_otlp::{Batches, Exporter, Failure, Opening, To, Told, queue};
use stillmesh_proxy::decisions::now_us;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::decision::Story;
use super::{Direction, Facts, Ledger};
use crate::config::{Config, HopSpans};
use crate::node::Node;

/// How long one export may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Flag of what is reported (W3C trace context, «sampled»).
const SAMPLED: u8 = 1;

/// What a connection's CONNECT says of its trace: sampled where this end tells of it.
pub fn traceparent(ledger: &Ledger, trace: u128) -> Traceparent {
    match ledger.hops().is_some_and(|hops| hops.tells(trace)) {
        true => Traceparent { flags: SAMPLED, ..Traceparent::new(trace, of_client(trace)) },
        false => Traceparent::new(trace, rand::random()),
    }
}

/// The client's span, if its end tells of it; else 0.
pub fn parent(trace: &Traceparent) -> u64 {
    if trace.flags & SAMPLED == SAMPLED { trace.span } else { 0 }
}

/// The client's span in a trace: made of the trace, so that each try to open a tunnel has the same.
fn of_client(trace: u128) -> u64 {
    let folded = (trace >> 64) ^ (trace & u128::from(u64::MAX));
    u64::try_from(folded).unwrap_or_default().max(1)
}

/// Who is told spans.
#[derive(Debug)]
pub struct Hops {
    exporter: Exporter,
    percent: u8,
    /// The collector's name or address.
    collector: String,
}

impl Hops {
    /// Has spans told of what ends in a ledger from now on: [`run`] sends them.
    pub fn begin(ledger: &Ledger, told: &HopSpans) -> Batches {
        let metrics = ledger.metrics.clone();
        let (exporter, batches) = queue(move || {
            metrics.spans_lost.inc();
        });
        ledger.tell_hops(Self { exporter, percent: told.percent, collector: told.host.clone() });
        batches
    }

    /// Whether it is told of a connection: by its trace, so that both ends choose the same ones.
    fn tells(&self, trace: u128) -> bool {
        trace != 0 && trace % 100 < u128::from(self.percent)
    }

    /// Tells of a connection that has ended. Never waits. Of those to the collector it does not tell: each span would bring
    /// about another one.
    pub(super) fn tell(&self, facts: &Facts, story: &Story<'_>) {
        let trace = facts.id.0;
        if self.tells(trace) && !is_for(&self.collector, facts) {
            self.exporter.tell(Told::Span(Box::new(span(trace, facts, story))));
        }
    }

    /// Waits until all that was told before has been sent or given up, at most so long.
    pub async fn flush(&self, limit: Duration) {
        if timeout(limit, self.exporter.flush()).await.is_err() {
            tracing::warn!(?limit, "the collector has not taken all spans: the rest is dropped");
        }
    }
}

/// Sends spans until it is cut.
pub async fn run(batches: Batches, node: Arc<Node>, told: HopSpans) {
    let to = To { authority: To::authority(&told.host, told.port), path: None, timeout: LIMIT };
    let scope = InstrumentationScope { name: "ztunnel".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let open = || -> Opening<'_, TcpStream> {
        Box::pin(async {
            let connected = TcpStream::connect((told.host.as_str(), told.port)).await;
            connected.map_err(|error| Failure::passing(format!("{}: {error}", to.authority)))
        })
    };
    let lost = |count| {
        node.metrics.spans_lost.inc_by(count);
    };
    stillmesh_otlp::run(batches, &to, scope, || resource(&node.config), open, lost).await;
}

fn resource(config: &Config) -> Resource {
    let Config { cluster_id, node, pod_namespace, pod_name, .. } = config;
    Resource::of_pod("ztunnel", cluster_id, node, pod_namespace, pod_name)
}

/// Whether a connection is for a collector, by its address or its service's name, which may be short of the cluster's (`otel.obs.svc`).
fn is_for(collector: &str, facts: &Facts) -> bool {
    let rest = facts.service.as_ref().and_then(|service| service.key.hostname.strip_prefix(collector));
    let is_named = rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && collector.contains('.')));
    is_named || facts.original.ip().to_string() == collector
}

fn span(trace: u128, facts: &Facts, story: &Story<'_>) -> Span {
    let (span, parent, kind) = match facts.direction {
        Direction::Outbound => (of_client(trace), 0, CLIENT),
        Direction::Inbound => (rand::random::<u64>().max(1), facts.parent, SERVER),
    };
    let end = now_us().saturating_mul(1000);
    let lasted = u64::try_from(story.total.as_nanos()).unwrap_or(u64::MAX);
    let name = match &facts.service {
        Some(service) => format!("{} {}", facts.direction.as_str(), service.key.hostname),
        None => format!("{} {}", facts.direction.as_str(), facts.original),
    };
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: span.to_be_bytes().to_vec(),
        parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
        name,
        kind,
        start_time_unix_nano: end.saturating_sub(lasted),
        end_time_unix_nano: end,
        attributes: attributes(facts, story),
        status: story.error.map(|error| Status { message: error.to_owned(), code: ERROR }),
        flags: u32::from(SAMPLED),
        ..Span::default()
    }
}

/// As OpenTelemetry's conventions name them, and as the access log does (contract 9.4).
fn attributes(facts: &Facts, story: &Story<'_>) -> Vec<KeyValue> {
    let (tls, proved) = (facts.mutual_tls(), facts.are_ends_proved());
    let source_identity = facts.source_identity().filter(|_| proved).map(|identity| identity.to_string());
    let destination = facts.destination.as_ref();
    let destination_identity = destination.filter(|_| proved).map(|workload| workload.identity().to_string());
    let texts = [
        ("src.workload", facts.source.as_ref().map(|workload| workload.name.to_string())),
        ("src.namespace", facts.source_party().namespace.as_deref().map(str::to_owned)),
        ("src.identity", source_identity),
        ("dst.addr", Some(facts.destination_addr.to_string())),
        ("dst.hbone_addr", facts.authority.as_ref().map(ToString::to_string)),
        ("dst.service", facts.service.as_ref().map(|service| service.key.hostname.to_string())),
        ("dst.workload", destination.map(|workload| workload.name.to_string())),
        ("dst.namespace", destination.map(|workload| workload.namespace.to_string())),
        ("dst.identity", destination_identity),
        ("direction", Some(facts.direction.as_str().to_owned())),
        ("response_flags", Some(story.flag.as_str().to_owned())),
        ("connection_security_policy", Some(if tls { "mutual_tls" } else { "unknown" }.to_owned())),
        ("reason", story.failure.map(|(code, _)| code).or(story.because.map(Reason::code)).map(str::to_owned)),
        ("network.transport", Some("tcp".to_owned())),
        ("client.address", Some(facts.source_addr.ip().to_string())),
        ("server.address", Some(facts.original.ip().to_string())),
    ];
    let numbers = [
        ("client.port", u64::from(facts.source_addr.port())),
        ("server.port", u64::from(facts.original.port())),
        ("received_bytes", story.bytes.0),
        ("sent_bytes", story.bytes.1),
        ("retries", u64::from(story.retries)),
    ];
    let texts = texts.into_iter().filter_map(|(key, text)| Some(KeyValue::text(key, text?)));
    texts.chain(numbers.map(|(key, number)| KeyValue::number(key, number))).collect()
}
