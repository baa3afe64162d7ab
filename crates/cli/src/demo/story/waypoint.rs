//! The chapter about waypoints: the shop's HTTP goes through one, which splits, retries and refuses by what requests are.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Apps, ambient, brief, captured, last_line};
use crate::demo::Teller;
use crate::driver::{Mesh, until};

const WAYPOINT: &str = include_str!("../manifests/waypoint.yaml");
const CANARY: &str = include_str!("../manifests/canary.yaml");
const FAILING: &str = include_str!("../manifests/failing.yaml");
const RETRY: &str = include_str!("../manifests/retry.yaml");
const READERS: &str = include_str!("../manifests/readers.yaml");
/// So many requests are counted before a share is believed.
const COUNTED: usize = 150;

/// Tells it. The shop is in the mesh before and after.
pub(super) fn tell(mesh: &Mesh, teller: &mut Teller) -> anyhow::Result<()> {
    let before = Apps::look(mesh)?;
    teller.check("a waypoint takes the namespace's HTTP, and no request fails meanwhile", || {
        mesh.apply("waypoint.yaml", WAYPOINT)?;
        let pod = until(|| running(mesh))?;
        mesh.apply("namespaces.yaml", &bound())?;
        let line = until(|| last_line(&log(mesh)?, "the waypoint", &["path=\"/reviews\"", "status=200"]))?;
        goes_on(mesh, &before)?;
        Ok(format!("{pod}: {}", brief(&line, &["src.identity="])))
    })?;
    teller.check("a canary: one request in ten goes to reviews v2", || {
        mesh.apply("canary.yaml", CANARY)?;
        // What came before the route is not counted.
        let mut seen = until(|| {
            let seen = reviews(mesh)?;
            let last: Vec<&String> = seen.iter().rev().take(20).collect();
            ensure!(last.len() == 20 && last.iter().all(|pod| *pod != "reviews-v3"), "reviews v3 is still asked");
            Ok(seen.len())
        })?;
        seen = seen.saturating_sub(20);
        let after = until(|| {
            let after = reviews(mesh)?.split_off(seen);
            ensure!(after.len() >= COUNTED, "{} requests so far", after.len());
            Ok(after)
        })?;
        let of = |name: &str| after.iter().filter(|pod| *pod == name).count();
        let (v1, v2) = (of("reviews-v1"), of("reviews-v2"));
        ensure!(v1 + v2 == after.len(), "{v1} and {v2} of {} requests", after.len());
        // Far beyond what chance does to one in ten.
        ensure!(v2 > 0 && v2 * 4 < after.len(), "{v2} of {} requests went to v2", after.len());
        goes_on(mesh, &before)?;
        Ok(format!("{v1} requests to v1, {v2} to v2, none to v3"))
    })?;
    teller.check("a backend that fails every second request: retries hide it", || {
        mesh.apply("failing.yaml", &FAILING.replace("[STILLMESH,", &format!("[{},", crate::demo::own_file()?)))?;
        until(|| ready(mesh, "reviews-failing"))?;
        until(|| captured(mesh))?;
        let earlier = retried(mesh)?;
        mesh.apply("canary.yaml", RETRY)?;
        let retried = until(|| {
            let retried = retried(mesh)? - earlier;
            ensure!(retried > 50, "{retried} tries more so far");
            Ok(retried)
        })?;
        goes_on(mesh, &before)?;
        Ok(format!("{retried} failed tries, none of which the visitor has seen"))
    })?;
    mesh.delete("canary.yaml")?;
    mesh.delete("failing.yaml")?;
    let curious = |authority: &str, path: &str| mesh.fetch("shop", "curious", authority, path);
    teller.check("a policy refuses what a request asks for, not who asks", || {
        until(|| curious("details:9080", "/details/secret"))?;
        mesh.apply("readers.yaml", READERS)?;
        let refused = until(|| match curious("details:9080", "/details/secret") {
            Ok(_) => anyhow::bail!("/details/secret is still answered"),
            Err(error) if format!("{error:#}").contains("403") => Ok(format!("{error:#}")),
            Err(error) => Err(error),
        })?;
        curious("details:9080", "/details").context("what is not forbidden")?;
        goes_on(mesh, &before)?;
        Ok(refused.lines().last().unwrap_or_default().to_owned())
    })?;
    teller.check("and going to the pod itself is no way round", || {
        let pods = mesh.pods("shop")?;
        let details = pods.iter().find(|pod| pod["metadata"]["name"] == "details").context("no pod details")?;
        let address = details["status"]["podIP"].as_str().context("details has no address")?;
        until(|| match curious(&format!("{address}:9080"), "/details/secret") {
            Ok(_) => anyhow::bail!("{address}:9080 still answers"),
            Err(_) => Ok(()),
        })?;
        until(|| curious("details:9080", "/details")).context("through the waypoint")?;
        goes_on(mesh, &before)?;
        Ok(format!("{address}:9080 answers nobody but the waypoint"))
    })?;
    teller.check("without the waypoint the shop goes on as before", || {
        mesh.delete("readers.yaml")?;
        mesh.apply("namespaces.yaml", &ambient())?;
        let now = Apps::look(mesh)?;
        mesh.delete("waypoint.yaml")?;
        until(|| match running(mesh) {
            Ok(pod) => anyhow::bail!("{pod} still runs"),
            Err(_) => Ok(()),
        })?;
        until(|| Apps::look(mesh)?.busier_than(&now))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(Apps::look(mesh)?.to_string())
    })
}

