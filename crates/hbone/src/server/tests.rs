use bytes::Bytes;
use futures::future::join_all;
use h2::client::SendRequest;
use http::{HeaderValue, Request, Version};
use stillmesh_identity::fixtures::identity;
use stillmesh_identity::{client_config, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::*;
use crate::Memory;
use crate::harness::{PEER, World, echoes, key, settle, stream};
use crate::pool::Dial;

const SECOND: Duration = Duration::from_secs(1);

async fn dial(world: &World) -> Box<dyn crate::Transport> {
    world.net.dial(&key()).await.unwrap()
}

async fn dial_tls(world: &World) -> tokio_rustls::client::TlsStream<Box<dyn crate::Transport>> {
    let config = client_config(&world.ca.leaf(&identity("page")), &[identity("details")]).unwrap();
    TlsConnector::from(config).connect(tls::dummy_server_name(), dial(world).await).await.unwrap()
}

/// A peer that is nothing but an HTTP/2 client.
async fn dial_http2(world: &World) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(dial_tls(world).await).await.unwrap();
    world.tasks.spawn("peer", async move {
        let _ = connection.await;
    });
    sender
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_nothing_or_garbage_is_let_go_in_time() {
    let world = World::new();
    let mut server = world.server();
    let begun = Instant::now();
    // Says nothing at all, or not TLS: the handshake's deadline or its end.
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut io = dial(&world).await;
        io.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let _ = io.read_to_end(&mut rest).await;
    }
    assert!(begun.elapsed() <= 11 * SECOND, "{:?}", begun.elapsed());
    // Speaks TLS, then nothing or not HTTP/2.
    let _quiet = dial_tls(&world).await;
    assert!(matches!(server.endings.recv().await.unwrap(), Err(ServeError::SlowStart(_))));
    let mut rude = dial_tls(&world).await;
    rude.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").await.unwrap();
    rude.flush().await.unwrap();
    assert!(matches!(server.endings.recv().await.unwrap(), Err(ServeError::Broken(_))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_answering_is_let_go_after_a_ping() {
    let world = World::new();
    let mut server = world.server();
    let mut silent = dial_tls(&world).await;
    // Preface and empty SETTINGS; everything after is read by nobody.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    silent.flush().await.unwrap();
    let begun = Instant::now();
    assert!(matches!(server.endings.recv().await.unwrap(), Err(ServeError::Silent(_))));
    assert!((29 * SECOND..=32 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_connect_for_a_host_and_port_is_refused_with_400() {
    let world = World::new();
    let _server = world.server();
    let mut peer = dial_http2(&world).await.ready().await.unwrap();
    let request = |method: &str, uri: &str| Request::builder().method(method).uri(uri).body(()).unwrap();
    for request in [
        request("GET", "https://echo/"),
        request("POST", "https://echo:80/"),
        request("CONNECT", "echo"),
        request("CONNECT", "echo:99999"),
        request("CONNECT", "10.0.0.1"),
    ] {
        let text = format!("{request:?}");
        let (response, _) = peer.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::BAD_REQUEST, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_beyond_the_limit_end_the_request_and_not_the_server() {
    let world = World::new();
    let _server = world.server();
    let mut peer = dial_http2(&world).await.ready().await.unwrap();
    let mut request = Request::builder().method("CONNECT").uri("echo:80").version(Version::HTTP_2).body(()).unwrap();
    for number in 0..20 {
        let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
        request.headers_mut().insert(name, HeaderValue::try_from("v".repeat(8 << 10)).unwrap());
    }
    let answered = match peer.send_request(request, false) {
        Ok((response, _)) => response.await.map(|response| response.status()),
        Err(error) => Err(error),
    };
    assert!(!matches!(answered, Ok(StatusCode::OK)), "{answered:?}");
    echoes(&mut stream(&world.pool(), "echo").await, b"others are served").await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_streams_end_and_takes_no_new_ones() {
    let world = World::new();
    let mut server = world.server();
    let pool = world.pool();
    let mut open = stream(&pool, "echo").await;
    let mut peer = dial_http2(&world).await.ready().await.unwrap();
    server.drain.start(drain::Mode::Graceful, 30 * SECOND);
    settle().await;
    let request = Request::builder().method("CONNECT").uri("echo:80").body(()).unwrap();
    let late = match peer.send_request(request, false) {
        Ok((response, _)) => response.await.map(drop),
        Err(error) => Err(error),
    };
    assert!(late.is_err());
    sleep(20 * SECOND).await;
    echoes(&mut open, b"still carried").await;
    open.shutdown().await.unwrap();
    open.read_to_end(&mut Vec::new()).await.unwrap();
    drop(open);
    for _ in 0..2 {
        server.endings.recv().await.unwrap().unwrap();
    }
    assert!(server.drain.finished().await == drain::Drained::Late { held: 1 }, "only the listener is left");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_at_the_drains_deadline_is_reset() {
    let world = World::new();
    let mut server = world.server();
    let pool = world.pool();
    let mut streams = join_all((0..3).map(|_| stream(&pool, "echo"))).await;
    let begun = Instant::now();
    server.drain.start(drain::Mode::Graceful, 5 * SECOND);
    server.endings.recv().await.unwrap().unwrap();
    assert!((5 * SECOND..=7 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    for stream in &mut streams {
        assert!(stream.read(&mut [0]).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_drains_before_its_certificate_expires_and_carries_what_is_open() {
    let world = World::new();
    world.ca.set_ttl(1000 * SECOND);
    let short = world.ca.leaf(&identity("details"));
    world.ca.set_ttl(24 * 3600 * SECOND);
    let mut server = world.server_with(short, world.limits.clone());
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    sleep(800 * SECOND).await;
    echoes(&mut old, b"still open").await;
    let mut new_server = world.server();
    let mut new = stream(&pool, "echo").await;
    assert_eq!(world.net.dials(), 2, "the old connection takes no new stream");
    sleep(1000 * SECOND).await;
    echoes(&mut old, b"still open").await;
    echoes(&mut new, b"unharmed").await;
    assert!(server.endings.try_recv().is_err() && new_server.endings.try_recv().is_err());
    old.shutdown().await.unwrap();
    old.read_to_end(&mut Vec::new()).await.unwrap();
    drop(old);
    server.endings.recv().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_let_go_after_ten_minutes() {
    let world = World::new();
    let mut server = world.server();
    let _peer = dial_http2(&world).await;
    let begun = Instant::now();
    server.endings.recv().await.unwrap().unwrap();
    assert!((600 * SECOND..=630 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_memory_a_stream_is_refused_with_503() {
    let memory = Memory::new(1000);
    let world = World::new();
    let limits = Limits { memory: memory.clone(), ..world.limits.clone() };
    let _server = world.server_with(world.ca.leaf(&identity("details")), limits);
    let pool = world.pool();
    let mut old = stream(&pool, "echo").await;
    let mut account = memory.account();
    account.receive(500);
    let error = crate::harness::open(&pool, "echo").await.unwrap_err();
    assert!(matches!(error, crate::TunnelError::Refused { status, .. } if status == 503), "{error:?}");
    assert_eq!(memory.refused(), 1);
    echoes(&mut old, b"x").await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_or_expired_client_gets_no_session() {
    let world = World::new();
    let leaf = world.ca.leaf(&identity("details"));
    let now = world.ca.clock().now();
    let expired = world.ca.forged(
        &identity("page"),
        &["spiffe://cluster.local/ns/default/sa/page"],
        (now - 7200 * SECOND, now - 3600 * SECOND),
    );
    let (near, far): (DuplexStream, DuplexStream) = duplex(1 << 16);
    let config = client_config(&expired, &[identity("details")]).unwrap();
    let (_, accepted) = tokio::join!(
        TlsConnector::from(config).connect(tls::dummy_server_name(), near),
        accept_tls(far, &leaf, now, 10 * SECOND)
    );
    assert_eq!(accepted.unwrap_err().code(), "TLS001");
    let (_silent, far) = duplex(1 << 16);
    assert_eq!(accept_tls(far, &leaf, now, 10 * SECOND).await.unwrap_err().code(), "TLS013");
    assert_eq!(PEER.port(), 15008);
}

/// Dials a real socket that takes little at a time.
struct Narrow(std::net::SocketAddr);

impl Dial for Narrow {
    fn dial<'a>(&'a self, _: &'a crate::Key) -> crate::Dialling<'a> {
        Box::pin(async move {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(8 << 10)?;
            Ok(Box::new(socket.connect(self.0).await?) as Box<dyn crate::Transport>)
        })
    }
}

#[tokio::test]
async fn what_was_sent_before_a_drained_connection_ends_still_arrives() {
    let world = World::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = Arc::new(Narrow(listener.local_addr().unwrap()));
    let (drain, watch) = drain::channel();
    let (leaf, limits, tasks) = (world.ca.leaf(&identity("details")), world.limits.clone(), world.tasks.clone());
    let (now, sent) = (world.ca.clock().now(), Arc::new(crate::harness::pattern(1 << 20)));
    let answer = Arc::clone(&sent);
    world.tasks.spawn("server", async move {
        let (io, _) = listener.accept().await.unwrap();
        let session = accept_tls(io, &leaf, now, limits.handshake).await.unwrap();
        let handle = move |incoming: Incoming| {
            let answer = Arc::clone(&answer);
            async move {
                let mut stream = incoming.accept(&ConnectHeaders::default()).unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        };
        serve(session, &limits, &tasks, watch, handle).await.unwrap();
    });
    let pool = crate::Pool::new(world.limits.clone(), world.secrets.clone(), dial, world.tasks.clone());
    let mut stream = stream(&pool, "any").await;
    drain.start(drain::Mode::Graceful, 30 * SECOND);
    while pool.tunnels() > 0 {
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert!(received == *sent);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_given_up_now_and_then_do_not_end_the_connection_in_the_end() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut open = stream(&pool, "echo").await;
    // More than a server takes at once, one a second.
    for _ in 0..1100 {
        assert!(timeout(SECOND, crate::harness::open(&pool, "silent")).await.is_err());
    }
    echoes(&mut open, b"still carried").await;
    assert_eq!(world.net.dials(), 1);
}
