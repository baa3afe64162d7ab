//! The environment, read once. Keys that ztunnel has too mean the same here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use stillmesh_api::ControlPlane;
use stillmesh_core::model::Identity;
use stillmesh_core::snapshot::UnknownPolicies;
use stillmesh_proxy::settings::{
    Hbone, Keepalive, cluster_id, control_planes, drain, flows, hbone, keepalive, max_series, records, secret_ttl,
    text, trust_domain, unknown_policies, within,
};
use stillmesh_runtime::env::{Problems, Reader};

use crate::authenticate::Settings as KeySettings;

/// What the waypoint runs with.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The control plane.
    #[serde(skip)]
    pub xds: ControlPlane,
    /// The certificate authority.
    #[serde(skip)]
    pub ca: ControlPlane,
    /// Id of the Kubernetes cluster.
    pub cluster_id: String,
    /// What else the control plane is told of this waypoint.
    #[serde(skip)]
    pub metadata: BTreeMap<String, String>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Network that it is on.
    pub network: String,
    /// Kubernetes node.
    pub node: String,
    /// Its pod.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its address.
    pub instance_ip: Option<IpAddr>,
    /// Its identity.
    pub identity: Identity,
    /// Whose `x-forwarded-for` and `x-forwarded-client-cert` are believed: this mesh's gateways.
    pub gateways: Vec<Identity>,
    /// File of further roots that hosts of issuers' keys are trusted by, beside the system's.
    pub keys_root: Option<PathBuf>,
    /// When issuers' keys are fetched.
    #[serde(skip)]
    pub keys: KeySettings,
    /// File of revoked certificates.
    pub crl: Option<PathBuf>,
    /// Life asked for certificates.
    pub secret_ttl: Duration,
    /// The tunnels.
    pub hbone: Hbone,
    /// TCP keepalive; `None` where off.
    pub keepalive: Option<Keepalive>,
    /// How long what is open may go on after SIGTERM.
    pub drain: Duration,
    /// Bounds.
    pub limits: Limits,
    /// HBONE port.
    pub listen: SocketAddr,
    /// Admin port.
    pub admin: SocketAddr,
    /// Metrics port.
    pub stats: SocketAddr,
    /// What records of decisions may take, bytes; 0: none are kept.
    pub records_bytes: usize,
    /// What flows may take, bytes; 0: none are kept.
    pub flows_bytes: usize,
    /// Where flows are kept on disk; `None`: in memory alone.
    pub flows: Option<PathBuf>,
    /// Readiness port.
    pub readiness: SocketAddr,
    /// Version shown in metrics.
    pub version: String,
    /// Label sets that one metric may have.
    pub max_series: usize,
    /// What a policy that has not arrived means; else as whoever sends them does it.
    #[serde(skip)]
    pub unknown_policies: Option<UnknownPolicies>,
}

