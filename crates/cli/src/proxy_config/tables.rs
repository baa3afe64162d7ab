//! What is shown of a waypoint's dump: which items, in which order, in which columns. Pure.

use serde_json::Value;

use crate::cluster::value::{list, map, text};
use crate::cluster::zc::{self, heads, or_none};

/// A part of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Listeners,
    Routes,
    Clusters,
    Endpoints,
    Policies,
    Secrets,
}

/// What is about some service or port only.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
}

impl Filter {
    fn takes(&self, host: &Value, port: &Value) -> bool {
        self.host.as_deref().is_none_or(|wanted| {
            let rest = text(host).strip_prefix(wanted);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }) && self.port.is_none_or(|wanted| *port == wanted)
    }
}

/// Items and their table; its first row are the headings.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    pub(super) items: Vec<Value>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Part {
    pub(super) const ALL: [Self; 6] =
        [Self::Listeners, Self::Routes, Self::Clusters, Self::Endpoints, Self::Policies, Self::Secrets];

    /// What its items are called.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Listeners => "listeners",
            Self::Routes => "routes",
            Self::Clusters => "clusters",
            Self::Endpoints => "endpoints",
            Self::Policies => "policies",
            Self::Secrets => "secrets",
        }
    }

    /// The part of a dump.
    pub(super) fn section(self, dump: &Value, filter: &Filter) -> Section {
        match self {
            Self::Listeners => listeners(dump, filter),
            Self::Routes => routes(dump, filter),
            Self::Clusters => clusters(dump, filter),
            Self::Endpoints => endpoints(dump, filter),
            Self::Policies => policies(dump),
            Self::Secrets => secrets(dump),
        }
    }
}

fn listeners(dump: &Value, filter: &Filter) -> Section {
    let mut rows = heads(&["ADDRESSES", "PORT", "MATCH", "DESTINATION"]);
    let mut items = Vec::new();
    if filter.host.is_none() && filter.port.is_none() {
        let (address, port) = text(&dump["config"]["listen"]).rsplit_once(':').unwrap_or_default();
        rows.push([address, port, "HBONE", "what is bound to it, below"].map(str::to_owned).to_vec());
    }
    for service in list(&dump["bound"]) {
        let mut shown = false;
        for port in list(&service["ports"]).filter(|port| filter.takes(&service["hostname"], &port["port"])) {
            shown = true;
            let vips: Vec<&str> = list(&service["vips"]).map(text).collect();
            let mut to: Vec<String> =
                routes_of(dump, service, &port["port"]).map(|route| key_of(&route["key"])).collect();
            if to.is_empty() {
                to.push(format!("{}:{}", text(&service["hostname"]), port["port"]));
            }
            let address = if vips.is_empty() { text(&service["hostname"]).to_owned() } else { vips.join(",") };
            rows.push(vec![address, port["port"].to_string(), protocol(&port["protocol"]).to_owned(), to.join(", ")]);
        }
        if shown {
            items.push(service.clone());
        }
    }
    Section { items, rows }
}

/// How a port's protocol is called.
fn protocol(value: &Value) -> &str {
    match text(value) {
        "Http1" => "HTTP",
        "Http2" => "HTTP/2",
        "Grpc" => "gRPC",
        "Tcp" => "TCP",
        "Tls" => "TLS",
        _ => "ALL",
    }
}

/// `Kind namespace/name`.
fn key_of(key: &Value) -> String {
    format!("{} {}/{}", text(&key["kind"]), text(&key["namespace"]), text(&key["name"]))
}

/// Routes that are attached to a port of a service.
fn routes_of<'a>(dump: &'a Value, service: &'a Value, port: &'a Value) -> impl Iterator<Item = &'a Value> {
    let key = format!("{}/{}", text(&service["namespace"]), text(&service["hostname"]));
    let is_parent = move |parent: &Value| {
        parent["service"] == key.as_str() && (parent["port"].is_null() || parent["port"] == *port)
    };
    list(&dump["routes"]).filter(move |route| list(&route["parents"]).any(&is_parent))
}

