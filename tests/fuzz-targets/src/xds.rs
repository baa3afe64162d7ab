//! Delta xDS: the codec, the node's state machine, and the control plane's.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use stillmesh_api::codec;
use stillmesh_api::delta::catalog::Catalog;
use stillmesh_api::delta::client::{Client, Ended};
use stillmesh_api::delta::server::{ACK_DEADLINE, Event, GATHER, Session};
use stillmesh_api::proto::envoy::config::core::v3::Node;
use stillmesh_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use stillmesh_api::proto::istio::{security, workload};
use stillmesh_api::xds::{Rejected, ResourceType};
use stillmesh_core::fixtures::{World, clear_text};
use stillmesh_core::model::Action;
use stillmesh_core::snapshot::{Change, Snapshot};

use crate::cut::Pieces;

/// How many messages of one input are looked at.
const MOST_MESSAGES: usize = 64;

/// An Address under the name that it gives itself: what is read, written and read again is the same.
pub(crate) fn address(input: &[u8]) -> bool {
    use workload::address::Type;
    let wire = workload::Address::decode(input);
    let name = match wire.ok().and_then(|wire| wire.r#type) {
        Some(Type::Workload(workload)) => workload.uid,
        Some(Type::Service(service)) => format!("{}/{}", service.namespace, service.hostname),
        None => String::new(),
    };
    let bytes = Bytes::copy_from_slice(input);
    assert!(codec::decode(ResourceType::Address, "of/another/name", bytes.clone()).is_err());
    let change = match codec::decode(ResourceType::Address, &name, bytes) {
        Ok(change) => change,
        Err(error) => {
            assert!(error.resource == name && !error.field.is_empty() && !error.problem.is_empty());
            return false;
        }
    };
    is_read_back(ResourceType::Address, &name, &change);
    true
}

/// An Authorization under the name that it gives itself. One that is not understood in full allows nothing and says so.
pub(crate) fn authorization(input: &[u8]) -> bool {
    let wire = security::Authorization::decode(input).unwrap_or_default();
    let own = format!("{}/{}", wire.namespace, wire.name);
    let mut understood = false;
    for name in [own.as_str(), "shop/another"] {
        let Ok(change) = codec::decode(ResourceType::Authorization, name, Bytes::copy_from_slice(input)) else {
            assert!(own.is_empty() || own.split('/').count() != 2 || own.starts_with('/') || own.ends_with('/'));
            continue;
        };
        let Change::Policy(policy) = &change else { unreachable!("an Authorization is a policy") };
        match &policy.unreadable {
            Some(why) => {
                assert!(!why.is_empty() && policy.rules.is_empty() && policy.action == Action::Allow);
            }
            None => {
                assert_eq!(name, own, "a policy of another name was taken");
                is_read_back(ResourceType::Authorization, name, &change);
                understood = true;
            }
        }
    }
    understood
}

fn is_read_back(kind: ResourceType, name: &str, change: &Change) {
    assert_eq!(codec::name(change), (kind, name.to_owned()));
    let bytes = match change {
        Change::Workload(workload) => codec::address::encode_workload(workload),
        Change::Service(service) => codec::address::encode_service(service),
        Change::Policy(policy) => codec::authorization::encode(policy),
        Change::Route(route) => codec::route::encode(route),
        removed => unreachable!("{removed:?}"),
    };
    assert_eq!(codec::decode(kind, name, bytes.into()).as_ref(), Ok(change));
}

/// Responses to a node. The byte before each: bit 0 ends the stream first, bit 1 refuses the first change.
pub(crate) fn client(input: &[u8]) -> bool {
    let mut client =
        Client::new(Node { id: "ztunnel~10.0.0.1~ztunnel~local".to_owned(), ..Node::default() }, &ResourceType::ALL);
    let mut snapshot = Snapshot::empty("");
    let mut sent = BTreeSet::new();
    let mut now = Instant::now();
    let (mut understood, mut ready) = (false, false);
    client.opened(now);
    for (how, bytes) in Pieces(input).take(MOST_MESSAGES) {
        if how & 1 != 0 {
            now += Duration::from_secs(2);
            assert!(client.ended(Ended::Failed, now, 1.0) <= Client::MAX_BACKOFF);
            let requests = client.opened(now);
            assert_eq!(requests.len(), ResourceType::ALL.len());
            let held = requests.iter().flat_map(|request| request.initial_resource_versions.keys());
            assert!(held.into_iter().all(|name| sent.contains(name)), "a resource is held that was never sent");
        }
        let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { continue };
        let (nonce, type_url) = (response.nonce.clone(), response.type_url.clone());
        let count = response.resources.len() + response.removed_resources.len();
        sent.extend(response.resources.iter().map(|resource| resource.name.clone()));
        let reply = match client.receive(response) {
            Ok((batch, ticket)) => {
                assert_eq!(batch.kind.url(), type_url);
                assert!(batch.changes.len() <= count);
                snapshot = snapshot.apply(&batch.changes).0;
                let refused = batch.changes.first().filter(|_| how & 2 != 0);
                let refused = refused.map(|change| Rejected { name: codec::name(change).1, reason: "no".to_owned() });
                understood |= !batch.changes.is_empty();
                client.acknowledge(ticket, refused.into_iter().collect())
            }
            Err(refusal) => {
                assert!(refusal.error_detail.is_some() && ResourceType::from_url(&type_url).is_none());
                *refusal
            }
        };
        assert_eq!((&reply.response_nonce, &reply.type_url), (&nonce, &type_url));
        assert!(reply.encoded_len() < nonce.len() + type_url.len() + (1 << 20), "a refusal without bound");
        assert!(client.ready() || !ready, "a node that was ready is not any more");
        ready = client.ready();
    }
    let (workloads, services, policies) = snapshot.counts();
    assert!(workloads + services + policies <= sent.len().max(snapshot_floor(&snapshot)));
    understood
}

