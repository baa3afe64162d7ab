//! One request: counted and logged exactly once, when its response has ended or nobody reads it any more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use stillmesh_core::decide::OutboundPlan;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Service, Workload};
use stillmesh_otlp::Context;
use stillmesh_proxy::labels::Word;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::decision::{self, Rule, Why};
use super::facts::{self, Kept};
use super::grpc::Messages;
use super::judged::Judged;
use super::series::{self, Counted, Kind};
use super::{Ends, Flag, Flags, RequestLabels};
use crate::capture::Downstream;
use crate::path::plan::Taken;
use crate::path::{PathError, Received, RequestId, UnderWay, Version};
use crate::told::Telling;
use crate::upstream::clusters::{Flight, Place};

/// What is known of a request.
#[derive(Debug)]
pub struct Request {
    pub(super) downstream: Arc<Downstream>,
    pub(super) began: Instant,
    pub(super) id: RequestId,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) version: Version,
    pub(super) is_grpc: bool,
    pub(super) received: Arc<Received>,
    pub(super) sent: u64,
    /// Of the response, if it is gRPC.
    pub(super) messages: Messages,
    pub(super) status: Option<StatusCode>,
    pub(super) grpc_status: Option<u8>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) endpoint: Option<Arc<Workload>>,
    /// Until it has ended otherwise, its client has broken off.
    pub(super) end: Option<Flag>,
    pub(super) flags: Flags,
    pub(super) error: Option<String>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) active: Option<Place>,
    pub(super) held: Option<(Option<Flight>, Option<Place>)>,
    pub(super) under_way: UnderWay,
    pub(super) judged: Option<Judged>,
    pub(super) why: Option<Why>,
    pub(super) decided: Duration,
    pub(super) answered_after: Option<Duration>,
    pub(super) retries: u16,
    /// The trace of the CONNECT that carried it on; 0: none.
    pub(super) carried: u128,
    pub(super) upstream: Option<SocketAddr>,
    /// What users ask to be told, and what is kept for it.
    pub(super) telling: Arc<Telling>,
    pub(super) kept: Kept,
    /// Its span, where requests are traced.
    pub(super) context: Option<Context>,
}

/// Longest text of a client's that is logged, bytes.
const LONGEST: usize = 1024;

impl Request {
    /// Of a request that begins. `received` counts its body. Where requests are traced its headers go on with its span. In a box: it
    /// goes through many hands.
    pub fn new(
        downstream: Arc<Downstream>,
        head: &mut Parts,
        version: Version,
        id: RequestId,
        received: Arc<Received>,
        under_way: UnderWay,
    ) -> Box<Self> {
        let short = |text: &str| text.get(..text.floor_char_boundary(LONGEST)).unwrap_or_default().to_owned();
        if let Some(progress) = under_way.progress() {
            progress.receives(&received);
        }
        let waypoint = downstream.waypoint();
        let service = downstream.target.service().map(|service| &service.key);
        let telling = waypoint.tellings.of(waypoint, &downstream.own, service);
        let context = telling.begin(&mut head.headers);
        let mut kept = Kept::default();
        if telling.is_asked(context.as_ref()) {
            kept.request = telling.request(&head.headers);
            let target = head.uri.path_and_query().map_or(head.uri.path(), |target| target.as_str());
            kept.target = short(&telling.redaction().target(target));
        }
        let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = head.uri.authority().map(|authority| authority.as_str()).or(header(header::HOST));
        Box::new(Self {
            began: Instant::now(),
            id,
            method: head.method.clone(),
            // Not the query: secrets are passed in it.
            path: short(head.uri.path()),
            host: short(host.unwrap_or_default()),
            version,
            is_grpc: header(header::CONTENT_TYPE).is_some_and(|content| content.starts_with("application/grpc")),
            received,
            sent: 0,
            messages: Messages::default(),
            status: None,
            grpc_status: None,
            service: downstream.target.service().cloned(),
            endpoint: None,
            end: Some(Flag::DownstreamTermination),
            flags: Flags::default(),
            error: None,
            permit: None,
            active: None,
            held: None,
            under_way,
            judged: None,
            why: None,
            decided: Duration::ZERO,
            answered_after: None,
            retries: 0,
            carried: 0,
            upstream: None,
            telling,
            kept,
            context,
            downstream,
        })
    }

