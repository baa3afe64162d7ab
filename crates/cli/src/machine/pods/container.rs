//! Containers: programs of this machine, each in its own process namespace inside its pod's sandbox.
//!
//! A container is three processes: one that enters the pod's namespaces and ends with the container's exit code, a tiny
//! process 1, and the program. Signals go through all of them, and nothing that the program started outlives it. The
//! first two steps are this executable; the last becomes the program.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Child;

use crate::machine::bootstrap::{SELF, Step, mount_proc, step};
use crate::machine::init;

/// How long a container's process may take to be there.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the first step says once the container exists; anything else is a complaint.
const STARTED: &[u8] = b"+";

/// What to run and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Process whose namespaces to enter: the sandbox's holder, or, to run a command beside a container, its first
    /// process.
    pub enter: u32,
    /// Enter that container's process namespace instead of making one.
    pub join: bool,
    /// Directory to start in.
    pub directory: Option<String>,
    /// Program and arguments; empty for this executable with `own` as arguments.
    pub argv: Vec<String>,
    /// Arguments for this executable.
    pub own: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Keep every capability, as parts of the mesh itself need; others keep what a container of a cluster has.
    pub privileged: bool,
}

impl ContainerSpec {
    fn label(&self) -> &str {
        self.argv.first().or(self.own.first()).map_or("", String::as_str)
    }
}

/// A running container, or a command beside one. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: u32,
}

/// Where a container's output goes.
#[derive(Debug)]
pub struct Stdio3 {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

impl From<[OwnedFd; 3]> for Stdio3 {
    fn from([stdin, stdout, stderr]: [OwnedFd; 3]) -> Self {
        Self { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
    }
}

impl Running {
    /// Starts it. Returns once signals reach it.
    pub async fn start(spec: &ContainerSpec, stdio: Stdio3) -> anyhow::Result<Self> {
        let (sender, mut ours) = tokio::net::unix::pipe::pipe()?;
        let mut theirs = Some(sender);
        // The first step opens the pipe by its name in /proc: nothing else that is started meanwhile inherits it.
        let status = format!("/proc/{}/fd/{}", std::process::id(), theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd));
        let (mut command, specification) = step("container", spec.label(), &(spec, status))?.split();
        command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr).kill_on_drop(true);
        let mut child = command.spawn().context("starting the container's first process")?;
        drop((command, specification));
        let pid = child.id().context("the container's first process has ended")?;
        let mut said = [0u8; 4096];
        let count = tokio::select! {
            read = tokio::time::timeout(DEADLINE, ours.read(&mut said)) => {
                read.with_context(|| format!("the container's process was not there within {DEADLINE:?}"))??
            }
            // A short program may be over before its start has been read.
            ended = child.wait() => {
                drop(theirs.take());
                match ours.read(&mut said).await? {
                    0 => bail!("the container's first process ended: {}", ended?),
                    count => count,
                }
            }
        };
        drop(theirs);
        match said.get(..count) {
            Some(STARTED) => Ok(Self { child, pid }),
            complaint => bail!("{}", String::from_utf8_lossy(complaint.unwrap_or_default())),
        }
    }

    /// Process id of its first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the program. One that has ended is no error.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid)
            && self.child.id().is_some()
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for the end; the exit code, 128 + n when signal n ended it. Cancel-safe.
    pub async fn ended(&mut self) -> u8 {
        use std::os::unix::process::ExitStatusExt;
        match self.child.wait().await {
            Ok(status) => {
                let by_signal = || status.signal().map(|signal| 128 + signal);
                status.code().or_else(by_signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
            }
            Err(_) => 255,
        }
    }
}

/// First step: enters the pod's namespaces, makes the container's own, starts its process 1. Single-threaded.
pub fn enter((spec, status): &(ContainerSpec, String)) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    let mut pipe = std::fs::File::options().write(true).open(status).context("opening the status pipe")?;
    let code = prepare(spec, status).and_then(|mut command| {
        let started = || {
            // Process 1 of a container says so itself, once no signal to it is lost any more.
            if spec.join {
                say_started(&mut pipe);
            }
        };
        init::run_with(&mut command.command, started).context("starting process 1 of the container")
    });
    Ok(ExitCode::from(complained(code, &mut pipe)))
}

fn say_started(pipe: &mut std::fs::File) {
    // The runner may be gone; then this process is about to be.
    let _ = pipe.write_all(STARTED);
}

