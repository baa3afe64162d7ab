//! Keys of the environment that mean the same for every proxy, read and checked.

use std::time::Duration;

use serde::Serialize;
use stillmesh_api::{ControlPlane, Root, Token};
use stillmesh_core::model::TrustDomain;
use stillmesh_core::snapshot::UnknownPolicies;
use stillmesh_hbone::{Limits, Memory};
use stillmesh_records::{DEFAULT_BUDGET, DEFAULT_FLOWS, SMALLEST_BUDGET, SMALLEST_FLOWS};
use stillmesh_runtime::env::{Reader, parse_duration};

/// The tunnels' sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hbone {
    /// Ceiling of a stream's window, bytes.
    pub stream_window_bytes: u32,
    /// Ceiling of a connection's window, bytes.
    pub connection_window_bytes: u32,
    /// Longest frame, bytes.
    pub frame_bytes: u32,
    /// What all tunnels of this process may hold together, bytes.
    pub memory_bytes: usize,
    /// Streams of one pooled connection.
    pub streams: u16,
    /// When an unused pooled connection is closed.
    pub unused: Duration,
}

impl Hbone {
    /// As the tunnels take them; times are the defaults.
    #[must_use]
    pub fn limits(&self, memory: Memory) -> Limits {
        Limits {
            stream_window: self.stream_window_bytes,
            connection_window: self.connection_window_bytes,
            frame: self.frame_bytes,
            client_streams: usize::from(self.streams),
            idle: self.unused,
            memory,
            ..Limits::default()
        }
    }
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes before giving up.
    pub retries: u32,
}

impl From<Keepalive> for stillmesh_runtime::sys::socket::Keepalive {
    fn from(keepalive: Keepalive) -> Self {
        Self { time: keepalive.time, interval: keepalive.interval, retries: keepalive.retries }
    }
}

