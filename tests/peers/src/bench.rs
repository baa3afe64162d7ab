//! The waypoint beside Envoy in one run, in alternating rounds: requests a second, latency at a fixed rate, CPU, memory, and how
//! soon a changed route counts. Only ratios within a run mean anything: the machine's own speed drifts. Both get HBONE and send in clear. Both
//! write an access log to nowhere, each in its own words, or both write none.

pub mod load;
mod paired;
mod process;
mod proxies;
pub mod recording;
mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::access::{
    Alternative, Condition, PathNormalization, PathPattern, RequestAction, RequestClause, RequestPolicy, RequestRule,
    Sense, Wanted,
};
use stillmesh_core::model::http::{
    Forward, HeaderMatch, HttpRoute, PathMatch, RequestMatch, Respond, Retry, RetryOn, RouteAction, RouteKey,
    RouteKind, RouteParent, RouteRule, TextMatch,
};
use stillmesh_core::model::{StringMatch, TunnelProtocol};
use stillmesh_core::snapshot::Change;
use stillmesh_waypoint_tests::routes::{forward, path, rule, to};
use stillmesh_waypoint_tests::{World, access};
use tokio::time::Instant;

use crate::differential::table::Table;
use load::{Connection, Target};
use proxies::{Log, Proxy};
use report::{Budgets, Report};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Envoy.
    #[arg(long)]
    envoy: PathBuf,
    /// The waypoint, built as for the image.
    #[arg(long)]
    waypoint: PathBuf,
    #[command(flatten)]
    load: Load,
    /// Idle connections for memory.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// How often a route is changed.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Promised figures to compare with; a broken one fails the run.
    #[arg(long)]
    check: Option<PathBuf>,
}

/// How much is asked.
#[derive(Debug, clap::Args)]
pub struct Load {
    /// Rounds; each measures both once for everything.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections that load comes from.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests a second for latencies.
    #[arg(long, default_value_t = 1000)]
    rate: usize,
}

/// Routes of the scenario with many.
const MANY: usize = 1000;

/// Measures.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let budgets = args.check.as_deref().map(Budgets::read).transpose()?;
    let mut world = World::new().await;
    let mut backend = world.workload("one");
    backend.tunnel_protocol = TunnelProtocol::None;
    let at = SocketAddr::new(*backend.addresses.first().context("an address")?, 8080);
    load::backend(at, Duration::ZERO, &world.tasks).await?;
    world.service("one", "10.2.0.1", 1, &[&backend]);
    let mut services = Vec::new();
    let folder = tempfile::tempdir()?;
    let mut table = Report::default();
    for (index, routes) in [one_route(), guarded(), many_routes(), changing(0)].into_iter().enumerate() {
        let address = world.service(&routes.service, &format!("10.1.0.{}", index + 1), 1, &[&backend]);
        publish(&world, &routes);
        services.push((routes, address));
        if index == 0 {
            // What memory they need by themselves, with one route each.
            let both = start(&args, folder.path(), &world, &services, at, Log::On).await?;
            idle(&args, &both, address, &mut table).await?;
            stop(both).await?;
        }
    }
    let first = services.first().context("a service")?.1;
    let both = start(&args, folder.path(), &world, &services, at, Log::On).await?;
    let target = |index: usize, paths| Target { to: services[index].1, paths };
    let (one, many) = ("one route", "1000 routes");
    let scenarios = [(one, target(0, 1)), ("RBAC, header match, retry", target(1, 1)), (many, target(2, MANY))];
    let per_request = measure(&args.load, &both, &scenarios, &world, &mut table).await?;
    if let [one, _, many] = per_request.as_slice() {
        let ratios = |index: usize| many[index].iter().zip(&one[index]).map(|(many, one)| many / one).collect();
        table.row("CPU of a request with 1000 routes, to that with one", "ratio", [ratios(0), ratios(1)]);
    }
    let after = |index: usize| Ok::<_, anyhow::Error>(vec![process::resident_mib(both[index].pid)?[0]]);
    table.row("resident memory after load", "MiB", [after(0)?, after(1)?]);
    neighbours(&args.load, &both, first, &world, &mut table).await?;
    changes(&args, &both, &world, folder.path(), services[3].1, &mut table).await?;
    stop(both).await?;
    let both = start(&args, folder.path(), &world, &services, at, Log::Off).await?;
    measure(&args.load, &both, &[("one route, no access log", target(0, 1))], &world, &mut table).await?;
    stop(both).await?;
    println!("{}", table.text());
    println!("{}", table.json());
    budgets.map_or(Ok(()), |budgets| budgets.check(&table))
}

