//! Two waypoints, each a process, and one of them killed (SIGKILL) under load. Each request is a CONNECT of its own, opened as
//! ztunnels do: at either replica in turn, and at the other one where it is not opened. Only what was under way at the killed
//! one may fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stillmesh_core::fixtures;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_core::snapshot::Change;
use stillmesh_waypoint_tests::{Client, WAYPOINT, World};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::bench::load::{Connection, backend};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The waypoint.
    #[arg(long)]
    waypoint: PathBuf,
    /// Requests a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 6)]
    seconds: u32,
}

const PATIENCE: Duration = Duration::from_secs(30);

/// How long the backend takes for an answer: so that requests are under way.
const WORK: Duration = Duration::from_millis(100);

/// What became of a request.
struct Asked {
    began: Instant,
    /// Who opened its CONNECT.
    replica: Option<usize>,
    result: anyhow::Result<()>,
}

/// Kills one, and counts.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut world = World::new().await;
    let mut workload = world.workload("one");
    workload.tunnel_protocol = TunnelProtocol::None;
    let at = SocketAddr::new(*workload.addresses.first().context("an address")?, 8080);
    backend(at, WORK, &world.tasks).await?;
    let service = world.service("one", "10.1.0.1", 1, &[&workload]);
    let second = Ipv4Addr::new(127, 0, 1, 2);
    let mut own = fixtures::workload("gate/w2");
    own.service_account = "w".into();
    own.addresses = vec![second.into()];
    let front = fixtures::service("gate/w", &[(15008, 15008)]);
    own.services.push((front.key, front.ports.iter().map(|port| port.mapping).collect()));
    world.control.store.publish(vec![Change::Workload(Arc::new(own))]);
    let (mut killed, first) = replica(&args, &world, WAYPOINT, "w", 1, service).await?;
    let (_other, second) = replica(&args, &world, second, "w2", 2, service).await?;
    let clients = Arc::new([first, second]);

    let begin = Instant::now();
    let mut under_way = Vec::new();
    let mut when = None;
    for number in 0..args.rate * args.seconds {
        sleep_until(begin + Duration::from_secs(1) * number / args.rate).await;
        if when.is_none() && number > args.rate * args.seconds / 3 {
            killed.start_kill()?;
            when = Some(Instant::now());
        }
        let clients = clients.clone();
        under_way.push(world.tasks.spawn("request", async move { ask(&clients, number as usize % 2, service).await }));
    }
    let when = when.context("nothing was killed")?;
    let (mut failed, mut at_other) = (0, 0);
    let count = under_way.len();
    for mut asked in under_way {
        let Asked { began, replica, result } = asked.join().await.context("a request was cut")?;
        let meanwhile = began <= when && replica != Some(1);
        match result {
            Ok(()) => at_other += usize::from(replica == Some(1)),
            Err(_) if meanwhile => {
                failed += 1;
            }
            Err(error) => bail!("a request failed that was not under way there (replica {replica:?}): {error:#}"),
        }
    }
    println!(
        "{count} requests, one of two replicas killed: {failed} failed, all under way there; the other one answered {at_other}"
    );
    ensure!(failed > 0, "nothing was under way at the one that was killed");
    Ok(())
}

/// Starts a replica and waits until it serves.
async fn replica(
    args: &Args,
    world: &World,
    address: Ipv4Addr,
    pod: &str,
    number: u8,
    probe: SocketAddr,
) -> anyhow::Result<(Child, Client)> {
    let hbone = SocketAddr::from((address, 15008));
    let environment = world.environment(address, &[("HBONE_ADDRESS", &hbone.to_string()), ("POD_NAME", pod)]);
    let mut command = Command::new(&args.waypoint);
    command.env_clear().envs(environment).env("RUST_LOG", "off").stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().context("the waypoint does not start")?;
    let client = world.client_of(hbone, "page", number);
    let begin = Instant::now();
    while ask_at(&client, probe).await.is_err() {
        ensure!(begin.elapsed() < PATIENCE, "replica {pod} does not serve");
        sleep(Duration::from_millis(50)).await;
    }
    Ok((child, client))
}

async fn ask_at(client: &Client, to: SocketAddr) -> anyhow::Result<()> {
    let mut connection = Connection::open(client, to).await?;
    get(&mut connection).await
}

async fn ask(clients: &[Client; 2], first: usize, to: SocketAddr) -> Asked {
    let began = Instant::now();
    let mut refused = Ok(());
    for replica in [first, 1 - first] {
        match timeout(PATIENCE, Connection::open(&clients[replica], to)).await {
            Ok(Ok(mut connection)) => {
                return Asked { began, replica: Some(replica), result: get(&mut connection).await };
            }
            Ok(Err(error)) => refused = Err(error),
            Err(_) => refused = Err(anyhow::anyhow!("a CONNECT is not answered")),
        }
    }
    Asked { began, replica: None, result: refused }
}

async fn get(connection: &mut Connection) -> anyhow::Result<()> {
    let (status, _) = timeout(PATIENCE, connection.get("/")).await.context("no answer")??;
    ensure!(status == 200, "status {status}");
    Ok(())
}
