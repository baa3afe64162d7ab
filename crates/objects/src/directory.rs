//! A watched directory of manifests.
//!
//! A thread of its own reads the files and waits for inotify; what it finds is merged into one pending update until
//! the owner takes it, so that a slow owner costs no more memory than the objects themselves.
//!
//! A file counts as half-written while it cannot be read without errors or says less than before, at most
//! [`Options::settle`] long. After that its errors are told; objects that it held before and that may be behind the
//! errors stay as they were, as a refused `kubectl apply` would leave them. Only a file that is gone, or that is good
//! and no longer names them, takes objects away.

mod catalog;
mod files;
mod watcher;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Source, Update};
use catalog::Difference;
use stillmesh_k8s::Finding;
use watcher::{Turn, Watcher};

/// What to read and how patiently. Times are wall time.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a burst of events is gathered before files are read; default 10 ms.
    pub gather: Duration,
    /// How long a file that cannot be read as manifests may be one that is still being written; its errors are told
    /// only after that. Default 300 ms.
    pub settle: Duration,
    /// How often everything is looked at again, in case the kernel's events are lost or absent; default 10 s.
    pub rescan: Duration,
    /// Larger files are refused with an error; default 4 MiB.
    pub max_file_bytes: u64,
    /// More files than this are refused with an error; default 100,000.
    pub max_files: usize,
    /// Deeper folders are refused with an error; default 16.
    pub max_depth: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(10),
            settle: Duration::from_millis(300),
            rescan: Duration::from_secs(10),
            max_file_bytes: 4 << 20,
            max_files: 100_000,
            max_depth: 16,
        }
    }
}

impl Options {
    /// For a directory whose only writer puts whole files in place by renaming them: nothing is ever half-written,
    /// so that changes and removals count at once.
    pub fn atomic() -> Self {
        Self { gather: Duration::from_millis(2), settle: Duration::ZERO, ..Self::default() }
    }
}

/// The objects of all `.yaml`, `.yml` and `.json` files under a directory. Hidden files, editors' backups and swap
/// files are left out; links are followed.
#[derive(Debug)]
pub struct DirectorySource {
    root: PathBuf,
    shared: Arc<Shared>,
}

/// What the thread and the owner share.
#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    news: Notify,
    wake: EventFd,
}

/// What the owner has not taken yet. Bounded by the number of objects and findings.
#[derive(Debug, Default)]
struct Pending {
    difference: Difference,
    findings: Option<Arc<[Finding]>>,
    fresh: bool,
    stop: bool,
    ended: bool,
}

impl DirectorySource {
    /// Starts watching. Errors: the directory does not exist or cannot be read, or no thread can be started.
    pub fn open(root: impl AsRef<Path>, options: Options) -> io::Result<Self> {
        let root = root.as_ref().to_owned();
        std::fs::read_dir(&root)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?;
        let shared = Arc::new(Shared { pending: Mutex::default(), news: Notify::new(), wake });
        let (of_thread, folder) = (Ended(shared.clone()), root.clone());
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || look_after(&folder, options, &of_thread.0))?;
        Ok(Self { root, shared })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Source for DirectorySource {
    async fn next(&mut self) -> Option<Update> {
        loop {
            {
                let mut pending = self.shared.pending.lock();
                if std::mem::take(&mut pending.fresh) {
                    let Difference { changes, moved } = std::mem::take(&mut pending.difference);
                    return Some(Update {
                        unusable: Vec::new(),
                        changes: changes.into_values().collect(),
                        moved: moved.into_iter().collect(),
                        findings: pending.findings.take(),
                        complete: true,
                    });
                }
                if pending.ended {
                    return None;
                }
            }
            self.shared.news.notified().await;
        }
    }
}

impl Drop for DirectorySource {
    /// Tells the thread to end; it does so before its next look at a file.
    fn drop(&mut self) {
        self.shared.pending.lock().stop = true;
        let _ = self.shared.wake.write(1);
    }
}

/// Tells the owner when the thread ends, however it ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.pending.lock().ended = true;
        self.0.news.notify_one();
    }
}

fn look_after(root: &Path, options: Options, shared: &Shared) {
    let (mut watcher, first) = match Watcher::open(root, options, Instant::now()) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(%error, directory = %root.display(), "the directory of manifests cannot be read");
            return;
        }
    };
    tell(first, true, shared);
    while !shared.pending.lock().stop {
        watcher.wait(&shared.wake);
        let turn = watcher.turn(Instant::now());
        tell(turn, false, shared);
    }
}

fn tell(turn: Turn, first: bool, shared: &Shared) {
    if !first && turn.difference.is_empty() && turn.findings.is_none() {
        return;
    }
    let mut pending = shared.pending.lock();
    pending.difference.merge(turn.difference);
    if let Some(findings) = turn.findings {
        pending.findings = Some(findings.into());
    }
    pending.fresh = true;
    drop(pending);
    shared.news.notify_one();
}

#[cfg(test)]
mod tests;
