//! `stillmesh demo`: the main job, shown step by step. Every line of the story is a check; one that fails ends the demo
//! with what was expected and what was seen.
//!
//! It drives a mesh of its own through the same commands that a user types, so each step can be repeated by hand.

mod story;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::driver::{self, Files, Mesh};

/// Shows a mesh on this machine, step by step, then a summary.
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Leave the mesh running at the end and say what to try; the manifests stay in ./stillmesh-demo
    #[arg(long)]
    keep: bool,
    /// Print one JSON object per step and a summary, for machines
    #[arg(long)]
    json: bool,
    /// Name of the mesh
    #[arg(long, default_value = "demo")]
    name: String,
}

/// One line of the story.
#[derive(Clone, Debug, Serialize)]
struct Step {
    /// What is claimed.
    claim: &'static str,
    /// Whether it was so.
    passed: bool,
    /// What was seen, or what was wrong.
    seen: String,
    /// Wall time.
    seconds: f64,
}

/// The whole demo.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    passed: bool,
    seconds: f64,
    steps: &'a [Step],
}

impl Demo {
    /// Tells the story. Errors: a check failed, or the machine does not allow a mesh.
    pub fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        driver::clear_away_when_interrupted()?;
        let kept = PathBuf::from("stillmesh-demo");
        let shop = include_str!("demo/manifests/shop.yaml").replace("[STILLMESH,", &format!("[{},", own_file()?));
        let contents = [("shop.yaml", &*shop), ("namespaces.yaml", include_str!("demo/manifests/namespaces.yaml"))];
        let files = if self.keep { Files::keep(&kept, &contents)? } else { Files::temporary(&contents)? };
        let mut teller = Teller { json: self.json, steps: Vec::new() };
        let told = Mesh::start(&self.name, files.path(), &["--secret-ttl", "20s"]).and_then(|mut mesh| {
            let told = story::tell(&mut mesh, &mut teller);
            if told.is_err() {
                teller.note(&format!("`up` said:\n{}", mesh.said()));
            } else if self.keep {
                teller.summary(started)?;
                try_yourself(&self.name, &kept);
                mesh.wait()?;
                return Ok(());
            }
            mesh.down()?;
            told
        });
        if told.is_err() || !self.keep {
            teller.summary(started)?;
        }
        told
    }
}

/// This command's own file, quoted for YAML.
fn own_file() -> anyhow::Result<String> {
    let file = std::env::current_exe().context("find this command's own file")?;
    Ok(serde_json::to_string(&file.to_string_lossy())?)
}

fn try_yourself(name: &str, dir: &std::path::Path) {
    let line = crate::output::line;
    line(&format!(
        "\nThe mesh goes on until Ctrl-C. Its manifests are in {}: edit them. In another terminal:",
        dir.display()
    ));
    for command in [
        "get pods -A",
        "exec -n shop curious -- sh -c 'echo hello'",
        "logs -n istio-system ztunnel-node2 -f",
        "capture node1 --seconds 5",
        "down",
    ] {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        line(&format!(
            "  {} {verb} --name {name} {rest}",
            std::env::args().next().unwrap_or_else(|| "stillmesh".to_owned())
        ));
    }
}

/// Says what happens, to people or to machines.
struct Teller {
    json: bool,
    steps: Vec<Step>,
}

impl Teller {
    /// Runs one check and reports it.
    fn check(&mut self, claim: &'static str, check: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        let started = Instant::now();
        if !self.json {
            self.note(&format!("… {claim}"));
        }
        let result = check();
        let (passed, seen) = match &result {
            Ok(seen) => (true, seen.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        let step = Step { claim, passed, seen, seconds: started.elapsed().as_secs_f64() };
        let line = if self.json {
            serde_json::to_string(&step)?
        } else {
            format!(
                "{} {claim}  ({:.1} s)\n    {}",
                if passed { "✔" } else { "✘" },
                step.seconds,
                step.seen.replace('\n', "\n    ")
            )
        };
        crate::output::line(&line);
        self.steps.push(step);
        result.map(drop).context(claim)
    }

    /// Progress and remarks: to standard error, so that standard output is the story.
    fn note(&self, text: &str) {
        crate::output::note(text);
    }

    fn summary(&self, started: Instant) -> anyhow::Result<()> {
        let passed = !self.steps.is_empty() && self.steps.iter().all(|step| step.passed);
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            crate::output::line(&serde_json::to_string(&Summary { passed, seconds, steps: &self.steps })?);
            return Ok(());
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(["step", "", "seconds"]);
        for step in &self.steps {
            table.add_row([step.claim, if step.passed { "✔" } else { "✘" }, &format!("{:.1}", step.seconds)]);
        }
        let verdict = if passed { "every claim held" } else { "NOT every claim held" };
        table.add_row([verdict, if passed { "✔" } else { "✘" }, &format!("{seconds:.1}")]);
        crate::output::line(&format!("\n{table}"));
        Ok(())
    }
}
