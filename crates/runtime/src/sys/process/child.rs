//! Children of a process with one thread: a fork, or a fork into fresh namespaces.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{IdMaps, Isolation, LaunchError, Step, pidfd_send_signal, require_single_thread};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}

impl Exit {
    /// What a shell would say: the code, or 128 and the signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    pub(super) fn of(status: WaitStatus) -> Option<Self> {
        match status {
            WaitStatus::Exited(_, code) => Some(Self::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Some(Self::Signal(signal as i32)),
            _ => None,
        }
    }
}

/// A child process. Dropping it neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process id in our pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal. An ended child is fine.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Waits for its end and reaps it. Blocks.
    pub fn wait(&self) -> io::Result<Exit> {
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Ok(status) => {
                    if let Some(exit) = Exit::of(status) {
                        return Ok(exit);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// [`Child::wait`] for async code. Cancel-safe: the child is reaped only when this returns.
    pub async fn exited(&self) -> io::Result<Exit> {
        // SAFETY: the borrowed descriptor stays open and the same for as long as `self` is borrowed, which is longer
        // than `fd` lives.
        let fd = unsafe { AsyncFd::register_with_interest(self.pidfd.as_fd(), Interest::READABLE) }?;
        let _ready = fd.readable().await?;
        self.wait()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Runs `body` in a child process that ends with the code it returns. The caller must have one thread.
pub fn fork(body: impl FnOnce() -> i32) -> io::Result<Child> {
    require_single_thread()?;
    clone(Isolation::new(), body)
}

/// Runs `body` in a child process in fresh namespaces; with [`Isolation::pid`] the child is pid 1 there and usually
/// goes on with [`super::run_as_init`]. The caller must have one thread and stays where it is.
///
/// When the child cannot set itself up, this fails and says at which step.
pub fn spawn(isolation: Isolation, body: impl FnOnce() -> i32) -> Result<Child, LaunchError> {
    require_single_thread().map_err(|source| LaunchError { step: Step::Fork, source })?;
    let maps = isolation.has_user().then(IdMaps::current);
    let (mut ready, report) = io::pipe().map_err(|source| LaunchError { step: Step::Fork, source })?;
    // The parent's copy of the writing end is dropped with the closure, so that the read below ends with the child's.
    let child = clone(isolation, move || {
        if let Some(Err((step, error))) = maps.map(|maps| maps.write()) {
            step.report(&report, error);
            return 126;
        }
        drop(report);
        body()
    });
    let child = child.map_err(|source| LaunchError { step: Step::Namespaces, source })?;
    match Step::read_report(&mut ready) {
        None => Ok(child),
        Some((step, source)) => {
            // It is about to end; its exit code says nothing more.
            let _ = child.wait();
            Err(LaunchError { step, source })
        }
    }
}

/// A fork with namespaces and a pidfd in one call.
fn clone(isolation: Isolation, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid value of this plain struct of integers; zero means "not used" in each field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (isolation.flags.bits() as u32 | libc::CLONE_PIDFD as u32).into();
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: `args` has the size given and its pidfd pointer is valid for a write during the call. No stack is given
    // and no memory shared, so the child goes on with a copy of ours, as after fork. The process has one thread
    // (checked by the callers), so no lock is held by a thread that the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            std::process::exit(code)
        }
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor for us; nothing else knows it.
            Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
