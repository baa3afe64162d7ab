//! Metrics: the registry, its text form, and what every process reports of itself.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
pub use prometheus_client::{encoding, metrics as types, registry::Registry};
use tokio::runtime::{Handle, RuntimeMetrics};

/// The content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry as OpenMetrics text.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a string fails only if a metric's own encoder does; what was written stays readable.
    if let Err(error) = encoding::text::encode(&mut text, registry) {
        tracing::error!(%error, "a metric cannot be encoded");
    }
    text
}

/// What a text of [`encode`]'s has, without values: per metric a line of name, type, labels in their order, the bounds of a
/// histogram's buckets, and help. Parts compare it with a list of what they promise to those who scrape them.
#[must_use]
pub fn outline(text: &str) -> String {
    let mut metrics: Vec<Outline<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            metrics.push(Outline { name, help, ..Outline::default() });
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            metrics.iter_mut().filter(|metric| metric.name == name).for_each(|metric| metric.kind = kind);
        } else if let Some((sample, _)) = line.rsplit_once('}')
            && let Some((_, labels)) = sample.split_once('{')
            && let Some(metric) = metrics.last_mut()
        {
            metric.learn(labels);
        }
    }
    metrics.sort_by_key(|metric| metric.name);
    metrics.iter().map(ToString::to_string).collect()
}

/// One metric of an [`outline`].
#[derive(Debug, Default)]
struct Outline<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    labels: Vec<&'a str>,
    bounds: Vec<&'a str>,
}

impl<'a> Outline<'a> {
    fn learn(&mut self, labels: &'a str) {
        for (name, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
            let value = value.trim_end_matches('"');
            if name == "le" && !self.bounds.contains(&value) {
                self.bounds.push(value);
            } else if name != "le" && !self.labels.contains(&name) {
                self.labels.push(name);
            }
        }
    }
}

impl fmt::Display for Outline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {{{}}}", self.name, self.kind, self.labels.join(","))?;
        if !self.bounds.is_empty() {
            writeln!(f, "    le {}", self.bounds.join(" "))?;
        }
        writeln!(f, "    {}", self.help)
    }
}

/// A registry shared by the parts of a process: they register while it is set up, the metrics server encodes it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Arc<RwLock<Registry>>,
}

impl Metrics {
    /// A registry that already has [`process`]'s numbers.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.register(|registry| registry.register_collector(process()));
        metrics
    }

    /// Registers metrics; returns what `register` returns.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.write())
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(&self.registry.read())
    }
}

/// What every process reports: descriptors, memory, CPU time, threads, panicked tasks.
#[must_use]
pub fn process() -> Box<dyn Collector> {
    Box::new(Process)
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let facts = Facts::read();
        let gauges = [
            ("process_open_fds", "Open file descriptors", facts.open_fds),
            ("process_max_fds", "Limit of open file descriptors", facts.max_fds),
            ("process_threads", "Threads", facts.threads),
            ("process_resident_memory_bytes", "Resident memory", facts.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", facts.virtual_bytes),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value.and_then(|value| i64::try_from(value).ok()) else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        if let Some(seconds) = facts.cpu_seconds {
            let counter = ConstCounter::new(seconds);
            let unit = Some(&Unit::Seconds);
            counter.encode(encoder.encode_descriptor("process_cpu", "CPU time", unit, counter.metric_type())?)?;
        }
        let panics = ConstCounter::new(crate::tasks::panics());
        let help = "Tasks that panicked";
        panics.encode(encoder.encode_descriptor("stillmesh_process_panics", help, None, panics.metric_type())?)
    }
}

/// What tokio says of its runtimes, under the names of Istio's ztunnel (contract 9.1); `worker` counts the threads of all.
#[must_use]
pub fn runtimes(handles: Vec<Handle>) -> Box<dyn Collector> {
    Box::new(Runtimes(handles))
}

#[derive(Debug)]
struct Runtimes(Vec<Handle>);

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(Handle::metrics).collect();
        type Count = fn(&RuntimeMetrics) -> usize;
        let gauges: [(&str, &str, Count); 3] = [
            ("tokio_num_workers", "Threads of the runtimes", RuntimeMetrics::num_workers),
            ("tokio_global_queue_depth", "Tasks in the runtimes' global queues", RuntimeMetrics::global_queue_depth),
            ("tokio_num_alive_tasks", "Tasks that have not ended", RuntimeMetrics::num_alive_tasks),
        ];
        for (name, help, of) in gauges {
            let sum: usize = all.iter().map(of).sum();
            let gauge = ConstGauge::new(i64::try_from(sum).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let workers = || all.iter().flat_map(|one| (0..one.num_workers()).map(move |worker| (one, worker)));
        let help = "Time that threads had something to do";
        let name = "tokio_worker_total_busy_duration";
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        for (worker, (one, of)) in workers().enumerate() {
            let busy = ConstCounter::new(one.worker_total_busy_duration(of).as_secs_f64());
            busy.encode(family.encode_family(&WorkerLabel { worker })?)?;
        }
        type PerWorker = fn(&RuntimeMetrics, usize) -> u64;
        let counts: [(&str, &str, PerWorker); 2] = [
            ("tokio_worker_park_count", "Times that threads went to sleep", RuntimeMetrics::worker_park_count),
            (
                "tokio_worker_park_unpark_count",
                "Times that threads went to sleep or were woken",
                RuntimeMetrics::worker_park_unpark_count,
            ),
        ];
        for (name, help, count) in counts {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (worker, (one, of)) in workers().enumerate() {
                ConstCounter::new(count(one, of)).encode(family.encode_family(&WorkerLabel { worker })?)?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: usize,
}

#[derive(Debug, Default)]
struct Facts {
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    threads: Option<u64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
}

impl Facts {
    fn read() -> Self {
        use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Self {
            open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            threads: field("Threads"),
            resident_bytes: field("VmRSS").map(|kib| kib.saturating_mul(1024)),
            virtual_bytes: field("VmSize").map(|kib| kib.saturating_mul(1024)),
            cpu_seconds: usage.map(|usage| seconds(usage.user_time()) + seconds(usage.system_time())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_openmetrics_and_has_the_process_numbers() {
        let metrics = Metrics::new();
        let requests = metrics.register(|registry| {
            let counter = types::counter::Counter::<u64>::default();
            registry.register("stillmesh_test_requests", "Requests", counter.clone());
            counter
        });
        requests.inc();
        let text = metrics.encode();
        let outlined = outline(&text);
        assert!(outlined.contains("\nstillmesh_test_requests counter {}\n    Requests.\n"), "{outlined}");
        for line in ["stillmesh_test_requests_total 1", "process_open_fds ", "process_cpu_seconds_total ", "# EOF"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
