use std::io::{Read as _, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::task::Waker;

use stillmesh_core::Diagnose;
use stillmesh_core::attrs::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::advance;

use super::*;
use crate::copy::{Counters, Tunnelling};
use crate::harness::{World, checksum, echoes, key, pattern, settle, stream};
use crate::headers::ConnectHeaders;
use crate::{Opened, Pool, TunnelError};

/// An application's connection: its end, and ours.
fn application() -> (std::net::TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let application = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (application, TcpStream::from_std(ours).unwrap())
}

async fn open(pool: &Pool, name: &str, early: &Early<'_>) -> Result<Opened, TunnelError> {
    let (name, port) = name.split_once(':').unwrap_or((name, "80"));
    let authority = Authority::Name(name.into(), port.parse().unwrap());
    pool.open_early(&key(), &authority, &ConnectHeaders::default(), early).await
}

/// A pool with a tunnel that has just been used.
async fn warm(world: &World) -> Pool {
    let pool = world.pool();
    drop(stream(&pool, "echo").await);
    pool
}

/// How long it takes until a CONNECT with these bytes behind it is answered.
async fn answered(pool: &Pool, name: &str, bytes: &[u8]) -> Duration {
    let (mut application, ours) = application();
    application.write_all(bytes).unwrap();
    let begin = tokio::time::Instant::now();
    let early = Early::new(&ours);
    let opened = open(pool, name, &early).await.unwrap();
    assert_eq!(early.sent(), bytes.len());
    drop(opened);
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_answer_waits_a_moment_for_what_the_application_says_and_not_again_and_again_in_vain() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    let (none, moment) = (Duration::ZERO, Duration::from_millis(1)..Duration::from_millis(5));
    for _ in 0..3 {
        assert_eq!(answered(&pool, "echo", b"hello").await, none, "its echo goes with the answer");
    }
    assert_eq!(answered(&pool, "stuck", b"").await, none, "nobody knows whether it says something");
    assert_eq!(answered(&pool, "stuck", &[0; MOST as usize / 2]).await, none, "the rest of it waits for the answer");
    for _ in 0..2 {
        assert!(moment.contains(&answered(&pool, "stuck", b"hello").await), "it says nothing");
        for _ in 0..15 {
            assert_eq!(answered(&pool, "stuck", b"hello").await, none);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_goes_with_what_others_say() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    let mut other = stream(&pool, "echo").await;
    let (waited, ()) = tokio::join!(answered(&pool, "stuck", b"hello"), echoes(&mut other, b"meanwhile"));
    assert_eq!(waited, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_written_before_epoll_has_told_that_it_can_be() {
    let world = World::new();
    let _server = world.server();
    let (mut application, ours) = application();
    application.write_all(b"hello").unwrap();
    let mut stream = open(&warm(&world).await, "echo", &Early::new(&ours)).await.unwrap().stream;
    settle().await;
    // As one that was just made.
    let mut fresh = Arc::new(TcpStream::from_std(ours.into_std().unwrap()).unwrap());
    let counters: Arc<Counters> = Arc::default();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Tunnelling::default().poll(&mut cx, &mut fresh, &mut stream, &counters).is_pending());
    application.set_nonblocking(true).unwrap();
    let mut answer = [0; 5];
    application.read_exact(&mut answer).unwrap();
    assert_eq!((&answer, counters.backward.load(Ordering::Relaxed)), (b"hello", 5));
}

#[tokio::test(start_paused = true)]
async fn what_is_there_goes_behind_the_connect_and_once() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    // More than is sent early: the rest stays where it is.
    for length in [1, 5, 16_000, 100_000] {
        let (mut application, mut ours) = application();
        let sent = pattern(length);
        application.write_all(&sent).unwrap();
        drop(application);
        let early = Early::new(&ours);
        let mut stream = open(&pool, "count", &early).await.unwrap().stream;
        let ahead = early.sent();
        assert!(ahead > 0 && ahead <= length.min(MOST as usize), "{ahead} of {length}");
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, sent[ahead..], "what was sent is gone from the socket, and nothing else");
        stream.write_all(&rest).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, format!("{length} {:x}", checksum(&sent)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_answer_is_waited_for_goes_as_well() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    let (mut application, ours) = application();
    let early = Early::new(&ours);
    let mut opening = Box::pin(open(&pool, "silent", &early));
    assert!(futures::poll!(&mut opening).is_pending());
    assert_eq!(early.sent(), 0);
    application.write_all(b"hello").unwrap();
    while early.sent() == 0 {
        assert!(futures::poll!(&mut opening).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(early.sent(), 5);
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_early_to_who_was_not_heard_lately() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    let (mut application, mut ours) = application();
    application.write_all(b"hello").unwrap();
    settle().await;
    advance(FRESH + Duration::from_millis(1)).await;
    let early = Early::new(&ours);
    let opened = open(&pool, "echo", &early).await.unwrap();
    // The answer itself is heard, and is the end of it.
    assert_eq!(early.sent(), 0);
    drop(opened);
    let mut read = [0; 5];
    ours.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_leaves_them_for_another_try_and_silence_does_not() {
    let world = World::new();
    let _server = world.server();
    let pool = warm(&world).await;
    let cases = [
        ("refuse:503", "TUN004", true),
        ("refuse:401", "TUN004", false),
        ("dropped", "TUN009", false),
        ("silent", "TUN009", false),
    ];
    for (name, code, may_repick) in cases {
        drop(stream(&pool, "echo").await);
        let (mut application, mut ours) = application();
        application.write_all(b"hello").unwrap();
        let early = Early::new(&ours);
        let error = open(&pool, name, &early).await.unwrap_err();
        assert_eq!((error.code(), error.may_repick(), error.was_stale()), (code, may_repick, false), "{error:?}");
        assert_eq!((early.sent(), error.response_flag()), (5, if name.ends_with("401") { "DENY" } else { "CONNECT" }));
        if may_repick {
            let mut stream = open(&pool, "count", &early).await.unwrap().stream;
            assert_eq!(early.sent(), 5);
            application.write_all(b"!").unwrap();
            drop(application);
            let mut rest = Vec::new();
            ours.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"!");
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, format!("5 {:x}", checksum(b"hello")), "once, whatever came before");
        }
    }
}

/// A tunnel that breaks is worth another try at the same endpoint, unless something was on its way that may have been delivered.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_breaks_with_them_is_not_tried_again() {
    let world = World::new();
    for (early_bytes, code, may_repick) in [(&b""[..], "TUN005", true), (b"hello", "TUN009", false)] {
        let mut listening = world.net.listen();
        let pool = world.pool();
        let key = key();
        let authority = Authority::Name("silent".into(), 80);
        let (mut application, ours) = application();
        application.write_all(early_bytes).unwrap();
        let early = Early::new(&ours);
        let headers = ConnectHeaders::default();
        let serving = async {
            // As often as it is tried.
            while let Some(io) = listening.recv().await {
                let leaf = world.ca.leaf(&stillmesh_identity::fixtures::identity("details"));
                let session = crate::server::accept_tls(io, &leaf, world.ca.clock().now(), world.limits.handshake);
                let (_drain, watch) = stillmesh_runtime::drain::channel();
                let asked = std::sync::Arc::new(tokio::sync::Notify::new());
                let told = asked.clone();
                let serving =
                    crate::server::serve(session.await.unwrap(), &world.limits, &world.tasks, watch, move |incoming| {
                        told.notify_one();
                        async move {
                            let _unanswered = incoming;
                            std::future::pending::<()>().await;
                        }
                    });
                // The connection goes once it is asked for something, and once more bytes could have come.
                let asking = async {
                    asked.notified().await;
                    settle().await;
                };
                tokio::select! { _ = serving => {}, () = asking => {} }
            }
        };
        let opening = async {
            let opened = pool.open_early(&key, &authority, &headers, &early).await;
            opened.unwrap_err()
        };
        let error = tokio::select! { error = opening => error, () = serving => unreachable!() };
        assert_eq!((error.code(), error.may_repick()), (code, may_repick), "{error:?}");
    }
}
