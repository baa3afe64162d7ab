//! Metrics: the registry, its text form, and what every process reports of itself.

use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
pub use prometheus_client::{encoding, metrics as types, registry::Registry};

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
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let facts = Facts::read();
        let gauges = [
            ("process_open_fds", "Open file descriptors", facts.open_fds),
            ("process_max_fds", "Limit of open file descriptors", facts.max_fds),
            ("process_threads", "Threads", facts.threads),
            ("process_resident_memory_bytes", "Resident memory", facts.resident_bytes),
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

#[derive(Debug, Default)]
struct Facts {
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    threads: Option<u64>,
    resident_bytes: Option<u64>,
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
            resident_bytes: field("VmRSS").map(|kib| kib * 1024),
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
        for line in ["stillmesh_test_requests_total 1", "process_open_fds ", "process_cpu_seconds_total ", "# EOF"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
