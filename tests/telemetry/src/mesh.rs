//! A mesh of one machine, and one with a Prometheus in one of its pods.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// The mesh; taken down when dropped.
pub struct Mesh {
    stillmesh: PathBuf,
    name: String,
    /// What the mesh and its pods share with the test.
    pub dir: tempfile::TempDir,
    up: Child,
}

impl Mesh {
    /// Starts one on these manifests, with these variables in its environment, and waits until all pods are ready.
    pub fn start(
        stillmesh: &Path,
        dir: tempfile::TempDir,
        manifests: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let name = format!("telemetry-{}", std::process::id());
        let at = dir.path().join("manifests");
        fs::create_dir(&at)?;
        fs::write(at.join("all.yaml"), manifests)?;
        let log = fs::File::create(dir.path().join("up.log"))?;
        let up = Command::new(stillmesh)
            .arg("up")
            .arg(&at)
            // Certificates for less than an alert's three hours.
            .args(["--name", &name, "--nodes", "2", "--secret-ttl", "2h"])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("stillmesh does not start")?;
        let mesh = Self { stillmesh: stillmesh.to_owned(), name, dir, up };
        let waited = mesh.command(&["status", "--wait", "120"], &[])?;
        ensure!(waited.status.success(), "not ready:\n{}\nup said:\n{}", text(&waited), mesh.said());
        Ok(mesh)
    }

    /// What `up` has printed.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// What came of a test; where it failed, prints what `up` has.
    pub fn said_when_failed(&self, ended: Result<()>) -> Result<()> {
        if ended.is_err() {
            println!("--- up said:\n{}", self.said());
        }
        ended
    }

    /// Writes a manifest.
    pub fn apply(&self, file: &str, content: &str) -> Result<()> {
        let at = self.dir.path().join("manifests");
        fs::write(at.join("part~"), content)?;
        Ok(fs::rename(at.join("part~"), at.join(file))?)
    }

    /// Takes a manifest away.
    pub fn withdraw(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.dir.path().join("manifests").join(file))?)
    }

    fn prepare(&self, arguments: &[&str], argv: &[&str]) -> Command {
        let mut command = Command::new(&self.stillmesh);
        command.args(arguments).args(["--name", &self.name]).stdin(Stdio::null());
        if !argv.is_empty() {
            command.arg("--").args(argv);
        }
        command
    }

    /// Runs a command of `stillmesh`, with a program of a pod where there is one.
    pub fn command(&self, arguments: &[&str], argv: &[&str]) -> Result<Output> {
        self.prepare(arguments, argv).output().with_context(|| format!("{arguments:?}"))
    }

    /// Starts a program in a pod that goes on until it is dropped.
    pub fn spawn(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<Running> {
        let mut command = self.prepare(&["exec", "-n", namespace, pod], argv);
        command.spawn().map(Running).with_context(|| format!("{argv:?}"))
    }

    /// Runs a program in a pod.
    pub fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<Output> {
        self.command(&["exec", "-n", namespace, pod], argv)
    }

    /// All pods.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let output = self.command(&["get", "pods", "-A", "-o", "json"], &[])?;
        ensure!(output.status.success(), "get pods:\n{}", text(&output));
        let list: Value = serde_json::from_slice(&output.stdout)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }
}

/// A mesh with a Prometheus.
pub struct Scraped {
    pub mesh: Mesh,
    pub promtool: PathBuf,
}

impl Deref for Scraped {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        &self.mesh
    }
}

impl Scraped {
    /// What Prometheus answers to a query now: labels and value of each series.
    pub fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let promtool = self.promtool.to_string_lossy();
        let argv = [&*promtool, "query", "instant", "--format=json", "http://127.0.0.1:9090", expression];
        let output = self.exec("monitoring", "prometheus", &argv)?;
        ensure!(output.status.success(), "{expression}\n{}", text(&output));
        let Value::Array(series) = serde_json::from_slice(&output.stdout)? else {
            bail!("{expression}: no vector: {}", text(&output));
        };
        let value = |one: &Value| one["value"][1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN);
        Ok(series.iter().map(|one| (one["metric"].clone(), value(one))).collect())
    }

    /// The one number that a query gives; 0 where it gives none.
    pub fn number(&self, expression: &str) -> Result<f64> {
        let all = self.query(expression)?;
        ensure!(all.len() <= 1, "{expression} gives {} series", all.len());
        Ok(all.first().map_or(0.0, |(_, value)| *value))
    }

    /// Waits until a query gives this number.
    pub fn expect(&self, expression: &str, wanted: f64) -> Result<()> {
        let mut last = f64::NAN;
        let came = wait(|| {
            last = self.number(expression)?;
            Ok((last - wanted).abs() < 1e-9)
        })?;
        ensure!(came, "{expression} is {last}, not {wanted}");
        println!("ok    {wanted} = {expression}");
        Ok(())
    }

    /// Waits until a query gives something.
    pub fn appears(&self, expression: &str) -> Result<()> {
        ensure!(wait(|| Ok(!self.query(expression)?.is_empty()))?, "nothing comes of {expression}");
        Ok(())
    }
}

/// A program in a pod; ended when dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.up.id().to_string()]).status();
        let end = Instant::now() + Duration::from_secs(40);
        while matches!(self.up.try_wait(), Ok(None)) && Instant::now() < end {
            sleep(Duration::from_millis(50));
        }
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

/// Waits until something is so; whether it came to be.
pub fn wait(so: impl FnMut() -> Result<bool>) -> Result<bool> {
    wait_for(PATIENCE, so)
}

/// [`wait`], for so long.
pub fn wait_for(patience: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + patience;
    while !so()? {
        if Instant::now() > end {
            return Ok(false);
        }
        sleep(Duration::from_millis(200));
    }
    Ok(true)
}

/// Both outputs, for messages.
pub fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}
