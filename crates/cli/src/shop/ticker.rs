//! One long raw TCP connection that must not break: the server counts, the watcher checks that nothing is missing.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use super::{Listen, stop_asked};

/// Time between two lines.
const BEAT: Duration = Duration::from_millis(100);
/// Silence after which the watcher calls the connection broken.
const SILENCE: Duration = Duration::from_secs(10);

/// Sends `0`, `1`, `2`, … on each connection until the client ends it.
pub(super) async fn serve(listen: Listen) -> anyhow::Result<()> {
    let listener = listen.bind()?;
    let tasks = Tasks::new("shop");
    loop {
        let mut stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => { tokio::task::yield_now().await; continue }
            },
            () = stop_asked() => return Ok(()),
        };
        tasks.spawn("ticker-connection", async move {
            let (read, mut write) = stream.split();
            let mut read = BufReader::new(read);
            let mut beat = interval(BEAT);
            let mut number = 0_u64;
            let mut end = String::new();
            loop {
                tokio::select! {
                    _ = beat.tick() => {
                        if write.write_all(format!("{number}\n").as_bytes()).await.is_err() { return }
                        number += 1;
                    }
                    _ = read.read_line(&mut end) => break, // the client is done; so are we
                }
            }
            let _ = write.shutdown().await;
        });
    }
}

/// The ticker's client.
#[derive(Debug, Args)]
pub(super) struct Watcher {
    /// Host and port of the ticker.
    authority: String,
    /// Age in seconds at which the watcher itself ends a connection, cleanly, and opens the next.
    #[arg(long, default_value_t = 8)]
    max_age: u64,
}

impl Watcher {
    /// Watches until SIGTERM. Prints one line of totals each half second; `broken` counts connections that ended
    /// before the watcher ended them, fell silent, or skipped a number.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (mut connections, mut broken, mut refused, mut last_error) = (0_u64, 0_u64, 0_u64, None);
        let mut printed = Instant::now();
        let stop = stop_asked();
        tokio::pin!(stop);
        let mut pause = interval(BEAT);
        loop {
            tokio::select! {
                _ = pause.tick() => {}
                () = &mut stop => return Ok(()),
            }
            let stream = match timeout(SILENCE, TcpStream::connect(&self.authority)).await {
                Ok(Ok(stream)) => stream,
                other => {
                    refused += 1;
                    last_error = Some(format!("connect: {other:?}"));
                    continue;
                }
            };
            connections += 1;
            let mut report = |number: u64, broken: u64| {
                if printed.elapsed() >= Duration::from_millis(500) {
                    printed = Instant::now();
                    let line = json!({
                        "connections": connections, "broken": broken, "refused": refused, "last-error": last_error,
                        "lines": number,
                    });
                    crate::output::line(&line.to_string());
                }
            };
            let watched = tokio::select! {
                watched = watch(stream, Duration::from_secs(self.max_age), |number| report(number, broken)) => watched,
                () = &mut stop => return Ok(()),
            };
            if let Err(error) = watched {
                broken += 1;
                last_error = Some(format!("{error:#}"));
            }
        }
    }
}

/// Follows one connection to its own clean end after `age`.
async fn watch(stream: TcpStream, age: Duration, mut report: impl FnMut(u64)) -> anyhow::Result<()> {
    let opened = Instant::now();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut expected = 0_u64;
    while opened.elapsed() < age {
        let line = timeout(SILENCE, lines.next_line()).await.context("silent")??.context("ended by the other side")?;
        anyhow::ensure!(line == expected.to_string(), "line {expected} is missing: got {line:?}");
        expected += 1;
        report(expected);
    }
    write.write_all(b"bye\n").await?;
    write.shutdown().await?;
    while timeout(SILENCE, lines.next_line()).await.context("no clean end")??.is_some() {}
    Ok(())
}
