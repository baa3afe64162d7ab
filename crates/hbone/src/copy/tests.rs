use super::*;
use crate::harness::{World, checksum, pattern, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

#[tokio::test]
async fn each_direction_between_sockets_ends_by_itself() {
    let (mut client, mut near) = duplex(64);
    let (mut far, mut server) = duplex(64);
    let counters = Counters::default();
    let copying = sockets(&mut near, &mut far, &counters);
    let talking = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"an answer after the half-close").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer after the half-close");
    };
    let (copied, ()) = tokio::join!(copying, talking);
    copied.unwrap();
    assert_eq!((counters.forward.into_inner(), counters.backward.into_inner()), (8, 30));
}

#[tokio::test]
async fn a_large_transfer_arrives_whole_through_small_pipes() {
    let (mut client, mut near) = duplex(5_000);
    let (mut far, mut server) = duplex(3_000);
    let counters = Counters::default();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
    let copying = sockets(&mut near, &mut far, &counters);
    let sending = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    };
    let receiving = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        drop(server);
        received
    };
    let (copied, _client, received) = tokio::join!(copying, sending, receiving);
    copied.unwrap();
    assert!(received == sent);
}

/// Two ends of one TCP connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn a_tunnel_between_real_sockets_carries_all_and_counts_all_whatever_the_reader_does() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut stream = stream(&pool, "count").await;
    let (mut app, near) = connected().await;
    let counters: Arc<Counters> = Arc::default();
    let counted = Arc::clone(&counters);
    let copying = world.tasks.spawn("copy", async move { tunnel(&mut Arc::new(near), &mut stream, &counted).await });
    let sent = pattern(3_000_000);
    app.write_all(&sent).await.unwrap();
    app.shutdown().await.unwrap();
    let mut answer = String::new();
    app.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, format!("{} {:x}", sent.len(), checksum(&sent)));
    { copying }.join().await.unwrap().unwrap();
    let totals = (counters.forward.load(Ordering::Relaxed), counters.backward.load(Ordering::Relaxed));
    assert_eq!(totals, (3_000_000, answer.len() as u64));

    // The other way, to a reader that stops for a while: what its socket does not take waits, and nothing is lost.
    let mut stream = crate::harness::stream(&pool, "source:20").await;
    let (mut app, near) = connected().await;
    let counters: Arc<Counters> = Arc::default();
    let counted = Arc::clone(&counters);
    let copying = world.tasks.spawn("copy", async move { tunnel(&mut Arc::new(near), &mut stream, &counted).await });
    while world.limits.memory.held() == 0 {
        tokio::task::yield_now().await;
    }
    let mut received = Vec::new();
    app.read_to_end(&mut received).await.unwrap();
    assert!(received == pattern(20 << 20));
    drop(app);
    { copying }.join().await.unwrap().unwrap();
    assert_eq!(counters.backward.load(Ordering::Relaxed), 20 << 20);
    assert_eq!(world.limits.memory.held(), 0);
}

#[tokio::test]
async fn an_application_that_breaks_while_it_is_sent_to_breaks_the_tunnel() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut stream = stream(&pool, "source:64").await;
    let (app, near) = connected().await;
    app.set_zero_linger().unwrap();
    let (mut near, counters) = (Arc::new(near), Arc::default());
    let copying = tunnel(&mut near, &mut stream, &counters);
    let breaking = async {
        app.readable().await.unwrap();
        drop(app);
    };
    let (copied, ()) = tokio::join!(copying, breaking);
    assert_eq!(copied.unwrap_err().side, Side::First);
}
