//! Clients that mean harm, or that are broken: what they do costs them their connection or stream, and their neighbours
//! nothing. All of it through real mTLS: their identity is known, and that is all that is known of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http::{Request, StatusCode};
use stillmesh_hbone::Stream;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::routes::{Shop, shop};
use stillmesh_waypoint_tests::{Client, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// A client's HTTP/2 connection by hand.
async fn by_hand(client: &Client, web: std::net::SocketAddr) -> Stream {
    let mut stream = client.stream(web).await;
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// Memory of this process that is in use, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Writes the same for as long as the peer takes it: `false` when it has ended the stream, `true` when it has stopped to
/// read, or `most` bytes have gone.
async fn flood(stream: &mut Stream, piece: &[u8], most: usize) -> bool {
    for _ in 0..most / piece.len() {
        match timeout(Duration::from_secs(1), stream.write_all(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
    true
}

/// Reads until the peer ends the stream.
async fn ended(stream: &mut Stream) -> bool {
    let mut sink = vec![0; 64 << 10];
    let all = async { while stream.read(&mut sink).await.is_ok_and(|length| length > 0) {} };
    timeout(PATIENCE, all).await.is_ok()
}

#[test]
fn a_head_that_dribbles_is_cut_and_a_connection_that_is_idle_is_not() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(1, &[("HEADER_TIMEOUT", "200ms")], vec![]).await;
        let client = world.client("page", 1);
        let mut idle = client.http1(web).await;
        assert_eq!(idle.get("/name").await.0, StatusCode::OK);
        for begin in ["G", "GET / HT", "GET / HTTP/1.1\r\nhost: w"] {
            let mut slow = client.stream(web).await;
            slow.write_all(begin.as_bytes()).await.unwrap();
            slow.flush().await.unwrap();
            assert!(ended(&mut slow).await, "{begin:?}");
        }
        assert_eq!(idle.get("/name").await.0, StatusCode::OK, "on the same connection");
    });
}

#[test]
fn what_is_stuck_ends_and_is_written_down_as_such() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(1, &[("STREAM_IDLE_TIMEOUT", "2s")], vec![]).await;
        let client = world.client("page", 1);
        for (count, mut http) in [(1, client.http1(web).await), (2, client.http2(web).await)] {
            assert_eq!(http.get("/name").await.0, StatusCode::OK, "the way is open");
            http.send(http.request("GET", "/wait", "")).await.unwrap_err();
            while apps[0].counts.cancelled.load(Ordering::Relaxed) < count {
                apps[0].counts.dropped.notified().await;
            }
        }
        world.counts("istio_requests_total", &["response_flags=\"SI\""], 2.0).await;
    });
}

#[test]
fn streams_that_are_reset_as_they_come_end_their_connection() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(2, &[], vec![]).await;
        let client = world.client("page", 1);
        let mut neighbour = client.http2(web).await;
        let mut stream = by_hand(&client, web).await;
        // ":method: GET", ":scheme: http", ":path: /", ":authority: w"; then RST_STREAM, in one write.
        let head = [0x82, 0x86, 0x84, 0x41, 0x01, b'w'];
        let mut piece = BytesMut::new();
        for number in 0..2000u32 {
            piece.extend(frame(HEADERS, 0x5, 2 * number + 1, &head));
            piece.extend(frame(3, 0, 2 * number + 1, &8u32.to_be_bytes()));
        }
        let _ = stream.write_all(&piece).await;
        let _ = stream.flush().await;
        assert!(ended(&mut stream).await, "the waypoint closes the connection");
        assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        assert!(apps[0].requests() < 1000, "{} requests reached the endpoint", apps[0].requests());
    });
}

#[test]
fn heads_without_end_and_heads_that_unfold_are_refused_in_bounded_memory() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(2, &[], vec![]).await;
        let client = world.client("page", 1);
        let mut neighbour = client.http2(web).await;
        assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        let before = resident();

        let mut endless = by_hand(&client, web).await;
        endless.write_all(&frame(HEADERS, 0, 1, &[0x82, 0x86, 0x84])).await.unwrap();
        // Literal fields without indexing, of 10 KiB each.
        let mut field = vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x4f];
        field.extend(vec![b'b'; 0x7f + 0x81 - 0x80 + 0x4f * 128]);
        let continuation = frame(CONTINUATION, 0, 1, &field);
        flood(&mut endless, &continuation, 256 << 20).await;
        assert!(ended(&mut endless).await, "a head without end");

        let mut bomb = by_hand(&client, web).await;
        // One field of about 4000 bytes into the table, and then thousands of references to it.
        let mut head = vec![0x82, 0x86, 0x84, 0x41, 0x01, b'w', 0x40, 0x01, b'x', 0x7f, 0xa1, 0x1e];
        head.extend(vec![b'y'; 0x7f + 0x21 + 0x1e * 128]);
        head.resize(16 << 10, 0xbe);
        for number in 0..200u32 {
            if bomb.write_all(&frame(HEADERS, 0x5, 2 * number + 1, &head)).await.is_err() {
                break;
            }
        }
        let _ = bomb.flush().await;
        let grown = resident().saturating_sub(before);
        assert!(grown < 128 << 20, "{grown} bytes");
        assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        assert_eq!(apps[0].requests(), 2, "none of it reached the endpoint");
    });
}

