//! `stillmesh check` of a mesh on this machine: what is true of a cluster's mesh, as far as there is a like of it here.

use futures::future::join_all;
use http::Method;
use serde_json::Value;

use super::{Fact, mesh, pods};
use crate::cluster::view::{Page, View};
use crate::machine::reconcile::Summary;
use crate::machine::{control, tunnels};
use crate::why::place::{ADMIN, Place};

/// Kinds that are looked at.
const KINDS: [&str; 6] = ["Node", "Namespace", "Pod", "Service", "AuthorizationPolicy", "PeerAuthentication"];

/// Facts about the mesh of this name.
pub(super) async fn facts(mesh_name: &str, now: jiff::Timestamp) -> anyhow::Result<Vec<Fact>> {
    let place = Place::Here { mesh: mesh_name.to_owned() };
    let mut objects = Vec::new();
    for kind in KINDS {
        objects.extend(place.list(kind, "", "").await?);
    }
    let answer = control::client(mesh_name)?.get("/status").await?;
    anyhow::ensure!(answer.status.is_success(), "{}", answer.text().trim());
    let summary: Summary = serde_json::from_slice(&answer.body)?;
    let dumps = join_all(summary.nodes.iter().map(|node| async move {
        let pod = format!("ztunnel-{node}");
        let page = tunnels::ask(mesh_name, node, ADMIN, Method::GET, "/config_dump").await;
        let page = page.and_then(|body| Ok(serde_json::from_slice::<Value>(&body)?));
        Page { pod, node: node.clone(), page: page.map_err(|error| format!("{error:#}")) }
    }));
    let view = View::here(tunnels::NAMESPACE, objects, dumps.await);
    let mut all = of_summary(&summary);
    all.extend(mesh::answers(&view));
    all.extend(mesh::certificates(&view, now));
    all.extend(pods::captured(&view));
    all.extend(mesh::policies(&view));
    Ok(all.into_iter().map(|fact| here(fact, tunnels::NAMESPACE)).collect())
}

/// What the mesh says of itself.
fn of_summary(summary: &Summary) -> Vec<Fact> {
    let name = &summary.name;
    let mut facts = Vec::new();
    let nodes = summary.nodes.join(", ");
    let own =
        format!("the mesh's own pods: {} of {} ready, on nodes {nodes}", summary.system_ready, summary.system_pods);
    facts.push(match summary.system_ready == summary.system_pods {
        true => Fact::good("workloads", own),
        false => Fact::bad("workloads", own, format!("stillmesh get pods -A --name {name}; `up` says why one ends")),
    });
    let pods = format!("pods: {} of {} ready, {} in the mesh", summary.ready, summary.pods, summary.captured);
    facts.push(match (summary.ready == summary.pods, summary.waiting.as_slice()) {
        (true, _) => Fact::good("pods", pods),
        (false, []) => Fact::doubt("pods", pods, format!("stillmesh status --wait 30 --name {name}")),
        (false, why) => Fact::doubt("pods", format!("{pods}: {}", why.join("; ")), "stillmesh logs -n NAMESPACE POD"),
    });
    for finding in &summary.findings {
        let todo = "correct the manifest; stillmesh analyze says more";
        facts.push(match finding.starts_with("error") {
            true => Fact::bad("findings", finding, todo),
            false => Fact::doubt("findings", finding, todo),
        });
    }
    facts
}

/// Commands as they are here.
fn here(mut fact: Fact, namespace: &str) -> Fact {
    fact.todo = fact.todo.map(|todo| {
        let logs = |text: String, namespace: &str| {
            let old = format!("kubectl -n {namespace} logs ");
            text.replace(&old, &format!("stillmesh logs -n {namespace} "))
        };
        let todo = logs(todo, namespace).replace("deployment/stillmesh-controller", "controller");
        match todo.strip_prefix("kubectl label namespace NAME ") {
            Some(label) => format!("write the label {} on a Namespace in the manifests", label.replace('=', ": ")),
            None => todo,
        }
    });
    fact
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Mark;

    #[test]
    fn commands_are_those_of_a_mesh_on_this_machine() {
        let todo = |text: &str| here(Fact::bad("x", "y", text), "m").todo.unwrap_or_default();
        assert_eq!(todo("kubectl -n m logs ztunnel-n1"), "stillmesh logs -n m ztunnel-n1");
        let label = todo("kubectl label namespace NAME istio.io/dataplane-mode=ambient");
        assert_eq!(label, "write the label istio.io/dataplane-mode: ambient on a Namespace in the manifests");
    }

    #[test]
    fn what_is_not_ready_is_told() {
        let mut summary: Summary = serde_json::from_value(serde_json::json!({
            "name": "m", "nodes": ["node1"], "pods": 2, "ready": 2, "captured": 2, "system_pods": 3, "system_ready": 3,
            "settled": true, "waiting": [], "refused": 0, "findings": [],
        }))
        .unwrap();
        assert!(of_summary(&summary).iter().all(|fact| fact.mark == Mark::Good));
        (summary.system_ready, summary.findings) = (2, vec!["error: shop.yaml:3: x".to_owned()]);
        let bad = of_summary(&summary);
        assert_eq!(bad.iter().filter(|fact| fact.mark == Mark::Bad).count(), 2, "{bad:?}");
    }
}
