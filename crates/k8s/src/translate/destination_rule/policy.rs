//! The parts of a DestinationRule's policies.

use std::collections::BTreeSet;
use std::time::Duration;

use stillmesh_core::model::RoutingScope;
use stillmesh_core::model::destination::{
    Balancing, ConnectionPool, Distribution, EndpointVersion, HashCookie, HashKey, LocalityPolicy, Method,
    OutlierDetection, Place, Traffic, TrafficPolicy, WarmUp,
};

use crate::duration;
use crate::istio::destination_rule as written;

/// A policy with its ports, or what is wrong with it: by its place.
pub(super) fn traffic(
    policy: Option<&written::TrafficPolicy>,
    place: &str,
    notes: &mut BTreeSet<String>,
) -> Result<Traffic, String> {
    let Some(policy) = policy else { return Ok(Traffic::default()) };
    for (name, there) in [("tunnel", policy.tunnel.is_some()), ("proxyProtocol", policy.proxy_protocol.is_some())] {
        if there {
            return Err(format!("{place}.{name} is not supported"));
        }
    }
    if policy.retry_budget.is_some() {
        notes.insert(format!("{place}.retryBudget is without effect: waypoints have a budget of their own"));
    }
    let mut ports = Vec::new();
    for (at, of_port) in policy.port_level_settings.iter().enumerate() {
        let place = format!("{place}.portLevelSettings[{at}]");
        let number = of_port.port.map(|port| port.number).unwrap_or_default();
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        let Some(number) = number else {
            return Err(format!("{place}.port.number is missing, or no port: 1 to 65535 are accepted"));
        };
        let parts = Parts {
            balancer: of_port.load_balancer.as_ref(),
            pool: of_port.connection_pool.as_ref(),
            outliers: of_port.outlier_detection.as_ref(),
            tls: of_port.tls.as_ref(),
        };
        ports.push((number, parts.read(&place, notes)?));
    }
    let parts = Parts {
        balancer: policy.load_balancer.as_ref(),
        pool: policy.connection_pool.as_ref(),
        outliers: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    Ok(Traffic { policy: parts.read(place, notes)?, ports })
}

/// What is said for all ports, and for one.
struct Parts<'a> {
    balancer: Option<&'a written::LoadBalancer>,
    pool: Option<&'a written::ConnectionPool>,
    outliers: Option<&'a written::OutlierDetection>,
    tls: Option<&'a written::Tls>,
}

impl Parts<'_> {
    fn read(&self, place: &str, notes: &mut BTreeSet<String>) -> Result<TrafficPolicy, String> {
        match self.tls.map(|tls| tls.mode.as_str()) {
            // The mesh's own mutual TLS stays, whatever is said (contract 7.4).
            None | Some("DISABLE" | "ISTIO_MUTUAL" | "") => {}
            Some(mode @ ("SIMPLE" | "MUTUAL")) => {
                return Err(format!(
                    "{place}.tls.mode {mode} is not supported for Services: the mesh encrypts by itself"
                ));
            }
            Some(mode) => {
                return Err(format!("{place}.tls.mode: {mode:?} is none of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL"));
            }
        }
        let within = |name: &str| format!("{place}.{name}");
        Ok(TrafficPolicy {
            balancing: self.balancer.map(|one| balancing(one, &within("loadBalancer"))).transpose()?,
            limits: self.pool.map(|one| limits(one, &within("connectionPool"), notes)).transpose()?,
            outliers: self.outliers.map(|one| outliers(one, &within("outlierDetection"))).transpose()?,
        })
    }
}

fn time(text: Option<&String>, place: &str) -> Result<Option<Duration>, String> {
    let Some(text) = text else { return Ok(None) };
    let read = duration::istio(text);
    read.map(Some).map_err(|_| format!("{place}: {text:?} is not a duration such as 1h30m, 10s, 0.5s or 500ms"))
}

/// A time that is not zero.
fn some_time(text: Option<&String>, place: &str) -> Result<Option<Duration>, String> {
    match time(text, place)? {
        Some(Duration::ZERO) => Err(format!("{place}: at least 1ms is accepted")),
        time => Ok(time),
    }
}

fn balancing(written: &written::LoadBalancer, place: &str) -> Result<Balancing, String> {
    let method = match (written.simple.as_deref(), &written.consistent_hash) {
        (Some(_), Some(_)) => return Err(format!("{place}: both simple and consistentHash")),
        (None, Some(hash)) => Method::ConsistentHash(hash_key(hash, &format!("{place}.consistentHash"))?),
        (None | Some("" | "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN"), None) => Method::LeastRequest,
        (Some("ROUND_ROBIN"), None) => Method::RoundRobin,
        (Some("RANDOM"), None) => Method::Random,
        (Some("PASSTHROUGH"), None) => Method::Passthrough,
        (Some(other), None) => {
            let known = "LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH";
            return Err(format!("{place}.simple: {other:?} is none of {known}"));
        }
    };
    let warm_up = match (&written.warmup, &written.warmup_duration_secs) {
        (Some(warmup), _) => Some(warm_up(warmup, &format!("{place}.warmup"))?),
        (None, Some(_)) => {
            let place = format!("{place}.warmupDurationSecs");
            let duration = time(written.warmup_duration_secs.as_ref(), &place)?.unwrap_or_default();
            Some(WarmUp { duration, least_percent: LEAST_PERCENT, aggression: 1000 })
        }
        (None, None) => None,
    };
    let locality = written.locality_lb_setting.as_ref();
    let locality = locality.map(|setting| locality_policy(setting, &format!("{place}.localityLbSetting")));
    Ok(Balancing { method, warm_up, locality: locality.transpose()?.flatten() })
}

