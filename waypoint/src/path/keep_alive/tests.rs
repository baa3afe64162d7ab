//! A connection is polled by hand, so that a test knows when it has nothing to do; then what it holds is looked at.

use std::task::Waker;

use futures::FutureExt as _;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use stillmesh_runtime::env::Reader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::coop::unconstrained;
use tokio::time::advance;

use super::*;
use crate::config::Config;

/// A client at one end, and what serves it at the other.
struct Both {
    client: DuplexStream,
    server: KeepAlive<DuplexStream>,
    pace: Arc<Pace>,
    upgraded: Arc<Mutex<Option<OnUpgrade>>>,
}

const IDLE: Duration = Duration::from_secs(300);
const HEAD: Duration = Duration::from_secs(10);

impl Both {
    /// So many bytes fit into each direction.
    fn new(room: usize) -> Self {
        let (client, near) = duplex(room);
        let mut near = Rewound::new(near);
        near.keep(b"GET /first HTTP/1.1\r\nhost: a\r\n\r\n");
        let pace = Pace::new(near.bytes());
        let upgraded = Arc::new(Mutex::new(None));
        let requests = Requests::new({
            let (pace, upgraded) = (pace.clone(), upgraded.clone());
            move |request| answer(request, pace.clone(), upgraded.clone())
        });
        let mut limits = Config::read(Reader::from_values::<&str, &str>([])).unwrap().limits;
        (limits.idle, limits.head) = (IDLE, HEAD);
        let server = KeepAlive::new(near, requests, pace.clone(), &limits);
        Self { client, server, pace, upgraded }
    }

    /// One whose first request is answered.
    fn busy() -> Self {
        let mut both = Self::new(64 << 10);
        both.turn();
        assert_eq!(both.answers(), ["/first"]);
        assert!(matches!(both.server.state, State::Serving(_)), "others may follow");
        both
    }

    /// One that rests after its first request.
    async fn open() -> Self {
        let mut both = Self::busy();
        assert!(both.rests().await);
        both
    }

    /// Runs the server for as long as it has something to do; whether it has ended.
    fn turn(&mut self) -> Option<hyper::Result<()>> {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..8 {
            // A test is one turn of its task: what each may do in one is no bound here.
            if let Poll::Ready(ended) = Pin::new(&mut unconstrained(&mut self.server)).poll(&mut cx) {
                return Some(ended);
            }
        }
        None
    }

    fn send(&mut self, bytes: &[u8]) {
        unconstrained(self.client.write_all(bytes)).now_or_never().expect("room").unwrap();
    }

    /// What the client has been sent by now.
    fn read(&mut self) -> String {
        let mut text = Vec::new();
        while let Some(Ok(1..)) = unconstrained(self.client.read_buf(&mut text)).now_or_never() {}
        String::from_utf8(text).unwrap()
    }

    /// Which requests were answered by now.
    fn answers(&mut self) -> Vec<String> {
        let text = self.read();
        text.lines().filter_map(|line| line.strip_prefix("x-path: ")).map(str::to_owned).collect()
    }

    /// Whether it rests after a while.
    async fn rests(&mut self) -> bool {
        advance(CALM + Duration::from_millis(2)).await;
        self.turn().is_none() && matches!(self.server.state, State::Waiting(_))
    }
}

/// Says which path was asked for, once all of the request has come; or becomes what is asked for.
async fn answer(
    mut request: Request<Incoming>,
    pace: Arc<Pace>,
    upgraded: Arc<Mutex<Option<OnUpgrade>>>,
) -> Response<ResponseBody> {
    let _under_way = pace.begin();
    let mut response = Response::new(ResponseBody::empty());
    if request.headers().contains_key(header::UPGRADE) {
        *upgraded.lock() = Some(hyper::upgrade::on(&mut request));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
        response.headers_mut().insert(header::UPGRADE, "other".parse().unwrap());
        return response;
    }
    response.headers_mut().insert("x-path", request.uri().path().parse().unwrap());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    response.headers_mut().insert("x-body", String::from_utf8_lossy(&body).parse().unwrap());
    response
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes()
}

