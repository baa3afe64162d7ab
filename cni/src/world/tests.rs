use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_objects::{Placed, Position};

use super::*;

fn world() -> World {
    World::new("n1".into(), Enrolment::default(), Dns::Captured, true)
}

fn set(object: impl Into<Object>) -> Change {
    Change::Set(Placed { object: object.into(), at: Position::file("x.yaml") })
}

fn metadata(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: namespace.map(Into::into), ..ObjectMeta::default() }
}

fn pod(name: &str, uid: &str, node: &str) -> Pod {
    let mut metadata = metadata(name, Some("shop"));
    metadata.uid = Some(uid.into());
    let spec = PodSpec { node_name: Some(node.into()), ..PodSpec::default() };
    Pod { metadata, spec: Some(spec), status: None }
}

fn namespace(mode: Option<&str>) -> Namespace {
    let mut metadata = metadata("shop", None);
    metadata.labels = mode.map(|mode| [("istio.io/dataplane-mode".to_owned(), mode.to_owned())].into());
    Namespace { metadata, ..Namespace::default() }
}

fn name(name: &str) -> PodName {
    PodName { namespace: "shop".into(), name: name.into() }
}

fn wanted(world: &World, pod: &str) -> Option<Wanted> {
    world.verdict(&name(pod)).map(|verdict| verdict.wanted)
}

#[test]
fn only_pods_of_this_node_count() {
    let mut world = world();
    let touched = world.apply(vec![set(pod("a", "1", "n1")), set(pod("b", "2", "n2"))], &Metrics::default());
    assert_eq!(touched, [name("a")].into());
    assert_eq!(world.verdict(&name("b")), None);
    let touched = world.apply(vec![set(pod("a", "1", "n2"))], &Metrics::default());
    assert_eq!((touched, world.verdict(&name("a"))), ([name("a")].into(), None));
}

#[test]
fn a_namespace_label_touches_its_pods_and_takes_them_in_and_out() {
    let mut world = world();
    let metrics = Metrics::default();
    world.apply(vec![set(namespace(None)), set(pod("a", "1", "n1"))], &metrics);
    assert_eq!(wanted(&world, "a"), Some(Wanted::Free));
    assert_eq!(world.apply(vec![set(namespace(Some("ambient")))], &metrics), [name("a")].into());
    assert_eq!(wanted(&world, "a"), Some(Wanted::Captured));
    let gone = namespace(None);
    let key = Object::from(gone).key();
    assert_eq!(world.apply(vec![Change::Removed(key)], &metrics), [name("a")].into());
    assert_eq!(wanted(&world, "a"), Some(Wanted::Free));
}

#[test]
fn a_pod_that_ended_is_gone() {
    let mut world = world();
    let mut ended = pod("a", "1", "n1");
    ended.status = Some(PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() });
    world.apply(vec![set(namespace(Some("ambient"))), set(ended)], &Metrics::default());
    assert_eq!(wanted(&world, "a"), Some(Wanted::Gone));
}

