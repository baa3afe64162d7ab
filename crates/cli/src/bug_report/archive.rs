//! The archive: each file is packed as it comes, within bounds; all of it is then written at once. Nothing is left where that does
//! not succeed.

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

/// Files, packed.
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<Vec<u8>>>,
    /// When it is made, seconds of Unix.
    now: u64,
    files: usize,
    bytes: usize,
}

/// An archive that is whole.
pub(super) struct Packed {
    /// A `.tar.gz`.
    pub(super) content: Vec<u8>,
    /// How many files there are.
    pub(super) files: usize,
    /// Their bytes.
    pub(super) bytes: usize,
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
    /// None yet.
    pub(super) fn new(now: u64) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        Self { tar, now, files: 0, bytes: 0 }
    }

    /// Adds a file. Says what of it was left out, if anything.
    pub(super) fn add(&mut self, path: &str, content: String, keep: Keep) -> std::io::Result<Option<String>> {
        self.put(path, content, keep, FILE.min(WHOLE.saturating_sub(self.bytes)))
    }

    /// Adds a file that says what is in the others: there is room for its first part, however much they are.
    pub(super) fn add_last(&mut self, path: &str, content: String) -> std::io::Result<()> {
        self.put(path, content, Keep::Head, LAST).map(drop)
    }

    fn put(&mut self, path: &str, mut content: String, keep: Keep, room: usize) -> std::io::Result<Option<String>> {
        let whole = content.len();
        if whole > room {
            match keep {
                Keep::Head => content.truncate(content.floor_char_boundary(room)),
                Keep::Tail => drop(content.drain(..content.ceil_char_boundary(whole - room))),
            }
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.tar.append_data(&mut header, format!("{ROOT}/{path}"), content.as_bytes())?;
        (self.files, self.bytes) = (self.files + 1, self.bytes + content.len());
        let kept = if keep == Keep::Head { "first" } else { "last" };
        Ok((whole > room).then(|| format!("only the {kept} {room} of {whole} bytes are kept")))
    }

    /// The whole.
    pub(super) fn finish(self) -> std::io::Result<Packed> {
        Ok(Packed { content: self.tar.into_inner()?.finish()?, files: self.files, bytes: self.bytes })
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
        let mut archive = Archive::new(1);
        assert_eq!(archive.add("a/b.txt", "hello".to_owned(), Keep::Head).unwrap(), None);
        let long = format!("{}end", "x".repeat(FILE));
        assert!(archive.add("log", long, Keep::Tail).unwrap().is_some_and(|said| said.contains("the last")));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.tar.gz");
        std::fs::write(&file, "before").unwrap();
        let packed = archive.finish().unwrap();
        assert_eq!((packed.files, packed.bytes), (2, FILE + 5));
        write(&packed.content, &file).unwrap();
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
