//! GRPCRoutes on Services (Gateway API, GEP-1016) to routes for waypoints (contract 7.4). A method is a path on the wire, so
//! that these are routes for HTTP with paths of one form.

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{Forward, PathMatch, RequestMatch, RouteAction, RouteRule};

use super::Mesh;
use super::http_route::headers;
use super::route::{Filters, Problem, Reader, References, Routed, Rules, unsupported};
use crate::gateway::grpc_route::{GrpcMatch, GrpcMethod, GrpcRoute, GrpcRule};
use crate::gateway::http_route::HttpFilter;
use crate::object::Kind;

/// Translates a route; as [`super::http_route`] does.
pub fn grpc_route(written: &GrpcRoute, references: &impl References, mesh: &Mesh) -> Routed {
    let mut reader = Reader::new(Kind::GrpcRoute, &written.metadata, &written.spec.parent_refs, references, mesh);
    let rules: Result<_, _> = written.spec.rules.iter().map(|written| rule(&mut reader, written)).collect();
    reader.finish(rules.map(Rules::requests))
}

fn rule<R: References>(reader: &mut Reader<'_, R>, written: &GrpcRule) -> Result<RouteRule, Problem> {
    if written.session_persistence.is_some() {
        return Err(unsupported("sessionPersistence"));
    }
    known(&written.filters)?;
    let filters = Filters::read(&written.filters, &mut |backend| reader.backend(backend))?;
    let mut backends = Vec::new();
    for backend in &written.backend_refs {
        known(&backend.filters)?;
        backends.push(reader.weighted(backend)?);
    }
    Ok(RouteRule {
        name: written.name.as_deref().map(Str::from),
        matches: written.matches.iter().map(request_match).collect::<Result<_, _>>()?,
        action: RouteAction::Forward(Forward { backends, mirrors: filters.mirrors, ..Forward::default() }),
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        fault: None,
        cors: None,
    })
}

/// Filters that are for HTTPRoutes only are none here.
fn known(filters: &[HttpFilter]) -> Result<(), Problem> {
    const KNOWN: [&str; 3] = ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"];
    match filters.iter().find(|filter| !KNOWN.contains(&filter.type_.as_str())) {
        Some(other) => Err(unsupported(&format!("filter {} in a GRPCRoute", other.type_))),
        None => Ok(()),
    }
}

fn request_match(written: &GrpcMatch) -> Result<RequestMatch, Problem> {
    let path = written.method.as_ref().map(path).transpose()?.flatten();
    Ok(RequestMatch { path, headers: headers(&written.headers)?, ..RequestMatch::default() })
}

/// `None`: any service and method.
fn path(written: &GrpcMethod) -> Result<Option<PathMatch>, Problem> {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (set(&written.service), set(&written.method));
    let described = |(service, method): (Option<&str>, Option<&str>)| {
        let path = PathMatch::grpc(service, method);
        path.map_err(|error| Problem::new("UnsupportedValue", error.to_string()))
    };
    match (written.type_.as_deref(), service.as_deref(), method.as_deref()) {
        (_, None, None) => Ok(None),
        (None | Some("Exact"), Some(service), Some(method)) => {
            Ok(Some(PathMatch::Exact(format!("/{service}/{method}").into())))
        }
        (None | Some("Exact"), Some(service), None) => Ok(Some(PathMatch::segments(&format!("/{service}")))),
        (None | Some("Exact"), None, Some(method)) => {
            let method: String = method.chars().flat_map(escaped).collect();
            described((None, Some(&method))).map(Some)
        }
        (Some("RegularExpression"), service, method) => described((service, method)).map(Some),
        (Some(other), ..) => Err(unsupported(&format!("a method match of type {other:?}"))),
    }
}

/// A character as an expression that describes it.
fn escaped(one: char) -> impl Iterator<Item = char> {
    (!one.is_ascii_alphanumeric() && one != '_').then_some('\\').into_iter().chain([one])
}

#[cfg(test)]
mod tests;
