//! One TCP connection: counted and logged exactly once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use stillmesh_core::decide::OutboundPlan;
use stillmesh_core::decide::stream::Streamed;
use stillmesh_core::model::telemetry::MetricName;
use stillmesh_core::model::{Service, Workload};
use stillmesh_proxy::labels::Word;
use stillmesh_proxy::series::Series;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::decision::{self, Rule, Why};
use super::facts;
use super::flow::Flow;
use super::{Edited, Ends, Flag, Flags, TcpLabels};
use crate::capture::Downstream;
use crate::path::{Bytes, PathError};
use crate::told::Telling;

/// What is known of a connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) downstream: Arc<Downstream>,
    pub(super) began: Instant,
    pub(super) service: Option<Arc<Service>>,
    pub(super) endpoint: Option<Arc<Workload>>,
    pub(super) route: Option<Rule>,
    pub(super) flow: Option<Arc<Flow>>,
    /// Until it has ended otherwise, it was cut.
    pub(super) end: Option<Flag>,
    pub(super) flags: Flags,
    pub(super) error: Option<String>,
    pub(super) is_forgotten: bool,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) why: Option<Why>,
    pub(super) opened_after: Option<Duration>,
    pub(super) retries: u16,
    /// The trace of the CONNECT that carries it on; 0: none.
    pub(super) carried: u128,
    pub(super) upstream: Option<SocketAddr>,
    /// What users ask to be told.
    pub(super) telling: Arc<Telling>,
}

impl Connection {
    /// Of a connection that begins.
    pub fn new(downstream: &Arc<Downstream>) -> Self {
        let waypoint = downstream.waypoint();
        let service = downstream.target.service().map(|service| &service.key);
        Self {
            telling: waypoint.tellings.of(waypoint, &downstream.own, service),
            downstream: downstream.clone(),
            began: Instant::now(),
            service: downstream.target.service().cloned(),
            endpoint: None,
            route: None,
            flow: None,
            end: Some(Flag::DownstreamTermination),
            flags: Flags::default(),
            error: None,
            is_forgotten: false,
            permit: None,
            why: None,
            opened_after: None,
            retries: 0,
            carried: 0,
            upstream: None,
        }
    }

    /// Its place among the connections that may be carried; given back with the record.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// To which service it is carried, and by which route.
    pub fn routed(&mut self, streamed: &Streamed) {
        self.route = streamed.by.as_ref().map(Rule::new);
        self.service = streamed.target.service().cloned();
        self.why = self.route.clone().map(Why::Route);
    }

    /// Where it is carried, and by a CONNECT of which trace.
    pub fn learn(&mut self, plan: &OutboundPlan, trace: u128) {
        self.carried = trace;
        if self.endpoint.is_some() {
            self.retries = self.retries.saturating_add(1);
        }
        self.endpoint.clone_from(&plan.upstream);
        self.upstream = plan.dial.address();
        if self.why.is_none() {
            self.why = Some(Why::of_reason(&plan.reason));
        }
    }

    /// It is open at both ends; what passes is counted here.
    pub fn opened(&mut self, bytes: Arc<Bytes>) {
        self.opened_after = Some(self.began.elapsed());
        let metrics = &self.downstream.waypoint().metrics;
        let none = Flags::default();
        self.count(&metrics.tcp_opened, MetricName::TcpOpenedConnections, none);
        let received = self.labels(MetricName::TcpReceivedBytes, none).map(|one| metrics.tcp_received_bytes.get(&one));
        let sent = self.labels(MetricName::TcpSentBytes, none).map(|one| metrics.tcp_sent_bytes.get(&one));
        self.flow = Some(metrics.flows.open(received, sent, bytes));
    }

    /// As many endpoints as there are, or as may be, were tried.
    pub fn exhausted(&mut self) {
        self.flags = self.flags.with(Flag::RetryLimit);
    }

    /// Both sides have ended.
    pub fn complete(mut self) {
        self.end = None;
    }

    /// It failed.
    pub fn fail(mut self, error: &PathError) {
        self.end = Some(error.flag());
        self.error = Some(error.text());
        self.why = Some(Why::of_error(error));
    }

    /// Nothing passed for too long, or it has lived for as long as it may.
    pub fn cut(mut self, flag: Flag) {
        self.end = Some(flag);
    }

    /// Its client went before it was open.
    pub fn gone(self) {}

    /// It was none.
    pub fn forget(mut self) {
        self.is_forgotten = true;
    }

    /// The labels of a metric; `None`: it is not counted.
    fn labels(&self, metric: MetricName, flags: Flags) -> Option<Edited<TcpLabels>> {
        let labels = TcpLabels {
            ends: Ends::new(&self.downstream, self.service.as_deref(), self.endpoint.as_deref()),
            request_protocol: Word("tcp"),
            response_flags: flags,
        };
        if !self.telling.meters() {
            return Some(labels.into());
        }
        let facts = facts::of_connection(self, self.began.elapsed(), flags);
        self.telling.tags(metric, Some(&facts)).map(|tags| Edited { labels, tags })
    }

    fn count(&self, family: &Series<Edited<TcpLabels>, Counter>, metric: MetricName, flags: Flags) {
        if let Some(labels) = self.labels(metric, flags) {
            family.get(&labels).inc();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_forgotten {
            return;
        }
        let (received, sent) = self.flow.as_ref().map(|flow| flow.bytes()).unwrap_or_default();
        let metrics = &self.downstream.waypoint().metrics;
        let flags = self.flags.and(self.end);
        if self.flow.is_none() && self.error.is_some() {
            // It was never open at both ends, and is counted as what it was to its client.
            self.count(&metrics.tcp_opened, MetricName::TcpOpenedConnections, Flags::default());
            self.count(&metrics.tcp_closed, MetricName::TcpClosedConnections, flags);
        }
        if let Some(flow) = &self.flow {
            self.count(&metrics.tcp_closed, MetricName::TcpClosedConnections, flags);
            metrics.flows.close(flow);
        }
        match self.telling.logs() {
            true => self.telling.log(&facts::of_connection(self, self.began.elapsed(), flags), None),
            false => self.write(received, sent, flags),
        }
        decision::keep_connection(self, flags);
    }
}

impl Connection {
    /// Our own line.
    fn write(&self, received: u64, sent: u64, flags: Flags) {
        let source = &self.downstream;
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
            route = self.route.as_ref().map(tracing::field::display),
            %flags,
            bytes_recv = received,
            bytes_sent = sent,
            duration = format!("{}ms", self.began.elapsed().as_millis()).as_str(),
            error = self.error.as_deref(),
            "connection complete"
        );
    }
}
