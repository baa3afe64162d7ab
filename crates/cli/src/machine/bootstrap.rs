//! From the user's shell into namespaces of our own: `up` (host side) → `enter` → process 1 → runner.
//!
//! Every step is this same executable started again, so no step inherits threads, locks or descriptors of the one
//! before. What ties them together:
//!
//! - each step asks the kernel to be killed when the step before it dies, and the kernel kills everything in a
//!   process namespace whose process 1 dies: `kill -9` of any of them ends all;
//! - standard input of all steps is one end of a socket pair whose other end only `up` holds. Over it comes the
//!   control socket (made in the host's network namespace, where the other commands look for it), then `stop`.
//!
//! Mounts exist only in the new mount namespace and links only in new network namespaces, so they go with them.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Pid, getegid, geteuid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stillmesh_runtime::sys::fds;
use tokio::io::AsyncReadExt;

use super::foreign::ForeignTunnel;
use super::{control, init, precheck};
use crate::args::Up;
use crate::output;

/// This executable, also after its file was replaced or hidden.
pub const SELF: &str = "/proc/self/exe";
/// Everything a machine keeps; a tmpfs of its own, seen by nobody outside.
pub const ROOT: &str = "/run/stillmesh";
/// What `up` says over the socket pair to end the machine in an orderly way.
const STOP: &[u8] = b"stop";

/// What the steps hand on to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Name of the mesh.
    pub name: String,
    /// Directory of manifests, absolute.
    pub dir: PathBuf,
    /// Number of nodes.
    pub nodes: u8,
    /// Life asked for certificates.
    pub secret_ttl: String,
    /// The node tunnel, when it is not ours.
    pub(crate) ztunnel: Option<ForeignTunnel>,
    /// Print errors only.
    pub quiet: bool,
    /// Make a user namespace first.
    pub user_namespace: bool,
}

/// Host side of `stillmesh up`: waits for the machine and hands signals on. Single-threaded.
pub(crate) fn up(args: &Up) -> anyhow::Result<ExitCode> {
    let dir = std::fs::canonicalize(&args.dir)
        .with_context(|| format!("the directory of manifests {} cannot be opened", args.dir.display()))?;
    if !dir.is_dir() {
        bail!("{} is not a directory; `up` takes the directory that holds the manifests", args.dir.display());
    }
    let ztunnel = args.ztunnel.as_deref().map(ForeignTunnel::read).transpose()?;
    let report = precheck::run()?;
    if !report.passes() {
        bail!("this machine cannot hold a mesh as it is set up\n\n{}", report.problems());
    }
    let socket = control::bind(&args.name)?;
    let spec = MachineSpec {
        name: args.name.clone(),
        dir,
        nodes: args.nodes,
        secret_ttl: args.secret_ttl.clone(),
        ztunnel,
        quiet: args.quiet,
        user_namespace: report.user_namespace,
    };

    let (ours, theirs) = UnixStream::pair()?;
    send_descriptor(&ours, &socket)?;
    let signals =
        SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD]);
    signals.thread_block()?;
    let mut enter = step("enter", &spec.name, &spec)?;
    let mut child = enter.command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().context("starting the machine")?;
    drop(enter);
    drop(socket);
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let mut asked = false;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait()? {
                    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                    if !asked && code != 0 {
                        output::note(&format!("stillmesh: the mesh {:?} ended unexpectedly ({status})", args.name));
                    }
                    return Ok(ExitCode::from(code));
                }
            }
            _ if asked => _ = kill(pid, Signal::SIGKILL),
            _ => {
                asked = true;
                if sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(STOP)], &[], MsgFlags::MSG_NOSIGNAL, None).is_err() {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }
}

/// First step: new namespaces for the children. This process itself stays in the host's process namespace.
pub fn enter(spec: &MachineSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    // A session of its own: Ctrl-C reaches `up` alone, which then ends the machine in order, and a program that reads from
    // the user's terminal is not stopped as a background job, with all that shares its process group.
    nix::unistd::setsid().context("making a session")?;
    // Should `up` be gone already, the runner finds the socket pair closed and ends all.
    set_pdeathsig(Signal::SIGKILL)?;
    enter_namespaces(spec.user_namespace)?;
    let code = init::run(&mut step("machine-init", &spec.name, spec)?.command)?;
    Ok(ExitCode::from(code))
}

/// Makes every namespace of a machine for this process, the process namespace for its children.
pub fn enter_namespaces(user_namespace: bool) -> anyhow::Result<()> {
    if user_namespace {
        let (uid, gid) = (geteuid(), getegid());
        unshare(CloneFlags::CLONE_NEWUSER).context("unshare(CLONE_NEWUSER)")?;
        std::fs::write("/proc/self/setgroups", "deny").context("writing /proc/self/setgroups")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("writing /proc/self/uid_map")?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("writing /proc/self/gid_map")?;
        // The new credentials have cleared it.
        set_pdeathsig(Signal::SIGKILL)?;
    }
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(flags).context("unshare(mount, network, host name, IPC and process namespaces)")?;
    mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
        .context("making mounts private")?;
    Ok(())
}