#[tokio::test(start_paused = true)]
async fn wherever_two_requests_are_cut_both_are_answered_and_then_nothing_is_held() {
    let post = b"POST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let all = [&post[..], &get("/two")].concat();
    for (cut, rested) in (0..=all.len()).flat_map(|cut| [(cut, false), (cut, true)]) {
        let mut both = if rested { Both::open().await } else { Both::busy() };
        both.send(&all[..cut]);
        assert!(both.turn().is_none());
        both.send(&all[cut..]);
        assert!(both.turn().is_none());
        assert_eq!(both.answers(), ["/one", "/two"], "cut at {cut}");
        assert!(both.rests().await, "cut at {cut}");
        assert_eq!(both.pace.begun(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_may_come_byte_by_byte_and_many_at_once() {
    let mut both = Both::open().await;
    for byte in get("/slowly") {
        assert!(both.answers().is_empty());
        both.send(&[byte]);
        assert!(both.turn().is_none());
    }
    assert_eq!(both.answers(), ["/slowly"]);
    assert!(both.rests().await);
    both.send(&get("/together").repeat(100));
    assert!(both.turn().is_none());
    assert_eq!(both.answers().len(), 100);
    assert!(both.rests().await);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_asked_for_and_waited_for() {
    let mut both = Both::open().await;
    both.send(b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n");
    assert!(both.turn().is_none());
    assert!(both.read().starts_with("HTTP/1.1 100 "));
    assert!(!both.rests().await);
    both.send(b"whol");
    assert!(both.turn().is_none());
    assert!(both.read().contains("x-body: whol"));
    assert!(both.rests().await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_does_not_read_is_held_until_it_does() {
    let mut both = Both::new(16);
    both.turn();
    assert!(!both.rests().await);
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text += &both.read();
        assert!(both.turn().is_none());
    }
    assert!(text.contains("x-path: /first"));
    assert!(both.rests().await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_it_was_idle_for_so_long_after_its_last_request() {
    let mut both = Both::open().await;
    for _ in 0..2 {
        advance(IDLE - Duration::from_secs(1)).await;
        assert!(both.turn().is_none());
        both.send(&get("/again"));
        assert!(both.turn().is_none());
        assert_eq!(both.answers(), ["/again"]);
    }
    advance(IDLE + Duration::from_millis(2)).await;
    assert!(both.turn().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_comes_in_time_or_ends_its_connection() {
    for begin in [b"G".as_slice(), b"GET /part HTTP/1.1\r\nho"] {
        let mut both = Both::open().await;
        both.send(begin);
        assert!(both.turn().is_none());
        advance(HEAD - Duration::from_secs(1)).await;
        assert!(both.turn().is_none());
        advance(Duration::from_secs(1) + Duration::from_millis(2)).await;
        assert!(both.turn().is_some(), "{begin:?}");
    }
    // Also one that came right behind another request.
    let mut both = Both::open().await;
    both.send(&[&get("/whole")[..], b"GET /pa"].concat());
    assert!(both.turn().is_none());
    assert_eq!(both.answers(), ["/whole"]);
    assert!(!both.rests().await, "it has begun, which is seen after a while");
    advance(HEAD + Duration::from_millis(2)).await;
    assert!(both.turn().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_is_ended_with() {
    for begin in ["", "GET /half HTTP/1.1\r\n"] {
        let mut both = Both::open().await;
        both.send(begin.as_bytes());
        assert!(both.turn().is_none());
        both.client.shutdown().await.unwrap();
        let ended = both.turn().expect("an end");
        assert_eq!(ended.is_ok(), begin.is_empty(), "{ended:?}");
        drop(both.server);
        let mut rest = String::new();
        both.client.read_to_string(&mut rest).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn told_to_end_one_that_waits_ends_and_another_one_after_its_answer() {
    for mut both in [Both::open().await, Both::busy()] {
        both.server.graceful_shutdown();
        assert!(both.turn().expect("an end").is_ok());
        drop(both.server);
        let mut rest = String::new();
        both.client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "", "the client sees an end");
    }

    // A head that has begun is one of a request that is on its way.
    let mut both = Both::open().await;
    both.send(b"GET /last HTTP/1.1\r\n");
    assert!(both.turn().is_none());
    both.server.graceful_shutdown();
    assert!(both.turn().is_none());
    both.send(b"host: a\r\n\r\n");
    assert!(both.turn().expect("an end").is_ok());
    let answer = both.read();
    assert!(answer.contains("x-path: /last") && answer.contains("connection: close"), "{answer}");

    let mut both = Both::open().await;
    both.send(b"POST /last HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n");
    assert!(both.turn().is_none());
    both.server.graceful_shutdown();
    assert!(both.turn().is_none());
    both.send(b"x");
    assert!(both.turn().expect("an end").is_ok());
    assert_eq!(both.answers(), ["/last"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_answered_as_such() {
    let mut both = Both::open().await;
    both.send(b"\x16\x03\x01 not HTTP\r\n\r\n");
    assert!(both.turn().expect("an end").is_err());
    assert!(both.read().starts_with("HTTP/1.1 400 "));
    assert_eq!(both.pace.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_goes_on_with_what_came_right_behind_its_request() {
    let mut both = Both::open().await;
    both.send(b"GET /other HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: other\r\n\r\nearly");
    assert!(both.turn().expect("its end as HTTP").is_ok());
    let upgraded = both.upgraded.lock().take().expect("an upgrade");
    assert!(both.read().starts_with("HTTP/1.1 101 "));
    let mut upgraded = TokioIo::new(upgraded.await.unwrap());
    both.send(b" and late");
    let mut seen = [0; 14];
    upgraded.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"early and late");
    upgraded.write_all(b"back").await.unwrap();
    assert_eq!(both.read(), "back");
}

#[test]
fn an_idle_connection_takes_little() {
    let size = size_of::<KeepAlive<stillmesh_hbone::Stream>>();
    assert!(size <= 512, "{size} bytes");
}
