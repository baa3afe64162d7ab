//! `stillmesh bench`: the mesh beside raw TCP and whatever else is given, in one mesh of this machine, in turns.
//!
//! Only ratios within a run mean anything: the machine's own speed drifts. [`systems`] says what is compared, [`scenario`] what
//! is measured, [`load`] are the two ends of the traffic; CPU time and memory are those of the proxies, read from `/proc`.

mod budgets;
mod crowd;
pub(crate) mod load;
mod memory;
mod place;
mod policies;
mod process;
mod report;
mod run;
mod scenario;
mod systems;
mod watch;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use stillmesh_runtime::env::Reader;

use budgets::Budgets;
use scenario::Scenario;

/// Measures the mesh on this machine beside raw TCP and other systems: throughput, latency, new connections, CPU and memory.
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// Another system to measure, as Kubernetes objects; may be given several times
    #[arg(long = "system", value_name = "FILE")]
    systems: Vec<PathBuf>,
    /// Measure only this; may be given several times
    #[arg(long = "scenario", value_name = "NAME", value_parser = scenario::named)]
    scenarios: Vec<&'static Scenario>,
    /// Rounds; each measures every system once per scenario. Medians are reported
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Workloads to put into the configuration for the last measurement; 0 leaves it out
    #[arg(long, default_value_t = 10_000)]
    workloads: u32,
    /// Policies to load beside those workloads; 0 leaves them out
    #[arg(long, default_value_t = 1000)]
    policies: u32,
    /// Pods to start on each node for the measurements beside many; 0 leaves those out
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=200))]
    pods: u32,
    /// Repeat a sample while others use more of the machine than this, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    foreign: f64,
    /// Count the proxies' system calls, once per scenario and system, beside the timed rounds; needs strace
    #[arg(long)]
    calls: bool,
    /// Write profiles of the proxies and a text of each into this folder, once per scenario and system; needs perf
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    /// Compare with the budgets of this file; the exit code is 1 if one is broken, 2 if one could not be checked
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Print JSON only
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file as well
    #[arg(long)]
    output: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|seconds| (0.01..=600.0).contains(seconds));
    parsed.ok_or_else(|| "0.01 to 600 seconds are accepted".to_owned())
}

impl Bench {
    /// Measures and reports. Errors: a file is wrong, no mesh can run here, a measurement failed or stalled.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let env = Reader::process();
        let systems = systems::all(&self.systems, |name| env.string(name))?;
        let budgets = self.check.as_deref().map(Budgets::read).transpose()?;
        if self.calls {
            watch::needed("strace", "system calls are counted")?;
        }
        if let Some(folder) = &self.profile {
            watch::needed("perf", "profiles are made")?;
            std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        }
        let mut report = run::run(&self, &systems)?;
        report.verdicts = budgets.map(|budgets| budgets.verdicts(&report.points)).unwrap_or_default();
        let json = serde_json::to_string_pretty(&report.json())?;
        if let Some(path) = &self.output {
            std::fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
        }
        crate::output::line(&if self.json { json } else { report.table() });
        if self.check.is_some() && !self.json {
            crate::output::line(&format!("\n{}", budgets::told(&report.verdicts)));
        }
        Ok(ExitCode::from(budgets::exit_code(&report.verdicts)))
    }
}
