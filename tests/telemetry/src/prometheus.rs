//! A real Prometheus scrapes a real mesh. What it says must be what was done: so many requests, connections and bytes, from both
//! reporters; every query of every dashboard has data; alerts fire when there is reason to, and not before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::mesh::{Mesh, Scraped, text, wait};
use crate::{alerts, dashboards, scene};

#[derive(Debug, clap::Args)]
pub struct Prometheus {
    #[arg(long)]
    prometheus: PathBuf,
    #[arg(long)]
    promtool: PathBuf,
    /// The folder with telemetry/ in it.
    #[arg(long)]
    deploy: PathBuf,
}

/// What was sent.
const REQUESTS: usize = 40;
const CONNECTIONS: usize = 25;

/// Starts the mesh and looks at all of it.
pub fn run(stillmesh: &Path, arguments: &Prometheus) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("stillmesh-telemetry-").tempdir()?;
    let rules = fs::read_to_string(arguments.deploy.join("telemetry/rules.yaml"))?;
    prepare(dir.path(), &rules)?;
    let manifests = scene::manifests(&fs::canonicalize(&arguments.prometheus)?, dir.path());
    let promtool = fs::canonicalize(&arguments.promtool)?;
    let mesh = Scraped { mesh: Mesh::start(stillmesh, dir, &manifests, &[])?, promtool };
    mesh.said_when_failed(look(&mesh, &arguments.deploy))
}

fn look(mesh: &Scraped, deploy: &Path) -> Result<()> {
    discover(mesh)?;
    traffic(mesh)?;
    overrides(mesh)?;
    contract(mesh)?;
    alerts::of_traffic(mesh)?;
    alerts::of_the_mesh(mesh)?;
    dashboards::ask(mesh, deploy)
}

/// Prometheus's files: the rules are ours but for how long they wait.
fn prepare(dir: &Path, rules: &str) -> Result<()> {
    let soon = |line: &str| {
        if line.trim_start().starts_with("for: ") { "        for: 1s".to_owned() } else { line.to_owned() }
    };
    let soon: Vec<String> = rules.lines().map(soon).collect();
    fs::write(dir.join("rules.yaml"), soon.join("\n") + "\n")?;
    fs::write(dir.join("targets.json"), "[]")?;
    fs::create_dir(dir.join("data"))?;
    let at = dir.display();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
         rule_files: ['{at}/rules.yaml']\n\
         scrape_configs:\n- job_name: mesh\n  file_sd_configs: [{{files: ['{at}/targets.json'], refresh_interval: 1s}}]\n"
    );
    Ok(fs::write(dir.join("prometheus.yaml"), config)?)
}

/// Pods are found as Prometheus finds them in a cluster: by their annotations.
fn discover(mesh: &Scraped) -> Result<()> {
    let mut found = Vec::new();
    let all = wait(|| {
        found = targets(&mesh.pods()?);
        let named = |part: &str| {
            found.iter().filter(|one| one["labels"]["pod"].as_str().is_some_and(|pod| pod.starts_with(part))).count()
        };
        Ok(named("ztunnel-") == 2
            && named("istio-cni-node-") == 2
            && named("stillmesh-controller") == 1
            && named("waypoint") == 1)
    })?;
    ensure!(all, "pods with metrics: {}", json!(found));
    let file = mesh.dir.path().join("targets.json");
    fs::write(file.with_extension("part"), json!(found).to_string())?;
    fs::rename(file.with_extension("part"), file)?;
    mesh.expect("count(up == 1)", 6.0)?;
    mesh.expect("count(up == 0) or vector(0)", 0.0)
}

fn targets(pods: &[Value]) -> Vec<Value> {
    let target = |pod: &Value| {
        let annotation = |key: &str| pod["metadata"]["annotations"][format!("prometheus.io/{key}")].as_str();
        let ip = pod["status"]["podIP"].as_str()?;
        (annotation("scrape")? == "true").then(|| {
            json!({
                "targets": [format!("{ip}:{}", annotation("port").unwrap_or_default())],
                "labels": {
                    "__metrics_path__": annotation("path"), "pod": pod["metadata"]["name"],
                    "namespace": pod["metadata"]["namespace"],
                },
            })
        })
    };
    pods.iter().filter_map(target).collect()
}

/// The client asks so many times, and is answered 200 each time.
fn get(mesh: &Scraped, url: &str, times: usize) -> Result<()> {
    let script = format!("for i in $(seq {times}); do curl -sS -o /dev/null -w '%{{http_code}} ' -m 20 {url}; done");
    let output = mesh.exec("shop", "client", &["sh", "-c", &script])?;
    ensure!(String::from_utf8_lossy(&output.stdout) == "200 ".repeat(times), "{times} x {url}:\n{}", text(&output));
    Ok(())
}

