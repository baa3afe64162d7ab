//! Families of metrics that stay within a budget, whatever names clients and the mesh come up with.
//!
//! Each family may hold so many label sets. When one more comes, those that nobody has used for [`IDLE`] make room; where there
//! are none, what comes is counted under a label set whose names read `overflow` ([`Labels::overflow`]), so that sums
//! stay right, and `stillmesh_series_overflow_total` tells how often that was so.
//!
//! Metrics that are counted together may share a family, so that there is one label set to find: each is a [`View`] of it.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use parking_lot::RwLock;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::labels::Word;

/// How long a label set is not used before it may make room for others.
pub const IDLE: Duration = Duration::from_secs(3600);

/// How long after one search for label sets that may go there is no other.
const BETWEEN_SEARCHES: Duration = Duration::from_secs(60);

/// Label sets of one metric where nothing else is configured (`METRICS_MAX_SERIES`).
pub const MOST: usize = 5000;

/// Labels of a family within a budget.
pub trait Labels: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static {
    /// What these are counted as when the budget is used up: every value that is not of a small closed set is `overflow`.
    #[must_use]
    fn overflow(&self) -> Self;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Metric {
    metric: Word,
}

/// What the families of a process may hold, and what is told of it. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Budget {
    most: usize,
    began: Instant,
    overflowed: Family<Metric, Counter>,
    held: Family<Metric, Gauge>,
}

impl Budget {
    /// At most `most` label sets for each metric, and those that read `overflow`.
    pub fn new(most: usize) -> Self {
        Self { most, began: Instant::now(), overflowed: Family::default(), held: Family::default() }
    }

    /// Registers what is told of the budget.
    pub fn register(&self, registry: &mut Registry) {
        let own = registry.sub_registry_with_prefix("stillmesh_series");
        own.register("held", "Label sets of a metric", self.held.clone());
        let limit = Gauge::<i64>::default();
        limit.set(i64::try_from(self.most).unwrap_or(i64::MAX));
        own.register("limit", "Label sets that a metric may have (METRICS_MAX_SERIES)", limit);
        let help = "Times that a label set found no place and was counted as overflow";
        own.register("overflow", help, self.overflowed.clone());
    }

    /// A family within the budget; `metric` is its name as scraped.
    pub fn family<L: Labels, M>(&self, metric: &'static str, make: fn() -> M) -> Series<L, M> {
        self.shared(&[metric], make)
    }

    /// A family within the budget that several metrics show a [`View`] of each; `metrics` are their names as scraped. They have
    /// their label sets together: each is told to hold all of them, and to overflow when one finds no place.
    pub fn shared<L: Labels, M>(&self, metrics: &[&'static str], make: fn() -> M) -> Series<L, M> {
        let told = |metric: &&'static str| {
            let label = Metric { metric: Word(metric) };
            Told {
                overflowed: self.overflowed.get_or_create_owned(&label),
                held: self.held.get_or_create_owned(&label),
            }
        };
        Series(Arc::new(Inner {
            most: self.most,
            began: self.began,
            make,
            told: metrics.iter().map(told).collect(),
            known: RwLock::new(Known { series: HashMap::default(), overflow: HashMap::default(), searched: None }),
        }))
    }
}

/// A family within a budget. Clones are the same one.
pub struct Series<L, M>(Arc<Inner<L, M>>);

struct Inner<L, M> {
    most: usize,
    began: Instant,
    make: fn() -> M,
    /// For each metric that shows it.
    told: Vec<Told>,
    known: RwLock<Known<L, M>>,
}

/// What is told of the budget under a metric's name.
struct Told {
    overflowed: Counter,
    held: Gauge,
}

struct Known<L, M> {
    series: HashMap<L, Arc<One<M>>, RandomState>,
    /// As many as the closed sets have combinations.
    overflow: HashMap<L, Arc<One<M>>, RandomState>,
    /// When label sets that may go were last looked for.
    searched: Option<Duration>,
}

#[derive(Debug)]
struct One<M> {
    metric: M,
    began: Instant,
    /// Since then, milliseconds.
    used: AtomicU64,
}

impl<M> One<M> {
    fn touch(&self, now: Duration) {
        self.used.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A metric in use: it stays in its family for as long as this is held.
#[derive(Debug)]
pub struct Held<M>(Arc<One<M>>);

impl<M> Deref for Held<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0.metric
    }
}

