//! What users ask to be told of requests and connections, ready to be carried out: made anew when what they ask for changes,
//! and held by each request from its beginning to its end.

mod collector;
mod line;
mod trace;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use stillmesh_core::decide::telemetry::{self, Metered, Told};
use stillmesh_core::model::telemetry::{MetricName, ProviderKind, TagValue};
use stillmesh_core::model::{ServiceKey, Str, Workload};
use stillmesh_core::observe::{Captured, Expression, Facts, Format, Layout, Redaction, Wanted};
use stillmesh_otlp::Context;

use stillmesh_proxy::labels::Text;

use crate::record::{Metrics, Tags};
use crate::waypoint::Waypoint;
use collector::{Collectors, Kept};
use line::Line;
use trace::Spans;
use writer::{Writer, Writers};

/// What is told of requests for one service.
#[derive(Debug, Default)]
pub struct Telling {
    told: Told,
    logs: Option<Vec<Log>>,
    wanted: Wanted,
    /// Who takes spans.
    spans: Option<Spans>,
}

/// One access log.
#[derive(Debug)]
struct Log {
    filter: Option<Expression>,
    line: Line,
    taker: Taker,
}

/// Who takes an access log.
#[derive(Debug)]
enum Taker {
    File(Arc<Writer>),
    /// With attributes beside the line.
    Collector(Arc<Kept>, Vec<(Str, Format)>),
}

impl Telling {
    /// Whether users say how requests are logged; else our own line is written.
    pub fn logs(&self) -> bool {
        self.logs.is_some()
    }

    /// Whether anybody wants facts of a connection, or of a request of this span.
    pub fn is_asked(&self, context: Option<&Context>) -> bool {
        self.logs.as_ref().is_some_and(|logs| !logs.is_empty())
            || !self.told.metrics.tags.is_empty()
            || (self.spans.is_some() && context.is_some_and(|context| context.is_sampled))
    }

    /// Whether metrics are otherwise than usual.
    pub fn meters(&self) -> bool {
        self.told.metrics != Metered::default()
    }

    /// What of a metric's labels is otherwise (`Some(None)`: nothing); `None`: it is not counted.
    pub fn tags(&self, metric: MetricName, facts: Option<&Facts<'_>>) -> Option<Option<Arc<Tags>>> {
        if self.told.metrics.disabled.contains(&metric) {
            return None;
        }
        let Some(tags) = self.told.metrics.tags.get(&metric) else { return Some(None) };
        let value = |expression: &Expression| {
            let text = facts.and_then(|facts| expression.text(facts));
            let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| Text::UNKNOWN.into());
            Str::from(text.chars().take(LONGEST_TAG).collect::<String>())
        };
        let tags = tags.iter().map(|(name, expression)| (name.clone(), expression.as_ref().map(value)));
        Some(Some(Arc::new(tags.collect())))
    }

    /// Writes access logs.
    pub fn log(&self, facts: &Facts<'_>, context: Option<&Context>) {
        for log in self.logs.iter().flatten() {
            if !log.filter.as_ref().is_none_or(|filter| filter.holds(facts)) {
                continue;
            }
            let line = log.line.write(facts);
            match &log.taker {
                Taker::File(writer) => writer.write(&line),
                Taker::Collector(kept, attributes) => {
                    let told = |(name, format): &(Str, Format)| (name.to_string(), format.text(facts));
                    let attributes = attributes.iter().map(told).collect();
                    let record = trace::record(line.trim_end().to_owned(), attributes, context, facts);
                    kept.0.tell(stillmesh_otlp::Told::Record(Box::new(record)));
                }
            }
        }
    }

    /// The span of a request that begins, if requests are traced: headers that go on have it.
    pub fn begin(&self, headers: &mut HeaderMap) -> Option<Context> {
        self.told.tracing.as_ref().map(|traced| trace::begin(traced, headers))
    }

    /// Tells of a span that has ended.
    pub fn end(&self, context: &Context, facts: &Facts<'_>) {
        if let Some(spans) = self.spans.as_ref().filter(|_| context.is_sampled) {
            spans.tell(context, facts);
        }
    }

    /// The headers of a request that somebody asks for; what is never told is hidden.
    pub fn request(&self, headers: &HeaderMap) -> Captured {
        captured(&self.wanted.request, headers, &self.told.redaction)
    }

    /// The same of a response.
    pub fn response(&self, headers: &HeaderMap) -> Captured {
        captured(&self.wanted.response, headers, &self.told.redaction)
    }

    /// What is never told.
    pub fn redaction(&self) -> &Redaction {
        &self.told.redaction
    }
}

/// Longest value of a label that is a client's to choose, characters.
const LONGEST_TAG: usize = 253;

/// Longest value of one header that is kept, characters.
const LONGEST: usize = 1024;

