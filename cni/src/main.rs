//! The node agent as a process: settings from the environment, SIGTERM and SIGINT end it. Called by a container runtime
//! it is the CNI plugin.

use std::process::ExitCode;

use stillmesh_cni::{Config, chained};
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::{drain, telemetry};

fn main() -> anyhow::Result<ExitCode> {
    let reader = Reader::process();
    if chained::is_called(std::env::args_os(), &reader) {
        return Ok(chained::main(&reader));
    }
    telemetry::init("agent")?;
    let config = Config::from_env(reader)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(drain::until_signalled(config.grace, |watch| stillmesh_cni::run(config, watch)))?;
    Ok(ExitCode::SUCCESS)
}
