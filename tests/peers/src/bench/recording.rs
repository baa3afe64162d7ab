//! What records of decisions and flows cost: one waypoint that keeps them and keeps none in turns of a fraction of a second, on the
//! same connections. A round is eight slices, with and without, without and with, so that a drift of the machine favours neither, and
//! gives one ratio of each figure; those of the 99th percentile are of [`BLOCK`] rounds each, since a round has too few requests for one. Rounds
//! in which others had the machine are left out. The waypoint is started anew a few times, since where a process's memory happens to lie may make
//! a difference. What is told is the middle of the ratios, and where it is for all that is known ([`Figure`]). The load is of requests that are alike: one route, one service, one client.
//! With `--same` records are kept always, and there must be no difference.

use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_records::{FlowsAnswer, Hop};
use stillmesh_waypoint_tests::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load::{self, Connection, Measured, Target};
use super::paired::{Figure, Verdict, Worse};
use super::process::{busy_seconds, cpu_seconds};
use super::proxies::{self, HBONE, Proxy};
use super::{one_route, publish};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Records are kept always: what is found then is the measurement's own error.
    #[arg(long)]
    same: bool,
    /// How often the waypoint is started.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Rounds of each start. A round takes eight slices: four of a closed loop, four at a fixed rate.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Milliseconds of a slice.
    #[arg(long, default_value_t = 100)]
    slice: u64,
    /// Connections that load comes from.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests a second for latencies.
    #[arg(long, default_value_t = 2000)]
    rate: usize,
    /// What others may take of the machine in a round that counts, percent.
    #[arg(long, default_value_t = 10.0)]
    foreign: f64,
}

/// Keeps as much as it does where nothing is said. Connections live as long as the measurement.
const SETTINGS: &[(&str, &str)] = &[("CLIENT_CONNECTION_AGE", "0s")];
/// As many rounds have the requests of one 99th percentile.
const BLOCK: usize = 8;
/// What switches records on and off.
const SWITCH: [&str; 2] = ["on", "off"];

/// The waypoint, with connections that stay open.
struct Measuring {
    proxy: Proxy,
    admin: SocketAddr,
    connections: Vec<Connection>,
    /// Requests that there must be records of.
    kept: usize,
}

/// A waypoint that is told by its standard input when to keep records and when not; it repeats what it did.
pub fn switched() -> anyhow::Result<()> {
    std::thread::spawn(|| {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            stillmesh_records::pause(line == SWITCH[1]);
            println!("{line}");
            drop(std::io::stdout().flush());
        }
    });
    stillmesh_waypoint::main()
}

/// What came of either in the slices of a round.
#[derive(Default)]
struct Sum {
    measured: Measured,
    cpu: f64,
}

/// What came of one round, with records and without.
struct Round {
    closed: [Sum; 2],
    fixed: [Sum; 2],
}

/// Measures.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut world = World::new().await;
    let mut backend = world.workload("one");
    backend.tunnel_protocol = TunnelProtocol::None;
    let at = SocketAddr::new(*backend.addresses.first().context("an address")?, 8080);
    load::backend(at, Duration::ZERO, &world.tasks).await?;
    world.service("one", "10.2.0.1", 1, &[&backend]);
    let routes = one_route();
    let to = world.service(&routes.service, "10.1.0.1", 1, &[&backend]);
    publish(&world, &routes);
    let (mut rounds, mut left_out, target) = (Vec::new(), 0, Target { to, paths: 1 });
    for start in 0..args.starts {
        let mut measuring = Measuring::start(&args, &world, target, start).await?;
        // The first round warms up: tables of names, the allocator, the clients' windows.
        for round in 0..=args.rounds {
            let first = (round + start) % 2;
            match measuring.round(&args, first, target, &world).await? {
                _ if round == 0 => {}
                Some(counted) => rounds.push(counted),
                None => left_out += 1,
            }
        }
        measuring.end().await?;
    }
    told(&args, &rounds, left_out)
}

impl Measuring {
    async fn start(args: &Args, world: &World, target: Target, start: usize) -> anyhow::Result<Self> {
        // Ports of their own: those of the start before may be closing.
        let port = HBONE + 10 * u16::try_from(start)?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
        let told = admin.to_string();
        let settings: Vec<_> = SETTINGS.iter().copied().chain([("ADMIN_ADDRESS", told.as_str())]).collect();
        let own = std::env::current_exe()?;
        let mut proxy = proxies::waypoint(&own, &["switched"], world, target.to, port, &settings).await?;
        let connections = load::open(&proxy.client, target, args.connections).await?;
        proxy.tell(SWITCH[1]).await?;
        let kept = flows(admin).await?;
        Ok(Self { proxy, admin, connections, kept })
    }

    /// One round. `None`: others had too much of the machine.
    async fn round(
        &mut self,
        args: &Args,
        first: usize,
        target: Target,
        world: &World,
    ) -> anyhow::Result<Option<Round>> {
        let closed = self.slices(args, first, target, None, world).await?;
        let fixed = self.slices(args, first, target, Some(args.rate), world).await?;
        Ok(closed.zip(fixed).map(|(closed, fixed)| Round { closed, fixed }))
    }

