//! The admin server and its client over real sockets: answers, limits, streams, takeovers, drain.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use stillmesh_runtime::Tasks;
use stillmesh_runtime::accept::{Peer, Stream};
use stillmesh_runtime::admin::client::{Client, ClientError, Endpoint};
use stillmesh_runtime::admin::{Limits, Raw, Request, Response, Server};
use stillmesh_runtime::drain::{self, Drained, Trigger};
use stillmesh_runtime::sys::{fds, unix};
use stillmesh_runtime::tasks::Task;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;

/// A server on a unix socket, and what ends it.
struct Running {
    client: Client,
    trigger: Trigger,
    serving: Task<()>,
    _tasks: Tasks,
    dir: tempfile::TempDir,
}

impl Running {
    fn start(server: Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = Self::path(dir.path());
        let listener = UnixListener::from_std(unix::listen(&path, 0o600).unwrap()).unwrap();
        let (trigger, watch) = drain::channel();
        let tasks = Tasks::new("test");
        let serving = tasks.spawn("admin", server.serve(listener, watch));
        Self { client: Client::unix(path), trigger, serving, _tasks: tasks, dir }
    }

    fn path(dir: &Path) -> std::path::PathBuf {
        dir.join("admin.sock")
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(Self::path(self.dir.path())).await.unwrap()
    }
}

fn hello() -> Server {
    Server::new("test").route(Method::GET, "/hello/{name}", async |request: Request| {
        let loud = request.query("loud").is_some();
        let name = request.param("name").to_owned();
        Response::text(StatusCode::OK, if loud { name.to_uppercase() } else { name })
    })
}

/// All that a peer sends until it closes.
async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_request_reaches_its_handler_with_path_query_and_peer() {
    let server = hello().route(Method::POST, "/json", async |request: Request| {
        let Peer::Unix { uid, .. } = request.peer else { return Response::empty(StatusCode::FORBIDDEN) };
        match request.json::<Vec<u32>>() {
            Ok(numbers) => Response::json(StatusCode::OK, &(numbers.iter().sum::<u32>(), uid)),
            Err(response) => response,
        }
    });
    let running = Running::start(server);
    let answer = running.client.get("/hello/w%6frld?loud=1").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "WORLD"));
    let answer = running.client.request(Method::POST, "/json", "[1,2]").await.unwrap();
    assert_eq!(answer.text(), format!("[3,{}]", nix::unistd::getuid()));
    assert_eq!(running.client.request(Method::POST, "/json", "{").await.unwrap().status, StatusCode::BAD_REQUEST);
    assert_eq!(running.client.get("/nothing").await.unwrap().status, StatusCode::NOT_FOUND);
    let other = running.client.request(Method::PUT, "/json", "").await.unwrap();
    assert_eq!(other.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(other.headers.get(http::header::ALLOW).unwrap(), "POST");
}

#[tokio::test]
async fn the_same_server_answers_over_tcp_and_refuses_garbage() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_trigger, watch) = drain::channel();
    let tasks = Tasks::new("test");
    let _serving = tasks.spawn("admin", hello().serve(listener, watch));
    let client = Client::new(Endpoint::Tcp(address));
    assert_eq!(client.get("/hello/a").await.unwrap().text(), "a");
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await.unwrap();
    assert!(read_all(&mut garbage).await.starts_with("HTTP/1.1 400 "));
}

/// A server with one short limit: the others are long, so that no test depends on the machine's speed.
fn limited(limits: Limits) -> Running {
    let server = hello()
        .route(Method::POST, "/body", async |_| Response::empty(StatusCode::OK))
        .route(Method::GET, "/never", async |_| std::future::pending().await)
        .limits(limits);
    Running::start(server)
}