/// Istio's default.
const LEAST_PERCENT: u32 = 10;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounds are checked before")]
fn warm_up(written: &written::Warmup, place: &str) -> Result<WarmUp, String> {
    let Some(duration) = time(written.duration.as_ref(), &format!("{place}.duration"))? else {
        return Err(format!("{place}.duration is missing"));
    };
    let percent = written.minimum_percent.unwrap_or(f64::from(LEAST_PERCENT));
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("{place}.minimumPercent: {percent}: 0 to 100 are accepted"));
    }
    let aggression = written.aggression.unwrap_or(1.0);
    if !(0.001..=1000.0).contains(&aggression) {
        return Err(format!("{place}.aggression: {aggression}: more than 0 and at most 1000 are accepted"));
    }
    Ok(WarmUp { duration, least_percent: percent as u32, aggression: (aggression * 1000.0).round() as u32 })
}

fn hash_key(written: &written::ConsistentHash, place: &str) -> Result<HashKey, String> {
    let mut keys = Vec::new();
    if let Some(name) = &written.http_header_name {
        keys.push(HashKey::Header(name.to_ascii_lowercase().into()));
    }
    if let Some(cookie) = &written.http_cookie {
        if cookie.name.is_empty() {
            return Err(format!("{place}.httpCookie.name is missing"));
        }
        if !cookie.attributes.is_empty() {
            return Err(format!("{place}.httpCookie.attributes is not supported"));
        }
        keys.push(HashKey::Cookie(HashCookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_deref().map(Into::into),
            ttl: time(cookie.ttl.as_ref(), &format!("{place}.httpCookie.ttl"))?,
        }));
    }
    if written.use_source_ip == Some(true) {
        keys.push(HashKey::SourceAddress);
    }
    if let Some(name) = &written.http_query_parameter_name {
        keys.push(HashKey::Query(name.as_str().into()));
    }
    match (keys.pop(), keys.is_empty()) {
        (Some(key), true) => Ok(key),
        (Some(_), false) => Err(format!("{place}: more than one key")),
        (None, _) => {
            let known = "httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName";
            Err(format!("{place}: no key: one of {known} is needed"))
        }
    }
}

fn locality_policy(written: &written::LocalitySetting, place: &str) -> Result<Option<LocalityPolicy>, String> {
    if written.enabled == Some(false) {
        return Ok(Some(LocalityPolicy::Ignored));
    }
    let ways = [!written.distribute.is_empty(), !written.failover.is_empty(), !written.failover_priority.is_empty()];
    if ways.into_iter().filter(|there| *there).count() > 1 {
        return Err(format!("{place}: only one of distribute, failover, failoverPriority"));
    }
    if !written.distribute.is_empty() {
        let rule = |(at, rule): (usize, &written::Distribute)| {
            let total: u64 = rule.to.values().map(|weight| u64::from(*weight)).sum();
            if total != 100 {
                return Err(format!("{place}.distribute[{at}].to: the weights add up to {total}, not to 100"));
            }
            let to = rule.to.iter().map(|(to, weight)| (self::place(to), *weight)).collect();
            Ok(Distribution { from: self::place(&rule.from), to })
        };
        let rules = written.distribute.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        return Ok(Some(LocalityPolicy::Distribute(rules)));
    }
    if !written.failover_priority.is_empty() {
        let wanted = written.failover_priority.iter().map(|label| common(label, place)).collect::<Result<_, _>>()?;
        return Ok(Some(LocalityPolicy::Priority(wanted)));
    }
    if written.failover.iter().any(|pair| pair.from.is_empty() || pair.to.is_empty()) {
        return Err(format!("{place}.failover: both from and to are needed, each a region"));
    }
    let pairs = written.failover.iter().map(|pair| (pair.from.as_str().into(), pair.to.as_str().into()));
    Ok(Some(LocalityPolicy::Failover(pairs.collect())))
}

fn place(text: &str) -> Place {
    let mut parts = text.split('/').map(|part| (part != "*" && !part.is_empty()).then(|| part.into()));
    let mut next = || parts.next().flatten();
    Place { region: next(), zone: next(), subzone: next() }
}

