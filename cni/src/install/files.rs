//! Files of which there is the old one or the new one, never half of one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Readable by its owner only.
pub const PRIVATE: u32 = 0o600;
/// A program that everybody may run.
pub const PROGRAM: u32 = 0o755;

/// Writes a file under its name in one step, with this mode.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    with_scratch(path, mode, |file| file.write_all(bytes))
}

/// Copies a file under a name in one step, with this mode.
pub fn copy(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    let mut source = File::open(from)?;
    with_scratch(to, mode, |file| io::copy(&mut source, file).map(|_| ()))
}

/// Removes a file; nothing there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether two files hold the same bytes.
pub fn same(one: &Path, other: &Path) -> io::Result<bool> {
    if fs::metadata(one)?.len() != fs::metadata(other)?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (io::BufReader::new(File::open(one)?), io::BufReader::new(File::open(other)?));
    loop {
        use io::BufRead as _;
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        if left.get(..length) != right.get(..length) {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

fn with_scratch(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let scratch = scratch(path)?;
    let mut written = (|| {
        let mut file = File::create(&scratch)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        write(&mut file)?;
        file.sync_all()
    })();
    if written.is_ok() {
        written = fs::rename(&scratch, path);
    }
    if written.is_err() {
        // What went wrong before is what counts.
        let _ = fs::remove_file(&scratch);
    }
    written
}

/// Beside the file, hidden, and with an ending that no container runtime reads.
fn scratch(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".stillmesh-new");
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.conf");
        replace(&path, b"one", PRIVATE).unwrap();
        replace(&path, b"two", PROGRAM).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PROGRAM);
        let copied = directory.path().join("b");
        copy(&path, &copied, PROGRAM).unwrap();
        assert!(same(&path, &copied).unwrap());
        fs::write(&copied, "twO").unwrap();
        assert!(!same(&path, &copied).unwrap());
        assert!(copy(&directory.path().join("absent"), &copied, PROGRAM).is_err());
        remove(&copied).unwrap();
        remove(&copied).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
