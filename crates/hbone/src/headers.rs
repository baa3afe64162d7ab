//! What a CONNECT says of itself (contract 3.2): built by one end, read by the other. Reading never fails: what is
//! malformed is absent, and nothing is longer than [`LONGEST`].

use std::fmt::{self, Write};
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Str;

/// Source workload's facts.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Original source address and intended service.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// Trace of the connection.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Network of the sender, on the inner CONNECT of double HBONE.
pub const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// A longer header value is not read, bytes.
pub const LONGEST: usize = 8 << 10;

/// What most values take, bytes.
const USUAL: usize = 256;

/// Everything a CONNECT carries besides its authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// The source workload.
    pub baggage: Option<Baggage>,
    /// Where the connection comes from.
    pub forwarded: Option<Forwarded>,
    /// Its trace.
    pub traceparent: Option<Traceparent>,
    /// The sender's network, on the inner CONNECT of double HBONE.
    pub network: Option<String>,
}

impl ConnectHeaders {
    /// Reads what is there and well-formed.
    pub fn read(headers: &HeaderMap) -> Self {
        let text =
            |name| headers.get(name).filter(|value| value.len() <= LONGEST).and_then(|value| value.to_str().ok());
        Self {
            baggage: text(&BAGGAGE).map(Baggage::parse),
            forwarded: text(&FORWARDED).map(Forwarded::parse),
            traceparent: text(&TRACEPARENT).and_then(Traceparent::parse),
            network: text(&FORWARDED_NETWORK).map(str::to_owned),
        }
    }

    /// Writes what is set. Values that HTTP does not allow are left out.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(USUAL);
        let mut put = |name, value: Option<&dyn fmt::Display>| {
            let Some(value) = value else { return };
            text.clear();
            // Writing into a string does not fail.
            let _ = write!(text, "{value}");
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                headers.insert(name, value);
            }
        };
        put(BAGGAGE, self.baggage.as_ref().map(|baggage| baggage as _));
        put(FORWARDED, self.forwarded.as_ref().map(|forwarded| forwarded as _));
        put(TRACEPARENT, self.traceparent.as_ref().map(|traceparent| traceparent as _));
        put(FORWARDED_NETWORK, self.network.as_ref().map(|network| network as _));
    }
}

/// A workload's facts. Absent ones are omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<Str>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Str>,
    /// `k8s.<type>.name`: the type (`deployment`, `cronjob`, `pod`, `job`) and the name.
    pub workload: Option<(&'static str, Str)>,
    /// `service.name`.
    pub service: Option<Str>,
    /// `service.version`.
    pub revision: Option<Str>,
    /// `cloud.region`.
    pub region: Option<Str>,
    /// `cloud.availability_zone`.
    pub zone: Option<Str>,
}

/// Kinds of workload that baggage names.
const WORKLOAD_TYPES: [&str; 4] = ["deployment", "cronjob", "pod", "job"];

