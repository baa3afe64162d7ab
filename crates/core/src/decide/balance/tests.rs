use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{SERVICES, any_changes, any_workload};
use crate::fixtures::{World, service_key, uid};
use crate::model::{ApplicationTunnel, Health, Locality, PortMapping};
use crate::snapshot::Snapshot;

/// What `client` gets for port 80 of `web`, over many random choices: how often each endpoint, or the reason.
fn spread(world: &World, tried: &[&str]) -> Result<BTreeMap<String, u32>, &'static str> {
    let (snapshot, source) = (world.snapshot(), world.get("client"));
    let tried: Vec<_> = tried.iter().map(|name| uid(name)).collect();
    let service = world.get_service("web");
    let mut picked = BTreeMap::new();
    for entropy in 0..1000u64 {
        let ask = Ask { snapshot: &snapshot, source: &source, entropy, tried: &tried };
        let (workload, _) = pick(&ask, &service, 80, Purpose::Traffic).map_err(|reason| reason.code())?;
        *picked.entry(workload.name.to_string()).or_insert(0) += 1;
    }
    Ok(picked)
}

fn names(world: &World, tried: &[&str]) -> Vec<String> {
    spread(world, tried).unwrap().into_keys().collect()
}

fn at(node: &str, zone: &str, region: &str) -> impl FnOnce(&mut Workload) {
    move |workload| {
        workload.node = node.into();
        workload.locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
    }
}

/// A client and endpoints ever further away.
fn places(mode: Mode, preferences: &[RoutingScope]) -> World {
    World::new()
        .workload_with("client", at("n1", "z1", "r1"))
        .workload_with("same-node", at("n1", "z1", "r1"))
        .workload_with("same-zone", at("n2", "z1", "r1"))
        .workload_with("same-region", at("n3", "z2", "r1"))
        .workload_with("far", at("n4", "z3", "r2"))
        .service_with("web", &[(80, 8080)], &["same-node", "same-zone", "same-region", "far"], |web| {
            web.load_balancing.mode = mode;
            web.load_balancing.routing_preferences = preferences.to_vec();
        })
}

#[test]
fn endpoints_are_picked_by_capacity() {
    let world = World::new()
        .workload("client")
        .workload("one")
        .workload_with("three", |three| three.capacity = 3)
        .workload_with("none", |none| none.capacity = 0)
        .service("web", &[(80, 8080)], &["one", "three"]);
    let spread = spread(&world, &[]).unwrap();
    assert!((200..300).contains(&spread["one"]), "{spread:?}");
    assert_eq!(spread["one"] + spread["three"], 1000);
}

#[test]
fn the_same_bits_pick_the_same_endpoint() {
    let world = World::new().workload("client").workload("a").workload("b").service("web", &[(80, 80)], &["b", "a"]);
    assert_eq!(spread(&world, &[]), spread(&world, &[]));
}

#[test]
fn standard_mode_knows_no_preferences() {
    assert_eq!(names(&places(Mode::Standard, &[RoutingScope::Node]), &[]).len(), 4);
}

#[test]
fn strict_mode_takes_full_matches_only() {
    assert_eq!(names(&places(Mode::Strict, &[RoutingScope::Node]), &[]), ["same-node"]);
    assert_eq!(names(&places(Mode::Strict, &[RoutingScope::Region, RoutingScope::Zone]), &[]).len(), 2);
    let gone = places(Mode::Strict, &[RoutingScope::Node]).edit("same-node", |gone| gone.health = Health::Unhealthy);
    assert_eq!(spread(&gone, &[]), Err("NO_HEALTHY_ENDPOINT"));
}

#[test]
fn failover_mode_takes_the_best_there_is() {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    let close = [Network, Region, Zone, Subzone, Node];
    let mut world = places(Mode::Failover, &close);
    for expected in ["same-node", "same-zone", "same-region", "far"] {
        assert_eq!(names(&world, &[]), [expected]);
        world = world.edit(expected, |gone| gone.health = Health::Unhealthy);
    }
    assert_eq!(spread(&world, &[]), Err("NO_HEALTHY_ENDPOINT"));
}

