//! One connection as people read it. Pure.

use std::fmt::Write as _;

use stillmesh_k8s::translate;
use stillmesh_records::{Hop, Told, short};

use super::ask::Asked;
use super::join::Connection;

/// The story of a connection.
pub(crate) fn of(connection: &Connection) -> String {
    let mut text = heading(connection);
    for (number, told) in connection.hops.iter().enumerate() {
        // What a later hop has refused, it says itself.
        let is_told_below = connection.hops.iter().skip(number + 1).any(|later| later.refused);
        let _ = write!(text, "\n  {}. {}", number + 1, hop(told, is_told_below));
    }
    let first = connection.hops.first();
    if first.is_some_and(|told| told.hop == Hop::Inbound && !told.tunnelled && !told.direct) {
        text.push_str("\n  (it came in clear text: no tunnel of the mesh carried it from its client)");
    } else if first.is_some_and(|told| told.hop != Hop::Outbound) && !is_simulated(connection) {
        text.push_str("\n  (the client's own tunnel has no record of it: older than its records, or another mesh's)");
    }
    text
}

fn heading(connection: &Connection) -> String {
    let told = connection.hops.first();
    let source = told.map(source).unwrap_or_default();
    let destination = told.map(destination).unwrap_or_default();
    let is_open = !connection.refused && connection.hops.iter().any(|told| told.live);
    let state = match (connection.refused, is_open) {
        (true, _) => "REFUSED",
        (false, true) => "open",
        (false, false) if is_simulated(connection) => "allowed",
        (false, false) => {
            if connection.hops.iter().any(|told| !told.error.is_empty()) {
                "failed"
            } else {
                "carried"
            }
        }
    };
    if is_simulated(connection) {
        return format!("{source} → {destination}: {state}");
    }
    format!("{source} → {destination}: {state}\n  id {}, at {}", connection.id, told.map(at).unwrap_or_default())
}

/// Who asked.
pub(super) fn source(told: &Told) -> String {
    named(&told.source.workload, &told.source.address)
}

/// Whether it has never been: no record is without an id.
fn is_simulated(connection: &Connection) -> bool {
    connection.id.is_empty()
}

/// Who was meant.
pub(super) fn destination(told: &Told) -> String {
    let to = &told.destination;
    if !to.service.is_empty() {
        let host = to.service.split_once('/').map_or(to.service.as_str(), |(_, host)| host);
        let port = port(&to.address).or(port(&to.authority)).filter(|_| told.hop == Hop::Outbound);
        return port.map_or_else(|| format!("service {host}"), |port| format!("service {host}:{port}"));
    }
    let address = if told.hop == Hop::Outbound { &to.address } else { &to.upstream };
    named(&to.endpoint, if address.is_empty() { &to.address } else { address })
}

/// `namespace/name (address)`, or what there is of it.
fn named(uid: &str, address: &str) -> String {
    match (short(uid), address) {
        ("", "") => "somebody".to_owned(),
        ("", address) => address.to_owned(),
        (name, "") => name.to_owned(),
        (name, address) => format!("{name} ({address})"),
    }
}

/// `namespace/name` of a uid.
fn port(address: &str) -> Option<&str> {
    address.rsplit_once(':').map(|(_, port)| port)
}

/// A time as records have it, microseconds since 1970; none beyond what the calendar has.
pub(crate) fn timestamp(micros: u64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_microsecond(i64::try_from(micros).unwrap_or(i64::MAX)).ok()
}

fn at(told: &Told) -> String {
    timestamp(told.began_us()).map(|time| format!("{time:.3}")).unwrap_or_default()
}

