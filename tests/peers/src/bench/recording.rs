//! What records of decisions and flows cost: one waypoint that keeps them and keeps none in turns of some 15 ms, on the same connections.
//! Turns and not single requests: what recording costs others, by the thread that writes and the caches that it empties, is of the cost, too. The load
//! stops for each switch, so that every request belongs to one turn. Which side is first is drawn by lot, and so is how long a turn
//! lasts: nothing that comes regularly, as that records are written by the batch, meets one side more often.
//!
//! A round is four turns of one load, a closed loop or a fixed rate: with and without, without and with, or the other way round, and
//! gives one ratio of each figure. Two rounds are left out, with both of their sides, where others had the machine: latencies are not looked at for that.
//! The waypoint is started anew several times, since where a process's memory happens to lie may make a difference; each time its ring is filled first,
//! as it is for all of a process's life but its first minutes. After each start it is known
//! better how many rounds are needed ([`Plan`]); no more are measured, and for no longer than was allowed. What the ratios come to: `paired`. The
//! load is of requests that are alike: one route, one service, one client. With `--same` records are kept always, and there must be no difference.

use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_records::{DEFAULT_BUDGET, FlowsAnswer, Hop};
use stillmesh_waypoint_tests::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load::{self, Connection, Measured, Target};
use super::paired::{Figure, Named, PROMISED, Verdict, Worse};
use super::process::{Idle, cpu_seconds};
use super::proxies::{self, HBONE, Proxy};
use super::{one_route, publish};
use crate::differential::chance::Chance;

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Records are kept always: what is found then is the measurement's own error.
    #[arg(long)]
    same: bool,
    /// How often the waypoint is started; each start measures as long as the others at most.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    starts: u16,
    /// Minutes of all starts at most, without those that fill rings.
    #[arg(long, default_value_t = 9.0)]
    minutes: f64,
    /// Milliseconds of a turn, a quarter more or less.
    #[arg(long, default_value_t = 15)]
    turn: u64,
    /// Connections that load comes from.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests a second for latencies.
    #[arg(long, default_value_t = 3500)]
    rate: usize,
    /// What others may take of the machine in a round that counts, percent.
    #[arg(long, default_value_t = 10.0)]
    foreign: f64,
}

/// Keeps as much as it does where nothing is said. Connections live as long as the measurement.
const SETTINGS: &[(&str, &str)] = &[("CLIENT_CONNECTION_AGE", "0s")];
/// What switches records on and off.
const SWITCH: [&str; 2] = ["on", "off"];
/// As long nothing is counted: the allocator, the clients' windows.
const WARM: Duration = Duration::from_secs(1);
/// More records than the ring holds: one takes more than so many bytes of its budget.
const FULL: usize = DEFAULT_BUDGET / 96;
/// Filled by turns of this.
const FILLING: Duration = Duration::from_millis(250);
/// The two loads, as [`Rounds`] have them.
const CLOSED: usize = 0;
const FIXED: usize = 1;
/// As many figures, the first ones, are promised.
const PROMISED_FIGURES: usize = 3;
/// How far intervals may go to either side, so that a cost of 0.6 % is told from one of 1 %.
const AWAY: f64 = 0.4 * PROMISED;

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

/// What came of one side in the turns of a round, with records or without.
#[derive(Debug, Default)]
struct Side {
    /// Of requests.
    per_second: f64,
    /// CPU of the waypoint, of a request.
    cpu_us: f64,
    median_us: f64,
    p99_us: f64,
}

/// With records and without.
type Round = [Side; 2];

/// Rounds of a closed loop, and rounds at a fixed rate.
#[derive(Debug, Default)]
struct Rounds {
    of: [Vec<Round>; 2],
    left_out: usize,
}

