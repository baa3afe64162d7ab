use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{any_changes, any_workload};
use crate::explain::Reason;
use crate::fixtures::{World, service_key, uid, waypoint};
use crate::model::{ApplicationTunnel, Gateway, GatewayDestination, Health, RoutingScope, Visibility, WorkloadUid};

fn hbone(plan: &OutboundPlan) -> (SocketAddr, Authority, Vec<String>, bool) {
    let (Dial::Address(dial), OutboundProtocol::Hbone { authority, expected, waypoint }) = (&plan.dial, &plan.protocol)
    else {
        panic!("not HBONE to an address: {plan:?}")
    };
    (*dial, authority.clone(), expected.iter().map(ToString::to_string).collect(), *waypoint)
}

fn authority(text: &str) -> Authority {
    Authority::Address(text.parse().unwrap())
}

/// `a` (10.0.0.1), `b` (.2), a waypoint pod `gate/w` (.3) behind service `gate/w` (10.1.0.1).
fn gated() -> World {
    World::new().workload("a").workload("b").workload("gate/w").service("gate/w", &[(15008, 15008)], &["gate/w"])
}

/// [`gated`], and service `web` (10.1.0.2) in front of `b`, bound to the waypoint.
fn web() -> World {
    gated().service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/w")))
}

#[test]
fn a_mesh_workload_is_reached_over_hbone_with_its_own_identity() {
    let plan = gated().dial_name("a", "b", 9000).unwrap();
    let expected = vec!["spiffe://cluster.local/ns/ns/sa/b".to_owned()];
    assert_eq!(hbone(&plan), ("10.0.0.2:15008".parse().unwrap(), authority("10.0.0.2:9000"), expected, false));
    assert_eq!(plan.reason, Reason::ToWorkload { workload: uid("b") });
    assert_eq!((plan.upstream.map(|b| b.uid.clone()), plan.service), (Some(uid("b")), None));
}

#[test]
fn a_service_is_reached_at_an_endpoint_and_its_target_port() {
    let world = gated().service_with("web", &[(80, 8080)], &["b"], |web| {
        web.subject_alt_names = vec!["spiffe://td/ns/x/sa/y".into(), "no identity".into()];
    });
    let plan = world.dial_name("a", "web", 80).unwrap();
    let expected = vec!["spiffe://cluster.local/ns/ns/sa/b".to_owned(), "spiffe://td/ns/x/sa/y".to_owned()];
    assert_eq!(hbone(&plan), ("10.0.0.2:15008".parse().unwrap(), authority("10.0.0.2:8080"), expected, false));
    assert_eq!(plan.reason, Reason::ToEndpoint { service: service_key("web"), workload: uid("b") });
    assert_eq!(plan.service.map(|web| web.key.clone()), Some(service_key("web")));
}

#[test]
fn who_may_at_both_ends_on_one_node_is_reached_without_a_tunnel_and_nobody_else() {
    let near = |world: World| world.dial_name("a", "b", 9000).unwrap().directly(&world.get("a"));
    let may = |a: bool, b: bool| {
        let world = World::new().workload("a").workload("b");
        let world = world.edit("a", |one| (one.node, one.direct) = ("node-1".into(), a));
        world.edit("b", |one| (one.node, one.direct) = ("node-1".into(), b))
    };
    assert_eq!(near(may(true, true)), Some("10.0.0.2:9000".parse().unwrap()));
    for (a, b) in [(true, false), (false, true), (false, false)] {
        assert_eq!(near(may(a, b)), None, "{a} {b}");
    }
    assert_eq!(near(may(true, true).edit("b", |b| b.node = "node-2".into())), None);
    let nowhere = may(true, true).edit("b", |b| b.node = "".into()).edit("a", |a| a.node = "".into());
    assert_eq!(near(nowhere), None, "whose node nobody knows");
    let plain = may(true, true).edit("b", |b| b.tunnel_protocol = TunnelProtocol::None);
    assert_eq!(near(plain), None, "it is not captured");
    // Also where the waypoint itself might be reached without one.
    let all_may = |world: World| {
        ["a", "b", "gate/w"]
            .into_iter()
            .fold(world, |world, name| world.edit(name, |one| (one.node, one.direct) = ("node-1".into(), true)))
    };
    let bound = all_may(gated()).edit("b", |b| b.waypoint = Some(waypoint("gate/w")));
    assert_eq!(near(bound), None, "its waypoint has to see it");
    let bound = all_may(web());
    assert_eq!(bound.dial_name("a", "web", 80).unwrap().directly(&bound.get("a")), None, "its service's has to");
}

