//! Against another implementation, the h2 crate, as its client and as its server, in memory: bulk both ways, many streams, small
//! windows, resets, GOAWAY, windows that shrink, and an end that is exported and imported while it runs.
#![expect(clippy::disallowed_methods, reason = "tasks of a test")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use proptest::prelude::*;
use stillmesh_http2::{Config, Connection, Event, Reason, Role, Room};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

type Fallible = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What our end does with its streams: it sends back what it gets, or sends so much by itself.
struct Ours {
    connection: Connection,
    io: DuplexStream,
    /// Not written yet.
    out: VecDeque<u8>,
    /// To be sent, by stream, and whether the end follows.
    queues: BTreeMap<u32, (VecDeque<u8>, bool)>,
    waits: Vec<u32>,
    waits_for_connection: bool,
    /// As a client: what came back.
    got: HashMap<u32, Vec<u8>>,
    ended: Vec<u32>,
    /// Exported and imported again and again.
    moves: bool,
    turns: usize,
    /// After so many turns it has other windows.
    shrinks: bool,
    events: Vec<String>,
}

impl Ours {
    fn new(connection: Connection, io: DuplexStream) -> Self {
        Self {
            connection,
            io,
            out: VecDeque::new(),
            queues: BTreeMap::new(),
            waits: Vec::new(),
            waits_for_connection: false,
            got: HashMap::new(),
            ended: Vec::new(),
            moves: false,
            turns: 0,
            shrinks: false,
            events: Vec::new(),
        }
    }

    /// Runs until `done`, or until the other end has closed.
    async fn run(&mut self, done: impl Fn(&Self) -> bool) -> Fallible {
        let mut buffer = vec![0; 100_000];
        loop {
            if self.out.is_empty() {
                self.fill()?;
            }
            if done(self) {
                // Who has all that it wanted may have gone.
                let _ = self.write().await;
                return Ok(());
            }
            // Odd sizes: frames come in pieces.
            let most = 1 + (self.turns * 7919) % buffer.len();
            let (mut reading, mut writing) = tokio::io::split(&mut self.io);
            let read = tokio::select! {
                written = writing.write_buf(&mut self.out), if !self.out.is_empty() => {
                    // Who reads no more may have said why.
                    if written.is_err() {
                        self.out.clear();
                    }
                    continue;
                }
                read = timeout(PATIENCE, reading.read(&mut buffer[..most])) => read??,
            };
            if read == 0 {
                return Ok(());
            }
            self.turns += 1;
            self.take(&buffer[..read])?;
            if self.moves {
                self.connection = Connection::import(&self.connection.export()?)?;
            }
            if self.shrinks && self.turns.is_multiple_of(5) {
                let window = [100, 70_000, 1000, 0, 20_000][self.turns / 5 % 5];
                self.connection.set_initial_window(window);
                if window == 0 {
                    // Nothing moves unless a stream is given its own.
                    self.queues.keys().for_each(|stream| self.connection.set_stream_window(*stream, 500));
                }
            }
        }
    }

    fn take(&mut self, mut input: &[u8]) -> Fallible {
        while let Some(event) = self.connection.receive(&mut input)? {
            match event {
                Event::Request { stream, request } => {
                    let connect = request.method == "CONNECT";
                    let status = if connect { StatusCode::OK } else { StatusCode::BAD_REQUEST };
                    self.connection.respond(stream, status, &request.headers, !connect)?;
                    if connect {
                        self.queues.insert(stream, Default::default());
                    }
                }
                Event::Data { stream, bytes } => {
                    let length = u32::try_from(bytes.len())?;
                    if self.connection.role() == Role::Server {
                        if let Some((queue, _)) = self.queues.get_mut(&stream) {
                            queue.extend(bytes);
                        }
                    } else {
                        self.got.entry(stream).or_default().extend(bytes);
                    }
                    self.connection.release(stream, length);
                }
                Event::End { stream } => {
                    self.ended.push(stream);
                    if let Some((_, end)) =
                        self.queues.get_mut(&stream).filter(|_| self.connection.role() == Role::Server)
                    {
                        *end = true;
                    }
                }
                Event::Reset { stream, reason } => {
                    self.queues.remove(&stream);
                    self.events.push(format!("reset {stream} {reason}"));
                }
                Event::NotProcessed { stream } => {
                    self.queues.remove(&stream);
                    self.events.push(format!("not processed {stream}"));
                }
                Event::StreamRoom { stream } => self.waits.retain(|waiting| *waiting != stream),
                Event::ConnectionRoom => self.waits_for_connection = false,
                Event::Failed { .. } => return Err(format!("{event:?}").into()),
                Event::GoAway { last_stream, reason, .. } => {
                    self.events.push(format!("go away {last_stream} {reason}"))
                }
                Event::Pong { .. } => self.events.push("pong".into()),
                Event::Response { status, .. } => self.events.push(format!("response {status}")),
                Event::Settings | Event::SettingsAcknowledged => {}
            }
        }
        Ok(())
    }