/// One hop: what was seen, what was decided, what to do.
fn hop(told: &Told, is_told_below: bool) -> String {
    let mut text = format!("{} ({}): ", told.by, told.hop.as_str());
    let to = &told.destination;
    match told.hop {
        Hop::Outbound => {
            let _ = write!(text, "captured from {}; ", named(&told.source.workload, &told.source.address));
            let _ = write!(text, "dialled {}", to.address);
            if !to.service.is_empty() {
                let _ = write!(text, ", service {}", to.service);
            }
            if !to.upstream.is_empty() && (!told.refused || !to.endpoint.is_empty()) {
                let how = match (told.tunnelled, told.direct) {
                    (true, _) => "through a tunnel",
                    (_, true) => "straight, on the same node",
                    (false, false) => "as it is",
                };
                let _ = write!(text, "; to {} {how}", named(&to.endpoint, &to.upstream));
            }
        }
        Hop::Inbound => {
            let _ = match (told.tunnelled || told.direct, told.source.identity.as_str()) {
                (true, "") => write!(text, "from {}", told.source.address),
                (true, identity) => write!(text, "from {identity}"),
                (false, _) => write!(text, "clear text from {}", named(&told.source.workload, &told.source.address)),
            };
            let _ = write!(text, "; for {}", named(&to.endpoint, &to.upstream));
        }
        Hop::Connection => {
            let _ = write!(text, "from {}; for {}", told.source.identity, to.authority);
            if !to.endpoint.is_empty() {
                let _ = write!(text, "; to {}", named(&to.endpoint, &to.upstream));
            }
        }
        Hop::Request => {
            let _ = write!(text, "{} {}{}", told.method, told.host, told.path);
            if !to.endpoint.is_empty() {
                let _ = write!(text, "; to {}", named(&to.endpoint, &to.upstream));
            }
            if let Some(status) = told.status {
                let _ = write!(text, "; answered {status}");
            }
        }
    }
    let mut add = |line: String| text.push_str(&format!("\n     {line}"));
    let verdict = if told.refused { "refused: " } else { "" };
    if !told.reason.is_empty() || !told.because.is_empty() {
        let because = if told.because.is_empty() { &told.error } else { &told.because };
        add(format!("{verdict}{}{}{because}", told.reason, if because.is_empty() { "" } else { ": " }));
    }
    if !told.error.is_empty() && !told.because.is_empty() {
        add(format!("error: {}", told.error));
    }
    for miss in &told.misses {
        add(format!(
            "nearest: rule {} of {} wants {} {}, seen is {}",
            miss.rule, miss.policy, miss.attribute, miss.wanted, miss.seen
        ));
    }
    if let Some(now) = &told.now {
        add(format!("as policies are now: {now}"));
    }
    if let Some(remedy) = remedy(told).filter(|_| !is_told_below) {
        add(format!("what to do: {remedy}"));
    }
    if !told.id.is_empty() {
        add(numbers(told));
    }
    text
}

/// What to do about a refusal.
fn remedy(told: &Told) -> Option<String> {
    let (namespace, policy) = told.object.split_once('/').unwrap_or_default();
    if let Some(service) = translate::waypoint_only_service(policy) {
        return Some(format!(
            "dial service {namespace}/{service}: HTTP policies guard it, and so its endpoints take connections from its \
             waypoint alone (annotation {}={} on the Service takes them from everybody)",
            translate::BYPASS,
            translate::BYPASS_ALLOW
        ));
    }
    (told.refused && !told.remedy.is_empty()).then(|| told.remedy.clone())
}

/// Flags in words: those of whoever tells it.
fn flags(told: &Told) -> String {
    let flags = told.flags.as_str();
    let meaning: fn(&str) -> Option<&'static str> = match told.hop {
        Hop::Outbound | Hop::Inbound => stillmesh_ztunnel::record::meaning,
        Hop::Connection | Hop::Request => stillmesh_waypoint::record::meaning,
    };
    let words: Vec<&str> = flags.split(',').filter_map(meaning).collect();
    if words.is_empty() { flags.to_owned() } else { format!("{flags} ({})", words.join("; ")) }
}

/// Flags, retries, times, bytes.
fn numbers(told: &Told) -> String {
    let mut parts = Vec::new();
    if !matches!(told.flags.as_str(), "" | "-") {
        parts.push(format!("flag {}", flags(told)));
    }
    if told.retries > 0 {
        parts.push(format!("{} more {}", told.retries, if told.retries == 1 { "try" } else { "tries" }));
    }
    if let Some(grpc) = told.grpc {
        parts.push(format!("grpc-status {grpc}"));
    }
    if told.decide_us > 0 {
        parts.push(format!("decided in {}", time(u64::from(told.decide_us))));
    }
    if told.open_us > 0 {
        let what = if told.hop == Hop::Request { "answered" } else { "open" };
        parts.push(format!("{what} after {}", time(u64::from(told.open_us))));
    }
    parts.push(format!("{} {}", if told.live { "open for" } else { "over after" }, time(told.total_us)));
    parts.push(format!("{} B from the client, {} B to it", told.received, told.sent));
    parts.join(", ")
}

fn time(microseconds: u64) -> String {
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        1000..1_000_000 => format!("{:.1} ms", microseconds as f64 / 1e3),
        _ => format!("{:.1} s", microseconds as f64 / 1e6),
    }
}

/// How far back records reach, for whoever has found none.
pub(super) fn reach(asked: &[Asked]) -> String {
    let answered: Vec<String> = asked
        .iter()
        .filter(|asked| asked.error.is_none() && asked.is_on)
        .map(|asked| match asked.reaches_back_s {
            Some(seconds) => format!("{} (for {})", asked.by, time(seconds.saturating_mul(1_000_000))),
            None => format!("{} (none yet)", asked.by),
        })
        .collect();
    if answered.is_empty() {
        return "nobody who was asked has records".to_owned();
    }
    let what = "a connection that no tunnel saw, that is older, or that has been pushed out by newer ones is not found";
    format!("records were looked for at {}; {what} (--since, DECISION_RECORDS_MEMORY)", answered.join(", "))
}
