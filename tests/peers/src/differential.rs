//! The waypoint and Envoy with the same routes and policies, asked the same: status, location, backend, and what the backend
//! saw must be the same, but for differences that are meant ([`compare::MEANT`]).
//!
//! Routes, policies and requests are made by chance from a seed that is printed; the same seed makes them again.

mod asked;
pub mod chance;
mod compare;
pub mod envoy;
pub mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use stillmesh_core::fixtures::policy_key;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_core::model::access::{Access, PathNormalization, RequestSettings};
use stillmesh_core::snapshot::Change;
use stillmesh_waypoint_tests::{Client, World};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::backend;
use asked::{Answer, Asked, Io, ask};
use chance::Chance;
use compare::{Case, MEANT};
use table::{BACKENDS, Table};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    envoy: PathBuf,
    /// Makes the same routes, policies and requests again; without it another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Tables of routes for each level of path normalization.
    #[arg(long, default_value_t = 15)]
    tables: usize,
    /// Requests for each table.
    #[arg(long, default_value_t = 80)]
    requests: usize,
    /// How many differences are printed whole.
    #[arg(long, default_value_t = 5)]
    show: usize,
}

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Weights of the table that is asked for shares, and how often it is asked.
const WEIGHTS: [u32; 2] = [90, 10];
const ASKED_FOR_SHARES: usize = 1000;

/// Tables and where Envoy has them, and the shares' table at the end.
type Tables = Vec<(Table, SocketAddr)>;

/// Asks both.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let version = Command::new(&args.envoy).arg("--version").output().await.context("Envoy does not start")?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.split('/').rev().nth(3).context("no version of Envoy")?;
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now_nanoseconds());
    println!("seed {seed}: `--seed {seed}` asks the same again; beside Envoy {version}");
    let mut chance = Chance::new(seed);
    let mut levels: Vec<(PathNormalization, Tables)> = Vec::new();
    let mut number = 0;
    for level in PathNormalization::ALL {
        let mut tables = Tables::new();
        for _ in 0..args.tables {
            tables.push((Table::new(number, level, &mut chance), at(number)));
            number += 1;
        }
        if level == PathNormalization::Base {
            tables.push((Table::split(number, WEIGHTS), at(number)));
            number += 1;
        }
        levels.push((level, tables));
    }
    let _envoy = start(&args.envoy, &levels).await?;
    let mut found = Found::default();
    for (level, tables) in &levels {
        ask_level(&args, *level, tables, &mut chance, &mut found).await.with_context(|| format!("level {level}"))?;
    }
    found.report(&args)
}

fn now_nanoseconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) << 20
}

/// Where Envoy has a table.
fn at(number: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 4, 1], 20_000 + u16::try_from(number).expect("not that many tables")))
}

/// The backends' addresses, as the waypoint's world hands them out: `web` is the first.
fn backend_address(number: usize) -> String {
    format!("127.0.2.{}", number + 2)
}

/// Starts Envoy with every table, and waits until it serves them all.
async fn start(program: &std::path::Path, levels: &[(PathNormalization, Tables)]) -> anyhow::Result<Child> {
    let tables = || levels.iter().flat_map(|(_, tables)| tables);
    let listeners: Vec<_> = tables().map(|(table, at)| envoy::listener(table, at.port())).collect();
    let clusters: Vec<_> = BACKENDS
        .iter()
        .enumerate()
        .map(|(number, name)| envoy::cluster(name, &backend_address(number), 8080))
        .collect();
    let folder = tempfile::tempdir()?.keep();
    let config = folder.join("envoy.json");
    std::fs::write(&config, serde_json::to_string_pretty(&envoy::bootstrap(&listeners, &clusters))?)?;
    let log = std::fs::File::create(folder.join("envoy.log"))?;
    let mut child = Command::new(program)
        .args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "--config-path"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("Envoy does not start")?;
    let begin = Instant::now();
    for (_, at) in tables() {
        while TcpStream::connect(at).await.is_err() {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(folder.join("envoy.log")).unwrap_or_default();
                bail!("Envoy ended ({status}) with {}: {log}", config.display());
            }
            ensure!(begin.elapsed() < PATIENCE, "Envoy does not serve {at}");
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(child)
}

/// Both connections to one table.
struct Both<'a> {
    client: &'a Client,
    service: SocketAddr,
    envoy: SocketAddr,
    ours: Option<Box<dyn Io>>,
    envoys: Option<Box<dyn Io>>,
}

