//! Whether a connection that policies refuse is a probe of the kubelet's. The node agent is asked, since it sees the
//! node's sockets and the pods' probe ports; no answer means no.
//!
//! While there is no agent, as when it is upgraded, or it hangs, whoever has probed a port of a pod shortly before may go on:
//! else the kubelet would take the pod for dead. An agent hangs that has answered nobody for a while: one that is
//! slow now and then, which a client may bring about by many connections, does not.

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
/// How long an agent that listens may answer no question of this node's at all before it counts as none: the kubelet gives up on a
/// pod after three probes, ten seconds apart where a manifest does not say otherwise.
const HANGS: Duration = Duration::from_secs(8);
/// Most probes that are remembered of a pod; of more, the rest is asked about only.
const MOST: usize = 64;

/// Whether the agent answers.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    /// Since when each question has been asked in vain.
    silent: Mutex<Option<Instant>>,
}

impl Agent {
    /// What became of a question.
    fn note(&self, answer: &Result<Verdict, PacketError>, now: Instant) {
        let mut silent = self.silent.lock();
        match answer {
            // Nobody listens: that is another matter.
            Err(error) if is_away(error) => {}
            // One that closes unanswered because it has no room is there.
            Ok(_) | Err(PacketError::Closed | PacketError::Bad(_)) => *silent = None,
            // It does not answer, or not even take connections any more.
            Err(_) => {
                silent.get_or_insert(now);
            }
        }
    }

    fn hangs(&self, now: Instant) -> bool {
        self.silent.lock().is_some_and(|since| now.duration_since(since) >= HANGS)
    }
}

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
    let answer = probes::ask(path, &question).await;
    let now = Instant::now();
    node.agent.note(&answer, now);
    let (word, verdict) = match answer {
        Ok(Verdict::Probe) => {
            pod.had_probes.note(&question, now);
            ("probe", Verdict::Probe)
        }
        Ok(Verdict::Closed) => ("closed", Verdict::Closed),
        Ok(Verdict::Other) => ("other", Verdict::Other),
        Err(error) if (is_away(&error) || node.agent.hangs(now)) && pod.had_probes.has(&question, now) => {
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

/// Whether nobody listens.
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
    fn an_agent_hangs_that_has_answered_nobody_for_a_while() {
        let (agent, now) = (Agent::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let slow = || Err(PacketError::Slow { what: "answer", limit: probes::DEADLINE });
        agent.note(&slow(), at(0));
        assert!(!agent.hangs(at(7)));
        assert!(agent.hangs(at(8)));
        agent.note(&slow(), at(9));
        assert!(agent.hangs(at(9)), "it counts from the first question");
        // One answer, or a question that it has no room for, among many that come too late: somebody is there.
        for answer in [Ok(Verdict::Other), Err(PacketError::Closed)] {
            agent.note(&answer, at(10));
            agent.note(&slow(), at(11));
            assert!(!agent.hangs(at(18)) && agent.hangs(at(19)));
        }
        agent.note(&Err(PacketError::Io(io::ErrorKind::NotFound.into())), at(20));
        assert!(agent.hangs(at(20)), "that nobody listens is no answer");
        agent.note(&Ok(Verdict::Other), at(30));
        agent.note(&Err(PacketError::Io(io::ErrorKind::WouldBlock.into())), at(31));
        assert!(agent.hangs(at(39)), "its queue of connections is full");
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