    /// Its place among the requests that may be carried; given back with the record.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Its place among the requests of its service, likewise.
    pub fn active(&mut self, active: Place) {
        self.active = Some(active);
    }

    /// What is under way for it at its endpoint, likewise.
    pub fn held(&mut self, held: (Option<Flight>, Option<Place>)) {
        self.held = Some(held);
    }

    /// The endpoint that it was sent to last.
    pub fn endpoint(&self) -> Option<&Arc<Workload>> {
        self.endpoint.as_ref()
    }

    /// Which rule takes it.
    pub fn planned(&mut self, taken: &Taken) {
        self.decided = self.began.elapsed();
        if self.downstream.waypoint().records.is_on() {
            self.why = taken.by().map(Rule::new).map(Why::Route);
        }
        if self.telling.is_asked(self.context.as_ref()) {
            self.kept.route = taken.by().map(Rule::new);
        }
    }

    /// It is tried anew.
    pub fn retried(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    /// By which CONNECT it was carried on; 0: by none.
    pub fn carried(&mut self, trace: u128) {
        if trace != 0 {
            self.carried = trace;
        }
    }

    /// What was decided about it.
    pub fn judged(&mut self, judged: Judged) {
        self.judged = Some(judged);
    }

    /// It has met something beside how it ends.
    pub fn met(&mut self, flag: Flag) {
        self.flags = self.flags.with(flag);
    }

    /// Where it is sent.
    pub fn learn(&mut self, plan: &OutboundPlan) {
        self.endpoint.clone_from(&plan.upstream);
        self.upstream = plan.dial.address();
        if plan.service.is_some() {
            self.service.clone_from(&plan.service);
        }
    }

    /// The endpoint has answered.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.answered_after = Some(self.began.elapsed());
        if self.telling.is_asked(self.context.as_ref()) {
            self.kept.response = self.telling.response(headers);
        }
        // A response of trailers alone has them among its headers.
        self.trailers(headers);
    }

