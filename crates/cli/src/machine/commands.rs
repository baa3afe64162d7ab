//! The commands that talk to a running machine: `status`, `get`, `logs`, `exec`, `capture`, `down`.

mod config;

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use http::Method;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use stillmesh_runtime::accept::Stream;
use stillmesh_runtime::admin::client::{Answer, Client, ClientError};
use stillmesh_runtime::sys::fds;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::api::{CaptureRequest, Ended, ExecRequest, PROTOCOL, READY};
use super::control;
use super::receipts;
use super::reconcile::Summary;
use crate::args::{CaptureNode, Exec, Get, Logs, Output, Shown, Status, Target};
use crate::output::{self, aligned, line, note};

/// Time between two looks while waiting.
const LOOK: Duration = Duration::from_millis(100);
/// How long a machine may take to end.
const END: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const ANSWER_BYTES: usize = 256 << 20;

fn client(target: &Target) -> anyhow::Result<Client> {
    Ok(control::client(&target.name)?.body_bytes(ANSWER_BYTES))
}

/// The answer's JSON; what the runner says where it refused.
fn answered(answer: Answer) -> anyhow::Result<Value> {
    ensure!(answer.status.is_success(), "{}", answer.text().trim());
    Ok(serde_json::from_slice(&answer.body)?)
}

