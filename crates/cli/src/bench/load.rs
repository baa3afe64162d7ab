//! The two ends of the benchmark's traffic. A connection's first byte says what it is for.
//!
//! The client measures one load and prints JSON lines; whether its connections are raw or carried by a proxy is decided by
//! where its pod runs and whom it dials, not here. Both ends share the machine with the proxies that are measured: they are
//! plain threads and epoll, one system call per read and write.

mod closed;
mod fill;
mod open;
mod server;

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// The client sends bulk data until it ends its direction; the server answers with the number of bytes (8, big-endian).
const BULK: u8 = b'B';
/// The server sends back what comes.
const ECHO: u8 = b'E';
/// Size of a request and of a response, in bytes.
pub(super) const MESSAGE: usize = 64;
/// Size of one write in bulk, in bytes.
const CHUNK: usize = 128 << 10;
/// How long a single step (connect, exchange) may take before the run is called stalled.
const STALL: Duration = Duration::from_secs(20);
/// Time between two messages with the known word.
const PAUSE: u16 = 10;

/// The parts of `stillmesh bench-load`.
#[derive(Debug, Subcommand)]
pub(crate) enum Load {
    /// Serves every load.
    Server(server::Server),
    /// Measures one.
    Client(Client),
    /// Puts pods that exist on paper only into the cluster directory.
    Fill(fill::Fill),
}

impl Load {
    /// Runs the part.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Server(server) => server.run(),
            Self::Client(client) => client.run(),
            Self::Fill(fill) => fill.run(),
        }
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Bytes per second from client to server.
    Bulk,
    /// Each connection sends its next request when the last was answered.
    Closed,
    /// Requests are sent when they are due, whatever became of those before.
    Open,
    /// As `open`, first alone and then beside one stream of bulk.
    Mixed,
    /// New connections, one request each.
    Connect,
    /// One connection to each of others, one request each.
    Cold,
    /// Holds idle connections.
    Idle,
    /// New connections, one after the other, each counted as answered or refused.
    Probe,
    /// Sends a known word again and again.
    Word,
}

/// Measures one load.
///
/// It prints `{"ready":true}` when its connections are open, begins with a line on standard input, prints what it measured,
/// and closes its connections at the end of standard input.
#[derive(Clone, Debug, Args)]
pub(crate) struct Client {
    /// Host and port of the server.
    #[arg(long)]
    target: String,
    /// What to measure.
    #[arg(long)]
    shape: Shape,
    /// Connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Requests per second, of all connections together, where they are sent when due.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds to measure for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Hosts and ports of the others.
    #[arg(long, value_delimiter = ',')]
    others: Vec<String>,
    /// What ends a probe.
    #[arg(long, default_value = "end")]
    until: closed::Until,
    /// The word that is sent.
    #[arg(long, default_value = "word")]
    word: String,
}

/// What came out. Counters cover `seconds`; latencies are in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Wall time.
    pub(crate) seconds: f64,
    /// Application bytes carried one way.
    pub(crate) bytes: u64,
    /// Exchanges (requests, or connections with one request each).
    pub(crate) exchanges: u64,
    /// Latency of an exchange.
    pub(crate) latency: Latency,
    /// The same before a stream of bulk joined.
    pub(crate) alone: Option<Latency>,
    /// By how much requests were sent too late, at the 99th percentile: what the client itself adds.
    pub(crate) late_p99_us: Option<f64>,
    /// Connections of a probe that got no answer.
    pub(crate) refused: u64,
}

/// Percentiles, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Median.
    pub(crate) p50: f64,
    /// 90th.
    pub(crate) p90: f64,
    /// 99th.
    pub(crate) p99: f64,
    /// 99.9th.
    pub(crate) p999: f64,
    /// The longest.
    pub(crate) max: f64,
}

impl Latency {
    /// Of a histogram in ns.
    fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: times.max() as f64 / 1e3 }
    }
}

impl Client {
    /// Runs. Errors: a connection fails or stalls.
    fn run(self) -> anyhow::Result<()> {
        allow_descriptors();
        ensure!((0.0..=3600.0).contains(&self.seconds), "0 to 3600 seconds are accepted, not {}", self.seconds);
        let target = find(&self.target)?;
        let length = Duration::from_secs_f64(self.seconds);
        let connections = usize::try_from(self.connections)?;
        match self.shape {
            Shape::Bulk => closed::bulk(target, connections, length),
            Shape::Closed => closed::requests(target, connections, length),
            Shape::Connect => closed::connect(target, connections, length),
            Shape::Cold => {
                let others = self.others.iter().map(|other| find(other)).collect::<anyhow::Result<Vec<_>>>()?;
                closed::cold(target, &others, connections)
            }
            Shape::Probe => closed::probe(target, self.until, length),
            Shape::Open => open::run(target, connections, self.rate, length),
            Shape::Mixed => open::beside_bulk(target, connections, self.rate, length),
            Shape::Idle => idle(target, connections),
            Shape::Word => say(target, &self.word),
        }
    }
}

fn find(target: &str) -> anyhow::Result<SocketAddr> {
    let mut found = target.to_socket_addrs().with_context(|| format!("find {target}"))?;
    found.next().with_context(|| format!("{target} has no address"))
}

/// Says that all is open, and waits to be told to begin.
fn ready() -> anyhow::Result<()> {
    crate::output::line("{\"ready\":true}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(())
}

/// Says what was measured, and waits until that was read: what closing costs is not measured.
fn done(measured: &Measured) -> anyhow::Result<()> {
    crate::output::line(&serde_json::to_string(measured)?);
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// As many connections as the kernel lets this process have.
fn allow_descriptors() {
    // What cannot be raised shows when it is needed.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Latencies in ns, to three digits, up to what counts as a stall.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, nanoseconds(STALL), 3)?)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Connects. Each step on the connection fails when it takes longer than [`STALL`].
fn dial(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_read_timeout(Some(STALL))?;
    // It bounds connecting, too (socket(7)).
    socket.set_write_timeout(Some(STALL))?;
    socket.connect(&target.into()).with_context(|| format!("connect to {target}"))?;
    Ok(socket.into())
}

/// A connection on which requests are answered; the first one was.
fn warm(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = dial(target)?;
    stream.set_nodelay(true)?;
    first_exchange(&mut stream)?;
    Ok(stream)
}

fn first_exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut message = [ECHO; MESSAGE + 1];
    stream.write_all(&message).context("send the first request")?;
    let answer = message.get_mut(1..).context("a message")?;
    stream.read_exact(answer).context("the first answer did not come")
}

/// Holds connections, each proved by one exchange.
fn idle(target: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let held = (0..connections).map(|_| warm(target)).collect::<anyhow::Result<Vec<_>>>()?;
    ready()?;
    let measured = Measured {
        seconds: started.elapsed().as_secs_f64(),
        exchanges: u64::try_from(held.len())?,
        ..Measured::default()
    };
    done(&measured)
}

/// Sends the word until standard input ends.
fn say(target: SocketAddr, word: &str) -> anyhow::Result<()> {
    let mut stream = warm(target)?;
    crate::output::line("{\"ready\":true}");
    let mut answer = vec![0; word.len()];
    let stdin = std::io::stdin();
    loop {
        stream.write_all(word.as_bytes())?;
        stream.read_exact(&mut answer)?;
        ensure!(answer == word.as_bytes(), "another word came back");
        let mut ended = [PollFd::new(std::os::fd::AsFd::as_fd(&stdin), PollFlags::POLLIN)];
        if poll(&mut ended, PollTimeout::from(PAUSE))? > 0 {
            return Ok(());
        }
    }
}
