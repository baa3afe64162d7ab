//! Writes the binary seeds of the corpora: `cargo run -p stillmesh-fuzz-targets --example seeds`. Texts are written by
//! hand. Keys in certificates are new every time; everything else comes out the same.
#![expect(clippy::expect_used, reason = "a seed that cannot be made is to be looked at")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use prost::Message as _;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, SanType};
use stillmesh_api::codec;
use stillmesh_api::probes::{self, Question};
use stillmesh_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use stillmesh_api::proto::google::protobuf::Any;
use stillmesh_api::proto::google::rpc::Status;
use stillmesh_api::succession::{Ask, Kind, Place, protocol as succession};
use stillmesh_api::xds::ResourceType;
use stillmesh_api::zds::PodInfo;
use stillmesh_api::zds::protocol::{self, Tunnel};
use stillmesh_core::fixtures::{World, from, to_port, waypoint};
use stillmesh_core::model::{
    ApplicationTunnel, HealthPolicy, Match, Mode, NetworkAddress, RoutingScope, Scope, ServiceAccountMatch,
    StringMatch, TrustDomain,
};
use stillmesh_core::snapshot::Change;
use stillmesh_identity::Issuer;
use stillmesh_tls::record::{ContentType, HEADER, Limits, Sealer, TRAILER};
use stillmesh_tls::session::KeyUpdateRequest;
use stillmesh_tls::{Role, Session, Suite, TrafficSecret};

#[path = "seeds/http2.rs"]
mod http2;

fn save(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&directory).expect("the corpus's directory");
    std::fs::write(directory.join(name), bytes).expect("a seed");
}

/// One piece of an input that is a sequence.
fn piece(how: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short piece").to_le_bytes();
    [&[how], &length[..], bytes].concat()
}

fn main() {
    zds();
    node();
    addresses();
    sessions();
    certificates();
    tls();
    dns();
    http2::seeds().iter().for_each(|(target, name, bytes)| save(target, name, bytes));
}

fn zds() {
    let info = PodInfo { name: "page-0".into(), namespace: "shop".into(), service_account: "page".into() };
    let add = protocol::add("2f0d1c", &info).expect("a message");
    let (keep, del) = (protocol::keep("77aa").expect("a message"), protocol::del("2f0d1c").expect("a message"));
    let end = protocol::snapshot_sent().expect("a message");
    let snapshot = [piece(1, &add), piece(0, &keep), piece(0, &end), piece(9, &add), piece(0, &del)].concat();
    save("zds-tunnel", "ok-snapshot-and-changes", snapshot);
    save("zds-tunnel", "ok-add", piece(1, &add));
    save("zds-tunnel", "bad-keep-after-snapshot", [piece(0, &end), piece(0, &keep)].concat());
    save("zds-tunnel", "bad-unanswered", [piece(16, &end), piece(0, &del)].concat());
    save("zds-tunnel", "bad-add-without-descriptor", piece(0, &add));
    save("zds-tunnel", "bad-truncated", piece(5, &add));
    save("zds-agent", "ok-hello", protocol::hello().expect("a message"));
    let mut tunnel = Tunnel::default();
    let mut answer = |result| {
        let packet = protocol::Packet { bytes: del.clone(), fds: Vec::new(), truncated: false };
        tunnel.request(packet).expect("a request");
        tunnel.answer(result).expect("an answer")
    };
    save("zds-agent", "ok-done", answer(Ok(())));
    save("zds-agent", "ok-refused", answer(Err("no listener on 15008: address in use".to_owned())));
    save("zds-agent", "bad-version", [8, 9]);
}