/// Starts both.
async fn start(
    args: &Args,
    folder: &Path,
    world: &World,
    services: &[(Table, SocketAddr)],
    backend: SocketAddr,
    log: Log,
) -> anyhow::Result<[Proxy; 2]> {
    let first = services.first().context("a service")?.1;
    let levels = match log {
        Log::On => "info",
        Log::Off => "info,access=off",
    };
    Ok([
        proxies::waypoint(&args.waypoint, &[], world, first, proxies::HBONE, &[("RUST_LOG", levels)]).await?,
        proxies::envoy(&args.envoy, folder, world, services, backend, log).await?,
    ])
}

async fn stop(both: [Proxy; 2]) -> anyhow::Result<()> {
    for proxy in both {
        proxy.stop().await?;
    }
    Ok(())
}

/// Memory without clients, and of connections that have had a request.
async fn idle(args: &Args, both: &[Proxy; 2], to: SocketAddr, table: &mut Report) -> anyhow::Result<()> {
    let [mut idle, mut own, mut each]: [[Vec<f64>; 2]; 3] = Default::default();
    for (index, proxy) in both.iter().enumerate() {
        let [before, anonymous] = process::resident_mib(proxy.pid)?;
        let mut held = Vec::new();
        for _ in 0..args.idle {
            let mut connection = Connection::open(&proxy.client, to).await?;
            ensure!(connection.get("/r0/x").await?.0 == 200, "{}: an answer", proxy.name);
            held.push(connection);
        }
        let [with, _] = process::resident_mib(proxy.pid)?;
        idle[index].push(before);
        own[index].push(anonymous);
        each[index].push((with - before).max(0.0) * 1024.0 * 1024.0 / args.idle as f64);
    }
    table.row("resident memory, idle", "MiB", idle);
    table.row("of that its own, not its program's pages", "MiB", own);
    table.row("memory of an idle connection", "bytes", each);
    Ok(())
}

/// Measures each scenario in each round: closed loop with CPU, then a fixed rate. Says what CPU a request took, microseconds: of each scenario, of both,
/// in each round.
async fn measure(
    args: &Load,
    both: &[Proxy; 2],
    scenarios: &[(&str, Target)],
    world: &World,
    table: &mut Report,
) -> anyhow::Result<Vec<[Vec<f64>; 2]>> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut values: Vec<[[Vec<f64>; 2]; 4]> = scenarios.iter().map(|_| Default::default()).collect();
    for round in 0..args.rounds {
        for ((name, target), values) in scenarios.iter().zip(&mut values) {
            // The order turns each round, so that a drift of the machine favours neither.
            for index in [round % 2, 1 - round % 2] {
                let proxy = &both[index];
                let what = || format!("{name}, {}", proxy.name);
                let before = process::cpu_seconds(proxy.pid)?;
                let closed = load::run(&proxy.client, *target, args.connections, None, time, &world.tasks).await;
                let closed = closed.with_context(what)?;
                let cpu = process::cpu_seconds(proxy.pid)? - before;
                let rate = Some(args.rate);
                let fixed = load::run(&proxy.client, *target, args.connections, rate, time, &world.tasks).await;
                let fixed = fixed.with_context(what)?;
                let measured = [
                    closed.requests as f64 / closed.seconds,
                    cpu * 1e6 / closed.requests.max(1) as f64,
                    fixed.percentile(50.0),
                    fixed.percentile(99.0),
                ];
                for (values, value) in values.iter_mut().zip(measured) {
                    values[index].push(value);
                }
            }
        }
    }
    let rows = [
        ("requests, closed loop", "per s"),
        ("CPU of a request", "µs"),
        ("median at a fixed rate", "µs"),
        ("p99 at a fixed rate", "µs"),
    ];
    for ((name, _), values) in scenarios.iter().zip(&values) {
        for ((what, unit), of) in rows.into_iter().zip(values) {
            table.row(format!("{name}: {what}"), unit, of.clone());
        }
    }
    Ok(values.into_iter().map(|[_, cpu, ..]| cpu).collect())
}

/// What a client that floods does to its neighbours: their p99 at a fixed rate, to that without the flood.
async fn neighbours(
    args: &Load,
    both: &[Proxy; 2],
    to: SocketAddr,
    world: &World,
    table: &mut Report,
) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let target = Target { to, paths: 1 };
    let mut ratios: [Vec<f64>; 2] = Default::default();
    for round in 0..args.rounds {
        for index in [round % 2, 1 - round % 2] {
            let proxy = &both[index];
            let load = || load::run(&proxy.client, target, args.connections, Some(args.rate), time, &world.tasks);
            let calm = load().await?.percentile(99.0);
            let flooded = tokio::select! {
                measured = load() => measured?.percentile(99.0),
                () = load::flood(&proxy.evil, to) => f64::NAN,
            };
            ratios[index].push(flooded / calm);
        }
    }
    table.row("neighbours' p99 under rapid resets, to that without", "ratio", ratios);
    Ok(())
}

