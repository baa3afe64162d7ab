//! What the Gateway API's own schema refuses, as far as it concerns waypoints, and labels that would mean nothing.

use std::collections::BTreeMap;

use super::check::{Flaws, Least, each, has_port, one_of, ports};
use super::names::Rule;
use super::node::Node;
use crate::gateway::binding::{DIRECT, FALLBACK, TRAFFIC, WAYPOINT_FOR};

pub(super) fn gateway(root: &Node, flaws: &mut Flaws) {
    text(root, "gatewayClassName", "the name of a GatewayClass, for example istio-waypoint", flaws);
    has_port(root, "spec.listeners[]", "port", flaws);
    ports(root, "spec.listeners[].port", Least::One, flaws);
    one_of(root, "spec.listeners[].allowedRoutes.namespaces.from", &["All", "Selector", "Same", "None"], flaws);
    let listeners = root.at_path(&["spec", "listeners"]);
    if listeners.map_or(&[][..], Node::items).is_empty() {
        let at = listeners.or(root.get("spec")).map_or(root.at, |node| node.at);
        let hint = "a waypoint has {name: mesh, port: 15008, protocol: HBONE}";
        flaws.add("MAN005", at, "spec.listeners", "no listener", hint);
    }
    let mut names = BTreeMap::new();
    for (index, listener) in listeners.map_or(&[][..], Node::items).iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        match listener.get("name").map(|name| (name.at, name.text())) {
            Some((at, Some(name))) if !Rule::Subdomain.accepts(name) => {
                let message = format!("{name:?} is not a name");
                flaws.add("MAN007", at, &format!("{path}.name"), message, Rule::Subdomain.accepted());
            }
            Some((at, Some(name))) => {
                if let Some(first) = names.insert(name, index) {
                    let message = format!("the name {name:?} is taken by spec.listeners[{first}]");
                    flaws.add("MAN007", at, &path, message, "the names of a Gateway's listeners differ");
                }
            }
            Some((_, None)) => {}
            None => flaws.add("MAN007", listener.at, &path, "the name is missing", "every listener needs a name"),
        }
        if listener.get("protocol").is_none_or(Node::is_null) {
            let hint = "a waypoint's listener has HBONE";
            flaws.add("MAN005", listener.at, &format!("{path}.protocol"), "the protocol is missing", hint);
        }
    }
    waypoint_for(root, flaws);
    let fallback = root.at_path(&["metadata", "annotations", FALLBACK]);
    if let Some((at, Some(word))) = fallback.map(|node| (node.at, node.text()))
        && word != DIRECT
    {
        let path = format!("metadata.annotations[{FALLBACK:?}]");
        flaws.warn("MAN005", at, &path, format!("unknown value {word:?}: without effect"), "direct is accepted");
    }
}

pub(super) fn gateway_class(root: &Node, flaws: &mut Flaws) {
    text(root, "controllerName", "who runs the class, for example istio.io/mesh-controller", flaws);
    waypoint_for(root, flaws);
}

pub(super) fn http_route(root: &Node, flaws: &mut Flaws) {
    let path = "spec.rules[].matches[].path.type";
    one_of(root, path, &["Exact", "PathPrefix", "RegularExpression"], flaws);
    for path in ["spec.rules[].matches[].headers[].type", "spec.rules[].matches[].queryParams[].type"] {
        one_of(root, path, &["Exact", "RegularExpression"], flaws);
    }
    route(
        root,
        "RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite or CORS",
        flaws,
    );
    each(root, "spec.rules[].matches[].path.value", &mut |node, path| {
        if let Some(text) = node.text().filter(|text| !text.starts_with('/')) {
            let message = format!("{text:?} is not a path");
            flaws.add("MAN005", node.at, path, message, "a path begins with /");
        }
    });
}

