//! `stillmesh bench`: raw TCP beside the mesh, across two nodes of one machine, alternating in one run.
//!
//! Only ratios within a run mean anything: the machine's own speed drifts. The two ends of the traffic are [`load`]; CPU
//! time and memory are those of the node tunnels, read from `/proc`.

pub(crate) mod load;
mod process;
mod report;
mod run;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

/// Measures the mesh on this machine against raw TCP: throughput, latency, new connections, CPU and memory.
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// Rounds; each measures raw TCP and the mesh once per scenario. Medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections to hold while memory is measured
    #[arg(long, default_value_t = 1000)]
    idle: u32,
    /// Workloads to put into the configuration for the last measurement; 0 leaves it out
    #[arg(long, default_value_t = 10_000)]
    workloads: u32,
    /// Print JSON only
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file as well
    #[arg(long)]
    output: Option<PathBuf>,
}

impl Bench {
    /// Measures and reports. Errors: no mesh can run here, or a measurement failed or stalled.
    pub fn run(self) -> anyhow::Result<()> {
        let report = run::run(&self)?;
        let json = serde_json::to_string_pretty(&report)?;
        if let Some(path) = &self.output {
            std::fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
        }
        crate::output::line(&if self.json { json } else { report.table() });
        Ok(())
    }
}
