//! A real collector of OpenTelemetry's hears of a real mesh: spans of requests in the traces of clients (W3C, B3), over gRPC and HTTP;
//! records of logs; spans of connections, as parent and child. What it has no time for comes again; what is lost is counted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::mesh::{Mesh, text, wait};
use crate::scene;
use crate::told::{Told, records, refusals, spans};

#[derive(Debug, clap::Args)]
pub struct Collector {
    /// The program made of tests/telemetry/collector.
    #[arg(long)]
    collector: PathBuf,
}

/// Who hears of connections, as tunnels reach it.
const HOPS: &str = "collector.observability.svc.cluster.local:4317";

/// More requests than wait for a collector that is away: 2048, and a batch of 512 that is under way.
const MANY: usize = 2700;

/// The client's span.
const PARENT: &str = "b7ad6b7169203331";

/// Starts the mesh and looks at all that the collector wrote.
pub fn run(stillmesh: &Path, arguments: &Collector) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("stillmesh-collector-").tempdir()?;
    prepare(dir.path(), &fs::canonicalize(&arguments.collector)?)?;
    let manifests = scene::collected(dir.path());
    let mesh = Mesh::start(stillmesh, dir, &manifests, &[("HOP_SPANS_COLLECTOR", HOPS)])?;
    mesh.said_when_failed(look(&mesh))
}

fn look(mesh: &Mesh) -> Result<()> {
    requests(mesh)?;
    logs(mesh)?;
    connections(mesh)?;
    refused(mesh)?;
    away(mesh)
}

/// The collector's files.
fn prepare(dir: &Path, collector: &Path) -> Result<()> {
    let at = dir.display();
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '0.0.0.0:4317'}}, http: {{endpoint: '0.0.0.0:4318'}}}}}}}}\n\
         exporters: {{lines: {{directory: '{at}'}}}}\n\
         service:\n\
         \x20 telemetry: {{metrics: {{level: none}}}}\n\
         \x20 pipelines:\n\
         \x20   traces: {{receivers: [otlp], exporters: [lines]}}\n\
         \x20   logs: {{receivers: [otlp], exporters: [lines]}}\n"
    );
    fs::write(dir.join("collector.yaml"), config)?;
    // It stays away as long as somebody wants it to.
    let script = format!(
        "echo $$ > {at}/pid\nwhile [ -e {at}/away ]; do sleep 0.1; done\nexec {} --config file:{at}/collector.yaml\n",
        collector.display()
    );
    Ok(fs::write(dir.join("collector.sh"), script)?)
}

/// A trace of its own for each question.
fn trace(number: u8) -> String {
    format!("0af7651916cd43dd8448eb211c8031{number:02x}")
}

fn traceparent(number: u8) -> String {
    format!("traceparent: 00-{}-{PARENT}-01", trace(number))
}

/// What the shop's application says of a request of the client's: status and headers that it was sent.
fn ask(mesh: &Mesh, url: &str, headers: &[&str]) -> Result<Value> {
    let mut argv = vec!["curl", "-sS", "-m", "20", "-H", "accept: application/json"];
    headers.iter().for_each(|header| argv.extend(["-H", header]));
    argv.push(url);
    let output = mesh.exec("shop", "client", &argv)?;
    serde_json::from_slice(&output.stdout).map_err(|error| anyhow::anyhow!("{url}: {error}\n{}", text(&output)))
}

/// A header that the application was sent.
fn sent<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer["headers"][name][0].as_str().unwrap_or_default()
}

/// The one span of a request that the collector has by now, or soon.
fn span_of(mesh: &Mesh, trace: &str) -> Result<Told> {
    let mut found = Vec::new();
    wait(|| {
        found = spans(mesh.dir.path())?;
        found.retain(|span| span.text("traceId") == trace);
        Ok(!found.is_empty())
    })?;
    ensure!(found.len() == 1, "{} spans of trace {trace}: {found:?}", found.len());
    Ok(found.remove(0))
}