#[test]
fn the_family_asked_for_is_the_family_dialled() {
    let world = gated().service("web", &[(80, 8080)], &["b"]);
    let plan = world.dial("a", (world.address("web", true), 80).into()).unwrap();
    assert_eq!(hbone(&plan).0, "[fd00::2]:15008".parse().unwrap());
    // A dual stack socket shows IPv4 inside IPv6.
    let plan = world.dial("a", "[::ffff:10.0.0.2]:80".parse().unwrap()).unwrap();
    assert_eq!(hbone(&plan).1, authority("10.0.0.2:80"));
}

#[test]
fn a_workload_outside_the_tunnels_is_reached_by_plain_tcp() {
    let world = gated().workload_with("plain", |plain| plain.tunnel_protocol = TunnelProtocol::None).service(
        "web",
        &[(80, 8080)],
        &["plain"],
    );
    let plan = world.dial_name("a", "web", 80).unwrap();
    assert_eq!(plan.dial, Dial::Address((world.address("plain", false), 8080).into()));
    assert_eq!(plan.protocol, OutboundProtocol::Tcp);
}

#[test]
fn an_endpoint_with_a_name_and_no_address_is_dialled_by_name() {
    let world = gated()
        .workload_with("db", |db| {
            db.addresses.clear();
            db.hostname = "db.example".into();
            db.tunnel_protocol = TunnelProtocol::None;
        })
        .service("web", &[(80, 5432)], &["db"]);
    assert_eq!(world.dial_name("a", "web", 80).unwrap().dial, Dial::Name("db.example".into(), 5432));
    let tunnelled = world.edit("db", |db| db.tunnel_protocol = TunnelProtocol::Hbone);
    let plan = tunnelled.dial_name("a", "web", 80).unwrap();
    assert_eq!(plan.dial, Dial::Name("db.example".into(), 15008));
    assert!(matches!(plan.protocol, OutboundProtocol::Hbone { authority: Authority::Name(_, 5432), .. }));
}

#[test]
fn what_nobody_knows_is_passed_on_unchanged() {
    let to = "192.0.2.1:443".parse().unwrap();
    let plan = gated().dial("a", to).unwrap();
    assert_eq!((plan.dial, plan.protocol), (Dial::Address(to), OutboundProtocol::Passthrough));
    assert_eq!((plan.upstream, plan.service, plan.reason), (None, None, Reason::Unmanaged));
}

#[test]
fn a_passthrough_service_is_passed_on_and_named() {
    let world = gated().service_with("ext", &[(443, 443)], &[], |ext| ext.load_balancing.mode = Mode::Passthrough);
    let plan = world.dial_name("a", "ext", 443).unwrap();
    assert_eq!((plan.protocol, plan.reason), (OutboundProtocol::Passthrough, Reason::Unmanaged));
    assert_eq!(plan.service.map(|ext| ext.key.clone()), Some(service_key("ext")));
}

#[test]
fn a_service_without_endpoints_or_without_the_port_is_refused() {
    let world = gated().service("web", &[(80, 8080)], &["b"]).service("empty", &[(80, 80)], &[]);
    let reason = |name, port| world.dial_name("a", name, port).unwrap_err().reason;
    assert_eq!(reason("empty", 80), Reason::NoHealthyEndpoint { service: service_key("empty") });
    assert_eq!(reason("web", 81), Reason::NoServicePort { service: service_key("web"), port: 81 });
}

#[test]
fn ztunnels_own_ports_in_the_pod_are_refused() {
    let world = gated();
    for own in ["127.0.0.1", "[::1]", "10.0.0.1", "[::ffff:127.0.0.1]"] {
        for port in PROXY_PORTS {
            let refused = world.dial("a", format!("{own}:{port}").parse().unwrap());
            assert_eq!(refused.unwrap_err().reason.code(), "PROXY_PORT", "{own}:{port}");
        }
    }
    assert!(world.dial("a", "127.0.0.1:8080".parse().unwrap()).is_ok());
    assert!(world.dial("a", "10.0.0.2:15001".parse().unwrap()).is_ok());
}

