//! The waypoint beside what nobody here wrote: Envoy as a second opinion about routes, h2spec at its framing, clients from
//! registries. `tests/peers/run` brings these programs and starts this one in namespaces of its own, where it is root and
//! nothing else listens; each command prints what it has found and fails where something is not as it should be.
#![expect(clippy::print_stdout, reason = "what was found is what this program is for")]
#![expect(clippy::expect_used, reason = "a test that cannot go on fails with the reason")]

mod h2spec;
mod listener;

use clap::{Parser, Subcommand};

/// What is to be tried.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The waypoint's HTTP/2 and HBONE framing, by h2spec.
    H2spec(h2spec::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    stillmesh_test_support::net::loopback_up();
    match Args::parse().command {
        Command::H2spec(args) => h2spec::run(args).await,
    }
}