/// Spans of requests are in their clients' traces, and applications are sent the waypoint's.
fn requests(mesh: &Mesh) -> Result<()> {
    let ready = wait(|| {
        let output = mesh.exec("shop", "client", &["curl", "-sS", "-m", "5", "http://warm/"])?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("By=spiffe"))
    })?;
    ensure!(ready, "nothing passes the waypoint");
    for (number, service, way) in [(1, "web", "gRPC"), (2, "warm", "HTTP")] {
        let (url, parent) = (format!("http://{service}/items?token=SECRET"), traceparent(number));
        let answer = ask(mesh, &url, &[&parent, "tracestate: x=y", "x-tenant: blue"])?;
        let span = span_of(mesh, &trace(number))?;
        ensure!(span.text("parentSpanId") == PARENT, "its parent is not the client's: {span:?}");
        let passed = format!("00-{}-{}-01", trace(number), span.text("spanId"));
        ensure!(sent(&answer, "traceparent") == passed, "not handed on as {passed}: {answer:#}");
        ensure!(span.told["kind"] == 2 && span.text("traceState") == "x=y", "{span:?}");
        ensure!(span.text("name") == format!("{service}.shop.svc.cluster.local:80/*"), "{span:?}");
        let began: u64 = span.text("startTimeUnixNano").parse()?;
        let ended: u64 = span.text("endTimeUnixNano").parse()?;
        ensure!(began > 0 && began <= ended && span.told["status"]["code"].is_null(), "{span:?}");
        for (key, wanted) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.status_code", "200"),
            ("url.path", "/items"),
            ("url.query", "token=[redacted]"),
            ("istio.canonical_service", "waypoint"),
            ("istio.namespace", "shop"),
            ("team", "shop"),
            ("tenant", "blue"),
        ] {
            ensure!(span.attribute(key) == wanted, "{key} is not {wanted:?}: {span:?}");
        }
        ensure!(span.attribute("istio.source_principal").ends_with("/ns/shop/sa/default"), "{span:?}");
        told_by(&span, "waypoint.shop", "stillmesh-waypoint")?;
        println!("ok    a request of {service}, over {way}: the client's trace, its span the parent");
    }
    // B3, in one header and in many; and somebody who says no.
    let single = format!("b3: {}-{PARENT}-1", trace(3));
    let answer = ask(mesh, "http://web/", &[&single])?;
    let span = span_of(mesh, &trace(3))?;
    let passed = format!("{}-{}-1-{PARENT}", trace(3), span.text("spanId"));
    ensure!(span.text("parentSpanId") == PARENT && sent(&answer, "b3") == passed, "{answer:#} {span:?}");
    let many = [&*format!("x-b3-traceid: {}", trace(4)), &*format!("x-b3-spanid: {PARENT}"), "x-b3-sampled: 1"];
    let answer = ask(mesh, "http://web/", &many)?;
    let span = span_of(mesh, &trace(4))?;
    ensure!(span.text("parentSpanId") == PARENT && sent(&answer, "x-b3-spanid") == span.text("spanId"), "{answer:#}");
    ask(mesh, "http://web/", &[&format!("traceparent: 00-{}-{PARENT}-00", trace(5))])?;
    // An error is one; whoever said no is not there when somebody later is.
    ask(mesh, "http://web/?status=503&format=json", &[&traceparent(6)])?;
    let span = span_of(mesh, &trace(6))?;
    ensure!(span.told["status"]["code"] == 2 && span.attribute("error.type") == "503", "{span:?}");
    let all = spans(mesh.dir.path())?;
    ensure!(all.iter().all(|span| span.text("traceId") != trace(5)), "somebody is traced who said no");
    ensure!(!format!("{all:?}").contains("SECRET"), "a secret is told");
    println!("ok    B3 in one header and in many, an error, somebody who said no");
    Ok(())
}

/// Who tells something.
fn told_by(told: &Told, service: &str, program: &str) -> Result<()> {
    ensure!(told.of_resource("service.name") == service, "not of {service}: {told:?}");
    ensure!(told.scope["name"] == program && told.scope["version"].is_string(), "not by {program}: {told:?}");
    for key in ["k8s.node.name", "k8s.namespace.name", "k8s.pod.name", "k8s.cluster.name"] {
        ensure!(!told.of_resource(key).is_empty(), "{key} is missing: {told:?}");
    }
    Ok(())
}

