use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use stillmesh_core::Diagnose;
use stillmesh_identity::fixtures::{LocalCa, identity};
use stillmesh_identity::server_config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use stillmesh_runtime::drain;

use super::*;
use crate::Memory;
use crate::harness::{World, echoes, key, key_to, open, pattern, settle, stream};
use crate::headers::{Baggage, Forwarded, Traceparent};
use crate::server::accept_tls;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn streams_share_one_connection_and_those_who_wait_share_its_dial() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut streams: Vec<Stream> = join_all((0..100).map(|_| stream(&pool, "echo"))).await;
    for stream in &mut streams {
        echoes(stream, b"hello").await;
    }
    assert_eq!((world.net.dials(), pool.tunnels()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_a_connection_takes_get_another_one() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut streams: Vec<Stream> = join_all((0..1000).map(|_| stream(&pool, "echo"))).await;
    assert_eq!(world.net.dials(), 10);
    join_all(streams.iter_mut().map(|stream| echoes(stream, b"all at once"))).await;
    drop(streams);
    settle().await;
    stream(&pool, "echo").await;
    assert_eq!(world.net.dials(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_peers_own_limit_counts() {
    let world = World::new();
    let limits = Limits { server_streams: 3, ..world.limits.clone() };
    let _server = world.server_with(world.ca.leaf(&identity("details")), limits);
    let pool = world.pool();
    let _first = stream(&pool, "echo").await;
    let _others: Vec<Stream> = join_all((0..5).map(|_| stream(&pool, "echo"))).await;
    assert_eq!(world.net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_sources_and_expectations_get_other_connections() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let authority = Authority::Name("echo".into(), 80);
    let variants = [
        key(),
        Key { source: identity("other"), ..key() },
        Key { source_ip: [10, 0, 0, 9].into(), ..key() },
        Key { expected: vec![identity("details"), identity("alias")], ..key() },
    ];
    let mut opened = Vec::new();
    for variant in &variants {
        opened.push(pool.open(variant, &authority, &ConnectHeaders::default()).await.unwrap());
    }
    assert_eq!(world.net.dials(), 4);
}

#[tokio::test(start_paused = true)]
async fn headers_arrive_as_they_were_sent() {
    let world = World::new();
    let _server = world.server();
    let headers = ConnectHeaders {
        baggage: Some(Baggage { cluster: Some("Kubernetes".into()), ..Baggage::default() }),
        forwarded: Some(Forwarded {
            source: Some("[fd00::1]:41000".parse().unwrap()),
            host: Some("details.shop.svc.cluster.local".into()),
        }),
        traceparent: Some(Traceparent::new(7, 9)),
        network: Some("west".into()),
    };
    let authority = Authority::Name("echo".into(), 80);
    let _opened = world.pool().open(&key(), &authority, &headers).await.unwrap();
    assert_eq!(world.apps.headers.lock().clone(), Some(headers));
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_told_apart() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let cases = [
        ("refuse:401", "TUN004", false),
        ("refuse:503", "TUN004", true),
        ("refuse:400", "TUN004", true),
        ("dropped", "TUN005", true),
        ("silent", "TUN006", true),
    ];
    for (name, code, may_repick) in cases {
        let error = open(&pool, name).await.unwrap_err();
        assert_eq!((error.code(), error.may_repick()), (code, may_repick), "{name}: {error:?}");
    }
    let nobody = "10.0.0.99:15008".parse().unwrap();
    let authority = Authority::Name("echo".into(), 80);
    let error = pool.open(&key_to(nobody), &authority, &ConnectHeaders::default()).await.unwrap_err();
    assert_eq!((error.code(), error.may_repick()), ("TUN001", true));
    let expected = Key { expected: vec![identity("somebody")], ..key() };
    let error = pool.open(&expected, &authority, &ConnectHeaders::default()).await.unwrap_err();
    assert_eq!((error.code(), error.response_flag()), ("TLS006", "TLS_FAILURE"));
    world.ca.set_broken(true);
    let unknown = Key { source: identity("new"), ..key() };
    let error = pool.open(&unknown, &authority, &ConnectHeaders::default()).await.unwrap_err();
    assert!(!error.may_repick() || error.code() == "TUN006", "{error:?}");
    // The connection survived what went wrong on it, and failed keys leave nothing behind.
    echoes(&mut stream(&pool, "echo").await, b"still here").await;
    assert_eq!(pool.shared.slots.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_dial_fails_everybody_at_its_deadline_and_not_one_after_the_other() {
    let world = World::new();
    let _server = world.server();
    *world.net.gate.lock() = Some(Arc::new(Semaphore::new(0)));
    let pool = world.pool();
    let begun = Instant::now();
    let failed = join_all((0..200).map(|_| open(&pool, "echo"))).await;
    assert!(failed.iter().all(|error| error.as_ref().unwrap_err().code() == "TUN002"), "{:?}", failed[0]);
    assert!(begun.elapsed() <= 11 * SECOND, "{:?}", begun.elapsed());
    assert_eq!((world.net.dials(), pool.shared.slots.lock().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_asked_first_may_leave_without_harm_to_the_others() {
    let world = World::new();
    let _server = world.server();
    let gate = Arc::new(Semaphore::new(0));
    *world.net.gate.lock() = Some(Arc::clone(&gate));
    let pool = world.pool();
    let mut first = Box::pin(stream(&pool, "echo"));
    assert!(futures::poll!(&mut first).is_pending());
    settle().await;
    let mut second = Box::pin(stream(&pool, "echo"));
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    gate.add_permits(1);
    echoes(&mut second.await, b"x").await;
    assert_eq!(world.net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_dial_at_each_stage() {
    let world = World::new();
    // Accepts and says nothing: TLS.
    let mut silent = world.net.listen();
    let pool = world.pool();
    let begun = Instant::now();
    let error = open(&pool, "echo").await.unwrap_err();
    assert_eq!((error.code(), error.response_flag()), ("TLS013", "TLS_FAILURE"));
    assert!(begun.elapsed() <= 11 * SECOND);
    assert!(silent.recv().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_released_after_five_minutes_and_its_key_forgotten() {
    let world = World::new();
    let mut server = world.server();
    let pool = world.pool();
    echoes(&mut stream(&pool, "echo").await, b"x").await;
    sleep(290 * SECOND).await;
    assert_eq!(pool.tunnels(), 1);
    sleep(40 * SECOND).await;
    assert_eq!((pool.tunnels(), pool.shared.slots.lock().len()), (0, 0));
    server.endings.recv().await.unwrap().unwrap();
    let mut stream = stream(&pool, "echo").await;
    sleep(3600 * SECOND).await;
    echoes(&mut stream, b"a connection with a stream stays, however quiet").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewed_leaf_dials_anew_and_lets_old_streams_run() {
    let world = World::new();
    let _server = world.server();
    world.ca.set_ttl(600 * SECOND);
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    let leaf = world.secrets.leaf(&identity("page")).await.unwrap();
    world.secrets.watch(&identity("page")).unwrap().newer_than(&leaf).await.unwrap();
    let mut new = stream(&pool, "echo").await;
    assert_eq!((world.net.dials(), pool.tunnels()), (2, 1));
    echoes(&mut old, b"old").await;
    echoes(&mut new, b"new").await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_near_the_end_of_its_leaf_takes_no_new_streams_and_lets_old_ones_run() {
    let world = World::new();
    let _server = world.server();
    world.ca.set_ttl(600 * SECOND);
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    // No newer leaf can be had.
    world.ca.set_broken(true);
    sleep(440 * SECOND).await;
    let _same = stream(&pool, "echo").await;
    assert_eq!(world.net.dials(), 1);
    sleep(20 * SECOND).await;
    let _anew = stream(&pool, "echo").await;
    assert_eq!(world.net.dials(), 2);
    sleep(600 * SECOND).await;
    assert_eq!(open(&pool, "echo").await.unwrap_err().code(), "IDT020");
    echoes(&mut old, b"carried on").await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_goaway_is_not_chosen_again_and_nobody_notices() {
    let world = World::new();
    let old = world.server();
    let pool = world.pool();
    let mut open_before = stream(&pool, "echo").await;
    let new = world.server();
    // Told just now: what is opened before that has been read is still taken.
    old.drain.start(drain::Mode::Graceful, 30 * SECOND);
    let mut streams = join_all((0..50).map(|_| stream(&pool, "echo"))).await;
    settle().await;
    // From now on streams go to the new server.
    streams.extend(join_all((0..50).map(|_| stream(&pool, "echo"))).await);
    assert_eq!(world.net.dials(), 2);
    for stream in &mut streams {
        echoes(stream, b"wherever it was opened").await;
    }
    echoes(&mut open_before, b"runs on").await;
    drop(new);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_vanishes_breaks_its_streams_and_the_next_one_is_dialled() {
    let world = World::new();
    let mut connections = world.net.listen();
    let pool = world.pool();
    let (error, ()) = tokio::join!(open(&pool, "echo"), async {
        drop(connections.recv().await);
    });
    assert_eq!(error.unwrap_err().code(), "TLS012");
    let _server = world.server();
    echoes(&mut stream(&pool, "echo").await, b"x").await;
}

#[tokio::test(start_paused = true)]
async fn closing_the_pool_ends_its_connections_when_their_streams_have() {
    let world = World::new();
    let mut server = world.server();
    let pool = world.pool();
    let mut last = stream(&pool, "echo").await;
    pool.close();
    echoes(&mut last, b"still open").await;
    last.shutdown().await.unwrap();
    last.read_to_end(&mut Vec::new()).await.unwrap();
    drop(last);
    server.endings.recv().await.unwrap().unwrap();
    assert_eq!(pool.tunnels(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_memory_new_streams_are_refused_and_old_ones_go_on() {
    let world = World::with(Limits { memory: Memory::new(100_000), ..Limits::default() });
    let _server = world.server();
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    let mut account = world.limits.memory.account();
    account.receive(50_000);
    let error = open(&pool, "echo").await.unwrap_err();
    assert_eq!((error.code(), world.limits.memory.refused()), ("TUN008", 1));
    echoes(&mut old, b"x").await;
    drop(account);
    stream(&pool, "echo").await;
    assert_eq!(world.apps.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_the_certificate_after_the_handshake_is_dialled_three_times_and_no_more() {
    let world = World::new();
    let mut connections = world.net.listen();
    // Its certificate is good; ours is of a CA that it does not know.
    let strangers = Arc::new(LocalCa::new().issuer.bundle().clone());
    let (leaf, now) = (world.ca.leaf(&identity("details")).trusting(strangers), world.ca.clock().now());
    world.tasks.spawn("peer", async move {
        while let Some(io) = connections.recv().await {
            assert!(accept_tls(io, &leaf, now, 10 * SECOND).await.is_err());
        }
    });
    let pool = world.pool();
    assert_eq!(open(&pool, "echo").await.unwrap_err().code(), "TUN005");
    assert_eq!(world.net.dials(), 3);
    // Those who come together try together, 100 on each connection.
    let failed = join_all((0..300).map(|_| open(&pool, "echo"))).await;
    assert!(failed.iter().all(|error| error.as_ref().unwrap_err().code() == "TUN005"), "{:?}", failed[0]);
    assert!(world.net.dials() <= 30, "{}", world.net.dials());
    settle().await;
    assert_eq!(pool.shared.slots.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_answering_is_let_go_after_a_ping() {
    let world = World::new();
    world.net.relay(&world.tasks, Duration::ZERO);
    let _server = world.server();
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    echoes(&mut old, b"x").await;
    world.net.cut(0);
    let begun = Instant::now();
    let error = old.read(&mut [0]).await.unwrap_err();
    assert!((20 * SECOND..=32 * SECOND).contains(&begun.elapsed()), "{:?}: {error}", begun.elapsed());
    settle().await;
    assert_eq!(pool.tunnels(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_asked_before_a_renewal_does_not_drain_the_newer_connection() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let old = world.secrets.leaf(&identity("page")).await.unwrap();
    world.secrets.watch(&identity("page")).unwrap().newer_than(&old).await.unwrap();
    let _new = stream(&pool, "echo").await;
    let late = pool.place(&key(), &old, Instant::now() + SECOND).await;
    assert!(late.is_ok());
    assert_eq!((world.net.dials(), pool.tunnels()), (1, 1));
}

/// Answers each request with what it carries, by the `h2` crate.
async fn echo_by_h2(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let mut from = request.into_body();
    let mut to = respond.send_response(http::Response::new(()), false).unwrap();
    while let Some(piece) = from.data().await {
        let mut piece = piece.unwrap();
        while !piece.is_empty() {
            to.reserve_capacity(piece.len());
            let room = poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
            let now = piece.split_to(room.min(piece.len()));
            from.flow_control().release_capacity(now.len()).unwrap();
            to.send_data(now, false).unwrap();
        }
    }
    to.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_of_another_make_carries_many_streams_and_their_ends() {
    let world = World::new();
    let mut connections = world.net.listen();
    let config = server_config(&world.ca.leaf(&identity("details"))).unwrap();
    let tasks = world.tasks.clone();
    world.tasks.spawn("peer", async move {
        let io = connections.recv().await.unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(config).accept(io).await.unwrap();
        let mut connection = h2::server::handshake(tls).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tasks.spawn("echo", echo_by_h2(request, respond));
        }
    });
    let pool = world.pool();
    let sent = pattern(300_000);
    let talk = async |_| {
        let (mut from, mut to) = tokio::io::split(stream(&pool, "echo").await);
        let sending = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(sending, from.read_to_end(&mut received));
        read.unwrap();
        assert!(received == sent);
    };
    join_all((0..20).map(talk)).await;
    settle().await;
    assert_eq!((world.net.dials(), world.limits.memory.held()), (1, 0));
}
