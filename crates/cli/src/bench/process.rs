//! CPU time and memory of processes, from `/proc` (proc(5)).

use anyhow::Context;

/// A process that this run started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process(u32);

impl Process {
    /// The node tunnels among the descendants of a process.
    pub(super) fn tunnels_of(root: u32) -> anyhow::Result<Vec<Self>> {
        let mut family = vec![root];
        let all: Vec<(u32, u32)> = std::fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, parent(pid)?)))
            .collect();
        let mut at = 0;
        while let Some(of) = family.get(at).copied() {
            family.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
            at += 1;
        }
        let is_tunnel = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"ztunnel")
        };
        Ok(family.into_iter().filter(is_tunnel).map(Self).collect())
    }

    /// CPU seconds used so far, user and system.
    pub(super) fn cpu_seconds(self) -> anyhow::Result<f64> {
        // A process's own schedstat is that of its first thread: sum over all of them. Threads that have ended do not
        // count; the tunnel's workers live as long as it does.
        let mut nanoseconds = 0_u64;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0)).context("a node tunnel ended")?.flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// Resident memory, bytes.
    pub(super) fn resident_bytes(self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).context("a node tunnel ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no VmRSS in /proc")? * 1024)
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
