use stillmesh_core::model::Policy;
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::parse;
use stillmesh_k8s::translate::Mesh;
use stillmesh_objects as objects;

use super::*;

const BEGAN: &str = "2026-01-01T00:00:00Z";

fn update(text: &str) -> objects::Update {
    let found = parse::documents("test.yaml", text);
    assert!(!found.has_errors(), "{:?}", found.findings);
    let changes = found.objects.into_iter().map(objects::Change::Set).collect();
    objects::Update { changes, complete: true, ..objects::Update::default() }
}

fn pod(name: &str, node: &str, ip: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\nspec: {{nodeName: {node}, \
         containers: [{{name: main}}]}}\nstatus: {{podIP: {ip}, phase: Running}}\n"
    )
}

const ENABLED: &str = "ambient.istio.io/redirection: enabled";

fn receipt(order: &str, took: u64, carried: usize) -> String {
    format!(
        "stillmesh.io/receipt: '{{\"bypass\":\"shop/b\",\"order\":\"{order}\",\"time\":\"{BEGAN}\",\"tookMs\":{took},\"carried\":{carried}}}'"
    )
}

fn order(spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: stillmesh.io/v1alpha1\nkind: Bypass\nmetadata: {{name: b, namespace: shop, uid: u1, generation: 1, \
         creationTimestamp: \"{BEGAN}\"}}\nspec: {spec}\nstatus: {status}\n"
    )
}

const NAMESPACE: &str =
    "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
const STRICT: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: \
                      istio-system}\nspec: {mtls: {mode: STRICT}}\n";

struct Told {
    builder: Builder,
}

impl Told {
    fn new() -> Self {
        let pods = [pod("a", "n1", "10.0.0.1", ENABLED), pod("b", "n2", "10.0.0.2", ENABLED)].concat();
        let outside =
            pod("c", "n2", "10.0.0.3", "").replace("annotations: {}", "labels: {istio.io/dataplane-mode: none}");
        let mut told = Self { builder: Builder::new(Mesh::default()) };
        told.at("2026-01-01T00:00:01Z");
        told.set(&[NAMESPACE, STRICT, &pods, &outside].concat());
        told
    }

    fn at(&mut self, time: &str) {
        self.builder.set_now(time.parse().unwrap());
    }

    /// What becomes of the order's status.
    fn set(&mut self, text: &str) -> Option<SteeringStatus> {
        let built = self.builder.apply(&update(text));
        built.verdicts.into_iter().find_map(|one| one.steered).map(|one| one.status)
    }

