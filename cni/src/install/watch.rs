//! Looks after what is installed: whenever something changes in the runtime's directories, and now and then.

use std::time::Duration;

use stillmesh_core::diagnose::Diagnose as _;
use stillmesh_runtime::sys::inotify::Changes;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Installed, Installer};
use crate::metrics::Metrics;

/// Without events: how often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After an event: others of the same change may follow.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

/// Installs, and puts right what changes, until dropped. Why it is not installed is told through `state`, nothing when
/// it is.
pub async fn keep(mut installer: Installer, state: watch::Sender<Option<String>>, metrics: Metrics) {
    let mut installed_before = false;
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
        sleep(SETTLE).await;
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