#[test]
fn annotations_become_facts() {
    let mut world = world();
    let mut annotated = pod("a", "1", "n1");
    annotated.metadata.annotations = Some(
        [
            (DNS_CAPTURE, "false"),
            (BYPASS_INBOUND, "T"),
            (VIRTUAL_INTERFACES, "vm0, vm1,vm0,,bad/name"),
            (REDIRECTION, "enabled"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    );
    world.apply(vec![set(annotated)], &Metrics::default());
    let verdict = world.verdict(&name("a")).unwrap();
    let interfaces: Vec<_> = verdict.facts.virtual_interfaces.iter().map(InterfaceName::as_str).collect();
    assert_eq!((verdict.facts.dns, verdict.facts.inbound), (Dns::Direct, Inbound::Bypassed));
    assert_eq!(interfaces, ["vm0", "vm1"]);
    assert!(verdict.marked);
    assert_eq!(verdict.info.service_account, "default");
}

#[test]
fn a_switch_that_is_neither_true_nor_false_counts_as_absent() {
    let mut world = world();
    let mut annotated = pod("a", "1", "n1");
    annotated.metadata.annotations = Some([(DNS_CAPTURE.to_owned(), "maybe".to_owned())].into());
    world.apply(vec![set(annotated)], &Metrics::default());
    assert_eq!(world.verdict(&name("a")).unwrap().facts.dns, Dns::Captured);
}

#[test]
fn a_pod_without_a_uid_waits_for_one() {
    let mut world = world();
    let mut fresh = pod("a", "1", "n1");
    fresh.metadata.uid = None;
    assert_eq!(world.apply(vec![set(fresh)], &Metrics::default()), [name("a")].into());
    assert_eq!(world.verdict(&name("a")), None);
}

fn versioned(mut pod: Pod, version: u64) -> Pod {
    pod.metadata.resource_version = Some(version.to_string());
    pod
}

fn removed(pod: Pod) -> Change {
    Change::Removed(Object::from(pod).key())
}

fn uid(world: &World) -> Option<String> {
    world.verdict(&name("a")).map(|verdict| verdict.uid)
}

#[test]
fn what_the_api_server_said_is_not_undone_by_what_was_on_its_way() {
    let mut world = world();
    let metrics = Metrics::default();
    world.apply(vec![set(versioned(pod("a", "1", "n1"), 10))], &metrics);
    // The pod was made anew under its name, and the plugin is quicker than the watch.
    let seen = Seen {
        asked: Instant::now(),
        pod: Some(versioned(pod("a", "2", "n1"), 30)),
        namespace: Some(namespace(Some("ambient"))),
    };
    assert_eq!(world.learn(&name("a"), seen), [name("a")].into());
    assert_eq!((uid(&world), wanted(&world, "a")), (Some("2".into()), Some(Wanted::Captured)));

    world.apply(vec![set(versioned(pod("a", "1", "n1"), 20))], &metrics);
    assert_eq!(uid(&world), Some("2".into()));
    world.apply(vec![removed(pod("a", "1", "n1"))], &metrics);
    assert_eq!((uid(&world), world.doubtful()), (Some("2".into()), [name("a")].into()));
    assert!(world.doubtful().is_empty());

    world.apply(vec![set(versioned(pod("a", "2", "n1"), 30))], &metrics);
    world.apply(vec![removed(pod("a", "2", "n1"))], &metrics);
    assert_eq!((uid(&world), world.doubtful()), (None, BTreeSet::new()));
}

#[test]
fn a_pod_that_the_watch_never_brought_is_gone_when_the_api_server_says_so() {
    let mut world = world();
    let seen = Seen { asked: Instant::now(), pod: Some(versioned(pod("a", "2", "n1"), 30)), namespace: None };
    world.learn(&name("a"), seen);
    world.apply(vec![removed(pod("a", "2", "n1"))], &Metrics::default());
    assert_eq!(world.doubtful(), [name("a")].into());
    world.learn(&name("a"), Seen { asked: Instant::now(), pod: None, namespace: None });
    assert_eq!(uid(&world), None);
    // Such an answer says nothing of a pod that came after the question.
    let before = Seen { asked: Instant::now(), pod: None, namespace: None };
    let of_before = Seen { asked: Instant::now(), pod: Some(pod("a", "3", "n1")), namespace: None };
    world.learn(
        &name("a"),
        Seen { asked: Instant::now(), pod: Some(versioned(pod("a", "4", "n1"), 40)), namespace: None },
    );
    world.learn(&name("a"), before);
    world.learn(&name("a"), of_before);
    assert_eq!(uid(&world), Some("4".into()));
    world.learn(&name("a"), Seen { asked: Instant::now(), pod: None, namespace: None });
    assert_eq!(uid(&world), None);
    let elsewhere = Seen { asked: Instant::now(), pod: Some(pod("a", "3", "n2")), namespace: None };
    world.learn(&name("a"), elsewhere);
    assert_eq!(uid(&world), None);
}

#[test]
fn an_older_version_of_a_namespace_does_not_take_its_label_back() {
    let mut world = world();
    let metrics = Metrics::default();
    let versioned = |mode: Option<&str>, version: u64| {
        let mut namespace = namespace(mode);
        namespace.metadata.resource_version = Some(version.to_string());
        namespace
    };
    world.apply(vec![set(versioned(None, 5)), set(pod("a", "1", "n1"))], &metrics);
    let seen =
        Seen { asked: Instant::now(), pod: Some(pod("a", "1", "n1")), namespace: Some(versioned(Some("ambient"), 9)) };
    world.learn(&name("a"), seen);
    world.apply(vec![set(versioned(None, 7))], &metrics);
    assert_eq!(wanted(&world, "a"), Some(Wanted::Captured));
    assert_eq!((world.is_enrolled("shop"), world.enrolled()), (Some(true), ["shop".to_owned()].into()));
    world.apply(vec![set(versioned(None, 10))], &metrics);
    assert_eq!((wanted(&world, "a"), world.enrolled()), (Some(Wanted::Free), BTreeSet::new()));
}

fn mirrored(uid: &str) -> Pod {
    let mut pod = pod("a", "1-1", "n1");
    pod.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), uid.to_owned())].into());
    pod
}

