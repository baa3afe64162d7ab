use stillmesh_core::model::{Health, Policy, Scope, Workload};
use stillmesh_k8s::steering::SteeringStatus;
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, parse};
use stillmesh_objects as objects;

use super::*;

const BEGAN: &str = "2026-01-01T00:00:00Z";
const NAMESPACE: &str =
    "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";

fn pod(name: &str, ip: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{more}}}\nspec: {{nodeName: n1, \
         containers: [{{name: main}}]}}\nstatus: {{podIP: {ip}, phase: Running, conditions: [{{type: Ready, status: \
         \"True\"}}]}}\n"
    )
}

fn order(kind: &str, name: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: stillmesh.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop, uid: {name}, \
         generation: 1, creationTimestamp: \"{BEGAN}\"}}\nspec: {spec}\nstatus: {status}\n"
    )
}

/// Of the order whose UID is its name.
fn receipt(quarantine: &str, cut: u64) -> String {
    receipt_of(quarantine, quarantine, cut)
}

fn receipt_of(quarantine: &str, uid: &str, cut: u64) -> String {
    format!(
        ", annotations: {{stillmesh.io/quarantine: '{{\"quarantine\":\"shop/{quarantine}\",\"order\":\"{uid}\",\
         \"time\":\"{BEGAN}\",\"tookMs\":40,\"cut\":{cut}}}'}}"
    )
}

struct World {
    builder: Builder,
}

impl World {
    /// `a` and `b` in the mesh, `c` not.
    fn new() -> Self {
        let mut world = Self { builder: Builder::new(Mesh::default()) };
        world.builder.set_now(BEGAN.parse().unwrap());
        let outside = pod("c", "10.0.0.3", ", labels: {istio.io/dataplane-mode: none}");
        world.set(&[NAMESPACE, &pod("a", "10.0.0.1", ""), &pod("b", "10.0.0.2", ""), &outside].concat());
        world
    }

    /// What is sent, and what becomes of the status of `q`.
    fn set(&mut self, text: &str) -> (Vec<Change>, Option<SteeringStatus>) {
        let found = parse::documents("test.yaml", text);
        assert!(!found.has_errors(), "{:?}", found.findings);
        let changes = found.objects.into_iter().map(objects::Change::Set).collect();
        let built = self.builder.apply(&objects::Update { changes, complete: true, ..objects::Update::default() });
        let of_q = |verdict: &super::super::Verdict| verdict.object == ObjectKey::new(Kind::Quarantine, "shop", "q");
        let status = built.verdicts.into_iter().find(of_q).and_then(|one| one.steered).map(|one| one.status);
        (built.changes, status)
    }

    fn workload(&self, wanted: &str) -> Workload {
        let workload = |one| match one {
            Change::Workload(workload) if &*workload.name == wanted => Some((*workload).clone()),
            _ => None,
        };
        self.builder.published().find_map(workload).unwrap()
    }

    /// Whether a pod is cut off, as nodes see it.
    fn is_cut(&self, pod: &str) -> bool {
        let workload = self.workload(pod);
        let cut = workload.quarantine().is_some();
        assert_eq!(cut, workload.health == Health::Unhealthy, "{pod}");
        cut
    }

    fn policy(&self, key: &PolicyKey) -> Option<Policy> {
        let policy = |one| match one {
            Change::Policy(policy) if policy.key == *key => Some((*policy).clone()),
            _ => None,
        };
        self.builder.published().find_map(policy)
    }

    /// The addresses from which everybody refuses.
    fn refused(&self) -> Vec<String> {
        let policy = self.policy(&PolicyKey::from_quarantine("shop", "q"));
        policy.map_or_else(Vec::new, |policy| {
            assert_eq!(policy.scope, Scope::Global);
            policy.rules[0].clauses[0].matches[0].source_ips.iter().map(ToString::to_string).collect()
        })
    }
}

#[test]
fn the_pods_name_a_policy_that_refuses_all_and_everybody_refuses_what_comes_from_them() {
    let mut world = World::new();
    let (changes, _) = world.set(&order("Quarantine", "q", "{reason: r, pods: [a, c]}", "{}"));
    assert!(world.is_cut("a") && !world.is_cut("b") && !world.is_cut("c"));
    assert_eq!(world.refused(), ["10.0.0.1/32"], "what is not in the mesh sends as before");
    let at = |wanted: fn(&Change) -> bool| changes.iter().position(wanted).unwrap();
    let (policy, workload) = (at(|one| matches!(one, Change::Policy(_))), at(|one| matches!(one, Change::Workload(_))));
    assert!(policy < workload, "nobody names a policy that has not been sent");

    world.set(&order("Quarantine", "q", "{reason: r}", "{}"));
    assert!(world.is_cut("a") && world.is_cut("b"));
    let (changes, _) = world.set(&pod("late", "10.0.0.9", ""));
    assert!(world.is_cut("late"), "a pod that comes later is meant, too");
    assert_eq!(world.refused(), ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.9/32"]);
    assert_eq!(changes.len(), 2, "one pod costs its workload and the list: {changes:?}");

    let (changes, _) = world.set(&order("Quarantine", "q", "{reason: r, ended: true}", "{}"));
    assert!(!world.is_cut("a") && !world.is_cut("late") && world.refused().is_empty());
    assert!(world.policy(&PolicyKey::of_quarantine("shop", "q")).is_none());
    assert!(matches!(changes.last(), Some(Change::PolicyRemoved(_))), "a policy goes after those who name it");
}

#[test]
fn it_holds_whatever_its_policies_and_the_mesh_say_and_ends_with_its_object() {
    let mut world = World::new();
    world.set(&order("Quarantine", "q", "{reason: r, pods: [a]}", "{}"));
    world.set(&NAMESPACE.replace("ambient", "none"));
    assert!(!world.is_cut("a"), "it means pods of the mesh");
    world.set(NAMESPACE);
    assert!(world.is_cut("a"));
    world.builder.apply(&objects::Update {
        changes: vec![objects::Change::Removed(ObjectKey::new(Kind::Quarantine, "shop", "q"))],
        complete: true,
        ..objects::Update::default()
    });
    assert!(!world.is_cut("a") && world.refused().is_empty());
}

#[test]
fn one_that_cannot_be_carried_out_says_why() {
    let mut world = World::new();
    let (_, status) = world.set(&order("Quarantine", "q", "{reason: r, duration: 200h}", "{}"));
    assert_eq!(status.unwrap().phase, "Refused");
    assert!(!world.is_cut("a"));
}

#[test]
fn the_status_counts_pods_nodes_and_connections_and_names_those_who_lag() {
    let mut world = World::new();
    let status = world.set(&order("Quarantine", "q", "{reason: r, requestedBy: jo}", "{}")).1.unwrap();
    assert_eq!(status.summary, "0/1 nodes, 0/2 pods cut off; 1 more are not in the mesh and go on");
    assert_eq!(status.conditions[0].reason, "Waiting");
    world.set(&pod("a", "10.0.0.1", &receipt("q", 5)));
    let status = world.set(&pod("b", "10.0.0.2", &receipt("q", 2))).1.unwrap();
    assert_eq!((status.pods, status.done, status.connections), (2, 2, 7));
    assert_eq!((status.conditions[0].reason.as_str(), status.nodes[0].took_ms), ("CutOff", Some(40)));
    let active = "{phase: Active, done: 2, connections: 7, nodes: [{node: n1, pods: 2, done: 2, connections: 7}]}";
    let ended = world.set(&order("Quarantine", "q", "{reason: r, ended: true}", active)).1.unwrap();
    assert_eq!((ended.phase.as_str(), ended.summary.as_str()), ("Ended", "0/2 pods connected again"));
    assert_eq!(ended.connections, 7);
    world.set(&pod("a", "10.0.0.1", ""));
    let ended = world.set(&pod("b", "10.0.0.2", "")).1.unwrap();
    assert_eq!((ended.returned, ended.conditions[0].reason.as_str()), (2, "Connected"));
}

#[test]
fn an_order_that_is_made_again_under_its_name_is_another_one() {
    let mut world = World::new();
    let again = order("Quarantine", "q", "{reason: r, pods: [a]}", "{}").replace("uid: q", "uid: again");
    world.set(&order("Quarantine", "q", "{reason: r, pods: [a]}", "{}"));
    let status = world.set(&pod("a", "10.0.0.1", &receipt("q", 5))).1.unwrap();
    assert_eq!((status.done, status.connections, status.returned), (1, 5, 0));
    let (changes, status) = world.set(&again);
    let status = status.unwrap();
    let of = world.policy(&PolicyKey::of_quarantine("shop", "q")).unwrap();
    assert_eq!((of.order.as_deref(), changes.len()), (Some("again"), 1), "tunnels hear of it: {changes:?}");
    assert_eq!((status.pods, status.done, status.connections), (1, 0, 0), "the receipt is of the one before");
    assert_eq!((status.returned, status.conditions[0].reason.as_str()), (1, "Waiting"));
    let status = world.set(&pod("a", "10.0.0.1", &receipt_of("q", "again", 2))).1.unwrap();
    assert_eq!((status.done, status.connections, status.returned), (1, 2, 0));
    // An agent of the version before does not say which.
    let status = world.set(&pod("a", "10.0.0.1", &receipt_of("q", "", 3))).1.unwrap();
    assert_eq!((status.done, status.connections), (1, 3));
}

#[test]
fn a_pod_that_another_quarantine_names_is_cut_off_all_the_same() {
    let mut world = World::new();
    world.set(&order("Quarantine", "other", "{reason: r}", "{}"));
    world.set(&order("Quarantine", "q", "{reason: r, pods: [a]}", "{}"));
    let status = world.set(&pod("a", "10.0.0.1", &receipt("other", 5))).1.unwrap();
    assert_eq!((status.done, status.connections), (1, 0));
    let gone = world.set(&order("Quarantine", "other", "{reason: r, ended: true}", "{}")).1.unwrap();
    assert_eq!(gone.done, 0, "its receipt is of one that is over");
    assert!(world.is_cut("a") && !world.is_cut("b"));
}

#[test]
fn a_quarantine_comes_before_a_bypass() {
    let mut world = World::new();
    world.set(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: istio-system}\n\
         spec: {mtls: {mode: STRICT}}\n",
    );
    world.set(&order("Bypass", "b", "{reason: r}", "{}"));
    assert_eq!(world.builder.steering.clear().len(), 2);
    world.set(&order("Quarantine", "q", "{reason: r, pods: [a]}", "{}"));
    assert_eq!(world.builder.steering.clear(), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
}