    /// Writes what there is to be written.
    async fn write(&mut self) -> Fallible {
        self.fill()?;
        timeout(PATIENCE, self.io.write_all_buf(&mut self.out)).await??;
        Ok(())
    }

    fn fill(&mut self) -> Fallible {
        let out = &mut self.out;
        loop {
            let before = out.len();
            let control = self.connection.output();
            out.extend(control);
            let length = control.len();
            self.connection.output_taken(length);
            for (stream, (queue, end)) in &mut self.queues {
                // Not before the peer's SETTINGS: h2 never gives all credit back for what is more than its smaller window.
                if !self.connection.is_greeted()
                    || self.waits.contains(stream)
                    || self.waits_for_connection
                    || (queue.is_empty() && !*end)
                {
                    continue;
                }
                let mut length = 0;
                if !queue.is_empty() {
                    match self.connection.room(*stream) {
                        Room::Bytes(room) => length = (room as usize).min(queue.len()),
                        Room::Stream => self.waits.push(*stream),
                        Room::Connection => self.waits_for_connection = true,
                        Room::Never => return Err(format!("no room ever on {stream}").into()),
                    }
                    if length == 0 {
                        continue;
                    }
                }
                let last = *end && length == queue.len();
                out.extend(self.connection.data(*stream, u32::try_from(length)?, last)?);
                out.extend(queue.drain(..length));
                if last {
                    // The last of its queue.
                    (*queue, *end) = (VecDeque::new(), false);
                }
            }
            if out.len() == before {
                break;
            }
        }
        Ok(())
    }
}

fn content(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|place| ((place * 31 + seed) % 251) as u8).collect()
}

/// Sends all, in h2's way.
async fn send(mut stream: SendStream<Bytes>, bytes: Vec<u8>) -> Fallible {
    let mut bytes = Bytes::from(bytes);
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or("closed")??;
        stream.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    stream.send_data(Bytes::new(), true)?;
    Ok(())
}

async fn receive(mut stream: RecvStream) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut all = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// h2's client sends so much on so many streams at once; our server sends it back.
async fn echo(
    ours: Config,
    theirs: &h2::client::Builder,
    streams: usize,
    length: usize,
    how: impl Fn(&mut Ours),
) -> Fallible {
    let (near, far) = tokio::io::duplex(30_000);
    let mut server = Ours::new(Connection::server(ours), near);
    how(&mut server);
    let server = tokio::spawn(async move { server.run(|_| false).await });
    let (client, connection) = theirs.handshake::<_, Bytes>(far).await?;
    let connection = tokio::spawn(connection);
    let mut tasks = Vec::new();
    for number in 0..streams {
        let mut client = client.clone().ready().await?;
        let (response, stream) = client.send_request(Request::connect("10.0.0.1:80").body(())?, false)?;
        tasks.push(tokio::spawn(async move {
            let bytes = content(length, number);
            let (answered, sent) =
                tokio::join!(async { receive(response.await?.into_body()).await }, send(stream, bytes.clone()));
            sent?;
            if answered? == bytes { Ok(()) } else { Err("other bytes".into()) }
        }));
    }
    drop(client);
    for task in tasks {
        timeout(PATIENCE, task).await??.map_err(|error: Box<dyn std::error::Error + Send + Sync>| error)?;
    }
    timeout(PATIENCE, connection).await???;
    timeout(PATIENCE, server).await??
}

