//! What a pod's task shows of itself: logs, metrics, receipt.

use std::time::Duration;

use stillmesh_core::diagnose::Diagnose as _;
use stillmesh_runtime::sys::netns::Netns;

use super::{Pod, StepError};
use crate::enroll::steps::{Rules, Step, Told, Tunnel, Wanted};
use crate::metrics::{PodLabels, PodState};
use crate::receipt::Receipt;
use crate::rules::plan;
use crate::writeback::PodName;

impl Pod {
    pub(super) fn report(&self, step: Step, error: &StepError, wait: Duration) {
        self.shared.metrics.failed_steps.inc();
        let cause = std::error::Error::source(error).map(ToString::to_string);
        let pod = self.name();
        tracing::warn!(%pod, ?step, error.code = error.code(), %error, cause, ?wait, "a step failed");
        let inode = self.intent.netns.as_ref().map(Netns::inode);
        if let (Some(inode), true) = (inode, self.progress.rules != Rules::Capturing) {
            let text = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            self.status.send_modify(|status| status.failed = Some((inode, text.into())));
        }
    }

    pub(super) fn receipt(&self) -> Option<Receipt> {
        Some(Receipt {
            time: self.since.clone()?,
            rules: format!("{:016x}", plan::capture(&self.facts()).fingerprint()),
            netns: self.intent.netns.as_ref()?.inode(),
            older_connections: self.older.len(),
            at_start: self.at_start,
        })
    }

    pub(super) fn show_older(&self) {
        let count = i64::try_from(self.older.len()).unwrap_or(i64::MAX);
        self.shared.metrics.older_connections.get_or_create(&self.labels()).set(count);
    }

    pub(super) fn count(&mut self, wanted: Wanted) {
        let state = match (wanted, self.progress.tunnel, self.progress.told) {
            (Wanted::Captured, Tunnel::Accepted, Told::Enabled) => PodState::captured,
            (Wanted::Captured, _, Told::Pending) => PodState::pending,
            (Wanted::Captured, _, _) => PodState::entering,
            (Wanted::Free | Wanted::Gone, _, _) => PodState::leaving,
        };
        self.counted.set(Some(state));
    }

    pub(super) fn labels(&self) -> PodLabels {
        PodLabels { namespace: self.intent.info.namespace.clone(), pod: self.intent.info.name.clone() }
    }

    pub(super) fn pod_name(&self) -> PodName {
        PodName { namespace: self.intent.info.namespace.clone(), name: self.intent.info.name.clone() }
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.intent.info.namespace, self.intent.info.name)
    }
}
