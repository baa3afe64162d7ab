//! The admin ports of the node tunnels and waypoints of a mesh on this machine: only their own pods can see them, so they
//! are asked from there.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::Method;
use tokio::process::Command;

use super::control;
use super::reconcile::Summary;

/// Where the tunnels run.
pub(crate) const NAMESPACE: &str = "istio-system";
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Nodes of a mesh, each with a tunnel.
pub(crate) async fn nodes(mesh: &str) -> anyhow::Result<Vec<String>> {
    let answer = control::client(mesh)?.get("/status").await?;
    ensure!(answer.status.is_success(), "{}", answer.text().trim());
    let summary: Summary = serde_json::from_slice(&answer.body).context("what the mesh says of itself")?;
    Ok(summary.nodes)
}

/// Asks a tunnel's admin port.
pub(crate) async fn ask(mesh: &str, node: &str, port: u16, method: Method, path: &str) -> anyhow::Result<Bytes> {
    send(mesh, (NAMESPACE, &format!("ztunnel-{node}")), port, method, path).await
}

/// Asks the admin port of a pod. What is read is text; a line's end is added.
pub(crate) async fn send(
    mesh: &str,
    (namespace, pod): (&str, &str),
    port: u16,
    method: Method,
    path: &str,
) -> anyhow::Result<Bytes> {
    let exe = std::env::current_exe().context("the path of this executable")?;
    let mut fetch = Command::new(&exe);
    fetch.args(["exec", "--name", mesh, "-n", namespace, pod, "--"]).arg(&exe);
    fetch.args(["shop", "fetch", &format!("127.0.0.1:{port}"), "--path", path, "--method", method.as_str()]);
    fetch.stdin(Stdio::null()).kill_on_drop(true);
    let Ok(done) = tokio::time::timeout(DEADLINE, fetch.output()).await else {
        bail!("{pod} has not answered within {DEADLINE:?}");
    };
    let done = done.with_context(|| format!("asking {pod}"))?;
    ensure!(done.status.success(), "{pod}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(done.stdout.into())
}