#[test]
fn failover_counts_leading_matches_only() {
    // On the client's node, but in another region: the zone and the node behind the region do not count.
    let world = places(Mode::Failover, &[RoutingScope::Region, RoutingScope::Node])
        .edit("same-node", |odd| odd.locality.region = "r9".into())
        .edit("same-zone", |odd| odd.node = "n9".into());
    assert_eq!(names(&world, &[]), ["same-region", "same-zone"]);
}

#[test]
fn the_network_outweighs_all_other_preferences() {
    use RoutingScope::{Network, Region, Zone};
    let service = places(Mode::Failover, &[Network, Region, Zone]).get_service("web");
    let world = places(Mode::Failover, &[]).edit("same-node", |away| away.network = "away".into());
    let rank = |name| rank(&service, &world.get("client"), &world.get(name));
    // A miss of the network does not end the count, a match adds the length of the list.
    assert_eq!((rank("same-node"), rank("far"), rank("same-zone")), (Some(2), Some(3), Some(5)));
}

#[test]
fn endpoints_that_failed_are_left_until_no_other_remains() {
    let world = places(Mode::Failover, &[RoutingScope::Zone, RoutingScope::Node]);
    assert_eq!(names(&world, &["same-node"]), ["same-zone"]);
    assert_eq!(names(&world, &["same-node", "same-zone"]), ["far", "same-region"]);
    assert_eq!(names(&world, &["same-node", "same-zone", "same-region", "far"]), ["same-node"]);
    let strict = places(Mode::Strict, &[RoutingScope::Node]);
    assert_eq!(names(&strict, &["same-node"]), ["same-node"]);
}

#[test]
fn an_endpoint_on_another_network_is_no_candidate() {
    let world = World::new()
        .workload("client")
        .workload("here")
        .workload_with("there", |there| there.network = "away".into())
        .service("web", &[(80, 80)], &["here", "there"]);
    assert_eq!(names(&world, &[]), ["here"]);
    let only_there = world.edit("here", |here| here.health = Health::Unhealthy);
    assert_eq!(spread(&only_there, &[]), Err("NETWORK_UNREACHABLE"));
}

#[test]
fn an_endpoint_needs_an_address_of_the_services_families_or_a_name() {
    let world = |families: IpFamilies| {
        World::new()
            .workload("client")
            .workload_with("four", |four| four.addresses.retain(IpAddr::is_ipv4))
            .workload_with("six", |six| six.addresses.retain(IpAddr::is_ipv6))
            .workload_with("none", |none| none.addresses.clear())
            .workload_with("name", |name| {
                name.addresses.clear();
                name.hostname = "db.example".into();
            })
            .service_with("web", &[(80, 80)], &["four", "six", "none", "name"], |web| web.ip_families = families)
    };
    assert_eq!(names(&world(IpFamilies::Automatic), &[]), ["four", "name", "six"]);
    assert_eq!(names(&world(IpFamilies::Dual), &[]), ["four", "name", "six"]);
    assert_eq!(names(&world(IpFamilies::Ipv4Only), &[]), ["four", "name"]);
    assert_eq!(names(&world(IpFamilies::Ipv6Only), &[]), ["name", "six"]);
}

#[test]
fn ports_come_from_the_endpoint_then_from_the_service() {
    let mapped = |target_port| vec![PortMapping { service_port: 80, target_port }];
    let world = World::new()
        .workload("plain")
        .workload("own")
        .workload("zero")
        .service("web", &[(80, 8080)], &["plain"])
        .service("named", &[(80, 0)], &["plain"])
        .edit("own", |own| own.services = ["web", "named"].map(|name| (service_key(name), mapped(9090))).to_vec())
        .edit("zero", |zero| zero.services = ["web", "named"].map(|name| (service_key(name), mapped(0))).to_vec());
    let port = |service: &str, workload: &str, port| {
        target_port(&world.get_service(service), &world.get(workload), port, Purpose::Traffic)
    };
    assert_eq!(
        [port("web", "plain", 80), port("web", "own", 80), port("web", "zero", 80)].map(Option::unwrap),
        [8080, 9090, 8080]
    );
    assert_eq!(
        [port("named", "plain", 80), port("named", "own", 80), port("named", "zero", 80)],
        [None, Some(9090), None]
    );
    assert_eq!(port("web", "plain", 81), None);
}

