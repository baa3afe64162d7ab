//! `stillmesh.config.v1.DestinationRule`: how waypoints treat endpoints. One is never read as if a part of it were absent: what
//! this version does not know refuses it, and the version before stays in force.

mod write;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use stillmesh_core::model::destination::{
    Balancing, ConnectionPool, DestinationRule, Distribution, EndpointVersion, HashCookie, HashKey, LocalityPolicy,
    Method, OutlierDetection, Place, Subset, Traffic, TrafficPolicy, WarmUp,
};
use stillmesh_core::model::{PolicyKey, RoutingScope, Str, WorkloadUid};
pub use write::encode;

use super::route::{duration, needed, service, text};
use super::{CodecError, FieldError, fields};
use crate::proto::stillmesh::config::v1 as wire;

/// Reads one.
pub fn decode(name: &str, bytes: Bytes) -> Result<DestinationRule, CodecError> {
    read(name, bytes).map_err(|error| error.of(name))
}

fn read(resource: &str, bytes: Bytes) -> Result<DestinationRule, FieldError> {
    let wire = wire::DestinationRule::decode(bytes.clone())
        .map_err(|error| FieldError::new("destinationRule", format!("not a message: {error}")))?;
    // What is not known is lost in reading, and then it is not written as it came.
    if wire.encode_to_vec() != *bytes {
        return Err(FieldError::new("destinationRule", "has parts that this version does not know"));
    }
    let key = PolicyKey::new(wire.namespace.as_str(), wire.name.as_str());
    if PolicyKey::parse(resource).as_ref() != Some(&key) {
        return Err(FieldError::new("name", format!("the resource's own key is {:?}", key.to_string())));
    }
    Ok(DestinationRule {
        key,
        services: all(wire.services, |wire| service("services", Some(wire)))?,
        exactness: wire.exactness,
        is_mesh_wide: wire.mesh_wide,
        created: wire.created,
        traffic: traffic(wire.traffic)?,
        subsets: all(wire.subsets, |wire| {
            let members = wire.members.into_iter().map(|uid| WorkloadUid(uid.into())).collect();
            Ok(Subset { name: wire.name.into(), members, traffic: traffic(wire.traffic)? })
        })?,
    })
}

fn all<W, T>(wire: Vec<W>, read: impl Fn(W) -> Result<T, FieldError>) -> Result<Vec<T>, FieldError> {
    wire.into_iter().map(read).collect()
}

fn traffic(wire: Option<wire::Traffic>) -> Result<Traffic, FieldError> {
    let wire = wire.unwrap_or_default();
    let of_port =
        |wire: wire::PortPolicy| Ok((fields::port("traffic.ports.port", wire.port)?.get(), policy(wire.policy)?));
    Ok(Traffic { policy: policy(wire.policy)?, ports: all(wire.ports, of_port)? })
}

fn policy(wire: Option<wire::TrafficPolicy>) -> Result<TrafficPolicy, FieldError> {
    let wire = wire.unwrap_or_default();
    Ok(TrafficPolicy {
        balancing: wire.balancing.map(balancing).transpose()?,
        limits: wire.limits.map(limits).transpose()?,
        outliers: wire.outliers.map(outliers).transpose()?,
    })
}

fn balancing(wire: wire::Balancing) -> Result<Balancing, FieldError> {
    use wire::balancing::{Locality, Method as Wire};
    let method = match needed("balancing.method", wire.method)? {
        Wire::Simple(number) => match wire::SimpleMethod::try_from(number) {
            Ok(wire::SimpleMethod::LeastRequest) => Method::LeastRequest,
            Ok(wire::SimpleMethod::RoundRobin) => Method::RoundRobin,
            Ok(wire::SimpleMethod::Random) => Method::Random,
            Ok(wire::SimpleMethod::Passthrough) => Method::Passthrough,
            Ok(wire::SimpleMethod::SourceAddress) => Method::ConsistentHash(HashKey::SourceAddress),
            Err(_) => return Err(FieldError::new("balancing.method", format!("{number}: 0 to 4 are known"))),
        },
        Wire::HashHeader(name) => Method::ConsistentHash(HashKey::Header(name.into())),
        Wire::HashQuery(name) => Method::ConsistentHash(HashKey::Query(name.into())),
        Wire::HashCookie(wire) => Method::ConsistentHash(HashKey::Cookie(HashCookie {
            name: wire.name.into(),
            path: text(wire.path),
            ttl: duration("balancing.hash_cookie.ttl", wire.ttl)?,
        })),
    };
    let locality = match wire.locality {
        None => None,
        Some(Locality::Ignored(_)) => Some(LocalityPolicy::Ignored),
        Some(Locality::Distribute(wire)) => Some(LocalityPolicy::Distribute(all(wire.rules, distribution)?)),
        Some(Locality::Failover(wire)) => Some(LocalityPolicy::Failover(
            wire.regions.into_iter().map(|pair| (pair.from.into(), pair.to.into())).collect(),
        )),
        Some(Locality::Priority(wire)) => Some(LocalityPolicy::Priority(all(wire.common, common)?)),
    };
    Ok(Balancing { method, warm_up: wire.warm_up.map(warm_up).transpose()?, locality })
}

