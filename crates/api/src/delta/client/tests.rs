use stillmesh_core::model::Action;

use super::*;
use crate::codec::tests::bytes::Wire;
use crate::delta::fixtures::{policy, policy_removed, uid, workload, workload_removed};
use crate::proto::google::protobuf::Any;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

fn client() -> Client {
    Client::new(Node { id: "ztunnel~1".into(), ..Node::default() }, &ResourceType::NODE)
}

fn resource(change: &Change, version: &str) -> Resource {
    let bytes = match change {
        Change::Workload(workload) => codec::address::encode_workload(workload),
        Change::Policy(policy) => codec::authorization::encode(policy),
        other => panic!("{other:?}"),
    };
    let (kind, name) = codec::name(change);
    raw(kind.url(), &name, version, bytes)
}

fn raw(type_url: &str, name: &str, version: &str, bytes: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: bytes.into() }),
        ..Resource::default()
    }
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn held(client: &mut Client, type_url: &str) -> Vec<(String, String)> {
    let first = client.opened(Instant::now()).into_iter().find(|request| request.type_url == type_url).unwrap();
    first.initial_resource_versions.into_iter().collect()
}

#[test]
fn the_first_requests_are_wildcards_with_the_node_policies_first() {
    let requests = client().opened(Instant::now());
    assert_eq!(requests.iter().map(|request| request.type_url.as_str()).collect::<Vec<_>>(), [AUTHORIZATION, ADDRESS]);
    for request in requests {
        assert_eq!(request.node.unwrap().id, "ztunnel~1");
        assert!(request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty() && request.response_nonce.is_empty());
    }
}

#[test]
fn a_response_is_acknowledged_by_nonce_after_it_was_applied_and_makes_the_client_ready() {
    let mut client = client();
    client.opened(Instant::now());
    let page = workload("page", 1, "n1", &[], &[]);
    let (batch, ticket) = client.receive(response(ADDRESS, "a1", vec![resource(&page, "v1")], &[])).unwrap();
    let bytes = batch.bytes;
    assert!(bytes > 0);
    assert_eq!(batch, Batch { kind: ResourceType::Address, changes: vec![page], first: true, ours: false, bytes });
    let ack = client.acknowledge(ticket, Vec::new());
    assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str()), (ADDRESS, "a1"));
    assert_eq!((ack.node, ack.error_detail), (None, None));
    assert!(!client.ready(), "no policies yet");

    let (batch, ticket) = client.receive(response(AUTHORIZATION, "b1", Vec::new(), &[])).unwrap();
    let bytes = batch.bytes;
    assert_eq!(
        batch,
        Batch { kind: ResourceType::Authorization, changes: Vec::new(), first: true, ours: false, bytes }
    );
    let _ = client.acknowledge(ticket, Vec::new());
    assert!(client.ready());

    let (batch, ticket) = client.receive(response(AUTHORIZATION, "b2", Vec::new(), &[])).unwrap();
    assert!(!batch.first);
    let _ = client.acknowledge(ticket, Vec::new());
}

#[test]
fn after_a_reconnect_the_client_says_what_it_holds() {
    let mut client = client();
    client.opened(Instant::now());
    let resources =
        ["a", "b"].map(|name| resource(&workload(name, 1, "n1", &[], &[]), &format!("version-{name}"))).to_vec();
    let (_, ticket) = client.receive(response(ADDRESS, "1", resources, &[])).unwrap();
    let _ = client.acknowledge(ticket, Vec::new());
    let (batch, ticket) = client.receive(response(ADDRESS, "2", Vec::new(), &[&uid("b")])).unwrap();
    assert_eq!(batch.changes, [workload_removed("b")]);
    let _ = client.acknowledge(ticket, Vec::new());
    assert_eq!(held(&mut client, ADDRESS), [(uid("a"), "version-a".to_owned())]);
    assert_eq!(held(&mut client, AUTHORIZATION), []);
}

#[test]
fn a_batch_with_a_bad_resource_is_applied_without_it_and_refused_by_name() {
    let mut client = client();
    let good = workload("good", 1, "n1", &[], &[]);
    let bad = raw(ADDRESS, &uid("bad"), "v", Wire::new().message(1, Wire::new().bytes(3, [1])).0);
    let typed = raw(AUTHORIZATION, "shop/odd", "v", Vec::new());
    let sent = response(ADDRESS, "1", vec![bad, resource(&good, "v"), typed], &["x/y"]);
    let (batch, ticket) = client.receive(sent).unwrap();
    assert_eq!(batch.changes.len(), 2, "the good one and the removal");
    assert_eq!(batch.changes[0], good);
    let nack = client.acknowledge(ticket, Vec::new());
    assert_eq!(nack.response_nonce, "1");
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with(&format!("{}: uid: empty", uid("bad"))), "{message}");
    assert!(message.contains("; shop/odd: resource: of type"), "{message}");
    assert_eq!(held(&mut client, ADDRESS), [(uid("good"), "v".to_owned())]);
}

