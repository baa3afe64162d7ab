//! The checked configuration: typed, complete, shown at the admin port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use stillmesh_api::ControlPlane;
use stillmesh_core::model::Identity;
use stillmesh_core::snapshot::UnknownPolicies;
pub use stillmesh_proxy::settings::{Hbone, Keepalive};
use stillmesh_proxy::settings::{
    cluster_id, control_planes, drain, flows, hbone, keepalive, max_series, records, secret_ttl, text, trust_domain,
    unknown_policies, within,
};
use stillmesh_runtime::env::{Problems, Reader, parse_duration};

use super::raw::Raw;

/// A collector of spans of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HopSpans {
    /// A name or an address.
    pub host: String,
    /// Its port for OTLP over gRPC.
    pub port: u16,
    /// Of how many of a hundred connections it is told.
    pub percent: u8,
}

fn hop_spans(env: &mut Reader) -> Option<HopSpans> {
    let percent = |text: &str| text.parse().ok().filter(|percent: &u8| *percent <= 100);
    let percent = env.parse_with("HOP_SPANS_PERCENT", "0 to 100", percent).unwrap_or(100);
    let (host, port) = env.parse_with("HOP_SPANS_COLLECTOR", "host:port", |text| {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port: &u16| *port > 0)?;
        (!host.is_empty() && !host.contains('/')).then(|| (host.to_owned(), port))
    })?;
    Some(HopSpans { host, port, percent })
}

/// Every problem of the environment at once.
pub type ConfigErrors = Problems;

/// What ztunnel runs with.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// What was set.
    #[serde(skip)]
    pub raw: Raw,
    /// The control plane.
    #[serde(skip)]
    pub xds: ControlPlane,
    /// The certificate authority.
    #[serde(skip)]
    pub ca: ControlPlane,
    /// Id of the Kubernetes cluster.
    pub cluster_id: String,
    /// What else the control plane is told of this node.
    #[serde(skip)]
    pub metadata: BTreeMap<String, String>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Network of this node.
    pub network: String,
    /// Kubernetes node.
    pub node: String,
    /// ztunnel's own pod.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its address.
    pub instance_ip: Option<IpAddr>,
    /// ztunnel's own identity.
    pub identity: Identity,
    /// How pods are served.
    pub mode: Mode,
    /// Where the node agent listens.
    pub zds: PathBuf,
    /// Where listeners are handed over to the next ztunnel; `None` where they are not.
    pub handover: Option<PathBuf>,
    /// Where the node agent says what a probe is; `None` where it is not asked.
    pub probes: Option<PathBuf>,
    /// Listeners set SO_REUSEPORT.
    pub port_reuse: bool,
    /// Mark of our sockets.
    pub mark: NonZeroU32,
    /// Whether the source address is kept when delivering.
    pub source_address: SourceAddress,
    /// File of revoked certificates.
    pub crl: Option<PathBuf>,
    /// Life asked for certificates.
    pub secret_ttl: Duration,
    /// The DNS proxy; `None` where it does not run.
    pub dns: Option<Dns>,
    /// Whether IPv6 is used.
    pub ipv6: bool,
    /// The tunnels.
    pub hbone: Hbone,
    /// TCP keepalive; `None` where off.
    pub keepalive: Option<Keepalive>,
    /// How long open connections may go on after SIGTERM.
    pub drain: Duration,
    /// How long a pod's connections may go on after it left the mesh; `None` for what suits the node agent.
    pub pod_drain: Option<Duration>,
    /// Threads that carry connections.
    pub workers: Workers,
    /// Application tunnels are reached at loopback.
    pub localhost_app_tunnel: bool,
    /// The 200 describes the destination.
    pub response_baggage: bool,
    /// What a policy that has not arrived means.
    #[serde(skip)]
    pub unknown_policies: Option<UnknownPolicies>,
    /// Bounds.
    pub limits: Limits,
    /// Admin port.
    pub admin: SocketAddr,
    /// Metrics port.
    pub stats: SocketAddr,
    /// What records of decisions may take, bytes; 0: none are kept.
    pub records_bytes: usize,
    /// Who is told spans of connections.
    pub hop_spans: Option<HopSpans>,
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
}

/// How pods are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// All pods of the node that the agent hands over.
    Shared,
    /// None (`ENABLE_PROXY=false`).
    Off,
}

/// Whether the source address is kept when delivering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceAddress {
    /// Where the kernel permits it.
    Auto,
    /// Always; without it a connection fails.
    Keep,
    /// Never.
    Own,
}

/// The DNS proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Where it listens inside a pod.
    pub listen: Vec<SocketAddr>,
    /// Whose services win among equals.
    pub preferred_namespace: Option<String>,
    /// Queries of one pod at a time.
    pub in_flight: usize,
}

/// How many threads carry connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Workers(pub usize);

