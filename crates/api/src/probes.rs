//! A question of the node tunnel to the node agent: is this connection one of the kubelet's probes?
//!
//! The tunnel lives in a network namespace of its own and cannot see the node's sockets; the agent can, and knows the
//! pods' probe ports. One connection per question: a packet each way, then it ends. Nothing is kept.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use crate::packets::{self, MOST_BYTES, Packet, PacketError};

/// How long a question may take, from connecting to the answer.
pub const DEADLINE: Duration = Duration::from_millis(500);

/// A connection that came to a pod in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The pod's UID.
    pub uid: String,
    /// The client's address.
    pub source: SocketAddr,
    /// The address that it dialled.
    pub destination: SocketAddr,
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A process of the node has the connection, and its port is one of the pod's probe ports.
    Probe,
    /// A process of the node had it and has closed it: nobody waits for an answer.
    Closed,
    /// Neither.
    Other,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    destination: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answered {
    /// 1: no, 2: a probe, 3: closed already. 0 is none of them, so that no answer is empty.
    #[prost(uint32, tag = "1")]
    verdict: u32,
}

/// Asks. Errors mean that nobody knows: the caller then goes by its policies alone.
pub async fn ask(path: &Path, question: &Question) -> Result<Verdict, PacketError> {
    let asking = async {
        let socket = packets::connect(path, DEADLINE).await?;
        packets::send(&socket, &write_question(question)?, &[], DEADLINE).await?;
        read_verdict(&packets::receive(&socket).await?)
    };
    let slow = PacketError::Slow { what: "answer", limit: DEADLINE };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or(Err(slow))
}

/// Listens for questions of this user, instead of whoever did.
pub fn listen(path: &Path) -> std::io::Result<UnixSeqpacketListener> {
    packets::take_over(path)
}

/// Reads the question of a connection that was accepted, within the deadline.
pub async fn question(socket: &UnixSeqpacket) -> Result<Question, PacketError> {
    read_question(&packets::receive_within(socket, "ask", DEADLINE).await?)
}

/// Answers it.
pub async fn answer(socket: &UnixSeqpacket, verdict: Verdict) -> Result<(), PacketError> {
    packets::send(socket, &write_verdict(verdict), &[], DEADLINE).await
}

/// A question's bytes.
pub fn write_question(question: &Question) -> Result<Vec<u8>, PacketError> {
    let Question { uid, source, destination } = question;
    let asked = Asked { uid: uid.clone(), source: source.to_string(), destination: destination.to_string() };
    let bytes = asked.encode_to_vec();
    if bytes.len() <= MOST_BYTES { Ok(bytes) } else { Err(PacketError::Bad("a uid that is too long")) }
}

/// Reads a question.
pub fn read_question(packet: &Packet) -> Result<Question, PacketError> {
    let asked = Asked::decode(plain(packet)?).map_err(|_| PacketError::Bad("a question that cannot be read"))?;
    let address = |text: &str| {
        let address: SocketAddr = text.parse().map_err(|_| PacketError::Bad("an address that cannot be read"))?;
        Ok::<_, PacketError>(SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port()))
    };
    Ok(Question { source: address(&asked.source)?, destination: address(&asked.destination)?, uid: asked.uid })
}

fn write_verdict(verdict: Verdict) -> Vec<u8> {
    let verdict = match verdict {
        Verdict::Other => 1,
        Verdict::Probe => 2,
        Verdict::Closed => 3,
    };
    Answered { verdict }.encode_to_vec()
}

/// Reads an answer; one of a later version that is not known here is [`Verdict::Other`].
pub fn read_verdict(packet: &Packet) -> Result<Verdict, PacketError> {
    let answered = Answered::decode(plain(packet)?).map_err(|_| PacketError::Bad("an answer that cannot be read"))?;
    Ok(match answered.verdict {
        2 => Verdict::Probe,
        3 => Verdict::Closed,
        _ => Verdict::Other,
    })
}

fn plain(packet: &Packet) -> Result<&[u8], PacketError> {
    match packet.truncated || !packet.fds.is_empty() {
        true => Err(PacketError::Bad("a packet that is too long, or with descriptors")),
        false => Ok(&packet.bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(bytes: Vec<u8>) -> Packet {
        Packet { bytes, fds: Vec::new(), truncated: false }
    }

    #[tokio::test]
    async fn a_question_is_answered_and_no_answer_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probes.sock");
        let asked = Question {
            uid: "u".to_owned(),
            source: "[::ffff:10.0.0.1]:4000".parse().unwrap(),
            destination: "[fd00::2]:80".parse().unwrap(),
        };
        assert!(ask(&path, &asked).await.is_err(), "nobody is there");
        let mut listener = listen(&path).unwrap();
        for verdict in [Verdict::Probe, Verdict::Closed, Verdict::Other] {
            let answering = async {
                let socket = listener.accept().await.unwrap();
                let question = question(&socket).await.unwrap();
                assert_eq!(question.source, "10.0.0.1:4000".parse().unwrap(), "as the node's sockets show it");
                assert_eq!((question.uid, question.destination), (asked.uid.clone(), asked.destination));
                answer(&socket, verdict).await.unwrap();
            };
            let (answer, ()) = tokio::join!(ask(&path, &asked), answering);
            assert_eq!(answer.unwrap(), verdict);
        }
        assert!(matches!(ask(&path, &asked).await, Err(PacketError::Slow { .. })), "nobody accepts");
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(garbage in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = read_question(&packet(garbage.clone()));
            let _ = read_verdict(&packet(garbage));
        }
    }
}