#[test]
fn what_the_sink_refuses_keeps_its_last_good_version() {
    let mut client = client();
    let change = workload("page", 1, "n1", &[], &[]);
    let (_, ticket) = client.receive(response(ADDRESS, "1", vec![resource(&change, "old")], &[])).unwrap();
    let _ = client.acknowledge(ticket, Vec::new());
    let (_, ticket) = client.receive(response(ADDRESS, "2", vec![resource(&change, "new")], &[])).unwrap();
    let refused = Rejected { name: uid("page"), reason: "no".into() };
    let nack = client.acknowledge(ticket, vec![refused]);
    assert_eq!(nack.error_detail.unwrap().message, format!("{}: no", uid("page")));
    assert_eq!(held(&mut client, ADDRESS), [(uid("page"), "old".to_owned())]);
}

#[test]
fn a_policy_that_cannot_be_read_is_applied_as_such_refused_and_asked_for_again() {
    let mut client = client();
    let unreadable = raw(AUTHORIZATION, "shop/p", "v", Wire::new().text(1, "p").text(2, "shop").number(99, 1).0);
    let (batch, ticket) = client.receive(response(AUTHORIZATION, "1", vec![unreadable.clone()], &[])).unwrap();
    assert!(matches!(&batch.changes[..], [Change::Policy(policy)] if policy.unreadable.is_some()));
    let nack = client.acknowledge(ticket, Vec::new());
    assert_eq!(nack.error_detail.unwrap().message, "shop/p: authorization: unknown field 99");
    // Known to be there, so that its removal is told; of no version, so that it is sent again.
    assert_eq!(held(&mut client, AUTHORIZATION), [("shop/p".to_owned(), String::new())]);

    let good = resource(&policy("p", Action::Deny), "good");
    let (_, ticket) = client.receive(response(AUTHORIZATION, "2", vec![good], &[])).unwrap();
    let _ = client.acknowledge(ticket, Vec::new());
    let (_, ticket) = client.receive(response(AUTHORIZATION, "3", vec![unreadable], &[])).unwrap();
    let _ = client.acknowledge(ticket, Vec::new());
    assert_eq!(held(&mut client, AUTHORIZATION), [("shop/p".to_owned(), "good".to_owned())]);

    let (batch, ticket) = client.receive(response(AUTHORIZATION, "4", Vec::new(), &["shop/p"])).unwrap();
    assert_eq!(batch.changes, [policy_removed("p")]);
    let _ = client.acknowledge(ticket, Vec::new());
    assert_eq!(held(&mut client, AUTHORIZATION), []);
}

#[test]
fn a_type_that_was_not_asked_for_is_refused_and_changes_nothing() {
    let refusal = client().receive(response("type.googleapis.com/x", "9", Vec::new(), &[])).unwrap_err();
    assert_eq!((refusal.type_url.as_str(), refusal.response_nonce.as_str()), ("type.googleapis.com/x", "9"));
    assert!(refusal.error_detail.unwrap().message.contains("was not asked for"));
}

#[test]
fn a_flood_of_bad_resources_is_refused_in_a_bounded_answer() {
    let mut client = client();
    let bad = (0..5000).map(|index| raw(ADDRESS, &format!("a/{index}/{}", "x".repeat(2000)), "v", vec![1])).collect();
    let (_, ticket) = client.receive(response(ADDRESS, "1", bad, &[])).unwrap();
    let message = client.acknowledge(ticket, Vec::new()).error_detail.unwrap().message;
    assert!(message.len() < 400_000, "{}", message.len());
    assert!(message.ends_with("; and others: 4744 more resources"));
}

#[test]
fn redialling_backs_off_from_10_ms_to_15_s_and_is_immediate_after_a_clean_end() {
    let mut client = client();
    let now = Instant::now();
    let waits: Vec<u128> = (0..13).map(|_| client.ended(Ended::Failed, now, 1.0).as_millis()).collect();
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000]);
    assert_eq!(client.ended(Ended::Failed, now, 0.0).as_millis(), 7500, "jitter takes off up to half");

    client.opened(now);
    assert_eq!(client.ended(Ended::Clean, now + Client::STABLE, 1.0), Duration::ZERO);
    client.opened(now);
    let quick = client.ended(Ended::Clean, now, 1.0);
    assert_eq!(quick, Client::MIN_BACKOFF, "a control plane that only opens and closes is not hammered");
    assert!(client.ended(Ended::Failed, now, 1.0) > quick);
}
