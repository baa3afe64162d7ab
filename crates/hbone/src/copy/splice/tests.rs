use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::harness::pattern;

/// Two ends of one TCP connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A client and a server with a copy in between.
struct Relay {
    client: TcpStream,
    server: TcpStream,
    counters: Arc<Counters>,
    copying: JoinHandle<Result<(), CopyError>>,
}

#[expect(clippy::disallowed_methods, reason = "a task of a test")]
async fn relay(pipes: &Pipes) -> Relay {
    let ((client, mut near), (mut far, server)) = (connected().await, connected().await);
    let (counters, pipes) = (Arc::<Counters>::default(), pipes.clone());
    let counted = counters.clone();
    let copying = tokio::spawn(async move {
        let copied = spliced(&mut near, &mut far, &counted, &pipes).await;
        if copied.is_err() {
            for broken in [&near, &far] {
                broken.set_zero_linger().unwrap();
            }
        }
        copied
    });
    Relay { client, server, counters, copying }
}

/// Sends in pieces, then ends; receives all.
async fn exchange(stream: &mut TcpStream, sent: &[u8], piece: usize) -> Vec<u8> {
    let (mut from, mut to) = stream.split();
    let sending = async {
        for part in sent.chunks(piece) {
            to.write_all(part).await.unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = tokio::join!(sending, from.read_to_end(&mut received));
    read.unwrap();
    received
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_byte_arrives_in_both_directions_whatever_the_sizes(
        there in 0..3_000_000usize, back in 0..3_000_000usize, pieces in (1000..200_000usize, 1000..200_000usize),
        most in 0..3usize,
    ) {
        run(async {
            let pipes = Pipes::new(most);
            let Relay { mut client, mut server, counters, copying } = relay(&pipes).await;
            let (question, answer) = (pattern(there), pattern(back));
            let (got_answer, got_question) = tokio::join!(
                exchange(&mut client, &question, pieces.0),
                exchange(&mut server, &answer, pieces.1)
            );
            copying.await.unwrap().unwrap();
            assert!(got_question == question && got_answer == answer);
            let counted = (counters.forward.load(Ordering::Relaxed), counters.backward.load(Ordering::Relaxed));
            assert_eq!(counted, (there as u64, back as u64));
            assert_eq!(pipes.lent(), 0);
        });
    }
}

#[tokio::test]
async fn a_pipe_is_held_only_while_bytes_wait_for_a_reader() {
    let pipes = Pipes::new(8);
    let Relay { mut client, mut server, copying, .. } = relay(&pipes).await;
    client.write_all(b"small").await.unwrap();
    let mut small = [0; 5];
    server.read_exact(&mut small).await.unwrap();
    assert_eq!((pipes.lent(), pipes.0.lock().idle.len()), (0, 0), "a small message needs none");

    let sent = pattern(20 << 20);
    let writing = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let reading = async {
        while pipes.lent() == 0 {
            tokio::task::yield_now().await;
        }
        let mut received = Vec::new();
        let mut piece = vec![0; 100_000];
        while received.len() < 20 << 20 {
            let length = server.read(&mut piece).await.unwrap();
            received.extend_from_slice(&piece[..length]);
            tokio::task::yield_now().await;
        }
        received
    };
    let ((), received) = tokio::join!(writing, reading);
    assert!(received == sent);
    // The other direction is open still.
    while pipes.lent() > 0 {
        tokio::task::yield_now().await;
    }
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    let mut thanks = String::new();
    client.read_to_string(&mut thanks).await.unwrap();
    assert_eq!(thanks, "thanks");
    copying.await.unwrap().unwrap();
}

#[tokio::test]
async fn each_side_may_end_its_half_first() {
    let pipes = Pipes::new(8);
    for client_ends_first in [true, false] {
        let Relay { client, server, copying, .. } = relay(&pipes).await;
        let (mut first, mut second) = if client_ends_first { (client, server) } else { (server, client) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut question = String::new();
        second.read_to_string(&mut question).await.unwrap();
        let answer = pattern(1 << 20);
        let got = exchange(&mut second, &answer, 1 << 16);
        let mut received = Vec::new();
        let (nothing, read) = tokio::join!(got, first.read_to_end(&mut received));
        assert!(nothing.is_empty() && read.is_ok() && received == answer && question == "question");
        copying.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_at_the_other_end_and_its_bytes_are_nobodys() {
    let pipes = Pipes::new(8);
    for client_breaks in [true, false] {
        let Relay { client, server, copying, .. } = relay(&pipes).await;
        let (breaks, mut other) = if client_breaks { (client, server) } else { (server, client) };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let mut nothing = Vec::new();
        let read = other.read_to_end(&mut nothing).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let side = if client_breaks { Side::First } else { Side::Second };
        assert_eq!(copying.await.unwrap().unwrap_err().side, side);
    }
    // One whose reader stands still breaks with bytes in its pipe.
    let Relay { mut client, server, copying, .. } = relay(&pipes).await;
    let sent = vec![7; 64 << 20];
    let breaking = async {
        while pipes.lent() == 0 {
            tokio::task::yield_now().await;
        }
        server.set_zero_linger().unwrap();
        drop(server);
    };
    let (wrote, ()) = tokio::join!(client.write_all(&sent), breaking);
    wrote.unwrap_err();
    copying.await.unwrap().unwrap_err();
    assert_eq!(pipes.lent(), 0);
    assert!(pipes.0.lock().idle.iter().all(|pipe| pipe.held() == 0));
}

#[tokio::test]
async fn more_connections_than_pipes_are_carried_as_well_and_kept_pipes_are_few() {
    let pipes = Pipes::new(3);
    let sent = pattern(2 << 20);
    let mut all = Vec::new();
    for _ in 0..12 {
        all.push(relay(&pipes).await);
    }
    let carried = all.into_iter().map(|relay| async {
        let Relay { mut client, mut server, copying, .. } = relay;
        let both = tokio::join!(exchange(&mut client, &sent, 1 << 16), exchange(&mut server, &sent, 1 << 16));
        copying.await.unwrap().unwrap();
        both.0 == sent && both.1 == sent
    });
    let carried = futures::future::join_all(carried).await;
    assert!(carried.into_iter().all(|whole| whole));
    let stock = pipes.0.lock();
    assert!(stock.lent == 0 && stock.idle.len() <= IDLE, "{stock:?}");
}