/// Records of logs are of the requests, with their traces.
fn logs(mesh: &Mesh) -> Result<()> {
    let of = |trace: &str| -> Result<Vec<Told>> {
        let mut found = records(mesh.dir.path())?;
        found.retain(|record| record.text("traceId") == trace);
        Ok(found)
    };
    for (number, path, code) in [(1, "/items?token=[redacted]", "200"), (6, "/?status=503&format=json", "503")] {
        let mut found = Vec::new();
        wait(|| {
            found = of(&trace(number))?;
            Ok(!found.is_empty())
        })?;
        ensure!(found.len() == 1, "{} records of trace {}: {found:?}", found.len(), trace(number));
        let Some(record) = found.first() else { continue };
        let span = span_of(mesh, &trace(number))?;
        ensure!(record.text("spanId") == span.text("spanId"), "another span's: {record:?}");
        ensure!(record.attribute("path") == path && record.attribute("code") == code, "{record:?}");
        let body = record.told["body"]["stringValue"].as_str().unwrap_or_default();
        ensure!(body.contains(&format!("\"GET {path} HTTP/1.1\" {code}")), "Istio's line is not its body: {record:?}");
        ensure!(record.of_resource("log_name") == "shop", "{record:?}");
        told_by(record, "waypoint.shop", "stillmesh-waypoint")?;
    }
    ensure!(!format!("{:?}", records(mesh.dir.path())?).contains("SECRET"), "a secret is told");
    println!("ok    records of logs: bodies, attributes, their requests' traces and spans");
    Ok(())
}

