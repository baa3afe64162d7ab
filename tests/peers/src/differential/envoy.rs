//! The same routes and policies in Envoy's words, as Istio writes them where it has words for them.

use std::cmp::Reverse;

use serde_json::{Value, json};
use stillmesh_core::model::StringMatch;
use stillmesh_core::model::access::{
    Condition, PathNormalization, PathPattern, RequestAction, RequestPolicy, Sense, Wanted,
};
use stillmesh_core::model::http::{
    Forward, HeaderEdit, HttpRoute, PathMatch, PathRewrite, Redirect, RedirectPort, RequestMatch, RouteAction,
    RouteBackend, RouteKind, RouteRule, TextMatch,
};

use super::table::Table;

/// A listener for a table.
pub fn listener(table: &Table, port: u16) -> Value {
    json!({
        "name": table.service,
        "address": socket("127.0.4.1", port),
        "filter_chains": [{"filters": [http(table)]}],
    })
}

/// The routing filter of Envoy.
pub fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": true,
        },
    })
}

/// What serves a table's requests.
pub fn http(table: &Table) -> Value {
    let mut filters = Vec::new();
    for action in [RequestAction::Deny, RequestAction::Allow] {
        let policies: Vec<&RequestPolicy> = table.policies.iter().filter(|policy| policy.action == action).collect();
        if !policies.is_empty() {
            filters.push(rbac(action, &policies));
        }
    }
    filters.push(router());
    let merges = table.level >= PathNormalization::MergeSlashes;
    let unescapes = table.level >= PathNormalization::DecodeAndMergeSlashes;
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": table.service,
            "codec_type": "HTTP1",
            "use_remote_address": true,
            "server_header_transformation": "PASS_THROUGH",
            "normalize_path": table.level >= PathNormalization::Base,
            "merge_slashes": merges,
            "path_with_escaped_slashes_action": if unescapes { "UNESCAPE_AND_FORWARD" } else { "KEEP_UNCHANGED" },
            "http_filters": filters,
            "route_config": {"virtual_hosts": virtual_hosts(table)},
        },
    })
}

/// A table's routes.
pub fn virtual_hosts(table: &Table) -> Value {
    json!([{"name": "all", "domains": ["*"], "routes": routes(&table.routes)}])
}

/// A backend.
pub fn cluster(name: &str, address: &str, port: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": socket(address, port)}});
    json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

/// All that it is started with.
pub fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// An address and a port.
pub fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// In Gateway API's order where that counts, written a second time here and not taken from the waypoint.
fn routes(objects: &[HttpRoute]) -> Vec<Value> {
    let any = RequestMatch::default();
    let mut entries: Vec<(&HttpRoute, usize, &RouteRule, usize, &RequestMatch)> = Vec::new();
    for object in objects {
        for (place, rule) in object.rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { vec![&any] } else { rule.matches.iter().collect() };
            entries.extend(matches.into_iter().enumerate().map(|(at, matched)| (object, place, rule, at, matched)));
        }
    }
    entries.sort_by_key(|(object, place, _, at, matched)| {
        let asked = match object.key.kind {
            RouteKind::VirtualService => None,
            _ => Some((
                Reverse(specific(matched.path.as_ref())),
                Reverse(matched.method.is_some()),
                Reverse(matched.headers.len()),
                Reverse(matched.query.len()),
            )),
        };
        (asked, object.created, object.key.name.clone(), *place, *at)
    });
    entries.into_iter().map(|(_, _, rule, _, matched)| entry(rule, matched)).collect()
}

fn specific(path: Option<&PathMatch>) -> (u8, usize) {
    match path {
        Some(PathMatch::Exact(path) | PathMatch::ExactIgnoringCase(path)) => (2, path.len()),
        Some(PathMatch::Segments(path) | PathMatch::Prefix(path) | PathMatch::PrefixIgnoringCase(path)) => {
            (1, path.len())
        }
        Some(PathMatch::Regex(pattern)) => (0, pattern.text().len()),
        None => (1, 0),
    }
}

fn entry(rule: &RouteRule, matched: &RequestMatch) -> Value {
    let mut entry = json!({"match": asked(matched)});
    match &rule.action {
        RouteAction::Forward(one) => {
            entry["route"] = forward(one, matched.path.as_ref());
            edits(&mut entry, "request_headers", &rule.request_headers);
        }
        RouteAction::Redirect(one) => entry["redirect"] = redirect(one, matched.path.as_ref()),
        RouteAction::Respond(one) => {
            entry["direct_response"] = json!({"status": one.status});
            if !one.body.is_empty() {
                entry["direct_response"]["body"] = json!({"inline_string": &*one.body});
            }
        }
    }
    edits(&mut entry, "response_headers", &rule.response_headers);
    entry
}

