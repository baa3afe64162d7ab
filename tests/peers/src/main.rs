//! The waypoint beside what nobody here wrote: Envoy as a second opinion about routes, h2spec at its framing, clients from
//! registries. `tests/peers/run` brings these programs and starts this one in namespaces of its own, where it is root and
//! nothing else listens; each command prints what it has found and fails where something is not as it should be.
#![expect(clippy::print_stdout, reason = "what was found is what this program is for")]
#![expect(clippy::expect_used, reason = "a test that cannot go on fails with the reason")]

mod backend;
mod bench;
mod clients;
mod differential;
mod h2spec;
mod listener;
mod replicas;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What is to be tried.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The waypoint's costs beside Envoy's.
    Bench(bench::Args),
    /// Clients that nobody here wrote.
    Clients(clients::Args),
    /// The waypoint and Envoy, asked the same.
    Differential(differential::Args),
    /// The waypoint's HTTP/2 and HBONE framing, by h2spec.
    H2spec(h2spec::Args),
    /// What records of decisions cost.
    Recording(bench::recording::Args),
    /// The waypoint whose records are switched on and off, which `recording` starts.
    #[command(hide = true)]
    Switched,
    /// One of two waypoints is killed under load.
    Replicas(replicas::Args),
}

fn main() -> ExitCode {
    let command = Args::parse().command;
    let tried = match command {
        Command::Switched => bench::recording::switched(),
        command => {
            tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(run(command)))
        }
    };
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            println!("FAILED: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    stillmesh_test_support::net::loopback_up();
    match command {
        Command::Bench(args) => bench::run(args).await,
        Command::Clients(args) => clients::run(args).await,
        Command::Differential(args) => differential::run(args).await,
        Command::H2spec(args) => h2spec::run(args).await,
        Command::Recording(args) => bench::recording::run(args).await,
        Command::Replicas(args) => replicas::run(args).await,
        Command::Switched => unreachable!("it has a runtime of its own"),
    }
}
