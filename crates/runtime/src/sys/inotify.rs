//! Waiting for changes in directories.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Says when something changed in some directories, not what: whoever waits looks again.
#[derive(Debug)]
pub struct Changes {
    inotify: AsyncFd<Descriptor>,
}

/// Owns the descriptor, and gives the same one for as long as it lives.
#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// Watches directories, not what is below them: files written, made, moved, removed, or with another mode, and the
    /// directories' own end. Needs a runtime.
    pub fn of<'a>(directories: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        for directory in directories {
            inotify.add_watch(directory, changes)?;
        }
        // SAFETY: the descriptor is owned by the value that is registered, does not change, and is closed with it, after
        // the registration has ended.
        let inotify = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) };
        Ok(Self { inotify: inotify.map_err(io::Error::other)? })
    }

    /// Returns when something has changed since [`Changes::of`] or the last call. Cancel-safe.
    pub async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.inotify.get_ref().0.read_events() {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_before_the_wait_counts() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let changes = Changes::of([directory.path(), other.path()]).unwrap();
        for change in [
            Box::new(|file: &Path| std::fs::write(file, "x")) as Box<dyn Fn(&Path) -> io::Result<()>>,
            Box::new(|file: &Path| std::fs::rename(file, file.with_extension("new"))),
            Box::new(|file: &Path| std::fs::remove_file(file.with_extension("new"))),
        ] {
            change(&other.path().join("a")).unwrap();
            changes.next().await.unwrap();
        }
        assert!(Changes::of([directory.path().join("absent").as_path()]).is_err());
    }
}