    async fn slices(
        &mut self,
        args: &Args,
        first: usize,
        target: Target,
        rate: Option<usize>,
        world: &World,
    ) -> anyhow::Result<Option<[Sum; 2]>> {
        let mut sums: [Sum; 2] = Default::default();
        let pids = [std::process::id(), self.proxy.pid];
        let own = || pids.into_iter().map(cpu_seconds).sum::<anyhow::Result<f64>>();
        let begin = tokio::time::Instant::now();
        let (busy_before, own_before) = (busy_seconds()?, own()?);
        for index in [first, 1 - first, 1 - first, first] {
            let is_kept = index == 0 || args.same;
            self.proxy.tell(SWITCH[usize::from(!is_kept)]).await?;
            let before = cpu_seconds(self.proxy.pid)?;
            let time = Duration::from_millis(args.slice);
            let measured = load::drive(&mut self.connections, target, rate, time, &world.tasks).await?;
            let sum = &mut sums[index];
            sum.cpu += cpu_seconds(self.proxy.pid)? - before;
            self.kept += if is_kept { measured.requests } else { 0 };
            sum.measured.add(measured);
        }
        let all = begin.elapsed().as_secs_f64() * std::thread::available_parallelism()?.get() as f64;
        let foreign = (busy_seconds()? - busy_before) - (own()? - own_before);
        Ok((foreign / all * 100.0 <= args.foreign).then_some(sums))
    }

    /// Ends it. Errors where there are not as many records as there must be.
    async fn end(self) -> anyhow::Result<()> {
        let kept = flows(self.admin).await?;
        ensure!(kept == self.kept, "{kept} requests were recorded, and not {}", self.kept);
        self.proxy.stop().await
    }
}

/// How many requests a waypoint has counted in its flows.
async fn flows(admin: SocketAddr) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect(admin).await.context("the admin port")?;
    stream.write_all(b"GET /flows HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split_once("\r\n\r\n").context("no body")?.1;
    let answer: FlowsAnswer = serde_json::from_str(body).with_context(|| format!("flows: {body}"))?;
    let requests = answer.flows.iter().filter(|flow| flow.hop == Hop::Request).map(|flow| flow.count);
    Ok(usize::try_from(requests.sum::<u64>())?)
}

/// What the rounds come to.
fn figures(rounds: &[Round]) -> [Figure; 5] {
    let figure = |what, unit, worse, of: &dyn Fn(&Round) -> [f64; 2]| Figure {
        what,
        unit,
        worse,
        rounds: rounds.iter().map(of).collect(),
    };
    let cpu = |sums: &[Sum; 2]| sums.each_ref().map(|sum| sum.cpu * 1e6 / sum.measured.requests.max(1) as f64);
    let rate = |round: &Round| round.closed.each_ref().map(|sum| sum.measured.requests as f64 / sum.measured.seconds);
    let late = |block: &[Round]| {
        [0, 1].map(|index| {
            let mut all = Measured::default();
            block.iter().for_each(|round| all.add(round.fixed[index].measured.clone()));
            all.percentile(99.0)
        })
    };
    [
        figure("requests, closed loop", "per s", Worse::Smaller, &rate),
        figure("median at a fixed rate", "µs", Worse::Greater, &|round| {
            round.fixed.each_ref().map(|sum| sum.measured.percentile(50.0))
        }),
        Figure {
            what: "p99 at a fixed rate",
            unit: "µs",
            worse: Worse::Greater,
            rounds: rounds.chunks_exact(BLOCK).map(late).collect(),
        },
        figure("CPU of a request, closed loop", "µs", Worse::Greater, &|round| cpu(&round.closed)),
        figure("CPU of a request, fixed rate", "µs", Worse::Greater, &|round| cpu(&round.fixed)),
    ]
}

/// Says what was found. Errors where recording costs more than it may, where that cannot be said, and where the measurement is wrong.
fn told(args: &Args, rounds: &[Round], left_out: usize) -> anyhow::Result<()> {
    let figures = figures(rounds);
    let (with, without) = if args.same { ("one", "the other") } else { ("with records", "without") };
    println!("{:<32} {:>6} {with:>13} {without:>10} {:>7}   99 % interval", "", "", "ratio");
    let rows: Vec<_> = figures.iter().map(Figure::json).collect();
    for (figure, row) in figures.iter().zip(&rows) {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let [low, high] = figure.interval();
        let words = match (args.same, figure.is_none()) {
            (false, _) => figure.verdict().as_str(),
            (true, true) => "no difference",
            (true, false) => "a DIFFERENCE",
        };
        let (what, unit, ratio) = (figure.what, figure.unit, figure.ratio());
        println!(
            "{what:<32} {unit:>6} {:>13.2} {:>10.2} {ratio:>7.4}   {low:.4} … {high:.4}   {words}",
            number("with"),
            number("without")
        );
    }
    let counted = rounds.len();
    println!("{counted} rounds count, {left_out} are left out: others had more than {} % of the machine", args.foreign);
    println!("{}", json!({ "same": args.same, "left_out": left_out, "figures": rows }));
    if args.same {
        ensure!(
            figures.iter().all(Figure::is_none),
            "two that are the same differ: the measurement is wrong, or its luck was bad"
        );
        println!("VERDICT: two that are the same do not differ");
        return Ok(());
    }
    // CPU is told, and not promised: throughput and latency are.
    let promised = &figures[..3];
    let of = |verdict| promised.iter().filter(move |figure| figure.verdict() == verdict).map(|figure| figure.what);
    let list = |verdict| of(verdict).collect::<Vec<_>>().join(", ");
    ensure!(of(Verdict::Broken).count() == 0, "recording costs more than 1 % of: {}", list(Verdict::Broken));
    let open = list(Verdict::Unknown);
    ensure!(
        open.is_empty(),
        "whether recording costs less than 1 % cannot be said of: {open}; more rounds or a calmer machine would tell"
    );
    println!("VERDICT: recording costs less than 1 % of throughput and latency");
    Ok(())
}
