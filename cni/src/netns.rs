//! Where the network namespace of a running pod is found.

use std::io;
use std::path::PathBuf;

use stillmesh_runtime::sys::netns::Netns;

use crate::belief::is_uid;

/// Finds the namespaces of running pods. Blocks at most as long as opening a file takes.
pub trait Locate: Send + Sync {
    /// The namespace of the pod with this UID; `None` where there is none (any more, or yet).
    fn locate(&self, uid: &str) -> io::Result<Option<Netns>>;
}

/// A directory to which namespaces are bound under their pods' UIDs.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Looks in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Locate for Directory {
    fn locate(&self, uid: &str) -> io::Result<Option<Netns>> {
        if !is_uid(uid) {
            return Ok(None);
        }
        match Netns::open(self.path.join(uid)) {
            Ok(netns) => Ok(Some(netns)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The file is there and nothing is bound to it: the pod has ended or is about to start.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_namespace_is_not_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let locate = Directory::new(directory.path());
        assert!(locate.locate("a-1").unwrap().is_none());
        std::fs::write(directory.path().join("a-2"), "").unwrap();
        assert!(locate.locate("a-2").unwrap().is_none());
        assert!(locate.locate("../a-2").unwrap().is_none());
    }
}