/// Process 1: fresh `/proc`, own `/run`, then the runner.
pub fn machine_init(spec: &MachineSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    mount_proc()?;
    let spec = MachineSpec { dir: hide_run(&spec.dir)?, ..spec.clone() };
    nix::unistd::sethostname(&spec.name).context("setting the host name")?;
    let code = init::run(&mut step("runner", &spec.name, &spec)?.command)?;
    Ok(ExitCode::from(code))
}

/// Mounts the `/proc` of this process namespace.
pub fn mount_proc() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context("mounting a new /proc")
}

/// Puts a tmpfs over `/run`, which hides the sockets of the host's resolvers and daemons. `/run/user` (the user's own
/// files) and the manifests stay visible. Returns where the manifests now are.
fn hide_run(dir: &Path) -> anyhow::Result<PathBuf> {
    let open = |path: &Path| std::fs::File::open(path).ok();
    let user = open(Path::new("/run/user"));
    let inside = dir.starts_with("/run") && !dir.starts_with("/run/user");
    let manifests = if inside { open(dir) } else { None };
    mount_tmpfs("/run")?;
    if let Some(user) = user {
        bind_descriptor(&user, Path::new("/run/user"))?;
    }
    if let Some(manifests) = manifests {
        bind_descriptor(&manifests, dir)?;
    }
    std::fs::create_dir_all(ROOT)?;
    mount_tmpfs(ROOT)?;
    // What is mounted below later (namespaces of pods) has to appear in the mount namespaces of the node agents.
    mount::<str, str, str, str>(None, ROOT, None, MsFlags::MS_SHARED, None).context("sharing mounts of the machine")?;
    Ok(dir.to_owned())
}

/// Mounts an empty tmpfs.
pub fn mount_tmpfs(target: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0755"))
        .with_context(|| format!("mounting a tmpfs on {target}"))
}

/// Binds an open directory of a covered mount to a path.
fn bind_descriptor(directory: &std::fs::File, target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(target)?;
    let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("keeping {} visible", target.display()))
}

/// One internal step: this executable again. Its specification is in a file in memory that the child inherits: command
/// lines and environments of processes can be read by others, and their length is limited.
#[derive(Debug)]
pub struct Step {
    /// To be spawned at once, by the thread that made it, and before this is dropped: until then every other child would
    /// inherit the specification as well.
    pub command: Command,
    specification: OwnedFd,
}

/// Prepares a step. The label stands in its command line, for whoever looks at the list of processes.
pub fn step(name: &str, label: &str, spec: &impl Serialize) -> anyhow::Result<Step> {
    let specification = memfd_create("specification", MFdFlags::empty()).context("making a file in memory")?;
    let mut file = std::fs::File::from(specification);
    file.write_all(&serde_json::to_vec(spec)?).context("writing a file in memory")?;
    let specification = OwnedFd::from(file);
    let mut command = Command::new(SELF);
    command.arg0("stillmesh").args(["internal", name, &specification.as_raw_fd().to_string(), label]);
    Ok(Step { command, specification })
}

impl Step {
    /// For a runtime's children: what to keep until the command is spawned.
    pub fn split(self) -> (tokio::process::Command, OwnedFd) {
        (self.command.into(), self.specification)
    }
}

/// In the step: its specification. The descriptor is closed, so that nothing started later inherits it.
pub fn specification<T: DeserializeOwned>(descriptor: RawFd) -> anyhow::Result<T> {
    let bytes = std::fs::read(format!("/proc/self/fd/{descriptor}")).context("reading the step's specification")?;
    nix::unistd::close(descriptor).context("closing the step's specification")?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// In the runner: the control listener, and the end of the socket pair that tells when to stop.
pub async fn take_listener() -> anyhow::Result<(UnixListener, tokio::net::UnixStream)> {
    let lifeline = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    lifeline.set_nonblocking(true)?;
    let lifeline = tokio::net::UnixStream::from_std(lifeline)?;
    let mut byte = [0u8; 1];
    let (_, descriptors) = fds::recv(&lifeline, &mut byte).await?;
    let listener = descriptors.into_iter().next().context("`up` is gone")?;
    Ok((listener.into(), lifeline))
}

/// In the runner: returns when `up` asks to stop, or is gone.
pub async fn until_told(mut lifeline: tokio::net::UnixStream) {
    // Whatever comes, and the end as well, means stop.
    let _ = lifeline.read_u8().await;
}

/// Sends a descriptor with one byte.
fn send_descriptor(socket: &UnixStream, descriptor: &impl AsRawFd) -> io::Result<()> {
    let raw = [descriptor.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"l")], &message, MsgFlags::empty(), None)?;
    Ok(())
}
