//! Where a connection goes that a waypoint carries as it is (contract 7.4): by the name that its client asks for, where it
//! is TLS, and by the routes on the service that it dialled.

use std::num::NonZeroU16;
use std::sync::Arc;

use super::balance::{Stream, weighted};
use super::{Refusal, Target};
use crate::attrs::{Opening, StreamAttrs};
use crate::explain::Reason;
use crate::model::http::{HttpRoute, RouteBackend};
use crate::model::stream::StreamRule;
use crate::model::{AppProtocol, Service, ServicePort};
use crate::snapshot::{Snapshot, StreamEntry};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// What it is carried to.
    pub target: Target,
    /// The route that says so, and which of its rules; `None`: no route is about it, and it goes to what was dialled.
    pub by: Option<(Arc<HttpRoute>, usize)>,
}

/// What of a connection decides where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No route is about it: it goes to what was dialled.
    Nothing,
    /// Where it was dialled.
    Port,
    /// Whether it is TLS, and which name its client asks for.
    Opening,
}

/// What must be known of connections to `target` from a namespace before [`stream`] can be asked.
pub fn asked(snapshot: &Snapshot, target: &Target, client_namespace: &str) -> Asked {
    let Target::Service { service, port, .. } = target else { return Asked::Nothing };
    let mut entries = entries(snapshot, service, port, client_namespace).peekable();
    match entries.peek() {
        None => Asked::Nothing,
        // They come first.
        Some(first) if first.server_name().is_some() => Asked::Opening,
        Some(_) => Asked::Port,
    }
}

/// Where a connection goes. With routes on its port that do not take it, it is refused.
pub fn stream(snapshot: &Snapshot, attrs: &StreamAttrs<'_>) -> Result<Streamed, Refusal> {
    let dialled = || Streamed { target: attrs.target.clone(), by: None };
    let Target::Service { service, port, .. } = attrs.target else { return Ok(dialled()) };
    let mut entries = entries(snapshot, service, port, attrs.client_namespace).peekable();
    if entries.peek().is_none() {
        return Ok(dialled());
    }
    let takes = |entry: &&StreamEntry| match (entry.server_name(), attrs.opening) {
        (None, _) => true,
        (Some(wanted), Opening::Tls(name)) => wanted.holds(name),
        (Some(_), Opening::Bytes) => false,
    };
    let number = port.mapping.service_port;
    let taken = entries.find(takes).and_then(|entry| Some((entry, entry.rule()?)));
    let Some((entry, rule)) = taken else {
        return Err(Reason::NoRoute { service: service.key.clone(), port: number }.into());
    };
    let invalid = |problem: &str| {
        let route = entry.route.key.to_string().into();
        Refusal::from(Reason::BackendInvalid { route, problem: problem.into() })
    };
    let backend = chosen(rule, attrs.entropy).ok_or_else(|| invalid("it has no backend with a weight"))?;
    match backend {
        RouteBackend::Invalid { problem } => Err(invalid(problem)),
        RouteBackend::Service { service, port, subset } => {
            let unknown = || invalid(&format!("service {service} is not known here"));
            let service = snapshot.service(service).ok_or_else(unknown)?;
            let number = port.map_or(number, NonZeroU16::get);
            let port = service.port(number).ok_or_else(|| {
                let service = service.key.clone();
                Refusal::from(Reason::NoServicePort { service, port: number })
            })?;
            let target =
                Target::Service { service: service.clone(), port: *port, address: None, subset: subset.clone() };
            Ok(Streamed { target, by: Some((entry.route.clone(), entry.rule_index)) })
        }
    }
}

/// The entries about a port, in order. A port that is said to be anything but TLS has none that ask for its names: nobody
/// waits there for a client that may not speak first.
fn entries<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    port: &'a ServicePort,
    client_namespace: &str,
) -> impl Iterator<Item = &'a StreamEntry> {
    let number = port.mapping.service_port;
    let may_be_tls = matches!(port.protocol(), AppProtocol::Tls | AppProtocol::Unknown);
    let table = snapshot.streams(&service.key, number, Some(client_namespace));
    let entries = table.into_iter().flat_map(|table| table.entries());
    entries.filter(move |entry| entry.is_for_port(number) && (may_be_tls || entry.server_name().is_none()))
}

fn chosen(rule: &StreamRule, entropy: u64) -> Option<&RouteBackend> {
    let weights = rule.backends.iter().map(|backend| u64::from(backend.weight));
    let index = weighted(entropy, Stream::Backend, weights)?;
    rule.backends.get(index).map(|backend| &backend.backend)
}

#[cfg(test)]
mod tests;