/// Spans of connections: the client's end and the server's, as parent and child.
fn connections(mesh: &Mesh) -> Result<()> {
    ask(mesh, "http://direct/", &[])?;
    let (mut ends, mut all) = (Vec::new(), Vec::new());
    wait(|| {
        all = spans(mesh.dir.path())?;
        all.retain(|span| span.attribute("dst.service") == "direct.shop.svc.cluster.local");
        let trace = all.first().map(|span| span.text("traceId").to_owned()).unwrap_or_default();
        ends = spans(mesh.dir.path())?;
        ends.retain(|span| span.text("traceId") == trace);
        Ok(ends.len() >= 2)
    })?;
    ends.sort_by_key(|span| span.attribute("direction").to_owned());
    let [server, client] = &*ends else { anyhow::bail!("not two ends, but {ends:?}; of {all:?}") };
    ensure!((&client.told["kind"], &server.told["kind"]) == (&3.into(), &2.into()), "{ends:?}");
    ensure!(client.text("parentSpanId").is_empty(), "the client's end is no root: {client:?}");
    ensure!(server.text("parentSpanId") == client.text("spanId"), "they are not parent and child: {ends:?}");
    for (end, node, reason) in [(client, "node1", "TO_ENDPOINT"), (server, "node2", "NO_POLICY")] {
        told_by(end, "ztunnel.istio-system", "ztunnel")?;
        ensure!(end.of_resource("k8s.node.name") == node && end.attribute("reason") == reason, "{end:?}");
        for (key, wanted) in [
            ("src.workload", "client"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/default"),
            ("dst.workload", "web"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/default"),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ] {
            ensure!(end.attribute(key) == wanted, "{key} is not {wanted:?}: {end:?}");
        }
    }
    // What tunnels tell would else be told of, again and again.
    let own = |span: &Told| span.attribute("dst.workload") == "collector";
    ensure!(!spans(mesh.dir.path())?.iter().any(own), "spans of connections to the collector itself");
    let trace = client.text("traceId");
    let why = mesh.command(&["why", trace], &[])?;
    ensure!(why.status.success() && text(&why).contains("shop/client"), "why {trace}: {}", text(&why));
    println!("ok    a connection's two ends, parent and child; `why` knows their trace");
    Ok(())
}

/// How much of something the waypoint has dropped.
fn lost(mesh: &Mesh, what: &str) -> Result<usize> {
    let pods = mesh.pods()?;
    let is_waypoint = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("waypoint-"));
    let ip = pods.iter().find(is_waypoint).and_then(|pod| pod["status"]["podIP"].as_str()).unwrap_or_default();
    let url = format!("http://{ip}:15020/metrics");
    let output = mesh.exec("shop", "client", &["curl", "-sS", "-m", "10", &url])?;
    ensure!(output.status.success(), "{url}: {}", text(&output));
    let metrics = String::from_utf8_lossy(&output.stdout);
    let series = format!("stillmesh_waypoint_telemetry_lost_total{{what=\"{what}\"}} ");
    Ok(metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or("0").parse()?)
}

/// A collector that is busy is told again, one that refuses is not; that is counted.
fn refused(mesh: &Mesh) -> Result<()> {
    let refuse = mesh.dir.path().join("refuse");
    for (number, service) in [(10, "web"), (11, "warm")] {
        fs::write(&refuse, "busy")?;
        ask(mesh, &format!("http://{service}/"), &[&traceparent(number)])?;
        let is_refused = || Ok(refusals(mesh.dir.path())?.iter().any(|span| span.text("traceId") == trace(number)));
        ensure!(wait(is_refused)?, "nothing was told while the collector was busy");
        fs::remove_file(&refuse)?;
        span_of(mesh, &trace(number))?;
        // They have pauses of their own: nothing is to wait for the next round.
        let is_told = || Ok(records(mesh.dir.path())?.iter().any(|record| record.text("traceId") == trace(number)));
        ensure!(wait(is_told)?, "the record of trace {number} does not come");
    }
    ensure!(lost(mesh, "span")? == 0 && lost(mesh, "log_record")? == 0, "what came in the end is counted as lost");
    for (count, (number, service)) in (1..).zip([(12, "web"), (13, "warm")]) {
        fs::write(&refuse, "never")?;
        ask(mesh, &format!("http://{service}/"), &[&traceparent(number)])?;
        let counted = wait(|| Ok(lost(mesh, "span")? == count && lost(mesh, "log_record")? == count))?;
        ensure!(counted, "{} spans and {} records are lost", lost(mesh, "span")?, lost(mesh, "log_record")?);
        fs::remove_file(&refuse)?;
    }
    println!("ok    what it was too busy for came again, what it refused is counted, over gRPC and HTTP");
    Ok(())
}

/// While the collector is away requests go on; what was told meanwhile comes when it is back, but for what is counted as lost.
fn away(mesh: &Mesh) -> Result<()> {
    let dir = mesh.dir.path();
    let before = (lost(mesh, "span")?, lost(mesh, "log_record")?);
    fs::write(dir.join("away"), "")?;
    let end = mesh.exec("observability", "collector", &["sh", "-c", &format!("kill $(cat {}/pid)", dir.display())])?;
    ensure!(end.status.success(), "the collector does not end: {}", text(&end));
    let is_ready = || -> Result<bool> {
        let pods = mesh.pods()?;
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == "collector");
        Ok(pod.is_some_and(|pod| pod["status"]["containerStatuses"][0]["ready"] == true))
    };
    ensure!(wait(|| Ok(!is_ready()?))?, "the collector is still there");
    let (parent, url) = (traceparent(20), format!("http://web/[1-{MANY}]"));
    let script = format!("curl -sS -o /dev/null -w '%{{http_code}}\\n' -m 120 -H '{parent}' '{url}' | sort | uniq -c");
    let answered = mesh.exec("shop", "client", &["sh", "-c", &script])?;
    let said = String::from_utf8_lossy(&answered.stdout);
    ensure!(said.split_whitespace().eq([&*MANY.to_string(), "200"]), "requests fail meanwhile: {}", text(&answered));
    fs::remove_file(dir.join("away"))?;
    ensure!(wait(is_ready)?, "the collector does not come back");
    let mut counts = ((0, 0), (0, 0));
    let of = |all: Vec<Told>| {
        let trace = trace(20);
        let ids = all.iter().filter(|one| one.text("traceId") == trace).map(|one| one.text("spanId"));
        ids.collect::<BTreeSet<_>>().len()
    };
    wait(|| {
        counts.0 = (of(spans(dir)?), lost(mesh, "span")? - before.0);
        counts.1 = (of(records(dir)?), lost(mesh, "log_record")? - before.1);
        Ok([counts.0, counts.1].iter().all(|(came, lost)| came + lost == MANY))
    })?;
    for (what, (came, lost)) in [("spans", counts.0), ("records", counts.1)] {
        ensure!(came + lost == MANY, "of {MANY} {what}, {came} came and {lost} are counted as lost");
        ensure!(came > 0 && lost > 0, "{came} {what} came, {lost} are lost: the queue is not what it was");
        println!(
            "ok    of {MANY} {what} told while the collector was away, {came} came and {lost} are counted as lost"
        );
    }
    Ok(())
}
