//! Network namespaces, and threads that live in one.
//!
//! The namespace is a property of a thread. A [`NetnsThread`] enters its namespace once and stays there; it is never
//! the main thread nor a worker of a runtime, so no task can end up in the wrong namespace. Sockets made on it belong
//! to its namespace for as long as they live and can be used from anywhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::{mpsc, oneshot};

/// A network namespace, kept alive by a descriptor. Clones share it.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    inode: u64,
    path: Option<PathBuf>,
}

impl Netns {
    /// Opens a namespace by a path such as `/proc/<pid>/ns/net` or a file that it is bound to.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Self::with(File::open(path)?.into(), Some(path.to_owned()))
    }

    /// Takes a descriptor, for example one that was passed over a socket. It must be of a network namespace.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::with(fd, None)
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::with(File::open("/proc/thread-self/ns/net")?.into(), None)
    }

    /// The namespace that a socket was made in. Needs CAP_NET_ADMIN in the user namespace that owns it.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        use std::os::fd::{AsRawFd as _, FromRawFd as _};
        // SAFETY: SIOCGSKNS takes no argument; the descriptor is borrowed for the call.
        let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, close-on-exec, for us; nobody else owns it.
        Self::with(unsafe { OwnedFd::from_raw_fd(fd) }, None)
    }

    /// Makes a new, empty namespace. The calling thread stays where it is.
    pub fn create() -> io::Result<Self> {
        on_own_thread("netns-create", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    fn with(fd: OwnedFd, path: Option<PathBuf>) -> io::Result<Self> {
        let file = File::from(fd);
        let inode = file.metadata()?.ino();
        let fd = OwnedFd::from(file);
        if kind(fd.as_fd())? != CloneFlags::CLONE_NEWNET.bits() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        Ok(Self { inner: Arc::new(Inner { fd, inode, path }) })
    }

    /// What tells two namespaces apart while both live.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inner.inode
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// A descriptor of its own, to pass on.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.inner.fd.try_clone()
    }

    /// Binds the namespace to a file, so that it can be opened by name and outlives its processes. The file is made if
    /// absent.
    pub fn bind_to(&self, path: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        File::options().create(true).append(true).open(path)?;
        let source = format!("/proc/self/fd/{}", self.inner.fd.as_raw_fd());
        nix::mount::mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    }

    /// Undoes [`Netns::bind_to`]; absent is fine.
    pub fn unbind(path: &Path) -> io::Result<()> {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. Blocks: not for async code, which uses
    /// a [`NetnsThread`].
    pub fn run_blocking<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread("netns-run", || {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the namespace, for good. Only for threads and processes that are nobody else's.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.inner.fd, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.inner.inode == other.inner.inode
    }
}

impl Eq for Netns {}

/// The CLONE_NEW* flag of a namespace descriptor.
fn kind(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: NS_GET_NSTYPE takes no argument and only reads; the descriptor is borrowed for the call.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

/// linux/sockios.h.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// `_IO(0xb7, 3)`, linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

fn on_own_thread<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
    })
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> io::Error {
    io::Error::other(format!("panicked: {}", crate::tasks::panic_message(panic)))
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that lives in a namespace and makes sockets there. It ends when this is dropped.
///
/// At most 64 jobs wait. Jobs run one after the other and must not block for long.
#[derive(Debug)]
pub struct NetnsThread {
    jobs: mpsc::Sender<Job>,
    netns: Netns,
}

const JOBS: usize = 64;
const STACK_BYTES: usize = 256 * 1024;

impl NetnsThread {
    /// Starts the thread and waits until it is in the namespace. The kernel shows the first 15 bytes of the name.
    pub fn spawn(name: impl Into<String>, netns: Netns) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS);
        let (ready, entered) = std::sync::mpsc::sync_channel(1);
        let there = netns.clone();
        std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(move || {
            let entry = there.enter();
            let failed = entry.is_err();
            if ready.send(entry).is_err() || failed {
                return;
            }
            while let Some(job) = queue.blocking_recv() {
                job();
            }
        })?;
        entered.recv().map_err(|_| gone())??;
        Ok(Self { jobs, netns })
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `work` in the namespace. Waits while 64 jobs are queued. A panic in it comes back as an error.
    ///
    /// Cancelled before it ran, the work may still run; its value is then dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody may be waiting any more.
            let _ = done.send(std::panic::catch_unwind(AssertUnwindSafe(work)));
        });
        self.jobs.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?.map_err(|panic| panicked(panic.as_ref()))
    }

    /// Has `work` run in the namespace, some time, and does not wait for it. `WouldBlock` when 64 jobs are queued.
    pub fn begin(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let job: Job = Box::new(move || {
            // Who waits for it notices what it did not do.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(work));
        });
        self.try_send(job)
    }

    /// [`NetnsThread::run`] for code that is not async. `WouldBlock` when 64 jobs are queued.
    pub fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = done.send(std::panic::catch_unwind(AssertUnwindSafe(work)));
        });
        self.try_send(job)?;
        result.recv().map_err(|_| gone())?.map_err(|panic| panicked(panic.as_ref()))
    }

    fn try_send(&self, job: Job) -> io::Result<()> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => io::ErrorKind::WouldBlock.into(),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the namespace's thread has ended")
}
