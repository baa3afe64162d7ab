//! Looks after what is installed: whenever something changes in the runtime's directories, and now and then.

use std::time::Duration;

use stillmesh_core::diagnose::Diagnose as _;
use stillmesh_runtime::Backoff;
use stillmesh_runtime::sys::inotify::Changes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Installed, Installer};
use crate::metrics::Metrics;

/// Without events: how often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After an event: others of the same change may follow.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);
/// How long somebody who undoes every repair is left his way at most.
const LONGEST_SETTLE: Duration = Duration::from_secs(30);
/// Without a repair for this long, the next one is as the first.
const QUIET: Duration = Duration::from_secs(60);
/// Repairs after which somebody is known to undo them.
const MANY: u32 = 5;

/// Installs, and puts right what changes, until dropped. Why it is not installed is told through `state`, nothing when
/// it is.
pub async fn keep(mut installer: Installer, state: watch::Sender<Option<String>>, metrics: Metrics) {
    let mut installed_before = false;
    let mut quarrel = Quarrel::new();
    loop {
        // Watched before it is looked at: no change falls in between.
        let events = Changes::of([installer.places.conf_dir.as_path(), installer.places.bin_dir.as_path()]);
        let mut working = installer.clone();
        let done = tokio::task::spawn_blocking(move || (working.install(), working)).await;
        let done = done.map(|(done, worked)| {
            installer = worked;
            done
        });
        let wait = match done {
            Ok(Ok(installed)) => {
                tell(&installed, installed_before, &metrics);
                if installed_before && installed != Installed::default() && quarrel.repaired(Instant::now()) {
                    let entry = installed.entry.as_ref().map(|path| path.display().to_string());
                    tracing::warn!(
                        binary = installed.binary,
                        entry,
                        remedy = "find who owns the file and keep him from it; for Cilium set cni.exclusive=false",
                        "the CNI plugin is taken out again and again: pods that start meanwhile are not captured at once"
                    );
                }
                installed_before = true;
                state.send_if_modified(|state| state.take().is_some());
                LOOK_EVERY
            }
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let text = cause.as_ref().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
                let news = state.send_if_modified(|state| state.replace(text.clone()).as_ref() != Some(&text));
                if news {
                    let (code, remedy) = (error.code(), error.remedy());
                    tracing::warn!(error.code = code, %error, cause, remedy, "the CNI plugin is not installed");
                }
                RETRY
            }
            Err(error) => {
                tracing::error!(%error, "installing the CNI plugin broke off");
                RETRY
            }
        };
        match events {
            // Silence is as good as an event: everything is looked at again.
            Ok(events) => drop(timeout(wait, events.next()).await),
            Err(error) => {
                tracing::warn!(%error, "no inotify: the CNI directories are looked at every second instead");
                sleep(RETRY).await;
            }
        }
        sleep(quarrel.settle(Instant::now())).await;
    }
}

/// With somebody who undoes what is put right: repairs must not go in circles.
#[derive(Debug)]
struct Quarrel {
    waits: Backoff,
    /// When the last repair was, and how long it is to be before the next.
    last: Option<(Instant, Duration)>,
}

impl Quarrel {
    fn new() -> Self {
        Self { waits: Backoff::new(SETTLE, LONGEST_SETTLE), last: None }
    }

    /// How long to wait after an event.
    fn settle(&self, now: Instant) -> Duration {
        let recent = self.last.filter(|(last, _)| now.duration_since(*last) < QUIET);
        recent.map_or(SETTLE, |(_, wait)| wait)
    }

    /// Takes a repair in; says whether it is the one that makes them many.
    fn repaired(&mut self, now: Instant) -> bool {
        if self.last.is_some_and(|(last, _)| now.duration_since(last) >= QUIET) {
            self.waits.reset();
        }
        self.last = Some((now, self.waits.next(1.0)));
        self.waits.tries() == MANY
    }
}

fn tell(installed: &Installed, before: bool, metrics: &Metrics) {
    if *installed == Installed::default() {
        return;
    }
    let entry = installed.entry.as_ref().map(|path| path.display().to_string());
    if before {
        metrics.reinstalls.inc();
        tracing::warn!(binary = installed.binary, entry, "the CNI plugin was changed by somebody else: put right");
    } else {
        tracing::info!(binary = installed.binary, entry, "the CNI plugin is installed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_undoes_every_repair_is_left_longer_each_time_and_named_once() {
        let (start, mut quarrel) = (Instant::now(), Quarrel::new());
        let (mut now, mut named) = (start, Vec::new());
        for repair in 1..=100 {
            if quarrel.repaired(now) {
                named.push((repair, now.duration_since(start) < QUIET));
            }
            now += quarrel.settle(now);
        }
        assert_eq!(named, [(MANY, true)]);
        assert_eq!(quarrel.settle(now), LONGEST_SETTLE);
        // An event in between, such as of the repair itself, changes nothing.
        assert_eq!(quarrel.settle(now), LONGEST_SETTLE);
        now += QUIET;
        assert_eq!(quarrel.settle(now), SETTLE);
        assert!(!quarrel.repaired(now));
        assert_eq!(quarrel.settle(now), SETTLE);
    }
}