    /// From whom STRICT destinations take clear text.
    fn clear(&self) -> Vec<String> {
        let strict = |one: Change| match one {
            Change::Policy(policy) if policy.key.name.ends_with("static_strict") => Some(policy),
            _ => None,
        };
        let policy: std::sync::Arc<Policy> = self.builder.published().find_map(strict).unwrap();
        policy.rules[0].clauses[0].matches[0].not_source_ips.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn strict_takes_clear_text_from_bypassed_pods_and_from_nobody_else() {
    let mut told = Told::new();
    assert_eq!(told.clear(), Vec::<String>::new());
    told.set(&order("{reason: r, pods: [a]}", "{}"));
    assert_eq!(told.clear(), ["10.0.0.1/32"]);
    told.set(&order("{reason: r}", "{}"));
    assert_eq!(told.clear(), ["10.0.0.1/32", "10.0.0.2/32"], "a pod outside the mesh gets no more than it had");
    told.builder.apply(&objects::Update {
        changes: vec![objects::Change::Removed(ObjectKey::new(stillmesh_k8s::Kind::Bypass, "shop", "b"))],
        complete: true,
        ..objects::Update::default()
    });
    assert_eq!(told.clear(), Vec::<String>::new());
}

#[test]
fn after_the_end_clear_text_passes_until_the_pod_is_captured_again() {
    let mut told = Told::new();
    told.set(&order("{reason: r}", "{}"));
    told.set(&pod("a", "n1", "10.0.0.1", &receipt("u1", 3, 2)));
    told.set(&order("{reason: r, ended: true}", "{}"));
    assert_eq!(told.clear(), ["10.0.0.1/32"], "b was never out");
    told.set(&pod("a", "n1", "10.0.0.1", ENABLED));
    assert_eq!(told.clear(), Vec::<String>::new());
}

#[test]
fn a_receipt_alone_opens_nothing() {
    let mut told = Told::new();
    told.set(&pod("a", "n1", "10.0.0.1", &receipt("u1", 3, 2)));
    assert_eq!(told.clear(), Vec::<String>::new());
    told.set(&order("{reason: r, pods: [b]}", "{phase: Ended}"));
    assert_eq!(told.clear(), Vec::<String>::new(), "nor one of an order that means others");
}

#[test]
fn the_status_says_each_node_and_who_lags() {
    let mut told = Told::new();
    let status = told.set(&order("{reason: r, requestedBy: jo}", "{}")).unwrap();
    assert_eq!((status.phase.as_str(), status.summary.as_str()), ("Active", "0/2 nodes, 0/2 pods out"));
    assert_eq!(status.until.as_deref(), Some("2026-01-01T00:30:00Z"));
    let condition = &status.conditions[0];
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Waiting"));
    assert!(condition.message.ends_with("waiting for n1, n2"), "{}", condition.message);
    let status = told.set(&pod("a", "n1", "10.0.0.1", &receipt("u1", 212, 4))).unwrap();
    assert_eq!((status.done, status.connections, status.nodes[0].took_ms), (1, 4, Some(212)));
    assert!(status.conditions[0].message.ends_with("waiting for n2"), "{:?}", status.conditions);
    let other = told.set(&pod("b", "n2", "10.0.0.2", &receipt("another", 5, 0))).unwrap();
    assert_eq!(other.done, 1, "the receipt of another order does not count");
    let status = told.set(&pod("b", "n2", "10.0.0.2", &receipt("u1", 5, 0))).unwrap();
    assert_eq!((status.conditions[0].status.as_str(), status.summary.as_str()), ("True", "2/2 nodes, 2/2 pods out"));
}

#[test]
fn an_order_ends_by_the_clock_and_is_forgotten_an_hour_later() {
    let mut told = Told::new();
    told.set(&order("{reason: r, duration: 10m}", "{}"));
    assert_eq!(told.builder.next_end().unwrap().to_string(), "2026-01-01T00:10:00Z");
    assert!(told.builder.ended().is_empty());
    told.at("2026-01-01T00:10:00Z");
    let ended = told.builder.ended().remove(0).steered.unwrap();
    assert_eq!(ended.status.phase, "Ended");
    assert_eq!(ended.status.ended_at.as_deref(), Some("2026-01-01T00:10:00Z"));
    assert_eq!(told.clear().len(), 2, "only the object counts: the leader's clock alone decides");
    told.set(&order("{reason: r, duration: 10m}", "{phase: Ended, endedAt: \"2026-01-01T00:10:00Z\", done: 2}"));
    assert_eq!(told.clear(), Vec::<String>::new());
    assert_eq!(told.builder.next_end().unwrap().to_string(), "2026-01-01T01:10:00Z");
    told.at("2026-01-01T01:10:00Z");
    let forgotten = told.builder.ended().remove(0).steered.unwrap();
    assert_eq!((forgotten.forget.as_deref(), forgotten.status.done), (Some("u1"), 2));
}

#[test]
fn one_that_cannot_be_carried_out_says_why() {
    let mut told = Told::new();
    let status = told.set(&order("{reason: r, mesh: true}", "{}")).unwrap();
    assert_eq!((status.phase.as_str(), status.conditions[0].reason.as_str()), ("Refused", "Refused"));
    assert!(status.summary.contains("istio-system"), "{}", status.summary);
    assert_eq!(told.clear(), Vec::<String>::new());
    assert_eq!(told.builder.next_end(), None);
}

#[test]
fn pods_that_a_quarantine_takes_back_are_said_to_be_overridden_and_are_out_again_after_it() {
    let mut told = Told::new();
    told.set(&order("{reason: r}", "{}"));
    told.set(&pod("a", "n1", "10.0.0.1", &receipt("u1", 3, 2)));
    told.set(&pod("b", "n2", "10.0.0.2", &receipt("u1", 3, 2)));
    let of_bypass = |told: &mut Told, text: &str| {
        let verdicts = told.builder.apply(&update(text)).verdicts;
        let bypass = verdicts.into_iter().find(|one| one.object.kind == Kind::Bypass);
        bypass.and_then(|one| one.steered).map(|one| one.status).unwrap()
    };
    let quarantine = |spec: &str| order(spec, "{}").replace("Bypass", "Quarantine").replace("name: b", "name: q");
    let status = of_bypass(&mut told, &quarantine("{reason: r, pods: [a]}"));
    let summary = "1/1 nodes, 1/1 pods out; 1 more are cut off by Quarantine shop/q, and out again after it";
    assert_eq!((status.summary.as_str(), status.phase.as_str()), (summary, "Active"));
    assert_eq!((status.conditions[0].status.as_str(), status.conditions[0].reason.as_str()), ("True", "OutOfMesh"));
    let status = of_bypass(&mut told, &quarantine("{reason: r}"));
    assert_eq!((status.conditions[0].status.as_str(), status.conditions[0].reason.as_str()), ("False", "Overridden"));
    assert!(status.summary.starts_with("0/0 nodes, 0/0 pods out; 2 more are cut off"), "{}", status.summary);
    let status = of_bypass(&mut told, &quarantine("{reason: r, ended: true}"));
    assert_eq!(status.summary, "2/2 nodes, 2/2 pods out");
    told.set(&quarantine("{reason: r}"));
    told.set(&pod("a", "n1", "10.0.0.1", ENABLED));
    let status = of_bypass(&mut told, &order("{reason: r, ended: true}", "{}"));
    assert_eq!(
        (status.summary.as_str(), status.pods),
        ("1/2 pods back in the mesh", 2),
        "it is over, whoever comes next"
    );
}
