//! Looking at a directory: which files there are, what they say, whether they changed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Options;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Manifests and their state.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Directories to watch.
    pub folders: Vec<PathBuf>,
    /// Directories outside, where files live that are linked to from inside.
    pub foreign: HashSet<PathBuf>,
    /// What could not be looked at, and why.
    pub failures: Vec<(PathBuf, String)>,
}

/// Walks over everything under a directory. Every directory is visited once, whatever links lead to it. Errors: the
/// directory itself cannot be read.
pub(super) fn walk(root: &Path, options: &Options) -> io::Result<Walk> {
    let mut walk = Walk::default();
    let mut visited = HashSet::new();
    let mut waiting = vec![(root.to_owned(), 0_usize)];
    while let Some((folder, depth)) = waiting.pop() {
        let entries = fs::metadata(&folder)
            .map(|metadata| visited.insert((metadata.dev(), metadata.ino())))
            .and_then(|first| if first { fs::read_dir(&folder).map(Some) } else { Ok(None) });
        let entries = match entries {
            Ok(Some(entries)) => entries,
            Ok(None) => continue,
            Err(error) if depth == 0 => return Err(error),
            // Deleted since its parent was read: its parent's event is on the way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                walk.failures.push((folder, error.to_string()));
                continue;
            }
        };
        walk.folders.push(folder.clone());
        for entry in entries.flatten() {
            let path = entry.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if hidden(name) {
                continue;
            }
            let linked = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            // Follows links; a dangling one is as good as absent.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() {
                if depth >= options.max_depth {
                    walk.failures.push((path, format!("folders deeper than {} are not read", options.max_depth)));
                } else {
                    waiting.push((path, depth + 1));
                }
                continue;
            }
            if !manifest(name) {
                continue;
            }
            if linked && let Some(folder) = fs::canonicalize(&path).ok().as_deref().and_then(Path::parent) {
                walk.foreign.insert(folder.to_owned());
            }
            if walk.files.len() >= options.max_files {
                walk.failures.push((folder, format!("more than {} files are not read", options.max_files)));
                return Ok(walk);
            }
            walk.files.insert(path, Stamp::of(&metadata));
        }
    }
    Ok(walk)
}

/// Whether a name is that of a manifest: `.yaml`, `.yml` or `.json`, and not an editor's own file.
pub(super) fn manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !hidden(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Whether a name is not looked at: hidden files (editors' swap files are) and backups.
pub(super) fn hidden(name: &str) -> bool {
    name.starts_with('.') || name.starts_with('#') || name.ends_with('~')
}

/// What reading a file gave.
#[derive(Debug)]
pub(super) enum Content {
    /// Its text and the state that was read.
    Text(String, Stamp),
    /// It is not there.
    Missing,
    /// It cannot be used, for the reason given.
    Unusable(String),
}

/// Reads a manifest. Never waits for a writer and never reads more than the limit.
pub(super) fn read(path: &Path, options: &Options) -> Content {
    match read_bytes(path, options) {
        Ok(Ok((bytes, stamp))) => match String::from_utf8(bytes) {
            Ok(text) => Content::Text(text, stamp),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                Content::Unusable(format!("not text: byte {at} is not UTF-8"))
            }
        },
        Ok(Err(reason)) => Content::Unusable(reason),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
        Err(error) => Content::Unusable(format!("cannot be read: {error}")),
    }
}

fn read_bytes(path: &Path, options: &Options) -> io::Result<Result<(Vec<u8>, Stamp), String>> {
    // Non-blocking: opening a pipe must not wait for somebody who writes.
    let mut file: File = OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Err("not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    (&mut file).take(options.max_file_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|read| read > options.max_file_bytes) {
        return Ok(Err(format!("larger than {} bytes", options.max_file_bytes)));
    }
    Ok(Ok((bytes, Stamp::of(&metadata))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editors_files_are_not_manifests() {
        for name in [".a.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.yaml.tmp", "a.txt", "..data"] {
            assert!(!manifest(name), "{name}");
        }
        for name in ["a.yaml", "a.yml", "a.json", "a.b.yaml"] {
            assert!(manifest(name), "{name}");
        }
    }

    #[test]
    fn links_in_circles_pipes_and_deep_folders_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::os::unix::fs::symlink(root, root.join("a/loop")).unwrap();
        std::os::unix::fs::symlink(root.join("nowhere"), root.join("dangling.yaml")).unwrap();
        fs::write(root.join("a/b/x.yaml"), "a").unwrap();
        fs::write(root.join("a/b/c/y.yaml"), "a").unwrap();
        nix::unistd::mkfifo(&root.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let options = Options { max_depth: 2, ..Options::default() };
        let found = walk(root, &options).unwrap();
        let names: Vec<_> = found.files.keys().map(|path| path.strip_prefix(root).unwrap().to_owned()).collect();
        assert_eq!(names, [PathBuf::from("a/b/x.yaml"), PathBuf::from("pipe.yaml")]);
        assert_eq!(found.failures.len(), 1, "{found:?}");
        assert!(matches!(read(&root.join("pipe.yaml"), &options), Content::Unusable(_)));
        assert!(matches!(read(&root.join("none.yaml"), &options), Content::Missing));
        let small = Options { max_file_bytes: 0, ..Options::default() };
        assert!(matches!(read(&root.join("a/b/x.yaml"), &small), Content::Unusable(_)));
    }
}