impl<M> Clone for Held<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Drop for Held<M> {
    fn drop(&mut self) {
        self.0.touch(self.0.began.elapsed());
    }
}

/// A counter that follows a number which only grows, and is nobody else's.
#[derive(Debug)]
pub struct Following {
    counter: Held<Counter>,
    so_far: AtomicU64,
}

impl Following {
    /// Follows from 0 on.
    pub fn new(counter: Held<Counter>) -> Self {
        Self { counter, so_far: AtomicU64::new(0) }
    }

    /// The number is `now`, or greater by now. Any number of callers at once count each unit once.
    pub fn follow(&self, now: u64) {
        let before = self.so_far.fetch_max(now, Ordering::Relaxed);
        self.counter.inc_by(now.saturating_sub(before));
    }
}

impl<L: Labels, M> Series<L, M> {
    /// The metric of these labels, or the one that overflows are counted in.
    pub fn get(&self, labels: &L) -> Held<M> {
        self.get_at(labels, self.0.began.elapsed())
    }

    fn get_at(&self, labels: &L, now: Duration) -> Held<M> {
        let inner = &*self.0;
        if let Some(one) = inner.known.read().series.get(labels) {
            one.touch(now);
            return Held(one.clone());
        }
        let mut known = inner.known.write();
        if known.series.len() >= inner.most && !known.series.contains_key(labels) {
            known.make_room(now);
        }
        let new = || {
            let one = One { metric: (inner.make)(), began: inner.began, used: AtomicU64::new(0) };
            one.touch(now);
            Arc::new(one)
        };
        let one = if known.series.len() < inner.most || known.series.contains_key(labels) {
            known.series.entry(labels.clone()).or_insert_with(new).clone()
        } else {
            for told in &inner.told {
                told.overflowed.inc();
            }
            known.overflow.entry(labels.overflow()).or_insert_with(new).clone()
        };
        for told in &inner.told {
            told.held.set(i64::try_from(known.series.len()).unwrap_or(i64::MAX));
        }
        Held(one)
    }
}

impl<L, M> Series<L, M> {
    /// The metric that `part` of each value is. A label set is in it once `part` is something.
    pub fn view<P>(&self, part: fn(&M) -> Option<P>) -> View<L, M, P> {
        View { series: self.clone(), part }
    }
}

impl<L, M> Known<L, M> {
    /// Everything that is told.
    fn all(&self) -> impl Iterator<Item = (&L, &M)> {
        self.series.iter().chain(&self.overflow).map(|(labels, one)| (labels, &one.metric))
    }

    /// Lets label sets go that nobody holds or has used for [`IDLE`].
    fn make_room(&mut self, now: Duration) {
        if self.searched.is_some_and(|searched| now.saturating_sub(searched) < BETWEEN_SEARCHES) {
            return;
        }
        self.searched = Some(now);
        let Some(since) = now.checked_sub(IDLE) else { return };
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.series.retain(|_, one| Arc::strong_count(one) > 1 || one.used.load(Ordering::Relaxed) > since);
    }
}

impl<L, M> Clone for Series<L, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L, M> Debug for Series<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series").finish_non_exhaustive()
    }
}