#[test]
fn a_bound_service_goes_through_its_waypoint_which_is_told_the_original_destination() {
    let world = web();
    let plan = world.dial_name("a", "web", 80).unwrap();
    let expected = vec!["spiffe://cluster.local/ns/gate/sa/w".to_owned()];
    assert_eq!(hbone(&plan), ("10.0.0.3:15008".parse().unwrap(), authority("10.1.0.2:80"), expected, true));
    assert_eq!(plan.reason, Reason::ToWaypoint { waypoint: "gate/w.gate.svc.cluster.local".into() });
    assert_eq!(plan.upstream.map(|upstream| upstream.uid.clone()), Some(uid("gate/w")));
    assert_eq!(plan.service.map(|web| web.key.clone()), Some(service_key("web")));
}

#[test]
fn a_waypoint_may_be_bound_by_a_vip_or_by_its_pods_address() {
    let bound = |address: IpAddr| {
        gated().service_with("web", &[(80, 8080)], &["b"], |web| {
            let destination = GatewayDestination::Address(NetworkAddress::new("", address));
            web.waypoint = Some(Gateway { destination, ..waypoint("gate/w") });
        })
    };
    for address in [gated().address("gate/w", false), IpAddr::from([10, 1, 0, 1])] {
        let plan = bound(address).dial_name("a", "web", 80).unwrap();
        assert_eq!(hbone(&plan).0, "10.0.0.3:15008".parse().unwrap());
        assert_eq!(plan.reason, Reason::ToWaypoint { waypoint: format!("/{address}").into() });
    }
}

#[test]
fn a_bound_service_is_never_reached_around_its_waypoint() {
    let unready = web().edit("gate/w", |w| w.health = Health::Unhealthy);
    let unknown = gated().service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/late")));
    let portless =
        World::new().workload("a").workload("b").workload("gate/w").service("gate/w", &[(80, 80)], &["gate/w"]);
    let portless = portless.service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/w")));
    let nowhere = gated().service_with("web", &[(80, 8080)], &["b"], |web| {
        let destination = GatewayDestination::Address(NetworkAddress::new("", [10, 9, 9, 9].into()));
        web.waypoint = Some(Gateway { destination, ..waypoint("gate/w") });
    });
    for world in [unready, unknown, portless, nowhere] {
        assert_eq!(world.dial_name("a", "web", 80).unwrap_err().reason.code(), "WAYPOINT_UNAVAILABLE");
    }
}

#[test]
fn a_waypoint_on_another_network_is_refused() {
    let world = web().edit("gate/w", |w| w.network = "away".into());
    let expected = Reason::NetworkUnreachable { network: "away".into() };
    assert_eq!(world.dial_name("a", "web", 80).unwrap_err().reason, expected);
}

#[test]
fn the_next_try_takes_another_pod_of_the_waypoint() {
    let world = web().workload("gate/w2").edit("gate/w2", |w2| w2.services = vec![(service_key("gate/w"), vec![])]);
    let to = (world.address("web", false), 80).into();
    for entropy in 0..50 {
        let plan = world.dial_again("a", to, entropy, &[uid("gate/w")]).unwrap();
        assert_eq!(plan.upstream.map(|upstream| upstream.uid.clone()), Some(uid("gate/w2")));
    }
}

#[test]
fn weighted_waypoints_are_chosen_per_connection() {
    let world = |primary, canary| {
        gated().workload("gate/c").service("gate/c", &[(15008, 15008)], &["gate/c"]).service_with(
            "web",
            &[(80, 8080)],
            &["b"],
            |web| {
                web.waypoint = Some(waypoint("gate/w"));
                web.weighted_waypoints = vec![(waypoint("gate/w"), primary), (waypoint("gate/c"), canary)];
            },
        )
    };
    let canaries = |world: &World| {
        let to = (world.address("web", false), 80).into();
        let plans = (0..200).map(|entropy| world.dial_again("a", to, entropy, &[]).unwrap());
        plans.filter(|plan| plan.upstream.as_ref().is_some_and(|upstream| upstream.uid == uid("gate/c"))).count()
    };
    assert!((20..60).contains(&canaries(&world(80, 20))));
    assert_eq!(canaries(&world(0, 0)), 0);
    assert_eq!(canaries(&world(0, 1)), 200);
}