fn common(label: &str, place: &str) -> Result<RoutingScope, String> {
    Ok(match label {
        "topology.kubernetes.io/region" | "failure-domain.beta.kubernetes.io/region" => RoutingScope::Region,
        "topology.kubernetes.io/zone" | "failure-domain.beta.kubernetes.io/zone" => RoutingScope::Zone,
        "topology.istio.io/subzone" => RoutingScope::Subzone,
        "kubernetes.io/hostname" => RoutingScope::Node,
        "topology.istio.io/cluster" => RoutingScope::Cluster,
        "topology.istio.io/network" => RoutingScope::Network,
        _ => {
            return Err(format!(
                "{place}.failoverPriority: {label:?} is not supported; topology.kubernetes.io/region and zone, \
                 topology.istio.io/subzone, cluster and network, and kubernetes.io/hostname are"
            ));
        }
    })
}

fn count(number: Option<i64>, place: &str) -> Result<Option<u32>, String> {
    let Some(number) = number else { return Ok(None) };
    let read = u32::try_from(number).map_err(|_| format!("{place}: {number}: 0 to {} are accepted", u32::MAX))?;
    // Istio's zero is «no bound».
    Ok((read > 0).then_some(read))
}

fn limits(
    written: &written::ConnectionPool,
    place: &str,
    notes: &mut BTreeSet<String>,
) -> Result<ConnectionPool, String> {
    let mut limits = ConnectionPool::default();
    if let Some(tcp) = &written.tcp {
        let within = |name: &str| format!("{place}.tcp.{name}");
        limits.connections = count(tcp.max_connections, &within("maxConnections"))?;
        limits.connect_timeout = some_time(tcp.connect_timeout.as_ref(), &within("connectTimeout"))?;
        limits.age = some_time(tcp.max_connection_duration.as_ref(), &within("maxConnectionDuration"))?;
        limits.tcp_idle = time(tcp.idle_timeout.as_ref(), &within("idleTimeout"))?;
        if tcp.tcp_keepalive.is_some() {
            notes.insert(format!("{} is without effect: tunnels have probes of their own", within("tcpKeepalive")));
        }
    }
    if let Some(http) = &written.http {
        let within = |name: &str| format!("{place}.http.{name}");
        limits.pending = count(http.http1_max_pending_requests, &within("http1MaxPendingRequests"))?;
        limits.requests = count(http.http2_max_requests, &within("http2MaxRequests"))?;
        limits.requests_per_connection = count(http.max_requests_per_connection, &within("maxRequestsPerConnection"))?;
        limits.retries = count(http.max_retries, &within("maxRetries"))?;
        limits.streams = count(http.max_concurrent_streams, &within("maxConcurrentStreams"))?;
        limits.http_idle = time(http.idle_timeout.as_ref(), &within("idleTimeout"))?;
        limits.version = match (http.h2_upgrade_policy.as_deref(), http.use_client_protocol) {
            (Some("UPGRADE"), Some(true)) => {
                return Err(format!("{place}.http: both h2UpgradePolicy UPGRADE and useClientProtocol"));
            }
            (Some("UPGRADE"), _) => EndpointVersion::Two,
            (None | Some("" | "DEFAULT" | "DO_NOT_UPGRADE"), Some(true)) => EndpointVersion::OfClient,
            (None | Some("" | "DEFAULT" | "DO_NOT_UPGRADE"), _) => EndpointVersion::OfPort,
            (Some(other), _) => {
                let known = "DEFAULT, DO_NOT_UPGRADE, UPGRADE";
                return Err(format!("{}: {other:?} is none of {known}", within("h2UpgradePolicy")));
            }
        };
    }
    Ok(limits)
}

fn outliers(written: &written::OutlierDetection, place: &str) -> Result<OutlierDetection, String> {
    let plain = OutlierDetection::default();
    let percent = |value: Option<u32>, plain: u32, name: &str| match value {
        Some(value) if value > 100 => Err(format!("{place}.{name}: {value}: 0 to 100 are accepted")),
        value => Ok(value.unwrap_or(plain)),
    };
    let interval = |text: Option<&String>, plain: Duration, name: &str| {
        Ok::<_, String>(some_time(text, &format!("{place}.{name}"))?.unwrap_or(plain))
    };
    let splits = written.split_external_local_origin_errors == Some(true);
    Ok(OutlierDetection {
        consecutive_5xx: written.consecutive_5xx_errors.unwrap_or(plain.consecutive_5xx),
        consecutive_gateway: written.consecutive_gateway_errors.or(written.consecutive_errors).unwrap_or_default(),
        consecutive_local: splits.then(|| written.consecutive_local_origin_failures.unwrap_or(5)),
        interval: interval(written.interval.as_ref(), plain.interval, "interval")?,
        base_ejection: interval(written.base_ejection_time.as_ref(), plain.base_ejection, "baseEjectionTime")?,
        most_percent: percent(written.max_ejection_percent, plain.most_percent, "maxEjectionPercent")?,
        least_healthy_percent: percent(written.min_health_percent, 0, "minHealthPercent")?,
    })
}
