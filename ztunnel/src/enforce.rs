//! Open connections are decided again when what they were decided by changes: those now denied are closed with the
//! reason, within the pass that comes before the update is acknowledged.
//!
//! One pass per 50 ms at most ([`Turns`]).

use std::collections::HashSet;
use std::sync::Arc;

use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide;
use stillmesh_core::snapshot::{Snapshot, Touched};
use stillmesh_proxy::{Pass, Turns};

use crate::record::{Facts, Flag, Ledger, Live, Outcome};

/// Decides again. Belongs to the writer of snapshots.
#[derive(Debug)]
pub struct Enforcer {
    ledger: Arc<Ledger>,
    turns: Turns,
}

impl Enforcer {
    /// Over what is open.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, turns: Turns::default() }
    }
}

impl Pass for Enforcer {
    /// Decides again what was touched, under `snapshot`, which must be published already. Returns when the denied ones
    /// have been told to close. Waits only if something open was touched.
    async fn pass(&mut self, snapshot: &Snapshot, touched: Touched) {
        if select(&self.ledger, &touched).is_empty() {
            return;
        }
        self.turns.next().await;
        // Selected anew: connections come and go while a pass waits.
        let closed = select(&self.ledger, &touched).iter().filter(|live| enforce(snapshot, live)).count();
        self.turns.done();
        if closed > 0 {
            self.ledger.metrics().policy_closed.inc_by(closed as u64);
            tracing::info!(closed, generation = snapshot.generation(), "connections closed by a policy change");
        }
    }
}

/// The open inbound connections that a change may concern.
fn select(ledger: &Ledger, touched: &Touched) -> Vec<Arc<Live>> {
    if touched.everything {
        return ledger.inbound(|_| true);
    }
    let mut selected = Vec::new();
    if !touched.namespaces.is_empty() {
        let namespaces: HashSet<&str> = touched.namespaces.iter().map(|namespace| &**namespace).collect();
        let concerned = |facts: &Facts| {
            facts.destination.as_ref().is_some_and(|workload| namespaces.contains(&*workload.namespace))
        };
        selected = ledger.inbound(concerned);
    }
    let numbers: HashSet<u64> = selected.iter().map(|live| live.number).collect();
    for workload in &touched.workloads {
        selected.extend(ledger.at(workload).into_iter().filter(|live| !numbers.contains(&live.number)));
    }
    selected
}

/// Whether the connection was closed now.
fn enforce(snapshot: &Snapshot, live: &Live) -> bool {
    let facts = &live.facts;
    let (Some(destination), Some(upstream)) = (&facts.destination, facts.upstream) else { return false };
    // A workload that is gone keeps its connections: they end with its pod.
    let Some(destination) = snapshot.workload(&destination.uid) else { return false };
    let verdict = decide::authorize(
        snapshot,
        &InboundAttrs {
            destination,
            upstream,
            source_ip: facts.source_addr.ip(),
            source_identity: facts.source_identity.as_ref(),
        },
    );
    if !verdict.ends_open_connection() || live.cut.is_cut() {
        return false;
    }
    live.cut.cut(Outcome {
        error: Some("connection closed due to policy change".to_owned()),
        flag: Flag::Deny,
        reason: Some(verdict.reason),
    });
    true
}

#[cfg(test)]
mod tests;