#[test]
fn a_canary_that_cannot_be_reached_leaves_its_share_to_the_primary_and_not_the_other_way_round() {
    let world = gated().workload("gate/c").service("gate/c", &[(15008, 15008)], &["gate/c"]).service_with(
        "web",
        &[(80, 8080)],
        &["b"],
        |web| {
            web.waypoint = Some(waypoint("gate/w"));
            web.weighted_waypoints = vec![(waypoint("gate/w"), 50), (waypoint("gate/c"), 50)];
        },
    );
    let to = (world.address("web", false), 80).into();
    let reached = |world: &World, tried: &[WorkloadUid]| -> Vec<Option<WorkloadUid>> {
        let plan = |entropy| world.dial_again("a", to, entropy, tried);
        (0..60).map(|entropy| Some(plan(entropy).ok()?.upstream?.uid.clone())).collect()
    };
    let through_w = vec![Some(uid("gate/w")); 60];
    assert_eq!(reached(&world, &[uid("gate/c")]), through_w, "it was tried already");
    let gone = world.clone().edit("gate/c", |c| c.health = Health::Unhealthy);
    assert_eq!(reached(&gone, &[]), through_w);
    let primary_gone = world.edit("gate/w", |w| w.health = Health::Unhealthy);
    let reached = reached(&primary_gone, &[]);
    assert!(reached.contains(&None) && reached.contains(&Some(uid("gate/c"))), "the canary takes its share only");
}

#[test]
fn each_connection_goes_to_a_replica_of_its_own_choice_in_the_same_zone_where_there_is_one() {
    let close = |preferences: Vec<RoutingScope>| {
        let world =
            ["gate/w", "gate/w2", "gate/w3"].iter().fold(World::new().workload("a").workload("b"), |world, one| {
                world.workload_with(one, |replica| {
                    replica.locality.zone = if *one == "gate/w3" { "z2" } else { "z1" }.into()
                })
            });
        let replicas = ["gate/w", "gate/w2", "gate/w3"];
        let world = world.edit("a", |a| a.locality.zone = "z1".into());
        let world = world.service_with("gate/w", &[(15008, 15008)], &replicas, |front| {
            front.load_balancing.mode = Mode::Failover;
            front.load_balancing.routing_preferences = preferences;
        });
        world.service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/w")))
    };
    let shares = |world: &World| {
        let to = (world.address("web", false), 80).into();
        let mut shares = std::collections::BTreeMap::new();
        for entropy in 0..300 {
            let plan = world.dial_again("a", to, entropy, &[]).unwrap();
            *shares.entry(plan.upstream.unwrap().uid.to_string()).or_insert(0) += 1;
        }
        shares.into_values().collect::<Vec<i32>>()
    };
    let everywhere = shares(&close(Vec::new()));
    assert!(everywhere.len() == 3 && everywhere.iter().all(|share| (70..130).contains(share)), "{everywhere:?}");
    let world = close(vec![RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone]);
    let near = shares(&world);
    assert!(near.len() == 2 && near.iter().all(|share| (110..190).contains(share)), "{near:?}");
    // Those that end are left; with none in the zone any other is better than nothing.
    let world = world.edit("gate/w2", |one| one.health = Health::Unhealthy);
    assert_eq!(shares(&world), [300]);
    let world = world.edit("gate/w", |one| one.health = Health::Unhealthy);
    assert_eq!(shares(&world), [300]);
}

#[test]
fn a_bound_workload_goes_through_its_waypoint_only_when_dialled_itself() {
    let world = gated().service("web", &[(80, 8080)], &["b"]).edit("b", |b| b.waypoint = Some(waypoint("gate/w")));
    let direct = world.dial_name("a", "b", 80).unwrap();
    assert_eq!((hbone(&direct).1, direct.reason.code()), (authority("10.0.0.2:80"), "TO_WAYPOINT"));
    assert_eq!(world.dial_name("a", "web", 80).unwrap().reason.code(), "TO_ENDPOINT");
    let unready = world.edit("gate/w", |w| w.health = Health::Unhealthy);
    assert_eq!(unready.dial_name("a", "b", 80).unwrap_err().reason.code(), "WAYPOINT_UNAVAILABLE");
}

