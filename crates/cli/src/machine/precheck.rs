//! Whether this machine can hold a mesh: every operation that `up` needs is really tried, in a child that is thrown
//! away, and where one is refused the sysctl, profile, flag or module that mends it is named.
//!
//! Looking at versions and settings would not do: a distribution can grant a user namespace without capabilities
//! (AppArmor), a container engine can refuse one call of many (seccomp) or mask parts of `/proc`.

mod inside;
mod remedy;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub use inside::probe;
pub use remedy::Facts;

use super::bootstrap::SELF;

/// How long all operations together may take; each is some system calls.
const DEADLINE: Duration = Duration::from_secs(20);

/// One operation that `up` needs.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Stable name.
    pub id: &'static str,
    /// What is tried.
    pub what: &'static str,
    /// Whether `up` can do without.
    pub required: bool,
}

/// Every operation, in the order in which they are tried.
pub const OPERATIONS: &[Operation] = &[
    needed("user-namespace", "make a user namespace"),
    needed("id-maps", "become root in it"),
    needed("network-namespace", "make a network namespace"),
    needed("mount-namespace", "make a mount namespace"),
    needed("host-name-namespace", "make a host name namespace"),
    needed("ipc-namespace", "make an IPC namespace"),
    needed("process-namespace", "make a process namespace"),
    needed("private-mounts", "make mounts private"),
    needed("fresh-proc", "mount a new /proc"),
    needed("tmpfs", "mount a tmpfs on /run"),
    needed("bind-mount", "bind a file over another"),
    needed("namespace-file", "keep a network namespace by a file"),
    needed("host-name", "set a host name"),
    needed("veth", "make a pair of virtual links"),
    needed("bridge", "make a bridge"),
    needed("forwarding", "turn on IP forwarding"),
    needed("policy-routing", "route by firewall mark"),
    needed("nftables", "make an nftables table"),
    needed("nft-nat", "make an nftables nat chain"),
    needed("nft-redirect", "redirect connections with nftables"),
    needed("nft-dnat", "rewrite destinations with nftables"),
    needed("nft-masquerade", "masquerade with nftables"),
    needed("nft-conntrack", "match and mark connections with nftables"),
    needed("nft-reject", "reject with nftables"),
    needed("transparent", "open transparent sockets with a mark"),
    needed("packet-socket", "capture packets (AF_PACKET)"),
    Operation { id: "ipv6", what: "use IPv6", required: false },
];

const fn needed(id: &'static str, what: &'static str) -> Operation {
    Operation { id, what, required: true }
}

/// How one operation went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// It works.
    Works,
    /// It was refused.
    Refused {
        /// What the kernel said.
        error: String,
        /// Its number, where there is one.
        errno: Option<i32>,
    },
    /// It is not needed here.
    NotNeeded,
    /// Something that it depends on was refused before.
    NotTried,
}

/// An operation with its outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// What was tried.
    pub what: &'static str,
    /// Whether `up` can do without.
    pub required: bool,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What to change, where it was refused.
    pub remedy: Option<String>,
}

/// What the pre-check found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether `up` makes a user namespace first; not so with root's privileges.
    pub user_namespace: bool,
    /// Every operation, in order.
    pub checks: Vec<Check>,
}

/// What the child says of one operation.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    id: String,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Report {
    /// Whether `up` can run.
    pub fn passes(&self) -> bool {
        self.checks.iter().all(|check| !check.required || matches!(check.outcome, Outcome::Works | Outcome::NotNeeded))
    }

    /// Every refusal with what mends it.
    pub fn problems(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            if let Outcome::Refused { error, .. } = &check.outcome {
                let weight = if check.required { "refused" } else { "missing (not required)" };
                let _ = writeln!(text, "{weight}: {} ({}): {error}", check.what, check.id);
                if let Some(remedy) = &check.remedy {
                    for line in remedy.lines() {
                        let _ = writeln!(text, "    {line}");
                    }
                }
            }
        }
        text
    }
}

/// Tries everything. Errors only when no child can be started at all.
pub fn run() -> anyhow::Result<Report> {
    let facts = Facts::gather();
    let user_namespace = !facts.privileged;
    let mut child = Command::new(SELF)
        .arg0("stillmesh")
        .args(["internal", "probe", if user_namespace { "user" } else { "root" }])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting the child of the pre-check")?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || read_lines(stdout));
    let complaint = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = pipe.by_ref().take(16 << 10).read_to_string(&mut text);
            text
        })
    });
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > DEADLINE {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut said = reader.join().unwrap_or_default();
    let complaint = complaint.and_then(|thread| thread.join().ok()).unwrap_or_default();
    // A child that was killed or hung names its next operation as the one that did it.
    if !ended.is_some_and(|status| status.success())
        && !said.values().any(|outcome| matches!(outcome, Outcome::Refused { .. }))
        && let Some(next) = OPERATIONS.iter().find(|operation| !said.contains_key(operation.id))
    {
        let how = ended.map_or_else(|| format!("no answer within {DEADLINE:?}"), |status| status.to_string());
        let error = format!("the child that tried it ended: {how} {}", complaint.trim());
        said.insert(next.id.to_owned(), Outcome::Refused { error, errno: None });
    }
    let checks = OPERATIONS
        .iter()
        .map(|operation| {
            let not_said = if !user_namespace && matches!(operation.id, "user-namespace" | "id-maps") {
                Outcome::NotNeeded
            } else {
                Outcome::NotTried
            };
            let outcome = said.remove(operation.id).unwrap_or(not_said);
            let remedy = match &outcome {
                Outcome::Refused { error, errno } => Some(remedy::remedy(operation.id, *errno, error, &facts)),
                _ => None,
            };
            Check { id: operation.id, what: operation.what, required: operation.required, outcome, remedy }
        })
        .collect();
    Ok(Report { user_namespace, checks })
}

fn read_lines(stdout: Option<impl Read>) -> BTreeMap<String, Outcome> {
    let Some(stdout) = stdout else { return BTreeMap::new() };
    BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<Line>(&line).ok())
        .map(|line| (line.id, line.outcome))
        .collect()
}

/// `stillmesh precheck`.
#[expect(clippy::print_stdout, reason = "the command's own output")]
pub fn command(json: bool) -> anyhow::Result<ExitCode> {
    let report = run()?;
    let passes = report.passes();
    if json {
        let mut value = serde_json::to_value(&report)?;
        value["passes"] = passes.into();
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        let how = if report.user_namespace { "as an ordinary user, in a user namespace" } else { "as root" };
        println!("A mesh on this machine, {how}:");
        for check in &report.checks {
            let (sign, note) = match &check.outcome {
                Outcome::Works => ("ok     ", String::new()),
                Outcome::NotNeeded => continue,
                Outcome::NotTried => ("-      ", " (not tried)".to_owned()),
                Outcome::Refused { error, .. } if check.required => ("REFUSED", format!(": {error}")),
                Outcome::Refused { error, .. } => ("missing", format!(" (not required): {error}")),
            };
            println!("  {sign} {}{note}", check.what);
            for line in check.remedy.as_deref().unwrap_or_default().lines() {
                println!("            {line}");
            }
        }
        println!("{}", if passes { "It can run." } else { "It cannot run as this machine is set up." });
    }
    Ok(ExitCode::from(u8::from(!passes)))
}
