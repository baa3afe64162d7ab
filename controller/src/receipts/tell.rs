//! When a receipt is written into its object's status: what becomes true at once, what does not soon after, and what only
//! moves about the same content rarely, so that ten thousand objects do not keep the API server busy each time that a node
//! comes or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stillmesh_k8s::ObjectKey;

use super::Receipt;
use crate::status::Statuses;

/// How long new content may take before it is told who lags.
const FIRST: Duration = Duration::from_secs(1);
/// The least time between two tellings of who lags.
const AGAIN: Duration = Duration::from_secs(5);
/// How long somebody may lag with content that was in force before: who connects anew is back within this.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon numbers are told that have changed since everybody has it.
const COUNTS: Duration = Duration::from_secs(600);

/// What was told.
#[derive(Default)]
pub(super) struct Teller(BTreeMap<ObjectKey, Told>);

struct Told {
    /// What was told last, if anything.
    last: Option<Last>,
    /// Since when there is something else to tell.
    since: Option<Instant>,
}

struct Last {
    content: String,
    complete: bool,
    message: String,
    at: Instant,
}

impl Teller {
    /// Tells what is due. When there is more to tell, if nothing happens before.
    pub fn tell(&mut self, receipts: &[Receipt], without: BTreeSet<ObjectKey>, statuses: &Statuses) -> Option<Instant> {
        let now = Instant::now();
        let mut said: Vec<_> = Vec::new();
        for key in without {
            self.0.remove(&key);
            said.push((key, None));
        }
        let mut later: Option<Instant> = None;
        for receipt in receipts {
            let told = self.0.entry(receipt.object.clone()).or_insert(Told { last: None, since: None });
            let Some(due) = told.due(receipt, now) else { continue };
            if due > now {
                later = Some(later.map_or(due, |one| one.min(due)));
                continue;
            }
            let condition = receipt.condition();
            told.last = Some(Last {
                content: receipt.content.clone(),
                complete: receipt.is_complete(),
                message: essence(&condition.message),
                at: now,
            });
            told.since = None;
            said.push((receipt.object.clone(), Some((condition, receipt.observed_generation))));
        }
        if !said.is_empty() {
            statuses.receipts(said);
        }
        later
    }
}

impl Told {
    /// When something is to be told; `None` where it has been.
    fn due(&mut self, receipt: &Receipt, now: Instant) -> Option<Instant> {
        let complete = receipt.is_complete();
        let arrived = receipt.arrived.unwrap_or(now);
        let Some(last) = &self.last else {
            let patience = if receipt.is_older { PATIENCE } else { FIRST };
            let since = *self.since.get_or_insert(arrived);
            return Some(if complete { now } else { since + patience });
        };
        if last.content != receipt.content {
            return Some(if complete { now } else { arrived + FIRST });
        }
        if essence(&receipt.condition().message) == last.message {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        Some(match (last.complete, complete) {
            (false, true) => now,
            (false, false) => last.at + AGAIN,
            (true, false) => since + PATIENCE,
            (true, true) => since + COUNTS,
        })
    }
}

/// A message without how long it took, which alone is no news.
pub(crate) fn essence(message: &str) -> String {
    let content = message.rsplit_once("; content ").map(|(_, content)| content).unwrap_or_default();
    let rest = message.rsplit_once("; content ").map_or(message, |(rest, _)| rest);
    let rest = rest.rsplit_once(", p99 ").map_or(rest, |(rest, _)| rest);
    format!("{rest}; content {content}")
}

#[cfg(test)]
mod tests {
    use stillmesh_k8s::Kind;

    use super::super::judge::{Count, Lagging};
    use super::*;

    fn receipt(in_force: usize, content: &str, arrived: Option<Instant>) -> Receipt {
        let count = Count { in_force, expected: 2 };
        let lagging = (in_force < 2).then(|| Lagging { name: "n2".into(), reason: "not connected".into() });
        Receipt {
            object: ObjectKey::new(Kind::AuthorizationPolicy, "shop", "deny"),
            content: content.into(),
            observed_generation: Some(1),
            in_force,
            expected: 2,
            nodes: Some(count),
            waypoints: None,
            lagging: lagging.into_iter().collect(),
            took: None,
            refused: false,
            is_older: arrived.is_none(),
            arrived,
        }
    }

    #[test]
    fn what_becomes_true_is_told_at_once_and_what_flaps_is_not() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut told = Told { last: None, since: None };
        let mut look = |receipt: &Receipt, now: Instant| {
            let due = told.due(receipt, now);
            if due.is_some_and(|due| due <= now) {
                let message = essence(&receipt.condition().message);
                let (content, complete) = (receipt.content.clone(), receipt.is_complete());
                told.last = Some(Last { content, complete, message, at: now });
                told.since = None;
            }
            due
        };
        assert_eq!(look(&receipt(0, "a", Some(begin)), begin), Some(at(1)), "most are quicker");
        assert_eq!(look(&receipt(1, "a", Some(begin)), at(1)), Some(at(1)));
        assert_eq!(look(&receipt(0, "a", Some(begin)), at(2)), Some(at(6)));
        assert_eq!(look(&receipt(2, "a", Some(begin)), at(3)), Some(at(3)));
        assert_eq!(look(&receipt(2, "a", Some(begin)), at(4)), None);
        assert_eq!(look(&receipt(1, "a", Some(begin)), at(5)), Some(at(35)), "it may connect anew");
        assert_eq!(look(&receipt(2, "a", Some(begin)), at(6)), None);
        assert_eq!(look(&receipt(1, "a", Some(begin)), at(7)), Some(at(37)));
        assert_eq!(look(&receipt(1, "b", Some(at(8))), at(8)), Some(at(9)), "other content waits for nothing");
        assert_eq!(look(&receipt(2, "b", Some(at(8))), at(8)), Some(at(8)));
    }

    #[test]
    fn after_a_restart_nodes_have_time_to_come_back() {
        let begin = Instant::now();
        let mut told = Told { last: None, since: None };
        assert_eq!(told.due(&receipt(0, "a", None), begin), Some(begin + PATIENCE));
        assert_eq!(told.due(&receipt(2, "a", None), begin), Some(begin));
    }

    #[test]
    fn how_long_it_took_is_no_news() {
        let message = "in force on 2 of 2 nodes, p99 80 ms; content 3f";
        assert_eq!(essence(message), "in force on 2 of 2 nodes; content 3f");
        assert_eq!(essence(&essence(message)), essence(message));
    }
}
