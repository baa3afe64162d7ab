//! A pod that is as wanted: its older connections, its tunnel and its rules are followed until something changes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Pod, StepError};
use crate::enroll::older;
use crate::enroll::steps::{Step, Told, Tunnel, Wanted};
use crate::handover::Taken;
use crate::receipt;

const OLDER_POLL: Duration = Duration::from_millis(250);
const OLDER_POLL_MAX: Duration = Duration::from_secs(2);

impl Pod {
    /// The pod is as wanted: follows its older connections, its tunnel and its rules until something changes.
    pub(super) async fn watch(&mut self) {
        self.count(Wanted::Captured);
        let verify = Instant::now() + self.shared.times.verify;
        let mut poll = OLDER_POLL;
        self.cut_older().await;
        loop {
            if self.older.is_empty() {
                // Nothing to do in the namespace for long: no thread there.
                self.thread = None;
            }
            let mut taken = self.taken.clone();
            let refused = async {
                match &mut taken {
                    Some(taken) => taken.wait_for(|taken| matches!(taken, Taken::Refused(_))).await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.intents.changed() => return,
                _ = refused => {
                    self.progress.tunnel = Tunnel::Offered;
                    return;
                }
                () = tokio::time::sleep_until(verify) => {
                    self.progress.inspected = false;
                    return;
                }
                () = sleep(poll), if !self.older.is_empty() => {
                    if let Err(error) = self.follow_older().await {
                        self.report(Step::CountOlder, &error, poll);
                    }
                    poll = (poll * 2).min(OLDER_POLL_MAX);
                }
            }
        }
    }

    /// Ends what no tunnel carries, where a Quarantine cuts the pod off.
    async fn cut_older(&mut self) {
        let Some(quarantine) = self.intent.quarantined.clone().filter(|_| !self.older.is_empty()) else { return };
        let older = self.older.clone();
        match self.inside(move || older::cut(&older)).await {
            Ok(Ok(connections)) => tracing::info!(
                target: "audit",
                order = %quarantine,
                pod = self.name(),
                connections,
                "connections older than capture are cut"
            ),
            Ok(Err(error)) => {
                tracing::error!(%error, pod = self.name(), "connections older than capture cannot be cut and go on");
            }
            Err(error) => {
                tracing::error!(%error, pod = self.name(), "connections older than capture cannot be cut and go on");
            }
        }
    }

    async fn follow_older(&mut self) -> Result<(), StepError> {
        let sockets = self.inside(older::sockets).await?.map_err(StepError::Sockets)?;
        let remaining = older::remaining(&self.older, &sockets);
        if remaining.len() == self.older.len() {
            self.older = remaining;
            return Ok(());
        }
        self.older = remaining;
        self.show_older();
        self.save().await?;
        let annotations = receipt::annotations(Told::Enabled, self.receipt().as_ref());
        self.shared.writer.set(&self.pod_name(), &self.uid, annotations);
        if self.older.is_empty() {
            tracing::info!(pod = %self.name(), "the last connection older than capture has ended");
        }
        Ok(())
    }

    /// Captured as far as we know, but its namespace is not at hand: the tunnel is asked to keep what it has.
    pub(super) async fn keep(&mut self) {
        self.taken = Some(self.shared.handover.offer(&self.uid, self.intent.info.clone(), None));
        self.progress.tunnel = Tunnel::Offered;
        // The sender is gone when the agent ends, and this task with it.
        if self.intents.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
