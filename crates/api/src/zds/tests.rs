//! Both ends over real sockets, and each end against a peer that breaks the rules.

use std::io::{IoSlice, Read as _, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use proptest::prelude::*;
use tokio::time::Instant;
use tokio_seqpacket::ancillary::AncillaryMessageWriter;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::protocol::{Packet, Tunnel};
use super::*;
use crate::codec::tests::bytes::Wire;

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ztunnel.sock");
    Place { _directory: directory, path }
}

fn info() -> PodInfo {
    PodInfo { name: "page-0".into(), namespace: "shop".into(), service_account: "page".into() }
}

/// Both ends, greeted.
async fn pair(place: &Place) -> (ServerConnection, ClientConnection) {
    let mut listener = Listener::bind(&place.path).unwrap();
    let (greeting, tunnel) = tokio::join!(listener.accept(), ClientConnection::connect(&place.path));
    (greeting.hello().await.unwrap(), tunnel.unwrap())
}

/// The agent's end with a tunnel that is only a socket.
async fn agent(place: &Place) -> (Greeting, UnixSeqpacket) {
    let mut listener = Listener::bind(&place.path).unwrap();
    let (greeting, raw) = tokio::join!(listener.accept(), UnixSeqpacket::connect(&place.path));
    (greeting, raw.unwrap())
}

/// The tunnel's end with an agent that is only a socket. The hello has been read.
async fn tunnel(place: &Place) -> (ClientConnection, UnixSeqpacket) {
    let mut listener = UnixSeqpacketListener::bind(&place.path).unwrap();
    let (raw, tunnel) = tokio::join!(listener.accept(), ClientConnection::connect(&place.path));
    let raw = raw.unwrap();
    let mut hello = [0; 16];
    let length = raw.recv(&mut hello).await.unwrap().bytes_read();
    assert_eq!(&hello[..length], Wire::new().number(1, 1).0);
    (tunnel.unwrap(), raw)
}

async fn send_raw(socket: &UnixSeqpacket, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    let mut ancillary = AncillaryMessageWriter::new(&mut control.0);
    if !fds.is_empty() {
        ancillary.add_fds(fds.iter().copied()).unwrap();
    }
    socket.send_vectored_with_ancillary(&[IoSlice::new(bytes)], &mut ancillary).await.unwrap();
}

async fn read_raw(socket: &UnixSeqpacket) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    let length = socket.recv(&mut bytes).await.unwrap().bytes_read();
    bytes.truncate(length);
    bytes
}

fn add_wire() -> Vec<u8> {
    let info = Wire::new().text(1, "page-0").text(2, "shop").text(3, "page");
    Wire::new().message(1, Wire::new().text(1, "uid-1").message(2, info)).0
}

fn del_wire() -> Vec<u8> {
    Wire::new().message(2, Wire::new().text(2, "uid-1")).0
}

fn snapshot_wire() -> Vec<u8> {
    Wire::new().message(3, Wire::new()).0
}

fn keep_wire() -> Vec<u8> {
    Wire::new().message(5, Wire::new().text(1, "uid-1")).0
}

#[tokio::test]
async fn pods_are_handed_over_with_their_descriptor_and_every_request_is_answered() {
    let place = place();
    let (mut agent, mut tunnel) = pair(&place).await;
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"the namespace").unwrap();
    file.rewind().unwrap();
    let asking = async {
        agent.keep("uid-0").await.unwrap();
        agent.add("uid-1", &info(), file.as_fd()).await.unwrap();
        agent.snapshot_sent().await.unwrap();
        let refused = agent.add("uid-2", &info(), file.as_fd()).await.unwrap_err();
        assert!(matches!(refused, ZdsError::Refused(why) if why == "no listener"));
        agent.del("uid-1").await.unwrap();
        agent
    };
    let answering = async {
        assert!(matches!(tunnel.next().await.unwrap(), Request::Keep { uid } if uid == "uid-0"));
        tunnel.answer(Ok(())).await.unwrap();
        let Request::Add { uid, info: told, netns } = tunnel.next().await.unwrap() else { panic!() };
        assert_eq!((uid.as_str(), told), ("uid-1", info()));
        let mut read = String::new();
        std::fs::File::from(netns).read_to_string(&mut read).unwrap();
        assert_eq!(read, "the namespace");
        tunnel.answer(Ok(())).await.unwrap();
        assert!(matches!(tunnel.next().await.unwrap(), Request::SnapshotSent));
        tunnel.answer(Ok(())).await.unwrap();
        assert!(matches!(tunnel.next().await.unwrap(), Request::Add { .. }));
        tunnel.answer(Err("no listener".to_owned())).await.unwrap();
        assert!(matches!(tunnel.next().await.unwrap(), Request::Del { uid } if uid == "uid-1"));
        tunnel.answer(Ok(())).await.unwrap();
        tunnel
    };
    let (mut agent, tunnel) = tokio::join!(asking, answering);
    drop(tunnel);
    assert!(matches!(agent.gone().await, ZdsError::Closed));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = place();
    let first = Listener::bind(&place.path).unwrap();
    let mode = std::fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let taken = Listener::bind(&place.path).map(|_| ()).unwrap_err();
    assert!(matches!(taken, ZdsError::Io(error) if error.kind() == io::ErrorKind::AddrInUse));
    drop(first);
    drop(Listener::bind(&place.path).unwrap());
    std::fs::remove_file(&place.path).unwrap();
    std::fs::write(&place.path, "").unwrap();
    assert!(Listener::bind(&place.path).is_err());
}