impl<L: Labels, M: EncodeMetric + TypedMetric> EncodeMetric for Series<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, metric) in self.0.known.read().all() {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// One of the metrics that share a family ([`Series::view`]).
#[derive(Debug)]
pub struct View<L, M, P> {
    series: Series<L, M>,
    part: fn(&M) -> Option<P>,
}

impl<L: Labels, M, P: EncodeMetric + TypedMetric> EncodeMetric for View<L, M, P> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, metric) in self.series.0.known.read().all() {
            if let Some(part) = (self.part)(metric) {
                part.encode(encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        P::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::ConstCounter;

    use super::*;
    use crate::labels::Text;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Asked {
        reporter: Word,
        name: Text,
    }

    impl Labels for Asked {
        fn overflow(&self) -> Self {
            Self { name: Text::overflow(), ..self.clone() }
        }
    }

    fn asked(reporter: &'static str, name: u32) -> Asked {
        Asked { reporter: Word(reporter), name: Text::from(&name.to_string().into()) }
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    struct World {
        registry: Registry,
        series: Series<Asked, Counter>,
    }

    impl World {
        fn new(most: usize) -> Self {
            let mut registry = Registry::default();
            let budget = Budget::new(most);
            budget.register(&mut registry);
            let series = budget.family("asked_total", Counter::default);
            registry.register("asked", "Asked", series.clone());
            Self { registry, series }
        }

        fn count(&self, name: u32, second: u64) {
            self.series.get_at(&asked("source", name), Duration::from_secs(second)).inc();
        }

        fn text(&self) -> String {
            text(&self.registry)
        }

        fn has(&self, line: &str) {
            let text = self.text();
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_that_a_client_invents_end_in_one_series_and_no_count_is_lost() {
        let world = World::new(10);
        for name in 0..100_000 {
            world.count(name, 1);
        }
        world.series.get(&asked("destination", 7)).inc();
        world.has("asked_total{reporter=\"source\",name=\"overflow\"} 99990\n");
        world.has("asked_total{reporter=\"destination\",name=\"overflow\"} 1\n");
        world.has("stillmesh_series_overflow_total{metric=\"asked_total\"} 99991\n");
        world.has("stillmesh_series_held{metric=\"asked_total\"} 10\n");
        world.has("stillmesh_series_limit 10\n");
        assert_eq!(world.text().lines().filter(|line| line.starts_with("asked_total{")).count(), 12);
        // Those that have a place keep it.
        world.count(3, 2);
        world.has("asked_total{reporter=\"source\",name=\"3\"} 2\n");
    }

    /// What is counted of one label set, shown by two metrics.
    #[derive(Debug, Default)]
    struct Both {
        asked: AtomicU64,
        answered: AtomicU64,
    }

    fn told(count: &AtomicU64) -> Option<ConstCounter> {
        let count = count.load(Ordering::Relaxed);
        (count > 0).then(|| ConstCounter::new(count))
    }

    #[test]
    fn metrics_that_share_a_family_have_the_label_sets_that_they_counted_and_lose_no_count() {
        let mut registry = Registry::default();
        let budget = Budget::new(3);
        budget.register(&mut registry);
        let series = budget.shared(&["asked_total", "answered_total"], Both::default);
        registry.register("asked", "Asked", series.view(|both: &Both| told(&both.asked)));
        registry.register("answered", "Answered", series.view(|both: &Both| told(&both.answered)));
        for name in 0..10 {
            let both = series.get(&asked("source", name));
            both.asked.fetch_add(2, Ordering::Relaxed);
            if name % 2 == 0 {
                both.answered.fetch_add(1, Ordering::Relaxed);
            }
        }
        let text = text(&registry);
        let mut told: Vec<_> = text.lines().filter(|line| line.starts_with("a")).collect();
        told.sort_unstable();
        let expected = [
            "answered_total{reporter=\"source\",name=\"0\"} 1",
            "answered_total{reporter=\"source\",name=\"2\"} 1",
            "answered_total{reporter=\"source\",name=\"overflow\"} 3",
            "asked_total{reporter=\"source\",name=\"0\"} 2",
            "asked_total{reporter=\"source\",name=\"1\"} 2",
            "asked_total{reporter=\"source\",name=\"2\"} 2",
            "asked_total{reporter=\"source\",name=\"overflow\"} 14",
        ];
        assert_eq!(told, expected);
        for metric in ["asked_total", "answered_total"] {
            assert!(text.contains(&format!("stillmesh_series_held{{metric=\"{metric}\"}} 3\n")), "{text}");
            assert!(text.contains(&format!("stillmesh_series_overflow_total{{metric=\"{metric}\"}} 7\n")), "{text}");
        }
    }

    #[test]
    fn what_nobody_has_used_for_an_hour_makes_room_and_what_somebody_holds_does_not() {
        let world = World::new(3);
        world.count(1, 0);
        let held = world.series.get_at(&asked("source", 2), Duration::ZERO);
        world.count(3, 3000);
        world.count(4, 3500);
        world.has("name=\"overflow\"} 1\n");
        world.count(5, 3601);
        for name in ["2", "3", "5"] {
            world.has(&format!("asked_total{{reporter=\"source\",name=\"{name}\"}}"));
        }
        assert!(!world.text().contains("name=\"1\""));
        held.inc();
        world.has("name=\"2\"} 1\n");
    }
}