fn routes(dump: &Value, filter: &Filter) -> Section {
    let mut rows = heads(&["NAME", "VHOST NAME", "MATCH", "DESTINATION"]);
    let mut items: Vec<Value> = Vec::new();
    for service in list(&dump["bound"]) {
        for port in list(&service["ports"]).filter(|port| filter.takes(&service["hostname"], &port["port"])) {
            let host = format!("{}:{}", text(&service["hostname"]), port["port"]);
            let before = rows.len();
            for route in routes_of(dump, service, &port["port"]) {
                let name = key_of(&route["key"]);
                for rule in list(&route["rules"]) {
                    rows.push(vec![
                        name.clone(),
                        host.clone(),
                        any(&rule["matches"], request),
                        action(&rule["action"]),
                    ]);
                }
                for rule in list(&route["streams"]) {
                    let to = backends(&rule["backends"]);
                    let to = if to.is_empty() { "refused".to_owned() } else { to };
                    rows.push(vec![name.clone(), host.clone(), any(&rule["matches"], stream), to]);
                }
                if !items.contains(route) {
                    items.push(route.clone());
                }
            }
            if rows.len() == before {
                rows.push(vec!["default".to_owned(), host.clone(), "/*".to_owned(), host.clone()]);
            }
        }
    }
    Section { items, rows }
}

/// Alternatives, or that everything is meant.
fn any(matches: &Value, one: fn(&Value) -> String) -> String {
    let all: Vec<String> = list(matches).map(one).collect();
    if all.is_empty() { "/*".to_owned() } else { all.join(" | ") }
}

/// What is asked of a request.
fn request(wanted: &Value) -> String {
    let mut words = Vec::new();
    if let Some((kind, path)) = map(&wanted["path"]).next() {
        words.push(match kind.as_str() {
            "segments" => format!("{}/*", text(path).trim_end_matches('/')),
            "prefix" => format!("{}*", text(path)),
            "exactIgnoringCase" => format!("{} (any case)", text(path)),
            "prefixIgnoringCase" => format!("{}* (any case)", text(path)),
            _ => value(&wanted["path"]),
        });
    }
    for key in ["method", "authority", "scheme"] {
        if !wanted[key].is_null() {
            words.push(format!("{key}={}", value(&wanted[key])));
        }
    }
    for (key, sign) in [("headers", ""), ("withoutHeaders", "not ")] {
        words.extend(list(&wanted[key]).map(|one| format!("{sign}{}: {}", text(&one["name"]), value(&one["value"]))));
    }
    words.extend(list(&wanted["query"]).map(|one| format!("?{}={}", text(&one["name"]), value(&one["value"]))));
    for (key, sign) in [("claims", ""), ("withoutClaims", "not ")] {
        let path = |one: &Value| list(&one["path"]).map(text).collect::<Vec<_>>().join(".");
        words.extend(list(&wanted[key]).map(|one| format!("{sign}claim {}: {}", path(one), value(&one["value"]))));
    }
    if words.is_empty() { "/*".to_owned() } else { words.join(" ") }
}

/// What is asked of a connection.
fn stream(wanted: &Value) -> String {
    let names: Vec<String> = list(&wanted["serverNames"]).map(value).collect();
    if names.is_empty() { "*".to_owned() } else { format!("TLS {}", names.join(",")) }
}

/// What is asked of a text: `exact`, `prefix*`, `~regex`, `*`.
fn value(wanted: &Value) -> String {
    match map(wanted).next() {
        Some((kind, text)) => {
            let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
            match kind.as_str() {
                "prefix" => format!("{text}*"),
                "suffix" => format!("*{text}"),
                "regex" => format!("~{text}"),
                _ => text,
            }
        }
        None => "*".to_owned(),
    }
}

fn action(action: &Value) -> String {
    match map(action).next() {
        Some((kind, forward)) if kind == "forward" => {
            let to = backends(&forward["backends"]);
            if to.is_empty() { "refused: no backend".to_owned() } else { to }
        }
        Some((kind, redirect)) if kind == "redirect" => {
            let host = redirect["host"].as_str().unwrap_or_default();
            let path = map(&redirect["path"]).next().map(|(kind, path)| match kind.as_str() {
                "full" => text(path).to_owned(),
                _ => format!("{}*", text(path)),
            });
            let to = format!("{host}{}", path.unwrap_or_default());
            format!("redirect {}{}{to}", redirect["status"], if to.is_empty() { "" } else { " to " })
        }
        Some((kind, respond)) if kind == "respond" => format!("answer {}", respond["status"]),
        Some((kind, _)) => kind.clone(),
        None => String::new(),
    }
}

/// The host of `namespace/host`.
fn host(service: &Value) -> &str {
    text(service).split_once('/').map_or(text(service), |(_, host)| host)
}