/// How long it takes until a request sees a changed route: ours as the control plane publishes it, Envoy's by a file.
async fn changes(
    args: &Args,
    both: &[Proxy; 2],
    world: &World,
    folder: &std::path::Path,
    to: SocketAddr,
    table: &mut Report,
) -> anyhow::Result<()> {
    let mut took: [Vec<f64>; 2] = Default::default();
    for (index, proxy) in both.iter().enumerate() {
        let mut connection = Connection::open(&proxy.client, to).await?;
        for version in 1..=args.changes {
            let changed = changing(version + index * args.changes);
            let expected = body(version + index * args.changes);
            let begin = Instant::now();
            if index == 0 {
                publish(world, &changed);
            } else {
                proxies::write_routes(folder, &changed, version)?;
            }
            while connection.get("/r0/x").await?.1 != expected {
                ensure!(begin.elapsed() < Duration::from_secs(20), "{} does not see the change", proxy.name);
            }
            took[index].push(begin.elapsed().as_secs_f64() * 1e3);
        }
        took[index].sort_by(f64::total_cmp);
    }
    for percent in [50, 99] {
        let at = |took: &Vec<f64>| vec![took[(took.len() * percent / 100).min(took.len() - 1)]];
        table.row(format!("a changed route is seen, p{percent}"), "ms", took.each_ref().map(at));
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn publish(world: &World, table: &Table) {
    let routes = table.routes.iter().map(|route| Change::Route(Arc::new(route.clone())));
    let policies = table.policies.iter().map(|policy| access::published(policy.clone()));
    world.control.store.publish(routes.chain(policies).collect());
}

fn of(service: &str, rules: Vec<RouteRule>, policies: Vec<RequestPolicy>) -> Table {
    let route = HttpRoute {
        key: RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: service.into() },
        parents: vec![RouteParent { service: service_key(&format!("shop/{service}")), port: None }],
        consumer: None,
        created: 0,
        rules,
        streams: Vec::new(),
    };
    Table { service: service.into(), level: PathNormalization::Base, routes: vec![route], policies }
}

fn one_route() -> Table {
    of("plain", vec![rule(path("/r0"), forward(vec![to("one", 1)]))], Vec::new())
}

fn guarded() -> Table {
    let header = |value: &str| HeaderMatch { name: "x-user".into(), value: TextMatch::Exact(value.into()) };
    let by = |value: &str| RequestMatch {
        path: Some(PathMatch::segments("/r0")),
        headers: vec![header(value)],
        ..RequestMatch::default()
    };
    let retry = Retry { attempts: 2, per_try: None, backoff: None, on: vec![RetryOn::ServerError] };
    let forward = Forward { backends: vec![to("one", 1)], retry: Some(retry), ..Forward::default() };
    let condition = |wanted| Condition { sense: Sense::AnyOf, wanted };
    let conditions = vec![
        condition(Wanted::Method(access::exact(&["GET", "POST"]))),
        condition(Wanted::Path(vec![PathPattern::Text(StringMatch::Prefix("/r".into()))])),
    ];
    let allow = RequestRule { clauses: vec![RequestClause { alternatives: vec![Alternative { conditions }] }] };
    let deny = access::of(Wanted::header("x-user", access::exact(&["nobody"])));
    let mut policies = vec![
        access::policy("shop/allow", RequestAction::Allow, vec![allow]),
        access::policy("shop/deny", RequestAction::Deny, vec![deny]),
    ];
    for policy in &mut policies {
        policy.attached = stillmesh_core::model::access::Attachment::To(vec![service_key("shop/guarded")]);
    }
    let rules = vec![
        rule(vec![by("somebody")], RouteAction::Forward(forward.clone())),
        rule(vec![by("tester")], RouteAction::Forward(forward)),
    ];
    of("guarded", rules, policies)
}

fn many_routes() -> Table {
    let one = |number: usize| rule(path(&format!("/r{number}")), forward(vec![to("one", 1)]));
    of("many", (0..MANY).map(one).collect(), Vec::new())
}

fn body(version: usize) -> String {
    format!("version {version}")
}

fn changing(version: usize) -> Table {
    let respond = Respond { status: 200, body: body(version).into() };
    of("changing", vec![rule(path("/"), RouteAction::Respond(respond))], Vec::new())
}
