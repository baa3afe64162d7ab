//! Where the network namespaces of pods are found.

pub mod proc;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use stillmesh_runtime::sys::netns::Netns;

use crate::belief::is_uid;

/// Finds the namespaces of running pods. Blocks: one pass serves all pods that are looked for.
pub trait Locate: Send + Sync {
    /// The namespaces of those of the pods (by UID) that have one.
    fn locate(&self, uids: &HashSet<String>) -> HashMap<String, Netns>;
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

    fn one(&self, uid: &str) -> io::Result<Option<Netns>> {
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

impl Locate for Directory {
    fn locate(&self, uids: &HashSet<String>) -> HashMap<String, Netns> {
        let one = |uid: &String| match self.one(uid) {
            Ok(netns) => Some((uid.clone(), netns?)),
            Err(error) => {
                tracing::warn!(uid, %error, "the network namespace of a pod cannot be opened");
                None
            }
        };
        uids.iter().filter_map(one).collect()
    }
}

/// How namespaces that the plugin names are opened.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    /// Where `/proc` of the node is; absent where it is this process's own.
    pub proc_dir: Option<PathBuf>,
}

impl Opener {
    /// Opens a pod's namespace by the path that the container runtime gave to the plugin. The namespace of this
    /// process is refused: on a node it is the node's own, whose traffic must never be captured.
    pub fn open(&self, path: &Path) -> io::Result<Netns> {
        let here = match (&self.proc_dir, path.strip_prefix("/proc")) {
            (Some(proc_dir), Ok(rest)) => proc_dir.join(rest),
            _ => path.to_owned(),
        };
        let netns = Netns::open(here)?;
        if netns == Netns::current()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the node's own"));
        }
        Ok(netns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_a_namespace_is_not_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let locate = Directory::new(directory.path());
        assert!(locate.one("a-1").unwrap().is_none());
        std::fs::write(directory.path().join("a-2"), "").unwrap();
        assert!(locate.one("a-2").unwrap().is_none());
        assert!(locate.one("../a-2").unwrap().is_none());
        assert!(locate.locate(&["a-1".to_owned(), "a-2".to_owned()].into()).is_empty());
    }

    #[test]
    fn the_nodes_own_namespace_is_refused() {
        let error = Opener::default().open(Path::new("/proc/thread-self/ns/net")).unwrap_err();
        assert_eq!(error.to_string(), "it is the node's own");
        let opener = Opener { proc_dir: Some("/nowhere".into()) };
        assert_eq!(opener.open(Path::new("/proc/1/ns/net")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
