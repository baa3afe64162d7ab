use bytes::Bytes;
use stillmesh_core::model::*;
use stillmesh_core::snapshot::Change;

use super::bytes::Wire;
use crate::codec::{self, address};
use crate::xds::ResourceType;

const UID: &str = "Kubernetes//Pod/shop/page-0";

fn read(name: &str, wire: Wire) -> Result<Change, String> {
    codec::decode(ResourceType::Address, name, Bytes::from(wire.0)).map_err(|error| error.to_string())
}

fn read_workload(wire: Wire) -> Result<Workload, String> {
    read(UID, Wire::new().message(1, wire)).map(|change| match change {
        Change::Workload(workload) => (*workload).clone(),
        other => panic!("{other:?}"),
    })
}

fn read_service(wire: Wire) -> Result<Service, String> {
    read("shop/page.shop.svc.cluster.local", Wire::new().message(2, wire)).map(|change| match change {
        Change::Service(service) => (*service).clone(),
        other => panic!("{other:?}"),
    })
}

fn gateway_by_name() -> Wire {
    let name = Wire::new().text(1, "shop").text(2, "waypoint.shop.svc.cluster.local");
    Wire::new().message(1, name).number(3, 15008)
}

fn gateway_by_address() -> Wire {
    let address = Wire::new().text(1, "east").bytes(2, [10, 96, 0, 7]);
    Wire::new().message(2, address).number(3, 15009)
}

/// Every field of contract 4.3, in the order of their numbers.
fn workload_wire() -> Wire {
    let ports = Wire::new().message(1, Wire::new().number(1, 80).number(2, 8080));
    Wire::new()
        .text(1, "page-0")
        .text(2, "shop")
        .bytes(3, [10, 244, 1, 2])
        .bytes(3, [0xfd, 0, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])
        .text(4, "east")
        .number(5, 1)
        .text(6, "example.org")
        .text(7, "page")
        .message(8, gateway_by_name())
        .text(9, "node-1")
        .text(10, "page")
        .text(11, "v1")
        .number(12, 3)
        .text(13, "page-deployment")
        .number(14, 1)
        .text(16, "shop/allow")
        .text(16, "istio-system/strict")
        .number(17, 1)
        .text(18, "west")
        .message(19, gateway_by_address())
        .text(20, UID)
        .text(21, "page.example.org")
        .message(22, Wire::new().text(1, "shop/page.shop.svc.cluster.local").message(2, ports))
        .message(23, Wire::new().number(1, 1).number(2, 9090))
        .message(24, Wire::new().text(1, "r").text(2, "z").text(3, "s"))
        .number(25, 1)
        .message(26, same_node(Wire::new().number(1, 1)))
        .message(27, Wire::new().number(1, 7))
}

/// Our own extension.
fn same_node(value: Wire) -> Wire {
    let any = Wire::new().text(1, "type.googleapis.com/google.protobuf.BoolValue").message(2, value);
    Wire::new().text(1, "stillmesh.io/same-node").message(2, any)
}

fn workload() -> Workload {
    Workload {
        uid: WorkloadUid(UID.into()),
        name: "page-0".into(),
        namespace: "shop".into(),
        trust_domain: TrustDomain::new("example.org").unwrap(),
        service_account: "page".into(),
        addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:244:1::2".parse().unwrap()],
        hostname: "page.example.org".into(),
        network: "east".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::HostNetwork,
        waypoint: Some(Gateway {
            destination: GatewayDestination::Hostname(ServiceKey::new("shop", "waypoint.shop.svc.cluster.local")),
            hbone_mtls_port: 15008.try_into().unwrap(),
        }),
        network_gateway: Some(Box::new(Gateway {
            destination: GatewayDestination::Address(NetworkAddress::new("east", "10.96.0.7".parse().unwrap())),
            hbone_mtls_port: 15009.try_into().unwrap(),
        })),
        node: "node-1".into(),
        canonical_name: "page".into(),
        canonical_revision: "v1".into(),
        workload_type: WorkloadType::Job,
        workload_name: "page-deployment".into(),
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel { proxy_protocol: true, port: 9090.try_into().ok() }),
        services: vec![(
            ServiceKey::new("shop", "page.shop.svc.cluster.local"),
            vec![PortMapping { service_port: 80, target_port: 8080 }],
        )],
        authorization_policies: vec![PolicyKey::new("shop", "allow"), PolicyKey::new("istio-system", "strict")],
        health: Health::Unhealthy,
        cluster: "west".into(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() },
        capacity: 7,
        direct: true,
    }
}

#[test]
fn a_workload_of_all_fields_is_read_from_the_contracts_numbers() {
    assert_eq!(read_workload(workload_wire()).unwrap(), workload());
}

#[test]
fn a_workload_of_all_fields_is_written_with_the_contracts_numbers() {
    assert_eq!(address::encode_workload(&workload()), Wire::new().message(1, workload_wire()).0);
}

