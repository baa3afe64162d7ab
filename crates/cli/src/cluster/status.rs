//! `stillmesh status` of a cluster: control plane, nodes, namespaces, findings, on one screen.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::access::reach;
use super::args::Access;
use super::check::{Fact, Standing, server_clock, standings, worrying};
use super::objects::Objects;
use super::rollout::{pod_trouble, progress};
use super::value::{holds, label, list, name, text};
use super::view::View;
use crate::machine::receipts::{lines, unknown};
use crate::output::{Mark, Marks, aligned, line};

/// The screen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    cluster: String,
    mesh_namespace: String,
    parts: Vec<Part>,
    nodes: Vec<Node>,
    namespaces: Vec<Value>,
    /// Where objects are in force and how enrolments stand; nothing where no controller says it, or there is to be none.
    receipts: Option<Vec<Value>>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts_unknown: Option<String>,
    findings: Vec<Fact>,
}

#[derive(Debug, Serialize)]
struct Part {
    kind: String,
    name: String,
    version: String,
    ready: bool,
    state: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    agent: String,
    ztunnel: String,
    version: String,
    pods: usize,
    connections: Option<usize>,
}

/// Carries it out.
pub(crate) async fn run(access: &Access, mesh_namespace: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let reached = reach(access).await?;
    let objects = Objects::new(reached.client());
    let view = View::whole(&objects, mesh_namespace).await.with_receipts(&objects).await;
    // Certificates are judged as `check` does.
    let now = server_clock(objects.client()).await.unwrap_or_else(jiff::Timestamp::now);
    let status = status(&view, reached.url(), now);
    if status.parts.is_empty() {
        anyhow::bail!(
            "no Stillmesh is installed in namespace {mesh_namespace} of the cluster at {}; `stillmesh install` does that",
            reached.url()
        );
    }
    if as_json {
        line(&serde_json::to_string_pretty(&status)?);
    } else {
        line(&screen(&status, &standings(&view), Marks::out()));
    }
    let bad = status.findings.iter().any(|finding| finding.mark == Mark::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn status(view: &View, url: &str, now: jiff::Timestamp) -> Status {
    let pods: Vec<Value> = view.own("Pod").cloned().collect();
    let parts = view.own("Deployment").chain(view.own("DaemonSet")).map(|object| {
        let progress = progress(object, &pods);
        Part {
            kind: text(&object["kind"]).to_owned(),
            name: name(object).to_owned(),
            version: label(object, "app.kubernetes.io/version").unwrap_or_default().to_owned(),
            ready: progress.done,
            state: progress.text,
        }
    });
    let captured = |node: &str| {
        let on = view.list("Pod").iter().filter(|pod| text(&pod["spec"]["nodeName"]) == node);
        on.filter(|pod| pod["status"]["phase"] == "Running")
            .filter(|pod| super::value::annotation(pod, "ambient.istio.io/redirection") == Some("enabled"))
            .count()
    };
    let state = |part: &str, node: &str| match view.ready_on(part, node) {
        Some(_) => "ready".to_owned(),
        None => match view.part(part).find(|pod| text(&pod["spec"]["nodeName"]) == node) {
            Some(pod) if holds(pod, "Ready") => "ready".to_owned(),
            Some(pod) => pod_trouble(pod).unwrap_or_default().rsplit(": ").next().unwrap_or_default().to_owned(),
            None => "none".to_owned(),
        },
    };
    let nodes = view.list("Node").iter().map(|node| {
        let node = name(node);
        let tunnel = view.ready_on("ztunnel", node);
        let dump = view.dumps.iter().find(|page| page.node == node).and_then(|page| page.page.as_ref().ok());
        Node {
            name: node.to_owned(),
            agent: state("stillmesh-cni", node),
            ztunnel: state("ztunnel", node),
            version: tunnel.and_then(|pod| label(pod, "app.kubernetes.io/version")).unwrap_or("-").to_owned(),
            pods: captured(node),
            connections: dump.map(connections),
        }
    });
    let namespaces = standings(view)
        .iter()
        .map(|(namespace, standing)| {
            json!({"namespace": namespace, "labelled": standing.labelled, "captured": standing.captured,
            "missing": standing.missing.len(), "outside": standing.outside.len(), "olderConnections": standing.older})
        })
        .collect();
    let (receipts, receipts_unknown) = match receipts(view) {
        Ok(receipts) => (receipts, None),
        Err(why) => (None, Some(why)),
    };
    Status {
        cluster: url.to_owned(),
        mesh_namespace: view.mesh_namespace.clone(),
        parts: parts.collect(),
        nodes: nodes.collect(),
        namespaces,
        receipts,
        receipts_unknown,
        findings: worrying(view, now),
    }
}

/// What the first controller says that can, since each knows of all; else why none does. One that has not read everything
/// yet says so instead of numbers. `None` where the mesh is to have no controller of ours, and nobody writes receipts.
fn receipts(view: &View) -> Result<Option<Vec<Value>>, String> {
    let said = view.receipts.iter().find_map(|page| page.page.as_ref().ok()?.as_array());
    if let Some(said) = said {
        return Ok(Some(said.clone()));
    }
    let of_controller = |object: &Value| label(object, "app.kubernetes.io/name") == Some("stillmesh-controller");
    match view.receipts.iter().find_map(|page| page.page.as_ref().err()) {
        Some(why) => Err(why.clone()),
        None if view.read("Deployment").is_ok() && !view.own("Deployment").any(of_controller) => Ok(None),
        None => Err("no controller is ready".to_owned()),
    }
}

/// Open connections of a tunnel's pods.
fn connections(dump: &Value) -> usize {
    let states = dump["workloadState"].as_object().into_iter().flat_map(|states| states.values());
    states
        .map(|state| ["inbound", "outbound"].iter().map(|way| list(&state["connections"][way]).count()).sum::<usize>())
        .sum()
}

fn screen(status: &Status, standings: &std::collections::BTreeMap<String, Standing>, marks: Marks) -> String {
    let heads = |names: &[&str]| vec![names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
    let mut text = format!("mesh in namespace {} of the cluster at {}\n\n", status.mesh_namespace, status.cluster);
    for part in &status.parts {
        let mark = marks.show(if part.ready { Mark::Good } else { Mark::Bad });
        text.push_str(&format!("{mark} {} {} {}: {}\n", part.kind, part.name, part.version, part.state));
    }
    let mut rows = heads(&["NODE", "AGENT", "ZTUNNEL", "VERSION", "PODS", "CONNECTIONS"]);
    for node in &status.nodes {
        let connections = node.connections.map_or("-".to_owned(), |count| count.to_string());
        let cells = [&node.name, &node.agent, &node.ztunnel, &node.version, &node.pods.to_string(), &connections];
        rows.push(cells.into_iter().cloned().collect());
    }
    text.push_str(&format!("\n{}\n", aligned(&rows)));
    let mut rows = heads(&["NAMESPACE", "LABEL", "CAPTURED", "MISSING", "OUTSIDE", "OLDER CONNECTIONS"]);
    for (namespace, standing) in standings {
        rows.push(vec![
            namespace.clone(),
            if standing.labelled { "ambient" } else { "-" }.to_owned(),
            standing.captured.to_string(),
            standing.missing.len().to_string(),
            standing.outside.len().to_string(),
            standing.older.to_string(),
        ]);
    }
    match rows.len() {
        1 => text
            .push_str("\nno namespace is in the mesh: kubectl label namespace NAME istio.io/dataplane-mode=ambient\n"),
        _ => text.push_str(&format!("\n{}\n", aligned(&rows))),
    }
    let receipts = status.receipts.as_deref().map(lines).unwrap_or_default();
    if !receipts.is_empty() {
        text.push_str(&format!("\n{}\n", receipts.join("\n")));
    }
    if let Some(why) = &status.receipts_unknown {
        text.push_str(&format!("\n{}\n", unknown(why)));
    }
    if status.findings.is_empty() {
        text.push_str("\nnothing is wrong");
    } else {
        let findings: Vec<String> = status.findings.iter().map(|finding| finding.show(marks)).collect();
        text.push_str(&format!("\n{}", findings.join("\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(kind: &str, part: &str, rest: Value) -> Value {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": part, "namespace": "m", "generation": 1,
            "labels": {"app.kubernetes.io/part-of": "stillmesh", "app.kubernetes.io/name": part, "app.kubernetes.io/version": "0.1.0"}}});
        for (key, value) in rest.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    }

    #[test]
    fn one_screen_says_how_the_mesh_is() {
        let ready = json!({"spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]}});
        let daemon = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}, "status": {"observedGeneration": 1,
            "desiredNumberScheduled": 1, "currentNumberScheduled": 1, "updatedNumberScheduled": 1, "numberReady": 1, "numberAvailable": 1}});
        let node = json!({"kind": "Node", "metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "annotations": {
            "ambient.istio.io/redirection": "enabled", "stillmesh.io/receipt": "{\"olderConnections\": 1}"}},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        let mut tunnel = own("Pod", "ztunnel", ready.clone());
        tunnel["metadata"]["labels"]["app"] = json!("ztunnel");
        let mut view = View::of(
            "m",
            vec![
                own("DaemonSet", "ztunnel", daemon.clone()),
                own("DaemonSet", "stillmesh-cni", daemon),
                node,
                shop,
                pod,
                tunnel,
                own("Pod", "stillmesh-cni", ready),
            ],
        );
        let receipts = json!([{"kind": "Namespace", "name": "shop", "inForce": 1, "expected": 1, "nodes": {"inForce": 1,
            "expected": 1}, "lagging": []}, {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "p", "inForce": 0,
            "expected": 1, "lagging": [{"name": "n1", "reason": "not connected"}]}]);
        let page = |page| super::super::view::Page { pod: "c".to_owned(), node: "n1".to_owned(), page };
        view.receipts = vec![page(Err("no answer".to_owned())), page(Ok(receipts))];
        let text = screen(&status(&view, "https://c:6443", jiff::Timestamp::now()), &standings(&view), Marks::plain());
        assert_eq!(
            text,
            "mesh in namespace m of the cluster at https://c:6443\n\n\
            ✔ DaemonSet ztunnel 0.1.0: 1 of 1 nodes ready\n\
            ✔ DaemonSet stillmesh-cni 0.1.0: 1 of 1 nodes ready\n\n\
            NODE   AGENT   ZTUNNEL   VERSION   PODS   CONNECTIONS\n\
            n1     ready   ready     0.1.0     1      -\n\n\
            NAMESPACE   LABEL     CAPTURED   MISSING   OUTSIDE   OLDER CONNECTIONS\n\
            shop        ambient   1          0         0         1\n\n\
            policies, routes and bindings: 0 of 1 in force everywhere\n\
            \x20 AuthorizationPolicy shop/p: in force in 0 of 1 places; lagging: n1 (not connected)\n\
            namespaces in the mesh: 1 of 1 have all their pods captured\n\n\
            nothing is wrong"
        );
        view.receipts.truncate(1);
        let text = screen(&status(&view, "https://c:6443", jiff::Timestamp::now()), &standings(&view), Marks::plain());
        assert!(
            text.contains("\npolicies, routes and bindings: where they are in force is not known: no answer\n"),
            "{text}"
        );
    }

    #[test]
    fn receipts_are_missed_only_where_there_is_a_controller_to_say_them() {
        let said = |all: Vec<Value>| {
            let view = View::of("m", all);
            screen(&status(&view, "https://c:6443", jiff::Timestamp::now()), &standings(&view), Marks::plain())
        };
        let unknown = "where they are in force is not known: no controller is ready";
        let tunnel = || own("DaemonSet", "ztunnel", json!({}));
        let text = said(vec![tunnel()]);
        assert!(!text.contains("where they are in force"), "under istiod: {text}");
        let text = said(vec![tunnel(), own("Deployment", "stillmesh-controller", json!({}))]);
        assert!(text.contains(unknown), "{text}");
    }
}