/// Bounds of what is held at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open connections of one pod.
    pub connections_per_pod: usize,
    /// TLS handshakes on this node.
    pub handshakes: usize,
    /// From TCP connect to the CONNECT's answer.
    pub connect: Duration,
    /// A TLS handshake that a peer began.
    pub handshake: Duration,
    /// Waiting for a captured pod's own workload.
    pub own_workload: Duration,
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        Self::read(Reader::process())
    }

    /// Reads from any reader.
    pub fn read(mut reader: Reader) -> Result<Self, ConfigErrors> {
        let raw = Raw::read(&reader);
        let env = &mut reader;
        let cluster_id = cluster_id(env);
        let (xds, ca) = control_planes(env, &cluster_id);
        let trust_domain = trust_domain(env);
        let pod_namespace = text(env, "POD_NAMESPACE").unwrap_or_else(|| "istio-system".to_owned());
        let account = text(env, "SERVICE_ACCOUNT").unwrap_or_else(|| "ztunnel".to_owned());
        let ipv6 = env.flag("IPV6_ENABLED", true);
        let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        for key in ["XDS_ON_DEMAND", "LOCAL_XDS", "LOCAL_XDS_PATH", "FAKE_CA", "TLS12_ENABLED"] {
            if env.string(key).is_some_and(|value| stillmesh_runtime::env::parse_bool(&value) != Some(false)) {
                env.problem(key, "nothing: this version does not support it");
            }
        }
        if env.string("PROXY_MODE").is_some_and(|mode| !mode.is_empty() && mode != "shared") {
            env.problem("PROXY_MODE", "shared: this version does not run beside one workload");
        }
        if env.string("COMPLIANCE_POLICY").is_some_and(|policy| !policy.trim().is_empty()) {
            env.problem("COMPLIANCE_POLICY", "nothing: this version does not support it");
        }
        let zds: PathBuf = text(env, "INPOD_UDS").unwrap_or_else(|| "/var/run/ztunnel/ztunnel.sock".to_owned()).into();
        let config = Self {
            raw,
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
            mode: if env.flag("ENABLE_PROXY", true) { Mode::Shared } else { Mode::Off },
            handover: beside(env, "HANDOVER_SOCKET", &zds, "handover.sock"),
            flows: beside(env, "FLOWS_PATH", &zds, "flows.json"),
            probes: beside(env, "PROBES_SOCKET", &zds, "probes.sock"),
            zds,
            port_reuse: env.flag("INPOD_PORT_REUSE", true),
            mark: env.parse_or("PACKET_MARK", DEFAULT_MARK, "1 to 4294967295"),
            source_address: match env.string("ENABLE_ORIG_SRC") {
                None => SourceAddress::Auto,
                Some(_) if env.flag("ENABLE_ORIG_SRC", true) => SourceAddress::Keep,
                Some(_) => SourceAddress::Own,
            },
            crl: text(env, "CRL_PATH").map(Into::into),
            secret_ttl: secret_ttl(env),
            dns: dns(env, ipv6),
            ipv6,
            hbone: hbone(env),
            records_bytes: records(env),
            hop_spans: hop_spans(env),
            flows_bytes: flows(env),
            keepalive: keepalive(env),
            drain: drain(env),
            pod_drain: env.parse_with("POD_DRAIN", "a duration such as 60s", parse_duration),
            workers: workers(env, cores()),
            localhost_app_tunnel: env.flag("LOCALHOST_APP_TUNNEL", true),
            response_baggage: env.flag("ENABLE_RESPONSE_BAGGAGE", true),
            unknown_policies: unknown_policies(env),
            limits: Limits {
                connections_per_pod: within(env, "MAX_CONNECTIONS_PER_POD", 16_384, 1, 1 << 20),
                handshakes: within(env, "MAX_HANDSHAKES", 1024, 1, 65_536),
                connect: Duration::from_secs(10),
                handshake: Duration::from_secs(10),
                own_workload: Duration::from_secs(5),
            },
            admin: env.parse_or("ADMIN_ADDRESS", SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)), "ip:port"),
            stats: env.parse_or("STATS_ADDRESS", SocketAddr::new(any, 15020), "ip:port"),
            readiness: env.parse_or("READINESS_ADDRESS", SocketAddr::new(any, 15021), "ip:port"),
            max_series: max_series(env),
            version: text(env, "ISTIO_META_ISTIO_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        };
        reader.finish()?;
        Ok(config)
    }
}

const DEFAULT_MARK: NonZeroU32 = NonZeroU32::new(1337).unwrap();

fn dns(env: &mut Reader, ipv6: bool) -> Option<Dns> {
    let on = env.flag("DNS_CAPTURE", true);
    let given: Option<SocketAddr> = env.parse_with("DNS_PROXY_ADDR", "ip:port, or localhost:port", |value| {
        let value = value.replace("localhost", "127.0.0.1");
        value.parse().ok()
    });
    let first = given.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 15053)));
    let mut listen = vec![first];
    if ipv6 && first.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        listen.push(SocketAddr::from((Ipv6Addr::LOCALHOST, first.port())));
    }
    let in_flight = within(env, "MAX_DNS_IN_FLIGHT", 1024, 1, 65_536);
    let preferred_namespace = text(env, "PREFERED_SERVICE_NAMESPACE");
    on.then_some(Dns { listen, preferred_namespace, in_flight })
}

/// Beside the agent's socket, where nothing else is said.
fn beside(env: &Reader, key: &str, zds: &Path, name: &str) -> Option<PathBuf> {
    match text(env, key) {
        None => Some(zds.with_file_name(name)),
        Some(path) if path == "none" => None,
        Some(path) => Some(path.into()),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn workers(env: &mut Reader, seen: usize) -> Workers {
    let limit: Option<usize> =
        env.parse_with("ZTUNNEL_CPU_LIMIT", "a number of cores from 1", |value| value.parse().ok().filter(|n| *n > 0));
    let cores = limit.unwrap_or(seen).max(1);
    let given = env.parse_with("ZTUNNEL_WORKER_THREADS", "a number, 0 for all cores, or 1% to 100%", |value| {
        if let Some(percent) = value.strip_suffix('%') {
            let percent: usize = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
            return Some((cores * percent).div_ceil(100).max(1));
        }
        let number: usize = value.parse().ok().filter(|number| *number <= 1024)?;
        Some(if number == 0 { cores } else { number })
    });
    Workers(given.unwrap_or_else(|| (cores / 4).max(2)))
}