fn node() {
    let ask = |ask: &Ask| [vec![0], succession::write_ask(ask).expect("a message")].concat();
    let uid = || "2f0d1c".to_owned();
    save("succession", "ok-hello", ask(&Ask::Hello { version: succession::VERSION }));
    save("succession", "ok-take", ask(&Ask::Take { uid: uid(), inode: 4_026_532_000 }));
    save("succession", "ok-serving", ask(&Ask::Serving { uid: uid() }));
    save("succession", "ok-forget", ask(&Ask::Forget { uid: uid() }));
    save("succession", "ok-ready", ask(&Ask::Ready));
    let place = |kind, address: &str| Place { kind, address: address.parse().expect("an address") };
    let places = vec![place(Kind::Tcp, "[::]:15001"), place(Kind::Udp, "127.0.0.1:15053")];
    let answer = |answer| succession::write_answer(answer).expect("a message");
    save("succession", "ok-sockets", [vec![2], answer(Ok(places.clone()))].concat());
    save("succession", "bad-a-descriptor-short", [vec![1], answer(Ok(places))].concat());
    save("succession", "ok-refused", [vec![0], answer(Err("not served here".to_owned()))].concat());
    save("succession", "bad-version", [0, 8, 9]);
    let question = Question {
        uid: uid(),
        source: "10.244.1.1:40000".parse().expect("an address"),
        destination: "[fd00::2]:8080".parse().expect("an address"),
    };
    save("probe-question", "ok-question", probes::write_question(&question).expect("a message"));
    let mapped = Question { source: "[::ffff:10.244.1.1]:40000".parse().expect("an address"), ..question };
    save("probe-question", "ok-mapped", probes::write_question(&mapped).expect("a message"));
    save("probe-question", "bad-address", [0x12, 1, b'x']);
    let issuer = Issuer::create(&TrustDomain::default(), SystemTime::now()).expect("a CA");
    let hour = Duration::from_secs(3600);
    let list = issuer.revocation_list(&["7", "2f0d1c"], hour, SystemTime::now()).expect("a list");
    save("revocations", "bad-cut", list.replace("-----END", "-----E"));
    save("revocations", "ok-list", list);
    save("revocations", "ok-empty", "");
}

fn world() -> World {
    let everything = Match {
        namespaces: vec![StringMatch::Exact("shop".into()), StringMatch::Prefix("a".into())],
        not_principals: vec![StringMatch::Suffix("/sa/x".into()), StringMatch::Presence],
        source_ips: vec!["10.0.0.0/8".parse().expect("a range"), "fd00::/16".parse().expect("a range")],
        not_destination_ips: vec!["10.1.2.3/32".parse().expect("a range")],
        not_destination_ports: vec![22],
        service_accounts: vec![ServiceAccountMatch { namespace: "shop".into(), service_account: "page".into() }],
        ..Match::default()
    };
    World::new()
        .strict()
        .workload_with("shop/page", |workload| {
            workload.waypoint = Some(waypoint("shop/waypoint"));
            workload.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: 9090.try_into().ok() });
            workload.locality.region = "r".into();
            workload.capacity = 7;
        })
        .workload("shop/details")
        .service_with("shop/details", &[(80, 8080), (443, 0)], &["shop/details"], |service| {
            service.load_balancing.routing_preferences = vec![RoutingScope::Zone, RoutingScope::Node];
            service.load_balancing.mode = Mode::Failover;
            service.load_balancing.health_policy = HealthPolicy::AllowAll;
            service.vips.push(NetworkAddress::new("east", [10, 9, 8, 7].into()));
            service.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/details".into()];
        })
        .allow("shop/pages-only", vec![from("shop/page"), to_port(8080)])
        .deny("shop/everything", vec![everything])
        .policy(stillmesh_core::fixtures::policy(
            "istio-system/all",
            Scope::Global,
            stillmesh_core::model::Action::Deny,
            vec![to_port(22)],
        ))
}

fn encoded(change: &Change) -> Vec<u8> {
    match change {
        Change::Workload(workload) => codec::address::encode_workload(workload),
        Change::Service(service) => codec::address::encode_service(service),
        Change::Policy(policy) => codec::authorization::encode(policy),
        Change::Route(route) => codec::route::encode(route),
        _ => Vec::new(),
    }
}

fn addresses() {
    for change in world().changes() {
        let (kind, key) = codec::name(&change);
        let target = if kind == ResourceType::Address { "xds-address" } else { "xds-authorization" };
        let what = if matches!(change, Change::Service(_)) { "service-" } else { "" };
        let name = key.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or_default();
        save(target, &format!("ok-{what}{name}"), encoded(&change));
    }
    // A workload whose first address has three bytes; a policy with a field that is not known; an empty message.
    save("xds-address", "bad-address-of-three-bytes", b"\x0a\x0d\x12\x01n\x1a\x03\x0a\x00\x00\xa2\x01\x01u");
    save("xds-address", "bad-empty", b"");
    save("xds-authorization", "bad-unknown-field", b"\x0a\x01p\x12\x01n\xf8\x01\x01");
    save("xds-authorization", "bad-unknown-scope", b"\x0a\x01p\x12\x01n\x18\x07");
}