fn h2_client(window: u32) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(window.max(65_535)).enable_push(false);
    builder
}

#[tokio::test]
async fn h2_s_client_gets_back_what_it_sent() -> Fallible {
    echo(Config::server(), &h2_client(1 << 20), 1, 3 << 20, |_| {}).await
}

#[tokio::test]
async fn many_streams_of_h2_s_client_with_small_windows() -> Fallible {
    let config = Config { initial_window: 1000, connection_window: 3000, max_data: 700, ..Config::server() };
    echo(config, &h2_client(500), 60, 20_000, |_| {}).await
}

#[tokio::test]
async fn a_server_that_moves_all_the_time_is_not_noticed() -> Fallible {
    echo(Config::server(), &h2_client(5000), 20, 100_000, |server| server.moves = true).await
}

#[tokio::test]
async fn windows_that_shrink_stop_nobody() -> Fallible {
    let config = Config { initial_window: 30_000, ..Config::server() };
    echo(config, &h2_client(20_000), 5, 300_000, |server| server.shrinks = true).await
}

#[tokio::test]
async fn h2_s_client_is_answered_what_it_may_not_ask() -> Fallible {
    let (near, far) = tokio::io::duplex(30_000);
    let server =
        tokio::spawn(async move { Ours::new(Connection::server(Config::server()), near).run(|_| false).await });
    let (mut client, connection) = h2::client::handshake(far).await?;
    let connection = tokio::spawn(connection);
    let (response, _) = client.send_request(Request::get("http://host/path").body(())?, true)?;
    assert_eq!(timeout(PATIENCE, response).await??.status(), StatusCode::BAD_REQUEST);
    // A second head, with the same headers: h2's table is no longer used.
    let connect = |value: &str| Request::connect("10.0.0.1:80").header("baggage", value).body(());
    for _ in 0..3 {
        let (response, mut stream) = client.send_request(connect("a=b")?, false)?;
        assert_eq!(timeout(PATIENCE, response).await??.status(), StatusCode::OK);
        stream.send_reset(h2::Reason::CANCEL);
    }
    drop(client);
    timeout(PATIENCE, connection).await???;
    timeout(PATIENCE, server).await??
}

/// h2 sends these headers, by Huffman and as long as it may by its table, and gets them back.
async fn headers_come_back(requests: &[HeaderMap]) -> Fallible {
    let (near, far) = tokio::io::duplex(30_000);
    let server =
        tokio::spawn(async move { Ours::new(Connection::server(Config::server()), near).run(|_| false).await });
    let (mut client, connection) = h2::client::handshake(far).await?;
    let connection = tokio::spawn(connection);
    for headers in requests {
        let mut request = Request::connect("10.0.0.1:80").body(())?;
        *request.headers_mut() = headers.clone();
        let (response, mut stream) = client.send_request(request, false)?;
        assert_eq!(timeout(PATIENCE, response).await??.headers(), headers);
        stream.send_reset(h2::Reason::CANCEL);
        client = client.ready().await?;
    }
    drop(client);
    timeout(PATIENCE, connection).await???;
    timeout(PATIENCE, server).await??
}

