//! DestinationRules: round trips of everything that the model can say, and what is refused.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use stillmesh_core::model::destination::*;
use stillmesh_core::model::{PolicyKey, RoutingScope, ServiceKey, Str, WorkloadUid};
use stillmesh_core::snapshot::Change;

use crate::codec::{decode, destination, name, removed};
use crate::proto::stillmesh::config::v1 as wire;
use crate::xds::ResourceType;

fn word() -> impl Strategy<Value = Str> {
    "[a-z0-9.-]{1,12}".prop_map(Str::from)
}

fn time() -> impl Strategy<Value = Duration> {
    (0..u64::from(u32::MAX), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn hash_key() -> impl Strategy<Value = HashKey> {
    prop_oneof![
        word().prop_map(HashKey::Header),
        word().prop_map(HashKey::Query),
        Just(HashKey::SourceAddress),
        (word(), option::of(word()), option::of(time())).prop_map(|(name, path, ttl)| HashKey::Cookie(HashCookie {
            name,
            path,
            ttl
        })),
    ]
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![
        Just(Method::LeastRequest),
        Just(Method::RoundRobin),
        Just(Method::Random),
        Just(Method::Passthrough),
        hash_key().prop_map(Method::ConsistentHash),
    ]
}

prop_compose! {
    fn place()(region in option::of(word()), zone in option::of(word()), subzone in option::of(word())) -> Place {
        Place { region, zone, subzone }
    }
}

fn locality() -> impl Strategy<Value = LocalityPolicy> {
    let common = prop_oneof![
        Just(RoutingScope::Region),
        Just(RoutingScope::Zone),
        Just(RoutingScope::Subzone),
        Just(RoutingScope::Node),
        Just(RoutingScope::Cluster),
        Just(RoutingScope::Network),
    ];
    let distribution = (place(), vec((place(), any::<u32>()), 0..3)).prop_map(|(from, to)| Distribution { from, to });
    prop_oneof![
        Just(LocalityPolicy::Ignored),
        vec(distribution, 0..3).prop_map(LocalityPolicy::Distribute),
        vec((word(), word()), 0..3).prop_map(LocalityPolicy::Failover),
        vec(common, 0..4).prop_map(LocalityPolicy::Priority),
    ]
}

prop_compose! {
    fn warm_up()(duration in time(), least_percent in 0..=100u32, aggression in 1..9999u32) -> WarmUp {
        WarmUp { duration, least_percent, aggression }
    }
}

prop_compose! {
    fn balancing()(method in method(), warm_up in option::of(warm_up()), locality in option::of(locality())) -> Balancing {
        Balancing { method, warm_up, locality }
    }
}

prop_compose! {
    fn limits()(
        counts in [option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<u32>()),
            option::of(any::<u32>()), option::of(any::<u32>())],
        times in [option::of(time()), option::of(time()), option::of(time()), option::of(time())],
        version in prop_oneof![Just(EndpointVersion::OfPort), Just(EndpointVersion::Two), Just(EndpointVersion::OfClient)],
    ) -> ConnectionPool {
        let [connections, pending, requests, retries, requests_per_connection, streams] = counts;
        let [connect_timeout, http_idle, tcp_idle, age] = times;
        ConnectionPool {
            connections, pending, requests, retries, requests_per_connection, streams, connect_timeout, http_idle, tcp_idle, age,
            version,
        }
    }
}

prop_compose! {
    fn outliers()(
        counts in any::<[u32; 4]>(), consecutive_local in option::of(any::<u32>()), interval in time(), base_ejection in time(),
    ) -> OutlierDetection {
        let [consecutive_5xx, consecutive_gateway, most_percent, least_healthy_percent] = counts;
        OutlierDetection {
            consecutive_5xx, consecutive_gateway, consecutive_local, interval, base_ejection, most_percent, least_healthy_percent,
        }
    }
}

prop_compose! {
    fn policy()(
        balancing in option::of(balancing()), limits in option::of(limits()), outliers in option::of(outliers()),
    ) -> TrafficPolicy {
        TrafficPolicy { balancing, limits, outliers }
    }
}

prop_compose! {
    fn traffic()(policy in policy(), ports in vec((1..=u16::MAX, self::policy()), 0..2)) -> Traffic {
        Traffic { policy, ports }
    }
}

prop_compose! {
    fn any_rule()(
        name in word(), services in vec((word(), word()), 0..3), exactness in any::<u32>(), is_mesh_wide in any::<bool>(),
        created in any::<i64>(), traffic in traffic(),
        subsets in vec((word(), vec(word(), 0..3), self::traffic()), 0..3),
    ) -> DestinationRule {
        let subset = |(name, members, traffic): (Str, Vec<Str>, Traffic)| {
            Subset { name, members: members.into_iter().map(WorkloadUid).collect(), traffic }
        };
        DestinationRule {
            key: PolicyKey::new("shop", name),
            services: services.into_iter().map(|(namespace, host)| ServiceKey::new(namespace, host)).collect(),
            exactness, is_mesh_wide, created, traffic,
            subsets: subsets.into_iter().map(subset).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(rule in any_rule()) {
        let change = Change::Destination(rule.clone().into());
        let (kind, resource) = name(&change);
        prop_assert_eq!(decode(kind, &resource, destination::encode(&rule).into()).unwrap(), change);
        prop_assert_eq!(removed(kind, &resource), Some(Change::DestinationRemoved(rule.key)));
    }
}

fn refused(message: &wire::DestinationRule) -> String {
    decode(ResourceType::Destination, "shop/web", message.encode_to_vec().into()).unwrap_err().to_string()
}

#[test]
fn a_rule_with_what_is_not_known_is_refused_as_a_whole() {
    let rule = |traffic| wire::DestinationRule {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        traffic: Some(traffic),
        ..wire::DestinationRule::default()
    };
    let balancing = |method| wire::Traffic {
        policy: Some(wire::TrafficPolicy {
            balancing: Some(wire::Balancing { method, ..wire::Balancing::default() }),
            ..wire::TrafficPolicy::default()
        }),
        ports: Vec::new(),
    };
    assert!(refused(&rule(balancing(None))).contains("balancing.method"));
    assert!(refused(&rule(balancing(Some(wire::balancing::Method::Simple(9))))).contains("0 to 4 are known"));
    let port_0 = wire::Traffic { policy: None, ports: vec![wire::PortPolicy { port: 0, policy: None }] };
    assert!(refused(&rule(port_0)).contains("traffic.ports.port"));
    assert!(refused(&wire::DestinationRule::default()).contains("the resource's own key"));
    let mut bytes = rule(wire::Traffic::default()).encode_to_vec();
    bytes.extend([0xf8, 0x07, 0x01]);
    let error = decode(ResourceType::Destination, "shop/web", bytes.into()).unwrap_err().to_string();
    assert!(error.contains("does not know"), "{error}");
}