fn with_address(mut pod: Pod) -> Pod {
    pod.status = Some(PodStatus { pod_ip: Some("10.0.0.1".into()), ..PodStatus::default() });
    pod
}

#[test]
fn a_static_pod_has_two_uids_and_is_looked_for_by_the_kubelets_once_it_is_placed() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let mut world = world();
    world.apply(vec![set(mirrored(HASH))], &Metrics::default());
    let verdict = world.verdict(&name("a")).unwrap();
    assert_eq!((verdict.placed, verdict.sandbox.as_str(), verdict.uid.as_str()), (false, HASH, "1-1"));
    assert_eq!(verdict.sought(), None);
    world.apply(vec![set(with_address(mirrored(HASH)))], &Metrics::default());
    let verdict = world.verdict(&name("a")).unwrap();
    assert_eq!((verdict.placed, verdict.sought()), (true, Some(HASH)));
}

#[test]
fn a_pod_cannot_pass_for_another_one_that_is_not_static() {
    let mut world = world();
    for uid in ["4a1c6b52-97ef-4c51-8a1e-000000000000", "0123456789ABCDEF0123456789ABCDEF", "0123", ""] {
        world.apply(vec![set(with_address(mirrored(uid)))], &Metrics::default());
        assert_eq!(world.verdict(&name("a")).unwrap().sought(), Some("1-1"), "{uid}");
    }
}

fn bypass(spec: &str, status: &str) -> Change {
    let text = format!(
        "apiVersion: stillmesh.io/v1alpha1\nkind: Bypass\nmetadata: {{name: b, namespace: shop, uid: u1}}\nspec: {spec}\nstatus: {status}\n"
    );
    let mut found = stillmesh_k8s::parse::documents("t", &text);
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    Change::Set(found.objects.remove(0))
}

#[test]
fn a_bypass_takes_its_pods_out_until_its_object_says_that_it_is_over() {
    let mut world = world();
    let metrics = Metrics::default();
    world.apply(vec![set(namespace(Some("ambient"))), set(pod("a", "1", "n1")), set(pod("b", "2", "n1"))], &metrics);
    assert_eq!(world.apply(vec![bypass("{reason: r, pods: [a]}", "{}")], &metrics), [name("a")].into());
    let verdict = world.verdict(&name("a")).unwrap();
    assert_eq!((verdict.wanted, verdict.reason), (Wanted::Free, Some(NotEnrolled::Bypassed)));
    assert_eq!(wanted(&world, "b"), Some(Wanted::Captured));
    assert_eq!(world.is_enrolled("shop"), Some(true), "others of the namespace go on");
    let heard = verdict.bypassed.unwrap().heard;

    let both = world.apply(vec![bypass("{reason: r}", "{}")], &metrics);
    assert_eq!(both, [name("a"), name("b")].into());
    assert_eq!(wanted(&world, "b"), Some(Wanted::Free));
    assert_eq!(world.is_enrolled("shop"), Some(false), "without the agent, too, pods start");
    assert_eq!(world.verdict(&name("a")).unwrap().bypassed.unwrap().heard, heard, "it was heard of once");

    world.apply(vec![bypass("{reason: r}", "{phase: Ended}")], &metrics);
    assert_eq!((wanted(&world, "a"), wanted(&world, "b")), (Some(Wanted::Captured), Some(Wanted::Captured)));
    world.apply(vec![bypass("{reason: r}", "{}")], &metrics);
    assert_eq!(world.apply(vec![bypass("{reason: r, ended: true}", "{}")], &metrics), [name("a"), name("b")].into());
    assert_eq!(wanted(&world, "a"), Some(Wanted::Captured));
}