fn warm_up(wire: wire::WarmUp) -> Result<WarmUp, FieldError> {
    let field = "balancing.warm_up";
    if wire.least_percent > 100 || wire.aggression == 0 {
        return Err(FieldError::new(field, "at most 100 of a hundred, and an aggression above 0 are accepted"));
    }
    let time = needed(field, duration(field, wire.duration)?)?;
    Ok(WarmUp { duration: time, least_percent: wire.least_percent, aggression: wire.aggression })
}

fn place(wire: Option<wire::Place>) -> Place {
    let wire = wire.unwrap_or_default();
    let part = |part: Option<String>| part.map(Str::from);
    Place { region: part(wire.region), zone: part(wire.zone), subzone: part(wire.subzone) }
}

fn distribution(wire: wire::Distribution) -> Result<Distribution, FieldError> {
    let to = wire.to.into_iter().map(|wire| (place(wire.place), wire.weight)).collect();
    Ok(Distribution { from: place(wire.from), to })
}

fn common(number: i32) -> Result<RoutingScope, FieldError> {
    Ok(match wire::Common::try_from(number) {
        Ok(wire::Common::Region) => RoutingScope::Region,
        Ok(wire::Common::Zone) => RoutingScope::Zone,
        Ok(wire::Common::Subzone) => RoutingScope::Subzone,
        Ok(wire::Common::Node) => RoutingScope::Node,
        Ok(wire::Common::Cluster) => RoutingScope::Cluster,
        Ok(wire::Common::Network) => RoutingScope::Network,
        Err(_) => return Err(FieldError::new("balancing.priority", format!("{number}: 0 to 5 are known"))),
    })
}

fn limits(wire: wire::ConnectionPool) -> Result<ConnectionPool, FieldError> {
    let version = match wire::EndpointVersion::try_from(wire.version) {
        Ok(wire::EndpointVersion::OfPort) => EndpointVersion::OfPort,
        Ok(wire::EndpointVersion::Two) => EndpointVersion::Two,
        Ok(wire::EndpointVersion::OfClient) => EndpointVersion::OfClient,
        Err(_) => return Err(FieldError::new("limits.version", format!("{}: 0 to 2 are known", wire.version))),
    };
    Ok(ConnectionPool {
        connections: wire.connections,
        pending: wire.pending,
        requests: wire.requests,
        retries: wire.retries,
        requests_per_connection: wire.requests_per_connection,
        streams: wire.streams,
        connect_timeout: duration("limits.connect_timeout", wire.connect_timeout)?,
        http_idle: duration("limits.http_idle", wire.http_idle)?,
        tcp_idle: duration("limits.tcp_idle", wire.tcp_idle)?,
        age: duration("limits.age", wire.age)?,
        version,
    })
}

fn outliers(wire: wire::OutlierDetection) -> Result<OutlierDetection, FieldError> {
    let time = |field: &str, wire| -> Result<Duration, FieldError> { needed(field, duration(field, wire)?) };
    Ok(OutlierDetection {
        consecutive_5xx: wire.consecutive_5xx,
        consecutive_gateway: wire.consecutive_gateway,
        consecutive_local: wire.consecutive_local,
        interval: time("outliers.interval", wire.interval)?,
        base_ejection: time("outliers.base_ejection", wire.base_ejection)?,
        most_percent: wire.most_percent,
        least_healthy_percent: wire.least_healthy_percent,
    })
}
