//! Processes: children in fresh namespaces, a small pid 1, children that are set up between fork and exec.

mod child;
mod init;
mod launch;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sched::CloneFlags;
pub use nix::sys::signal::Signal;

pub use child::{Child, Exit, fork, spawn};
pub use init::{Init, run_as_init};
pub use launch::{Launch, LaunchError, Step};

/// Which fresh namespaces a process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    flags: CloneFlags,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { flags: CloneFlags::empty() }
    }
}

impl Isolation {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A user namespace in which the caller's uid and gid are 0, and all others are absent. It needs no privilege, and
    /// gives every privilege over the other namespaces made with it.
    #[must_use]
    pub fn user(self) -> Self {
        self.with(CloneFlags::CLONE_NEWUSER)
    }

    /// A network namespace with nothing but a loopback device that is down.
    #[must_use]
    pub fn net(self) -> Self {
        self.with(CloneFlags::CLONE_NEWNET)
    }

    /// A mount namespace with a copy of the caller's mounts.
    #[must_use]
    pub fn mount(self) -> Self {
        self.with(CloneFlags::CLONE_NEWNS)
    }

    /// A pid namespace. With [`spawn`] the child is its pid 1; with a [`Launch`] the launched program's children are
    /// in it, the program itself is not.
    #[must_use]
    pub fn pid(self) -> Self {
        self.with(CloneFlags::CLONE_NEWPID)
    }

    /// A hostname of its own.
    #[must_use]
    pub fn uts(self) -> Self {
        self.with(CloneFlags::CLONE_NEWUTS)
    }

    /// System V IPC and message queues of its own.
    #[must_use]
    pub fn ipc(self) -> Self {
        self.with(CloneFlags::CLONE_NEWIPC)
    }

    fn with(self, flag: CloneFlags) -> Self {
        Self { flags: self.flags | flag }
    }

    fn has_user(self) -> bool {
        self.flags.contains(CloneFlags::CLONE_NEWUSER)
    }
}

/// Fails unless the calling process has exactly one thread, as fork and some namespace calls need it.
pub fn require_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!("the process has {threads} threads; this must be done before it starts any")))
}

/// Asks the kernel to send `signal` to the calling process when the thread that made it ends.
///
/// The parent may be gone already: who needs to know checks something else too, as [`Init`]'s lifeline does.
pub fn set_parent_death_signal(signal: Signal) -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

/// A descriptor of a process. It stays with that process, whatever becomes of the number.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; it returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process of a pidfd. `NotFound`-like (`ESRCH`) when it has ended.
pub fn pidfd_send_signal(pidfd: &impl AsFd, signal: Signal) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call; a null siginfo asks for the one that kill makes.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal as i32, none, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling thread into the namespace of a descriptor, or with a pidfd into those namespaces of that process.
pub fn setns(fd: &impl AsFd, kinds: Isolation) -> io::Result<()> {
    Ok(nix::sched::setns(fd.as_fd(), kinds.flags)?)
}

/// The texts that make the calling user root in a fresh user namespace.
#[derive(Debug)]
struct IdMaps {
    uid: Vec<u8>,
    gid: Vec<u8>,
}

impl IdMaps {
    /// To be made before the user namespace is entered: inside, the ids are unknown.
    fn current() -> Self {
        let uid = format!("0 {} 1\n", nix::unistd::geteuid()).into_bytes();
        let gid = format!("0 {} 1\n", nix::unistd::getegid()).into_bytes();
        Self { uid, gid }
    }

    /// Writes the maps of the calling process. Allocates nothing, so it may run between fork and exec.
    fn write(&self) -> Result<(), (Step, nix::Error)> {
        let files: [(&std::ffi::CStr, &[u8]); 3] = [
            (c"/proc/self/setgroups", b"deny\n"),
            (c"/proc/self/uid_map", &self.uid),
            (c"/proc/self/gid_map", &self.gid),
        ];
        for (path, text) in files {
            write_file(path, text).map_err(|error| (Step::IdMaps, error))?;
        }
        Ok(())
    }
}

fn write_file(path: &std::ffi::CStr, text: &[u8]) -> nix::Result<()> {
    use nix::fcntl::{OFlag, open};
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    // These files take their text in one write or not at all.
    nix::unistd::write(&file, text).map(|_| ())
}
