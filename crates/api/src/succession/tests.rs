use std::os::fd::AsFd as _;

use proptest::prelude::*;

use super::*;
use crate::packets::Packet;

fn packet(bytes: Vec<u8>) -> Packet {
    Packet { bytes, fds: Vec::new(), truncated: false }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn each_question_has_its_bytes() {
    let take = Ask::Take { uid: "u".to_owned(), inode: 300 };
    for (ask, hex) in [
        (Ask::Hello { version: 1 }, "08 01"),
        (take, "12 06 0a 01 75 10 ac 02"),
        (Ask::Serving { uid: "u".to_owned() }, "1a 01 75"),
        (Ask::Forget { uid: "u".to_owned() }, "22 01 75"),
        (Ask::Ready, "2a 00"),
    ] {
        assert_eq!(protocol::write_ask(&ask).unwrap(), bytes(hex), "{ask:?}");
        assert_eq!(protocol::read_ask(&packet(bytes(hex))).unwrap(), ask);
    }
}

#[test]
fn what_a_later_version_adds_to_a_question_is_skipped_and_its_questions_are_refused() {
    let added = protocol::read_ask(&packet(bytes("1a 01 75 f8 07 01"))).unwrap();
    assert_eq!(added, Ask::Serving { uid: "u".to_owned() });
    assert!(protocol::read_ask(&packet(bytes("f8 07 01"))).is_err());
    assert!(protocol::read_ask(&packet(bytes("08 02"))).is_err(), "a later version");
    assert!(protocol::read_ask(&packet(bytes("1a 00"))).is_err(), "no uid");
}

#[test]
fn a_descriptor_too_few_or_too_many_is_an_error() {
    let place = Place { kind: Kind::Tcp, address: ([0, 0, 0, 0], 15001).into() };
    let answer = protocol::write_answer(Ok(vec![place])).unwrap();
    assert!(protocol::read_answer(packet(answer.clone())).is_err());
    let fd = || std::io::pipe().unwrap().0.into();
    let two = Packet { bytes: answer.clone(), fds: vec![fd(), fd()], truncated: false };
    assert!(protocol::read_answer(two).is_err());
    let one = Packet { bytes: answer, fds: vec![fd()], truncated: false };
    assert_eq!(protocol::read_answer(one).unwrap()[0].0, place);
    let question = Packet { bytes: bytes("2a 00"), fds: vec![fd()], truncated: false };
    assert!(protocol::read_ask(&question).is_err());
}

#[tokio::test]
async fn sockets_pass_from_one_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    assert!(Predecessor::connect(&path).await.unwrap().is_none(), "nobody is there");
    let mut listener = Listener::take_over(&path).unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place { kind: Kind::Tcp, address: socket.local_addr().unwrap() };
    let old = async {
        let mut successor = listener.accept().await;
        assert_eq!(successor.next().await.unwrap(), Ask::Hello { version: 1 });
        successor.answer(Ok(&[])).await.unwrap();
        assert_eq!(successor.next().await.unwrap(), Ask::Take { uid: "u".to_owned(), inode: 7 });
        successor.answer(Ok(&[(place, socket.as_fd())])).await.unwrap();
        assert_eq!(successor.next().await.unwrap(), Ask::Take { uid: "v".to_owned(), inode: 7 });
        successor.answer(Err("not served".to_owned())).await.unwrap();
        assert!(matches!(successor.next().await, Err(SuccessionError::Packet(PacketError::Closed))));
    };
    let new = async {
        let mut predecessor = Predecessor::connect(&path).await.unwrap().unwrap();
        let given = predecessor.take("u", 7).await.unwrap();
        assert_eq!(given[0].0, place);
        assert!(matches!(predecessor.take("v", 7).await, Err(SuccessionError::Refused(why)) if why == "not served"));
    };
    tokio::join!(old, new);
}

#[tokio::test]
async fn the_path_belongs_to_the_last_who_took_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    let first = Listener::take_over(&path).unwrap();
    let mut second = Listener::take_over(&path).unwrap();
    let greet = async {
        let mut successor = second.accept().await;
        successor.next().await.unwrap();
        successor.answer(Ok(&[])).await.unwrap();
    };
    let (connected, ()) = tokio::join!(Predecessor::connect(&path), greet);
    assert!(connected.unwrap().is_some());
    drop(first);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    drop(second);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(Predecessor::connect(&path).await.unwrap().is_none());
}

proptest! {
    #[test]
    fn garbage_is_refused_without_panic(garbage in proptest::collection::vec(any::<u8>(), 0..1024)) {
        let _ = protocol::read_ask(&packet(garbage.clone()));
        let _ = protocol::read_answer(packet(garbage));
    }
}