/// Bounds of what is held at a time, and of what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections of ztunnels; more wait in the kernel's queue.
    pub connections: usize,
    /// TLS handshakes; more are refused.
    pub handshakes: usize,
    /// Requests and TCP connections being carried; more are refused.
    pub requests: usize,
    /// A TLS handshake that a peer began.
    pub handshake: Duration,
    /// Finding and opening a way to an endpoint, all tries together.
    pub connect: Duration,
    /// Waiting for the waypoint's own workload.
    pub own_workload: Duration,
    /// How long a client's first bytes are waited for where a port does not say what it speaks. From then on whoever speaks
    /// first decides: a client that speaks HTTP, or a server.
    pub detection: Duration,
    /// How long a client's HTTP connection may be idle.
    pub idle: Duration,
    /// How long a request's head may take from its first byte; HTTP/1.1. The first one of a connection has as long for its first
    /// line, and again for the rest; one that begins right behind another request has 25 ms more.
    pub head: Duration,
    /// How long nothing may pass on a client's HTTP connection while requests are under way, on one stream of HTTP/2, or on what
    /// was upgraded: what is stuck, or held back by a client that does not read, ends.
    pub stream_idle: Duration,
    /// From about then on (up to a tenth earlier, at random) a client's connection, its tunnel included, takes no new requests:
    /// further replicas get their share.
    pub client_age: Duration,
    /// How long an idle HTTP/1.1 connection is left to its client once a drain has begun, at most half of the time that is
    /// left. HTTP/1.1 has no way to say that it ends but in an answer: closed at once, it would break the request that is
    /// on its way.
    pub quiet: Duration,
    /// How long a connection to an endpoint may be idle.
    pub upstream_idle: Duration,
    /// From then on a connection to an endpoint takes no new requests.
    pub upstream_age: Duration,
    /// What a request's or a response's header lines may take together, bytes.
    pub head_bytes: usize,
    /// What is kept of a request's body for another try, bytes.
    pub replay_bytes: usize,
    /// Copies of requests under way; more are not sent.
    pub mirrors: usize,
    /// How many of a service's requests under way may be retries, percent.
    pub retry_percent: usize,
    /// Requests at a time on one HTTP/2 connection, either side.
    pub concurrent: u32,
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, Problems> {
        Self::read(Reader::process())
    }

    /// Reads from any reader.
    pub fn read(mut reader: Reader) -> Result<Self, Problems> {
        let env = &mut reader;
        let cluster_id = cluster_id(env);
        let (xds, ca) = control_planes(env, &cluster_id);
        let trust_domain = trust_domain(env);
        let pod_namespace = text(env, "POD_NAMESPACE").unwrap_or_else(|| "default".to_owned());
        let account = text(env, "SERVICE_ACCOUNT").unwrap_or_else(|| "waypoint".to_owned());
        let any = if env.flag("IPV6_ENABLED", true) {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        let identities = |text: &str| {
            let listed = text.split(',').map(str::trim).filter(|one| !one.is_empty());
            listed.map(|one| one.parse().ok()).collect::<Option<Vec<Identity>>>()
        };
        let config = Self {
            xds,
            ca,
            cluster_id,
            metadata: env.prefixed("ISTIO_META_"),
            cluster_domain: text(env, "CLUSTER_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned()),
            network: text(env, "NETWORK").unwrap_or_default(),
            node: text(env, "NODE_NAME").unwrap_or_default(),
            pod_name: text(env, "POD_NAME").unwrap_or_default(),
            identity: Identity::new(trust_domain, pod_namespace.as_str(), account.as_str()),
            pod_namespace,
            instance_ip: env.parse("INSTANCE_IP", "an IP address"),
            gateways: env
                .parse_with("GATEWAY_IDENTITIES", "spiffe://… URIs, with commas between them", identities)
                .unwrap_or_default(),
            keys_root: text(env, "JWKS_ROOT_CA").map(Into::into),
            keys: KeySettings {
                refresh: env.duration("JWKS_REFRESH_INTERVAL", Duration::from_secs(300)),
                rotation: env.duration("JWKS_UNKNOWN_KEY_INTERVAL", Duration::from_secs(10)),
                ..KeySettings::default()
            },
            crl: text(env, "CRL_PATH").map(Into::into),
            secret_ttl: secret_ttl(env),
            hbone: hbone(env),
            records_bytes: records(env),
            flows_bytes: flows(env),
            flows: text(env, "FLOWS_PATH").map(Into::into),
            keepalive: keepalive(env),
            drain: drain(env),
            limits: limits(env),
            listen: env.parse_or("HBONE_ADDRESS", SocketAddr::new(any, 15008), "ip:port"),
            admin: env.parse_or("ADMIN_ADDRESS", SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)), "ip:port"),
            stats: env.parse_or("STATS_ADDRESS", SocketAddr::new(any, 15020), "ip:port"),
            readiness: env.parse_or("READINESS_ADDRESS", SocketAddr::new(any, 15021), "ip:port"),
            max_series: max_series(env),
            version: text(env, "ISTIO_META_ISTIO_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            unknown_policies: unknown_policies(env),
        };
        reader.finish()?;
        Ok(config)
    }
}

