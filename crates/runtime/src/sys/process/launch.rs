//! Programs that are set up between fork and exec: namespaces, mounts, session, death signal. Works from processes
//! with many threads too.

use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use stillmesh_core::{Diagnose, Fault};

use super::{IdMaps, Isolation};

/// What happens in the child before the program starts, in this order: death signal, namespaces entered, namespaces
/// made, ids mapped, mounts, session.
#[derive(Debug, Default)]
pub struct Launch {
    death_signal: Option<Signal>,
    enter: Vec<OwnedFd>,
    isolation: Isolation,
    binds: Vec<(CString, CString)>,
    new_session: bool,
}

impl Launch {
    /// Nothing special.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The program gets this signal when the thread that launched it ends.
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.death_signal = Some(signal);
        self
    }

    /// Enters the namespace of a descriptor (any kind).
    #[must_use]
    pub fn enter(mut self, namespace: OwnedFd) -> Self {
        self.enter.push(namespace);
        self
    }

    /// Makes fresh namespaces. With a mount namespace, its mounts no longer propagate to where they came from.
    #[must_use]
    pub fn isolate(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Binds a file or directory over another; needs [`Isolation::mount`], else everybody sees it.
    pub fn bind(mut self, from: &Path, over: &Path) -> io::Result<Self> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        self.binds.push((text(from)?, text(over)?));
        Ok(self)
    }

    /// Makes the program the leader of a session of its own: signals of the terminal do not reach it, and its whole
    /// process group can be signalled by its id.
    #[must_use]
    pub fn new_session(mut self) -> Self {
        self.new_session = true;
        self
    }

    /// Starts the program. When it cannot be set up, the error says at which step. The command must not be used again:
    /// it keeps the setup.
    pub fn spawn(self, command: &mut Command) -> Result<std::process::Child, LaunchError> {
        self.spawn_with(command, Command::spawn)
    }

    /// [`Launch::spawn`] for async code.
    pub fn spawn_async(self, command: &mut tokio::process::Command) -> Result<tokio::process::Child, LaunchError> {
        let (prepared, report) = self.prepare()?;
        prepared.attach(command.as_std_mut());
        finish(command.spawn(), report)
    }

    fn spawn_with<T>(
        self,
        command: &mut Command,
        spawn: impl FnOnce(&mut Command) -> io::Result<T>,
    ) -> Result<T, LaunchError> {
        let (prepared, report) = self.prepare()?;
        prepared.attach(command);
        finish(spawn(command), report)
    }

    fn prepare(self) -> Result<(Prepared, PipeReader), LaunchError> {
        let (reader, writer) = io::pipe().map_err(|source| LaunchError { step: Step::Fork, source })?;
        // The command keeps the writing end; a failed child has written before its start is reported as failed.
        nix::fcntl::fcntl(&reader, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(|error| LaunchError { step: Step::Fork, source: error.into() })?;
        let maps = self.isolation.has_user().then(IdMaps::current);
        Ok((Prepared { launch: self, maps, report: writer }, reader))
    }
}

/// Reads what the child reported, if the start failed.
fn finish<T>(started: io::Result<T>, mut report: PipeReader) -> Result<T, LaunchError> {
    started.map_err(|source| match Step::read_report(&mut report) {
        Some((step, source)) => LaunchError { step, source },
        None => LaunchError { step: Step::Exec, source },
    })
}

/// All that the child needs, allocated before the fork.
struct Prepared {
    launch: Launch,
    maps: Option<IdMaps>,
    report: PipeWriter,
}

impl Prepared {
    fn attach(self, command: &mut Command) {
        let setup = move || {
            self.run().map_err(|(step, error)| {
                step.report(&self.report, error);
                io::Error::from(error)
            })
        };
        // SAFETY: the closure runs between fork and exec. It makes system calls only and allocates nothing: texts and
        // descriptors were made before, errors are plain numbers. Descriptors in it live as long as the command.
        unsafe { command.pre_exec(setup) };
    }

