//! The programs under test, as processes of their own: started, watched in `/proc`, ended by their id.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::crowd::SYSTEM;

/// A process that this run started.
pub struct Process(Child);

/// A controller.
pub struct Controller {
    pub process: Process,
    ports: Ports,
}

/// Where a controller listens, on loopback.
#[derive(Clone, Copy)]
pub struct Ports {
    serving: u16,
    monitoring: u16,
    webhook: u16,
}

impl Ports {
    /// Ports that are free now. Somebody else may take one until it is used; the program then says so.
    pub fn free() -> anyhow::Result<Self> {
        let port = || anyhow::Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port());
        Ok(Self { serving: port()?, monitoring: port()?, webhook: port()? })
    }

    /// For nodes.
    pub fn address(self) -> String {
        format!("https://127.0.0.1:{}", self.serving)
    }
}

impl Controller {
    /// Starts it, and waits until it serves. Returns how long that took.
    pub async fn start(stillmesh: &Path, ports: Ports, log: &Path) -> anyhow::Result<(Self, Duration)> {
        let Ports { serving, monitoring, webhook } = ports;
        let begun = Instant::now();
        let mut command = Command::new(stillmesh);
        command
            .arg("controller")
            .env("POD_NAMESPACE", SYSTEM)
            .env("POD_NAME", format!("controller-{serving}"))
            .env("LISTEN", format!("127.0.0.1:{serving}"))
            .env("MONITORING", format!("127.0.0.1:{monitoring}"))
            .env("WEBHOOK_LISTEN", format!("127.0.0.1:{webhook}"))
            .env("CA_TRUSTED_NODE_ACCOUNTS", format!("{SYSTEM}/ztunnel"));
        let process = Process::start(&mut command, log)?;
        let controller = Self { process, ports };
        while !controller.get("/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            let log = || std::fs::read_to_string(log).unwrap_or_default();
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(180), "the controller is not ready:\n{}", log());
            anyhow::ensure!(controller.process.resident_bytes().is_ok(), "the controller ended:\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok((controller, begun.elapsed()))
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.monitoring)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

impl Process {
    /// Starts a program with its output in a file.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {command:?}"))?))
    }

    /// Kills it as a node that breaks would.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// CPU seconds used so far, user and system.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).context("the process ended")?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) / 100.0)
    }

    /// Resident memory now, bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, bytes.
    pub fn peak_bytes(&self) -> anyhow::Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).context("the process ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("the process ended")?;
        Ok(line.split_whitespace().next().context("status")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