#[test]
fn a_waypoint_is_not_sent_to_itself() {
    let world = web().edit("b", |b| b.waypoint = Some(waypoint("gate/w")));
    assert_eq!(world.dial_name("gate/w", "b", 80).unwrap().reason.code(), "TO_WORKLOAD");
    assert_eq!(world.dial_name("gate/w", "web", 80).unwrap().reason.code(), "TO_ENDPOINT");
    // Not even while it is not ready; but another pod that merely runs as the same account is no waypoint.
    let unready = world.clone().edit("gate/w", |w| w.health = Health::Unhealthy);
    assert_eq!(unready.dial_name("gate/w", "b", 80).unwrap().reason.code(), "TO_WORKLOAD");
    let posing = world.workload("gate/x").edit("gate/x", |x| x.service_account = "w".into());
    assert_eq!(posing.dial_name("gate/x", "b", 80).unwrap().reason.code(), "TO_WAYPOINT");
}

#[test]
fn a_pod_reaches_itself_through_a_vip_like_any_other() {
    let plan = gated().service("web", &[(80, 8080)], &["a"]).dial_name("a", "web", 80).unwrap();
    assert_eq!(plan.reason, Reason::ToEndpoint { service: service_key("web"), workload: uid("a") });
}

#[test]
fn headless_services_do_not_matter_to_who_dials_a_pod() {
    let world = gated().service_with("web", &[(80, 8080)], &["b"], |web| {
        web.vips.clear();
        web.waypoint = Some(waypoint("gate/w"));
    });
    let plan = world.dial_name("a", "b", 80).unwrap();
    assert_eq!((plan.reason, plan.service), (Reason::ToWorkload { workload: uid("b") }, None));
}

#[test]
fn a_service_that_is_not_visible_is_not_there() {
    let world = gated()
        .workload("other/c")
        .service_with("web", &[(80, 8080)], &["b"], |web| web.visibility = Visibility::Namespace);
    assert_eq!(world.dial_name("a", "web", 80).unwrap().reason.code(), "TO_ENDPOINT");
    assert_eq!(world.dial_name("other/c", "web", 80).unwrap().reason.code(), "UNMANAGED");
}

#[test]
fn another_network_is_refused() {
    let world = gated().edit("b", |b| b.network = "away".into()).service("web", &[(80, 8080)], &["b"]);
    let expected = Reason::NetworkUnreachable { network: "away".into() };
    assert_eq!(world.dial_name("a", "web", 80).unwrap_err().reason, expected);
    // Its address means nothing on this network.
    assert_eq!(world.dial_name("a", "b", 80).unwrap().reason, Reason::Unmanaged);
}

/// A ServiceEntry whose address is also its endpoint's: 10.0.0.2.
fn entry(change: impl FnOnce(&mut Service)) -> World {
    gated().service_with("entry", &[(443, 443)], &["b"], |entry| {
        entry.vips = vec![NetworkAddress::new("", [10, 0, 0, 2].into())];
        change(entry);
    })
}

#[test]
fn a_service_at_its_own_endpoints_address_takes_the_traffic_and_its_waypoint_counts() {
    assert_eq!(entry(|_| ()).dial_name("a", "b", 443).unwrap().reason.code(), "TO_ENDPOINT");
    // A port that only the workload has: the workload itself, still over HBONE.
    assert_eq!(entry(|_| ()).dial_name("a", "b", 80).unwrap().reason.code(), "TO_WORKLOAD");
    let bound = entry(|entry| entry.waypoint = Some(waypoint("gate/w")));
    assert_eq!(bound.dial_name("a", "b", 443).unwrap().reason.code(), "TO_WAYPOINT");
    assert_eq!(bound.dial_name("gate/w", "b", 443).unwrap().reason.code(), "TO_ENDPOINT");
}

#[test]
fn a_service_cannot_take_a_workloads_address_that_is_not_its_own() {
    let thief = |mode| {
        gated().workload("evil/c").service_with("evil/thief", &[(80, 80)], &["evil/c"], |thief| {
            thief.vips = vec![NetworkAddress::new("", [10, 0, 0, 2].into())];
            thief.cidr_vips =
                vec![crate::model::NetworkCidr { network: "".into(), cidr: "10.0.0.0/8".parse().unwrap() }];
            thief.load_balancing.mode = mode;
            thief.waypoint = Some(waypoint("evil/thief"));
        })
    };
    for mode in [Mode::Standard, Mode::Passthrough] {
        assert_eq!(thief(mode).dial_name("a", "b", 80).unwrap().reason, Reason::ToWorkload { workload: uid("b") });
    }
}

