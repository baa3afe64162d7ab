//! The two ends of the benchmark's traffic. A connection's first byte says what it is for.
//!
//! The client measures one scenario and prints one JSON line; whether its connections are raw or carried by the mesh is
//! decided by where its pod runs, not here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The client sends bulk data until it closes; the server answers with the number of bytes (8, big-endian).
const BULK: u8 = b'B';
/// The server echoes messages of [`MESSAGE`] bytes.
const ECHO: u8 = b'E';
/// Size of a request and of a response, in bytes.
const MESSAGE: usize = 64;
/// Size of one write in bulk, in bytes.
const CHUNK: usize = 128 << 10;
/// How long a single step (connect, exchange) may take before the run is called stalled.
const STALL: Duration = Duration::from_secs(20);

/// Serves every scenario.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Port to listen on.
    #[arg(long, default_value_t = 7000)]
    port: u16,
}

impl Server {
    /// Serves until the process ends.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(("0.0.0.0", self.port)).await?;
        let tasks = Tasks::new("bench");
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            tasks.spawn("bench-connection", async move {
                // A client that breaks off reports it itself.
                let _ = serve(stream).await;
            });
        }
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        BULK => {
            let mut buffer = vec![0; CHUNK];
            let mut total = 0_u64;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    read => total += read as u64,
                }
            }
            stream.write_u64(total).await?;
            stream.shutdown().await
        }
        _ => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).await.is_ok() {
                stream.write_all(&message).await?;
            }
            Ok(())
        }
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// Bytes per second from client to server.
    Bulk,
    /// Requests per second, closed loop, and their latency.
    Echo,
    /// New connections per second, one request each.
    Connect,
    /// Holds idle connections; reports when they are open and keeps them for the duration.
    Idle,
}

/// Measures one scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Client {
    /// Host and port of the server.
    #[arg(long)]
    pub(crate) target: String,
    /// What to measure.
    #[arg(long)]
    pub(crate) scenario: Scenario,
    /// Connections at a time.
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
    /// Seconds to measure for.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Seconds that the counters below cover.
    pub(crate) seconds: f64,
    /// Application bytes carried one way.
    pub(crate) bytes: u64,
    /// Exchanges (requests, or connections with one request each).
    pub(crate) exchanges: u64,
    /// Latency of an exchange at the median, µs.
    pub(crate) p50_us: u64,
    /// Latency of an exchange at the 99th percentile, µs.
    pub(crate) p99_us: u64,
}

impl Client {
    /// Runs and prints one JSON line. Errors: a connection fails or stalls.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let measured = self.measure().await?;
        crate::output::line(&serde_json::to_string(&measured)?);
        Ok(())
    }

    async fn measure(&self) -> anyhow::Result<Measured> {
        let target: Arc<str> = self.target.as_str().into();
        let length = Duration::from_secs_f64(self.seconds);
        if self.scenario == Scenario::Idle {
            return idle(&target, self.connections, length).await;
        }
        if self.scenario == Scenario::Connect {
            // Thousands of connections a second would soon use up the ports of this pod's namespace: those of closed ones
            // may be used again after a second. Where that cannot be set, the kernel looks longer for free ones.
            let _ = std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
        }
        let started = Instant::now();
        let end = started + length;
        let mut workers = JoinSet::new();
        for _ in 0..self.connections {
            let target = target.clone();
            match self.scenario {
                Scenario::Bulk => workers.spawn(async move { bulk(&target, end).await }),
                Scenario::Echo => workers.spawn(async move { echo(&target, end).await }),
                Scenario::Connect | Scenario::Idle => workers.spawn(async move { connect(&target, end).await }),
            };
        }
        let mut sum = Measured::default();
        let mut latency = histogram()?;
        while let Some(worker) = workers.join_next().await {
            let (bytes, histogram) = worker??;
            sum.bytes += bytes;
            latency.add(histogram)?;
        }
        sum.seconds = started.elapsed().as_secs_f64();
        sum.exchanges = latency.len();
        sum.p50_us = latency.value_at_quantile(0.5);
        sum.p99_us = latency.value_at_quantile(0.99);
        Ok(sum)
    }
}

/// Latencies in µs, to three digits, up to what counts as a stall.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    let most = u64::try_from(STALL.as_micros()).unwrap_or(u64::MAX);
    Ok(Histogram::new_with_bounds(1, most, 3)?)
}

