//! What records of decisions and flows cost: one waypoint that keeps them and one that keeps neither, in alternating rounds of one run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use stillmesh_core::model::TunnelProtocol;
use stillmesh_waypoint_tests::World;

use super::load::{self, Target};
use super::proxies::{self, HBONE};
use super::{Load, Report, one_route, publish, scenario};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The waypoint, built as for the image.
    #[arg(long)]
    waypoint: PathBuf,
    #[command(flatten)]
    load: Load,
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
    let start = |port, more| proxies::waypoint(&args.waypoint, &world, to, port, more);
    let both = [
        start(HBONE, &[][..]).await?,
        start(HBONE + 10, &[("DECISION_RECORDS_MEMORY", "0"), ("FLOWS_MEMORY", "0")][..]).await?,
    ];
    let mut table = Report::new(["with records", "without"]);
    scenario(&args.load, &both, "one route", Target { to, paths: 1 }, &world, &mut table).await?;
    println!("{}", table.text());
    println!("{}", serde_json::to_string(&table.rows)?);
    Ok(())
}
