//! Facts about the pods of the mesh: who should be captured, and who is. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stillmesh_k8s::capture::Capture;
use stillmesh_k8s::select::{Enrolment, NotEnrolled, REDIRECTION, why_not};

use super::Fact;
use super::cluster::place;
use crate::cluster::value::{annotation, is_waypoints, label, list, name, namespace, text};
use crate::cluster::view::View;

/// How the pods of a namespace stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether its label asks for the mesh.
    pub(crate) labelled: bool,
    /// Captured, with a receipt.
    pub(crate) captured: usize,
    /// Should be captured and are not, or not yet, or not provably: place and why.
    pub(crate) missing: Vec<(String, String)>,
    /// Are not to be captured although their namespace is: place and why.
    pub(crate) outside: Vec<(String, String)>,
    /// Are captured and should not be.
    pub(crate) surplus: Vec<String>,
    /// Connections from before capture that are still open.
    pub(crate) older: u64,
}

/// How the pods of every namespace stand that has to do with the mesh.
pub(crate) fn standings(view: &View) -> BTreeMap<String, Standing> {
    let rules = rules(view);
    let namespaces: BTreeMap<&str, Namespace> =
        view.list("Namespace").iter().filter_map(|one| Some((name(one), typed(one)?))).collect();
    let mut standings: BTreeMap<String, Standing> = BTreeMap::new();
    for one in view.list("Namespace") {
        if label(one, "istio.io/dataplane-mode") == Some("ambient") {
            standings.entry(name(one).to_owned()).or_default().labelled = true;
        }
    }
    for object in view.list("Pod") {
        let Some(pod) = typed::<Pod>(object) else { continue };
        let state = annotation(object, REDIRECTION);
        let why_not = why_not(&pod, namespaces.get(namespace(object)), &rules);
        let labelled = standings.get(namespace(object)).is_some_and(|standing| standing.labelled);
        if why_not.is_some() && state.is_none() && !labelled {
            continue;
        }
        let standing = standings.entry(namespace(object).to_owned()).or_default();
        let ending = !object["metadata"]["deletionTimestamp"].is_null();
        match (why_not, Capture::of(&pod)) {
            (None, Capture::Done { older, .. }) => {
                standing.captured += 1;
                standing.older += older;
            }
            (None, Capture::Starting) => {}
            (None, _) if ending => {}
            (None, capture @ Capture::Bypassed(_)) => standing.outside.push((place(object), capture.to_string())),
            (None, capture) => standing.missing.push((place(object), capture.to_string())),
            // What has ended has no connections; waypoints are of the mesh without being captured.
            (Some(NotEnrolled::Terminal), _) => {}
            (Some(NotEnrolled::NotSelected), _) if state.is_none() && is_waypoints(object) => {}
            (Some(why), _) if state.is_none() => standing.outside.push((place(object), why.to_string())),
            (Some(_), _) if ending => {}
            (Some(_), _) => standing.surplus.push(place(object)),
        }
    }
    standings
}

/// The agent's own rules of enrolment, as far as it is told them.
pub(super) fn rules(view: &View) -> Enrolment {
    let mut rules = Enrolment { system_namespace: view.mesh_namespace.clone(), ..Enrolment::default() };
    let agent = view.own("DaemonSet").find(|one| label(one, "app.kubernetes.io/name") == Some("stillmesh-cni"));
    let containers = agent.map(|agent| &agent["spec"]["template"]["spec"]["containers"]);
    let env = containers.into_iter().flat_map(list).flat_map(|container| list(&container["env"]));
    for variable in env.filter(|variable| variable["name"] == "EXCLUDE_NAMESPACES") {
        let names = text(&variable["value"]).split(',').map(str::trim).filter(|name| !name.is_empty());
        rules.excluded_namespaces = names.map(str::to_owned).collect();
    }
    rules
}