#[test]
fn a_waypoint_behind_an_application_tunnel_needs_no_port_of_its_service() {
    let tunnel = |port: u16| Some(ApplicationTunnel { proxy_protocol: true, port: std::num::NonZeroU16::new(port) });
    let world = World::new()
        .workload_with("with", |with| with.application_tunnel = tunnel(15088))
        .workload_with("without", |without| without.application_tunnel = tunnel(0))
        .service("gate", &[(80, 80)], &["with", "without"]);
    let port = |workload, purpose| target_port(&world.get_service("gate"), &world.get(workload), 15008, purpose);
    assert_eq!(port("with", Purpose::Waypoint), Some(15008));
    assert_eq!(port("without", Purpose::Waypoint), None);
    assert_eq!(port("with", Purpose::Traffic), None);
}

#[test]
fn the_address_asked_for_wins_then_its_family_then_any() {
    let (four, other_four, six) =
        (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]), "fd00::1".parse().unwrap());
    let both = World::new().workload_with("b", |b| b.addresses = vec![six, other_four, four]).get("b");
    let wanted = |families, text: &str| address_of(&both, families, text.parse().unwrap());
    assert_eq!(wanted(IpFamilies::Automatic, "10.0.0.1"), Some(four));
    assert_eq!(wanted(IpFamilies::Automatic, "10.1.0.1"), Some(other_four));
    assert_eq!(wanted(IpFamilies::Automatic, "fd01::1"), Some(six));
    assert_eq!(wanted(IpFamilies::Ipv6Only, "10.1.0.1"), Some(six));
    assert_eq!(wanted(IpFamilies::Ipv4Only, "fd01::1"), Some(other_four));
    let four_only = World::new().workload_with("b", |b| b.addresses = vec![four]).get("b");
    assert_eq!(address_of(&four_only, IpFamilies::Ipv6Only, "fd01::1".parse().unwrap()), None);
}

#[test]
fn nothing_is_chosen_where_no_weight_is_set() {
    let choose = |weights: &[u64]| weighted(7, Stream::Waypoint, weights.iter().copied());
    assert_eq!(choose(&[]), None);
    assert_eq!(choose(&[0, 0]), None);
    assert_eq!(choose(&[0, 1, 0]), Some(1));
    let most = u64::from(u32::MAX);
    assert!(weighted(u64::MAX, Stream::Endpoint, [most; 1000].into_iter()).is_some());
}

proptest! {
    #[test]
    fn only_candidates_are_picked(
        changes in any_changes(40), source in any_workload(), entropy: u64, port in prop::sample::select(vec![80u16, 443, 9]),
        tried in prop::sample::subsequence(&crate::arbitrary::WORKLOADS[..], 0..=3),
    ) {
        let snapshot = Snapshot::empty("").apply(&changes).0;
        let tried: Vec<_> = tried.into_iter().map(uid).collect();
        let ask = Ask { snapshot: &snapshot, source: &source, entropy, tried: &tried };
        for service in SERVICES.iter().filter_map(|name| snapshot.service(&service_key(name))) {
            let candidates: Vec<_> = snapshot.endpoints(&service.key)
                .filter(|workload| workload.network == source.network && is_reachable(service, workload))
                .filter(|workload| rank(service, &source, workload).is_some())
                .filter(|workload| target_port(service, workload, port, Purpose::Traffic).is_some())
                .collect();
            match pick(&ask, service, port, Purpose::Traffic) {
                Ok((picked, to)) => {
                    prop_assert!(service.port(port).is_some() && to > 0);
                    prop_assert!(candidates.contains(&picked));
                    prop_assert!(!tried.contains(&picked.uid) || candidates.iter().all(|one| tried.contains(&one.uid)));
                }
                Err(reason) => {
                    prop_assert!(candidates.is_empty() || service.port(port).is_none(), "{reason}");
                    prop_assert!(reason.is_refusal());
                }
            }
        }
    }

    #[test]
    fn every_weight_above_zero_can_be_chosen_and_no_other(weights in prop::collection::vec(0..4u64, 0..6)) {
        let chosen: std::collections::BTreeSet<_> =
            (0..2000).filter_map(|entropy| weighted(entropy, Stream::Endpoint, weights.iter().copied())).collect();
        let possible: std::collections::BTreeSet<_> =
            weights.iter().enumerate().filter(|(_, weight)| **weight > 0).map(|(index, _)| index).collect();
        prop_assert_eq!(chosen, possible);
    }
}
