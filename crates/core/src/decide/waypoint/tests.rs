use proptest::prelude::*;

use super::*;
use crate::arbitrary::{any_changes, any_workload};
use crate::decide::{Dial, OutboundProtocol};
use crate::fixtures::{Idle, World, service_key, uid, waypoint as bound_to};
use crate::model::{GatewayDestination, TunnelProtocol, Visibility};

/// `a` (10.0.0.1), `b` (.2), `c` (.3), a waypoint pod `gate/w` behind service `gate/w`; service `web` in front of `a` and
/// `b` is bound to it, service `free` is not, workload `c` is.
fn world() -> World {
    World::new()
        .workload("a")
        .workload("b")
        .workload_with("c", |c| c.waypoint = Some(bound_to("gate/w")))
        .workload("gate/w")
        .service("gate/w", &[(15008, 15008)], &["gate/w"])
        .service_with("web", &[(80, 8080)], &["a", "b"], |web| web.waypoint = Some(bound_to("gate/w")))
        .service("free", &[(80, 8080)], &["a"])
}

fn ask(world: &World, authority: &Authority) -> Result<Target, Refusal> {
    let own = world.get("gate/w");
    let local_ip = world.address("gate/w", false);
    waypoint(&world.snapshot(), &ConnectAttrs { destination: &own, local_ip, authority })
}

fn at(world: &World, name: &str, port: u16) -> Authority {
    Authority::Address((world.address(name, false), port).into())
}

fn reach(world: &World, target: &Target, entropy: u64, tried: &[WorkloadUid]) -> Result<OutboundPlan, Refusal> {
    let own = world.get("gate/w");
    endpoint(&world.snapshot(), &Endpoint { waypoint: &own, target, entropy, tried, live: &Idle, turn: 0, hash: None })
}

#[test]
fn a_port_of_a_bound_service_is_taken_by_address_and_by_name() {
    let world = world();
    let target = ask(&world, &at(&world, "web", 80)).unwrap();
    assert_eq!(target.service().map(|web| web.key.clone()), Some(service_key("web")));
    for name in ["web.ns.svc.cluster.local", "Web.NS.svc.cluster.local"] {
        let named = ask(&world, &Authority::Name(name.into(), 80)).unwrap();
        assert_eq!(named.service(), target.service(), "{name}");
    }
    let mapped = Authority::Address("[::ffff:10.1.0.2]:80".parse().unwrap());
    assert_eq!(ask(&world, &mapped).unwrap(), target);
}

#[test]
fn a_bound_workload_is_taken_by_its_address() {
    let world = world();
    let target = ask(&world, &at(&world, "c", 9000)).unwrap();
    assert_eq!(
        target,
        Target::Workload { workload: world.get("c"), address: (world.address("c", false), 9000).into() }
    );
    let refused = ask(&world, &at(&world, "c", 15008)).unwrap_err();
    assert_eq!(refused.reason.code(), "PROXY_PORT");
}

#[test]
fn what_is_not_bound_here_is_refused_with_the_reason() {
    let world = world();
    let code = |authority: &Authority| ask(&world, authority).unwrap_err().reason.code();
    assert_eq!(code(&at(&world, "free", 80)), "FOREIGN_AUTHORITY");
    assert_eq!(code(&at(&world, "a", 8080)), "FOREIGN_AUTHORITY", "an endpoint of a bound service is not bound itself");
    assert_eq!(code(&at(&world, "gate/w", 15008)), "FOREIGN_AUTHORITY", "the waypoint's own address");
    assert_eq!(code(&Authority::Name("free.ns.svc.cluster.local".into(), 80)), "FOREIGN_AUTHORITY");
    assert_eq!(code(&Authority::Address("192.0.2.1:80".parse().unwrap())), "UNKNOWN_AUTHORITY");
    assert_eq!(code(&Authority::Name("nobody.example".into(), 80)), "UNKNOWN_AUTHORITY");
    assert_eq!(code(&at(&world, "web", 81)), "NO_SERVICE_PORT");
}

#[test]
fn a_binding_counts_whatever_the_service_shows_to_others() {
    let world = world().service_with("ns2/hidden", &[(80, 8080)], &["a"], |hidden| {
        hidden.waypoint = Some(bound_to("gate/w"));
        hidden.visibility = Visibility::Namespace;
    });
    assert!(ask(&world, &at(&world, "ns2/hidden", 80)).is_ok());
}

#[test]
fn of_two_waypoints_by_weight_each_takes_the_service_and_a_third_does_not() {
    let world = world().workload("gate/v").service("gate/v", &[(15008, 15008)], &["gate/v"]).service_with(
        "canary",
        &[(80, 8080)],
        &["a"],
        |canary| canary.weighted_waypoints = vec![(bound_to("gate/v"), 99), (bound_to("gate/w"), 1)],
    );
    assert!(ask(&world, &at(&world, "canary", 80)).is_ok());
    let elsewhere =
        world.service_with("other", &[(80, 8080)], &["a"], |other| other.waypoint = Some(bound_to("gate/v")));
    assert_eq!(ask(&elsewhere, &at(&elsewhere, "other", 80)).unwrap_err().reason.code(), "FOREIGN_AUTHORITY");
}