#[test]
fn a_sandwiched_waypoint_is_reached_though_its_service_lacks_the_port() {
    let world = World::new()
        .workload("a")
        .workload("b")
        .workload_with("gate/w", |w| {
            let port = std::num::NonZeroU16::new(15088);
            w.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port });
        })
        .service("gate/w", &[(80, 80)], &["gate/w"])
        .service_with("web", &[(80, 8080)], &["b"], |web| web.waypoint = Some(waypoint("gate/w")));
    assert_eq!(hbone(&world.dial_name("a", "web", 80).unwrap()).0, "10.0.0.3:15008".parse().unwrap());
}

proptest! {
    /// Whatever is known: where a service is bound, its own endpoints are never dialled but by its waypoint; and a
    /// mesh workload at its own address is never dialled in the clear.
    #[test]
    fn no_waypoint_is_gone_round_and_no_mesh_workload_is_dialled_in_the_clear(
        changes in any_changes(40), source in any_workload(), last in 0..16u8, service: bool, entropy: u64,
    ) {
        let snapshot = Snapshot::empty("").apply(&changes).0;
        let ip = IpAddr::from([10, u8::from(service), 0, last]);
        let attrs = OutboundAttrs { source: &source, destination: (ip, 80).into(), entropy, tried: &[] };
        let plan = outbound(&snapshot, &attrs);
        let owner = snapshot.workload_at(&NetworkAddress::new("", ip));
        let bound = snapshot.service_at(&source, ip).filter(|service| service.waypoint.is_some());
        if let (Some(bound), None) = (bound, owner)
            && !bound.waypoints().any(|gateway| gateway::is_behind(&snapshot, gateway, &source))
        {
            match &plan {
                Ok(plan) => prop_assert!(matches!(plan.reason, Reason::ToWaypoint { .. }), "{plan:?}"),
                Err(refusal) => prop_assert!(matches!(refusal.reason, Reason::WaypointUnavailable { .. }), "{refusal}"),
            }
        }
        if let (Some(owner), Ok(plan)) = (owner, &plan)
            && owner.tunnel_protocol == TunnelProtocol::Hbone
        {
            prop_assert!(plan.protocol != OutboundProtocol::Passthrough, "{plan:?}");
        }
        if let Ok(plan) = &plan {
            prop_assert!(!plan.reason.is_refusal());
            prop_assert_eq!(plan.upstream.is_none(), plan.protocol == OutboundProtocol::Passthrough);
        }
    }
}

/// [`gated`] with `cut`, which a Quarantine cuts off, beside `b` behind service `web`.
fn quarantined() -> World {
    let policy = crate::model::PolicyKey::of_quarantine("ns", "q");
    gated()
        .workload_with("cut", |cut| cut.authorization_policies.push(policy))
        .service("web", &[(80, 8080)], &["b", "cut"])
        .service("gone", &[(80, 8080)], &["cut"])
}

#[test]
fn who_is_quarantined_opens_nothing_and_is_not_connected_to() {
    let world = quarantined();
    let refused = |plan: Result<OutboundPlan, Refusal>| plan.unwrap_err().reason.to_string();
    let says = "Quarantine ns/q cuts it off";
    assert_eq!(refused(world.dial_name("cut", "b", 80)), says);
    assert_eq!(refused(world.dial("cut", "192.0.2.1:443".parse().unwrap())), says, "also what is not in the mesh");
    assert_eq!(refused(world.dial_name("a", "cut", 80)), says);
    assert_eq!(refused(world.dial_name("a", "gone", 80)), says, "it is its only endpoint");
    assert!(world.dial_name("a", "b", 80).is_ok());
}

#[test]
fn a_service_goes_on_with_those_who_are_not_quarantined() {
    let world = quarantined();
    for entropy in 0..32_u64 {
        let attrs = OutboundAttrs {
            source: &world.get("a"),
            destination: (world.address("web", false), 80).into(),
            entropy: entropy.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            tried: &[],
        };
        assert_eq!(outbound(&world.snapshot(), &attrs).unwrap().upstream.unwrap().uid, uid("b"));
    }
}
