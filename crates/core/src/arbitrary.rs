//! Random worlds out of few names, so that the names meet: for properties.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::fixtures::{policy_key, service, service_key, uid, waypoint, workload};
use crate::model::{
    Action, Clause, Health, HealthPolicy, Identity, IpFamilies, LoadBalancing, Locality, Match, Mode, NetworkAddress,
    NetworkCidr, NetworkMode, Policy, PortMapping, RoutingScope, Rule, Scope, Service, ServiceAccountMatch,
    StringMatch, TrustDomain, TunnelProtocol, Visibility, Workload,
};
use crate::snapshot::Change;

pub(crate) const WORKLOADS: [&str; 6] = ["ns/a", "ns/b", "ns/c", "other/a", "other/b", "third/a"];
pub(crate) const SERVICES: [&str; 4] = ["ns/web", "ns/db", "other/web", "third/gate"];
pub(crate) const POLICIES: [&str; 6] = ["ns/one", "ns/two", "other/one", "root/one", "root/two", "third/one"];

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

pub(crate) fn workload_change() -> impl Strategy<Value = Change> {
    let removed = select(&WORKLOADS[..]).prop_map(|name| Change::WorkloadRemoved(uid(name)));
    prop_oneof![4 => any_workload().prop_map(|workload| Change::Workload(Arc::new(workload))), 1 => removed]
}

pub(crate) fn any_workload() -> impl Strategy<Value = Workload> {
    let services = subsequence(&SERVICES[..], 0..=3);
    let policies = subsequence(&POLICIES[..], 0..=3).prop_shuffle();
    let place = (0..3u8, 0..3u8, any::<bool>(), any::<bool>());
    (select(&WORKLOADS[..]), services, policies, place, (1..5u32, any::<bool>(), any::<bool>(), 0..4u8)).prop_map(
        |(name, services, policies, (ip, zone, shared, host), (capacity, healthy, hbone, port))| {
            let mut new = workload(name);
            new.addresses = if shared { vec![address(ip), address(ip + 10)] } else { vec![address(ip)] };
            new.network_mode = if host { NetworkMode::HostNetwork } else { NetworkMode::Standard };
            new.locality = Locality { zone: format!("zone-{zone}").into(), ..Locality::default() };
            new.node = format!("node-{zone}").into();
            new.health = if healthy { Health::Healthy } else { Health::Unhealthy };
            new.tunnel_protocol = if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            new.capacity = capacity;
            let mapping = PortMapping { service_port: 80, target_port: u16::from(port) * 1000 };
            new.services = services.into_iter().map(|service| (service_key(service), vec![mapping])).collect();
            new.authorization_policies = policies.into_iter().map(policy_key).collect();
            new
        },
    )
}

pub(crate) fn service_change() -> impl Strategy<Value = Change> {
    let removed = select(&SERVICES[..]).prop_map(|name| Change::ServiceRemoved(service_key(name)));
    prop_oneof![4 => any_service().prop_map(|service| Change::Service(Arc::new(service))), 1 => removed]
}

pub(crate) fn any_service() -> impl Strategy<Value = Service> {
    let mode = select(vec![Mode::Standard, Mode::Strict, Mode::Failover, Mode::Passthrough]);
    let preferences =
        subsequence(vec![RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone, RoutingScope::Node], 0..=4);
    let vips = (0..4u8, 0..4u8, 0..4u8);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (select(&SERVICES[..]), mode, preferences, vips, flags, select(vec![0u16, 80, 8080])).prop_map(
        |(name, mode, routing_preferences, (vip, range, bits), (canonical, public, all, bound), target)| {
            let mut new = service(name, &[(80, target), (443, 8443)]);
            let health_policy = if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
            new.vips = vec![NetworkAddress::new("", [10, 1, 0, vip].into())];
            if let Ok(cidr) = ipnet::IpNet::new([10, 2 + range, 0, 1].into(), 8 + bits * 4) {
                new.cidr_vips = vec![NetworkCidr { network: "".into(), cidr }];
            }
            new.load_balancing = LoadBalancing { routing_preferences, mode, health_policy };
            new.canonical = canonical;
            new.ip_families = IpFamilies::Automatic;
            new.visibility = if public { Visibility::Public } else { Visibility::Namespace };
            new.waypoint = bound.then(|| waypoint("third/gate"));
            new
        },
    )
}