#[test]
fn a_waypoint_bound_by_its_address_takes_what_is_bound() {
    let world = world();
    let address = NetworkAddress::new("", world.address("gate/w", false));
    let gateway = crate::model::Gateway { destination: GatewayDestination::Address(address), ..bound_to("gate/w") };
    let world = world.service_with("byip", &[(80, 8080)], &["a"], |byip| byip.waypoint = Some(gateway));
    assert!(ask(&world, &at(&world, "byip", 80)).is_ok());
}

#[test]
fn endpoints_are_reached_directly_and_another_one_after_a_failure() {
    let world = world();
    let target = ask(&world, &at(&world, "web", 80)).unwrap();
    for entropy in [0, 1, u64::MAX, u64::MAX / 3] {
        let first = reach(&world, &target, entropy, &[]).unwrap();
        let OutboundProtocol::Hbone { authority, expected, waypoint: false } = &first.protocol else {
            panic!("not straight to an endpoint: {first:?}")
        };
        let chosen = first.upstream.unwrap();
        assert_eq!(expected, &[chosen.identity()]);
        assert_eq!(authority.to_string(), format!("{}:8080", chosen.addresses[0]));
        let second = reach(&world, &target, entropy, std::slice::from_ref(&chosen.uid)).unwrap();
        assert_ne!(second.upstream.unwrap().uid, chosen.uid);
    }
}

#[test]
fn an_endpoint_outside_the_tunnels_is_reached_by_plain_tcp() {
    let world = world().edit("a", |a| a.tunnel_protocol = TunnelProtocol::None);
    let target = ask(&world, &at(&world, "web", 80)).unwrap();
    let plan = reach(&world, &target, 0, &[uid("b")]).unwrap();
    assert_eq!(plan.protocol, OutboundProtocol::Tcp);
    assert_eq!(plan.dial, Dial::Address((world.address("a", false), 8080).into()));
}

#[test]
fn a_workload_is_reached_at_the_port_that_was_asked_for() {
    let world = world();
    let target = ask(&world, &at(&world, "c", 9000)).unwrap();
    let plan = reach(&world, &target, 0, &[]).unwrap();
    assert_eq!((plan.upstream.map(|c| c.uid.clone()), plan.service), (Some(uid("c")), None));
}

#[test]
fn a_waypoint_is_never_sent_to_itself() {
    let world = world().service_with("loop", &[(80, 15008)], &["gate/w"], |looping| {
        looping.waypoint = Some(bound_to("gate/w"));
    });
    let target = ask(&world, &at(&world, "loop", 80)).unwrap();
    for entropy in 0..16 {
        assert_eq!(reach(&world, &target, entropy, &[]).unwrap_err().reason.code(), "NO_HEALTHY_ENDPOINT");
    }
}

#[test]
fn a_service_without_an_address_is_reached_by_its_name() {
    let world = world().service_with("headless", &[(80, 8080)], &["a"], |headless| {
        headless.vips.clear();
        headless.waypoint = Some(bound_to("gate/w"));
    });
    let target = ask(&world, &Authority::Name("headless.ns.svc.cluster.local".into(), 80)).unwrap();
    assert_eq!(reach(&world, &target, 0, &[]).unwrap().upstream.unwrap().uid, uid("a"));
}

proptest! {
    #[test]
    fn every_question_has_an_answer_and_what_is_taken_is_bound(
        changes in any_changes(24),
        own in any_workload(),
        ip in prop_oneof![Just(IpAddr::from([10, 0, 0, 1])), Just(IpAddr::from([10, 1, 0, 1])), any::<IpAddr>()],
        port in 0..10_u16,
        entropy in any::<u64>(),
    ) {
        let (snapshot, _) = Snapshot::empty("").apply(&changes);
        let authority = Authority::Address((ip, port).into());
        let attrs = ConnectAttrs { destination: &own, local_ip: ip, authority: &authority };
        if let Ok(target) = waypoint(&snapshot, &attrs) {
            let bound = match &target {
                Target::Service { service, .. } => is_bound(&snapshot, service, &own),
                Target::Workload { workload, .. } => {
                    workload.waypoint.as_ref().is_some_and(|gateway| gateway::is_behind(&snapshot, gateway, &own))
                }
            };
            prop_assert!(bound);
            let attrs = Endpoint { waypoint: &own, target: &target, entropy, tried: &[], live: &Idle, turn: 0, hash: None };
            if let Ok(plan) = endpoint(&snapshot, &attrs) {
                prop_assert!(plan.upstream.is_none_or(|upstream| upstream.uid != own.uid));
            }
        }
    }
}
