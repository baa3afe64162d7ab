//! The series that a request adds to, kept per CONNECT: to find them anew by their two dozen labels would cost more than all
//! else that is written down of a request.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use stillmesh_core::model::telemetry::MetricName;
use stillmesh_core::model::{Service, Workload};
use stillmesh_proxy::labels::Word;
use stillmesh_proxy::series::Held;

use super::{Edited, Flags, Metrics, RequestLabels, Tags};

/// What requests of one client differ in, as labels tell.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Where it went.
    pub service: Option<Arc<Service>>,
    /// Who took it.
    pub endpoint: Option<Arc<Workload>>,
    /// Whether it is gRPC.
    pub is_grpc: bool,
    /// The response's status.
    pub status: u16,
    /// The response's gRPC status.
    pub grpc_status: Option<u8>,
    /// How it ended.
    pub flags: Flags,
}

impl Kind {
    /// Whether both have the same labels for certain: a workload or service that was published anew is another one.
    fn is(&self, other: &Self) -> bool {
        let numbers = |kind: &Self| (kind.is_grpc, kind.status, kind.grpc_status, kind.flags);
        numbers(self) == numbers(other)
            && same(self.service.as_ref(), other.service.as_ref())
            && same(self.endpoint.as_ref(), other.endpoint.as_ref())
    }
}

fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// What requests of one kind add to.
#[derive(Debug)]
struct Series {
    requests: Held<Counter>,
    duration: Held<Histogram>,
    received: Held<Histogram>,
    sent: Held<Histogram>,
    /// Of gRPC: messages of the client, and of the endpoint.
    messages: Option<(Held<Counter>, Held<Counter>)>,
}

/// Kinds that are kept at a time; the oldest goes.
const MOST: usize = 32;

/// The series of one CONNECT.
#[derive(Debug, Default)]
pub struct Known(Mutex<Vec<(Kind, Series)>>);

/// One request, as it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Milliseconds that it took.
    pub milliseconds: f64,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of its response's body.
    pub sent: u64,
    /// Messages of its body and of its response's, if it is gRPC.
    pub messages: (u64, u64),
}

/// What users make of a metric's labels; `None`: it is not counted.
pub type Change<'a> = &'a dyn Fn(MetricName) -> Option<Option<Arc<Tags>>>;

/// Counts a request whose metrics users have changed: each has labels of its own.
pub fn count_changed(metrics: &Metrics, labels: &RequestLabels, change: Change<'_>, counted: Counted) {
    let edited = |metric| change(metric).map(|tags| Edited { labels: labels.clone(), tags });
    let add = |metric, family: &Family<Counter>, count| {
        if let Some(labels) = edited(metric) {
            family.get(&labels).inc_by(count);
        }
    };
    let observe = |metric, family: &Family<Histogram>, value| {
        if let Some(labels) = edited(metric) {
            family.get(&labels).observe(value);
        }
    };
    add(MetricName::RequestCount, &metrics.requests, 1);
    observe(MetricName::RequestDuration, &metrics.request_duration, counted.milliseconds);
    observe(MetricName::RequestSize, &metrics.request_bytes, counted.received as f64);
    observe(MetricName::ResponseSize, &metrics.response_bytes, counted.sent as f64);
    if labels.request_protocol == Word("grpc") {
        add(MetricName::GrpcRequestMessages, &metrics.request_messages, counted.messages.0);
        add(MetricName::GrpcResponseMessages, &metrics.response_messages, counted.messages.1);
    }
}

type Family<M> = stillmesh_proxy::series::Series<Edited<RequestLabels>, M>;

impl Known {
    /// Counts a request; `labels` are those of its kind.
    pub fn count(&self, metrics: &Metrics, kind: Kind, labels: impl FnOnce(&Kind) -> RequestLabels, counted: Counted) {
        let mut known = self.0.lock();
        if let Some((_, series)) = known.iter().find(|(known, _)| known.is(&kind)) {
            return series.count(counted);
        }
        let series = Series::new(metrics, &Edited::from(labels(&kind)), kind.is_grpc);
        series.count(counted);
        if known.len() >= MOST {
            known.remove(0);
        }
        // Most clients have requests of one kind only.
        known.reserve_exact(1);
        known.push((kind, series));
    }
}

impl Series {
    fn new(metrics: &Metrics, labels: &Edited<RequestLabels>, is_grpc: bool) -> Self {
        let messages = || (metrics.request_messages.get(labels), metrics.response_messages.get(labels));
        Self {
            requests: metrics.requests.get(labels),
            duration: metrics.request_duration.get(labels),
            received: metrics.request_bytes.get(labels),
            sent: metrics.response_bytes.get(labels),
            messages: is_grpc.then(messages),
        }
    }

    fn count(&self, counted: Counted) {
        self.requests.inc();
        self.duration.observe(counted.milliseconds);
        self.received.observe(counted.received as f64);
        self.sent.observe(counted.sent as f64);
        if let Some((request, response)) = &self.messages {
            request.inc_by(counted.messages.0);
            response.inc_by(counted.messages.1);
        }
    }
}