/// Measures.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let time = Duration::try_from_secs_f64(args.minutes * 60.0 / f64::from(args.starts));
    let time = time.with_context(|| format!("--minutes {}", args.minutes))?;
    let requests = args.rate as f64 * args.turn as f64 * 2.0 / 1000.0;
    ensure!(requests >= 100.0, "--rate and --turn: {requests} requests in two turns are too few for a 99th percentile");
    let mut world = World::new().await;
    let mut backend = world.workload("one");
    backend.tunnel_protocol = TunnelProtocol::None;
    let at = SocketAddr::new(*backend.addresses.first().context("an address")?, 8080);
    load::backend(at, Duration::ZERO, &world.tasks).await?;
    world.service("one", "10.2.0.1", 1, &[&backend]);
    let routes = one_route();
    let to = world.service(&routes.service, "10.1.0.1", 1, &[&backend]);
    publish(&world, &routes);
    let (mut rounds, target) = (Rounds::default(), Target { to, paths: 1 });
    let (mut chance, mut plan) = (Chance::new(1), Plan { needed: [usize::MAX; 2], closed: 0.5 });
    for start in 0..args.starts {
        let mut measuring = Measuring::start(&args, &world, target, start).await?;
        let begin = Instant::now();
        while begin.elapsed() < WARM {
            measuring.rounds(&args, None, &mut chance, target, &world).await?;
        }
        let goal = plan.goal(rounds.counted(), usize::from(args.starts - start));
        while begin.elapsed() < WARM + time
            && let Some(load) = plan.next(rounds.counted(), goal)
        {
            let rate = (load == FIXED).then_some(args.rate);
            match measuring.rounds(&args, rate, &mut chance, target, &world).await? {
                Some(two) => rounds.of[load].extend(two),
                None => rounds.left_out += 2,
            }
        }
        measuring.end().await?;
        let possible = rounds.counted().iter().sum::<usize>() * usize::from(args.starts) / usize::from(start + 1);
        plan = Plan::by(&rounds.figures(), possible);
        if start == 0 {
            plan.tell(possible);
        }
    }
    told(&args, &rounds)
}

impl Measuring {
    async fn start(args: &Args, world: &World, target: Target, start: u16) -> anyhow::Result<Self> {
        // Ports of their own: those of the start before may be closing.
        let port = HBONE + 10 * start;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
        let told = admin.to_string();
        let settings: Vec<_> = SETTINGS.iter().copied().chain([("ADMIN_ADDRESS", told.as_str())]).collect();
        let own = std::env::current_exe()?;
        let mut proxy = proxies::waypoint(&own, &["switched"], world, target.to, port, &settings).await?;
        let mut connections = load::open(&proxy.client, target, args.connections).await?;
        let mut filled = 0;
        while filled < FULL {
            filled += load::drive(&mut connections, target, None, FILLING, &world.tasks).await?.requests;
        }
        proxy.tell(SWITCH[1]).await?;
        let kept = flows(admin).await?;
        Ok(Self { proxy, admin, connections, kept })
    }

