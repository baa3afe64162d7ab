//! What users ask to be told of requests and connections, ready to be carried out: made anew when what they ask for changes,
//! and held by each request from its beginning to its end.

mod line;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use stillmesh_core::decide::telemetry::{self, Metered, Told};
use stillmesh_core::model::telemetry::{MetricName, ProviderKind};
use stillmesh_core::model::{ServiceKey, Str, Workload};
use stillmesh_core::observe::{Captured, Expression, Facts, Redaction, Wanted};
use stillmesh_core::snapshot::Snapshot;

use stillmesh_proxy::labels::Text;

use crate::record::{Metrics, Tags};
use line::Line;
use writer::{Writer, Writers};

/// What is told of requests for one service.
#[derive(Debug, Default)]
pub struct Telling {
    told: Told,
    logs: Option<Vec<Log>>,
    wanted: Wanted,
}

/// One access log.
#[derive(Debug)]
struct Log {
    filter: Option<Expression>,
    line: Line,
    writer: Arc<Writer>,
}

impl Telling {
    /// Whether users say how requests are logged; else our own line is written.
    pub fn logs(&self) -> bool {
        self.logs.is_some()
    }

    /// Whether anybody wants facts.
    pub fn is_asked(&self) -> bool {
        self.logs.as_ref().is_some_and(|logs| !logs.is_empty()) || !self.told.metrics.tags.is_empty()
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
    pub fn log(&self, facts: &Facts<'_>) {
        for log in self.logs.iter().flatten() {
            if log.filter.as_ref().is_none_or(|filter| filter.holds(facts)) {
                log.writer.write(log.line.write(facts));
            }
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
        Self { silent: Arc::default(), writers: Writers::new(metrics.clone()), known: Mutex::default() }
    }

    /// What is told of requests for a service that `own` carries; `None`: of what is for no service.
    pub fn of(&self, snapshot: &Snapshot, own: &Workload, service: Option<&ServiceKey>) -> Arc<Telling> {
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
            _ => Arc::new(self.make(told)),
        };
        known.now.insert(key, telling.clone());
        telling
    }

    fn make(&self, told: Told) -> Telling {
        let mut wanted = Wanted::default();
        let logs = told.logs.as_ref().map(|logs| {
            let log = |logged: &telemetry::Logged| match &logged.provider.kind {
                ProviderKind::File(file) => {
                    let line = Line::read(&file.layout);
                    Some(Log { filter: logged.filter.clone(), line, writer: self.writers.open(&file.path) })
                }
                _ => None,
            };
            logs.iter().filter_map(log).collect::<Vec<_>>()
        });
        for log in logs.iter().flatten() {
            log.line.wants(&mut wanted);
            if let Some(filter) = &log.filter {
                filter.wants(&mut wanted);
            }
        }
        for expression in told.metrics.tags.values().flat_map(|tags| tags.values()).flatten() {
            expression.wants(&mut wanted);
        }
        Telling { told, logs, wanted }
    }

    /// Waits until what was written has been, at most so long. Blocks: called when the process ends.
    pub fn flush(&self, limit: Duration) {
        self.writers.flush(limit);
    }
}
