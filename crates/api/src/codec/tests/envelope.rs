//! Golden fixtures of the messages around resources: discovery, CA, ZDS. Both directions.

use prost::Message;

use super::bytes::Wire;
use crate::proto::envoy::config::core::v3::{ControlPlane, Locality, Node};
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::proto::google::protobuf::value::Kind;
use crate::proto::google::protobuf::{Any, Duration, Struct, Value};
use crate::proto::google::rpc::Status;
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use crate::proto::istio::workload::zds;

#[track_caller]
fn golden<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, wire: Wire) {
    assert_eq!(message.encode_to_vec(), wire.0);
    assert_eq!(M::decode(wire.0.as_slice()).unwrap(), message);
}

fn text_struct(key: &str, value: &str) -> (Struct, Wire) {
    let kind = Some(Kind::StringValue(value.to_owned()));
    let entry = Wire::new().text(1, key).message(2, Wire::new().text(3, value));
    (Struct { fields: [(key.to_owned(), Value { kind })].into() }, Wire::new().message(1, entry))
}

#[test]
fn discovery_request() {
    let (metadata, metadata_wire) = text_struct("NODE_NAME", "node-1");
    let locality = Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() };
    let node = Node {
        id: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local".into(),
        cluster: "c".into(),
        metadata: Some(metadata),
        locality: Some(locality),
        user_agent_name: "stillmesh".into(),
        user_agent_version: "1".into(),
    };
    let node_wire = Wire::new()
        .text(1, "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local")
        .text(2, "c")
        .message(3, metadata_wire)
        .message(4, Wire::new().text(1, "r").text(2, "z").text(3, "s"))
        .text(6, "stillmesh")
        .text(7, "1");
    golden(
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: "type.googleapis.com/istio.workload.Address".into(),
            resource_names_subscribe: vec!["*".into(), "a/b".into()],
            resource_names_unsubscribe: vec!["c/d".into()],
            initial_resource_versions: [("a/b".to_owned(), "1f".to_owned())].into(),
            response_nonce: "n1".into(),
            error_detail: Some(Status { code: 3, message: "a/b: bad".into(), details: Vec::new() }),
        },
        Wire::new()
            .message(1, node_wire)
            .text(2, "type.googleapis.com/istio.workload.Address")
            .text(3, "*")
            .text(3, "a/b")
            .text(4, "c/d")
            .message(5, Wire::new().text(1, "a/b").text(2, "1f"))
            .text(6, "n1")
            .message(7, Wire::new().number(1, 3).text(2, "a/b: bad")),
    );
}

#[test]
fn discovery_response() {
    let resource = Resource {
        version: "1f".into(),
        resource: Some(Any { type_url: "type.googleapis.com/x".into(), value: vec![1, 2, 3].into() }),
        name: "a/b".into(),
        aliases: vec!["/10.0.0.1".into()],
        ttl: Some(Duration { seconds: 5, nanos: 0 }),
    };
    let resource_wire = Wire::new()
        .text(1, "1f")
        .message(2, Wire::new().text(1, "type.googleapis.com/x").bytes(2, [1, 2, 3]))
        .text(3, "a/b")
        .text(4, "/10.0.0.1")
        .message(6, Wire::new().number(1, 5));
    golden(
        DeltaDiscoveryResponse {
            system_version_info: "7".into(),
            resources: vec![resource],
            type_url: "type.googleapis.com/x".into(),
            nonce: "n1".into(),
            removed_resources: vec!["c/d".into()],
            control_plane: Some(ControlPlane { identifier: "i".into() }),
        },
        Wire::new()
            .text(1, "7")
            .message(2, resource_wire)
            .text(4, "type.googleapis.com/x")
            .text(5, "n1")
            .text(6, "c/d")
            .message(7, Wire::new().text(1, "i")),
    );
}

#[test]
fn certificate_request_and_response() {
    let (metadata, metadata_wire) = text_struct("ImpersonatedIdentity", "spiffe://cluster.local/ns/a/sa/b");
    golden(
        IstioCertificateRequest { csr: "PEM".into(), validity_duration: 86_400, metadata: Some(metadata) },
        Wire::new().text(1, "PEM").number(3, 86_400).message(4, metadata_wire),
    );
    golden(
        IstioCertificateResponse { cert_chain: vec!["leaf".into(), "root".into()] },
        Wire::new().text(1, "leaf").text(1, "root"),
    );
}

#[test]
fn zds_messages() {
    use zds::workload_request::Payload;
    let request = |payload| zds::WorkloadRequest { payload: Some(payload) };
    golden(zds::ZdsHello { version: 1 }, Wire::new().number(1, 1));
    let info = zds::WorkloadInfo { name: "n".into(), namespace: "ns".into(), service_account: "sa".into() };
    let info_wire = Wire::new().text(1, "n").text(2, "ns").text(3, "sa");
    golden(
        request(Payload::Add(zds::AddWorkload { uid: "u".into(), workload_info: Some(info) })),
        Wire::new().message(1, Wire::new().text(1, "u").message(2, info_wire)),
    );
    golden(
        request(Payload::Del(zds::DelWorkload { uid: "u".into() })),
        Wire::new().message(2, Wire::new().text(2, "u")),
    );
    golden(request(Payload::SnapshotSent(zds::SnapshotSent {})), Wire::new().message(3, Wire::new()));
    golden(
        request(Payload::Keep(zds::KeepWorkload { uid: "u".into() })),
        Wire::new().message(5, Wire::new().text(1, "u")),
    );
    let ack = |error: &str| zds::WorkloadResponse {
        payload: Some(zds::workload_response::Payload::Ack(zds::Ack { error: error.into() })),
    };
    golden(ack(""), Wire::new().message(1, Wire::new()));
    golden(ack("no"), Wire::new().message(1, Wire::new().text(1, "no")));
}
