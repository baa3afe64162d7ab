//! CPU time and memory of processes, from `/proc` (proc(5)).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;

/// Ticks of a second, as `/proc` has them on every architecture that this runs on.
const TICKS: f64 = 100.0;

/// A process that this run started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process(u32);

impl Process {
    /// This one.
    pub(super) fn own() -> Self {
        Self(std::process::id())
    }

    /// Its number.
    pub(super) fn pid(self) -> u32 {
        self.0
    }

    /// A process and all below it, as they are now.
    pub(super) fn family(root: u32) -> anyhow::Result<Vec<Self>> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that ended meanwhile has no parent.
            if let Some(parent) = Stat::of(pid).map(|stat| stat.parent) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut family = vec![root];
        let mut at = 0;
        while let Some(of) = family.get(at) {
            family.extend(children.remove(of).unwrap_or_default());
            at += 1;
        }
        Ok(family.into_iter().map(Self).collect())
    }

    /// An argument of its command line; 0 is the program.
    pub(super) fn argument(self, index: usize) -> String {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .nth(index)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .unwrap_or_default()
    }

    /// Its namespace of a kind (`net`, `pid`), as the kernel names it. Empty for one that has ended.
    pub(super) fn namespace(self, kind: &str) -> String {
        let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", self.0)).unwrap_or_default();
        link.to_string_lossy().into_owned()
    }

    /// CPU time used so far, user and system.
    pub(super) fn cpu(self) -> anyhow::Result<Cpu> {
        // A process's own schedstat is that of its first thread: sum over all of them.
        let mut nanoseconds = 0_u64;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0)).context("a proxy ended")?.flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        let ticks = Stat::of(self.0).context("a proxy ended")?.ticks;
        Ok(Cpu { exact: nanoseconds as f64 / 1e9, coarse: ticks as f64 / TICKS })
    }

    /// Resident memory, bytes.
    pub(super) fn resident_bytes(self) -> anyhow::Result<u64> {
        self.memory("VmRSS")
    }

    /// Resident memory that is the process's own: not pages of files, as of its program.
    pub(super) fn own_bytes(self) -> anyhow::Result<u64> {
        self.memory("RssAnon")
    }

    fn memory(self, what: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).context("a proxy ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("no {what} in /proc"))? * 1024)
    }
}

/// CPU time of a process, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    /// Of the threads that it has, exactly.
    exact: f64,
    /// Of those that have ended, too, and of children, in ticks.
    coarse: f64,
}

impl Cpu {
    /// Seconds used since.
    pub(super) fn since(self, before: Self) -> f64 {
        let (exact, coarse) = (self.exact - before.exact, self.coarse - before.coarse);
        // Beyond what rounding can make of it, the difference is threads that have ended meanwhile.
        if coarse > exact + 2.0 / TICKS { coarse } else { exact.max(0.0) }
    }
}

/// The proxies among processes: those in given network namespaces that are not in one of these process namespaces, and are
/// none of the machine's own steps.
pub(super) fn in_namespaces(
    family: &[Process],
    networks: &BTreeSet<String>,
    not_in: &BTreeSet<String>,
) -> Vec<Process> {
    let is_proxy = |one: &Process| {
        networks.contains(&one.namespace("net"))
            && !not_in.contains(&one.namespace("pid"))
            && one.argument(1) != "internal"
    };
    family.iter().copied().filter(is_proxy).collect()
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// CPU time of the process and of those of its children that have ended and were waited for, ticks.
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::read(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        // The name, in brackets, may have anything in it.
        let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let times = rest.get(11..15)?;
        let ticks = times.iter().map(|word| word.parse::<u64>().ok()).sum::<Option<u64>>()?;
        Some(Self { parent: rest.get(1)?.parse().ok()?, ticks })
    }
}

/// How much CPU time all processes of this machine have used, and how much of it is this run's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    /// Seconds of all processes, and those that other machines had of this one's CPUs.
    all: f64,
    /// Seconds of this process and of all below it.
    own: f64,
}

impl Usage {
    /// Until now.
    pub(super) fn now() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let all = busy_ticks(text.lines().next().unwrap_or_default()).context("no CPU time in /proc/stat")?;
        // What ended and was waited for is in its parent's figures.
        let own: u64 =
            Process::family(Process::own().0)?.iter().filter_map(|one| Stat::of(one.0)).map(|stat| stat.ticks).sum();
        Ok(Self { all: all as f64 / TICKS, own: own as f64 / TICKS })
    }

    /// The share of so many seconds of `cpus` CPUs that others have had since: 0 to 1.
    pub(super) fn foreign_since(self, before: Self, seconds: f64, cpus: usize) -> f64 {
        let foreign = (self.all - before.all) - (self.own - before.own);
        (foreign / (seconds * cpus as f64).max(f64::EPSILON)).clamp(0.0, 1.0)
    }
}

/// Ticks in which CPUs were used by processes, or taken away. Work of interrupts is not in it: it is in no process either.
fn busy_ticks(line: &str) -> Option<u64> {
    let words: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().ok()).collect::<Option<_>>()?;
    // user, nice, system; idle, iowait, irq, softirq are left out; steal.
    Some(words.get(..3)?.iter().sum::<u64>() + words.get(7)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_name_may_look_like_fields() {
        let text = "7 (a) b (c)) S 3 7 7 0 -1 4194560 1 2 3 4 100 20 30 4 20 0 1 0 5 6 7";
        assert_eq!(Stat::read(text), Some(Stat { parent: 3, ticks: 154 }));
        assert_eq!(Stat::read("7 (a) S"), None);
    }

    #[test]
    fn what_others_and_other_machines_used_is_foreign() {
        assert_eq!(busy_ticks("cpu  100 10 50 4000 5 6 7 40 0 0"), Some(200));
        let before = Usage { all: 100.0, own: 10.0 };
        let after = Usage { all: 103.0, own: 12.8 };
        let foreign = after.foreign_since(before, 2.0, 2);
        assert!((foreign - 0.05).abs() < 1e-9, "{foreign}");
        // Ticks are rounded: less than nothing is nothing.
        assert_eq!(before.foreign_since(after, 2.0, 2), 0.0);
    }

    #[test]
    fn threads_that_end_take_no_cpu_time_along() {
        let before = Cpu { exact: 5.0, coarse: 6.0 };
        assert_eq!(Cpu { exact: 5.5, coarse: 6.51 }.since(before), 0.5);
        assert_eq!(Cpu { exact: 4.0, coarse: 6.5 }.since(before), 0.5);
    }

    #[test]
    fn this_process_is_in_its_own_family_and_has_used_time() {
        let family = Process::family(std::process::id()).unwrap();
        assert!(family.contains(&Process::own()));
        let (resident, own) = (Process::own().resident_bytes().unwrap(), Process::own().own_bytes().unwrap());
        assert!(0 < own && own < resident);
        assert!(!Process::own().namespace("net").is_empty());
        Usage::now().unwrap();
    }
}