/// Headers with all bytes that a value may have, and names that are new or well known.
fn headers() -> impl Strategy<Value = HeaderMap> {
    let name =
        prop_oneof!["x-[a-z0-9]{0,30}", Just("baggage".to_owned()), Just("cookie".to_owned()), Just("date".to_owned())];
    let bytes = prop::collection::vec(prop_oneof![b' '..=b'~', 0x80_u8.., Just(b'\t')], 0..200);
    let one = (name, bytes).prop_map(|(name, bytes)| {
        let value = HeaderValue::from_bytes(bytes.trim_ascii()).unwrap_or(HeaderValue::from_static("?"));
        (HeaderName::try_from(name).unwrap_or(HeaderName::from_static("x")), value)
    });
    prop::collection::vec(one, 0..12).prop_map(|list| {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(name, value);
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_of_h2_are_what_they_were(requests in prop::collection::vec(headers(), 1..10)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let came_back = runtime.block_on(headers_come_back(&requests));
        prop_assert!(came_back.is_ok(), "{came_back:?}");
    }
}

/// Our client sends so much on so many streams at once; h2's server sends it back.
async fn call(ours: Config, theirs: &h2::server::Builder, streams: usize, length: usize, moves: bool) -> Fallible {
    let (near, far) = tokio::io::duplex(30_000);
    let builder = theirs.clone();
    let server = tokio::spawn(async move {
        let mut connection = builder.handshake::<_, Bytes>(far).await?;
        let mut tasks = Vec::new();
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted?;
            assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("10.0.0.1:80"));
            let stream = respond.send_response(Response::new(()), false)?;
            tasks.push(tokio::spawn(async move {
                // Both directions at the same time.
                let (mut receive, mut stream) = (request.into_body(), stream);
                while let Some(piece) = receive.data().await {
                    let mut piece = piece?;
                    receive.flow_control().release_capacity(piece.len())?;
                    while !piece.is_empty() {
                        stream.reserve_capacity(piece.len());
                        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or("closed")??;
                        stream.send_data(piece.split_to(room.min(piece.len())), false)?;
                    }
                }
                stream.send_data(Bytes::new(), true)?;
                Fallible::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        Fallible::Ok(())
    });
    let mut client = Ours::new(Connection::client(ours), near);
    client.moves = moves;
    let mut expected = HashMap::new();
    for number in 0..streams {
        let stream = client.connection.connect("10.0.0.1:80", &HeaderMap::new())?;
        client.queues.insert(stream, (content(length, number).into(), true));
        expected.insert(stream, content(length, number));
    }
    client.run(|client| client.ended.len() == streams).await?;
    assert!(client.got == expected, "other bytes");
    assert_eq!(client.connection.streams(), 0);
    client.connection.go_away();
    client.write().await?;
    assert!(client.connection.is_done());
    drop(client);
    timeout(PATIENCE, server).await??
}

fn h2_server(window: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
    builder
}

#[tokio::test]
async fn our_client_gets_back_what_it_sent() -> Fallible {
    call(Config::client(), &h2_server(1 << 20), 1, 3 << 20, false).await
}

#[tokio::test]
async fn many_streams_to_h2_s_server_with_small_windows() -> Fallible {
    let config = Config { initial_window: 1000, connection_window: 3000, max_data: 700, ..Config::client() };
    call(config, &h2_server(500), 60, 20_000, false).await
}

#[tokio::test]
async fn a_client_that_moves_all_the_time_is_not_noticed() -> Fallible {
    call(Config::client(), &h2_server(5000), 20, 100_000, true).await
}

#[tokio::test]
async fn h2_s_server_goes_away_and_resets() -> Fallible {
    let (near, far) = tokio::io::duplex(30_000);
    let server = tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await?;
        let (_, mut respond) = connection.accept().await.ok_or("no request")??;
        let mut stream: SendStream<Bytes> = respond.send_response(Response::new(()), false)?;
        stream.send_reset(h2::Reason::CONNECT_ERROR);
        connection.graceful_shutdown();
        // The client leaves as soon as it knows.
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::CANCEL);
        }
        Fallible::Ok(())
    });
    let mut client = Ours::new(Connection::client(Config::client()), near);
    client.connection.connect("10.0.0.1:80", &HeaderMap::new())?;
    client.connection.ping(*b"are you ");
    client.run(|client| client.connection.is_done()).await?;
    let expected = ["reset 1 CONNECT_ERROR", "go away 2147483647 NO_ERROR", "pong"];
    expected
        .iter()
        .for_each(|event| assert!(client.events.contains(&(*event).to_owned()), "{event}: {:?}", client.events));
    assert!(client.connection.connect("10.0.0.1:80", &HeaderMap::new()).is_err());
    client.connection.close(Reason::NO_ERROR, "done");
    // Nobody may be there to read it.
    let _ = client.write().await;
    drop(client);
    timeout(PATIENCE, server).await??
}