#[test]
fn what_a_workload_does_not_say_has_the_contracts_defaults() {
    let workload = read_workload(Wire::new().text(2, "shop").text(20, UID)).unwrap();
    assert_eq!(workload.trust_domain.as_str(), "cluster.local");
    assert_eq!(&*workload.service_account, "default");
    assert_eq!(&*workload.cluster, "Kubernetes");
    assert_eq!(workload.workload_type, WorkloadType::Deployment);
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::None);
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.waypoint, None);
    assert_eq!(workload.health, Health::Healthy);
    assert_eq!(workload.application_tunnel, None);
}

#[test]
fn what_cannot_be_read_does_not_do_without_a_tunnel() {
    let direct = |extension: Wire| read_workload(Wire::new().text(20, UID).message(26, extension)).unwrap().direct;
    assert!(direct(same_node(Wire::new().number(1, 1))));
    let of_another_type = Wire::new().text(1, "x").message(2, Wire::new().number(1, 1));
    let foreign = Wire::new().text(1, "stillmesh.io/same-node").message(2, of_another_type);
    for no in [same_node(Wire::new()), same_node(Wire::new().text(1, "x")), foreign, Wire::new()] {
        assert!(!direct(no));
    }
}

#[test]
fn the_trust_domain_of_every_mesh_is_elided() {
    let plain = Workload { trust_domain: TrustDomain::default(), ..workload() };
    let written = address::encode_workload(&plain);
    let name: &[u8] = b"cluster.local";
    let said = written.windows(name.len()).filter(|window| *window == name).count();
    // Only in the two host names.
    assert_eq!(said, 2);
    assert_eq!(read(UID, Wire(written)).unwrap(), Change::Workload(plain.into()));
}

#[test]
fn legacy_mtls_is_read_as_no_tunnel_and_a_tunnel_of_tomorrow_never_as_clear_text() {
    let of = |number| read_workload(Wire::new().text(20, UID).number(5, number)).unwrap().tunnel_protocol;
    assert_eq!(
        [of(0), of(1), of(2), of(3)],
        [TunnelProtocol::None, TunnelProtocol::Hbone, TunnelProtocol::None, TunnelProtocol::Hbone]
    );
}

#[test]
fn fields_of_tomorrow_in_an_address_are_ignored() {
    let tomorrow = workload_wire().number(500, 1).text(501, "x").message(26, Wire::new().text(1, "example.org/x"));
    assert_eq!(read_workload(tomorrow).unwrap(), workload());
    let service = service_wire().message(10, Wire::new().text(1, "x")).number(12, 1).text(99, "x");
    assert_eq!(read_service(service).unwrap(), service_model());
}

#[test]
fn enum_values_of_tomorrow_are_read_as_what_is_safe() {
    let odd = Wire::new().text(20, UID).number(12, 9).number(17, 9).number(25, 9);
    let workload = read_workload(odd).unwrap();
    assert_eq!(workload.workload_type, WorkloadType::Pod);
    assert_eq!(workload.health, Health::Unhealthy);
    assert_eq!(workload.network_mode, NetworkMode::Standard);
    let key = Wire::new().text(2, "shop").text(3, "page.shop.svc.cluster.local");
    let service = read_service(key.number(9, 9).number(14, 9)).unwrap();
    assert_eq!((service.ip_families, service.visibility), (IpFamilies::Automatic, Visibility::Namespace));
}

/// Every field of contract 4.3, in the order of their numbers.
fn service_wire() -> Wire {
    Wire::new()
        .text(1, "page")
        .text(2, "shop")
        .text(3, "page.shop.svc.cluster.local")
        .message(4, Wire::new().text(1, "east").bytes(2, [10, 96, 0, 1]))
        .message(4, Wire::new().bytes(2, [10, 97, 0, 0]).number(3, 16))
        .message(5, Wire::new().number(1, 80).number(2, 8080).number(3, 2))
        .message(5, Wire::new().number(1, 443))
        .text(6, "spiffe://cluster.local/ns/shop/sa/page")
        .message(7, gateway_by_name())
        .message(8, Wire::new().packed(1, &[6, 1, 2, 3, 4, 5]).number(2, 2).number(3, 1))
        .number(9, 3)
        .number(11, 1)
        .message(13, Wire::new().message(1, gateway_by_address()).number(2, 30))
        .number(14, 1)
}

fn service_model() -> Service {
    let port = |service_port, target_port, app_protocol| ServicePort {
        mapping: PortMapping { service_port, target_port },
        app_protocol,
    };
    Service {
        name: "page".into(),
        key: ServiceKey::new("shop", "page.shop.svc.cluster.local"),
        vips: vec![NetworkAddress::new("east", "10.96.0.1".parse().unwrap())],
        cidr_vips: vec![NetworkCidr { network: "".into(), cidr: "10.97.0.0/16".parse().unwrap() }],
        ports: vec![port(80, 8080, 2), port(443, 0, 0)],
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/page".into()],
        waypoint: workload().waypoint,
        weighted_waypoints: vec![(*workload().network_gateway.unwrap(), 30)],
        load_balancing: LoadBalancing {
            routing_preferences: vec![
                RoutingScope::Network,
                RoutingScope::Region,
                RoutingScope::Zone,
                RoutingScope::Subzone,
                RoutingScope::Node,
                RoutingScope::Cluster,
            ],
            mode: Mode::Failover,
            health_policy: HealthPolicy::AllowAll,
        },
        ip_families: IpFamilies::Dual,
        canonical: true,
        visibility: Visibility::Namespace,
    }
}