    /// A round, of a closed loop or at a fixed rate, and another one. `None`: others had too much of the machine.
    async fn rounds(
        &mut self,
        args: &Args,
        rate: Option<usize>,
        chance: &mut Chance,
        target: Target,
        world: &World,
    ) -> anyhow::Result<Option<[Round; 2]>> {
        let pids = [std::process::id(), self.proxy.pid];
        let own = || pids.into_iter().map(cpu_seconds).sum::<anyhow::Result<f64>>();
        let (begin, idle_before, own_before) = (Instant::now(), Idle::now()?, own()?);
        let mut rounds: [Round; 2] = Default::default();
        for round in &mut rounds {
            let mut sides: [(Measured, f64); 2] = Default::default();
            let first = chance.below(2);
            for side in [first, 1 - first, 1 - first, first] {
                let is_kept = side == 0 || args.same;
                self.proxy.tell(SWITCH[usize::from(!is_kept)]).await?;
                let before = cpu_seconds(self.proxy.pid)?;
                let time = Duration::from_micros(args.turn * (750 + chance.below(501) as u64));
                let measured = load::drive(&mut self.connections, target, rate, time, &world.tasks).await?;
                self.kept += if is_kept { measured.requests } else { 0 };
                let (sum, cpu) = &mut sides[side];
                sum.add(measured);
                *cpu += cpu_seconds(self.proxy.pid)? - before;
            }
            *round = sides.map(Side::of);
        }
        let all = begin.elapsed().as_secs_f64() * idle_before.cpus as f64;
        let foreign = all - (Idle::now()?.seconds - idle_before.seconds) - (own()? - own_before);
        Ok((foreign / all * 100.0 <= args.foreign).then_some(rounds))
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

impl Side {
    fn of((measured, cpu): (Measured, f64)) -> Self {
        Self {
            per_second: measured.requests as f64 / measured.seconds,
            cpu_us: cpu * 1e6 / measured.requests as f64,
            median_us: measured.percentile(50.0),
            p99_us: measured.percentile(99.0),
        }
    }
}

impl Rounds {
    fn counted(&self) -> [usize; 2] {
        self.of.each_ref().map(Vec::len)
    }

    /// What they come to.
    fn figures(&self) -> [Figure; 5] {
        let figure = |what, unit, worse, load: usize, of: fn(&Side) -> f64| {
            Figure::new(Named { what, unit, worse }, self.of[load].iter().map(|round| round.each_ref().map(of)))
        };
        let cpu = |side: &Side| side.cpu_us;
        [
            figure("requests, closed loop", "per s", Worse::Smaller, CLOSED, |side| side.per_second),
            figure("median at a fixed rate", "µs", Worse::Greater, FIXED, |side| side.median_us),
            figure("p99 at a fixed rate", "µs", Worse::Greater, FIXED, |side| side.p99_us),
            figure("CPU of a request, closed loop", "µs", Worse::Greater, CLOSED, cpu),
            figure("CPU of a request, fixed rate", "µs", Worse::Greater, FIXED, cpu),
        ]
    }
}

/// How much is to be measured.
#[derive(Debug, PartialEq)]
struct Plan {
    /// As many rounds of either load make intervals of [`AWAY`].
    needed: [usize; 2],
    /// The part of all rounds that is of a closed loop.
    closed: f64,
}

impl Plan {
    /// By what was measured so far; `possible`: as many rounds as there is time for, in all. It goes by how wide intervals are and not by where,
    /// which would favour what one hopes for.
    fn by(figures: &[Figure; 5], possible: usize) -> Self {
        let needed = figures.each_ref().map(|figure| figure.rounds_for(AWAY).unwrap_or(usize::MAX));
        let [throughput, median, p99, ..] = needed;
        Self::of([throughput, median.max(p99)], possible)
    }

    /// Where there is no time for all, a closed loop has half of it at most.
    fn of(needed: [usize; 2], possible: usize) -> Self {
        let [closed, fixed] = needed;
        let closed = closed.min((possible / 2).max(possible.saturating_sub(fixed)));
        let fixed = fixed.min(possible - closed);
        Self { needed, closed: if closed + fixed > 0 { closed as f64 / (closed + fixed) as f64 } else { 0.5 } }
    }

    /// Up to where a start measures that is the first of `starts`, `counted` having been measured before.
    fn goal(&self, counted: [usize; 2], starts: usize) -> [usize; 2] {
        [0, 1]
            .map(|load| counted[load].saturating_add(self.needed[load].saturating_sub(counted[load]).div_ceil(starts)))
    }

    /// Which load has the next round. `None`: the goal is reached.
    fn next(&self, counted: [usize; 2], goal: [usize; 2]) -> Option<usize> {
        let is_open = [0, 1].map(|load| counted[load] < goal[load]);
        let is_behind = (counted[CLOSED] as f64) < self.closed * counted.iter().sum::<usize>() as f64;
        match is_open {
            [true, true] => Some(if is_behind { CLOSED } else { FIXED }),
            [true, false] => Some(CLOSED),
            [false, true] => Some(FIXED),
            [false, false] => None,
        }
    }

    fn tell(&self, possible: usize) {
        let [closed, fixed] = self
            .needed
            .map(|rounds| if rounds == usize::MAX { "nobody knows how many".to_owned() } else { rounds.to_string() });
        println!(
            "intervals of ±{:.1} % take {closed} rounds of a closed loop and {fixed} at a fixed rate, by the first start; there is time for {possible}",
            AWAY * 100.0
        );
    }
}

/// Says what was found. Errors where recording costs more than it may, where that cannot be said, and where the measurement is wrong.
fn told(args: &Args, rounds: &Rounds) -> anyhow::Result<()> {
    let figures = rounds.figures();
    let (with, without) = if args.same { ("one", "the other") } else { ("with records", "without") };
    println!("{:<32} {:>6} {with:>13} {without:>10} {:>7}   95 % interval", "", "", "ratio");
    for figure in &figures {
        let words = match (args.same, figure.is_none()) {
            (false, _) => figure.verdict().as_str(),
            (true, true) => "no difference",
            (true, false) => "a DIFFERENCE",
        };
        let (Named { what, unit, .. }, [with, without], [low, high]) = (figure.named, figure.of(), figure.interval());
        let ratio = figure.ratio();
        println!("{what:<32} {unit:>6} {with:>13.2} {without:>10.2} {ratio:>7.4}   {low:.4} … {high:.4}   {words}");
    }
    let ([closed, fixed], left_out) = (rounds.counted(), rounds.left_out);
    println!("{closed} rounds of a closed loop and {fixed} at a fixed rate count");
    println!("{left_out} are left out: others had more than {} % of the machine", args.foreign);
    let rows: Vec<_> = figures.iter().map(Figure::json).collect();
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
    let promised = &figures[..PROMISED_FIGURES];
    let of =
        |verdict| promised.iter().filter(move |figure| figure.verdict() == verdict).map(|figure| figure.named.what);
    let list = |verdict| of(verdict).collect::<Vec<_>>().join(", ");
    ensure!(of(Verdict::Broken).count() == 0, "recording costs more than 1 % of: {}", list(Verdict::Broken));
    let open = list(Verdict::Unknown);
    ensure!(
        open.is_empty(),
        "whether recording costs less than 1 % cannot be said of: {open}; more minutes or a calmer machine would tell"
    );
    println!("VERDICT: recording costs less than 1 % of throughput and latency");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_has_what_it_needs_and_half_of_the_time_at_most() {
        for (needed, possible, closed) in [
            ([10, 30], 100, 0.25),
            ([80, 20], 100, 0.8),
            ([80, 30], 100, 0.7),
            ([80, 90], 100, 0.5),
            ([30, usize::MAX], 100, 0.3),
            ([usize::MAX; 2], 0, 0.5),
        ] {
            assert_eq!(Plan::of(needed, possible), Plan { needed, closed }, "{needed:?}");
        }
    }

    #[test]
    fn each_start_has_its_share_of_what_is_needed_and_loads_take_turns() {
        let plan = Plan::of([8, 20], 100);
        let goal = plan.goal([2, 2], 3);
        assert_eq!(goal, [4, 8]);
        let (mut counted, mut order) = ([2, 2], Vec::new());
        while let Some(load) = plan.next(counted, goal) {
            counted[load] += 1;
            order.push(load);
        }
        assert_eq!((counted, order.as_slice()), (goal, &[1, 1, 1, 1, 0, 1, 1, 0][..]));
        assert_eq!(plan.goal([9, 19], 1), [9, 20]);
        assert_eq!(Plan::of([usize::MAX; 2], 0).goal([5, 5], 1), [usize::MAX; 2]);
    }
}
