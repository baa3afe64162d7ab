//! Pid 1 of a pid namespace: forwards signals, reaps orphans, ends with its child or when its lifeline breaks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child::{Exit, fork};

/// What pid 1 holds on to.
#[derive(Debug, Default)]
pub struct Init {
    /// When this becomes readable or is closed at its other end, pid 1 ends, and the kernel with it every process of
    /// the namespace. Best is a pidfd of the process that all depends on ([`super::pidfd_open`], before the fork): it
    /// becomes readable when that process ends, in whatever way. The other end of a pipe would be copied into pid 1.
    pub lifeline: Option<OwnedFd>,
}

/// Runs `body` in a child and looks after the namespace until that child ends: signals sent to this process go to the
/// child, orphans are reaped. Returns how the child ended; the caller then exits with [`Exit::code`], and the kernel
/// kills what is left.
///
/// Must be called by a process with one thread. The child gets the signal mask that the caller had.
pub fn run_as_init(init: &Init, body: impl FnOnce() -> i32) -> io::Result<Exit> {
    let mut signals = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGABRT] {
        signals.remove(fault);
    }
    // Blocked, they wait for the descriptor; unblocked, pid 1 would ignore them.
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let arrivals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let child = fork(move || match before.thread_set_mask() {
        Ok(()) => body(),
        Err(_) => 126,
    })?;
    loop {
        let mut fds = vec![PollFd::new(arrivals.as_fd(), PollFlags::POLLIN)];
        if let Some(lifeline) = &init.lifeline {
            fds.push(PollFd::new(lifeline.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.get(1).and_then(PollFd::revents).is_some_and(|events| !events.is_empty()) {
            return Ok(Exit::Signal(libc::SIGKILL));
        }
        while let Some(arrival) = arrivals.read_signal()? {
            let Some(signal) = i32::try_from(arrival.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
            else {
                continue;
            };
            if signal != Signal::SIGCHLD {
                child.signal(signal)?;
            } else if let Some(exit) = reap(child.pid())? {
                return Ok(exit);
            }
        }
    }
}

/// Reaps all that have ended; how the main child did, if it is among them.
fn reap(main: i32) -> io::Result<Option<Exit>> {
    loop {
        let status = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if status.pid().is_some_and(|pid| pid.as_raw() == main)
            && let Some(exit) = Exit::of(status)
        {
            return Ok(Some(exit));
        }
    }
}