    fn run(&self) -> Result<(), (Step, Errno)> {
        let launch = &self.launch;
        let at = |step: Step| move |error: Errno| (step, error);
        if let Some(signal) = launch.death_signal {
            nix::sys::prctl::set_pdeathsig(signal).map_err(at(Step::DeathSignal))?;
        }
        for namespace in &launch.enter {
            nix::sched::setns(namespace.as_fd(), CloneFlags::empty()).map_err(at(Step::Enter))?;
        }
        if !launch.isolation.flags.is_empty() {
            nix::sched::unshare(launch.isolation.flags).map_err(at(Step::Namespaces))?;
        }
        if let Some(maps) = &self.maps {
            maps.write()?;
        }
        if launch.isolation.flags.contains(CloneFlags::CLONE_NEWNS) {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None, c"/", private).map_err(at(Step::Mounts))?;
        }
        for (from, over) in &launch.binds {
            mount(Some(from), over, MsFlags::MS_BIND | MsFlags::MS_REC).map_err(at(Step::Mounts))?;
        }
        if launch.new_session {
            nix::unistd::setsid().map_err(at(Step::Session))?;
        }
        Ok(())
    }
}

fn mount(from: Option<&CStr>, over: &CStr, flags: MsFlags) -> nix::Result<()> {
    nix::mount::mount(from, over, None::<&CStr>, flags, None::<&CStr>)
}

/// A program or child that was not started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct LaunchError {
    /// What failed.
    pub step: Step,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Diagnose for LaunchError {
    fn code(&self) -> &'static str {
        match self.step {
            Step::Fork => "PRC001",
            Step::DeathSignal => "PRC002",
            Step::Enter => "PRC003",
            Step::Namespaces => "PRC004",
            Step::IdMaps => "PRC005",
            Step::Mounts => "PRC006",
            Step::Session => "PRC007",
            Step::Exec => "PRC008",
        }
    }

    fn fault(&self) -> Fault {
        match self.step {
            Step::Exec => Fault::Config,
            _ => Fault::Internal,
        }
    }

    fn remedy(&self) -> &'static str {
        match self.step {
            Step::Fork => "raise the limit of processes or of memory",
            Step::Namespaces | Step::IdMaps => {
                "allow user namespaces: user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns, the container's seccomp profile; or run as root"
            }
            Step::Mounts => "check that both paths are there and that mounts are allowed in user namespaces",
            Step::Exec => "check that the program is there and may be run",
            Step::DeathSignal | Step::Enter | Step::Session => {
                "check what restricts this process: seccomp, capabilities"
            }
        }
    }
}

/// A step of starting a program or child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Making the process.
    Fork = 1,
    /// Asking for a signal at the parent's end.
    DeathSignal,
    /// Entering namespaces.
    Enter,
    /// Making namespaces.
    Namespaces,
    /// Mapping the user's ids.
    IdMaps,
    /// Mounting.
    Mounts,
    /// Making a session.
    Session,
    /// Running the program.
    Exec,
}

impl std::fmt::Display for Step {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Fork => "make a process",
            Self::DeathSignal => "ask for a signal at the parent's end",
            Self::Enter => "enter a namespace",
            Self::Namespaces => "make namespaces",
            Self::IdMaps => "map the user's ids into the user namespace",
            Self::Mounts => "mount",
            Self::Session => "make a session",
            Self::Exec => "run the program",
        })
    }
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Fork,
        Self::DeathSignal,
        Self::Enter,
        Self::Namespaces,
        Self::IdMaps,
        Self::Mounts,
        Self::Session,
        Self::Exec,
    ];

    /// Tells the parent. Allocates nothing. A parent that does not listen still learns the error's number from exec.
    pub(super) fn report(self, to: &PipeWriter, error: Errno) {
        let [a, b, c, d] = (error as i32).to_ne_bytes();
        let _ = nix::unistd::write(to, &[self as u8, a, b, c, d]);
    }

    /// What a child reported; `None` when it had nothing to report.
    pub(super) fn read_report(from: &mut PipeReader) -> Option<(Self, io::Error)> {
        let mut report = [0; 5];
        from.read_exact(&mut report).ok()?;
        let [step, a, b, c, d] = report;
        let step = Self::ALL.into_iter().find(|known| *known as u8 == step)?;
        Some((step, io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]))))
    }
}
