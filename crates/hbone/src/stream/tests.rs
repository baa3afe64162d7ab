use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use stillmesh_identity::fixtures::identity;
use stillmesh_runtime::tasks::Task;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};

use super::*;
use crate::copy::{self, CopyError, Side};
use crate::harness::{World, checksum, echoes, pattern, settle, stream};
use crate::{Limits, Memory, Pool};

const SECOND: Duration = Duration::from_secs(1);

/// A world whose server counts what it holds in a budget of its own.
fn world_with(client: &Memory, server: &Memory) -> (World, crate::harness::Server) {
    let world = World::with(Limits { memory: client.clone(), ..Limits::default() });
    let limits = Limits { memory: server.clone(), ..Limits::default() };
    let server = world.server_with(world.ca.leaf(&identity("details")), limits);
    (world, server)
}

/// The far application's socket of a stream to `socket` that was just opened.
async fn accepted(world: &World) -> DuplexStream {
    loop {
        let held = world.apps.held.notified();
        if let Some(socket) = world.apps.sockets.lock().pop() {
            return socket;
        }
        held.await;
    }
}

/// Two applications joined by a tunnel that is copied to and from sockets at both ends.
async fn joined(world: &World, pool: &Pool) -> (DuplexStream, DuplexStream, Task<Result<(), CopyError>>) {
    let mut stream = stream(pool, "socket").await;
    let (near, mut socket) = duplex(8 << 10);
    let task = world.tasks.spawn("copy", async move {
        let copied = copy::tunnel(&mut socket, &mut stream, &Arc::default()).await;
        drop((socket, stream));
        copied
    });
    (near, accepted(world).await, task)
}

/// Writes until nothing is taken any more.
async fn stuff(socket: &mut (impl AsyncWrite + Unpin), piece: &[u8]) -> usize {
    let mut written = 0;
    while let Ok(Ok(count)) = timeout(SECOND, async {
        let count = socket.write(piece).await?;
        socket.flush().await?;
        Ok::<_, io::Error>(count)
    })
    .await
    {
        written += count;
    }
    written
}

#[tokio::test(start_paused = true)]
async fn each_direction_ends_by_itself() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    for first_to_end in [Side::First, Side::Second] {
        let (near, far, mut copied) = joined(&world, &pool).await;
        let (mut first, mut second) = if first_to_end == Side::First { (near, far) } else { (far, near) };
        first.write_all(b"all I have to say").await.unwrap();
        first.shutdown().await.unwrap();
        let mut heard = String::new();
        second.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "all I have to say");
        second.write_all(&pattern(1 << 16)[..100]).await.unwrap();
        second.shutdown().await.unwrap();
        let mut answer = Vec::new();
        first.read_to_end(&mut answer).await.unwrap();
        assert!(answer == pattern(100));
        copied.join().await.unwrap().unwrap();
    }
    settle().await;
    assert!(world.apps.copied.lock().iter().all(Result::is_ok));
    assert_eq!((world.net.dials(), world.limits.memory.held()), (1, 0));
}

/// A socket whose peer reset it.
struct Reset;

