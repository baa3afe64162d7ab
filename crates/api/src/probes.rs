//! A question of the node tunnel to the node agent: is this connection one of the kubelet's probes? And what it tells the
//! agent: which pods it has cut off.
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

/// Where a pod stands: what the tunnel has done about a Quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The pod's UID.
    pub uid: String,
    /// The Quarantine that cuts it off, as `namespace/name`; none does where it is absent.
    pub quarantine: Option<String>,
    /// The UID of that Quarantine; absent where the tunnel was not told.
    pub order: Option<String>,
    /// Connections of the pod that were closed for it, by this process of the tunnel.
    pub cut: u64,
    /// How long that took from the moment that the tunnel heard of it. Told in milliseconds.
    pub took: Duration,
}

impl Notice {
    /// Whether both say that the same Quarantine cuts the pod off, or that none does. One whose UID was not told is the one of its name.
    pub fn is_of_same(&self, other: &Self) -> bool {
        let untold = self.order.is_none() || other.order.is_none();
        self.quarantine == other.quarantine && (untold || self.order == other.order)
    }
}

/// What comes from a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A question.
    Question(Question),
    /// Where a pod stands. Any answer says that it was heard.
    Notice(Notice),
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
    /// Instead of addresses.
    #[prost(message, optional, tag = "4")]
    notice: Option<Noticed>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Noticed {
    /// Empty where none cuts the pod off.
    #[prost(string, tag = "1")]
    quarantine: String,
    #[prost(uint64, tag = "2")]
    cut: u64,
    #[prost(uint64, tag = "3")]
    took_ms: u64,
    /// Empty where it is not known.
    #[prost(string, tag = "4")]
    order: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answered {
    /// 1: no, 2: a probe, 3: closed already. 0 is none of them, so that no answer is empty.
    #[prost(uint32, tag = "1")]
    verdict: u32,
}

/// Asks. Errors mean that nobody knows: the caller then goes by its policies alone.
pub async fn ask(path: &Path, question: &Question) -> Result<Verdict, PacketError> {
    say(path, &write_question(question)?).await
}

/// Tells where a pod stands. Errors mean that it may not have been heard.
pub async fn tell(path: &Path, notice: &Notice) -> Result<(), PacketError> {
    say(path, &write_notice(notice)?).await.map(drop)
}

async fn say(path: &Path, bytes: &[u8]) -> Result<Verdict, PacketError> {
    let asking = async {
        let socket = packets::connect(path, DEADLINE).await?;
        packets::send(&socket, bytes, &[], DEADLINE).await?;
        read_verdict(&packets::receive(&socket).await?)
    };
    let slow = PacketError::Slow { what: "answer", limit: DEADLINE };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or(Err(slow))
}

/// Listens for questions of this user, instead of whoever did.
pub fn listen(path: &Path) -> std::io::Result<UnixSeqpacketListener> {
    packets::take_over(path)
}

/// Reads what comes on a connection that was accepted, within the deadline.
pub async fn said(socket: &UnixSeqpacket) -> Result<Said, PacketError> {
    read_said(&packets::receive_within(socket, "ask", DEADLINE).await?)
}

/// Answers it.
pub async fn answer(socket: &UnixSeqpacket, verdict: Verdict) -> Result<(), PacketError> {
    packets::send(socket, &write_verdict(verdict), &[], DEADLINE).await
}

/// A question's bytes.
pub fn write_question(question: &Question) -> Result<Vec<u8>, PacketError> {
    let Question { uid, source, destination } = question;
    let (source, destination) = (source.to_string(), destination.to_string());
    written(&Asked { uid: uid.clone(), source, destination, notice: None })
}

/// A notice's bytes.
pub fn write_notice(notice: &Notice) -> Result<Vec<u8>, PacketError> {
    let Notice { uid, quarantine, order, cut, took } = notice;
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let [quarantine, order] = [quarantine, order].map(|text| text.clone().unwrap_or_default());
    let noticed = Noticed { quarantine, order, cut: *cut, took_ms };
    written(&Asked { uid: uid.clone(), notice: Some(noticed), ..Asked::default() })
}

fn written(asked: &Asked) -> Result<Vec<u8>, PacketError> {
    let bytes = asked.encode_to_vec();
    if bytes.len() <= MOST_BYTES { Ok(bytes) } else { Err(PacketError::Bad("a uid or name that is too long")) }
}

/// Reads what a tunnel says.
pub fn read_said(packet: &Packet) -> Result<Said, PacketError> {
    let asked = Asked::decode(plain(packet)?).map_err(|_| PacketError::Bad("a question that cannot be read"))?;
    let Some(Noticed { quarantine, order, cut, took_ms }) = asked.notice else {
        return read_question(packet).map(Said::Question);
    };
    let [quarantine, order] = [quarantine, order].map(|text| Some(text).filter(|text| !text.is_empty()));
    Ok(Said::Notice(Notice { uid: asked.uid, quarantine, order, cut, took: Duration::from_millis(took_ms) }))
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
                let Said::Question(question) = said(&socket).await.unwrap() else { panic!("no question") };
                assert_eq!(question.source, "10.0.0.1:4000".parse().unwrap(), "as the node's sockets show it");
                assert_eq!((question.uid, question.destination), (asked.uid.clone(), asked.destination));
                answer(&socket, verdict).await.unwrap();
            };
            let (answer, ()) = tokio::join!(ask(&path, &asked), answering);
            assert_eq!(answer.unwrap(), verdict);
        }
        assert!(matches!(ask(&path, &asked).await, Err(PacketError::Slow { .. })), "nobody accepts");
    }

    #[tokio::test]
    async fn a_notice_is_heard_or_an_error_says_that_it_may_not_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probes.sock");
        let took = Duration::from_millis(7);
        let mut listener = listen(&path).unwrap();
        for quarantine in [Some("shop/q".to_owned()), None] {
            let order = quarantine.as_ref().map(|_| "u-1".to_owned());
            let notice = Notice { uid: "u".to_owned(), quarantine, order, cut: 3, took };
            // On a machine that stands still it takes longer than either side waits: it is told again.
            let answering = async {
                loop {
                    let socket = listener.accept().await.unwrap();
                    let Ok(heard) = said(&socket).await else { continue };
                    assert_eq!(heard, Said::Notice(notice.clone()));
                    let _ = answer(&socket, Verdict::Other).await;
                }
            };
            let telling = async { while tell(&path, &notice).await.is_err() {} };
            tokio::select! {
                () = telling => {}
                () = answering => {}
            }
        }
        drop(listener);
        let none = Notice { uid: "u".to_owned(), quarantine: None, order: None, cut: 0, took };
        assert!(tell(&path, &none).await.is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(garbage in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = read_said(&packet(garbage.clone()));
            let _ = read_question(&packet(garbage.clone()));
            let _ = read_verdict(&packet(garbage));
        }
    }
}
