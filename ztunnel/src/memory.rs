//! Gives back memory that the node has and does not use any more: pages of its program, and what allocations have left free.

use std::sync::Arc;
use std::time::Duration;

use stillmesh_proxy::Readiness;
use stillmesh_runtime::sys::memory;

use crate::node::Node;

/// How often it is seen what memory is not used any more.
const UNUSED: Duration = Duration::from_secs(10);

/// As many connections have so much memory that it is worth giving back while others come: 1 MiB or so.
const MANY: usize = 512;

/// Gives back what starting needed, and from then on what is not used any more. For ever.
pub async fn let_go(node: Arc<Node>, readiness: Readiness) {
    readiness.ready().await;
    let (mut turns, mut trims) = (tokio::time::interval(UNUSED), Trims::since(Seen::of(&node)));
    loop {
        turns.tick().await;
        let due = trims.look(Seen::of(&node), Open { now: node.ledger.len(), most: node.ledger.most() });
        if due.program
            && let Err(error) = memory::let_go_of_program()
        {
            tracing::debug!(%error, "the program's pages stay in memory");
        }
        if due.freed {
            // It takes 3 to 8 ms for 5 to 55 MiB that are free, and 0.2 ms at most for nothing. The arena that it looks through is
            // locked, and whose thread allocates there waits; nobody else should.
            drop(tokio::task::spawn_blocking(memory::let_go_of_freed).await);
        }
    }
}

/// What changes with everything that has much memory and frees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Connections that were listed so far.
    listed: u64,
    /// Tasks of the workers: connections, and tunnels, which end long after their last stream.
    tasks: usize,
    /// Of the snapshot: the configuration before is freed.
    generation: u64,
}

impl Seen {
    fn of(node: &Node) -> Self {
        Self {
            listed: node.ledger.listed(),
            tasks: node.workers.tasks(),
            generation: node.snapshots.load().generation(),
        }
    }
}

/// How many connections are open, and how many were at most since the look before.
#[derive(Clone, Copy, Debug)]
struct Open {
    now: usize,
    most: usize,
}

/// What is to be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    program: bool,
    freed: bool,
}

/// Says when memory is given back.
#[derive(Debug)]
struct Trims {
    before: Seen,
    /// What was seen when freed memory was given back last.
    trimmed: Option<Seen>,
    /// Connections that were open at a time since then, at most.
    most: usize,
}

impl Trims {
    fn since(before: Seen) -> Self {
        Self { before, trimmed: None, most: 0 }
    }

    /// What to give back of what is seen `now`.
    ///
    /// Who had new connections since the look before uses the program's pages and most of what is free, and would have them back
    /// at once: only what many connections had is given back, when most of them have ended; bursts that come again and again have it back each
    /// time. Who had none gives back what is freed
    /// once for each time that something happened. That ends, since giving back changes nothing of what is seen.
    fn look(&mut self, now: Seen, open: Open) -> Due {
        let is_quiet = std::mem::replace(&mut self.before, now).listed == now.listed;
        self.most = self.most.max(open.most);
        let freed = self.most >= MANY && open.now < self.most / 2 || is_quiet && self.trimmed != Some(now);
        if freed {
            (self.trimmed, self.most) = (Some(now), open.now);
        }
        Due { program: is_quiet, freed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Due = Due { program: true, freed: true };
    const PROGRAM: Due = Due { program: true, freed: false };
    const FREED: Due = Due { program: false, freed: true };

    const START: Seen = Seen { listed: 0, tasks: 4, generation: 7 };

    fn open(count: usize) -> Open {
        Open { now: count, most: count }
    }

    #[test]
    fn what_starting_needed_goes_at_the_first_look() {
        assert_eq!(Trims::since(START).look(START, open(0)), BOTH);
    }

    #[test]
    fn a_quiet_node_gives_back_once_for_each_time_that_something_happened() {
        let mut trims = Trims::since(START);
        let connected = Seen { listed: 9, tasks: 14, ..START };
        let closed = Seen { tasks: 5, ..connected };
        let tunnel_ended = Seen { tasks: 4, ..connected };
        let configured = Seen { generation: 8, ..tunnel_ended };
        // While connections come it waits.
        assert_eq!(trims.look(START, open(0)), BOTH);
        assert_eq!(trims.look(connected, open(9)), Due::default());
        for (seen, count) in [(connected, 9), (closed, 0), (tunnel_ended, 0), (configured, 0)] {
            assert_eq!(trims.look(seen, open(count)), BOTH, "{seen:?}");
            for _ in 0..3 {
                assert_eq!(trims.look(seen, open(count)), PROGRAM, "{seen:?}");
            }
        }
        // What came and went between two looks.
        let again = Seen { listed: 10, ..configured };
        assert_eq!(trims.look(again, open(0)), Due::default());
        assert_eq!(trims.look(again, open(0)), BOTH);
    }

    #[test]
    fn a_busy_node_gives_back_what_many_connections_had() {
        let mut trims = Trims::since(START);
        trims.look(START, open(0));
        let busy = |turn: u64| Seen { listed: turn, tasks: 50, generation: turn };
        assert_eq!(trims.look(busy(1), open(1000)), Due::default());
        assert_eq!(trims.look(busy(2), open(500)), Due::default());
        assert_eq!(trims.look(busy(3), open(499)), FREED);
        assert_eq!(trims.look(busy(4), open(499)), Due::default());
        // They came and went between two looks.
        assert_eq!(trims.look(busy(5), Open { now: 2, most: 9000 }), FREED);
        // Few are not worth it.
        assert_eq!(trims.look(busy(6), Open { now: 2, most: 500 }), Due::default());
    }
}