/// The exit code; an error is told to the runner.
fn complained(code: anyhow::Result<u8>, pipe: &mut std::fs::File) -> u8 {
    code.unwrap_or_else(|error| {
        // As above.
        let _ = pipe.write_all(format!("{error:#}").as_bytes());
        init::CANNOT_RUN
    })
}

fn prepare(spec: &ContainerSpec, status: &str) -> anyhow::Result<Step> {
    let open = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", spec.enter);
        std::fs::File::open(&path).with_context(|| format!("opening {path}"))
    };
    let mut namespaces = vec![
        (open("ipc")?, CloneFlags::CLONE_NEWIPC),
        (open("uts")?, CloneFlags::CLONE_NEWUTS),
        (open("net")?, CloneFlags::CLONE_NEWNET),
        (open("mnt")?, CloneFlags::CLONE_NEWNS),
    ];
    if spec.join {
        namespaces.push((open("pid_for_children")?, CloneFlags::CLONE_NEWPID));
    }
    for (file, kind) in namespaces {
        setns(file, kind).with_context(|| format!("entering the pod ({kind:?})"))?;
    }
    if spec.join {
        return step("run", spec.label(), spec);
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).context("making the container's namespaces")?;
    // Mounts of the machine still reach the pods that are to see them; none goes the other way.
    mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_SLAVE, None)
        .context("separating mounts")?;
    step("init", spec.label(), &(spec, status))
}

/// Process 1 of a container. A signal that came before it can hand it on would be dropped by the kernel: the container
/// counts as started only after that.
pub fn init_step((spec, status): &(ContainerSpec, String)) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    // Before the new /proc, which does not have the runner.
    let mut pipe = std::fs::File::options().write(true).open(status).context("opening the status pipe")?;
    let code = mount_proc().and_then(|()| {
        let started = || say_started(&mut pipe);
        init::run_with(&mut step("run", spec.label(), spec)?.command, started)
            .context("starting the container's program")
    });
    Ok(ExitCode::from(complained(code, &mut pipe)))
}

/// Whether the program's file can be found: it is a path, or in a folder of PATH that can be looked into.
fn somewhere(spec: &ContainerSpec) -> bool {
    let Some(program) = spec.argv.first() else { return true };
    let path = spec.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path.as_str());
    program.contains('/') || path.split(':').any(|folder| std::path::Path::new(folder).join(program).exists())
}

/// What programs keep: the list that container engines give by default. Without SYS_ADMIN, SYS_PTRACE and NET_ADMIN they
/// can neither uncover what the machine keeps nor take the mesh's rules out of their namespace.
const KEPT: [Capability; 14] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

fn drop_capabilities() -> anyhow::Result<()> {
    let kept = CapsHashSet::from(KEPT);
    for capability in caps::all() {
        if !kept.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    let held: CapsHashSet = caps::read(None, CapSet::Permitted)?.intersection(&kept).copied().collect();
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &held)?;
    caps::set(None, CapSet::Permitted, &held)?;
    Ok(())
}

/// Becomes the program. Returns only when that fails.
#[expect(clippy::print_stderr, reason = "the container's own log is where its user looks")]
pub fn become_program(spec: &ContainerSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    // A session of its own: signals of a terminal concern its user's job there, and reading from one stops nobody else.
    // It fails only where this process leads a session already.
    let _ = nix::unistd::setsid();
    if !spec.privileged {
        drop_capabilities().context("dropping capabilities")?;
    }
    if spec.join {
        // A command beside a container ends with who asked for it; the program of a container, with process 1.
        set_pdeathsig(Signal::SIGKILL)?;
    }
    let mut command = match spec.argv.split_first() {
        Some((program, arguments)) => {
            let mut command = std::process::Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            let mut command = std::process::Command::new(SELF);
            command.arg0("stillmesh").args(&spec.own);
            command
        }
    };
    command.env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
    if let Some(directory) = &spec.directory {
        command.current_dir(directory);
    }
    let mut error = command.exec();
    if error.kind() == ErrorKind::PermissionDenied && !somewhere(spec) {
        // Said of a folder on the way that its user may not look into.
        error = ErrorKind::NotFound.into();
    }
    let name = spec.argv.first().map_or("stillmesh", String::as_str);
    eprintln!("stillmesh: cannot run {name:?}: {error}");
    let not_found = error.kind() == ErrorKind::NotFound;
    Ok(ExitCode::from(if not_found { init::NOT_FOUND } else { init::CANNOT_RUN }))
}
