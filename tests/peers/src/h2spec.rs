//! h2spec (RFC 7540 and 7541, all cases, strict ones too) against the two places where a waypoint takes HTTP/2: a client's
//! HTTP in a CONNECT, and the HBONE connection around it. And against `crates/http2` alone, by its example.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stillmesh_waypoint_tests::routes::{Shop, shop};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::listener::{Way, listen};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    h2spec: PathBuf,
    /// The example of `crates/http2` that listens.
    #[arg(long)]
    http2: PathBuf,
}

/// How long one run may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// How many cases there are.
const CASES: usize = 146;

/// A case that cannot hold at a place, and why that is as it should be. One that holds all the same fails the run.
type Exception = (&'static str, &'static str);

/// It needs requests that are not answered at once.
const LIMIT: &str = "1: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded";

/// Cases that send more on a stream than the frame that opens it, and want the rest refused: whether that has come when a
/// request is refused for what it is (and HBONE refuses all of h2spec's, for none is a CONNECT) is a race. They hold or not
/// as it comes; without it, at the other place, they have to hold.
const RACES: &[&str] = &[
    LIMIT,
    // As large as SETTINGS_MAX_FRAME_SIZE allows, which is more than the window.
    "1: Sends a DATA frame with 2^14 octets in length",
    "1: Sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length",
    "1: Sends a second HEADERS frame without the END_STREAM flag",
    "2: Sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA \
     frames payload length",
    "3: Sends a HEADERS frame that contains a pseudo-header field as trailers",
    "2: Sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream",
    "3: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
    "8: closed: Sends a DATA frame after sending RST_STREAM frame",
    "9: closed: Sends a HEADERS frame after sending RST_STREAM frame",
];

const HTTP: &[Exception] = &[(
    "2: Sends invalid connection preface",
    "the port takes HTTP/1.1 too: what does not begin as HTTP/2 is answered «400» in HTTP/1.1, and ended",
)];

/// What `crates/http2` does, at both places.
const HTTP2: [Exception; 5] = [
    (
        "2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        "a body is waited for: what is no CONNECT gets none",
    ),
    ("3: Sends a PRIORITY frame on half-closed (remote) stream", "a body is waited for: what is no CONNECT gets none"),
    ("14: Sends a dynamic table size update", "it was told that there is no table, and has acknowledged that"),
    ("15: Sends multiple dynamic table size update", "it was told that there is no table, and has acknowledged that"),
    (
        "1: Sends multiple CONTINUATION frames preceded by a HEADERS frame",
        "their fields are in a table: it was told that there is none, and has acknowledged that",
    ),
];

/// And what HBONE's bounds do.
const HBONE: &[Exception] = {
    let [body, priority, table, tables, block] = HTTP2;
    &[
        body,
        priority,
        table,
        tables,
        block,
        (
            "3: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
            "20 KB are taken for too large, and HBONE's frames may have 1 MiB",
        ),
    ]
};

/// Runs it at all places.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut unexpected = http2(&args).await?;
    let Shop { world, web, .. } = shop(1, &[], vec![]).await;
    let client = Arc::new(world.client("page", 1));
    for (what, way, exceptions) in
        [("HTTP in a CONNECT", Way::Connect(web), (HTTP, &[][..])), ("HBONE", Way::Raw, (HBONE, RACES))]
    {
        let port = listen(client.clone(), way, &world.tasks).await.port().to_string();
        unexpected += judge(what, &all_cases(&args.h2spec, &port).await?, exceptions)?;
    }
    ensure!(unexpected == 0, "{unexpected} cases of h2spec are not as they should be");
    Ok(())
}

/// Runs it at the listener of `crates/http2`, which says its port first.
async fn http2(args: &Args) -> anyhow::Result<usize> {
    let mut command = Command::new(&args.http2);
    // It tells of every connection that ends with an error: almost all do.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut listener = command.spawn().context("the listener does not start")?;
    let mut port = String::new();
    let output = listener.stdout.take().context("the listener has no output")?;
    timeout(PATIENCE, BufReader::new(output).read_line(&mut port)).await.context("the listener says no port")??;
    judge("the http2 crate", &all_cases(&args.h2spec, port.trim()).await?, (&HTTP2, &[LIMIT]))
}

/// What it says of all cases.
async fn all_cases(h2spec: &Path, port: &str) -> anyhow::Result<String> {
    let run = Command::new(h2spec)
        // An application that answers once it has the whole request.
        .args(["--strict", "--host", "127.0.0.1", "--timeout", "3", "--path", "/length", "--port", port])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.context("h2spec does not end")?.context("h2spec does not start")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many cases came out otherwise than they should have.
fn judge(what: &str, text: &str, (exceptions, races): (&[Exception], &[&str])) -> anyhow::Result<usize> {
    let summary =
        text.lines().rfind(|line| line.contains(" tests, ")).with_context(|| format!("no result:\n{text}"))?;
    let count = |word: &str| {
        let parts = summary.split(", ").find_map(|part| part.strip_suffix(word));
        parts.and_then(|number| number.trim().parse::<usize>().ok())
    };
    let (all, failed) = (count("tests"), count("failed").context("no number of failures")?);
    ensure!(all == Some(CASES), "{CASES} cases were to be run: {summary}");
    let failures = text.split_once("Failures:").map_or("", |(_, failures)| failures);
    let failing: Vec<&str> = failures.lines().filter_map(|line| line.trim().strip_prefix("× ")).collect();
    ensure!(failing.len() == failed, "{failed} failures, and {} are told of:\n{text}", failing.len());
    println!("{what}: {summary}");
    let mut excepted = Vec::new();
    let mut wrong = 0;
    for case in failing {
        if let Some((_, why)) = exceptions.iter().find(|(title, _)| *title == case) {
            println!("  as it should be: «{case}» fails: {why}");
            excepted.push(case);
        } else if races.contains(&case) {
            println!("  as it comes: «{case}» fails: the request was refused before the rest had come");
        } else {
            wrong += 1;
        }
    }
    if wrong > 0 {
        println!("{failures}");
    }
    let right = exceptions.iter().filter(|(title, _)| !excepted.contains(title));
    for (title, _) in right.clone() {
        println!("  no exception any more: «{title}»");
    }
    Ok(wrong + right.count())
}