/// Policies that cannot be read are known too, by the name that was sent.
fn snapshot_floor(snapshot: &Snapshot) -> usize {
    snapshot.policies().filter(|policy| policy.unreadable.is_some()).count()
}

/// Requests of a node to a control plane that publishes a small mesh. The byte before each: bit 0 publishes or removes
/// something, bit 1 lets time pass, bit 2 acknowledges what was sent last.
pub(crate) fn server(input: &[u8]) -> bool {
    let world = World::new().strict().workload("shop/page").workload("shop/details");
    let world = world.service("shop/details", &[(80, 80)], &["shop/details"]).allow("shop/some", vec![clear_text()]);
    let changes = world.changes();
    let mut catalog = Catalog::default();
    catalog.apply(&changes);
    let mut now = Instant::now();
    let mut session = Session::new("node-1", now);
    let (mut nonces, mut outstanding) = (BTreeSet::new(), Vec::<DeltaDiscoveryResponse>::new());
    for (step, (how, bytes)) in Pieces(input).take(MOST_MESSAGES).enumerate() {
        if how & 1 != 0 {
            let touched = match changes.get(step % changes.len()) {
                Some(Change::Workload(workload)) if how & 8 != 0 => {
                    catalog.apply(&[Change::WorkloadRemoved(workload.uid.clone())])
                }
                Some(Change::Policy(policy)) if how & 8 != 0 => {
                    catalog.apply(&[Change::PolicyRemoved(policy.key.clone())])
                }
                change => catalog.apply(change.map_or(&[], std::slice::from_ref)),
            };
            for one in &touched {
                session.touch(one, step as u64 + 2);
            }
        }
        if how & 2 != 0 {
            now += GATHER;
        }
        if how & 4 != 0
            && let Some(response) = outstanding.pop()
        {
            let acknowledged = acknowledge(&mut session, &catalog, &response);
            assert!(matches!(acknowledged, Event::Acked(kind, _) if kind.url() == response.type_url));
        }
        if let Ok(request) = DeltaDiscoveryRequest::decode(bytes) {
            let nonce = request.response_nonce.clone();
            let Ok(event) = session.request(&catalog, request) else { return false };
            match event {
                Event::Acked(kind, _) | Event::Nacked(kind, ..) => {
                    let before = outstanding.len();
                    outstanding.retain(|response| response.type_url != kind.url() || response.nonce != nonce);
                    assert_eq!(outstanding.len() + 1, before, "an answer to what was not sent");
                }
                Event::None | Event::Expired(_) => {}
            }
        }
        while let Some(response) = session.next(&catalog, now) {
            assert!(nonces.insert(response.nonce.clone()), "a nonce was used twice");
            assert!(outstanding.iter().all(|other| other.type_url != response.type_url), "two without an answer");
            is_sound(&response);
            outstanding.push(response);
        }
        assert!(session.check(now).is_ok());
        assert!(outstanding.is_empty() || session.deadline().is_some());
    }
    assert_eq!(session.check(now + ACK_DEADLINE).is_err(), !outstanding.is_empty());
    !nonces.is_empty()
}

fn acknowledge(session: &mut Session, catalog: &Catalog, response: &DeltaDiscoveryResponse) -> Event {
    let request = DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    session.request(catalog, request).expect("an acknowledgement")
}

/// No resource twice, none both sent and removed.
fn is_sound(response: &DeltaDiscoveryResponse) {
    let mut names: Vec<&String> = response.resources.iter().map(|resource| &resource.name).collect();
    names.extend(&response.removed_resources);
    let distinct: BTreeSet<&String> = names.iter().copied().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
}
