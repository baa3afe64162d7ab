use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{any_changes, any_workload};
use crate::fixtures::{World, service_key, waypoint};
use crate::model::{ApplicationTunnel, GatewayDestination, PortMapping, Visibility};

fn at(text: &str) -> Authority {
    Authority::Address(text.parse().unwrap())
}

fn named(text: &str) -> Authority {
    let (name, port) = text.split_once(':').unwrap();
    Authority::Name(name.into(), port.parse().unwrap())
}

fn tunnel(proxy_protocol: bool, port: u16) -> Option<ApplicationTunnel> {
    Some(ApplicationTunnel { proxy_protocol, port: NonZeroU16::new(port) })
}

/// `a` at 10.0.0.1, `b` at 10.0.0.2; service `web` (10.1.0.1), port 80 to 8080, in front of `a`.
fn world() -> World {
    World::new().workload("a").workload("b").service("web", &[(80, 8080), (81, 0)], &["a"])
}

const WEB: &str = "web.ns.svc.cluster.local";

#[test]
fn a_connect_to_the_own_address_leads_to_that_port() {
    let plan = world().accept("a", &at("10.0.0.1:9000")).unwrap();
    let upstream = "10.0.0.1:9000".parse().unwrap();
    assert_eq!(plan, InboundPlan { upstream, connect: upstream, proxy_protocol: None, service: None });
    assert_eq!(world().accept("a", &at("[::ffff:10.0.0.1]:9000")).unwrap().upstream, upstream);
}

#[test]
fn a_connect_to_any_other_address_is_refused() {
    for foreign in ["10.0.0.2:80", "10.1.0.1:80", "127.0.0.1:80", "192.0.2.1:80", "[fd00::1]:80"] {
        let refused = world().accept("a", &at(foreign)).unwrap_err();
        assert_eq!(refused.reason, Reason::ForeignAuthority { authority: foreign.into() });
    }
}

#[test]
fn ztunnels_own_ports_are_refused() {
    for port in PROXY_PORTS {
        let own = SocketAddr::from(([10, 0, 0, 1], port));
        let refused = world().accept("a", &Authority::Address(own)).unwrap_err();
        assert_eq!(refused.reason, Reason::ProxyPort { destination: own });
        assert!(inbound_plaintext(own).is_err());
    }
    assert!(inbound_plaintext("10.0.0.1:15002".parse().unwrap()).is_ok());
    let mapped = world().service("sly", &[(80, 15006)], &["a"]);
    let refused = mapped.accept("a", &named("sly.ns.svc.cluster.local:80")).unwrap_err();
    assert_eq!(refused.reason.code(), "PROXY_PORT");
    let tunnelled = world().edit("a", |a| a.application_tunnel = tunnel(false, 15001));
    assert_eq!(tunnelled.accept("a", &at("10.0.0.1:80")).unwrap_err().reason.code(), "PROXY_PORT");
}

#[test]
fn a_connect_by_name_leads_to_the_target_port() {
    let plan = world().accept("a", &named("web.ns.svc.cluster.local:80")).unwrap();
    assert_eq!(plan.upstream, "10.0.0.1:8080".parse().unwrap());
    assert_eq!(plan.service.map(|web| web.key.clone()), Some(service_key("web")));
    let own = world().edit("a", |a| a.services[0].1 = vec![PortMapping { service_port: 81, target_port: 9191 }]);
    assert_eq!(own.accept("a", &named(&format!("{WEB}:81"))).unwrap().upstream.port(), 9191);
}

#[test]
fn a_connect_by_a_name_or_port_that_is_not_known_is_refused() {
    for unknown in ["web.ns.svc.cluster.local:82", "web.ns.svc.cluster.local:81", "nobody.example:80"] {
        let refused = world().accept("a", &named(unknown)).unwrap_err();
        assert_eq!(refused.reason, Reason::UnknownAuthority { authority: unknown.into() });
    }
    let hidden = world().workload("other/c").service_with("hidden", &[(80, 80)], &[], |hidden| {
        hidden.visibility = Visibility::Namespace;
    });
    assert!(hidden.accept("other/c", &named("hidden.ns.svc.cluster.local:80")).is_err());
}

