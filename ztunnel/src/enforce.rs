//! Open connections are decided again when what they were decided by changes: those now denied are closed with the
//! reason, within the pass that comes before the update is acknowledged.
//!
//! One pass per 50 ms at most ([`Turns`]).
//!
//! Outbound connections are decided once, but for this: those from or to a workload that a Quarantine cuts off are closed, and those
//! without a tunnel from or to one that needs one now.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Workload, WorkloadUid};
use stillmesh_core::snapshot::{Snapshot, Touched};
use stillmesh_proxy::{Pass, Turns};

use crate::quarantine::CutOff;
use crate::record::{Direction, Facts, Flag, Ledger, Live, Outcome, Protocol};

/// Decides again. Belongs to the writer of snapshots.
#[derive(Debug)]
pub struct Enforcer {
    ledger: Arc<Ledger>,
    cut_off: Arc<CutOff>,
    turns: Turns,
}

impl Enforcer {
    /// Over what is open; what is done about quarantines goes into `cut_off`.
    pub fn new(ledger: Arc<Ledger>, cut_off: Arc<CutOff>) -> Self {
        Self { ledger, cut_off, turns: Turns::default() }
    }
}

impl Pass for Enforcer {
    /// Decides again what was touched, under `snapshot`, which must be published already. Returns when the denied ones
    /// have been told to close. Waits only if something open was touched.
    async fn pass(&mut self, snapshot: &Snapshot, touched: Touched) {
        let heard = Instant::now();
        if !select(&self.ledger, snapshot, &touched).is_empty() {
            self.turns.next().await;
            // Selected anew: connections come and go while a pass waits.
            let selected = select(&self.ledger, snapshot, &touched);
            let closed: Vec<&Arc<Live>> = selected.iter().filter(|live| enforce(snapshot, live)).collect();
            self.turns.done();
            if !closed.is_empty() {
                self.ledger.metrics().policy_closed.inc_by(closed.len() as u64);
                let (closed, generation) = (closed.len(), snapshot.generation());
                tracing::info!(closed, generation, "connections closed by a policy change");
            }
            for live in closed {
                self.cut_off.closed(snapshot, &live.facts);
            }
        }
        self.cut_off.passed(snapshot, &touched.workloads, heard);
    }
}

/// The open connections that a change may concern: inbound ones, and of the others those with an end that is cut off, or that may
/// not do without a tunnel any more.
fn select(ledger: &Ledger, snapshot: &Snapshot, touched: &Touched) -> Vec<Arc<Live>> {
    let of = |is: fn(&Workload) -> bool| -> HashSet<&WorkloadUid> {
        let is = |uid: &&WorkloadUid| snapshot.workload(uid).is_some_and(|one| is(one));
        touched.workloads.iter().filter(is).collect()
    };
    let quarantined = of(|one| one.quarantine().is_some());
    let tunnelled = if ledger.has_direct() { of(|one| !one.direct) } else { HashSet::new() };
    let mut selected = Vec::new();
    if !quarantined.is_empty() || !tunnelled.is_empty() {
        let is_one = |uid: &WorkloadUid, is_direct| quarantined.contains(uid) || (is_direct && tunnelled.contains(uid));
        selected = ledger.outbound(|facts| {
            let is_direct = facts.protocol == Protocol::Direct;
            facts.source.iter().chain(&facts.destination).any(|workload| is_one(&workload.uid, is_direct))
        });
    }
    selected.extend(inbound(ledger, touched));
    selected
}

fn inbound(ledger: &Ledger, touched: &Touched) -> Vec<Arc<Live>> {
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
    if live.cut.is_cut() {
        return false;
    }
    let Some(outcome) = ends(snapshot, &live.facts).map(denied).or_else(|| needs_tunnel(snapshot, &live.facts)) else {
        return false;
    };
    live.cut.cut(outcome);
    true
}

fn denied(reason: Reason) -> Outcome {
    let error = Some(match &reason {
        Reason::Quarantined { .. } => format!("connection closed: {reason}"),
        _ => "connection closed due to policy change".to_owned(),
    });
    Outcome { error, flag: Flag::Deny, reason: Some(reason) }
}

/// How a connection ends that has no tunnel and needs one now; opened anew, it gets one. `None` where it goes on.
pub fn needs_tunnel(snapshot: &Snapshot, facts: &Facts) -> Option<Outcome> {
    let is_direct = facts.protocol == Protocol::Direct && facts.direction == Direction::Outbound;
    let mut ends = facts.source.iter().chain(&facts.destination);
    if !is_direct || ends.all(|one| snapshot.workload(&one.uid).is_none_or(|now| now.direct)) {
        return None;
    }
    let why = "connection closed: its ends may not be connected without a tunnel any more (a NetworkPolicy selects one of them, or \
               its namespace does not ask for it)";
    Some(Outcome { error: Some(why.to_owned()), flag: Flag::None, reason: None })
}

/// Why a connection ends now; `None` where it goes on.
fn ends(snapshot: &Snapshot, facts: &Facts) -> Option<Reason> {
    if facts.direction == Direction::Outbound {
        return facts.source.iter().chain(&facts.destination).find_map(|one| decide::cut_off(snapshot, one));
    }
    let (destination, upstream) = (facts.destination.as_ref()?, facts.upstream?);
    // A workload that is gone keeps its connections: they end with its pod.
    let destination = snapshot.workload(&destination.uid)?;
    let verdict = decide::authorize(
        snapshot,
        &InboundAttrs {
            destination,
            upstream,
            source_ip: facts.source_addr.ip(),
            source_identity: facts.source_identity().as_ref(),
        },
    );
    verdict.ends_open_connection().then_some(verdict.reason)
}

#[cfg(test)]
mod tests;
