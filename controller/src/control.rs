//! The one loop that takes objects in and sends resources out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::Value;
use stillmesh_k8s::{Finding, Severity};
use stillmesh_objects::{Change, Source, Update};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::build::Builder;
use crate::monitoring::Shown;
use crate::status::Statuses;

/// How long after a change findings are looked for: most of them come and go while objects arrive.
const FINDINGS_AFTER: Duration = Duration::from_secs(1);

/// How long after an order's time has come it is looked at again where nothing was written: another replica writes.
const ORDERS_AGAIN: Duration = Duration::from_secs(5);

/// Objects in, resources out.
pub(crate) struct Control<S> {
    source: S,
    pub builder: Builder,
    statuses: Arc<Statuses>,
    shown: Arc<Shown>,
    /// What is wrong with the manifests themselves.
    written: Arc<[Finding]>,
    /// Findings that have been logged.
    told: BTreeSet<Finding>,
    /// When findings are looked for.
    look: Option<Instant>,
    /// The initial objects have been taken in.
    complete: bool,
    /// When the next order ends.
    end: Option<Instant>,
    queries: mpsc::Receiver<Query>,
}

/// A question of a debug page about the objects.
pub(crate) enum Query {
    /// The policies.
    Configs(oneshot::Sender<Value>),
    /// The services.
    Services(oneshot::Sender<Value>),
}

impl Query {
    /// Who asked may have gone: then nobody hears the answer.
    fn answer(self, builder: &Builder) {
        let _gone = match self {
            Self::Configs(asked) => asked.send(builder.configs()),
            Self::Services(asked) => asked.send(builder.registry()),
        };
    }
}

impl<S: Source> Control<S> {
    pub fn new(
        source: S,
        builder: Builder,
        statuses: Arc<Statuses>,
        shown: Arc<Shown>,
        queries: mpsc::Receiver<Query>,
    ) -> Self {
        Self {
            source,
            builder,
            statuses,
            shown,
            written: Arc::default(),
            told: BTreeSet::new(),
            look: None,
            complete: false,
            end: None,
            queries,
        }
    }

    /// Returns when the initial objects have been taken in.
    pub async fn read_everything(&mut self) -> anyhow::Result<()> {
        loop {
            let update = self.source.next().await.context("the objects cannot be read")?;
            let complete = update.complete;
            self.take(update);
            if complete {
                self.complete = true;
                return Ok(());
            }
        }
    }

    /// Follows the objects until there are no more to come, which is an error.
    pub async fn follow(&mut self) -> anyhow::Result<()> {
        loop {
            let (look, end) = (self.look, self.end);
            tokio::select! {
                query = self.queries.recv() => {
                    if let Some(query) = query {
                        query.answer(&self.builder);
                    }
                }
                update = self.source.next() => {
                    self.take(update.context("the objects cannot be read any more")?);
                }
                () = tokio::time::sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    self.look = None;
                    self.tell_findings();
                }
                () = tokio::time::sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    self.builder.set_now(Timestamp::now());
                    self.statuses.take(self.builder.ended());
                    self.await_end(ORDERS_AGAIN);
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        for change in &update.changes {
            let event = match change {
                Change::Set(_) => "update",
                Change::Removed(_) => "delete",
            };
            self.shown.metrics.event(change.key().kind, event);
        }
        // What is there from the beginning came before this process did.
        let arrived = self.complete.then(std::time::Instant::now);
        let changed = self.shown.receipts.read(&update);
        self.builder.set_now(Timestamp::now());
        let built = self.builder.apply(&update);
        let mut published = None;
        if !built.changes.is_empty() {
            let resources = built.changes.len();
            self.shown.metrics.triggered(&built.changes);
            let generation = self.shown.store.publish(built.changes);
            published = Some(generation);
            self.shown.metrics.published(generation);
            debug!(objects = update.changes.len(), resources, generation, "published");
        }
        let metrics = &self.shown.metrics;
        metrics.services.set(i64::try_from(self.builder.service_count()).unwrap_or(i64::MAX));
        metrics.virtual_services.set(i64::try_from(self.builder.virtual_service_count()).unwrap_or(i64::MAX));
        self.statuses.take(built.verdicts);
        self.shown.receipts.built(built.made, &changed, published, arrived);
        self.await_end(Duration::ZERO);
        if let Some(findings) = update.findings {
            self.written = findings;
        }
        self.look.get_or_insert_with(|| Instant::now() + FINDINGS_AFTER);
    }

    /// Sets when orders are looked at; those whose time has come already, after `again`.
    fn await_end(&mut self, again: Duration) {
        self.end = self.builder.next_end().map(|due| {
            let left = due.duration_since(Timestamp::now());
            Instant::now() + Duration::try_from(left).unwrap_or_default().max(again)
        });
    }

    fn tell_findings(&mut self) {
        let all: BTreeSet<Finding> = self.written.iter().cloned().chain(self.builder.findings()).collect();
        for finding in all.difference(&self.told) {
            match finding.severity {
                Severity::Error => error!(error.code = finding.code, "{finding}"),
                Severity::Warning => warn!(error.code = finding.code, "{finding}"),
            }
        }
        self.shown.metrics.findings.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        self.shown.findings.store(Arc::new(all.iter().cloned().collect()));
        self.told = all;
    }
}
