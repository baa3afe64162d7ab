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

/// CPU seconds so far that no CPU was idle, added up; what a hypervisor gave to others is in it.
pub fn busy_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let mut words = text.lines().next().context("no line in /proc/stat")?.split_whitespace().skip(1);
    let mut ticks = 0;
    for column in 0..8 {
        let number: u64 = words.next().context("a column of /proc/stat")?.parse()?;
        // The fourth and fifth are idle, and idle with I/O under way.
        ticks += if matches!(column, 3 | 4) { 0 } else { number };
    }
    Ok(ticks as f64 / TICKS)
}

/// Ticks of a second, as `/proc/stat` has them on every architecture that this runs on.
const TICKS: f64 = 100.0;