#[test]
fn a_bypass_does_not_count_for_pods_that_are_not_in_the_mesh() {
    let mut world = world();
    world.apply(vec![set(namespace(None)), set(pod("a", "1", "n1")), bypass("{reason: r}", "{}")], &Metrics::default());
    let verdict = world.verdict(&name("a")).unwrap();
    assert_eq!((verdict.reason, verdict.bypassed), (Some(NotEnrolled::NotSelected), None));
}

#[test]
fn what_a_receipt_says_of_the_order_is_known() {
    let mut world = world();
    let mut out = pod("a", "1", "n1");
    let receipt = r#"{"bypass":"shop/b","order":"u1","time":"t","tookMs":1,"carried":0}"#;
    out.metadata.annotations = Some([(RECEIPT.to_owned(), receipt.to_owned())].into());
    world.apply(vec![set(namespace(Some("ambient"))), set(out), bypass("{reason: r}", "{}")], &Metrics::default());
    let verdict = world.verdict(&name("a")).unwrap();
    assert!(verdict.was_bypassed && verdict.bypassed.unwrap().told.is_some());
}

fn quarantine(name: &str, uid: &str, spec: &str) -> Change {
    let text = format!(
        "apiVersion: stillmesh.io/v1alpha1\nkind: Quarantine\nmetadata: {{name: {name}, namespace: shop, uid: {uid}}}\nspec: {spec}\n"
    );
    let mut found = stillmesh_k8s::parse::documents("t", &text);
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    Change::Set(found.objects.remove(0))
}

#[tokio::test(start_paused = true)]
async fn who_is_quarantined_is_captured_whatever_a_bypass_says() {
    let mut world = world();
    let metrics = Metrics::default();
    world.apply(vec![set(namespace(Some("ambient"))), set(pod("a", "1", "n1")), set(pod("b", "2", "n1"))], &metrics);
    world.apply(vec![bypass("{reason: r}", "{}")], &metrics);
    assert_eq!(world.is_enrolled("shop"), Some(false));
    let heard = |world: &World| world.verdict(&name("a")).unwrap().bypassed.unwrap().heard;
    let first = heard(&world);
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.apply(vec![quarantine("q", "u2", "{reason: r, pods: [a]}")], &metrics), [name("a")].into());
    assert_eq!((wanted(&world, "a"), wanted(&world, "b")), (Some(Wanted::Captured), Some(Wanted::Free)));
    assert_eq!(world.verdict(&name("a")).unwrap().quarantined.unwrap().to_string(), "Quarantine shop/q");
    assert_eq!(world.is_enrolled("shop"), Some(true), "while the agent is away its pods wait");
    world.apply(vec![quarantine("q", "u2", "{reason: r, pods: [a], ended: true}")], &metrics);
    assert_eq!(wanted(&world, "a"), Some(Wanted::Free));
    let again = heard(&world);
    assert!(again > first, "peers hear of it again before it sends clear text");
    // By its labels, too; what else happens to it changes nothing.
    let labelled =
        |labels: &str| quarantine("q", "u2", &format!("{{reason: r, selector: {{matchLabels: {{app: {labels}}}}}}}"));
    let with = |app: &str, version: &str| {
        let mut pod = pod("a", "1", "n1");
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        pod.metadata.resource_version = Some(version.to_owned());
        set(pod)
    };
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    world.apply(vec![with("b", "10")], &metrics);
    assert_eq!(heard(&world), again);
    world.apply(vec![with("bad", "11"), labelled("bad")], &metrics);
    assert_eq!(wanted(&world, "a"), Some(Wanted::Captured));
    world.apply(vec![with("good", "12")], &metrics);
    assert!(heard(&world) > again, "nobody has heard of it since it is not quarantined");
}