pub(super) fn grpc_route(root: &Node, flaws: &mut Flaws) {
    for path in ["spec.rules[].matches[].method.type", "spec.rules[].matches[].headers[].type"] {
        one_of(root, path, &["Exact", "RegularExpression"], flaws);
    }
    route(root, "RequestHeaderModifier, ResponseHeaderModifier or RequestMirror", flaws);
    each(root, "spec.rules[].matches[].method", &mut |node, path| {
        let text = |key: &str| node.get(key).and_then(Node::text).filter(|text| !text.is_empty());
        if text("service").is_none() && text("method").is_none() {
            let hint = "at least one of service and method is needed";
            flaws.add("MAN005", node.at, path, "neither a service nor a method", hint);
        }
        if matches!(text("type"), None | Some("Exact")) {
            for key in ["service", "method"] {
                if let Some(name) = text(key).filter(|name| name.contains('/')) {
                    let path = format!("{path}.{key}");
                    flaws.add(
                        "MAN005",
                        node.at,
                        &path,
                        format!("{name:?} is not a {key}"),
                        "a name without / is accepted",
                    );
                }
            }
        }
    });
}

pub(super) fn tls_route(root: &Node, flaws: &mut Flaws) {
    let name = |text: &str| !text.contains('*') && Rule::Subdomain.accepts(text);
    each(root, "spec.hostnames[]", &mut |node, path| {
        if let Some(text) = node.text().filter(|text| !name(text.strip_prefix("*.").unwrap_or(text))) {
            let hint = "a name such as a.example, or *.example";
            flaws.add("MAN005", node.at, path, format!("{text:?} is not a hostname"), hint);
        }
    });
    tcp_route(root, flaws);
}

pub(super) fn tcp_route(root: &Node, flaws: &mut Flaws) {
    ports(root, "spec.parentRefs[].port", Least::One, flaws);
    ports(root, "spec.rules[].backendRefs[].port", Least::One, flaws);
    let rules = root.at_path(&["spec", "rules"]);
    if rules.map_or(&[][..], Node::items).is_empty() {
        let at = rules.or(root.get("spec")).map_or(root.at, |node| node.at);
        flaws.add("MAN005", at, "spec.rules", "no rule", "a rule with backendRefs is needed");
    }
}

/// What all kinds of routes for requests have.
fn route(root: &Node, filters: &str, flaws: &mut Flaws) {
    ports(root, "spec.parentRefs[].port", Least::One, flaws);
    ports(root, "spec.rules[].backendRefs[].port", Least::One, flaws);
    for path in ["spec.rules[].filters[]", "spec.rules[].backendRefs[].filters[]"] {
        each(root, path, &mut |node, path| {
            if node.get("type").is_none_or(Node::is_null) {
                flaws.add("MAN005", node.at, &format!("{path}.type"), "the type is missing", filters);
            }
        });
    }
}

pub(super) fn reference_grant(root: &Node, flaws: &mut Flaws) {
    for (list, keys) in [("from", &["group", "kind", "namespace"][..]), ("to", &["group", "kind"][..])] {
        each(root, &format!("spec.{list}[]"), &mut |node, path| {
            for key in keys {
                if node.get(key).is_none_or(Node::is_null) {
                    let hint = "all of group, kind and (under from) namespace are needed";
                    flaws.add("MAN005", node.at, &format!("{path}.{key}"), format!("{key} is missing"), hint);
                }
            }
        });
    }
}

fn text(root: &Node, key: &str, hint: &str, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let node = spec.and_then(|spec| spec.get(key)).filter(|node| !node.is_null());
    if node.is_none_or(|node| node.text() == Some("")) {
        let at = node.or(spec).map_or(root.at, |node| node.at);
        flaws.add("MAN005", at, &format!("spec.{key}"), format!("{key} is missing"), hint);
    }
}

fn waypoint_for(root: &Node, flaws: &mut Flaws) {
    each(root, "metadata.labels", &mut |labels, path| {
        if let Some((at, Some(word))) = labels.get(WAYPOINT_FOR).map(|node| (node.at, node.text()))
            && !TRAFFIC.contains(&word)
        {
            let (path, message) =
                (format!("{path}[{WAYPOINT_FOR:?}]"), format!("unknown value {word:?}: counts as service"));
            flaws.warn("MAN005", at, &path, message, &format!("one of {} is accepted", TRAFFIC.join(", ")));
        }
    });
}
