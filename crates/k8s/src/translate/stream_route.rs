//! TLSRoutes and TCPRoutes on Services (Gateway API, «GAMMA») to routes for waypoints (contract 7.4).

use stillmesh_core::model::Str;
use stillmesh_core::model::stream::{ServerName, StreamBackend, StreamMatch, StreamRule};

use super::Mesh;
use super::route::{Problem, Reader, References, Routed, Rules};
use crate::gateway::stream_route::{StreamRule as Written, TcpRoute, TlsRoute};
use crate::object::Kind;

/// Translates a TLSRoute; as [`super::http_route`] does. A backend that is not there has its share of the connections
/// refused.
pub fn tls_route(written: &TlsRoute, references: &impl References, mesh: &Mesh) -> Routed {
    let mut reader = Reader::new(Kind::TlsRoute, &written.metadata, &written.spec.parent_refs, references, mesh);
    let names = written.spec.hostnames.iter().map(|name| server_name(name)).collect::<Result<Vec<_>, _>>();
    let rules = names.map(|names| {
        let server_names = if names.is_empty() { vec![ServerName::Any] } else { names };
        let matches = vec![StreamMatch { server_names, port: None }];
        let rules = written.spec.rules.iter();
        Rules::streams(rules.map(|written| rule(&mut reader, written, matches.clone())).collect())
    });
    reader.finish(rules)
}

/// Translates a TCPRoute; as [`super::http_route`] does. A backend that is not there has its share of the connections
/// refused.
pub fn tcp_route(written: &TcpRoute, references: &impl References, mesh: &Mesh) -> Routed {
    let mut reader = Reader::new(Kind::TcpRoute, &written.metadata, &written.spec.parent_refs, references, mesh);
    let rules = written.spec.rules.iter();
    let rules = Rules::streams(rules.map(|written| rule(&mut reader, written, Vec::new())).collect());
    reader.finish(Ok(rules))
}

fn rule<R: References>(reader: &mut Reader<'_, R>, written: &Written, matches: Vec<StreamMatch>) -> StreamRule {
    let backends = written
        .backend_refs
        .iter()
        .map(|one| StreamBackend { backend: reader.backend(&one.backend), weight: one.weight.unwrap_or(1) });
    StreamRule { name: written.name.as_deref().map(Str::from), backends: backends.collect(), matches }
}

/// A name that clients of TLS may ask for: `*` stands for whole labels, at the beginning.
pub(super) fn server_name(text: &str) -> Result<ServerName, Problem> {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    if rest.is_empty() || (rest.contains('*') && text != "*") {
        let message = format!("{text:?} is no name that a client of TLS asks for: a.example and *.example are");
        return Err(Problem::new("UnsupportedValue", message));
    }
    Ok(ServerName::read(text))
}

#[cfg(test)]
mod tests;