#[test]
fn a_waypoint_takes_what_is_bound_to_it_and_nothing_else() {
    let world = World::new()
        .workload("gate/w")
        .workload_with("b", |b| b.waypoint = Some(waypoint("gate/w")))
        .workload("c")
        .service("gate/w", &[(15008, 15008)], &["gate/w"])
        .service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/w")))
        .service_with("canary", &[(80, 8080)], &["b"], |web| web.weighted_waypoints = vec![(waypoint("gate/w"), 1)])
        .service("free", &[(80, 8080)], &["b"]);
    let accepts = |name| world.accept("gate/w", &Authority::Address((world.address(name, false), 80).into()));
    assert_eq!(accepts("b").unwrap().upstream, "10.0.0.1:80".parse().unwrap());
    assert!(accepts("web").is_ok() && accepts("canary").is_ok());
    assert_eq!(accepts("c").unwrap_err().reason.code(), "FOREIGN_AUTHORITY");
    assert_eq!(accepts("free").unwrap_err().reason.code(), "FOREIGN_AUTHORITY");
    // Bound by address: the same.
    let by_address = world.clone().edit("c", |c| {
        let destination = GatewayDestination::Address(NetworkAddress::new("", [10, 0, 0, 1].into()));
        c.waypoint = Some(Gateway { destination, ..waypoint("gate/w") });
    });
    assert!(by_address.accept("gate/w", &Authority::Address((world.address("c", false), 80).into())).is_ok());
}

#[test]
fn an_application_tunnel_takes_any_address_at_its_port() {
    let world = world().edit("a", |a| a.application_tunnel = tunnel(false, 15088));
    let plan = world.accept("a", &at("192.0.2.7:443")).unwrap();
    let upstream = "10.0.0.1:15088".parse().unwrap();
    assert_eq!(plan, InboundPlan { upstream, connect: upstream, proxy_protocol: None, service: None });
}

#[test]
fn behind_a_proxy_header_the_application_is_reached_by_loopback_and_told_what_was_asked_for() {
    let world = world().edit("a", |a| a.application_tunnel = tunnel(true, 15088));
    let plan = world.accept("a", &at("10.1.0.9:443")).unwrap();
    assert_eq!(plan.upstream, "10.0.0.1:15088".parse().unwrap());
    assert_eq!(plan.connect, "127.0.0.1:15088".parse().unwrap());
    assert_eq!(plan.proxy_protocol, Some("10.1.0.9:443".parse().unwrap()));
    // By name: a VIP of the service, IPv4 before IPv6, and the service's port.
    let plan = world.accept("a", &named(&format!("{WEB}:80"))).unwrap();
    assert_eq!(plan.proxy_protocol, Some("10.1.0.1:80".parse().unwrap()));
    let same_port = world.edit("a", |a| a.application_tunnel = tunnel(true, 0));
    assert_eq!(same_port.accept("a", &named(&format!("{WEB}:80"))).unwrap().connect.port(), 8080);
}

#[test]
fn telemetry_guesses_the_service_by_the_forwarded_host_then_by_the_port() {
    let world = world()
        .service("also", &[(90, 8080)], &["a"])
        .service("named", &[(80, 0)], &["a"])
        .edit("a", |a| a.services[2].1 = vec![PortMapping { service_port: 80, target_port: 7777 }]);
    let guess = |host, port| {
        inbound_service(&world.snapshot(), &world.get("a"), host, port).map(|found| found.name.to_string())
    };
    assert_eq!(guess(Some(WEB), 1).as_deref(), Some("web"));
    assert_eq!(guess(Some("nobody.example"), 8080).as_deref(), Some("also"));
    assert_eq!(guess(None, 8080).as_deref(), Some("also"));
    assert_eq!(guess(None, 7777).as_deref(), Some("named"));
    assert_eq!(guess(None, 1), None);
}

proptest! {
    /// Whatever is asked: a connection arrives at the workload's own address, or at its loopback, and never at a port
    /// of ztunnel's.
    #[test]
    fn a_connect_never_leads_anywhere_else(
        changes in any_changes(30), local in any_workload(), asked in 0..16u8, service: bool, port: u16, app in 0..3u16,
    ) {
        let snapshot = crate::snapshot::Snapshot::empty("").apply(&changes).0;
        let mut local = local;
        local.application_tunnel = (app > 0).then_some(ApplicationTunnel {
            proxy_protocol: app == 2, port: NonZeroU16::new(app * 7504),
        });
        let local_ip = local.addresses[0];
        let authority = Authority::Address(SocketAddr::from(([10, u8::from(service), 0, asked], port)));
        let attrs = ConnectAttrs { destination: &local, local_ip, authority: &authority };
        match inbound(&snapshot, &attrs) {
            Ok(plan) => {
                prop_assert_eq!(plan.upstream.ip(), local_ip);
                prop_assert!(plan.connect.ip() == local_ip || plan.connect.ip().is_loopback());
                prop_assert_eq!(plan.connect.port(), plan.upstream.port());
                prop_assert!(!PROXY_PORTS.contains(&plan.upstream.port()));
                prop_assert_eq!(plan.proxy_protocol.is_some(), app == 2);
            }
            Err(refusal) => prop_assert!(refusal.reason.is_refusal()),
        }
    }
}
