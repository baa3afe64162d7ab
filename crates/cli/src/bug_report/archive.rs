//! The archive: files in memory, within bounds, then written at once. Nothing is left where that does not succeed.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Largest file, bytes.
pub(super) const FILE: usize = 16 << 20;
/// All files together, bytes.
pub(super) const WHOLE: usize = 512 << 20;
/// Largest file that says what is in the others, bytes.
const LAST: usize = 1 << 20;
/// The folder in the archive.
const ROOT: &str = "bug-report";

/// Files of an archive.
#[derive(Debug, Default)]
pub(super) struct Archive {
    files: Vec<(String, Vec<u8>)>,
    bytes: usize,
}

/// Which end of a file is kept where it is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The first part.
    Head,
    /// The last part, as for logs.
    Tail,
}

impl Archive {
    /// Adds a file. Says what of it was left out, if anything.
    pub(super) fn add(&mut self, path: &str, content: String, keep: Keep) -> Option<String> {
        self.put(path, content, keep, FILE.min(WHOLE.saturating_sub(self.bytes)))
    }

    /// Adds a file that says what is in the others: there is room for its first part, however much they are.
    pub(super) fn add_last(&mut self, path: &str, content: String) {
        self.put(path, content, Keep::Head, LAST);
    }

    fn put(&mut self, path: &str, mut content: String, keep: Keep, room: usize) -> Option<String> {
        let whole = content.len();
        if whole > room {
            match keep {
                Keep::Head => content.truncate(content.floor_char_boundary(room)),
                Keep::Tail => drop(content.drain(..content.ceil_char_boundary(whole - room))),
            }
        }
        self.bytes += content.len();
        self.files.push((path.to_owned(), content.into_bytes()));
        let kept = if keep == Keep::Head { "first" } else { "last" };
        (whole > room).then(|| format!("only the {kept} {room} of {whole} bytes are kept"))
    }

    /// How many files there are, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.files.len(), self.bytes)
    }

    /// The bytes of a `.tar.gz`.
    pub(super) fn packed(&self, now: u64) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (path, content) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            tar.append_data(&mut header, format!("{ROOT}/{path}"), content.as_slice())?;
        }
        tar.into_inner()?.finish()
    }
}

/// The folder that a file is put into.
pub(super) fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes an archive: whole, or not at all; in place of what was there.
pub(super) fn write(packed: &[u8], file: &Path) -> anyhow::Result<()> {
    let folder = folder(file);
    let mut part = tempfile::Builder::new()
        .prefix(".bug-report-")
        .tempfile_in(folder)
        .with_context(|| format!("a file in {} cannot be made", folder.display()))?;
    part.write_all(packed).with_context(|| format!("writing {}", file.display()))?;
    part.as_file().sync_all().with_context(|| format!("writing {}", file.display()))?;
    part.persist(file).with_context(|| format!("{} cannot be put in place", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn files_are_within_bounds_and_come_back_whole() {
        let mut archive = Archive::default();
        assert_eq!(archive.add("a/b.txt", "hello".to_owned(), Keep::Head), None);
        let long = format!("{}end", "x".repeat(FILE));
        assert!(archive.add("log", long, Keep::Tail).is_some_and(|said| said.contains("the last")));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.tar.gz");
        std::fs::write(&file, "before").unwrap();
        write(&archive.packed(1).unwrap(), &file).unwrap();
        let packed = std::fs::File::open(&file).unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(packed)).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content));
        }
        assert_eq!(found[0], ("bug-report/a/b.txt".to_owned(), b"hello".to_vec()));
        assert!(found[1].1.len() == FILE && found[1].1.ends_with(b"xend"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn where_it_cannot_be_written_nothing_is_left_and_the_place_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(b"", &folder.path().join("none/out.tar.gz")).unwrap_err();
        assert!(format!("{error:#}").contains("none"), "{error:#}");
        std::fs::create_dir(folder.path().join("out")).unwrap();
        assert!(write(b"", &folder.path().join("out")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