/// Where it goes, with weights where there are several.
fn backends(all: &Value) -> String {
    let several = list(all).count() > 1;
    let one = |one: &Value| {
        let to = match map(&one["backend"]).next() {
            Some((kind, service)) if kind == "service" => {
                let port = if service["port"].is_null() { String::new() } else { format!(":{}", service["port"]) };
                let subset = service["subset"].as_str().map(|name| format!(" subset {name}")).unwrap_or_default();
                format!("{}{port}{subset}", host(&service["service"]))
            }
            _ => "invalid".to_owned(),
        };
        if several { format!("{to} ({})", one["weight"]) } else { to }
    };
    list(all).map(one).collect::<Vec<_>>().join(", ")
}

fn clusters(dump: &Value, filter: &Filter) -> Section {
    let mut rows = heads(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    let mut items = Vec::new();
    for one in list(&dump["clusters"]).filter(|one| filter.takes(&one["hostname"], &one["port"])) {
        let rules: Vec<&str> = list(&one["destinationRules"]).map(text).collect();
        rows.push(vec![
            text(&one["hostname"]).to_owned(),
            one["port"].to_string(),
            or_none(text(&one["subset"])),
            "inbound-vip".to_owned(),
            protocol(&one["protocol"]).to_owned(),
            rules.join(","),
        ]);
        items.push(one.clone());
    }
    Section { items, rows }
}

fn endpoints(dump: &Value, filter: &Filter) -> Section {
    let mut rows = heads(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER", "WORKLOAD", "PROTOCOL", "UNDER WAY"]);
    let mut items = Vec::new();
    for one in list(&dump["clusters"]).filter(|one| filter.takes(&one["hostname"], &one["port"])) {
        let subset = one["subset"].as_str().map(|name| format!("|{name}")).unwrap_or_default();
        let cluster = format!("{}:{}{subset}", text(&one["hostname"]), one["port"]);
        for endpoint in list(&one["endpoints"]) {
            let addresses: Vec<&str> = list(&endpoint["addresses"]).map(text).collect();
            rows.push(vec![
                or_none(&addresses.join(",")),
                text(&endpoint["status"]).to_uppercase(),
                if endpoint["leftOut"] == true { "FAILED" } else { "OK" }.to_owned(),
                cluster.clone(),
                text(&endpoint["workload"]).to_owned(),
                text(&endpoint["protocol"]).to_owned(),
                endpoint["underWay"].to_string(),
            ]);
        }
        items.push(one.clone());
    }
    Section { items, rows }
}

fn policies(dump: &Value) -> Section {
    let mut rows = heads(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE", "KIND"]);
    let mut items = Vec::new();
    let mut row = |key: &str, rest: [String; 3]| {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        rows.push([namespace.to_owned(), name.to_owned()].into_iter().chain(rest).collect());
    };
    for access in list(&dump["accesses"]) {
        let Some((kind, one)) = map(access).next() else { continue };
        let (kind, action) = match kind.as_str() {
            "Policy" => ("AuthorizationPolicy", text(&one["action"])),
            "Authentication" => ("RequestAuthentication", "-"),
            "Settings" => ("MeshConfig", "-"),
            other => (other, "-"),
        };
        let services: Vec<&str> = list(&one["attached"]["to"]).map(host).collect();
        let scope = if one["attached"].is_null() {
            "-".to_owned()
        } else if services.is_empty() {
            "everything".to_owned()
        } else {
            services.join(",")
        };
        let doubt = if one["unreadable"].is_string() { " (unreadable)" } else { "" };
        let dry = if one["dryRun"] == true { " (dry run)" } else { "" };
        row(text(&one["key"]), [format!("{action}{dry}{doubt}"), scope, kind.to_owned()]);
        items.push(access.clone());
    }
    for policy in list(&dump["policies"]) {
        let cell = |key: &str| text(&policy[key]).to_owned();
        row(
            &format!("{}/{}", cell("namespace"), cell("name")),
            [cell("action"), cell("scope"), "of connections".to_owned()],
        );
        items.push(policy.clone());
    }
    Section { items, rows }
}

fn secrets(dump: &Value) -> Section {
    let (items, mut rows) = zc::certificates_of(dump);
    if let Some(head) = rows.first_mut().and_then(|row| row.first_mut()) {
        *head = "RESOURCE NAME".to_owned();
    }
    Section { items, rows }
}