fn asked(matched: &RequestMatch) -> Value {
    let mut asked = match &matched.path {
        None => json!({"prefix": "/"}),
        Some(PathMatch::Segments(path)) if path.is_empty() => json!({"prefix": "/"}),
        Some(PathMatch::Exact(path)) => json!({"path": &**path}),
        Some(PathMatch::Segments(path)) => json!({"path_separated_prefix": &**path}),
        Some(PathMatch::Prefix(path)) => json!({"prefix": &**path}),
        Some(PathMatch::Regex(pattern)) => json!({"safe_regex": {"regex": &**pattern.text()}}),
        Some(PathMatch::ExactIgnoringCase(path)) => json!({"path": &**path, "case_sensitive": false}),
        Some(PathMatch::PrefixIgnoringCase(path)) => json!({"prefix": &**path, "case_sensitive": false}),
    };
    let mut headers = Vec::new();
    for (name, wanted) in [(":method", &matched.method), (":authority", &matched.authority)] {
        headers.extend(wanted.as_ref().map(|wanted| value(json!({"name": name}), wanted)));
    }
    headers.extend(matched.headers.iter().map(|one| value(json!({"name": &*one.name}), &one.value)));
    for one in &matched.without_headers {
        // As Istio writes it: a header that is not there is not as said.
        let missing = one.value != TextMatch::Present;
        let of = json!({"name": &*one.name, "invert_match": true, "treat_missing_header_as_empty": missing});
        headers.push(value(of, &one.value));
    }
    asked["headers"] = headers.into();
    asked["query_parameters"] =
        matched.query.iter().map(|one| value(json!({"name": &*one.name}), &one.value)).collect();
    asked
}

fn value(mut of: Value, wanted: &TextMatch) -> Value {
    match wanted {
        TextMatch::Exact(text) => of["string_match"] = json!({"exact": &**text}),
        TextMatch::Prefix(text) => of["string_match"] = json!({"prefix": &**text}),
        TextMatch::Regex(pattern) => of["string_match"] = json!({"safe_regex": {"regex": &**pattern.text()}}),
        TextMatch::Present => of["present_match"] = true.into(),
    }
    of
}

fn forward(forward: &Forward, path: Option<&PathMatch>) -> Value {
    let mut route = json!({});
    let name = |backend: &RouteBackend| match backend {
        RouteBackend::Service { service, .. } => service.hostname.split('.').next().unwrap_or_default().to_owned(),
        RouteBackend::Invalid { .. } => String::new(),
    };
    let clusters = forward.backends.iter().map(|backend| {
        let mut one = json!({"name": name(&backend.backend), "weight": backend.weight});
        edits(&mut one, "request_headers", &backend.request_headers);
        edits(&mut one, "response_headers", &backend.response_headers);
        one
    });
    route["weighted_clusters"] = json!({"clusters": clusters.collect::<Vec<_>>()});
    if let Some(host) = &forward.rewrite.authority {
        route["host_rewrite_literal"] = (&**host).into();
    }
    if let Some(retry) = &forward.retry {
        route["retry_policy"] = json!({"retry_on": "5xx", "num_retries": retry.attempts});
    }
    if let Some(rewrite) = &forward.rewrite.path {
        rewritten(&mut route, rewrite, path);
    }
    route
}

/// Envoy replaces what a path match describes; Gateway API means whole segments.
fn rewritten(of: &mut Value, rewrite: &PathRewrite, path: Option<&PathMatch>) {
    let regex = |pattern: &str, with: &str| json!({"pattern": {"regex": pattern}, "substitution": with});
    let (key, value) = match (rewrite, path) {
        (PathRewrite::Full(new), _) => ("regex_rewrite", regex("^/.*$", new)),
        (PathRewrite::Regex(one), _) => ("regex_rewrite", regex(one.pattern(), one.substitution())),
        (PathRewrite::Prefix(new), None) => ("regex_rewrite", regex("^/+", &format!("{}/", new.trim_end_matches('/')))),
        (PathRewrite::Prefix(new), Some(PathMatch::Segments(path))) if path.is_empty() => {
            ("regex_rewrite", regex("^/+", &format!("{}/", new.trim_end_matches('/'))))
        }
        // As Istio does: what is left of the path has its own slash.
        (PathRewrite::Prefix(new), Some(PathMatch::Segments(path))) if &**new == "/" => {
            ("regex_rewrite", regex(&format!("^{}/*", quoted(path)), "/"))
        }
        (PathRewrite::Prefix(new), Some(_)) => ("prefix_rewrite", (&**new).into()),
    };
    of[key] = value;
}

