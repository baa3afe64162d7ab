//! A pod that a Bypass takes out: its peers get a moment to hear of it, and its annotation says what was done.

use std::time::Duration;

use stillmesh_k8s::steering::OutReceipt;

use super::{Intent, Pod};
use crate::enroll::older;
use crate::enroll::steps::Wanted;
use crate::receipt;

impl Pod {
    /// What this task has written itself, the source of objects may not have told yet; and what it tells of a time before the pod was
    /// captured again, counts no more.
    pub(super) fn keep_told(&self, intent: &mut Intent) {
        let Some(new) = &mut intent.bypassed else { return };
        match &self.intent.bypassed {
            Some(old) if new.told.is_none() && new.order.uid == old.order.uid => new.told.clone_from(&old.told),
            None if self.intent.wanted == Wanted::Captured => new.told = None,
            _ => {}
        }
    }

    /// Lets peers hear of a Bypass first, so that they take clear text when it comes. `true` where something else is wanted
    /// meanwhile.
    pub(super) async fn waits_for_peers(&mut self) -> bool {
        let Some(bypassed) = &self.intent.bypassed else { return false };
        let left = self.shared.times.head_start.saturating_sub(bypassed.heard.elapsed());
        !left.is_zero() && self.wait_for(left).await
    }

    /// Counts what the tunnel goes on to carry; what cannot be counted is none.
    pub(super) async fn count_carried(&mut self) {
        if self.intent.bypassed.is_none() {
            return;
        }
        let counted = self.inside(older::sockets).await.ok().and_then(Result::ok);
        self.carried = counted.map(|sockets| older::in_tunnel(&sockets)).unwrap_or_default();
    }

    /// Writes the receipt of a pod that is out, unless it has it; and the audit log's line.
    pub(super) fn tell_out(&mut self) {
        let Some(bypassed) = &mut self.intent.bypassed else { return };
        if bypassed.told.is_some() {
            return;
        }
        let order = &bypassed.order;
        let took = bypassed.heard.elapsed();
        let receipt = OutReceipt {
            bypass: order.name(),
            order: order.uid.clone(),
            time: jiff::Timestamp::now().to_string(),
            took_ms: millis(took),
            carried: self.carried,
        };
        tracing::info!(
            target: "audit",
            order = %order.key,
            by = order.requested_by,
            reason = order.reason,
            pod = format!("{}/{}", self.intent.info.namespace, self.intent.info.name),
            connections = self.carried,
            ?took,
            "the pod is out of the mesh"
        );
        let annotations = receipt::out(&receipt);
        bypassed.told = Some(receipt);
        self.shared.writer.set(&self.pod_name(), &self.uid, annotations);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
