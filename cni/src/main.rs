//! The node agent as a process: settings from the environment, SIGTERM and SIGINT end it. What it put in place in
//! pods stays, so that a new agent takes over without a gap.

use std::time::Duration;

use stillmesh_cni::Config;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::{drain, telemetry};

/// How long open requests may take to end.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    telemetry::init("agent")?;
    let config = Config::from_env(Reader::process())?;
    drain::until_signalled(GRACE, |watch| stillmesh_cni::run(config, watch)).await
}
