//! Load: HTTP/1.1 by hand in CONNECTs, as little work as can be, so that the proxies have the machine. And the backend.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stillmesh_hbone::Stream;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_waypoint_tests::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
/// By then all workers wait for what is due: the first request is as any other.
const SETTLED: Duration = Duration::from_millis(2);

/// A backend that answers every request with the same 100 bytes, after a while.
pub async fn backend(at: SocketAddr, delay: Duration, tasks: &Tasks) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).await?;
    let own = tasks.clone();
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n{}", "x".repeat(100));
    tasks.spawn("backend", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            own.spawn("backend's connection", async move {
                drop(stream.set_nodelay(true));
                let mut read = Vec::with_capacity(4096);
                while stream.read_buf(&mut read).await.is_ok_and(|length| length > 0) {
                    // Requests have no body here.
                    while let Some(end) = end_of_head(&read) {
                        read.drain(..end);
                        if !delay.is_zero() {
                            sleep(delay).await;
                        }
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

fn end_of_head(read: &[u8]) -> Option<usize> {
    read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// One HTTP/1.1 connection in a CONNECT.
pub struct Connection {
    stream: Stream,
    read: Vec<u8>,
}

impl Connection {
    /// Opens it.
    pub async fn open(client: &Client, to: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { stream: client.open(to).await?, read: Vec::with_capacity(4096) })
    }

    /// GET: status and body.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nuser-agent: bench\r\nx-user: tester\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let end = loop {
            if let Some(end) = end_of_head(&self.read) {
                break end;
            }
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the connection ended");
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_ascii_lowercase();
        let length: usize = match head.split_once("content-length: ").and_then(|(_, rest)| rest.split_once("\r\n")) {
            Some((number, _)) => number.trim().parse()?,
            None => bail!("no length: {head}"),
        };
        while self.read.len() < end + length {
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the body ended early");
        }
        let body = String::from_utf8_lossy(&self.read[end..end + length]).into_owned();
        self.read.drain(..end + length);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok((status, body))
    }
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Requests that were answered.
    pub requests: usize,
    /// Wall time.
    pub seconds: f64,
    /// Of each request, ascending. Of a fixed rate from when the request was due, not from when it could be sent: what waits
    /// for a slow answer counts (no «coordinated omission»).
    pub latencies: Vec<Duration>,
}

impl Measured {
    /// So many percent of the latencies are below it, microseconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        let at = ((self.latencies.len() as f64) * percent / 100.0) as usize;
        let at = at.min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }

    /// Adds what another load came to.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.seconds += other.seconds;
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
    }
}

/// Who is asked, for what.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What the CONNECTs are for.
    pub to: SocketAddr,
    /// How many paths there are: `/r0/x` and so on.
    pub paths: usize,
}

/// Asks from `connections` connections for a time; at `rate` requests a second in all, or each as soon as it was answered.
pub async fn run(
    client: &Arc<Client>,
    target: Target,
    connections: usize,
    rate: Option<usize>,
    time: Duration,
    tasks: &Tasks,
) -> anyhow::Result<Measured> {
    drive(&mut open(client, target, connections).await?, target, rate, time, tasks).await
}

/// Opens connections; each has had its first answer.
pub async fn open(client: &Client, target: Target, connections: usize) -> anyhow::Result<Vec<Connection>> {
    let mut opened = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(client, target.to).await?;
        ensure!(connection.get("/r0/x").await?.0 == 200, "the first answer");
        opened.push(connection);
    }
    Ok(opened)
}

/// Likewise, from connections that are open and stay so.
pub async fn drive(
    opened: &mut Vec<Connection>,
    target: Target,
    rate: Option<usize>,
    time: Duration,
    tasks: &Tasks,
) -> anyhow::Result<Measured> {
    let begin = Instant::now() + if rate.is_some() { SETTLED } else { Duration::ZERO };
    let end = begin + time;
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = opened
        .drain(..)
        .map(|mut connection| {
            let next = next.clone();
            tasks.spawn("load", async move {
                let mut latencies = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let due = match rate {
                        Some(rate) => begin + Duration::from_secs_f64(number as f64 / rate as f64),
                        None => Instant::now(),
                    };
                    if due >= end {
                        return Ok::<_, anyhow::Error>((connection, latencies));
                    }
                    // The timer is late by up to a millisecond, which is nobody's latency; a worker that was busy when the request
                    // was due is the proxy's.
                    let is_early = Instant::now() < due;
                    sleep_until(due).await;
                    let from = if is_early { Instant::now() } else { due };
                    let path = format!("/r{}/x", number % target.paths);
                    let (status, _) = timeout(PATIENCE, connection.get(&path)).await.context("no answer")??;
                    ensure!(status == 200, "{path}: {status}");
                    latencies.push(from.elapsed());
                }
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for mut worker in workers {
        let (connection, of_one) = worker.join().await.context("a worker was cut")??;
        opened.push(connection);
        latencies.extend(of_one);
    }
    let seconds = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Measured { requests: latencies.len(), seconds, latencies })
}

/// Opens HTTP/2 requests and resets them at once («rapid reset», CVE-2023-44487), from several connections that are made anew
/// as they are cut, until it is dropped.
pub async fn flood(client: &Client, to: SocketAddr) {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for number in 0..500 {
        let stream = 2 * number + 1;
        bytes.extend(frame(1, 0x5, stream, b"\x82\x86\x84\x41\x03web"));
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let one = || async {
        loop {
            if let Ok(mut stream) = client.open(to).await {
                drop(stream.write_all(&bytes).await);
                drop(stream.flush().await);
                let mut sink = [0; 4096];
                let ends = async { while stream.read(&mut sink).await.is_ok_and(|length| length > 0) {} };
                drop(timeout(Duration::from_millis(200), ends).await);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(one(), one(), one(), one());
}