/// `stillmesh status`.
pub(crate) async fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let end = args.wait.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
    let ask = async || -> anyhow::Result<Summary> {
        Ok(serde_json::from_value(answered(client(&args.target())?.get("/status").await?)?)?)
    };
    let summary = loop {
        let asked = ask().await;
        let settled = asked.as_ref().is_ok_and(|summary| summary.settled);
        match end {
            Some(end) if !settled && Instant::now() < end => tokio::time::sleep(LOOK).await,
            _ => break asked?,
        }
    };
    let receipts = receipts_of(&client(&args.target())?).await;
    if args.json {
        let mut summary = serde_json::to_value(&summary)?;
        match receipts {
            Ok(receipts) => summary["receipts"] = receipts.into(),
            Err(error) => summary["receiptsUnknown"] = format!("{error:#}").into(),
        }
        line(&serde_json::to_string_pretty(&summary)?);
    } else {
        line(&format!(
            "mesh {:?} on this machine: {} nodes ({})",
            summary.name,
            summary.nodes.len(),
            summary.nodes.join(", ")
        ));
        line(&format!("pods: {} of {} ready, {} in the mesh", summary.ready, summary.pods, summary.captured));
        line(&format!("the mesh's own pods: {} of {} ready", summary.system_ready, summary.system_pods));
        for text in summary.waiting.iter().chain(&summary.findings) {
            line(&format!("  {text}"));
        }
        match receipts {
            Ok(receipts) => receipts::lines(&receipts).iter().for_each(|text| line(text)),
            Err(error) => line(&receipts::unknown(&format!("{error:#}"))),
        }
    }
    let bad = !summary.settled || summary.refused > 0;
    Ok(if args.wait.is_some() && bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where policies, routes and bindings are in force. Errors: why the controller does not say it.
async fn receipts_of(client: &Client) -> anyhow::Result<Vec<Value>> {
    match client.get("/receipts").await.map_err(anyhow::Error::from).and_then(answered)? {
        Value::Array(receipts) => Ok(receipts),
        _ => bail!("the controller's answer is no list"),
    }
}

/// `stillmesh get`.
pub(crate) async fn get(args: &Get) -> anyhow::Result<ExitCode> {
    let client = client(&args.target)?;
    let (kinds, namespaced): (&[&str], bool) = match args.kind {
        Shown::Pods => (&["Pod"], true),
        Shown::Services => (&["Service"], true),
        Shown::Policies => (&["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "Telemetry"], true),
        Shown::Routes => {
            (&["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "VirtualService", "DestinationRule"], true)
        }
        Shown::Gateways => (&["Gateway"], true),
        Shown::Deployments => (&["Deployment"], true),
        Shown::EndpointSlices => (&["EndpointSlice"], true),
        Shown::Nodes => (&["Node"], false),
        Shown::Namespaces => (&["Namespace"], false),
    };
    let mut items: Vec<Value> = Vec::new();
    let one = namespaced && !args.all_namespaces;
    for kind in kinds {
        items.extend(control::objects(&args.target.name, kind, if one { &args.namespace } else { "" }).await?);
    }
    if let Some(name) = &args.object {
        items.retain(|item| item["metadata"]["name"] == name.as_str());
        if items.is_empty() {
            let place = if one { format!(" in namespace {:?}", args.namespace) } else { String::new() };
            bail!("there is no {} named {name:?}{place}", kinds.join(" or "));
        }
    }
    let has_receipts = has_receipts(args.kind);
    if has_receipts && args.output.is_some() {
        let receipts = receipts_of(&client).await.unwrap_or_default();
        items.iter_mut().for_each(|item| receipts::attach(item, &receipts));
    }
    match args.output {
        Some(Output::Json) if args.object.is_some() && items.len() == 1 => {
            line(&serde_json::to_string_pretty(&items.remove(0))?);
        }
        Some(Output::Json) => {
            line(&serde_json::to_string_pretty(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?);
        }
        _ if items.is_empty() => note("nothing found; -A shows every namespace"),
        output => line(&table(args.kind, &items, args.all_namespaces, output == Some(Output::Wide))),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether objects of a kind say where they are in force.
fn has_receipts(kind: Shown) -> bool {
    matches!(kind, Shown::Policies | Shown::Routes | Shown::Services | Shown::Namespaces)
}

/// Makes the cells of an object; the flag asks for more of them.
type Row = fn(&Value, bool) -> Vec<String>;

fn table(kind: Shown, items: &[Value], namespaces: bool, wide: bool) -> String {
    let (mut heads, row): (Vec<&str>, Row) = match kind {
        Shown::Pods => (vec!["NAME", "READY", "STATUS", "RESTARTS", "MESH", "IP", "NODE"], pod_row),
        Shown::Services => (vec!["NAME", "CLUSTER-IP", "PORTS", "SELECTOR"], service_row),
        Shown::Policies => (vec!["NAME", "KIND", "EFFECT", "SELECTS", "ACCEPTED"], config::policy_row),
        Shown::Routes => (vec!["NAME", "KIND", "FOR", "ACCEPTED"], config::route_row),
        Shown::Gateways => (vec!["NAME", "CLASS", "TRAFFIC", "ADDRESS", "PROGRAMMED"], gateway_row),
        Shown::Deployments => (vec!["NAME", "READY", "UP-TO-DATE"], deployment_row),
        Shown::EndpointSlices => (vec!["NAME", "SERVICE", "PORTS", "ENDPOINTS"], slice_row),
        Shown::Nodes => (vec!["NAME", "ADDRESSES"], node_row),
        Shown::Namespaces => (vec!["NAME", "DATAPLANE"], namespace_row),
    };
    if wide && matches!(kind, Shown::Pods) {
        heads.extend(["ACCOUNT", "IPV6", "OLDER-CONNECTIONS"]);
    }
    let in_force = wide && has_receipts(kind);
    if in_force {
        heads.push("IN-FORCE");
    }
    if namespaces {
        heads.insert(0, "NAMESPACE");
    }
    let mut rows = vec![heads.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for item in items {
        let mut cells = row(item, wide);
        if in_force {
            cells.push(receipts::cell(item));
        }
        if namespaces {
            cells.insert(0, text(&item["metadata"]["namespace"]));
        }
        rows.push(cells);
    }
    aligned(&rows)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name(item: &Value) -> String {
    text(&item["metadata"]["name"])
}

fn pod_row(pod: &Value, wide: bool) -> Vec<String> {
    let statuses: Vec<&Value> = list(&pod["status"]["containerStatuses"]).collect();
    let ready = statuses.iter().filter(|one| one["ready"] == true).count();
    let restarts: u64 = statuses.iter().filter_map(|one| one["restartCount"].as_u64()).sum();
    let annotations = &pod["metadata"]["annotations"];
    let mesh = if annotations["ambient.istio.io/redirection"] == "enabled" { "captured" } else { "-" };
    let mut cells = vec![
        name(pod),
        format!("{ready}/{}", statuses.len()),
        pod_word(pod),
        restarts.to_string(),
        mesh.to_owned(),
        text(&pod["status"]["podIP"]),
        text(&pod["spec"]["nodeName"]),
    ];
    if wide {
        let receipt: Value = annotations["stillmesh.io/receipt"]
            .as_str()
            .and_then(|receipt| serde_json::from_str(receipt).ok())
            .unwrap_or_default();
        let second = list(&pod["status"]["podIPs"]).nth(1).map(|ip| text(&ip["ip"])).unwrap_or_default();
        let older = receipt["olderConnections"].as_u64().map_or("-".to_owned(), |count| count.to_string());
        cells.extend([text(&pod["spec"]["serviceAccountName"]), second, older]);
    }
    cells
}

/// One word for how a pod is, as `kubectl` has it.
fn pod_word(pod: &Value) -> String {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating".to_owned();
    }
    match pod["status"]["phase"].as_str() {
        Some("Succeeded") => return "Completed".to_owned(),
        Some("Failed") => return "Error".to_owned(),
        _ => {}
    }
    let waiting = |field: &str| {
        list(&pod["status"][field]).find_map(|one| one["state"]["waiting"]["reason"].as_str()).map(str::to_owned)
    };
    let initialized = list(&pod["status"]["conditions"])
        .any(|condition| condition["type"] == "Initialized" && condition["status"] == "True");
    if initialized {
        return waiting("containerStatuses").unwrap_or_else(|| "Running".to_owned());
    }
    match waiting("initContainerStatuses") {
        Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
        _ if list(&pod["status"]["initContainerStatuses"]).next().is_some() => "Init".to_owned(),
        _ => waiting("containerStatuses").unwrap_or_else(|| "Pending".to_owned()),
    }
}

fn service_row(service: &Value, _: bool) -> Vec<String> {
    let spec = &service["spec"];
    let port = |port: &Value| {
        let target = match &port["targetPort"] {
            Value::String(name) => format!(":{name}"),
            Value::Number(number) => format!(":{number}"),
            _ => String::new(),
        };
        format!("{}{target}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP"))
    };
    let selector = spec["selector"].as_object().into_iter().flatten();
    let selector: Vec<_> = selector.map(|(key, value)| format!("{key}={}", text(value))).collect();
    vec![
        name(service),
        list(&spec["clusterIPs"]).map(text).collect::<Vec<_>>().join(","),
        list(&spec["ports"]).map(port).collect::<Vec<_>>().join(","),
        selector.join(","),
    ]
}

fn gateway_row(gateway: &Value, _: bool) -> Vec<String> {
    let status = &gateway["status"];
    let programmed = list(&status["conditions"]).find(|one| one["type"] == "Programmed");
    let ip = list(&status["addresses"]).find(|one| one["type"] == "IPAddress");
    let traffic = text(&gateway["metadata"]["labels"]["istio.io/waypoint-for"]);
    vec![
        name(gateway),
        text(&gateway["spec"]["gatewayClassName"]),
        if traffic.is_empty() { "service".to_owned() } else { traffic },
        ip.map(|one| text(&one["value"])).unwrap_or_default(),
        programmed.map(|one| text(&one["status"])).unwrap_or_default(),
    ]
}

fn deployment_row(deployment: &Value, _: bool) -> Vec<String> {
    let status = &deployment["status"];
    let count = |field: &str| status[field].as_u64().unwrap_or_default();
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    vec![name(deployment), format!("{}/{wanted}", count("readyReplicas")), count("updatedReplicas").to_string()]
}

fn slice_row(slice: &Value, _: bool) -> Vec<String> {
    let endpoint = |endpoint: &Value| {
        let address = list(&endpoint["addresses"]).map(text).collect::<Vec<_>>().join(",");
        if endpoint["conditions"]["ready"] == false { format!("{address} (not ready)") } else { address }
    };
    vec![
        name(slice),
        text(&slice["metadata"]["labels"]["kubernetes.io/service-name"]),
        list(&slice["ports"]).map(|port| port["port"].to_string()).collect::<Vec<_>>().join(","),
        list(&slice["endpoints"]).map(endpoint).collect::<Vec<_>>().join(","),
    ]
}

fn node_row(node: &Value, _: bool) -> Vec<String> {
    let addresses = list(&node["status"]["addresses"]).filter(|one| one["type"] == "InternalIP");
    vec![name(node), addresses.map(|one| text(&one["address"])).collect::<Vec<_>>().join(",")]
}

fn namespace_row(namespace: &Value, _: bool) -> Vec<String> {
    let mode = namespace["metadata"]["labels"]["istio.io/dataplane-mode"].as_str().unwrap_or("-");
    vec![name(namespace), mode.to_owned()]
}

/// `stillmesh logs`.
pub(crate) async fn logs(args: &Logs) -> anyhow::Result<ExitCode> {
    let mut path = format!("/logs/{}/{}?follow={}", args.namespace, args.pod, args.follow);
    if let Some(container) = &args.container {
        path.push_str("&container=");
        path.push_str(container);
    }
    let mut stream = client(&args.target)?.stream(Method::GET, &path, "").await?;
    if !stream.status.is_success() {
        let mut said = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            said.extend(chunk);
        }
        bail!("{}", String::from_utf8_lossy(&said).trim());
    }
    let mut out = std::io::stdout();
    let reader = hung_up();
    tokio::pin!(reader);
    loop {
        let chunk = tokio::select! {
            chunk = stream.chunk() => chunk?,
            () = &mut reader => break,
        };
        let Some(chunk) = chunk else { break };
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns when nobody reads our standard output any more; never for a file or a terminal.
async fn hung_up() {
    let (gone, told) = tokio::sync::oneshot::channel();
    // It ends with the process, which is about to end when this is of use.
    let watching = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let out = std::io::stdout();
        let mut wanted = [PollFd::new(out.as_fd(), PollFlags::empty())];
        while matches!(poll(&mut wanted, PollTimeout::NONE), Err(nix::Error::EINTR)) {}
        let _ = gone.send(());
    });
    match watching {
        Ok(_) => _ = told.await,
        Err(_) => std::future::pending().await,
    }
}

/// `stillmesh exec`.
pub(crate) async fn exec(args: &Exec) -> anyhow::Result<ExitCode> {
    let request = ExecRequest {
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        argv: args.argv.clone(),
    };
    let code = hand_over(&client(&args.target)?, "/exec", serde_json::to_vec(&request)?).await?;
    Ok(ExitCode::from(code))
}

/// `stillmesh capture`.
pub(crate) async fn capture(args: &CaptureNode) -> anyhow::Result<ExitCode> {
    let mut capture = args.capture.clone();
    // The runner's directory is another one.
    capture.pcap = capture.pcap.map(std::path::absolute).transpose()?;
    let request = CaptureRequest { node: args.node.clone(), capture };
    let code = hand_over(&client(&args.target)?, "/capture", serde_json::to_vec(&request)?).await?;
    Ok(ExitCode::from(code))
}

/// Has the runner start a program with our standard descriptors; its exit code.
async fn hand_over(client: &Client, path: &str, body: Vec<u8>) -> anyhow::Result<u8> {
    let raw = match client.takeover(Method::POST, path, PROTOCOL, body).await {
        Err(ClientError::NotTakenOver { body, .. }) => bail!("{}", body.trim()),
        other => other?,
    };
    let Stream::Unix(mut stream) = raw.stream else { bail!("the runner answers on another kind of socket") };
    let ready = match raw.buffered.first() {
        Some(byte) => *byte,
        None => stream.read_u8().await.context("the runner went away")?,
    };
    ensure!(ready == READY, "the runner speaks another protocol");
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    control::check_peer(&stream)?;
    fds::send(&stream, b"f", &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).await?;
    let mut answer = String::new();
    BufReader::new(&mut stream).read_line(&mut answer).await?;
    match serde_json::from_str(&answer).context("the runner went away before the program ended")? {
        Ended::Code(code) => Ok(code),
        Ended::Error(error) => bail!("{error}"),
    }
}

/// `stillmesh down`.
pub(crate) async fn down(target: &Target) -> anyhow::Result<ExitCode> {
    let answer = client(target)?.request(Method::POST, "/stop", "").await?;
    ensure!(answer.status.is_success(), "{}", answer.text().trim());
    let end = Instant::now() + END;
    while control::running().contains(&target.name) {
        ensure!(Instant::now() < end, "mesh {:?} was told to end and has not within {END:?}", target.name);
        tokio::time::sleep(LOOK).await;
    }
    output::note(&format!("mesh {:?} has ended", target.name));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_by_one_word() {
        let waiting = |reason: &str| json!([{"state": {"waiting": {"reason": reason}}}]);
        let initialized = json!([{"type": "Initialized", "status": "True"}]);
        for (pod, word) in [
            (json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}}), "Terminating"),
            (json!({"status": {"phase": "Succeeded"}}), "Completed"),
            (json!({"status": {"phase": "Failed"}}), "Error"),
            (json!({"status": {"conditions": initialized, "containerStatuses": [{"state": {}}]}}), "Running"),
            (
                json!({"status": {"conditions": initialized, "containerStatuses": waiting("CrashLoopBackOff")}}),
                "CrashLoopBackOff",
            ),
            (json!({"status": {"initContainerStatuses": waiting("CrashLoopBackOff")}}), "Init:CrashLoopBackOff"),
            (json!({"status": {"initContainerStatuses": [{"state": {"running": {}}}]}}), "Init"),
            (json!({"status": {"containerStatuses": waiting("ContainerCreating")}}), "ContainerCreating"),
        ] {
            assert_eq!(pod_word(&pod), word);
        }
    }
}