#[test]
fn a_tunnels_word_becomes_a_receipt_once() {
    let mut world = world();
    let notice = |quarantine: Option<&str>, cut| Notice {
        uid: "1".into(),
        quarantine: quarantine.map(Into::into),
        order: None,
        cut,
        took: std::time::Duration::from_millis(40),
    };
    let now = || "now".to_owned();
    assert_eq!(world.cut_off(&notice(Some("shop/q"), 3), now), None, "a pod that nobody knows");
    world.apply(vec![set(pod("a", "1", "n1"))], &Metrics::default());
    assert_eq!(world.cut_off(&notice(None, 0), now), None, "nothing to take away");
    world.apply(
        vec![quarantine("q", "u2", "{reason: r}"), quarantine("other", "u3", "{reason: r}")],
        &Metrics::default(),
    );
    let (pod_name, receipt) = world.cut_off(&notice(Some("shop/q"), 3), now).unwrap();
    let receipt = receipt.unwrap();
    assert_eq!((pod_name, receipt.cut, receipt.took_ms, receipt.time.as_str()), (name("a"), 3, 40, "now"));
    assert_eq!(receipt.order, "u2");

    let mut written = pod("a", "1", "n1");
    let text = serde_json::to_string(&receipt).unwrap();
    written.metadata.annotations = Some([(QUARANTINE.to_owned(), text)].into());
    world.apply(vec![set(written)], &Metrics::default());
    assert_eq!(world.cut_off(&notice(Some("shop/q"), 3), now), None);
    assert_eq!(world.cut_off(&notice(Some("shop/q"), 0), now), None, "a tunnel that has started anew");
    let more = world.cut_off(&notice(Some("shop/q"), 4), || "later".to_owned()).unwrap().1.unwrap();
    assert_eq!((more.cut, more.time.as_str()), (4, "now"));
    world.apply(vec![quarantine("q", "again", "{reason: r}")], &Metrics::default());
    let again = world.cut_off(&notice(Some("shop/q"), 3), || "later".to_owned()).unwrap().1.unwrap();
    assert_eq!(
        (again.order.as_str(), again.time.as_str()),
        ("again", "later"),
        "one that was made again is another one"
    );
    let other = world.cut_off(&notice(Some("shop/other"), 0), || "later".to_owned()).unwrap().1.unwrap();
    assert_eq!((other.cut, other.time.as_str()), (0, "later"));
    assert_eq!(world.cut_off(&notice(None, 0), now), Some((name("a"), None)));
}

#[test]
fn a_tunnel_that_hears_of_a_quarantine_first_is_believed_when_it_is_there() {
    let mut world = world();
    let metrics = Metrics::default();
    let notice = |quarantine: Option<&str>| Notice {
        uid: "1".into(),
        quarantine: quarantine.map(Into::into),
        order: None,
        cut: 3,
        took: std::time::Duration::from_millis(40),
    };
    let now = || "now".to_owned();
    world.apply(vec![set(pod("a", "1", "n1"))], &metrics);
    assert_eq!(world.cut_off(&notice(Some("shop/q")), now), None);
    assert_eq!(world.early(), []);
    world.apply(vec![quarantine("q", "u2", "{reason: r}")], &metrics);
    assert_eq!(world.early(), [notice(Some("shop/q"))]);
    assert_eq!(world.early(), [], "once");
    assert_eq!(world.cut_off(&notice(Some("shop/q")), now).unwrap().1.unwrap().order, "u2");

    assert_eq!(world.cut_off(&notice(Some("shop/other")), now), None);
    assert_eq!(world.cut_off(&notice(None), now), None);
    world.apply(vec![quarantine("other", "u3", "{reason: r}")], &metrics);
    assert_eq!(world.early(), [], "it has been taken back");
}

#[test]
fn a_word_on_a_quarantine_that_had_the_name_before_is_none_on_its_successor() {
    let mut world = world();
    let metrics = Metrics::default();
    let notice = |order: &str, cut| Notice {
        uid: "1".into(),
        quarantine: Some("shop/q".into()),
        order: Some(order.into()),
        cut,
        took: std::time::Duration::from_millis(40),
    };
    let now = || "now".to_owned();
    world.apply(vec![set(pod("a", "1", "n1")), quarantine("q", "u2", "{reason: r}")], &metrics);
    assert_eq!(world.cut_off(&notice("u2", 5), now).unwrap().1.unwrap().cut, 5);
    // The watch is quicker than the tunnel.
    world.apply(vec![quarantine("q", "again", "{reason: r}")], &metrics);
    assert_eq!((world.cut_off(&notice("u2", 5), now), world.early()), (None, Vec::new()));
    let receipt = world.cut_off(&notice("again", 1), now).unwrap().1.unwrap();
    assert_eq!((receipt.order.as_str(), receipt.cut), ("again", 1));
    // The tunnel is quicker than the watch.
    assert_eq!(world.cut_off(&notice("third", 2), now), None);
    assert_eq!(world.early(), []);
    world.apply(vec![quarantine("q", "third", "{reason: r}")], &metrics);
    assert_eq!(world.early(), [notice("third", 2)]);
}