const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn silent_and_slow_peers_are_ended_by_the_limits() {
    let running = limited(Limits { head: SHORT, ..Limits::default() });
    assert_eq!(read_all(&mut running.raw().await).await, "");
    let mut slow = running.raw().await;
    slow.write_all(b"GET /hello/a HTTP/1.1\r\nho").await.unwrap();
    read_all(&mut slow).await;
    let mut idle = running.raw().await;
    idle.write_all(b"GET /hello/a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(read_all(&mut idle).await.starts_with("HTTP/1.1 200 "), "answered, then closed for its silence");

    let running = limited(Limits { body: SHORT, ..Limits::default() });
    let mut slow = running.raw().await;
    slow.write_all(b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab").await.unwrap();
    assert!(read_all(&mut slow).await.starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn large_bodies_and_endless_handlers_are_refused() {
    let running = limited(Limits { body_bytes: 10, ..Limits::default() });
    let large = running.client.request(Method::POST, "/body", "more than ten").await.unwrap();
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(running.client.request(Method::POST, "/body", "ten bytes!").await.unwrap().status, StatusCode::OK);
    let running = limited(Limits { handler: SHORT, ..Limits::default() });
    assert_eq!(running.client.get("/never").await.unwrap().status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_ended() {
    let server = Server::new("test")
        .route(Method::GET, "/flood", async |_| Response::text(StatusCode::OK, vec![b'x'; 64 << 20]))
        .limits(Limits { stall: Duration::from_millis(50), connections: 1, ..Limits::default() });
    let running = Running::start(server);
    let mut deaf = running.raw().await;
    deaf.write_all(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    // There is one place: the second is served when the first is ended.
    assert_eq!(running.client.get("/nothing").await.unwrap().status, StatusCode::NOT_FOUND);
    drop(deaf);
}

#[tokio::test]
async fn a_panicking_handler_ends_its_connection_alone() {
    let server = hello().route(Method::GET, "/panic", async |_| panic!("planted"));
    let running = Running::start(server);
    assert!(matches!(running.client.get("/panic").await.unwrap_err(), ClientError::Exchange { .. }));
    assert_eq!(running.client.get("/hello/a").await.unwrap().text(), "a");
}

#[tokio::test]
async fn a_stream_comes_chunk_by_chunk_and_the_sender_sees_the_reader_leave() {
    let gone = Arc::new(Notify::new());
    let seen = Arc::clone(&gone);
    let producers = Tasks::new("producers");
    let server = Server::new("test").route(Method::GET, "/logs", move |_| {
        let (response, chunks) = Response::stream(StatusCode::OK, "text/plain");
        let gone = Arc::clone(&gone);
        producers.spawn("lines", async move {
            while chunks.send(Bytes::from_static(b"line\n")).await.is_ok() {}
            gone.notify_one();
        });
        std::future::ready(response)
    });
    let running = Running::start(server);
    let mut streamed = running.client.stream(Method::GET, "/logs", "").await.unwrap();
    assert_eq!(streamed.status, StatusCode::OK);
    for _ in 0..3 {
        assert!(streamed.chunk().await.unwrap().unwrap().starts_with(b"line\n"));
    }
    drop(streamed);
    tokio::time::timeout(Duration::from_secs(30), seen.notified()).await.unwrap();
}

async fn take_descriptor(raw: Raw) {
    let Stream::Unix(mut stream) = raw.stream else { return };
    stream.write_all(b"!").await.unwrap();
    let mut buffer = [0; 16];
    let (_, received) = fds::recv(&stream, &mut buffer).await.unwrap();
    let mut file = std::fs::File::from(received.into_iter().next().unwrap());
    std::io::Write::write_all(&mut file, b"from the server").unwrap();
    stream.write_all(b"done").await.unwrap();
}

#[tokio::test]
async fn a_connection_taken_over_passes_descriptors() {
    let server = hello().route(Method::POST, "/exec", async |_| Response::takeover("stillmesh-exec", take_descriptor));
    let running = Running::start(server);
    let refused = running.client.takeover(Method::POST, "/hello", "stillmesh-exec", "").await.unwrap_err();
    assert!(matches!(refused, ClientError::NotTakenOver { status: StatusCode::NOT_FOUND, .. }), "{refused}");
    let raw = running.client.takeover(Method::POST, "/exec", "stillmesh-exec", "{}").await.unwrap();
    let Stream::Unix(mut stream) = raw.stream else { panic!("a unix socket was connected") };
    let mut ready = raw.buffered.to_vec();
    if ready.is_empty() {
        ready.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(ready, b"!");
    let (reader, writer) = std::io::pipe().unwrap();
    fds::send(&stream, b"x", &[writer.as_fd()]).await.unwrap();
    drop(writer);
    assert_eq!(read_all(&mut stream).await, "done");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut { reader }, &mut text).unwrap();
    assert_eq!(text, "from the server");
}

#[tokio::test]
async fn a_drain_lets_the_open_request_end_and_takes_no_new_one() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (handler_entered, handler_go) = (Arc::clone(&entered), Arc::clone(&go));
    let server = Server::new("test").route(Method::GET, "/slow", move |_| {
        let (entered, go) = (Arc::clone(&handler_entered), Arc::clone(&handler_go));
        async move {
            entered.notify_one();
            go.notified().await;
            Response::text(StatusCode::OK, "ended")
        }
    });
    let mut running = Running::start(server);
    let client = running.client.clone();
    let requests = Tasks::new("requests");
    let mut open = requests.spawn("open", async move { client.get("/slow").await.unwrap().text() });
    entered.notified().await;
    running.trigger.start(drain::Mode::Graceful, Duration::from_secs(30));
    // The listener is closed as soon as the server has seen the signal.
    while UnixStream::connect(Running::path(running.dir.path())).await.is_ok() {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    assert_eq!(open.join().await.as_deref(), Some("ended"));
    assert_eq!(running.trigger.finished().await, Drained::Clean);
    assert_eq!(running.serving.join().await, Some(()));
}

#[tokio::test]
async fn the_client_says_who_is_absent_and_who_is_slow() {
    let absent = Client::unix("/does/not/exist.sock").get("/").await.unwrap_err();
    assert_eq!(absent.to_string(), "cannot connect to /does/not/exist.sock");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mute.sock");
    let _mute = UnixListener::bind(&path).unwrap();
    let slow = Client::unix(&path).deadline(Duration::from_millis(50)).get("/").await.unwrap_err();
    assert!(matches!(slow, ClientError::Slow { .. }), "{slow}");
}