impl Both<'_> {
    async fn ask(&mut self, asked: &Asked) -> anyhow::Result<(Answer, Answer)> {
        let both = async {
            if self.ours.is_none() {
                self.ours = Some(Box::new(self.client.open(self.service).await?));
            }
            if self.envoys.is_none() {
                self.envoys = Some(Box::new(TcpStream::connect(self.envoy).await?));
            }
            let (Some(ours), Some(envoys)) = (&mut self.ours, &mut self.envoys) else { bail!("two connections") };
            let (ours, envoys) = tokio::join!(ask(ours.as_mut(), asked), ask(envoys.as_mut(), asked));
            let (ours, stays) = ours.context("the waypoint's answer")?;
            let (envoys, envoys_stays) = envoys.context("Envoy's answer")?;
            if !stays {
                self.ours = None;
            }
            if !envoys_stays {
                self.envoys = None;
            }
            Ok((ours, envoys))
        };
        timeout(PATIENCE, both).await.context("an answer takes too long")?.with_context(|| format!("{asked:?}"))
    }
}

async fn ask_level(
    args: &Args,
    level: PathNormalization,
    tables: &Tables,
    chance: &mut Chance,
    found: &mut Found,
) -> anyhow::Result<()> {
    let mut world = World::new().await;
    let mut plain = |name: &str| {
        let mut workload = world.workload(name);
        workload.tunnel_protocol = TunnelProtocol::None;
        workload
    };
    let web = plain("web");
    let backends: Vec<_> = BACKENDS.iter().map(|name| plain(name)).collect();
    for (number, workload) in backends.iter().enumerate() {
        world.service(BACKENDS[number], &format!("10.2.0.{}", number + 1), 1, &[workload]);
        let address = SocketAddr::new(backend_address(number).parse()?, 8080);
        ensure!(workload.addresses == [address.ip()], "the backends' addresses");
        backend::start(BACKENDS[number], address, &world.tasks).await;
    }
    let mut changes = vec![Change::Access(Arc::new(Access::Settings(RequestSettings {
        key: policy_key("istio-system/mesh"),
        normalization: level,
        gateways: Vec::new(),
    })))];
    let mut services = Vec::new();
    for (number, (table, _)) in tables.iter().enumerate() {
        services.push(world.service(&table.service, &format!("10.1.0.{}", number + 1), 1, &[&web]));
        changes.extend(table.routes.iter().map(|route| Change::Route(Arc::new(route.clone()))));
        changes.extend(table.policies.iter().map(|policy| Change::Access(Arc::new(Access::Policy(policy.clone())))));
    }
    world.control.store.publish(changes);
    world.start(&[]).await;
    let client = world.client("page", 1);
    for ((table, envoy), service) in tables.iter().zip(services) {
        let mut both = Both { client: &client, service, envoy: *envoy, ours: None, envoys: None };
        if table.routes[0].rules.iter().all(|rule| rule.matches.is_empty())
            && table.policies.is_empty()
            && is_split(table)
        {
            shares(&mut both).await?;
            continue;
        }
        for _ in 0..args.requests {
            let asked = Asked::new(chance);
            let mut answers = both.ask(&asked).await?;
            // Where a route goes to several backends, each chooses for itself: until both have chosen the same.
            for _ in 0..200 {
                match (&answers.0.seen, &answers.1.seen) {
                    (Some(ours), Some(envoys)) if ours.name != envoys.name => answers = both.ask(&asked).await?,
                    _ => break,
                }
            }
            found.judge(args, &Case { table, asked: &asked, ours: &answers.0, envoys: &answers.1 });
        }
    }
    world.drain(Duration::ZERO);
    world.ended().await;
    world.tasks.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

fn is_split(table: &Table) -> bool {
    use stillmesh_core::model::http::RouteAction;
    matches!(table.routes[0].rules.as_slice(), [rule] if matches!(&rule.action, RouteAction::Forward(forward)
        if forward.backends.iter().map(|backend| backend.weight).eq(WEIGHTS)))
}

/// Both send the second backend its share, within what chance allows (five standard deviations).
async fn shares(both: &mut Both<'_>) -> anyhow::Result<()> {
    let asked = Asked { method: "GET", target: "/".into(), host: "web", headers: Vec::new() };
    let mut counts = [0_usize; 2];
    for _ in 0..ASKED_FOR_SHARES {
        let (ours, envoys) = both.ask(&asked).await?;
        for (count, answer) in counts.iter_mut().zip([ours, envoys]) {
            *count += usize::from(answer.seen.is_some_and(|seen| seen.name == "two"));
        }
    }
    println!(
        "of {ASKED_FOR_SHARES} requests with weights {WEIGHTS:?} the second backend got {} of us, {} of Envoy",
        counts[0], counts[1]
    );
    for count in counts {
        // 100 of 1000, standard deviation 9.5.
        ensure!((52..=148).contains(&count), "{count} of {ASKED_FOR_SHARES} are not a tenth");
    }
    Ok(())
}

/// What has come out.
#[derive(Debug, Default)]
struct Found {
    asked: usize,
    statuses: BTreeMap<u16, usize>,
    meant: BTreeMap<&'static str, usize>,
    different: usize,
}

impl Found {
    fn judge(&mut self, args: &Args, case: &Case<'_>) {
        self.asked += 1;
        *self.statuses.entry(case.ours.status).or_default() += 1;
        if !compare::differ(case) {
            return;
        }
        if let Some(meant) = MEANT.iter().find(|meant| (meant.is)(case)) {
            *self.meant.entry(meant.what).or_default() += 1;
            return;
        }
        self.different += 1;
        if self.different <= args.show {
            let Table { service, level, routes, policies } = case.table;
            println!("--- {:?} at {service}, {level}", case.asked);
            println!("    ours:  {:?}\n    Envoy: {:?}", case.ours, case.envoys);
            for route in routes {
                println!("    {} of {}", route.key, route.created);
                route.rules.iter().for_each(|rule| println!("      {}", brief(rule)));
            }
            policies.iter().for_each(|policy| println!("    {} {}", policy.key, brief(policy)));
        }
    }

    fn report(&self, args: &Args) -> anyhow::Result<()> {
        println!("{} requests, by status: {:?}", self.asked, self.statuses);
        for meant in MEANT {
            let count = self.meant.get(meant.what).copied().unwrap_or_default();
            println!("{count:>6} meant: {}: {}", meant.what, meant.why);
        }
        ensure!(self.different == 0, "{} answers of {} differ ({} are shown)", self.different, self.asked, args.show);
        let answers = [200, 301, 403, 404].iter().all(|status| self.statuses.contains_key(status));
        ensure!(answers || self.asked < 1000, "not every kind of answer came");
        Ok(())
    }
}

/// What is set of something, as JSON.
fn brief(what: &impl serde::Serialize) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.values_mut().for_each(strip);
                members.retain(|_, value| !is_nothing(value));
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    fn is_nothing(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(members) => members.is_empty(),
            _ => false,
        }
    }
    let mut value = serde_json::to_value(what).unwrap_or_default();
    strip(&mut value);
    value
}
