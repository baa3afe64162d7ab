//! Which namespaces are in the mesh, on disk: what the plugin goes by while the agent cannot be asked. Beside it the
//! pods' probe ports, by which the agent tells probes from other traffic before it has heard of any pod.
//!
//! One file beside the beliefs, written whole or not at all, by the agent; read by the plugin, which must err on the
//! side of «in the mesh» where the file is there and cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::belief::Belief;
use crate::install::files;

/// The file's name in the state directory. Not one of a belief, which ends with `.json`.
pub const FILE: &str = "namespaces";
/// Larger files are not ours.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What is known of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// Namespaces whose pods are in the mesh unless they say otherwise.
    pub enrolled: BTreeSet<String>,
    /// The probe ports of the node's pods by UID; absent where an agent wrote that did not keep them.
    #[serde(default)]
    pub probe_ports: Option<BTreeMap<String, BTreeSet<u16>>>,
}

/// Why a pod is believed to be in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// Its namespace is.
    Namespace,
    /// A pod of that name was.
    Pod,
    /// What is known cannot be read.
    Unreadable,
}

/// Writes what is known.
#[derive(Clone, Debug)]
pub struct Keeper {
    path: PathBuf,
    written: Option<Known>,
}

impl Keeper {
    /// Writes into the state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), written: None }
    }

    /// What an agent before has written, as far as it is of use.
    pub fn kept(&self) -> Option<Known> {
        serde_json::from_slice(&read(&self.path).ok()?).ok()
    }

    /// Writes what is known now, if it is not what was written last.
    pub fn keep(&mut self, known: Known) -> io::Result<()> {
        if self.written.as_ref() == Some(&known) {
            return Ok(());
        }
        files::replace(&self.path, &serde_json::to_vec(&known)?, files::PRIVATE)?;
        self.written = Some(known);
        Ok(())
    }

    /// Takes the file away.
    pub fn remove(&mut self) -> io::Result<()> {
        self.written = None;
        files::remove(&self.path)
    }
}

/// Whether a pod is believed to be in the mesh, from the state directory. A directory that no agent has written to
/// knows of no pod.
pub fn believed(state_dir: &Path, namespace: &str, name: &str) -> Option<Because> {
    let known = match read(&state_dir.join(FILE)) {
        Ok(bytes) => match serde_json::from_slice::<Known>(&bytes) {
            Ok(known) => known,
            Err(_) => return Some(Because::Unreadable),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Known::default(),
        Err(_) => return Some(Because::Unreadable),
    };
    if known.enrolled.contains(namespace) {
        return Some(Because::Namespace);
    }
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let same = |belief: Belief| belief.namespace == namespace && belief.name == name;
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| read(&path).ok())
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .any(same)
        .then_some(Because::Pod)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belief::Beliefs;

    #[test]
    fn only_what_is_known_or_believed_counts() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        assert_eq!(believed(&state.join("absent"), "shop", "a"), None);
        assert_eq!(believed(state, "shop", "a"), None);

        let beliefs = Beliefs::open(state).unwrap();
        let belief = Belief {
            uid: "u-1".into(),
            namespace: "other".into(),
            name: "b".into(),
            netns: 1,
            since: None,
            at_start: false,
            older: Vec::new(),
        };
        beliefs.save(&belief).unwrap();
        let mut keeper = Keeper::new(state);
        assert_eq!(keeper.kept(), None);
        let known =
            Known { enrolled: ["shop".to_owned()].into(), probe_ports: Some([("u-1".into(), [80].into())].into()) };
        keeper.keep(known.clone()).unwrap();
        assert_eq!(Keeper::new(state).kept(), Some(known));
        assert_eq!(believed(state, "shop", "a"), Some(Because::Namespace));
        assert_eq!(believed(state, "other", "b"), Some(Because::Pod));
        assert_eq!(believed(state, "other", "a"), None);
        // The agent's own reading leaves the file alone.
        assert_eq!(beliefs.load().unwrap(), [belief]);
        assert_eq!(believed(state, "shop", "a"), Some(Because::Namespace));

        keeper.remove().unwrap();
        assert_eq!(believed(state, "shop", "a"), None);
        fs::write(state.join(FILE), r#"{"enrolled":["shop"]}"#).unwrap();
        assert_eq!(keeper.kept().unwrap().probe_ports, None);
        assert_eq!(believed(state, "shop", "a"), Some(Because::Namespace));
        fs::write(state.join(FILE), "{").unwrap();
        assert_eq!(believed(state, "quiet", "a"), Some(Because::Unreadable));
    }
}
