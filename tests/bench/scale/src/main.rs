//! Measures the controller at scale: a real API server with ten thousand pods on a hundred nodes that exist only
//! there, one controller process, and one real xDS client per node in this process.
//!
//!     tests/bench/scale/run                                                              # an API server of its own
//!     cargo run --release -p stillmesh-scale -- --stillmesh target/release/stillmesh     # KUBECONFIG says where
//!
//! [`crowd`] makes the objects and takes them away, [`fleet`] is the nodes' clients, [`bare`] says what the API server
//! takes by itself, [`process`] the programs under test, [`story`] what is done and measured. The cluster should be one
//! made for this: for the run, the nodes and namespaces `scale-*` are ours.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command that prints what it measured")]

mod bare;
mod crowd;
mod fleet;
mod process;
mod report;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// What to run.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// The executable under test.
    #[arg(long, env = "STILLMESH", default_value = "target/release/stillmesh")]
    stillmesh: PathBuf,
    /// Nodes, each with an xDS client here.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Pods, spread over the nodes.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Services; each selects its share of the pods.
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Policies; each selects the pods of one service.
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    /// Pods replaced per second under churn.
    #[arg(long, default_value_t = 100)]
    churn: usize,
    /// Pods replaced at a time under churn. More than the API server bears only wait for it, and the measured change
    /// behind them.
    #[arg(long, default_value_t = 24)]
    at_once: usize,
    /// Seconds of churn.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Changes measured while nothing else happens.
    #[arg(long, default_value_t = 60)]
    changes: usize,
    /// Writes what was measured here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fails where a target is missed.
    #[arg(long)]
    check: bool,
    /// Leaves the objects for the next run, which then need not make them.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let report = tokio::select! {
        report = story::run(&options) => report?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted; the objects stay: run again, or delete namespaces and nodes named scale-*");
            return Ok(ExitCode::from(130));
        }
    };
    println!("{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    let missed = report.missed();
    for one in &missed {
        eprintln!("missed: {one}");
    }
    Ok(if options.check && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
