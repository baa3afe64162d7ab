//! Whether a connection that policies refuse is a probe of the kubelet's. The node agent is asked, since it sees the
//! node's sockets and the pods' probe ports; no answer means no.
//!
//! While there is no agent, as when it is upgraded, whoever has probed a port of a pod shortly before may go on: else
//! the kubelet would take the pod for dead.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use stillmesh_api::packets::PacketError;
use stillmesh_api::probes::{self, Question, Verdict};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::capture::{Captured, Pod};
use crate::node::Node;
use crate::record::Facts;
use crate::record::labels::Word;
use crate::record::metrics::Probed;

/// How long a probe counts while there is no agent.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Most probes that are remembered of a pod; of more, the rest is asked about only.
const MOST: usize = 64;

/// The probes that a pod has had, by client and port.
#[derive(Debug, Default)]
pub(crate) struct Had {
    last: Mutex<HashMap<(IpAddr, u16), Instant>>,
}

impl Had {
    fn note(&self, question: &Question, now: Instant) {
        let mut last = self.last.lock();
        last.retain(|_, at| now.duration_since(*at) < REMEMBERED);
        if last.len() < MOST || last.contains_key(&key(question)) {
            last.insert(key(question), now);
        }
    }

    fn has(&self, question: &Question, now: Instant) -> bool {
        self.last.lock().get(&key(question)).is_some_and(|at| now.duration_since(*at) < REMEMBERED)
    }
}

fn key(question: &Question) -> (IpAddr, u16) {
    (question.source.ip(), question.destination.port())
}

/// Asks about a connection. One from a known workload's address is not the node's: nobody is asked.
pub async fn verdict(conn: &Captured, pod: &Pod, node: &Node, facts: &Facts) -> Verdict {
    let Some(path) = node.config.probes.as_deref().filter(|_| facts.source.is_none()) else { return Verdict::Other };
    let Ok(_place) = node.probe_questions.try_acquire() else {
        node.metrics.refuse("probe_questions");
        return Verdict::Other;
    };
    let question = Question { uid: pod.uid.clone(), source: conn.peer, destination: conn.original };
    let (word, verdict) = match probes::ask(path, &question).await {
        Ok(Verdict::Probe) => {
            pod.had_probes.note(&question, Instant::now());
            ("probe", Verdict::Probe)
        }
        Ok(Verdict::Closed) => ("closed", Verdict::Closed),
        Ok(Verdict::Other) => ("other", Verdict::Other),
        Err(error) if is_away(&error) && pod.had_probes.has(&question, Instant::now()) => {
            ("remembered", Verdict::Probe)
        }
        Err(error) => {
            tracing::debug!(%error, source = %conn.peer, destination = %conn.original, "nobody knows whether this is a probe");
            ("unanswered", Verdict::Other)
        }
    };
    node.metrics.probes.get_or_create(&Probed { verdict: Word(word) }).inc();
    verdict
}

/// Whether nobody listens. One who is slow, which a client may bring about by many connections, is there.
fn is_away(error: &PacketError) -> bool {
    let absent = |kind| matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    matches!(error, PacketError::Io(error) if absent(error.kind()))
}

/// Whether a client that has closed its connection has said nothing in it.
pub async fn is_silent(stream: &TcpStream) -> bool {
    matches!(timeout(probes::DEADLINE, stream.peek(&mut [0])).await, Ok(Ok(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(source: &str, port: u16) -> Question {
        let (uid, source) = ("u".to_owned(), format!("{source}:4000").parse().unwrap());
        Question { uid, source, destination: format!("10.0.0.2:{port}").parse().unwrap() }
    }

    #[test]
    fn a_probe_counts_for_its_client_and_port_and_for_a_while() {
        let (had, now) = (Had::default(), Instant::now());
        had.note(&question("10.0.0.1", 80), now);
        let soon = now + REMEMBERED - Duration::from_secs(1);
        assert!(had.has(&question("10.0.0.1", 80), soon));
        assert!(!had.has(&question("10.0.0.1", 81), soon));
        assert!(!had.has(&question("10.0.0.3", 80), soon));
        assert!(!had.has(&question("10.0.0.1", 80), now + REMEMBERED));
    }

    #[test]
    fn probes_of_a_pod_are_bounded_and_old_ones_make_room() {
        let (had, now) = (Had::default(), Instant::now());
        for port in 0..1000 {
            had.note(&question("10.0.0.1", port), now);
        }
        assert_eq!(had.last.lock().len(), MOST);
        let later = now + REMEMBERED;
        had.note(&question("10.0.0.1", 2000), later);
        assert!(had.has(&question("10.0.0.1", 2000), later));
        assert_eq!(had.last.lock().len(), 1);
    }
}