fn limits(env: &mut Reader) -> Limits {
    Limits {
        connections: within(env, "MAX_CONNECTIONS", 4096, 1, 1 << 20),
        handshakes: within(env, "MAX_HANDSHAKES", 1024, 1, 65_536),
        requests: within(env, "MAX_REQUESTS", 16_384, 1, 1 << 20),
        handshake: Duration::from_secs(10),
        connect: Duration::from_secs(10),
        own_workload: Duration::from_secs(5),
        detection: env.duration("PROTOCOL_DETECTION_TIMEOUT", Duration::from_millis(100)),
        idle: bound(env, "IDLE_TIMEOUT", Duration::from_secs(300)),
        head: bound(env, "HEADER_TIMEOUT", Duration::from_secs(10)),
        stream_idle: bound(env, "STREAM_IDLE_TIMEOUT", Duration::from_secs(3600)),
        client_age: bound(env, "CLIENT_CONNECTION_AGE", Duration::from_secs(300)),
        quiet: env.duration("DRAIN_QUIET_PERIOD", Duration::from_secs(5)),
        upstream_idle: bound(env, "UPSTREAM_IDLE_TIMEOUT", Duration::from_secs(60)),
        upstream_age: Duration::from_secs(600),
        head_bytes: within(env, "MAX_HEADER_BYTES", 64 << 10, 8 << 10, 1 << 20),
        replay_bytes: within(env, "MAX_REPLAY_BYTES", 64 << 10, 0, 1 << 20),
        mirrors: within(env, "MAX_MIRRORED_REQUESTS", 1024, 0, 65_536),
        retry_percent: within(env, "RETRY_BUDGET_PERCENT", 20, 0, 100),
        concurrent: crate::upstream::connections::CONCURRENT,
    }
}

/// A bound in time; of zero: none, as in Istio and Envoy.
fn bound(env: &mut Reader, key: &str, default: Duration) -> Duration {
    Some(env.duration(key, default)).filter(|bound| !bound.is_zero()).unwrap_or(NEVER)
}

/// Longer than anything lives; unlike the longest duration it can be reckoned with.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Limits {
    /// How old one client's connection may become.
    pub fn client_age(&self) -> Duration {
        self.client_age.mul_f64(rand::random_range(0.9..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_environment_is_a_waypoint_at_the_meshs_ports() {
        let config = Config::read(Reader::from_values::<&str, &str>([])).unwrap();
        assert_eq!(config.identity.to_string(), "spiffe://cluster.local/ns/default/sa/waypoint");
        assert_eq!((config.listen.port(), config.admin.port()), (15008, 15000));
        assert_eq!((config.stats.port(), config.readiness.port()), (15020, 15021));
        assert!(config.admin.ip().is_loopback() && config.gateways.is_empty());
        assert_eq!(config.drain, Duration::from_secs(5));
    }

    #[test]
    fn a_bound_of_zero_is_none() {
        let limits = |pairs: &[(&str, &str)]| Config::read(Reader::from_values(pairs.to_vec())).unwrap().limits;
        let set = limits(&[("STREAM_IDLE_TIMEOUT", "2s"), ("IDLE_TIMEOUT", "0")]);
        assert_eq!((set.stream_idle, set.idle), (Duration::from_secs(2), NEVER));
        assert!(limits(&[("CLIENT_CONNECTION_AGE", "0s")]).client_age() > NEVER / 2);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let bad = [("XDS_ADDRESS", "http://istiod"), ("GATEWAY_IDENTITIES", "gateway"), ("MAX_REQUESTS", "0")];
        let text = Config::read(Reader::from_values(bad)).unwrap_err().to_string();
        for (key, value) in bad {
            assert!(text.contains(key) && text.contains(value), "{key} is not in {text}");
        }
    }

    #[test]
    fn gateways_are_identities_with_commas_between_them() {
        let given = "spiffe://td/ns/a/sa/in, spiffe://td/ns/b/sa/out";
        let config = Config::read(Reader::from_values([("GATEWAY_IDENTITIES", given)])).unwrap();
        let read: Vec<String> = config.gateways.iter().map(ToString::to_string).collect();
        assert_eq!(read, ["spiffe://td/ns/a/sa/in", "spiffe://td/ns/b/sa/out"]);
    }
}
