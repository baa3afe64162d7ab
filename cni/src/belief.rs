//! What is believed of enrolled pods, on disk: one file per pod, written whole or not at all.
//!
//! Written before the first change to a pod and deleted after the last, so that after a crash the agent, and a plugin
//! that cannot reach it, err on the side of «in the mesh». Files that cannot be read are reported and removed: the pod
//! is then enrolled anew.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::enroll::older::Connection;
use crate::known;

/// Larger files are not ours.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Older connections that are remembered over a restart; of more, the rest is no longer counted then.
pub const MAX_OLDER: usize = 4096;

/// What is believed of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Belief {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Inode of its network namespace.
    pub netns: u64,
    /// When it was captured (RFC 3339); absent until it is.
    pub since: Option<String>,
    /// It was captured before any of its containers ran.
    #[serde(default)]
    pub at_start: bool,
    /// Connections older than capture, at most [`MAX_OLDER`].
    pub older: Vec<Connection>,
}

/// The directory with all beliefs.
#[derive(Clone, Debug)]
pub struct Beliefs {
    directory: PathBuf,
}

impl Beliefs {
    /// Opens the directory; it is made if absent.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Everything that is believed. Unreadable files are removed.
    pub fn load(&self) -> io::Result<Vec<Belief>> {
        let mut beliefs = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == known::FILE) {
                continue;
            }
            match read(&path) {
                Ok(belief) => beliefs.push(belief),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file of the state directory is of no use");
                    if path.is_file() {
                        fs::remove_file(&path)?;
                    }
                }
            }
        }
        beliefs.sort_by(|one, other| one.uid.cmp(&other.uid));
        Ok(beliefs)
    }

    /// Writes a belief. After a crash there is the old one or the new one.
    pub fn save(&self, belief: &Belief) -> io::Result<()> {
        let path = self.path(&belief.uid)?;
        let scratch = path.with_extension("new");
        let mut file = fs::File::create(&scratch)?;
        file.write_all(&serde_json::to_vec(belief)?)?;
        file.sync_all()?;
        fs::rename(&scratch, &path)
    }

    /// Deletes what is believed of a pod; nothing is fine.
    pub fn delete(&self, uid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(uid)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &str) -> io::Result<PathBuf> {
        if !is_uid(uid) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uid:?} is not a pod UID")));
        }
        Ok(self.directory.join(format!("{uid}.json")))
    }
}

/// Whether the text is fit to be a pod's UID, and so a file's name.
pub fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn read(path: &Path) -> io::Result<Belief> {
    let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(bad("the file is too large"));
    }
    let belief: Belief = serde_json::from_slice(&fs::read(path)?)?;
    let named = path.file_name().is_some_and(|name| name == format!("{}.json", belief.uid).as_str());
    if named && is_uid(&belief.uid) { Ok(belief) } else { Err(bad("the file is not named after its pod")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belief(uid: &str) -> Belief {
        let older = Connection {
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "10.0.0.2:4000".parse().unwrap(),
            cookie: Some(7),
        };
        Belief {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "a".into(),
            netns: 4_026_532_000,
            since: Some("2026-01-01T00:00:00Z".into()),
            at_start: true,
            older: vec![older],
        }
    }

    #[test]
    fn what_is_saved_is_loaded_until_it_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let beliefs = Beliefs::open(&directory.path().join("state")).unwrap();
        beliefs.save(&belief("b-2")).unwrap();
        beliefs.save(&belief("a-1")).unwrap();
        beliefs.save(&belief("a-1")).unwrap();
        assert_eq!(beliefs.load().unwrap(), [belief("a-1"), belief("b-2")]);
        beliefs.delete("a-1").unwrap();
        beliefs.delete("a-1").unwrap();
        assert_eq!(beliefs.load().unwrap(), [belief("b-2")]);
    }

    #[test]
    fn files_of_no_use_are_removed_and_do_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let beliefs = Beliefs::open(directory.path()).unwrap();
        beliefs.save(&belief("a-1")).unwrap();
        fs::write(directory.path().join("a-2.json"), "{").unwrap();
        fs::write(directory.path().join("a-3.json"), serde_json::to_vec(&belief("x")).unwrap()).unwrap();
        fs::write(directory.path().join("a-1.new"), "half").unwrap();
        assert_eq!(beliefs.load().unwrap(), [belief("a-1")]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_uid_that_is_a_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let beliefs = Beliefs::open(directory.path()).unwrap();
        for uid in ["", "../x", "a/b", ".", "a b"] {
            assert!(beliefs.delete(uid).is_err(), "{uid}");
        }
    }
}
