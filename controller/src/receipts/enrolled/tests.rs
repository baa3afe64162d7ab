use serde_json::{Value, json};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, ObjectKey, parse};
use stillmesh_objects::{Change, Update};

use crate::build::Builder;

const CAPTURED: &str =
    "annotations: {ambient.istio.io/redirection: enabled, stillmesh.io/receipt: '{\"olderConnections\": 1}'}";
const AGENT: &str = "labels: {app.kubernetes.io/name: stillmesh-cni}";

/// A mesh whose nodes n1 and n2 have agents.
struct World(Builder);

impl World {
    fn new(text: &str) -> Self {
        let mut world = Self(Builder::new(Mesh::default()));
        world.set(&[text, &agent("n1", "True"), &agent("n2", "True")].concat());
        world
    }

    fn set(&mut self, text: &str) {
        let found = parse::documents("test.yaml", text);
        assert!(!found.has_errors(), "{:?}", found.findings);
        self.apply(found.objects.into_iter().map(Change::Set).collect());
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.apply(vec![Change::Removed(ObjectKey::new(kind, namespace, name))]);
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.0.apply(&Update { changes, complete: true, ..Update::default() });
    }

    fn all(&self) -> Value {
        serde_json::to_value(super::receipts(&self.0.enrolments(), &self.0.running())).unwrap()
    }

    fn of(&self, namespace: &str) -> Value {
        let all = self.all();
        all.as_array().unwrap().iter().find(|one| one["name"] == namespace).cloned().unwrap_or_default()
    }

    /// Captured pods, and how many ought to be.
    fn counts(&self, namespace: &str) -> (Option<u64>, Option<u64>) {
        let receipt = self.of(namespace);
        (receipt["inForce"].as_u64(), receipt["expected"].as_u64())
    }

    /// Why the first pod lags.
    fn reason(&self, namespace: &str) -> String {
        self.of(namespace)["lagging"][0]["reason"].as_str().unwrap_or_default().to_owned()
    }
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn shop() -> String {
    namespace("shop", "istio.io/dataplane-mode: ambient")
}

fn pod(namespace: &str, name: &str, node: &str, metadata: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {namespace}-{name}, {metadata}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: main}}]}}\nstatus: {{podIP: 10.0.0.1, phase: Running}}\n"
    )
}

fn agent(node: &str, ready: &str) -> String {
    let status = format!("status: {{conditions: [{{type: Ready, status: '{ready}'}}], podIP");
    let pod = pod("istio-system", &format!("agent-{node}"), node, AGENT).replace("status: {podIP", &status);
    pod.replace("spec: {", "spec: {serviceAccountName: stillmesh-cni, ")
}

fn node(name: &str, ready: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

fn bypass(status: &str) -> String {
    format!(
        "---\napiVersion: stillmesh.io/v1alpha1\nkind: Bypass\nmetadata: {{name: b, namespace: shop, uid: u1, generation: 1, \
         creationTimestamp: \"2026-01-01T00:00:00Z\"}}\nspec: {{pods: [a], reason: r}}\nstatus: {status}\n"
    )
}

#[test]
fn a_namespace_says_how_many_of_its_pods_are_captured_and_who_is_not() {
    let world = World::new(
        &[
            shop(),
            namespace("other", ""),
            namespace("none", ""),
            pod("shop", "a", "n1", CAPTURED),
            pod("shop", "b", "n2", CAPTURED),
            pod("shop", "c", "n2", ""),
            pod("other", "single", "n1", "labels: {istio.io/dataplane-mode: ambient}"),
            pod("other", "beside", "n1", ""),
            pod("none", "a", "n1", ""),
        ]
        .concat(),
    );
    assert_eq!(
        world.all(),
        json!([
            {"kind": "Namespace", "name": "other", "inForce": 0, "expected": 1, "nodes": {"inForce": 0, "expected": 1},
             "lagging": [{"name": "other/single", "reason": "it is not captured"}], "olderConnections": 0},
            {"kind": "Namespace", "name": "shop", "inForce": 2, "expected": 3, "nodes": {"inForce": 1, "expected": 2},
             "lagging": [{"name": "shop/c", "reason": "it is not captured"}], "olderConnections": 2},
        ])
    );
}

#[test]
fn who_is_not_to_be_captured_is_not_expected() {
    let end = "deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    let world = World::new(
        &[
            shop(),
            namespace("kube-system", "istio.io/dataplane-mode: ambient"),
            pod("kube-system", "dns", "n1", ""),
            pod("shop", "a", "n1", CAPTURED),
            pod("shop", "opted-out", "n2", "labels: {istio.io/dataplane-mode: none}"),
            pod("shop", "host", "n2", "").replace("spec: {", "spec: {hostNetwork: true, "),
            pod("shop", "sidecar", "n2", "annotations: {sidecar.istio.io/status: x}"),
            pod("shop", "completed", "n2", CAPTURED).replace("Running", "Succeeded"),
            pod("shop", "failed", "n2", "").replace("Running", "Failed"),
            pod("shop", "ending", "n2", &format!("{end}, {CAPTURED}")),
            pod("shop", "unplaced", "''", ""),
        ]
        .concat(),
    );
    assert_eq!(world.counts("shop"), (Some(1), Some(1)), "{}", world.of("shop"));
    assert_eq!(world.of("shop")["nodes"], json!({"inForce": 1, "expected": 1}));
    assert!(world.of("kube-system").is_null());
}

