//! `stillmesh bug-report`: one archive with what is needed to understand a mesh. [`gather`] fetches, [`objects`] those of the API
//! server, [`redact`] cuts what must not be told, [`archive`] packs. What could not be fetched is listed in it and on the screen.

mod archive;
mod gather;
mod objects;
mod redact;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use clap::Args;
use futures::FutureExt as _;
use futures::future::select_all;
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::cluster::args::{MeshNamespace, WhichMesh, duration};
use crate::output::{line, note};
use crate::why::place::Place;
use archive::{Archive, Packed};
use gather::{Gatherer, Scope};

/// Ended by a signal, as shells tell it.
const INTERRUPTED: u8 = 130;
/// Written, but not all of it could be fetched.
const INCOMPLETE: u8 = 3;

/// `stillmesh bug-report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when all is in the archive; 3 when it is written and parts are missing (listed in it and here); \
                  1 when none is written; 130 when interrupted, and then nothing is written.\n\
                  Secrets are never read. Private keys, tokens, passwords, cookies, Authorization values and values of environment \
                  variables are cut. Look into the archive before you pass it on."
)]
pub(crate) struct BugReport {
    /// Only these namespaces (`shop,cart-*`); the mesh's own is always in
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACE,...", value_parser = pattern)]
    include: Vec<String>,
    /// Not these namespaces
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMESPACE,...",
        default_value = "kube-system,kube-public,kube-node-lease,local-path-storage",
        value_parser = pattern
    )]
    exclude: Vec<String>,
    /// How far back logs, decisions and flows go
    #[arg(long, default_value = "1h", value_parser = duration)]
    duration: Duration,
    /// Since when, such as 2026-11-22T10:00:00Z, instead of --duration
    #[arg(long, value_name = "TIME", conflicts_with = "duration")]
    start_time: Option<Timestamp>,
    /// Say what would be fetched, and fetch none of it
    #[arg(long)]
    dry_run: bool,
    /// Where to write the archive; what is there is replaced
    #[arg(long, short, value_name = "FILE", default_value = "bug-report.tar.gz")]
    output: PathBuf,
    /// How long all of it may take; what is not there by then is missing
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    which: WhichMesh,
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// A namespace, with `*` for any letters.
fn pattern(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte);
    if !text.is_empty() && text.len() <= 63 && text.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err("names of namespaces are accepted, with * for any letters".to_owned())
    }
}

/// Carries it out.
pub(crate) async fn run(args: &BugReport) -> anyhow::Result<ExitCode> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()?;
    let folder = archive::folder(&args.output);
    ensure!(args.dry_run || folder.is_dir(), "{}: there is no folder {}", args.output.display(), folder.display());
    let made = async {
        let place = Place::find(&args.which).await?;
        let gatherer = Gatherer::new(place, scope(args)?, Instant::now() + args.timeout);
        if args.dry_run {
            gatherer.plan().await?.iter().for_each(|path| line(path));
            return Ok(None);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        gatherer.gather(Archive::new(now)).await.map(Some)
    };
    let gathered = tokio::select! {
        made = made => made?,
        () = stopped(&mut signals) => return Ok(interrupted()),
    };
    let Some((archive, missing)) = gathered else { return Ok(ExitCode::SUCCESS) };
    let packed = archive.finish().context("packing")?;
    // While it was packed nobody looked.
    if stopped(&mut signals).now_or_never().is_some() {
        return Ok(interrupted());
    }
    archive::write(&packed.content, &args.output)?;
    Ok(tell(args, &packed, &missing))
}

/// Until one of these signals comes.
async fn stopped(signals: &mut [Signal]) {
    select_all(signals.iter_mut().map(|one| Box::pin(one.recv()))).await;
}

fn interrupted() -> ExitCode {
    note("stillmesh: interrupted; no archive was written");
    ExitCode::from(INTERRUPTED)
}

fn scope(args: &BugReport) -> anyhow::Result<Scope> {
    let since = match args.start_time {
        None => args.duration,
        Some(start) => {
            let seconds = Timestamp::now().as_second() - start.as_second();
            ensure!(seconds > 0, "--start-time {start} is in the future");
            Duration::from_secs(seconds.unsigned_abs())
        }
    };
    Ok(Scope {
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        mesh_namespace: args.mesh.mesh_namespace.clone(),
        since,
    })
}

fn tell(args: &BugReport, packed: &Packed, missing: &[String]) -> ExitCode {
    missing.iter().for_each(|one| note(&format!("missing: {one}")));
    let Packed { content, files, bytes } = packed;
    line(&format!(
        "{}: {files} files, {} bytes ({bytes} unpacked); look into it before you pass it on",
        args.output.display(),
        content.len()
    ));
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    note(&format!("{} parts are missing; missing.txt in the archive lists them", missing.len()));
    ExitCode::from(INCOMPLETE)
}
