//! The node agent as a process: settings from the environment, SIGTERM and SIGINT end it. What it put in place in
//! pods stays, so that a new agent takes over without a gap.

use std::time::Duration;

use anyhow::Context as _;
use stillmesh_cni::Config;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::{drain, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// How long open requests may take to end.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    telemetry::init("agent")?;
    let config = Config::from_env(Reader::process())?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (trigger, watch) = drain::channel();
    let mut agent = std::pin::pin!(stillmesh_cni::run(config, watch));
    tokio::select! {
        ended = &mut agent => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    trigger.start(drain::Mode::Graceful, GRACE);
    agent.await
}