/// Namespaces and their pods, as facts.
pub(super) fn captured(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let standings = standings(view);
    if !standings.values().any(|standing| standing.labelled || standing.captured > 0) {
        facts.push(Fact::doubt(
            "namespaces",
            "no namespace is in the mesh",
            "kubectl label namespace NAME istio.io/dataplane-mode=ambient",
        ));
    }
    for (namespace, standing) in &standings {
        for (pod, why) in &standing.missing {
            let node =
                view.list("Pod").iter().find(|one| place(one) == *pod).map_or("", |one| text(&one["spec"]["nodeName"]));
            let agent = view.ready_on("stillmesh-cni", node).map(name);
            let todo = match agent {
                Some(agent) => format!("kubectl -n {} logs {agent}", view.mesh_namespace),
                None => format!(
                    "node {node} has no agent that is ready: kubectl -n {} get pods -o wide",
                    view.mesh_namespace
                ),
            };
            facts.push(Fact::bad("pods", format!("pod {pod}: {why}"), todo));
        }
        for pod in &standing.surplus {
            facts.push(Fact::doubt(
                "pods",
                format!("pod {pod} is captured and no label asks for it"),
                "ask again in a second; if it stays so, look at the log of its node's agent",
            ));
        }
        if standing.labelled || standing.captured > 0 {
            let outside = match standing.outside.as_slice() {
                [] => String::new(),
                [(pod, why)] => format!("; not meant to be: {pod} ({why})"),
                [(pod, why), rest @ ..] => format!("; not meant to be: {pod} ({why}) and {} more", rest.len()),
            };
            let older = if standing.older > 0 {
                format!("; {} connections from before are still open", standing.older)
            } else {
                String::new()
            };
            facts.push(Fact::good(
                "namespaces",
                format!("namespace {namespace}: {} pods captured{outside}{older}", standing.captured),
            ));
        }
    }
    facts
}

/// An object of a known type; `None` where it cannot be read as one.
pub(super) fn typed<T: DeserializeOwned>(object: &Value) -> Option<T> {
    T::deserialize(object).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stillmesh_k8s::gateway::generate::{CLASS_NAME, GATEWAY_NAME};
    use stillmesh_k8s::steering::RECEIPT;

    use super::*;

    fn pod(name: &str, annotations: Value, more: Value) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        for (key, value) in more.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        pod
    }

    fn shop(pods: Vec<Value>) -> Standing {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
        let all = std::iter::once(namespace).chain(pods).collect();
        standings(&View::of("m", all)).remove("shop").unwrap()
    }

    #[test]
    fn a_pod_counts_as_captured_only_with_its_receipt() {
        let receipt = json!({REDIRECTION: "enabled", RECEIPT: "{\"olderConnections\": 2}"});
        let standing = shop(vec![
            pod("good", receipt, json!({})),
            pod("unproved", json!({REDIRECTION: "enabled"}), json!({})),
            pod("waits", json!({REDIRECTION: "pending"}), json!({})),
            pod("bare", json!({}), json!({})),
        ]);
        assert_eq!((standing.captured, standing.older), (1, 2));
        let missing: Vec<&str> = standing.missing.iter().map(|(pod, _)| pod.as_str()).collect();
        assert_eq!(missing, ["shop/unproved", "shop/waits", "shop/bare"]);
    }

    #[test]
    fn pods_that_are_not_meant_to_be_captured_are_told_apart_with_why() {
        let standing = shop(vec![pod("host", json!({}), json!({"hostNetwork": true}))]);
        assert_eq!(standing.outside, [("shop/host".to_owned(), "it uses its node's network".to_owned())]);
        assert!(standing.missing.is_empty());
    }

    #[test]
    fn a_waypoint_is_not_told_as_outside_and_another_gateway_is() {
        let of = |name: &str, class: &str| {
            let mut pod = pod(&format!("{name}-1"), json!({}), json!({}));
            let labels = json!({GATEWAY_NAME: name, CLASS_NAME: class, "istio.io/dataplane-mode": "none"});
            pod["metadata"]["labels"] = labels;
            pod
        };
        let standing = shop(vec![of("waypoint", "istio-waypoint"), of("edge", "istio")]);
        let outside: Vec<&str> = standing.outside.iter().map(|(pod, _)| pod.as_str()).collect();
        assert_eq!((outside.as_slice(), standing.missing.len()), (["shop/edge-1"].as_slice(), 0));
    }

    #[test]
    fn a_pod_that_has_no_address_yet_is_not_missing() {
        let mut starting = pod("starting", json!({}), json!({}));
        starting["status"] = json!({"phase": "Pending"});
        assert_eq!(shop(vec![starting]), Standing { labelled: true, ..Standing::default() });
    }

    #[test]
    fn a_captured_pod_outside_the_mesh_is_surplus() {
        let object = pod("left", json!({REDIRECTION: "enabled"}), json!({}));
        let mut all = standings(&View::of("m", vec![object.clone()]));
        assert_eq!(all.remove("shop").unwrap().surplus, ["shop/left"]);
        // Its mark stays when it has ended, and means nothing any more.
        let mut ended = object;
        ended["status"]["phase"] = json!("Succeeded");
        let mut all = standings(&View::of("m", vec![ended]));
        assert_eq!(all.remove("shop"), Some(Standing::default()));
    }
}
