//! The control plane: objects in, workloads, services and policies out to every node, and the certificate authority.
//!
//! Read in this order: `app` (how the parts are joined), [`build`] (objects to resources, incrementally),
//! [`serve`] (nodes: who they are, what they get, which certificates), `cluster` (what comes with the Kubernetes
//! API), `admit` (the webhook), [`config`].

mod admit;
mod app;
pub mod build;
mod cluster;
pub mod config;
mod control;
mod metrics;
mod monitoring;
mod receipts;
pub mod serve;
mod status;

pub use app::{Listeners, run, run_in, run_on};
pub use cluster::{KINDS, LEASE, lease_of, watches};
pub use config::Config;
pub use serve::token_digest;

use std::time::Duration;

use stillmesh_runtime::{drain, telemetry};

/// How long open streams may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The controller as a process: `arguments` are its flags, without the program's name. Ends with SIGTERM or SIGINT.
pub fn main(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    let arguments: Vec<String> = arguments.into_iter().collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print_help();
        return Ok(());
    }
    telemetry::init("controller")?;
    let config = Config::from_process(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(drain::until_signalled(GRACE, |watch| run(config, watch)))
}

#[expect(clippy::print_stdout, reason = "the help is what was asked for")]
fn print_help() {
    println!("Runs the control plane. Every flag may also be set in the environment: --objects-dir as OBJECTS_DIR.\n");
    for (key, default, meaning) in config::KEYS {
        let flag = key.to_ascii_lowercase().replace('_', "-");
        let default = if default.is_empty() { String::new() } else { format!(" (default {default})") };
        println!("  --{flag:<46} {meaning}{default}");
    }
}
