//! Whether a connection that policies refuse is a probe of the kubelet's. The node agent is asked, since it sees the
//! node's sockets and the pods' probe ports; nothing is kept, and no answer means no.

use stillmesh_api::probes::{self, Question, Verdict};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::capture::{Captured, Pod};
use crate::node::Node;
use crate::record::Facts;
use crate::record::labels::Word;
use crate::record::metrics::Probed;

/// Asks about a connection. One from a known workload's address is not the node's: nobody is asked.
pub async fn verdict(conn: &Captured, pod: &Pod, node: &Node, facts: &Facts) -> Verdict {
    let Some(path) = node.config.probes.as_deref().filter(|_| facts.source.is_none()) else { return Verdict::Other };
    let Ok(_place) = node.probe_questions.try_acquire() else {
        node.metrics.refuse("probe_questions");
        return Verdict::Other;
    };
    let question = Question { uid: pod.uid.clone(), source: conn.peer, destination: conn.original };
    let answer = probes::ask(path, &question).await;
    let word = match &answer {
        Ok(Verdict::Probe) => "probe",
        Ok(Verdict::Closed) => "closed",
        Ok(Verdict::Other) => "other",
        Err(error) => {
            tracing::debug!(%error, source = %conn.peer, destination = %conn.original, "nobody knows whether this is a probe");
            "unanswered"
        }
    };
    node.metrics.probes.get_or_create(&Probed { verdict: Word(word) }).inc();
    answer.unwrap_or(Verdict::Other)
}

/// Whether a client that has closed its connection has said nothing in it.
pub async fn is_silent(stream: &TcpStream) -> bool {
    matches!(timeout(probes::DEADLINE, stream.peek(&mut [0])).await, Ok(Ok(0)))
}
