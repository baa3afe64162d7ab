//! Alerts that have a reason fire, with names; others do not. What no test can bring about on a mesh (a root that expires) is left to
//! `rules.test.yaml`.

use anyhow::{Context as _, Result, ensure};

use crate::mesh::{Scraped, text, wait};
use crate::scene;

const DENIED: usize = 90;
const SLOW: usize = 12;

fn firing(name: &str) -> String {
    format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}")
}

fn silent(mesh: &Scraped, names: &[&str]) -> Result<()> {
    for name in names {
        ensure!(mesh.query(&firing(name))?.is_empty(), "{name} fires without reason");
    }
    Ok(())
}

/// Waits until an alert fires, its reason brought about again and again.
fn fires(mesh: &Scraped, name: &str, mut reason: impl FnMut() -> Result<()>) -> Result<()> {
    let came = wait(|| {
        reason()?;
        Ok(!mesh.query(&firing(name))?.is_empty())
    })?;
    ensure!(came, "{name} does not fire");
    println!("ok    {name} fires");
    Ok(())
}

/// Of connections and requests: refused, slow, failed.
pub fn of_traffic(mesh: &Scraped) -> Result<()> {
    silent(mesh, &["StillmeshDenials", "StillmeshLatency", "StillmeshErrors", "StillmeshRootExpires"])?;
    // How many of so many tries were refused.
    let denied = |times: usize| -> Result<usize> {
        let script =
            format!("for i in $(seq {times}); do curl -s -o /dev/null -m 5 http://direct/ || echo refused; done");
        let output = mesh.exec("shop", "stranger", &["sh", "-c", &script])?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count())
    };
    mesh.apply("deny.yaml", scene::DENY)?;
    let labels = "reporter=\"destination\",response_flags=\"DENY\",source_workload=\"stranger\"";
    let counted = format!("sum(istio_tcp_connections_failed_total{{{labels}}})");
    ensure!(wait(|| Ok(denied(1)? == 1))?, "nobody is refused");
    // Rates see what comes after a series' first sample.
    mesh.expect(&counted, 1.0)?;
    ensure!(denied(DENIED)? == DENIED, "not everybody is refused");
    mesh.expect(&counted, 91.0)?;
    fires(mesh, "StillmeshDenials", || Ok(()))?;

    let ask = || -> Result<()> {
        let script = format!("for i in $(seq {SLOW}); do curl -s -o /dev/null -m 20 http://warm/ & done; wait");
        mesh.exec("shop", "client", &["sh", "-c", &script]).map(drop)
    };
    mesh.apply("slow.yaml", scene::SLOW)?;
    fires(mesh, "StillmeshLatency", ask)?;
    mesh.apply("slow.yaml", scene::BROKEN)?;
    fires(mesh, "StillmeshErrors", ask)
}

/// Of the mesh itself: certificates that are not renewed, a node that refuses its configuration, a tunnel that has used up what it may,
/// one that is down.
pub fn of_the_mesh(mesh: &Scraped) -> Result<()> {
    silent(mesh, &["StillmeshXdsRejects", "StillmeshSaturation", "StillmeshNodeTunnelDown"])?;
    // The mesh is told to issue for less than the alert's three hours.
    fires(mesh, "StillmeshCertificatesNotRenewed", || Ok(()))?;

    let refuser = std::env::current_exe()?;
    let refuser = mesh.spawn("istio-system", TUNNEL, &[refuser.to_str().context("a path")?, "refuse"])?;
    fires(mesh, "StillmeshXdsRejects", || Ok(()))?;
    drop(refuser);

    let of = |metric: &str| mesh.number(&format!("{metric}{{pod=\"{TUNNEL}\"}}"));
    let (open, may) = (of("process_open_fds")?, of("process_max_fds")?);
    limit(mesh, open * 1.1)?;
    fires(mesh, "StillmeshSaturation", || Ok(()))?;
    limit(mesh, may)?;

    fires(mesh, "StillmeshNodeTunnelDown", || mesh.exec("istio-system", TUNNEL, &["kill", "-9", "2"]).map(drop))
}

const TUNNEL: &str = "ztunnel-node2";

/// How many files the tunnel may have open: in its own PID namespace process 1 is our init and 2 the program.
fn limit(mesh: &Scraped, files: f64) -> Result<()> {
    let soft = format!("--nofile={}:", files as u64);
    let set = mesh.exec("istio-system", TUNNEL, &["prlimit", "--pid", "2", &soft])?;
    ensure!(set.status.success(), "prlimit {soft}:\n{}", text(&set));
    Ok(())
}
