//! Asks for a page at a steady rate and counts what comes back.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;
use stillmesh_runtime::tasks::Tasks;
use tokio::time::{MissedTickBehavior, interval};

use super::client::KeepAlive;
use super::stop_asked;

/// A client that never stops asking.
#[derive(Debug, Args)]
pub(super) struct Visitor {
    /// Host and port to ask, for example `page:9080`.
    authority: String,
    /// Path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests per second.
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Age in seconds at which the connection is replaced by a new one.
    #[arg(long, default_value_t = 5)]
    max_age: u64,
}

impl Visitor {
    /// Asks until SIGTERM. Prints one line of totals each half second.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let tasks = Tasks::new("shop");
        let mut client = KeepAlive::new(&self.authority, Duration::from_secs(self.max_age), tasks);
        let mut latency = Histogram::<u64>::new(3).context("histogram")?;
        let (mut requests, mut errors, mut last_error) = (0_u64, 0_u64, None);
        let mut turn = interval(Duration::from_secs(1) / self.rate.max(1));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut printed = Instant::now();
        let stop = stop_asked();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = &mut stop => break,
            }
            let asked = Instant::now();
            requests += 1;
            match client.get(&self.path).await {
                Ok(_) => latency.saturating_record(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX)),
                Err(error) => {
                    errors += 1;
                    last_error = Some(format!("{error:#}"));
                }
            }
            if printed.elapsed() >= Duration::from_millis(500) {
                printed = Instant::now();
                let (p50, p99) = (latency.value_at_quantile(0.5), latency.value_at_quantile(0.99));
                let line = json!({
                    "requests": requests, "errors": errors, "last-error": last_error,
                    "p50-us": p50, "p99-us": p99,
                });
                crate::output::line(&line.to_string());
            }
        }
        Ok(())
    }
}