#[test]
fn a_receipt_follows_labels_and_pods() {
    let mut world = World::new(&(shop() + &pod("shop", "a", "n1", "") + &pod("shop", "b", "n1", CAPTURED)));
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
    world.set(&pod("shop", "a", "n1", CAPTURED));
    assert_eq!(world.counts("shop"), (Some(2), Some(2)));
    assert!(world.of("shop")["took"].is_null(), "they were there before this process");
    // What is labelled later is counted from then.
    world.set(&namespace("shop", ""));
    assert_eq!(world.all(), json!([]));
    world.set(&(pod("shop", "a", "n1", "") + &shop()));
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
    world.set(&pod("shop", "a", "n1", CAPTURED));
    assert_eq!(world.of("shop")["took"]["of"], 1, "{}", world.of("shop"));
    // Another pod of the same name has nothing of the one before.
    world.set(&pod("shop", "a", "n1", CAPTURED).replace("uid: shop-a", "uid: next"));
    assert!(world.of("shop")["took"].is_null(), "{}", world.of("shop"));
    world.remove(Kind::Pod, "shop", "b");
    assert_eq!(world.counts("shop"), (Some(1), Some(1)));
    world.remove(Kind::Pod, "shop", "a");
    assert_eq!(world.counts("shop"), (Some(0), Some(0)));
    world.remove(Kind::Namespace, "", "shop");
    assert_eq!(world.all(), json!([]));
}

#[test]
fn what_no_agent_keeps_is_not_claimed() {
    let mut world = World::new(&(shop() + &pod("shop", "a", "n1", CAPTURED) + &pod("shop", "b", "n2", "")));
    // One that does not serve has left its pods as they were.
    world.set(&(agent("n1", "False") + &agent("n2", "False")));
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
    assert_eq!(world.reason("shop"), "it is not captured; the agent of its node n2 is not ready");
    world.set(&agent("n1", "True").replace("Running", "Failed"));
    assert_eq!(world.counts("shop"), (Some(0), Some(2)));
    assert_eq!(world.reason("shop"), "it is marked as captured; its node n1 has no agent");
    world.set(&(agent("n1", "True") + &agent("n2", "True")));
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
    world.remove(Kind::Pod, "istio-system", "agent-n1");
    assert_eq!(world.counts("shop"), (Some(0), Some(2)));
    // Nobody else is taken for it.
    world.set(&agent("n1", "True").replace("namespace: istio-system", "namespace: other"));
    world.set(&agent("n1", "True").replace("serviceAccountName: stillmesh-cni", "serviceAccountName: default"));
    assert_eq!(world.counts("shop"), (Some(0), Some(2)));
    // An upgrade's next one is there before the last one is gone.
    world.set(&(agent("n1", "True") + &agent("n1", "True").replace("agent-n1", "agent-n1-next")));
    world.remove(Kind::Pod, "istio-system", "agent-n1");
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
}

#[test]
fn nothing_is_claimed_or_expected_of_nodes_that_are_not_ready() {
    let mut world = World::new(&(shop() + &pod("shop", "a", "n1", CAPTURED) + &pod("shop", "b", "n2", "")));
    world.set(&node("n2", "Unknown"));
    assert_eq!((world.counts("shop"), world.reason("shop")), ((Some(1), Some(1)), String::new()));
    world.set(&node("n2", "True"));
    assert_eq!(world.counts("shop"), (Some(1), Some(2)));
}

#[test]
fn a_pod_that_a_bypass_keeps_out_lags_and_says_so() {
    let out = "annotations: {stillmesh.io/receipt: '{\"bypass\":\"shop/b\",\"order\":\"u1\",\"time\":\"t\",\"tookMs\":1,\"carried\":0}'}";
    let mut world = World::new(&(shop() + &pod("shop", "a", "n1", CAPTURED)));
    world.set(&bypass("{phase: Active}"));
    assert_eq!(world.counts("shop"), (Some(1), Some(1)), "the agent has not taken it out");
    world.set(&pod("shop", "a", "n1", out));
    assert_eq!(world.counts("shop"), (Some(0), Some(1)));
    assert_eq!(world.reason("shop"), "Bypass shop/b keeps it out for a while");
    world.set(&bypass("{}").replace("kind: Bypass", "kind: Quarantine").replace("name: b", "name: q"));
    assert_eq!(
        world.reason("shop"),
        "Bypass shop/b is overridden by Quarantine shop/q and goes on after it; it is not captured yet"
    );
    world.remove(Kind::Quarantine, "shop", "q");
    assert_eq!(world.reason("shop"), "Bypass shop/b keeps it out for a while");
    world.set(&bypass("{phase: Ended}"));
    assert_eq!(world.reason("shop"), "Bypass shop/b is over, and it is not back yet");
    world.remove(Kind::Bypass, "shop", "b");
    assert_eq!(world.reason("shop"), "Bypass shop/b is over, and it is not back yet");
    world.set(&pod("shop", "a", "n1", CAPTURED));
    assert_eq!(world.counts("shop"), (Some(1), Some(1)));
}

#[test]
fn five_are_named_and_all_are_counted() {
    let pods: String = (0..20).map(|number| pod("shop", &format!("p{number:02}"), "n1", "")).collect();
    let world = World::new(&(shop() + &pods));
    assert_eq!(world.counts("shop"), (Some(0), Some(20)));
    let named = world.of("shop")["lagging"].as_array().unwrap().len();
    assert_eq!((named, world.of("shop")["lagging"][4]["name"].clone()), (5, json!("shop/p04")));
}
