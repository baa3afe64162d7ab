//! What containers print, kept in files of bounded size: the current one and the one before it.
//!
//! Lines are kept as they come, without a time of their own. Readers that follow are told when there is more, and when
//! there will be no more. The files are held open: a reader gets the rest also when the pod's directory is gone.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Bytes of one file; a log keeps at least this much of its end, at most twice.
const FILE_BYTES: u64 = 1 << 20;

/// The log of one container over all its starts. Clones share it.
#[derive(Clone, Debug)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// How far a log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were ever written.
    pub total: u64,
    /// The container has ended for good: nothing more comes.
    pub ended: bool,
}

#[derive(Debug)]
struct State {
    file: File,
    older: Option<File>,
    /// Where the current file starts in all that was ever written.
    start: u64,
    length: u64,
}

impl Log {
    /// Starts an empty log.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let state = Mutex::new(State { file: create(path)?, older: None, start: 0, length: 0 });
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), state, progress: watch::Sender::default() }) })
    }

    /// Adds bytes. A full disk loses them.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.inner.state.lock();
        if state.length > 0 && state.length + bytes.len() as u64 > FILE_BYTES && self.rotate(&mut state).is_err() {
            return;
        }
        if state.file.write_all(bytes).is_ok() {
            state.length += bytes.len() as u64;
        }
        let total = state.start + state.length;
        drop(state);
        self.inner.progress.send_modify(|progress| progress.total = total);
    }

    /// Says that nothing more comes, or that it does after all.
    pub fn set_ended(&self, ended: bool) {
        self.inner.progress.send_modify(|progress| progress.ended = ended);
    }

    fn rotate(&self, state: &mut State) -> std::io::Result<()> {
        std::fs::rename(&self.inner.path, self.older())?;
        state.older = Some(std::mem::replace(&mut state.file, create(&self.inner.path)?));
        state.start += state.length;
        state.length = 0;
        Ok(())
    }

    fn older(&self) -> PathBuf {
        let mut name = self.inner.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }

    /// What was written from a place on, as far as it is kept, and the place after it. At most one file's worth at a time.
    pub fn read_from(&self, place: u64) -> std::io::Result<(Vec<u8>, u64)> {
        let state = self.inner.state.lock();
        if place >= state.start {
            let bytes = rest(&state.file, place - state.start)?;
            return Ok((bytes, state.start + state.length));
        }
        let bytes = match &state.older {
            Some(older) => {
                let older_start = state.start.saturating_sub(older.metadata()?.len());
                rest(older, place.saturating_sub(older_start))?
            }
            None => Vec::new(),
        };
        Ok((bytes, state.start))
    }

    /// Follows how far it is.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

/// Everything from a place on.
fn rest(file: &File, place: u64) -> std::io::Result<Vec<u8>> {
    let length = file.metadata()?.len().saturating_sub(place);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, place)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(log: &Log) -> Vec<u8> {
        let (mut all, mut place) = (Vec::new(), 0);
        loop {
            let (bytes, end) = log.read_from(place).unwrap();
            if end == place {
                return all;
            }
            all.extend(bytes);
            place = end;
        }
    }

    #[test]
    fn a_log_keeps_its_end_within_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(&directory.path().join("pod/c.log")).unwrap();
        for number in 0..300_000u32 {
            log.write(format!("{number:09}\n").as_bytes());
        }
        let kept = everything(&log);
        assert!(kept.ends_with(b"000299998\n000299999\n"));
        assert!(kept.len() as u64 >= FILE_BYTES && kept.len() as u64 <= 2 * FILE_BYTES, "{}", kept.len());
        let lines: Vec<u32> = String::from_utf8(kept).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(&directory.path().join("c.log")).unwrap();
        log.write(b"one\n");
        let (first, place) = log.read_from(0).unwrap();
        log.write(b"two\n");
        assert_eq!((first.as_slice(), log.read_from(place).unwrap().0.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
    }

    #[test]
    fn a_reader_gets_the_rest_after_the_directory_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(&directory.path().join("c.log")).unwrap();
        log.write(b"last words");
        drop(directory);
        assert_eq!(log.read_from(0).unwrap(), (b"last words".to_vec(), 10));
        log.set_ended(true);
        assert_eq!(*log.watch().borrow(), Progress { total: 10, ended: true });
    }
}