#[test]
fn a_service_of_all_fields_is_read_from_the_contracts_numbers() {
    assert_eq!(read_service(service_wire()).unwrap(), service_model());
}

#[test]
fn a_service_of_all_fields_is_written_with_the_contracts_numbers() {
    assert_eq!(address::encode_service(&service_model()), Wire::new().message(2, service_wire()).0);
}

#[test]
fn a_range_of_one_address_is_an_address() {
    let key = Wire::new().text(2, "shop").text(3, "page.shop.svc.cluster.local");
    let service = read_service(key.message(4, Wire::new().bytes(2, [10, 96, 0, 1]).number(3, 32))).unwrap();
    assert_eq!(service.vips, [NetworkAddress::new("", "10.96.0.1".parse().unwrap())]);
    assert_eq!(service.cidr_vips, []);
}

#[test]
fn bad_workloads_are_refused_by_field() {
    let with = |change: fn(Wire) -> Wire| read_workload(change(Wire::new().text(20, UID))).unwrap_err();
    let cases: [(&str, String); 9] = [
        ("addresses: an address of 5 bytes", with(|wire| wire.bytes(3, [1, 2, 3, 4, 5]))),
        ("trust_domain: ", with(|wire| wire.text(6, "Example/org"))),
        ("service_account: ", with(|wire| wire.text(7, "a/sa/b"))),
        ("namespace: ", with(|wire| wire.text(2, "a/b"))),
        ("waypoint.destination: ", with(|wire| wire.message(8, Wire::new().number(3, 15008)))),
        (
            "waypoint.hbone_mtls_port: port 0",
            with(|wire| wire.message(8, Wire::new().message(1, Wire::new().text(1, "a").text(2, "b")))),
        ),
        ("authorization_policies: ", with(|wire| wire.text(16, "nameless"))),
        ("services: ", with(|wire| wire.message(22, Wire::new().text(1, "a/b/c").message(2, Wire::new())))),
        (
            "services[a/b].ports.service_port: port 70000",
            with(|wire| {
                let ports = Wire::new().message(1, Wire::new().number(1, 70_000));
                wire.message(22, Wire::new().text(1, "a/b").message(2, ports))
            }),
        ),
    ];
    for (expected, error) in cases {
        assert!(error.starts_with(&format!("{UID}: {expected}")), "{error}");
    }
}

#[test]
fn bad_services_are_refused_by_field() {
    let with = |change: fn(Wire) -> Wire| {
        read_service(change(Wire::new().text(2, "shop").text(3, "page.shop.svc.cluster.local"))).unwrap_err()
    };
    let cases = [
        ("load_balancing.routing_preference: 0", with(|wire| wire.message(8, Wire::new().packed(1, &[0])))),
        ("load_balancing.routing_preference: 7", with(|wire| wire.message(8, Wire::new().packed(1, &[7])))),
        ("load_balancing.mode: 4", with(|wire| wire.message(8, Wire::new().number(2, 4)))),
        ("ports.target_port: port 65536", with(|wire| wire.message(5, Wire::new().number(1, 80).number(2, 65_536)))),
        ("ports.service_port: port 0", with(|wire| wire.message(5, Wire::new().number(2, 80)))),
        (
            "addresses: a prefix length of 33",
            with(|wire| wire.message(4, Wire::new().bytes(2, [10, 0, 0, 0]).number(3, 33))),
        ),
        ("weighted_waypoints.destination: absent", with(|wire| wire.message(13, Wire::new().number(2, 1)))),
    ];
    for (expected, error) in cases {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_resource_is_what_its_name_says_or_is_refused() {
    let error = read("Kubernetes//Pod/shop/other", Wire::new().message(1, workload_wire())).unwrap_err();
    assert!(error.contains("the resource's own key is \"Kubernetes//Pod/shop/page-0\""), "{error}");
    assert!(read(UID, Wire::new()).unwrap_err().contains("type: neither workload nor service"));
    assert!(read(UID, Wire(vec![0xff, 0xff, 0xff])).unwrap_err().contains("not a message"));
}

#[test]
fn a_removed_name_of_more_than_one_slash_is_a_workload() {
    let removed = |name| codec::removed(ResourceType::Address, name);
    assert_eq!(removed(UID), Some(Change::WorkloadRemoved(WorkloadUid(UID.into()))));
    assert_eq!(removed("shop/page"), Some(Change::ServiceRemoved(ServiceKey::new("shop", "page"))));
    assert_eq!(removed("uid"), Some(Change::WorkloadRemoved(WorkloadUid("uid".into()))));
    let policy = codec::removed(ResourceType::Authorization, "shop/allow");
    assert_eq!(policy, Some(Change::PolicyRemoved(PolicyKey::new("shop", "allow"))));
}