impl Socket for Reset {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_arrives_as_a_reset_each_way() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    // The dialling end's application breaks.
    let mut there = stream(&pool, "socket").await;
    let mut far = accepted(&world).await;
    let error = copy::tunnel(&mut Reset, &mut there, &Arc::default()).await.unwrap_err();
    assert_eq!(error.side, Side::First);
    settle().await;
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "a pipe cannot be reset: its other end is dropped");
    let error = world.apps.copied.lock().pop().unwrap().unwrap_err();
    assert_eq!((error.side, error.source.kind()), (Side::Second, io::ErrorKind::ConnectionReset));
    // The answering end's application breaks.
    let mut back = stream(&pool, "broken").await;
    back.write_all(b"x").await.unwrap();
    let (mut near, _app) = duplex(64);
    let error = copy::tunnel(&mut near, &mut back, &Arc::default()).await.unwrap_err();
    assert_eq!((error.side, error.source.kind()), (Side::Second, io::ErrorKind::ConnectionReset));
    // Dropped before it ended.
    drop(stream(&pool, "socket").await);
    settle().await;
    let error = world.apps.copied.lock().pop().unwrap().unwrap_err();
    assert_eq!((error.side, error.source.kind()), (Side::Second, io::ErrorKind::ConnectionReset));
    echoes(&mut stream(&pool, "echo").await, b"the connection is unharmed").await;
    assert_eq!(world.net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_chatty_writer_with_a_slow_reader_does_not_disturb_another_stream() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut neighbour = stream(&pool, "echo").await;
    // Nobody reads: once from the stream itself, once from the socket that it is copied to.
    let mut unread = stream(&pool, "stuck").await;
    let mut uncopied = stream(&pool, "socket").await;
    let mut socket = accepted(&world).await;
    let sent = pattern(20_000);
    for byte in &sent {
        for stream in [&mut unread, &mut uncopied] {
            stream.write_all(std::slice::from_ref(byte)).await.unwrap();
            stream.flush().await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    echoes(&mut neighbour, &pattern(10_000)).await;
    assert_eq!(world.net.dials(), 1);
    // Nothing was lost for those who read late.
    let mut late = world.apps.stuck.lock().pop().unwrap();
    let mut heard = vec![0; sent.len()];
    late.read_exact(&mut heard).await.unwrap();
    assert!(heard == sent);
    socket.read_exact(&mut heard).await.unwrap();
    assert!(heard == sent);
}

#[tokio::test(start_paused = true)]
async fn readers_that_do_not_read_never_stop_their_neighbours() {
    let world = World::with(Limits { memory: Memory::new(1 << 30), ..Limits::default() });
    world.net.relay(&world.tasks, Duration::from_millis(20));
    let _server = world.server();
    let pool = world.pool();
    let mut neighbour = stream(&pool, "echo").await;
    // The windows are at their largest before anybody is stuck.
    let mut source = stream(&pool, "count").await;
    source.write_all(&pattern(32 << 20)).await.unwrap();
    let mut stuck = Vec::new();
    for _ in 0..50 {
        let mut one = stream(&pool, "socket").await;
        stuff(&mut one, &[0; 64 << 10]).await;
        echoes(&mut neighbour, &[7; 100_000]).await;
        stuck.push(one);
    }
    assert_eq!(world.net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_streams_arrive_whole_while_windows_become_smaller() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let sent = pattern(500_000);
    let expected = format!("{} {:x}", sent.len(), checksum(&sent));
    let one = async |number: u32| {
        tokio::time::sleep(Duration::from_millis(1) * number).await;
        let mut stream = stream(&pool, "count").await;
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, expected);
    };
    join_all((0..90).map(one)).await;
    settle().await;
    assert_eq!((world.net.dials(), world.limits.memory.held()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn streams_that_had_used_more_than_a_smaller_window_go_on() {
    let world = World::with(Limits { memory: Memory::new(1 << 30), ..Limits::default() });
    world.net.relay(&world.tasks, Duration::from_millis(20));
    let _server = world.server();
    let pool = world.pool();
    // The windows of both directions are at their largest.
    echoes(&mut stream(&pool, "echo").await, &pattern(32 << 20)).await;
    // So little of them that no credit is given back for it yet, and yet more than the windows will be.
    let mut users = Vec::new();
    for quarters in 1..=8 {
        let mut user = stream(&pool, "echo").await;
        echoes(&mut user, &pattern(quarters * (256 << 10))).await;
        users.push(user);
    }
    let mut crowd = Vec::new();
    for _ in 0..80 {
        crowd.push(stream(&pool, "echo").await);
    }
    settle().await;
    for user in &mut users {
        echoes(user, &pattern(300_000)).await;
    }
    assert_eq!(world.net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_grows_until_the_round_trip_is_no_bound() {
    let world = World::new();
    world.net.relay(&world.tasks, Duration::from_millis(50));
    let _server = world.server();
    let pool = world.pool();
    let (sent, begun) = (pattern(32 << 20), Instant::now());
    let mut up = stream(&pool, "count").await;
    up.write_all(&sent).await.unwrap();
    up.shutdown().await.unwrap();
    let mut answer = String::new();
    up.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, format!("{} {:x}", sent.len(), checksum(&sent)));
    // With the first window it takes 128 round trips of 100 ms; with the largest, 8.
    assert!(begun.elapsed() < 4 * SECOND, "{:?}", begun.elapsed());
    let (mut down, begun, mut received) = (stream(&pool, "source:32").await, Instant::now(), Vec::new());
    down.read_to_end(&mut received).await.unwrap();
    assert!(received == sent);
    assert!(begun.elapsed() < 4 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn stuck_readers_hold_no_more_than_the_budget_and_stop_nobody_else() {
    let (client, server) = (Memory::new(1 << 30), Memory::new(4 << 20));
    let (world, _server) = world_with(&client, &server);
    let pool = world.pool();
    let mut neighbour = stream(&pool, "echo").await;
    let mut stuck = Vec::new();
    for _ in 0..80 {
        stuck.push(stream(&pool, "socket").await);
    }
    let stuffing = async |stream: &mut Stream| {
        while stuff(stream, &[0; 16 << 10]).await > 0 {
            assert!(server.held() <= server.limit(), "{}", server.held());
        }
    };
    let reading = async {
        for _ in 0..20 {
            echoes(&mut neighbour, &pattern(100_000)).await;
        }
    };
    tokio::join!(join_all(stuck.iter_mut().map(stuffing)), reading);
    assert!(server.held() <= server.limit() && server.broken() > 0, "{server:?}");
    // Who held more than the others is told why; who reads goes on.
    let ends = world.apps.copied.lock().iter().filter(|end| end.is_err()).count();
    assert_eq!(ends as u64, server.broken());
    echoes(&mut neighbour, &pattern(300_000)).await;
    // With the readers their bytes are gone.
    world.apps.sockets.lock().clear();
    drop(stuck);
    settle().await;
    assert_eq!((server.held(), client.held()), (0, 0));
    echoes(&mut neighbour, b"x").await;
    echoes(&mut stream(&pool, "echo").await, b"x").await;
    assert_eq!(world.net.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn stuck_connections_hold_no_more_than_the_budget_and_stop_nobody_else() {
    // Three connections with a full buffer are more than half of it.
    let (client, server) = (Memory::new(600 << 10), Memory::new(1 << 30));
    let (world, _server) = world_with(&client, &server);
    world.net.relay(&world.tasks, Duration::ZERO);
    let (stuck, other): (Vec<Pool>, Pool) = ((0..10).map(|_| world.pool()).collect(), world.pool());
    let mut apps = Vec::new();
    for pool in stuck.iter().cycle().take(80) {
        apps.push(joined(&world, pool).await);
    }
    let (mut near, mut far, _copied) = joined(&world, &other).await;
    (0..10).for_each(|number| world.net.cut(number));
    let stuffing = async |(near, _, _): &mut (DuplexStream, _, _)| {
        stuff(near, &[0; 16 << 10]).await;
        assert!(client.held() <= client.limit(), "{}", client.held());
    };
    join_all(apps.iter_mut().map(stuffing)).await;
    assert!(!client.is_ample(), "{client:?}");
    // Another connection goes on with its share.
    let text = pattern(1 << 20);
    let (sending, mut heard) = (near.write_all(&text), vec![0; text.len()]);
    let (sent, received) = tokio::join!(sending, far.read_exact(&mut heard));
    assert!(sent.is_ok() && received.is_ok() && heard == text);
    // The stuck ones are found out by their PINGs.
    for (_near, _far, mut copied) in apps {
        assert_eq!(copied.join().await.unwrap().unwrap_err().side, Side::Second);
    }
    // Their last words are waited for, but not for long.
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!((client.held(), world.tasks.panics()), (0, 0));
    assert_eq!(world.apps.asked.load(Ordering::Relaxed), 81);
}

#[tokio::test(start_paused = true)]
async fn what_has_arrived_is_still_read_when_its_connection_has_ended() {
    let world = World::with(Limits { memory: Memory::new(64 << 20), first_window: 2 << 20, ..Limits::default() });
    let mut server = world.server();
    let pool = world.pool();
    let mut late = stream(&pool, "source:1").await;
    late.shutdown().await.unwrap();
    server.drain.start(stillmesh_runtime::drain::Mode::Graceful, 30 * SECOND);
    server.endings.recv().await.unwrap().unwrap();
    settle().await;
    assert!(pool.tunnels() == 0 && world.limits.memory.held() >= 1 << 20);
    let mut received = Vec::new();
    late.read_to_end(&mut received).await.unwrap();
    assert!(received == pattern(1 << 20));
    assert_eq!(world.limits.memory.held(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_of_many_threads_share_a_connection() {
    let world = World::new();
    let _server = world.server();
    let pool = world.pool();
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..32 {
        let mut stream = stream(&pool, "echo").await;
        streams.spawn(async move {
            for length in [1, 100, 20_000 + number, 300_000, 1] {
                echoes(&mut stream, &pattern(length)).await;
            }
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty());
        });
    }
    streams.join_all().await;
    assert_eq!(world.net.dials(), 1, "all by one connection");
}