/// So many requests and connections are counted as so many, by whoever reports.
fn traffic(mesh: &Scraped) -> Result<()> {
    // Everything is captured and bound before anything is counted.
    let ready = wait(|| {
        let output = mesh.exec("shop", "client", &["curl", "-sS", "-m", "5", "http://warm/"])?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("By=spiffe"))
    })?;
    ensure!(ready, "nothing passes the waypoint");
    get(mesh, "http://web/", REQUESTS)?;
    get(mesh, "http://direct/", CONNECTIONS)?;

    // In clear text, from outside the mesh.
    let plain =
        mesh.exec("monitoring", "prometheus", &["curl", "-sS", "-m", "5", "http://direct.shop.svc.cluster.local/"])?;
    ensure!(plain.status.success(), "in clear text:\n{}", text(&plain));
    mesh.expect("sum(istio_tcp_connections_opened_total{connection_security_policy=\"unknown\"})", 1.0)?;

    // A name that the mesh does not know is asked for elsewhere.
    mesh.exec("shop", "client", &["getent", "hosts", "elsewhere.example"])?;
    mesh.appears("sum(istio_dns_upstream_requests_total{source_canonical_service=\"client\"}) > 0")?;

    let web = "reporter=\"waypoint\",destination_service=\"web.shop.svc.cluster.local\",source_workload=\"client\"";
    mesh.expect(&format!("sum(istio_requests_total{{{web},response_code=\"200\",request_protocol=\"http\"}})"), 40.0)?;
    for metric in
        ["istio_request_duration_milliseconds_count", "istio_request_bytes_count", "istio_response_bytes_count"]
    {
        mesh.expect(&format!("sum({metric}{{{web}}})"), 40.0)?;
    }
    mesh.expect(&format!("count(count by (le) (istio_request_duration_milliseconds_bucket{{{web}}}))"), 20.0)?;
    for reporter in ["source", "destination"] {
        let direct = format!(
            "reporter=\"{reporter}\",source_workload=\"client\",destination_workload=\"web\",\
             destination_service_name=\"direct\",destination_service_namespace=\"shop\",\
             destination_principal=\"spiffe://cluster.local/ns/shop/sa/default\",request_protocol=\"tcp\",\
             connection_security_policy=\"mutual_tls\",response_flags=\"-\""
        );
        mesh.expect(&format!("sum(istio_tcp_connections_opened_total{{{direct}}})"), 25.0)?;
        mesh.expect(&format!("sum(istio_tcp_connections_closed_total{{{direct}}})"), 25.0)?;
    }
    let bytes = |metric: &str, reporter: &str| {
        let of = format!("reporter=\"{reporter}\",source_workload=\"client\",destination_service_name=\"direct\"");
        mesh.number(&format!("sum({metric}{{{of}}})"))
    };
    for metric in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
        let (source, destination) = (bytes(metric, "source")?, bytes(metric, "destination")?);
        ensure!(source > 0.0 && (source - destination).abs() < 0.5, "{metric}: {source} and {destination}");
        println!("ok    {source} = {metric}, by both reporters");
    }
    // Through a waypoint the source's next hop is the waypoint, and the service is the one that was meant.
    let hop = "reporter=\"source\",destination_workload=\"waypoint\",destination_service_name=\"web\"";
    mesh.appears(&format!("istio_tcp_connections_opened_total{{{hop}}} > 0"))
}

/// A Telemetry object gives metrics other labels and stops some, as soon as it is there and as long.
fn overrides(mesh: &Scraped) -> Result<()> {
    let count = |labels: &str| format!("sum(istio_requests_total{{reporter=\"waypoint\",{labels}}})");
    let sizes = "sum(istio_request_bytes_count{destination_service=\"web.shop.svc.cluster.local\"})";
    let asked = |labels: &str| -> Result<bool> {
        get(mesh, "http://warm/", 1)?;
        Ok(mesh.number(&count(labels))? > 0.0)
    };
    mesh.apply("telemetry.yaml", scene::OVERRIDES)?;
    ensure!(wait(|| asked("request_host=\"warm\""))?, "no label is added");
    let before = mesh.number(sizes)?;
    get(mesh, "http://web/", REQUESTS)?;
    mesh.expect(&count("request_host=\"web\",source_principal=\"\",source_workload=\"client\""), 40.0)?;
    mesh.expect(sizes, before)?;
    mesh.withdraw("telemetry.yaml")?;
    let principal = "source_principal=\"spiffe://cluster.local/ns/shop/sa/default\",request_host=\"\"";
    let plain = count(&format!("{principal},destination_service_name=\"warm\""));
    let before = mesh.number(&plain)?;
    let again = wait(|| {
        get(mesh, "http://warm/", 1)?;
        Ok(mesh.number(&plain)? > before)
    })?;
    ensure!(again, "labels stay as the object was");
    println!("ok    labels are again what they were");
    Ok(())
}

/// What contract 9.1 to 9.3 promise and this traffic makes is there.
fn contract(mesh: &Scraped) -> Result<()> {
    let names: Vec<(Value, f64)> = mesh.query("count by (__name__) ({job=\"mesh\"})")?;
    let names: BTreeSet<&str> = names.iter().filter_map(|(labels, _)| labels["__name__"].as_str()).collect();
    let missing: Vec<_> = scene::PROMISED.iter().filter(|name| !names.contains(**name)).collect();
    ensure!(missing.is_empty(), "not served: {missing:?}\nserved: {names:?}");
    println!("ok    {} names of the contract, of {} that are served", scene::PROMISED.len(), names.len());
    for component in ["ztunnel", "proxy", "pilot"] {
        mesh.appears(&format!("istio_build{{component=\"{component}\"}} == 1"))?;
    }
    mesh.expect("sum(workload_manager_active_proxy_count)", 4.0)?;
    mesh.expect("min(ztunnel_connected)", 1.0)?;
    mesh.expect("sum(stillmesh_agent_pods{state=\"captured\"})", 4.0)?;
    mesh.expect("sum(pilot_xds)", 3.0)
}