const DEFAULT_CONTROL_PLANE: &str = "https://istiod.istio-system.svc:15012";
const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const LONGEST_SECRET: Duration = Duration::from_secs(90 * 24 * 3600);
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// A value without spaces around it; `None` where that is empty.
pub fn text(env: &Reader, key: &str) -> Option<String> {
    env.string(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Id of the Kubernetes cluster.
pub fn cluster_id(env: &Reader) -> String {
    text(env, "ISTIO_META_CLUSTER_ID").or_else(|| text(env, "CLUSTER_ID")).unwrap_or_else(|| "Kubernetes".to_owned())
}

/// The trust domain of the proxy's own identity.
pub fn trust_domain(env: &mut Reader) -> TrustDomain {
    env.parse_with("TRUST_DOMAIN", "1 to 255 of a-z, 0-9, '.', '-', '_'", |text| TrustDomain::new(text).ok())
        .unwrap_or_default()
}

/// What a policy that has not arrived means; `None`: as whoever sends them does it.
pub fn unknown_policies(env: &mut Reader) -> Option<UnknownPolicies> {
    env.parse_with("UNKNOWN_POLICIES", "refuse or allow", |text| match text {
        "refuse" => Some(UnknownPolicies::Refuse),
        "allow" => Some(UnknownPolicies::Allow),
        _ => None,
    })
}

/// The control plane and the certificate authority, which are one unless said otherwise.
pub fn control_planes(env: &mut Reader, cluster_id: &str) -> (ControlPlane, ControlPlane) {
    for key in ["XDS_ROOT_CA", "CA_ROOT_CA"] {
        if env.string(key).is_some_and(|value| value.trim() == "SYSTEM") {
            env.problem(key, "a file or PEM: this version does not use the system's roots");
        }
    }
    let xds_address = address(env, "XDS_ADDRESS").unwrap_or_else(|| DEFAULT_CONTROL_PLANE.to_owned());
    let ca_address = address(env, "CA_ADDRESS").unwrap_or_else(|| xds_address.clone());
    let xds_root = root(text(env, "XDS_ROOT_CA").unwrap_or_else(|| DEFAULT_ROOT.to_owned()));
    let ca_root = text(env, "CA_ROOT_CA").map_or_else(|| xds_root.clone(), root);
    let token = token(&text(env, "AUTH_TOKEN").unwrap_or_else(|| DEFAULT_TOKEN.to_owned()));
    let plane = |address, root, alt: &str, headers: &str| ControlPlane {
        address,
        root,
        alt_hostname: text(env, alt),
        token: token.clone(),
        cluster_id: cluster_id.to_owned(),
        headers: env.prefixed(headers).into_iter().collect(),
    };
    let xds = plane(xds_address, xds_root, "ALT_XDS_HOSTNAME", "XDS_HEADER_");
    (xds, plane(ca_address, ca_root, "ALT_CA_HOSTNAME", "CA_HEADER_"))
}

fn address(env: &mut Reader, key: &str) -> Option<String> {
    env.parse_with(key, "host:port or https://host:port", |value| {
        let authority = value.strip_prefix("https://").unwrap_or(value).trim_end_matches('/');
        let parsed: http::uri::Authority = authority.parse().ok()?;
        let plain = !authority.contains(['@', '/']);
        (!parsed.host().is_empty() && plain).then(|| match parsed.port() {
            Some(_) => format!("https://{authority}"),
            None => format!("https://{authority}:443"),
        })
    })
}

/// A root is a path, or PEM itself.
fn root(value: String) -> Root {
    if value.contains("-----BEGIN") { Root::Pem(value) } else { Root::File(value.into()) }
}

/// A token is a file where it looks like a path or is one, else itself.
fn token(value: &str) -> Token {
    let is_path = value.starts_with('/') || value.starts_with("./") || std::path::Path::new(value).is_file();
    if is_path { Token::File(value.into()) } else { Token::Literal(value.to_owned()) }
}

/// The life asked for certificates.
pub fn secret_ttl(env: &mut Reader) -> Duration {
    let parse = |value: &str| {
        let ttl = value.parse().map(Duration::from_secs).ok().or_else(|| parse_duration(value))?;
        (!ttl.is_zero() && ttl <= LONGEST_SECRET).then_some(ttl)
    };
    let given = env.parse_with("SECRET_TTL", "seconds, or a duration such as 24h; up to 90 days", parse);
    given.unwrap_or(Duration::from_secs(24 * 3600))
}

/// How many label sets one metric may have (`METRICS_MAX_SERIES`, see [`crate::series`]).
pub fn max_series(env: &mut Reader) -> usize {
    within(env, "METRICS_MAX_SERIES", crate::series::MOST, 100, 1_000_000)
}

/// A number within bounds.
pub fn within(env: &mut Reader, key: &str, default: usize, least: usize, most: usize) -> usize {
    let accepted = format!("{least} to {most}");
    let parse = |value: &str| value.parse().ok().filter(|number| (least..=most).contains(number));
    env.parse_with(key, &accepted, parse).unwrap_or(default)
}

/// A number within bounds.
pub fn within_u32(env: &mut Reader, key: &str, default: u32, least: u32, most: u32) -> u32 {
    let accepted = format!("{least} to {most}");
    let parse = |value: &str| value.parse().ok().filter(|number| (least..=most).contains(number));
    env.parse_with(key, &accepted, parse).unwrap_or(default)
}

/// The tunnels' sizes.
pub fn hbone(env: &mut Reader) -> Hbone {
    const LARGEST_WINDOW: u32 = (1 << 31) - 1;
    Hbone {
        stream_window_bytes: within_u32(env, "HTTP2_STREAM_WINDOW_SIZE", 4 << 20, 65_535, LARGEST_WINDOW),
        connection_window_bytes: within_u32(env, "HTTP2_CONNECTION_WINDOW_SIZE", 16 << 20, 65_535, LARGEST_WINDOW),
        frame_bytes: within_u32(env, "HTTP2_FRAME_SIZE", 1 << 20, 16_384, (1 << 24) - 1),
        memory_bytes: env
            .parse_with("HBONE_MEMORY_LIMIT", "16Mi to 64Gi, or bytes", memory)
            .unwrap_or(stillmesh_hbone::DEFAULT_MEMORY_BYTES),
        streams: env
            .parse_with("POOL_MAX_STREAMS_PER_CONNECTION", "1 to 65535", |value| value.parse().ok().filter(|n| *n > 0))
            .unwrap_or(100),
        unused: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
    }
}

/// What the records of decisions may take, bytes; 0: none are kept.
pub fn records(env: &mut Reader) -> usize {
    const LARGEST: usize = 1 << 30;
    let parse = |value: &str| {
        let bytes = bytes(value)?;
        (bytes == 0 || (SMALLEST_BUDGET..=LARGEST).contains(&bytes)).then_some(bytes)
    };
    env.parse_with("DECISION_RECORDS_MEMORY", "0, or 256Ki to 1Gi", parse).unwrap_or(DEFAULT_BUDGET)
}

/// What flows may take, bytes; 0: none are kept.
pub fn flows(env: &mut Reader) -> usize {
    const LARGEST: usize = 1 << 30;
    let parse = |value: &str| {
        let bytes = bytes(value)?;
        (bytes == 0 || (SMALLEST_FLOWS..=LARGEST).contains(&bytes)).then_some(bytes)
    };
    env.parse_with("FLOWS_MEMORY", "0, or 256Ki to 1Gi", parse).unwrap_or(DEFAULT_FLOWS)
}

fn memory(value: &str) -> Option<usize> {
    bytes(value).filter(|bytes| (16 << 20..=64 << 30).contains(bytes))
}

/// Bytes, or Ki, Mi, Gi as Kubernetes writes them.
fn bytes(value: &str) -> Option<usize> {
    const UNITS: [(&str, usize); 3] = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((value.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((value, 0));
    number.trim().parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// TCP keepalive; `None` where it is off.
pub fn keepalive(env: &mut Reader) -> Option<Keepalive> {
    let keepalive = Keepalive {
        time: env.duration("KEEPALIVE_TIME", Duration::from_secs(180)),
        interval: env.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
        retries: within_u32(env, "KEEPALIVE_RETRIES", 9, 1, 127),
    };
    env.flag("KEEPALIVE_ENABLED", true).then_some(keepalive)
}

/// Contract 2.5: the grace period less 5 s, less 1 s up to 10 s, at least 1 s; 5 s where nothing is set.
pub fn drain(env: &mut Reader) -> Duration {
    let grace: Option<u64> = env.parse("TERMINATION_GRACE_PERIOD_SECONDS", "a whole number of seconds");
    let from_grace = grace.map_or(5, |grace| if grace <= 10 { grace.saturating_sub(1) } else { grace - 5 }.max(1));
    env.duration("CONNECTION_TERMINATION_DEADLINE", Duration::from_secs(from_grace))
}
