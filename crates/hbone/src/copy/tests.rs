use super::*;
use crate::harness::{World, checksum, pattern, stream};
use stillmesh_identity::{fixtures::identity, server_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream, duplex};

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

/// What each of two applications got rid of that send as fast as they can on one connection.
async fn shares(world: &World, pool: &crate::Pool, name: &str, total: u64) -> [u64; 2] {
    let mut counters = Vec::new();
    for _ in 0..2 {
        let mut stream = stream(pool, name).await;
        let (mut app, near) = connected().await;
        let counted: Arc<Counters> = Arc::default();
        counters.push(Arc::clone(&counted));
        world.tasks.spawn("copy", async move { tunnel(&mut Arc::new(near), &mut stream, &counted).await });
        world.tasks.spawn("app", async move {
            let piece = vec![7; 1 << 20];
            while app.write_all(&piece).await.is_ok() {}
        });
    }
    loop {
        let now = [0, 1].map(|which: usize| counters[which].forward.load(Ordering::Relaxed));
        if now.iter().sum::<u64>() >= total {
            return now;
        }
        tokio::task::yield_now().await;
    }
}

/// A peer of another make whose connection has a smaller window than its streams.
fn narrow_sink(world: &World) {
    let mut connections = world.net.listen();
    let (config, tasks) = (server_config(&world.ca.leaf(&identity("details"))).unwrap(), world.tasks.clone());
    world.tasks.spawn("peer", async move {
        let io = connections.recv().await.unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(config).accept(io).await.unwrap();
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(64 << 10);
        let mut connection = builder.handshake::<_, bytes::Bytes>(tls).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tasks.spawn("sink", async move {
                let _sender = respond.send_response(http::Response::new(()), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(piece)) = body.data().await {
                    body.flow_control().release_capacity(piece.len()).unwrap();
                }
            });
        }
    });
}

#[tokio::test]
async fn those_who_share_a_connections_window_get_about_the_same() {
    let world = World::new();
    narrow_sink(&world);
    let shares = shares(&world, &world.pool(), "any", 16 << 20).await;
    assert!(shares[0].min(shares[1]) * 3 >= shares[0].max(shares[1]), "{shares:?}");
}

#[tokio::test]
async fn a_reader_that_waits_holds_no_buffer_however_its_last_read_went() {
    let mut context = Context::from_waker(std::task::Waker::noop());
    for last in [100, 10_000] {
        let (mut app, mut near) = duplex(1 << 20);
        let mut reader = Reader::new(Memory::new(1 << 30).holding());
        for piece in [200_000, last] {
            app.write_all(&pattern(piece)).await.unwrap();
            let mut read = 0;
            while read < piece {
                let Poll::Ready(Ok(length)) = reader.poll(&mut context, &mut near) else { panic!("{read}") };
                reader.buffer.advance(length);
                read += length;
            }
        }
        assert!(reader.poll(&mut context, &mut near).is_pending());
        assert_eq!(reader.buffer.capacity(), 0, "after {last}");
    }
}

/// As TLS does, and whatever else collects what it writes.
#[tokio::test]
async fn what_a_writer_keeps_is_flushed_when_nothing_more_comes() {
    let (mut near, mut first) = duplex(64);
    let (second, mut far) = duplex(64);
    let mut second = BufStream::new(second);
    let counters = Counters::default();
    let asking = async {
        for n in 0..3_u8 {
            near.write_all(&[n; 5]).await.unwrap();
            let mut came = [0; 5];
            far.read_exact(&mut came).await.unwrap();
            assert_eq!(came, [n; 5]);
        }
        drop(near);
        drop(far);
    };
    let both = async { tokio::join!(sockets(&mut first, &mut second, &counters), asking) };
    let (copied, ()) = tokio::time::timeout(std::time::Duration::from_secs(60), both).await.expect("it is flushed");
    copied.unwrap();
    assert_eq!(counters.forward.load(Ordering::Relaxed), 15);
}
