//! A tiny process 1: starts one child, hands every signal on to it, reaps orphans, and ends with it.
//!
//! Used for the machine itself and for every container. When process 1 of a namespace of processes ends, the kernel
//! ends all others in it: nothing that a container started outlives it. It runs single-threaded and owns no state.

use std::io;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Exit code of a step that could not start what it was to start, as a shell has it.
pub const CANNOT_RUN: u8 = 126;
/// Exit code when the program does not exist.
pub const NOT_FOUND: u8 = 127;

/// Runs `command` as the one child and returns its exit code; 128 + n when signal n ended it.
///
/// Signals are blocked before the child is made, so that none is lost; the child has to unblock them
/// (`unblock_signals`), which every step of ours does first.
pub fn run(command: &mut Command) -> io::Result<u8> {
    run_with(command, || ())
}

/// Like [`run`], and calls `started` once the child exists.
pub fn run_with(command: &mut Command, started: impl FnOnce()) -> io::Result<u8> {
    let signals = SigSet::all();
    signals.thread_block().map_err(io::Error::from)?;
    let child = command.spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    started();
    loop {
        match signals.wait().map_err(io::Error::from)? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(pid)? {
                    return Ok(code);
                }
            }
            // Already gone is no error: its SIGCHLD is on the way.
            signal => drop(kill(pid, signal)),
        }
    }
}

/// Takes back the blocking of signals that a step inherited from the init above it.
pub fn unblock_signals() {
    // Setting an empty mask cannot fail.
    let _ = SigSet::empty().thread_set_mask();
}

/// Reaps every dead child; the exit code of `child` when it is among them.
fn reap(child: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => {
                code = Some(u8::try_from(status & 0xff).unwrap_or(1))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                code = Some(128u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(code),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