    /// The response's trailers.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if !self.is_grpc {
            return;
        }
        let code = trailers.get("grpc-status").and_then(|value| value.to_str().ok());
        // Codes are small numbers; anything else would be a label for everybody to invent.
        self.grpc_status = code.and_then(|code| code.parse().ok()).filter(|code| *code <= 16).or(self.grpc_status);
    }

    /// A piece of the endpoint's response went to the client.
    pub fn passed(&mut self, piece: &[u8]) {
        self.sent(piece.len());
        if self.is_grpc {
            self.messages.see(piece);
        }
    }

    /// Bytes of the response's body went to the client.
    pub fn sent(&mut self, bytes: usize) {
        if let Some(progress) = self.under_way.progress() {
            progress.taken();
        }
        self.sent = self.sent.saturating_add(bytes as u64);
    }

    /// The waypoint answers itself.
    pub fn refused(&mut self, status: StatusCode, grpc_status: Option<&str>) {
        self.status = Some(status);
        self.grpc_status = grpc_status.and_then(|code| code.parse().ok());
    }

    /// It is answered here and goes nowhere, for this.
    pub fn stopped(&mut self, reason: Reason) {
        self.why = Some(Why::Reason(reason));
    }

    /// Why it failed.
    pub fn failed(&mut self, error: &PathError) {
        self.end = Some(error.flag());
        self.error = Some(error.text());
        self.why = Some(Why::of_error(error));
    }

    /// It was ended, for this.
    pub fn cut(&mut self, flag: Flag) {
        self.end = Some(flag);
    }

    /// The endpoint broke off.
    pub fn broke_off(&mut self, error: &hyper::Error) {
        self.end = Some(Flag::UpstreamTermination);
        self.error = Some(error.to_string());
    }

    /// It has ended as its ends wanted, or as [`Request::failed`] said.
    pub fn complete(&mut self) {
        if self.error.is_none() {
            self.end = None;
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let duration = self.began.elapsed();
        let end = match self.end {
            Some(Flag::DownstreamTermination) if self.under_way.is_cut() => Some(Flag::StreamIdle),
            end => end,
        };
        let flags = self.flags.and(end);
        let received = self.received.bytes();
        let status = self.status.map_or(0, |status| status.as_u16());
        let kind = Kind {
            service: self.service.clone(),
            endpoint: self.endpoint.clone(),
            is_grpc: self.is_grpc,
            status,
            grpc_status: self.grpc_status,
            flags,
        };
        let labels = |kind: &Kind| RequestLabels {
            ends: Ends::new(&self.downstream, kind.service.as_deref(), kind.endpoint.as_deref()),
            request_protocol: Word(if kind.is_grpc { "grpc" } else { "http" }),
            response_code: kind.status,
            grpc_response_status: kind.grpc_status.map(|code| code.to_string()).unwrap_or_default(),
            response_flags: kind.flags,
        };
        let messages = (self.received.messages(), self.messages.count());
        let counted = Counted { milliseconds: duration.as_secs_f64() * 1000.0, received, sent: self.sent, messages };
        let metrics = &self.downstream.waypoint().metrics;
        let facts = self.telling.is_asked(self.context.as_ref()).then(|| facts::of_request(self, duration, flags));
        if self.telling.meters() {
            let change = |metric| self.telling.tags(metric, facts.as_ref());
            series::count_changed(metrics, &labels(&kind), &change, counted);
        } else {
            self.downstream.series.count(metrics, kind, labels, counted);
        }
        match (self.telling.logs(), &facts) {
            (true, Some(facts)) => self.telling.log(facts, self.context.as_ref()),
            (true, None) => {}
            (false, _) => self.write(duration, flags),
        }
        if let (Some(context), Some(facts)) = (&self.context, &facts) {
            self.telling.end(context, facts);
        }
        drop(facts);
        decision::keep_request(self, duration, flags);
    }
}

impl Request {
    /// Our own line.
    fn write(&self, duration: Duration, flags: Flags) {
        let source = &self.downstream;
        let judged = self.judged.as_ref();
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            src.addr = %source.origin.address(),
            src.workload = source.party.workload.as_deref(),
            src.namespace = source.party.namespace.as_deref(),
            src.identity = %source.origin.identity(),
            dst.hbone_addr = %source.origin.authority(),
            dst.service = self.service.as_ref().map(|service| &*service.key.hostname),
            dst.workload = self.endpoint.as_ref().map(|workload| &*workload.name),
            dst.namespace = self.endpoint.as_ref().map(|workload| &*workload.namespace),
            method = %self.method,
            host = self.host.as_str(),
            path = self.path.as_str(),
            protocol = match self.version { Version::One => "HTTP/1.1", Version::Two => "HTTP/2" },
            status = self.status.map_or(0, |status| status.as_u16()),
            grpc.status = self.grpc_status,
            %flags,
            bytes_recv = self.received.bytes(),
            bytes_sent = self.sent,
            duration = format!("{}ms", duration.as_millis()).as_str(),
            details = judged.and_then(Judged::details).as_deref(),
            decision.id = judged.and_then(|judged| judged.id.as_deref()),
            decision.reason = judged.and_then(Judged::why).as_deref(),
            decision.misses = judged.and_then(Judged::misses).as_deref(),
            decision.dry_run = judged.and_then(Judged::dry_run).as_deref(),
            decision.audited = judged.and_then(Judged::audited).as_deref(),
            error = self.error.as_deref(),
            request.id = self.id.header().to_str().unwrap_or_default(),
            "request complete"
        );
    }
}