/// The namespaces, the shop's bound to the waypoint.
fn bound() -> String {
    let label = "istio.io/dataplane-mode: ambient\n";
    ambient().replacen(label, &format!("{label}    istio.io/use-waypoint: waypoint\n"), 1)
}

/// The applications ask on, and none of their requests has failed.
fn goes_on(mesh: &Mesh, before: &Apps) -> anyhow::Result<()> {
    let now = Apps::look(mesh)?;
    until(|| Apps::look(mesh)?.busier_than(&now))?;
    Apps::look(mesh)?.unharmed_since(before)
}

/// The waypoint's pod.
fn running(mesh: &Mesh) -> anyhow::Result<String> {
    let pods = mesh.pods("shop")?;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let found = pods.iter().find(|pod| name(pod).starts_with("waypoint-")).context("the waypoint has no pod")?;
    is_ready(found)?;
    Ok(name(found))
}

fn ready(mesh: &Mesh, name: &str) -> anyhow::Result<()> {
    let pods = mesh.pods("shop")?;
    is_ready(pods.iter().find(|pod| pod["metadata"]["name"] == name).with_context(|| format!("no pod {name}"))?)
}

fn is_ready(pod: &Value) -> anyhow::Result<()> {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    ensure!(ready, "pod {} is not ready", pod["metadata"]["name"]);
    Ok(())
}

fn log(mesh: &Mesh) -> anyhow::Result<String> {
    mesh.must(&["logs", "-n", "shop", &running(mesh)?])
}

/// The pods that have answered for reviews, in order.
fn reviews(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    let log = log(mesh)?;
    let asked = log.lines().filter(|line| line.contains("path=\"/reviews\""));
    Ok(asked.filter_map(|line| Some(line.split_once("dst.workload=\"")?.1.split_once('"')?.0.to_owned())).collect())
}

/// How often the waypoint has tried again.
fn retried(mesh: &Mesh) -> anyhow::Result<u64> {
    let page = mesh.fetch("shop", &running(mesh)?, "127.0.0.1:15020", "/stats/prometheus")?;
    let mut counts = page.lines().filter_map(|line| line.strip_prefix("stillmesh_waypoint_retried_total "));
    let count = counts.next().context("the waypoint counts no retries")?;
    count.trim().parse().with_context(|| format!("{count:?} retries"))
}