fn sessions() {
    let resource = |change: &Change| {
        let (kind, name) = codec::name(change);
        let any = Any { type_url: kind.url().to_owned(), value: encoded(change).into() };
        Resource { name, version: "1f".into(), resource: Some(any), ..Resource::default() }
    };
    let changes = world().changes();
    let response = |kind: ResourceType, nonce: &str, removed: &[&str]| {
        let of_kind = changes.iter().filter(|change| codec::name(change).0 == kind);
        let response = DeltaDiscoveryResponse {
            type_url: kind.url().to_owned(),
            nonce: nonce.to_owned(),
            resources: if removed.is_empty() { of_kind.map(resource).collect() } else { Vec::new() },
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        response.encode_to_vec()
    };
    let policies = response(ResourceType::Authorization, "1", &[]);
    let addresses = response(ResourceType::Address, "2", &[]);
    let gone = response(ResourceType::Address, "3", &["Kubernetes//Pod/shop/page", "shop/details.shop.svc"]);
    save("xds-client", "ok-everything", [piece(0, &policies), piece(0, &addresses)].concat());
    save("xds-client", "ok-removed-after-reconnect", [piece(0, &addresses), piece(1, &gone), piece(1, b"")].concat());
    save("xds-client", "ok-refused-in-part", [piece(2, &addresses), piece(3, &policies)].concat());
    let foreign = DeltaDiscoveryResponse { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    save("xds-client", "bad-type", piece(0, &foreign.encode_to_vec()));

    let request = |kind: ResourceType, subscribe: &[&str], nonce: &str, held: &[&str], error: Option<&str>| {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.to_owned(),
            initial_resource_versions: held.iter().map(|name| (name.to_string(), "1f".to_owned())).collect(),
            error_detail: error.map(|message| Status { code: 3, message: message.to_owned(), details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        };
        request.encode_to_vec()
    };
    let (policies, addresses) = (ResourceType::Authorization, ResourceType::Address);
    let wildcard =
        [piece(0, &request(policies, &[], "", &[], None)), piece(0, &request(addresses, &["*"], "", &[], None))];
    save("xds-server", "ok-wildcard", wildcard.concat());
    let acked = [wildcard.concat(), piece(5, b""), piece(13, b""), piece(4, b"")].concat();
    save("xds-server", "ok-acknowledged", acked);
    let nack = request(policies, &[], "1", &[], Some("shop/some: not today; shop/other: nor this"));
    save("xds-server", "ok-refused", [wildcard.concat(), piece(0, &nack)].concat());
    let on_demand = request(addresses, &["/10.0.0.1", "shop/details.shop.svc.cluster.local"], "", &[], None);
    save("xds-server", "ok-on-demand", piece(2, &on_demand));
    let held = request(addresses, &[], "", &["Kubernetes//Pod/shop/page", "Kubernetes//Pod/shop/gone"], None);
    save("xds-server", "ok-reconnect", [piece(2, &held), piece(3, b"")].concat());
    save("xds-server", "bad-type", piece(0, &foreign.encode_to_vec()));
}

fn certificates() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let params = |names: &[&str]| {
        let mut params = CertificateParams::default();
        let uri = |name: &&str| SanType::URI(Ia5String::try_from(*name).expect("ASCII"));
        params.subject_alt_names = names.iter().map(uri).collect();
        params
    };
    let page = "spiffe://cluster.local/ns/shop/sa/page";
    let several = params(&["https://example.com", page, "spiffe://other/ns/a/sa/b"]);
    let one = params(&[page]).self_signed(&key).expect("a certificate");
    save("certificate", "ok-workload", one.der());
    save("certificate", "ok-several-names", several.self_signed(&key).expect("a certificate").der());
    save("certificate", "ok-no-name", params(&[]).self_signed(&key).expect("a certificate").der());
    save("certificate", "bad-bundle-as-text", one.pem());
    save("certificate", "bad-cut", one.der().get(..200).expect("a long certificate"));
    let request = |names: &[&str]| params(names).serialize_request(&key).and_then(|csr| csr.pem()).expect("a request");
    let csr = request(&[page]);
    save("csr", "ok-workload", &csr);
    save("csr", "ok-of-another-name", request(&["spiffe://cluster.local/ns/shop/sa/other"]));
    let middle = csr.len() / 2;
    save("csr", "bad-signature", [&csr[..middle], "AAAA", &csr[middle + 4..]].concat());
    save("csr", "bad-certificate", one.pem());
}

fn tls() {
    let suite = Suite::Aes128GcmSha256;
    let secret = |byte| TrafficSecret::new(suite, vec![byte; suite.secret_length()].into()).expect("a secret");
    let limits = Limits::of(suite);
    let mut sealer = Sealer::new(secret(3), 0, limits).expect("keys");
    let mut record = [0; HEADER + 3 + TRAILER];
    sealer.seal(&mut record, ContentType::ApplicationData, 3).expect("a record");
    save("tls-records", "bad-of-other-keys", record);
    save("tls-records", "bad-change-cipher-spec", [20, 3, 3, 0, 1, 1]);
    save("tls-records", "bad-too-long", [23, 3, 3, 0x41, 1]);
    save("tls-records", "ok-half-a-header", [23, 3, 3]);
    save("tls-records", "ok-incomplete", record.get(..20).expect("a part"));

    let (data, handshake, alert, update, moves) = (0, 1, 2, 0x40, 0x80);
    let ticket = [4, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0];
    let to = |role: u8, pieces: &[Vec<u8>]| [vec![role], pieces.concat()].concat();
    let half = [piece(handshake, ticket.get(..9).expect("a part")), piece(handshake, ticket.get(9..).expect("a part"))];
    let updates = [piece(handshake | update, &[24, 0, 0, 1, 1]), piece(data, b"new keys")];
    save("tls-messages", "ok-ticket-in-parts", to(0, &half));
    save("tls-messages", "ok-updates", to(1, &[updates.concat(), updates.concat()]));
    let moved =
        [piece(handshake | moves, &[24, 0]), piece(handshake | update, &[0, 1, 0]), piece(alert | moves, &[1, 90])];
    save("tls-messages", "ok-moved", to(1, &moved));
    save("tls-messages", "bad-moved-after-an-error", to(1, &[piece(handshake | moves, &[13])]));
    save("tls-messages", "ok-closed", to(0, &[piece(data, b"last"), piece(alert, &[1, 0])]));
    save("tls-messages", "bad-alert", to(0, &[piece(alert, &[2, 42])]));
    save("tls-messages", "bad-certificate-request", to(0, &[piece(handshake, &[13, 0, 0, 3, 0, 0, 0])]));
    save("tls-messages", "bad-ticket-to-a-server", to(1, &half));

    let session = |role| Session::new(role, secret(1), secret(2), 0).expect("keys");
    let new = session(Role::Server).export().to_bytes();
    save("tls-exported", "ok-new", &new);
    let mut busy = session(Role::Client);
    busy.update_keys(KeyUpdateRequest::Requested);
    busy.close_notify();
    save("tls-exported", "ok-things-due", busy.export().to_bytes());
    save("tls-exported", "bad-cut", new.get(..99).expect("a part"));
}

fn dns() {
    let question = |name: &str, wanted: RecordType| {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), wanted));
        message
    };
    let bytes = |message: &Message| message.to_vec().expect("a message");
    for (name, of, wanted) in [
        ("ok-service-a", "details.shop.svc.cluster.local.", RecordType::A),
        ("ok-search-aaaa", "details.shop.svc.cluster.local.corp.example.", RecordType::AAAA),
        ("ok-srv", "_http._tcp.details.shop.svc.cluster.local.", RecordType::SRV),
        ("ok-reverse", "1.0.96.10.in-addr.arpa.", RecordType::PTR),
        ("ok-version", "dns-version.cluster.local.", RecordType::TXT),
        ("ok-unknown-any", "example.com.", RecordType::ANY),
    ] {
        save("dns-question", name, bytes(&question(of, wanted)));
    }
    let mut large = question("many.shop.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    large.set_edns(edns);
    save("dns-question", "ok-edns", bytes(&large));
    let mut chaos = question("version.bind.", RecordType::TXT);
    for query in &mut chaos.queries {
        query.set_query_class(DNSClass::CH);
    }
    save("dns-question", "bad-class", bytes(&chaos));
    let mut update = question("a.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    save("dns-question", "bad-update", bytes(&update));
    // A name that points at itself.
    save("dns-question", "bad-pointer-loop", b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01");

    let mut reply = question("details.shop.svc.cluster.local.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    let mut nothing = reply.clone();
    nothing.metadata.response_code = ResponseCode::NXDomain;
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let alias = RData::CNAME(CNAME(name("details.example.")));
    reply.add_answer(Record::from_rdata(name("details.shop.svc.cluster.local."), 30, alias));
    reply.add_answer(Record::from_rdata(name("details.example."), 30, RData::A(A([192, 0, 2, 1].into()))));
    save("dns-reply", "ok-alias-and-address", bytes(&reply));
    save("dns-reply", "ok-no-such-name", bytes(&nothing));
    save("dns-reply", "bad-question", bytes(&question("details.shop.svc.cluster.local.", RecordType::A)));
    let mut other = question("other.", RecordType::A);
    other.metadata.message_type = MessageType::Response;
    save("dns-reply", "bad-of-another-question", bytes(&other));
}
