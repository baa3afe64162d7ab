//! What records of decisions and flows cost: a waypoint that keeps them and one that keeps neither, both alive, asked in turns of a
//! fraction of a second. A round is four slices, with and without, without and with, so that a drift of the machine favours neither, and
//! gives one ratio of each figure. Rounds in which others had the machine are left out. Both are started anew many times, since where a process's
//! memory happens to lie makes a difference too: what is told is the median of the starts' ratios, and where it is for all that is known
//! ([`Figure`]). The load is of requests that are alike: one route, one service, one client.
//! With `--same` neither keeps records, and there must be no difference.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_waypoint_tests::World;

use super::load::{self, Connection, Measured, Target};
use super::paired::{Figure, Verdict, Worse};
use super::process::{busy_seconds, cpu_seconds};
use super::proxies::{self, HBONE, Proxy};
use super::{one_route, publish};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The waypoint, built as for the image.
    #[arg(long)]
    waypoint: PathBuf,
    /// Neither keeps records: what is found then is the measurement's own error.
    #[arg(long)]
    same: bool,
    /// How often both are started.
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// Rounds of each start. A round takes eight slices: four of a closed loop, four at a fixed rate.
    #[arg(long, default_value_t = 10)]
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

/// What keeps as much as it does where nothing is said. Connections live as long as the measurement.
const WITH: &[(&str, &str)] = &[("CLIENT_CONNECTION_AGE", "0s")];
/// What keeps nothing.
const WITHOUT: &[(&str, &str)] =
    &[("CLIENT_CONNECTION_AGE", "0s"), ("DECISION_RECORDS_MEMORY", "0"), ("FLOWS_MEMORY", "0")];

/// One of the two, with connections that stay open.
struct Side {
    proxy: Proxy,
    connections: Vec<Connection>,
}

/// What a side came to in the slices of a round.
#[derive(Default)]
struct Sum {
    measured: Measured,
    cpu: f64,
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
    let mut figures = [
        Figure::new("requests, closed loop", "per s", Worse::Smaller),
        Figure::new("median at a fixed rate", "µs", Worse::Greater),
        Figure::new("p99 at a fixed rate", "µs", Worse::Greater),
        Figure::new("CPU of a request, closed loop", "µs", Worse::Greater),
        Figure::new("CPU of a request, fixed rate", "µs", Worse::Greater),
    ];
    let (mut left_out, target) = (0, Target { to, paths: 1 });
    for start in 0..args.starts {
        let mut sides = start_both(&args, &world, target, start).await?;
        figures.iter_mut().for_each(|figure| figure.starts.push(Vec::new()));
        // The first round warms up: tables of names, the allocator, the clients' windows.
        for round in 0..=args.rounds {
            let first = (round + start) % 2;
            match one_round(&args, &mut sides, first, target, &world).await? {
                _ if round == 0 => {}
                Some(values) => {
                    let starts = figures.iter_mut().filter_map(|figure| figure.starts.last_mut());
                    starts.zip(values).for_each(|(rounds, value)| rounds.push(value));
                }
                None => left_out += 1,
            }
        }
        for side in sides {
            side.proxy.stop().await?;
        }
    }
    told(&args, &figures, left_out)
}

/// Starts both, the second first every other time.
async fn start_both(args: &Args, world: &World, target: Target, start: usize) -> anyhow::Result<[Side; 2]> {
    let side = async |index: usize| {
        // Ports of their own: those of the start before may be closing.
        let port = HBONE + 10 * u16::try_from(2 * start + index)?;
        let more = if index == 1 || args.same { WITHOUT } else { WITH };
        let proxy = proxies::waypoint(&args.waypoint, world, target.to, port, more).await?;
        let connections = load::open(&proxy.client, target, args.connections).await?;
        anyhow::Ok(Side { proxy, connections })
    };
    if start.is_multiple_of(2) {
        let with = side(0).await?;
        Ok([with, side(1).await?])
    } else {
        let without = side(1).await?;
        Ok([side(0).await?, without])
    }
}

/// One round: the values of each figure, with records and without. `None`: others had too much of the machine.
async fn one_round(
    args: &Args,
    sides: &mut [Side; 2],
    first: usize,
    target: Target,
    world: &World,
) -> anyhow::Result<Option<[[f64; 2]; 5]>> {
    let Some(closed) = four_slices(args, sides, first, target, None, world).await? else { return Ok(None) };
    let Some(fixed) = four_slices(args, sides, first, target, Some(args.rate), world).await? else { return Ok(None) };
    let cpu = |sum: &Sum| sum.cpu * 1e6 / sum.measured.requests.max(1) as f64;
    Ok(Some([
        closed.each_ref().map(|sum| sum.measured.requests as f64 / sum.measured.seconds),
        fixed.each_ref().map(|sum| sum.measured.percentile(50.0)),
        fixed.each_ref().map(|sum| sum.measured.percentile(99.0)),
        closed.each_ref().map(cpu),
        fixed.each_ref().map(cpu),
    ]))
}

async fn four_slices(
    args: &Args,
    sides: &mut [Side; 2],
    first: usize,
    target: Target,
    rate: Option<usize>,
    world: &World,
) -> anyhow::Result<Option<[Sum; 2]>> {
    let mut sums: [Sum; 2] = Default::default();
    let pids = [std::process::id(), sides[0].proxy.pid, sides[1].proxy.pid];
    let own = || pids.into_iter().map(cpu_seconds).sum::<anyhow::Result<f64>>();
    let begin = tokio::time::Instant::now();
    let (busy_before, own_before) = (busy_seconds()?, own()?);
    for index in [first, 1 - first, 1 - first, first] {
        let (side, sum) = (&mut sides[index], &mut sums[index]);
        let before = cpu_seconds(side.proxy.pid)?;
        let time = Duration::from_millis(args.slice);
        let measured = load::drive(&mut side.connections, target, rate, time, &world.tasks).await?;
        sum.cpu += cpu_seconds(side.proxy.pid)? - before;
        sum.measured.add(measured);
    }
    let all = begin.elapsed().as_secs_f64() * std::thread::available_parallelism()?.get() as f64;
    let foreign = (busy_seconds()? - busy_before) - (own()? - own_before);
    Ok((foreign / all * 100.0 <= args.foreign).then_some(sums))
}

/// Says what was found. Errors where recording costs more than it may, where that cannot be said, and where the measurement is wrong.
fn told(args: &Args, figures: &[Figure], left_out: usize) -> anyhow::Result<()> {
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
    let counted = figures.first().map_or(0, Figure::rounds);
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
        "whether recording costs less than 1 % cannot be said of: {open}; more starts or a calmer machine would tell"
    );
    println!("VERDICT: recording costs less than 1 % of throughput and latency");
    Ok(())
}