pub(crate) fn policy_change() -> impl Strategy<Value = Change> {
    let removed = select(&POLICIES[..]).prop_map(|name| Change::PolicyRemoved(policy_key(name)));
    prop_oneof![4 => any_policy().prop_map(|policy| Change::Policy(Arc::new(policy))), 1 => removed]
}

pub(crate) fn any_policy() -> impl Strategy<Value = Policy> {
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    let clause = prop::collection::vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let rules = prop::collection::vec(rule, 0..3);
    (select(&POLICIES[..]), scope, action, rules, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(name, scope, action, rules, dry_run, unreadable)| Policy {
            key: policy_key(name),
            scope,
            action,
            rules,
            dry_run,
            unreadable: unreadable.then(|| "unknown field 99".into()),
            order: None,
        },
    )
}

fn any_text() -> impl Strategy<Value = StringMatch> {
    let text = select(vec!["ns", "other", "cluster.local/ns/ns/sa/a", "cluster.local/ns/other/", "/sa/b", "/a"]);
    text.prop_flat_map(|text| {
        let text = || text.into();
        let all = [StringMatch::Exact(text()), StringMatch::Prefix(text()), StringMatch::Suffix(text())];
        select([all.to_vec(), vec![StringMatch::Presence]].concat())
    })
}

pub(crate) fn any_match() -> impl Strategy<Value = Match> {
    let texts = || prop::collection::vec(any_text(), 0..2);
    let ports = || subsequence(vec![80u16, 8080], 0..=1);
    let ranges = || {
        let all: Vec<ipnet::IpNet> =
            ["10.0.0.0/31", "10.0.0.2/32"].iter().filter_map(|text| text.parse().ok()).collect();
        subsequence(all, 0..=1)
    };
    let accounts = || {
        let account = ServiceAccountMatch { namespace: "ns".into(), service_account: "a".into() };
        subsequence(vec![account], 0..=1)
    };
    let positive = (texts(), texts(), accounts(), ranges(), ranges(), ports());
    let negative = (texts(), texts(), accounts(), ranges(), ranges(), ports());
    // Mostly one or two fields: with all twelve set nothing would ever match.
    (positive, negative, prop::collection::vec(0..12usize, 0..3)).prop_map(|(positive, negative, kept)| {
        let keep = |index| kept.contains(&index);
        let mut new = Match::default();
        if keep(0) {
            new.namespaces = positive.0
        }
        if keep(1) {
            new.principals = positive.1
        }
        if keep(2) {
            new.service_accounts = positive.2
        }
        if keep(3) {
            new.source_ips = positive.3
        }
        if keep(4) {
            new.destination_ips = positive.4
        }
        if keep(5) {
            new.destination_ports = positive.5
        }
        if keep(6) {
            new.not_namespaces = negative.0
        }
        if keep(7) {
            new.not_principals = negative.1
        }
        if keep(8) {
            new.not_service_accounts = negative.2
        }
        if keep(9) {
            new.not_source_ips = negative.3
        }
        if keep(10) {
            new.not_destination_ips = negative.4
        }
        if keep(11) {
            new.not_destination_ports = negative.5
        }
        new
    })
}

/// A batch of anything.
pub(crate) fn any_changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![4 => workload_change(), 2 => service_change(), 3 => policy_change()];
    prop::collection::vec(change, 0..most)
}

/// Who connects, from where, to what: with [`Identity`] or in the clear.
pub(crate) fn any_peer() -> impl Strategy<Value = (Option<Identity>, IpAddr, SocketAddr)> {
    let identity = select(&WORKLOADS[..]).prop_map(|name| {
        let workload = workload(name);
        Identity::new(TrustDomain::default(), workload.namespace, workload.service_account)
    });
    let upstream = (0..3u8, select(vec![80u16, 8080, 9090]));
    (prop::option::of(identity), 0..4u8, upstream)
        .prop_map(|(identity, source, (ip, port))| (identity, address(source), (address(ip), port).into()))
}
