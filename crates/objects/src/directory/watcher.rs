//! The thread that looks after a directory: waits for events, reads what changed, tells the owner.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use stillmesh_k8s::{Finding, Placed, Position, Severity, parse};
use tracing::{debug, warn};

use super::Options;
use super::catalog::{Catalog, Difference};
use super::files::{self, Content, Stamp};

/// What one turn of the watcher found out.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub difference: Difference,
    pub findings: Option<Vec<Finding>>,
}

/// The state of the watch. Time is passed in, so that tests step it.
pub(super) struct Watcher {
    root: PathBuf,
    options: Options,
    inotify: Option<Inotify>,
    watches: HashMap<WatchDescriptor, Place>,
    catalog: Catalog,
    files: BTreeMap<PathBuf, Known>,
    /// Files to look at, and from when on.
    due: BTreeMap<PathBuf, Instant>,
    rescan: Instant,
    /// What is wrong with the directory itself.
    troubles: Vec<Finding>,
    /// The findings that the owner knows of.
    told: Vec<Finding>,
}

#[derive(Clone, Debug)]
enum Place {
    Inside(PathBuf),
    Foreign,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    /// Since when the file looks as if somebody were still writing it.
    doubtful: Option<Instant>,
}

impl Watcher {
    /// Reads everything once.
    pub fn open(root: &Path, options: Options, now: Instant) -> io::Result<(Self, Turn)> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .inspect_err(|error| warn!(%error, "no inotify: the directory is looked at now and then instead"))
            .ok();
        let mut watcher = Self {
            root: root.to_owned(),
            options,
            inotify,
            watches: HashMap::new(),
            catalog: Catalog::default(),
            files: BTreeMap::new(),
            due: BTreeMap::new(),
            rescan: now,
            troubles: Vec::new(),
            told: Vec::new(),
        };
        std::fs::read_dir(root)?;
        let turn = watcher.turn(now);
        Ok((watcher, turn))
    }

    /// Waits for something to do: an event, a file that is due, or the owner, who writes to `wake`.
    pub fn wait(&mut self, wake: &EventFd) {
        let next = self.due.values().min().map_or(self.rescan, |due| self.rescan.min(*due));
        let patience = next.saturating_duration_since(Instant::now());
        let patience = PollTimeout::try_from(patience + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        if let Some(inotify) = &self.inotify {
            fds.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
        }
        // An error here is a signal's doing; the next turn looks again.
        let _ = poll(&mut fds, patience);
    }

    /// Takes in events and looks at every file that is due.
    pub fn turn(&mut self, now: Instant) -> Turn {
        self.events(now);
        let mut turn = Turn::default();
        let rescan = self.rescan <= now;
        if rescan {
            self.look_around(now);
        }
        let due: Vec<PathBuf> = self.due.iter().filter(|(_, due)| **due <= now).map(|(path, _)| path.clone()).collect();
        let looked = rescan || !due.is_empty();
        for path in due {
            self.due.remove(&path);
            turn.difference.merge(self.look_at(&path, now));
        }
        if looked {
            let findings: Vec<Finding> = self.troubles.iter().cloned().chain(self.catalog.findings()).collect();
            turn.findings = (findings != self.told).then(|| findings.clone());
            self.told = findings;
        }
        turn
    }

    /// As if the kernel had no inotify.
    #[cfg(test)]
    pub fn forget_events(&mut self) {
        self.inotify = None;
    }

    fn events(&mut self, now: Instant) {
        let mut lost = false;
        loop {
            let Some(inotify) = &self.inotify else { return };
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!(%error, "inotify ended: the directory is looked at now and then instead");
                    self.inotify = None;
                    break;
                }
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    lost = true;
                    continue;
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watches.remove(&event.wd);
                    continue;
                }
                let name = event.name.as_deref().and_then(|name| name.to_str());
                match (self.watches.get(&event.wd), name) {
                    (Some(Place::Inside(folder)), Some(name)) => {
                        let folders = event.mask.contains(AddWatchFlags::IN_ISDIR);
                        // Volumes of Kubernetes change by renaming the link `..data`.
                        lost |= (folders && !files::hidden(name)) || name.starts_with("..");
                        if !folders && files::manifest(name) {
                            let written = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB;
                            let wait =
                                if written.contains(event.mask) { self.options.settle } else { self.options.gather };
                            soonest(&mut self.due, folder.join(name), now + wait);
                        }
                    }
                    (None, _) => {}
                    _ => lost = true,
                }
            }
        }
        if lost {
            self.rescan = self.rescan.min(now + self.options.gather);
        }
    }

    /// Compares all files with what is known of them, and watches folders that are new.
    fn look_around(&mut self, now: Instant) {
        self.rescan = now + self.options.rescan;
        self.troubles.clear();
        // Watches come before the walk: what happens in between is seen by one of them.
        let walk = match self.watch_all() {
            Ok(walk) => walk,
            Err(error) => {
                // Everything known stays: a directory that cannot be read is not an empty one.
                let root = self.root.clone();
                self.trouble(&root, &format!("the directory cannot be read: {error}"));
                return;
            }
        };
        for (path, reason) in &walk.failures {
            self.trouble(path, reason);
        }
        for (path, stamp) in &walk.files {
            if self.files.get(path).and_then(|known| known.stamp) != Some(*stamp) {
                soonest(&mut self.due, path.clone(), now);
            }
        }
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| !walk.files.contains_key(*path)).cloned().collect();
        for path in gone {
            soonest(&mut self.due, path, now);
        }
    }

    fn watch_all(&mut self) -> io::Result<files::Walk> {
        loop {
            let walk = files::walk(&self.root, &self.options)?;
            let Some(inotify) = &self.inotify else { return Ok(walk) };
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MODIFY
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            let inside = walk.folders.iter().map(|folder| (folder, Place::Inside(folder.clone())));
            let foreign = walk.foreign.iter().map(|folder| (folder, Place::Foreign));
            let mut fresh = false;
            // Foreign first: a folder that is both is inside.
            for (folder, place) in foreign.chain(inside) {
                match inotify.add_watch(folder, flags) {
                    Ok(watch) => fresh |= self.watches.insert(watch, place).is_none(),
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(error) => {
                        warn!(%error, folder = %folder.display(), "a folder cannot be watched: it is looked at often instead");
                        self.rescan = self.rescan.min(Instant::now() + Duration::from_secs(1));
                    }
                }
            }
            if !fresh {
                return Ok(walk);
            }
        }
    }

    /// Looks at one file: reads it, and takes over what it says unless it looks half-written.
    fn look_at(&mut self, path: &Path, now: Instant) -> Difference {
        let name = self.name(path);
        let (read, stamp) = match files::read(path, &self.options) {
            Content::Text(text, stamp) => {
                let documents = parse::documents(&name, &text);
                (Some((documents.objects, documents.findings)), Some(stamp))
            }
            Content::Missing => (None, None),
            Content::Unusable(reason) => (Some((Vec::new(), vec![trouble(&name, &reason)])), None),
        };
        let first_sight = !self.files.contains_key(path);
        let errors =
            read.as_ref().is_some_and(|(_, findings)| findings.iter().any(|one| one.severity == Severity::Error));
        let lost = match &read {
            None => !first_sight,
            Some((objects, _)) => {
                let left: BTreeSet<_> = objects.iter().map(|placed| placed.object.key()).collect();
                self.catalog.objects(&name).any(|(key, _)| !left.contains(key))
            }
        };
        let known = self.files.entry(path.to_owned()).or_default();
        known.stamp = stamp;
        let settled = match (errors || lost, known.doubtful) {
            (false, _) => {
                known.doubtful = None;
                true
            }
            (true, Some(since)) => now >= since + self.options.settle,
            (true, None) => {
                known.doubtful = Some(now);
                self.options.settle.is_zero()
            }
        };
        if !settled {
            let since = known.doubtful.unwrap_or(now);
            soonest(&mut self.due, path.to_owned(), since + self.options.settle);
        } else if read.is_none() {
            self.files.remove(path);
        } else {
            known.doubtful = None;
        }
        match read {
            None if settled => {
                debug!(file = %name, "a file is gone");
                self.catalog.remove(&name)
            }
            None => Difference::default(),
            Some((objects, findings)) if settled => self.take_over(&name, objects, findings, errors),
            // Nothing to lose yet: what can be read is taken, what is wrong with the rest is told later.
            Some((objects, _)) if first_sight => self.take_over(&name, objects, Vec::new(), false),
            Some(_) => Difference::default(),
        }
    }

    fn take_over(
        &mut self,
        name: &Arc<str>,
        mut objects: Vec<Placed>,
        findings: Vec<Finding>,
        errors: bool,
    ) -> Difference {
        let mut difference = Difference::default();
        if errors {
            // What was good before stays until the file is good again: an edit that fails changes nothing.
            let read: BTreeSet<_> = objects.iter().map(|placed| placed.object.key()).collect();
            objects
                .extend(self.catalog.objects(name).filter(|(key, _)| !read.contains(*key)).map(|(_, old)| old.clone()));
        }
        // An object that came here from a file that is gone is not there twice.
        let rivals: BTreeSet<Arc<str>> = objects
            .iter()
            .flat_map(|placed| self.catalog.holders(&placed.object.key()).to_vec())
            .filter(|file| file != name && !Path::new(&**file).exists())
            .collect();
        let mut moved = self.catalog.set(name, objects, findings);
        for rival in rivals {
            let before: HashMap<_, _> =
                self.catalog.objects(&rival).map(|(key, old)| (key.clone(), old.clone())).collect();
            let mut gone = self.catalog.remove(&rival);
            self.files.remove(Path::new(&*rival));
            self.due.remove(Path::new(&*rival));
            gone.changes.retain(|key, change| match change {
                crate::Change::Set(heir) if before.get(key).is_some_and(|old| old.object == heir.object) => {
                    moved.moved.insert(key.clone(), heir.at.clone());
                    false
                }
                _ => true,
            });
            difference.merge(gone);
        }
        difference.merge(moved);
        difference
    }

    fn trouble(&mut self, path: &Path, reason: &str) {
        let name = self.name(path);
        self.troubles.push(trouble(&name, reason));
    }

    fn name(&self, path: &Path) -> Arc<str> {
        path.to_string_lossy().into()
    }
}

fn trouble(name: &Arc<str>, reason: &str) -> Finding {
    Finding {
        at: Position::file(name.clone()),
        severity: Severity::Error,
        code: "MAN011",
        object: String::new(),
        path: String::new(),
        message: reason.to_owned(),
        hint: String::new(),
    }
}

fn soonest(due: &mut BTreeMap<PathBuf, Instant>, path: PathBuf, at: Instant) {
    due.entry(path).and_modify(|due| *due = at.min(*due)).or_insert(at);
}