fn quoted(text: &str) -> String {
    let one = |char: char| {
        if char.is_ascii_alphanumeric() || "/%".contains(char) { char.to_string() } else { format!("\\{char}") }
    };
    text.chars().map(one).collect()
}

fn redirect(redirect: &Redirect, path: Option<&PathMatch>) -> Value {
    let code = match redirect.status {
        301 => "MOVED_PERMANENTLY",
        303 => "SEE_OTHER",
        307 => "TEMPORARY_REDIRECT",
        308 => "PERMANENT_REDIRECT",
        _ => "FOUND",
    };
    let mut one = json!({"response_code": code});
    if let Some(scheme) = &redirect.scheme {
        one["scheme_redirect"] = (&**scheme).into();
    }
    if let Some(host) = &redirect.host {
        one["host_redirect"] = (&**host).into();
    }
    if let RedirectPort::Number(port) = redirect.port {
        one["port_redirect"] = port.get().into();
    }
    match &redirect.path {
        Some(PathRewrite::Full(new)) => one["path_redirect"] = (&**new).into(),
        Some(rewrite) => rewritten(&mut one, rewrite, path),
        None => {}
    }
    one
}

fn edits(of: &mut Value, which: &str, edit: &HeaderEdit) {
    let header = |(name, value): &(std::sync::Arc<str>, std::sync::Arc<str>), action: &str| json!({"header": {"key": &**name, "value": &**value}, "append_action": action});
    let set = edit.set.iter().map(|pair| header(pair, "OVERWRITE_IF_EXISTS_OR_ADD"));
    let add = edit.add.iter().map(|pair| header(pair, "APPEND_IF_EXISTS_OR_ADD"));
    of[format!("{which}_to_add")] = set.chain(add).collect();
    of[format!("{which}_to_remove")] = edit.remove.iter().map(|name| Value::from(&**name)).collect();
}

fn rbac(action: RequestAction, policies: &[&RequestPolicy]) -> Value {
    let any = json!([{"any": true}]);
    let mut all = json!({});
    for policy in policies {
        let rules = policy.rules.iter().map(|rule| {
            let clauses = rule.clauses.iter().map(|clause| {
                let alternatives = clause.alternatives.iter().map(|alternative| {
                    let conditions: Vec<Value> = alternative.conditions.iter().map(condition).collect();
                    json!({"and_rules": {"rules": conditions}})
                });
                json!({"or_rules": {"rules": alternatives.collect::<Vec<_>>()}})
            });
            json!({"and_rules": {"rules": clauses.collect::<Vec<_>>()}})
        });
        all[policy.key.to_string()] = json!({"permissions": rules.collect::<Vec<_>>(), "principals": any});
    }
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": if action == RequestAction::Deny { "DENY" } else { "ALLOW" }, "policies": all},
        },
    })
}

fn condition(condition: &Condition) -> Value {
    let header = |name: &str, one: &StringMatch, any_case: bool| match one {
        StringMatch::Presence => json!({"header": {"name": name, "present_match": true}}),
        other => json!({"header": {"name": name, "string_match": string(other, any_case)}}),
    };
    let values: Vec<Value> = match &condition.wanted {
        Wanted::Method(values) => values.iter().map(|one| header(":method", one, false)).collect(),
        Wanted::Host(values) => values.iter().map(|one| header(":authority", one, true)).collect(),
        Wanted::Header { name, values } => values.iter().map(|one| header(name, one, false)).collect(),
        Wanted::Path(values) => values.iter().map(path).collect(),
        other => unreachable!("no policy asks for {}", other.attribute()),
    };
    let one_of = json!({"or_rules": {"rules": values}});
    match condition.sense {
        Sense::AnyOf => one_of,
        Sense::NoneOf => json!({"not_rule": one_of}),
    }
}

fn path(pattern: &PathPattern) -> Value {
    match pattern {
        PathPattern::Text(text) => json!({"url_path": {"path": string(text, false)}}),
        PathPattern::Template(template) => {
            let text = template.to_string().replace("{**}", "**").replace("{*}", "*");
            json!({"uri_template": {
                "name": "envoy.path.match.uri_template.uri_template_matcher",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                    "path_template": text,
                },
            }})
        }
    }
}

fn string(text: &StringMatch, any_case: bool) -> Value {
    let mut one = match text {
        StringMatch::Exact(text) => json!({"exact": &**text}),
        StringMatch::Prefix(text) => json!({"prefix": &**text}),
        StringMatch::Suffix(text) => json!({"suffix": &**text}),
        StringMatch::Presence => return json!({"safe_regex": {"regex": ".+"}}),
    };
    if any_case {
        one["ignore_case"] = true.into();
    }
    one
}
