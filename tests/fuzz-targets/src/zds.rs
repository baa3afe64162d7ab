//! The hand-over of pods: each end against a peer that says anything in any order.

use std::fs::File;
use std::os::fd::OwnedFd;

use stillmesh_api::zds::protocol::{self, Packet, Tunnel};
use stillmesh_api::zds::{MAX_MESSAGE_BYTES, PodInfo, Request, ZdsError};

use crate::cut::Pieces;

/// How many packets of one input are looked at.
const MOST_PACKETS: usize = 64;

/// The node tunnel's side: a sequence of packets. Of the byte before each, bits 0 and 1 count its descriptors, bit 2
/// marks it truncated, bit 3 refuses the request, bit 4 leaves it unanswered.
pub(crate) fn tunnel(input: &[u8]) -> bool {
    let mut tunnel = Tunnel::default();
    let (mut asked, mut ended) = (0, false);
    for (how, bytes) in Pieces(input).take(MOST_PACKETS) {
        let fds = (0..how & 3).map(|_| descriptor()).collect();
        let idle = tunnel.idle().is_ok();
        let packet = Packet { bytes: bytes.to_vec(), fds, truncated: how & 4 != 0 };
        match tunnel.request(packet) {
            Ok(request) => {
                assert!(idle, "a request was read while another was outstanding");
                assert!(how & 4 == 0, "a truncated packet was read");
                assert_eq!(how & 3, u8::from(matches!(request, Request::Add { .. })), "descriptors");
                assert!(!ended || matches!(request, Request::Add { .. } | Request::Del { .. }), "out of order");
                ended |= matches!(request, Request::SnapshotSent);
                is_read_back(request);
                asked += 1;
            }
            Err(error) => {
                assert!(matches!(error, ZdsError::Protocol(_)), "{error}");
                // The connection ends here.
                return false;
            }
        }
        if how & 16 == 0 {
            let why = String::from_utf8_lossy(bytes).into_owned();
            let result = if how & 8 == 0 { Ok(()) } else { Err(why) };
            let answer = tunnel.answer(result.clone()).expect("an answer to what was asked");
            assert!(answer.len() <= MAX_MESSAGE_BYTES);
            let read = protocol::read_answer(&packet_of(answer));
            assert!(matches!((result, read), (Ok(()), Ok(())) | (Err(_), Err(ZdsError::Refused(_)))));
        }
    }
    asked > 0
}

/// The agent's side: one packet, as a hello and as an answer.
pub(crate) fn agent(input: &[u8]) -> bool {
    let hello = protocol::read_hello(&packet_of(input.to_vec()));
    let answer = protocol::read_answer(&packet_of(input.to_vec()));
    let with_fd = Packet { fds: vec![descriptor()], ..packet_of(input.to_vec()) };
    assert!(protocol::read_hello(&with_fd).is_err() && protocol::read_answer(&with_fd).is_err());
    let cut = Packet { truncated: true, ..packet_of(input.to_vec()) };
    assert!(protocol::read_hello(&cut).is_err() && protocol::read_answer(&cut).is_err());
    hello.is_ok() || matches!(answer, Ok(()) | Err(ZdsError::Refused(_)))
}

/// What was understood, said again, means the same.
fn is_read_back(request: Request) {
    let (bytes, fd) = match &request {
        Request::Add { uid, info, .. } => (protocol::add(uid, info), Some(descriptor())),
        Request::Keep { uid } => (protocol::keep(uid), None),
        Request::Del { uid } => (protocol::del(uid), None),
        Request::SnapshotSent => (protocol::snapshot_sent(), None),
    };
    // A peer may pad what it says, so only our own wording has to fit.
    let Ok(bytes) = bytes else { return };
    let packet = Packet { fds: fd.into_iter().collect(), ..packet_of(bytes) };
    let again = Tunnel::default().request(packet).expect("our own words");
    assert_eq!(facts(&again), facts(&request));
}

fn facts(request: &Request) -> (u8, Option<&str>, Option<&PodInfo>) {
    match request {
        Request::Add { uid, info, .. } => (1, Some(uid), Some(info)),
        Request::Keep { uid } => (2, Some(uid), None),
        Request::Del { uid } => (3, Some(uid), None),
        Request::SnapshotSent => (4, None, None),
    }
}

fn packet_of(bytes: Vec<u8>) -> Packet {
    Packet { bytes, fds: Vec::new(), truncated: false }
}

fn descriptor() -> OwnedFd {
    File::open("/dev/null").expect("/dev/null").into()
}