#[test]
fn floods_of_settings_and_pings_are_held_back() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(2, &[], vec![]).await;
        let client = world.client("page", 1);
        let mut neighbour = client.http2(web).await;
        assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        let before = resident();
        for kind in [SETTINGS, PING] {
            // Nothing of the answers is read.
            let payload: &[u8] = if kind == PING { &[7; 8] } else { &[0, 3, 0, 0, 0, 100] };
            let one = frame(kind, 0, 0, payload);
            let piece: BytesMut = std::iter::repeat_n(one, 2000).flatten().collect();
            let mut stream = by_hand(&client, web).await;
            flood(&mut stream, &piece, 64 << 20).await;
            assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 128 << 20, "{grown} bytes");
    });
}

#[test]
fn clients_that_give_no_window_hold_little_and_hold_up_nobody() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(2, &[], vec![]).await;
        let client = world.client("page", 1);
        let mut neighbour = client.http2(web).await;
        assert_eq!(neighbour.get("/name").await.0, StatusCode::OK);
        let before = resident();
        let mut holding = Vec::new();
        for _ in 0..4 {
            let mut builder = h2::client::Builder::new();
            let built = builder.initial_window_size(0).handshake::<_, bytes::Bytes>(client.stream(web).await);
            let (sender, connection) = built.await.unwrap();
            world.tasks.spawn("held", async move { drop(connection.await) });
            let mut sender = sender.ready().await.unwrap();
            for _ in 0..50 {
                let request = Request::builder().uri("http://web/source").body(()).unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                let response = timeout(PATIENCE, response).await.unwrap().unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                holding.push(response);
            }
        }
        // They share the connection to the endpoint with their neighbour.
        for _ in 0..20 {
            assert_eq!(timeout(PATIENCE, neighbour.get("/name")).await.unwrap().0, StatusCode::OK);
        }
        let sent = apps[0].counts.sent.load(Ordering::Relaxed);
        // As docs/architecture.md promises, for each stream.
        assert!(sent < 200 * (256 << 10), "{sent} bytes left the application for clients that take none");
        let grown = resident().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes");
    });
}

#[test]
fn a_stream_without_window_ends_however_lively_its_connection_is() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(2, &[("STREAM_IDLE_TIMEOUT", "500ms")], vec![]).await;
        let client = world.client("page", 1);
        let mut builder = h2::client::Builder::new();
        let built = builder.initial_window_size(0).handshake::<_, bytes::Bytes>(client.stream(web).await);
        let (sender, connection) = built.await.unwrap();
        world.tasks.spawn("held", async move { drop(connection.await) });
        let mut sender = sender.ready().await.unwrap();
        let get = Request::builder().uri("http://web/source").body(()).unwrap();
        let response = sender.send_request(get, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        let mut held = std::pin::pin!(timeout(PATIENCE, body.data()));
        let ended = loop {
            let head = Request::builder().method("HEAD").uri("http://web/name").body(()).unwrap();
            let asked = async {
                sender = sender.clone().ready().await.unwrap();
                sender.send_request(head, true).unwrap().0.await.unwrap()
            };
            tokio::select! {
                ended = held.as_mut() => break ended,
                response = asked => assert_eq!(response.status(), StatusCode::OK),
            }
        };
        let error = ended.expect("it ends in time").expect("no whole body").unwrap_err();
        assert!(error.is_reset() && error.reason() == Some(h2::Reason::CANCEL), "{error}");
        world.counts("istio_requests_total", &["response_code=\"200\"", "response_flags=\"SI\""], 1.0).await;
        // Its neighbours on the same connection go on.
        let head = Request::builder().method("HEAD").uri("http://web/name").body(()).unwrap();
        let response = sender.clone().ready().await.unwrap().send_request(head, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    });
}