#[tokio::test]
async fn what_the_tunnel_must_not_be_sent_ends_the_connection() {
    let file = tempfile::tempfile().unwrap();
    let one = [file.as_fd()];
    let many = [file.as_fd(); 2];
    let flood = [file.as_fd(); 30];
    let nameless = Wire::new().message(1, Wire::new().text(1, "uid-1")).0;
    let no_uid = Wire::new().message(2, Wire::new()).0;
    let later = Wire::new().message(4, Wire::new()).0;
    let long = Wire::new().message(2, Wire::new().text(2, &"x".repeat(1100))).0;
    let cases: [(&str, Vec<u8>, &[BorrowedFd<'_>]); 10] = [
        ("add without a descriptor", add_wire(), &[]),
        ("a descriptor with a message that has none", add_wire(), &many),
        ("a truncated packet", add_wire(), &flood),
        ("a descriptor with a message that has none", del_wire(), &one),
        ("a descriptor with a message that has none", keep_wire(), &one),
        ("add without workload_info", nameless, &one),
        ("an empty uid", no_uid, &[]),
        ("a request that is not known", later, &[]),
        ("a truncated packet", long, &[]),
        ("failed to decode", vec![0xff; 100], &[]),
    ];
    for (expected, bytes, fds) in cases {
        let place = place();
        let (mut tunnel, agent) = tunnel(&place).await;
        send_raw(&agent, &bytes, fds).await;
        match tunnel.next().await {
            Err(ZdsError::Protocol(why)) => assert!(why.contains(expected), "{why:?} should say {expected:?}"),
            other => panic!("{other:?} should say {expected:?}"),
        }
    }
}

#[tokio::test]
async fn keep_after_the_snapshot_and_a_second_snapshot_end_the_connection() {
    for (bytes, expected) in [(keep_wire(), "keep after the snapshot"), (snapshot_wire(), "a second end")] {
        let place = place();
        let (mut tunnel, agent) = tunnel(&place).await;
        send_raw(&agent, &snapshot_wire(), &[]).await;
        assert!(matches!(tunnel.next().await.unwrap(), Request::SnapshotSent));
        tunnel.answer(Ok(())).await.unwrap();
        assert_eq!(read_raw(&agent).await, Wire::new().message(1, Wire::new()).0);
        send_raw(&agent, &bytes, &[]).await;
        assert!(matches!(tunnel.next().await, Err(ZdsError::Protocol(why)) if why.contains(expected)));
    }
}

#[tokio::test]
async fn answers_are_one_per_request_and_fit_a_packet() {
    let place = place();
    let (mut tunnel, agent) = tunnel(&place).await;
    assert!(matches!(tunnel.answer(Ok(())).await, Err(ZdsError::Protocol(_))), "nothing was asked");
    send_raw(&agent, &del_wire(), &[]).await;
    tunnel.next().await.unwrap();
    assert!(matches!(tunnel.next().await, Err(ZdsError::Protocol(_))), "the first is not answered");
    tunnel.answer(Err("é".repeat(5000))).await.unwrap();
    let answer = read_raw(&agent).await;
    assert!((1000..=MAX_MESSAGE_BYTES).contains(&answer.len()), "{}", answer.len());
    send_raw(&agent, &del_wire(), &[]).await;
    tunnel.next().await.unwrap();
    tunnel.answer(Err(String::new())).await.unwrap();
    assert_eq!(read_raw(&agent).await, Wire::new().message(1, Wire::new().text(1, "failed")).0, "not read as done");
    drop(agent);
    assert!(matches!(tunnel.next().await, Err(ZdsError::Closed)));
}

#[tokio::test]
async fn a_hello_that_is_none_is_refused() {
    for bytes in [Wire::new().number(1, 2).0, Wire::new().number(1, 0).0, vec![0xff; 10], vec![1; 2000]] {
        let place = place();
        let (greeting, raw) = agent(&place).await;
        send_raw(&raw, &bytes, &[]).await;
        assert!(matches!(greeting.hello().await, Err(ZdsError::Protocol(_))));
    }
    let place = place();
    let (greeting, raw) = agent(&place).await;
    drop(raw);
    assert!(matches!(greeting.hello().await, Err(ZdsError::Closed)));
}

#[tokio::test]
async fn what_the_agent_must_not_be_sent_ends_the_connection() {
    let place = place();
    let (greeting, raw) = agent(&place).await;
    send_raw(&raw, &Wire::new().number(1, 1).0, &[]).await;
    let mut agent = greeting.hello().await.unwrap();
    send_raw(&raw, &Wire::new().message(2, Wire::new()).0, &[]).await;
    assert!(matches!(agent.keep("uid-1").await, Err(ZdsError::Protocol(why)) if why.contains("an answer that")));
    let file = tempfile::tempfile().unwrap();
    send_raw(&raw, &Wire::new().message(1, Wire::new()).0, &[file.as_fd()]).await;
    assert!(matches!(agent.keep("uid-1").await, Err(ZdsError::Protocol(why)) if why.contains("a descriptor")));
    send_raw(&raw, &Wire::new().message(1, Wire::new()).0, &[]).await;
    assert!(matches!(agent.gone().await, ZdsError::Protocol(why) if why.contains("nobody asked")));
    let long = "x".repeat(MAX_MESSAGE_BYTES);
    assert!(matches!(agent.keep(&long).await, Err(ZdsError::TooLong { .. })));
}

// Unix sockets are ready at once, so that paused time moves only when everybody really waits.

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_says_no_hello_is_given_up_after_five_seconds() {
    let place = place();
    let (greeting, _raw) = agent(&place).await;
    let started = Instant::now();
    assert!(matches!(greeting.hello().await, Err(ZdsError::Slow { what: "say hello", .. })));
    assert!(started.elapsed() >= DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_answer_is_given_up_after_five_seconds_and_not_asked_again() {
    let place = place();
    let (greeting, raw) = agent(&place).await;
    send_raw(&raw, &Wire::new().number(1, 1).0, &[]).await;
    let mut agent = greeting.hello().await.unwrap();
    assert!(matches!(agent.del("uid-1").await, Err(ZdsError::Slow { what: "answer", .. })));
    // Its late answer must not be taken for that of another request.
    send_raw(&raw, &Wire::new().message(1, Wire::new()).0, &[]).await;
    assert!(matches!(agent.del("uid-2").await, Err(ZdsError::Protocol(_))));
}

#[tokio::test(start_paused = true)]
async fn tunnels_are_accepted_at_most_five_times_a_second() {
    let place = place();
    let mut listener = Listener::bind(&place.path).unwrap();
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(UnixSeqpacket::connect(&place.path).await.unwrap());
    }
    let started = Instant::now();
    for _ in 0..6 {
        listener.accept().await;
    }
    assert!(started.elapsed() >= Duration::from_secs(1));
}

proptest! {
    #[test]
    fn no_bytes_make_the_protocol_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..4)) {
        let mut tunnel = Tunnel::default();
        for bytes in packets {
            let _ = protocol::read_hello(&Packet { bytes: bytes.clone(), fds: Vec::new(), truncated: false });
            let _ = protocol::read_answer(&Packet { bytes: bytes.clone(), fds: Vec::new(), truncated: false });
            if tunnel.request(Packet { bytes, fds: Vec::new(), truncated: false }).is_ok() {
                tunnel.answer(Ok(())).unwrap();
            }
        }
    }
}
