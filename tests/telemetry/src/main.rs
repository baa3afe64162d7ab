//! What a mesh tells of itself, told to what nobody here wrote: a real Prometheus, a real collector of OpenTelemetry's.

#![expect(clippy::print_stdout, reason = "a test that tells what it has seen")]

mod alerts;
mod collector;
mod dashboards;
mod mesh;
mod prometheus;
mod refuser;
mod scene;
mod told;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    stillmesh: PathBuf,
    #[command(subcommand)]
    peer: Peer,
}

#[derive(Subcommand)]
enum Peer {
    /// A Prometheus scrapes it.
    Prometheus(prometheus::Prometheus),
    /// A collector is told traces and logs.
    Collector(collector::Collector),
}

fn main() -> Result<()> {
    // Not the test, but a node of its mesh.
    if std::env::args().nth(1).is_some_and(|first| first == "refuse") {
        return refuser::run();
    }
    let arguments = Arguments::parse();
    match &arguments.peer {
        Peer::Prometheus(prometheus) => prometheus::run(&arguments.stillmesh, prometheus)?,
        Peer::Collector(collector) => collector::run(&arguments.stillmesh, collector)?,
    }
    println!("telemetry: all is as it should be");
    Ok(())
}