fn captured<'a>(names: impl IntoIterator<Item = &'a Str>, headers: &HeaderMap, redaction: &Redaction) -> Captured {
    let mut kept = Captured::default();
    for name in names {
        for value in headers.get_all(&**name) {
            let text = String::from_utf8_lossy(value.as_bytes());
            let told = redaction.header(name, &text);
            kept.keep(name, &told.chars().take(LONGEST).collect::<String>());
        }
    }
    kept
}

/// All that is told, by service.
#[derive(Debug)]
pub struct Tellings {
    silent: Arc<Telling>,
    writers: Writers,
    collectors: Collectors,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    generation: u64,
    now: HashMap<Option<ServiceKey>, Arc<Telling>>,
    /// Of the generation before: what has not changed is taken over.
    before: HashMap<Option<ServiceKey>, Arc<Telling>>,
}

/// Services that are remembered at a time; with more, what is told is made anew.
const MOST: usize = 4096;

impl Tellings {
    /// Counts what is lost in `metrics`.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            silent: Arc::default(),
            writers: Writers::new(metrics.clone()),
            collectors: Collectors::default(),
            known: Mutex::default(),
        }
    }

    /// What is told of requests for a service that `own` carries; `None`: of what is for no service.
    pub fn of(&self, waypoint: &Arc<Waypoint>, own: &Workload, service: Option<&ServiceKey>) -> Arc<Telling> {
        let snapshot = &waypoint.snapshots.load();
        if snapshot.telemetry_settings().is_none() && snapshot.telemetry().next().is_none() {
            return self.silent.clone();
        }
        let mut known = self.known.lock();
        if known.generation != snapshot.generation() || known.now.len() >= MOST {
            known.generation = snapshot.generation();
            known.before = std::mem::take(&mut known.now);
        }
        let key = service.cloned();
        if let Some(telling) = known.now.get(&key) {
            return telling.clone();
        }
        let told = telemetry::telemetry(snapshot, own, service);
        let telling = match known.before.remove(&key) {
            Some(before) if before.told == told => before,
            _ => Arc::new(self.make(waypoint, own, told)),
        };
        known.now.insert(key, telling.clone());
        telling
    }

    fn make(&self, waypoint: &Arc<Waypoint>, own: &Workload, told: Told) -> Telling {
        let mut wanted = Wanted::default();
        let logs = told.logs.as_ref().map(|logs| {
            let log = |logged: &telemetry::Logged| match &logged.provider.kind {
                ProviderKind::File(file) => {
                    let line = Line::read(&file.layout);
                    let taker = Taker::File(self.writers.open(&file.path));
                    Some(Log { filter: logged.filter.clone(), line, taker })
                }
                ProviderKind::LogCollector(collector) => {
                    let (line, attributes) = match &collector.layout {
                        Some(Layout::Json(keys)) => {
                            let read = |(key, format): &(Str, Str)| (key.clone(), Format::read(format).0);
                            (Line::read(&Layout::text()), keys.iter().map(read).collect())
                        }
                        Some(layout) => (Line::read(layout), Vec::new()),
                        None => (Line::read(&Layout::text()), Vec::new()),
                    };
                    let taker = Taker::Collector(self.collectors.open(waypoint, collector), attributes);
                    Some(Log { filter: logged.filter.clone(), line, taker })
                }
                _ => None,
            };
            logs.iter().filter_map(log).collect::<Vec<_>>()
        });
        for log in logs.iter().flatten() {
            log.line.wants(&mut wanted);
            if let Taker::Collector(_, attributes) = &log.taker {
                attributes.iter().for_each(|(_, format)| format.wants(&mut wanted));
            }
            if let Some(filter) = &log.filter {
                filter.wants(&mut wanted);
            }
        }
        for expression in told.metrics.tags.values().flat_map(|tags| tags.values()).flatten() {
            expression.wants(&mut wanted);
        }
        let mut spans = None;
        if let Some(traced) = &told.tracing {
            wanted.request.extend([Str::from("user-agent"), Str::from("tracestate")]);
            for tag in &traced.tags {
                if let TagValue::Header(name, _) = &tag.value {
                    wanted.request.insert(name.clone());
                }
            }
            if let (ProviderKind::TraceCollector(collector), false) = (&traced.provider.kind, traced.is_silent) {
                let taker = self.collectors.open(waypoint, collector);
                spans = Some(Spans::new(taker, collector, &traced.tags, own, &waypoint.config));
            }
        }
        Telling { told, logs, wanted, spans }
    }

    /// Waits until collectors have what they were to be told, at most so long. Called when the process ends.
    pub async fn export(&self, limit: Duration) {
        self.collectors.flush(limit).await;
    }

    /// Waits until what was written has been, at most so long. Blocks: called when the process ends.
    pub fn flush(&self, limit: Duration) {
        self.writers.flush(limit);
    }
}
