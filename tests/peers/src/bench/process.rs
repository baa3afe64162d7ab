//! CPU time and memory of a process, and what the machine's CPUs did, from `/proc` (proc(5)).

use anyhow::Context as _;

/// CPU seconds of all threads so far, user and system.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0_u64;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process ended")?.flatten() {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Resident memory, MiB: all of it, and what is the process's own (not pages of its program).
pub fn resident_mib(pid: u32) -> anyhow::Result<[f64; 2]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process ended")?;
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in /proc"))?;
        let kilobytes: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok::<_, anyhow::Error>(kilobytes / 1024.0)
    };
    Ok([field("VmRSS:")?, field("RssAnon:")?])
}

/// How long the machine's CPUs were idle so far. The kernel knows that to the microsecond and tells it in hundredths of a second; who was busy it only
/// samples.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// CPU seconds of all CPUs, with those that waited for I/O.
    pub seconds: f64,
    /// How many CPUs there are.
    pub cpus: usize,
}

impl Idle {
    /// Until now.
    pub fn now() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let mut lines = text.lines().take_while(|line| line.starts_with("cpu"));
        // user, nice, system, idle, idle with I/O under way.
        let mut words = lines.next().context("no line in /proc/stat")?.split_whitespace().skip(4);
        let mut column = || anyhow::Ok(words.next().context("a column of /proc/stat")?.parse::<u64>()?);
        let ticks = column()? + column()?;
        Ok(Self { seconds: ticks as f64 / TICKS, cpus: lines.count() })
    }
}

/// Ticks of a second, as `/proc/stat` has them on every architecture that this runs on.
const TICKS: f64 = 100.0;
