//! The namespaces that a pod's containers share, held by one small process per pod: network, mounts, host name, IPC.
//!
//! The pod gets its own `/etc/resolv.conf`, `/etc/hosts` and `/etc/nsswitch.conf` by bind mounts, and does not see what
//! the machine keeps (keys, tokens, sockets). The holder waits for nothing and dies with the runner.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use stillmesh_runtime::sys::netns::Netns;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;

use crate::machine::bootstrap::{ROOT, step};
use crate::machine::init;

/// How long a pod's namespaces may take to be made.
const DEADLINE: Duration = Duration::from_secs(20);
/// What the holder says when all is in place.
const READY: &str = "ready";

/// What a sandbox is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Host name inside.
    pub hostname: String,
    /// Join this network namespace instead of making one.
    pub network: Option<PathBuf>,
    /// Directory with the files to put into `/etc`.
    pub etc: Option<PathBuf>,
    /// Whether the machine's own directory stays visible, with what is mounted there later.
    pub system: bool,
}

/// A running sandbox. Dropping it ends its holder.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    pid: u32,
    /// Its network namespace.
    pub netns: Netns,
}

impl Sandbox {
    /// Makes one.
    pub async fn start(spec: &SandboxSpec) -> anyhow::Result<Self> {
        let (mut command, specification) = step("sandbox", &spec.hostname, spec)?.split();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting the holder of the pod's namespaces")?;
        drop(specification);
        let stdout = child.stdout.take().context("the holder has no output")?;
        let mut line = String::new();
        let read = tokio::time::timeout(DEADLINE, BufReader::new(stdout.take(64)).read_line(&mut line)).await;
        if read.is_err() || line.trim() != READY {
            let mut complaint = String::new();
            if let Some(stderr) = child.stderr.take() {
                let reading = async { stderr.take(4096).read_to_string(&mut complaint).await };
                let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
            }
            bail!("the pod's namespaces could not be made: {}", complaint.trim());
        }
        let pid = child.id().context("the holder has ended")?;
        let netns = Netns::open(format!("/proc/{pid}/ns/net")).context("opening the pod's network namespace")?;
        Ok(Self { child, pid, netns })
    }

    /// Process id of the holder.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the holder ends, which it does only when somebody kills it. Cancel-safe.
    pub async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Ends the holder.
    pub async fn stop(mut self) {
        let _ = self.child.kill().await;
    }
}

/// The holder's process: makes the namespaces, says so, and waits to be killed. Single-threaded.
pub fn hold(spec: &SandboxSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    if let Some(path) = &spec.network {
        setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET).context("joining the node's network namespace")?;
    }
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    if spec.network.is_none() {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).context("making the pod's namespaces")?;
    let propagation = if spec.system { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | propagation, None).context("separating mounts")?;
    if let Some(etc) = &spec.etc {
        for name in ["resolv.conf", "hosts", "nsswitch.conf"] {
            bind_file(&etc.join(name), &Path::new("/etc").join(name))?;
        }
    }
    nix::unistd::sethostname(&spec.hostname).context("setting the host name")?;
    if !spec.system {
        umount2(ROOT, MntFlags::MNT_DETACH).context("hiding what the machine keeps")?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    let signals = SigSet::all();
    signals.thread_block()?;
    loop {
        if matches!(signals.wait()?, Signal::SIGTERM | Signal::SIGINT) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Binds a file over another. A target that is a link into the machine's own `/run` (a resolver's file on the host)
/// is made there; one that is absent elsewhere is left out: programs then find their defaults.
fn bind_file(source: &Path, target: &Path) -> anyhow::Result<()> {
    let mut place = target.to_owned();
    for _ in 0..8 {
        match std::fs::read_link(&place) {
            Ok(link) => place = place.parent().unwrap_or(Path::new("/")).join(link),
            Err(_) => break,
        }
    }
    if !place.exists() {
        let in_run = normalized(&place).starts_with("/run");
        if !in_run {
            return Ok(());
        }
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&place, "")?;
    }
    mount(Some(source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} over {}", source.display(), place.display()))
}

/// The path without `..`, and with `/var/run` as what it is.
fn normalized(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match parts.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => parts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_resolvers_are_seen_to_lead_into_run() {
        let place = Path::new("/etc").join("../run/systemd/resolve/stub-resolv.conf");
        assert_eq!(normalized(&place), Path::new("/run/systemd/resolve/stub-resolv.conf"));
        assert_eq!(normalized(Path::new("/var/run/x")), Path::new("/run/x"));
    }
}