async fn open(target: &str, purpose: u8) -> anyhow::Result<TcpStream> {
    let connected = timeout(STALL, TcpStream::connect(target)).await;
    let mut stream = connected.context("connecting stalled")?.with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[purpose]).await?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, latency: &mut Histogram<u64>, since: Instant) -> anyhow::Result<()> {
    let mut message = [7; MESSAGE];
    let both = async {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await
    };
    timeout(STALL, both).await.context("an exchange stalled")??;
    latency.saturating_record(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
    Ok(())
}

async fn bulk(target: &str, end: Instant) -> anyhow::Result<(u64, Histogram<u64>)> {
    let mut stream = open(target, BULK).await?;
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0_u64;
    while Instant::now() < end {
        timeout(STALL, stream.write_all(&chunk)).await.context("bulk stalled")??;
        sent += chunk.len() as u64;
    }
    stream.shutdown().await?;
    let received = timeout(STALL, stream.read_u64()).await.context("the end of bulk stalled")??;
    if received != sent {
        bail!("{sent} bytes were sent and {received} arrived");
    }
    Ok((sent, histogram()?))
}

async fn echo(target: &str, end: Instant) -> anyhow::Result<(u64, Histogram<u64>)> {
    let mut stream = open(target, ECHO).await?;
    let mut latency = histogram()?;
    while Instant::now() < end {
        exchange(&mut stream, &mut latency, Instant::now()).await?;
    }
    Ok((latency.len() * MESSAGE as u64, latency))
}

async fn connect(target: &str, end: Instant) -> anyhow::Result<(u64, Histogram<u64>)> {
    let mut latency = histogram()?;
    while Instant::now() < end {
        let since = Instant::now();
        let mut stream = open(target, ECHO).await?;
        exchange(&mut stream, &mut latency, since).await?;
    }
    Ok((latency.len() * MESSAGE as u64, latency))
}

/// Opens the connections, proves each with one exchange, says so on a line of its own, and holds them.
async fn idle(target: &str, connections: usize, length: Duration) -> anyhow::Result<Measured> {
    let started = Instant::now();
    let mut open_ones = Vec::with_capacity(connections);
    let mut latency = histogram()?;
    for _ in 0..connections {
        let mut stream = open(target, ECHO).await?;
        exchange(&mut stream, &mut latency, Instant::now()).await?;
        open_ones.push(stream);
    }
    crate::output::line("{\"open\":true}");
    tokio::time::sleep(length).await;
    let exchanges = latency.len();
    Ok(Measured { seconds: started.elapsed().as_secs_f64(), exchanges, ..Measured::default() })
}

/// Puts pods that exist on paper only into the cluster directory, to measure what a large configuration costs.
#[derive(Debug, Args)]
pub(crate) struct Fill {
    /// How many.
    #[arg(long)]
    workloads: u32,
    /// The cluster directory.
    #[arg(long, env = "OBJECTS_DIR")]
    into: std::path::PathBuf,
}

impl Fill {
    /// Writes them, a file per thousand, and one service per ten.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let numbers: Vec<u32> = (0..self.workloads).collect();
        for (file, chunk) in numbers.chunks(1000).enumerate() {
            let mut items = Vec::new();
            for number in chunk {
                items.push(paper_pod(*number));
                if number % 10 == 0 {
                    items.push(paper_service(*number));
                }
            }
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
            let part = self.into.join(format!(".bench-{file}.part"));
            std::fs::write(&part, list.to_string())?;
            std::fs::rename(&part, self.into.join(format!("bench-{file}.json")))?;
        }
        Ok(())
    }
}

fn paper_pod(number: u32) -> serde_json::Value {
    let (high, middle, low) = (number / 62_500 + 64, number / 250 % 250, number % 250 + 1);
    let ip = format!("10.{high}.{middle}.{low}");
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("paper-{number}"), "namespace": "paper", "uid": format!("paper-{number}"),
            "labels": { "app": format!("paper-{}", number / 10) },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
        },
        "spec": {
            "nodeName": "paper-node", "serviceAccountName": format!("paper-{}", number / 10),
            "containers": [{ "name": "main", "command": ["true"] }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn paper_service(number: u32) -> serde_json::Value {
    let number = number / 10;
    let ip = format!("10.97.{}.{}", number / 250, number % 250 + 1);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("paper-{number}"), "namespace": "paper" },
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": format!("paper-{number}") },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}

/// The parts of `stillmesh bench-load`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Load {
    /// Serves every scenario.
    Server(Server),
    /// Measures one scenario.
    Client(Client),
    /// Puts pods that exist on paper only into the cluster directory.
    Fill(Fill),
}

impl Load {
    /// Runs the part.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Server(server) => server.run().await,
            Self::Client(client) => client.run().await,
            Self::Fill(fill) => fill.run(),
        }
    }
}