impl Baggage {
    /// Reads a header's value; unknown members are passed over, the first of equal ones counts.
    pub fn parse(text: &str) -> Self {
        let mut baggage = Self::default();
        for member in text.split(',') {
            // Properties behind a semicolon are not ours (W3C baggage section 3.2.1.1).
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            if value.is_empty() {
                continue;
            }
            let slot = match key {
                "k8s.cluster.name" => &mut baggage.cluster,
                "k8s.namespace.name" => &mut baggage.namespace,
                "service.name" => &mut baggage.service,
                "service.version" => &mut baggage.revision,
                "cloud.region" => &mut baggage.region,
                "cloud.availability_zone" => &mut baggage.zone,
                _ => {
                    let kind = key.strip_prefix("k8s.").and_then(|key| key.strip_suffix(".name"));
                    if let Some(kind) = kind.and_then(|kind| WORKLOAD_TYPES.into_iter().find(|known| *known == kind)) {
                        baggage.workload.get_or_insert_with(|| (kind, value.into()));
                    }
                    continue;
                }
            };
            slot.get_or_insert_with(|| value.into());
        }
        baggage
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut put = |key: fmt::Arguments<'_>, value: Option<&str>| -> fmt::Result {
            // A separator inside a value would make other members of it: such a value is no Kubernetes name.
            let Some(value) = value.filter(|value| !value.is_empty() && !value.contains([',', ';'])) else {
                return Ok(());
            };
            if !std::mem::take(&mut first) {
                f.write_char(',')?;
            }
            write!(f, "{key}={value}")
        };
        put(format_args!("k8s.cluster.name"), self.cluster.as_deref())?;
        put(format_args!("k8s.namespace.name"), self.namespace.as_deref())?;
        if let Some((kind, name)) = &self.workload {
            put(format_args!("k8s.{kind}.name"), Some(name))?;
        }
        put(format_args!("service.name"), self.service.as_deref())?;
        put(format_args!("service.version"), self.revision.as_deref())?;
        put(format_args!("cloud.region"), self.region.as_deref())?;
        put(format_args!("cloud.availability_zone"), self.zone.as_deref())
    }
}

/// `for="<ip:port>"` and `;host=<service>` (RFC 7239).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The original source.
    pub source: Option<SocketAddr>,
    /// The service that was meant.
    pub host: Option<String>,
}

impl Forwarded {
    /// Reads the first element of a header's value; quotes are optional.
    pub fn parse(text: &str) -> Self {
        let mut forwarded = Self::default();
        for pair in text.split(',').next().unwrap_or_default().split(';') {
            let Some((key, value)) = pair.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "for" => forwarded.source = value.parse().ok(),
                "host" if is_host(value) => forwarded.host = Some(value.to_owned()),
                _ => {}
            }
        }
        forwarded
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = self.source {
            write!(f, "for=\"{source}\"")?;
        }
        match self.host.as_deref().filter(|host| is_host(host)) {
            Some(host) if self.source.is_some() => write!(f, ";host={host}"),
            Some(host) => write!(f, "host={host}"),
            None => Ok(()),
        }
    }
}

/// What may stand behind `host=` without quotes: nothing that would end it or make another pair of it.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte))
}

/// A W3C trace context, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace; never 0.
    pub trace: u128,
    /// The span; never 0.
    pub span: u64,
    /// Flags.
    pub flags: u8,
}

impl Traceparent {
    /// A new trace from random bits, not sampled.
    pub fn new(trace: u128, span: u64) -> Self {
        Self { trace: trace.max(1), span: span.max(1), flags: 0 }
    }

    /// Reads a header's value (W3C trace context section 3.2); `None` where it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let mut hex = |length: usize| {
            let part = parts.next()?;
            let legal = part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            legal.then_some(part)
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let later = parts.next().is_some();
        let parsed = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        let legal = version != "ff" && !(version == "00" && later) && parsed.trace != 0 && parsed.span != 0;
        legal.then_some(parsed)
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// An authority as written: IPv6 in brackets.
pub fn authority_text(authority: &Authority) -> String {
    let mut text = String::with_capacity(USUAL / 4);
    // Writing into a string does not fail.
    let _ = match authority {
        Authority::Address(address) => write!(text, "{address}"),
        Authority::Name(name, port) => write!(text, "{name}:{port}"),
    };
    text
}

/// Reads `ip:port`, `[ip]:port` or `hostname:port`; `None` for anything else (contract 3.2: status 400).
pub fn parse_authority(text: &str) -> Option<Authority> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Authority::Address(address));
    }
    let (name, port) = text.rsplit_once(':')?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*');
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok())??;
    // All digits and dots would be an address, and a malformed one.
    let is_name = (1..=253).contains(&name.len())
        && name.bytes().all(legal)
        && name.bytes().any(|byte| byte.is_ascii_alphabetic());
    is_name.then(|| Authority::Name(name.into(), port))
}

#[cfg(test)]
mod tests;
