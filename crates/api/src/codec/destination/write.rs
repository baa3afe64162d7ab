//! The wire form of DestinationRules.

use prost::Message as _;
use stillmesh_core::model::RoutingScope;
use stillmesh_core::model::destination::{
    Balancing, ConnectionPool, DestinationRule, EndpointVersion, HashKey, LocalityPolicy, Method, OutlierDetection,
    Place, Subset, Traffic, TrafficPolicy,
};

use crate::codec::route::{wire_duration as duration, wire_service};
use crate::proto::stillmesh::config::v1 as wire;

/// The wire form of one.
pub fn encode(rule: &DestinationRule) -> Vec<u8> {
    let subset = |subset: &Subset| wire::Subset {
        name: subset.name.to_string(),
        members: subset.members.iter().map(ToString::to_string).collect(),
        traffic: Some(traffic(&subset.traffic)),
    };
    wire::DestinationRule {
        namespace: rule.key.namespace.to_string(),
        name: rule.key.name.to_string(),
        services: rule.services.iter().map(wire_service).collect(),
        exactness: rule.exactness,
        mesh_wide: rule.is_mesh_wide,
        created: rule.created,
        traffic: Some(traffic(&rule.traffic)),
        subsets: rule.subsets.iter().map(subset).collect(),
    }
    .encode_to_vec()
}

fn traffic(traffic: &Traffic) -> wire::Traffic {
    let of_port =
        |(port, own): &(u16, TrafficPolicy)| wire::PortPolicy { port: (*port).into(), policy: Some(policy(own)) };
    wire::Traffic { policy: Some(policy(&traffic.policy)), ports: traffic.ports.iter().map(of_port).collect() }
}

fn policy(policy: &TrafficPolicy) -> wire::TrafficPolicy {
    wire::TrafficPolicy {
        balancing: policy.balancing.as_ref().map(balancing),
        limits: policy.limits.as_ref().map(limits),
        outliers: policy.outliers.as_ref().map(outliers),
    }
}

fn balancing(balancing: &Balancing) -> wire::Balancing {
    use wire::balancing::{Locality, Method as Wire};
    let simple = |method: wire::SimpleMethod| Wire::Simple(method.into());
    let method = match &balancing.method {
        Method::LeastRequest => simple(wire::SimpleMethod::LeastRequest),
        Method::RoundRobin => simple(wire::SimpleMethod::RoundRobin),
        Method::Random => simple(wire::SimpleMethod::Random),
        Method::Passthrough => simple(wire::SimpleMethod::Passthrough),
        Method::ConsistentHash(HashKey::SourceAddress) => simple(wire::SimpleMethod::SourceAddress),
        Method::ConsistentHash(HashKey::Header(name)) => Wire::HashHeader(name.to_string()),
        Method::ConsistentHash(HashKey::Query(name)) => Wire::HashQuery(name.to_string()),
        Method::ConsistentHash(HashKey::Cookie(cookie)) => Wire::HashCookie(wire::HashCookie {
            name: cookie.name.to_string(),
            path: cookie.path.as_ref().map(ToString::to_string).unwrap_or_default(),
            ttl: cookie.ttl.map(duration),
        }),
    };
    let locality = balancing.locality.as_ref().map(|locality| match locality {
        LocalityPolicy::Ignored => Locality::Ignored(true),
        LocalityPolicy::Distribute(rules) => {
            let rules = rules.iter().map(|rule| wire::Distribution {
                from: Some(place(&rule.from)),
                to: rule
                    .to
                    .iter()
                    .map(|(to, weight)| wire::PlaceShare { place: Some(place(to)), weight: *weight })
                    .collect(),
            });
            Locality::Distribute(wire::Distribute { rules: rules.collect() })
        }
        LocalityPolicy::Failover(regions) => {
            let pair =
                |(from, to): &(_, _)| wire::RegionPair { from: ToString::to_string(from), to: ToString::to_string(to) };
            Locality::Failover(wire::Failover { regions: regions.iter().map(pair).collect() })
        }
        LocalityPolicy::Priority(wanted) => {
            Locality::Priority(wire::FailoverPriority { common: wanted.iter().map(|one| common(one).into()).collect() })
        }
    });
    let warm_up = balancing.warm_up.map(|warm_up| wire::WarmUp {
        duration: Some(duration(warm_up.duration)),
        least_percent: warm_up.least_percent,
        aggression: warm_up.aggression,
    });
    wire::Balancing { method: Some(method), warm_up, locality }
}

fn place(place: &Place) -> wire::Place {
    let part = |part: &Option<_>| part.as_ref().map(ToString::to_string);
    wire::Place { region: part(&place.region), zone: part(&place.zone), subzone: part(&place.subzone) }
}

fn common(common: &RoutingScope) -> wire::Common {
    match common {
        RoutingScope::Region => wire::Common::Region,
        RoutingScope::Zone => wire::Common::Zone,
        RoutingScope::Subzone => wire::Common::Subzone,
        RoutingScope::Node => wire::Common::Node,
        RoutingScope::Cluster => wire::Common::Cluster,
        RoutingScope::Network => wire::Common::Network,
    }
}

fn limits(limits: &ConnectionPool) -> wire::ConnectionPool {
    let version = match limits.version {
        EndpointVersion::OfPort => wire::EndpointVersion::OfPort,
        EndpointVersion::Two => wire::EndpointVersion::Two,
        EndpointVersion::OfClient => wire::EndpointVersion::OfClient,
    };
    wire::ConnectionPool {
        connections: limits.connections,
        pending: limits.pending,
        requests: limits.requests,
        retries: limits.retries,
        requests_per_connection: limits.requests_per_connection,
        streams: limits.streams,
        connect_timeout: limits.connect_timeout.map(duration),
        http_idle: limits.http_idle.map(duration),
        tcp_idle: limits.tcp_idle.map(duration),
        age: limits.age.map(duration),
        version: version.into(),
    }
}

fn outliers(outliers: &OutlierDetection) -> wire::OutlierDetection {
    wire::OutlierDetection {
        consecutive_5xx: outliers.consecutive_5xx,
        consecutive_gateway: outliers.consecutive_gateway,
        consecutive_local: outliers.consecutive_local,
        interval: Some(duration(outliers.interval)),
        base_ejection: Some(duration(outliers.base_ejection)),
        most_percent: outliers.most_percent,
        least_healthy_percent: outliers.least_healthy_percent,
    }
}
