//! What Istio's validating webhook refuses of a VirtualService or DestinationRule: rules that say nothing, or two things at once.

use super::check::{Flaws, Least, each, one_of, ports};
use super::node::Node;
use crate::duration;

/// What a rule does, of which it does one.
const ACTIONS: [&str; 4] = ["route", "redirect", "directResponse", "delegate"];

pub(super) fn virtual_service(root: &Node, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let hosts = spec.and_then(|spec| spec.get("hosts"));
    let http = spec.and_then(|spec| spec.get("http")).map_or(&[][..], Node::items);
    // One without hosts is there for others to delegate to.
    if hosts.is_none_or(|hosts| hosts.items().is_empty()) && http.is_empty() {
        let at = hosts.or(spec).map_or(root.at, |node| node.at);
        flaws.add("MAN005", at, "spec.hosts", "no host", "the name of a Service, short or whole, or *");
    }
    each(root, "spec.http[]", &mut |rule, path| {
        let there: Vec<&str> = ACTIONS.into_iter().filter(|key| rule.get(key).is_some_and(is_something)).collect();
        match there.as_slice() {
            [_] => {}
            [] => {
                let hint = "a route with a destination, a redirect, a directResponse or a delegate is needed";
                flaws.add("MAN005", rule.at, path, "the rule does nothing", hint);
            }
            [one, other, ..] => {
                let hint = "a rule does one thing";
                flaws.add("MAN005", rule.at, path, format!("both {one} and {other}"), hint);
            }
        }
    });
    for path in [
        "spec.http[].timeout",
        "spec.http[].retries.perTryTimeout",
        "spec.http[].retries.backoff",
        "spec.http[].fault.delay.fixedDelay",
        "spec.http[].corsPolicy.maxAge",
    ] {
        each(root, path, &mut |node, path| {
            if let Some(text) = node.text()
                && duration::istio(text).is_err()
            {
                let hint = "a duration such as 1h30m, 10s, 0.5s or 500ms is accepted";
                flaws.add("MAN005", node.at, path, format!("{text:?} is not a duration"), hint);
            }
        });
    }
    for path in [
        "spec.http[].match[].port",
        "spec.http[].route[].destination.port.number",
        "spec.http[].mirror.port.number",
        "spec.http[].mirrors[].destination.port.number",
        "spec.http[].redirect.port",
    ] {
        ports(root, path, Least::One, flaws);
    }
    for list in ["tls", "tcp"] {
        for path in ["match[].port", "route[].destination.port.number"] {
            ports(root, &format!("spec.{list}[].{path}"), Least::One, flaws);
        }
        each(root, &format!("spec.{list}[]"), &mut |rule, path| {
            if rule.get("route").is_none_or(|route| route.items().is_empty()) {
                let hint = "a route with a destination is needed";
                flaws.add("MAN005", rule.at, path, "the rule does nothing", hint);
            }
        });
    }
    each(root, "spec.tls[]", &mut |rule, path| {
        let matches = rule.get("match").map_or(&[][..], Node::items);
        let names = |matched: &Node| matched.get("sniHosts").is_some_and(|names| !names.items().is_empty());
        if matches.is_empty() || !matches.iter().all(names) {
            let hint = "each match has sniHosts: names that clients of TLS ask for";
            flaws.add("MAN005", rule.at, path, "no sniHosts", hint);
        }
    });
    one_of(root, "spec.http[].redirect.derivePort", &["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"], flaws);
    for path in [
        "spec.http[].route[].destination",
        "spec.http[].mirrors[].destination",
        "spec.tls[].route[].destination",
        "spec.tcp[].route[].destination",
    ] {
        each(root, path, &mut |node, path| {
            if node.get("host").and_then(Node::text).unwrap_or_default().is_empty() {
                let hint = "the name of a Service, short or whole";
                flaws.add("MAN005", node.at, &format!("{path}.host"), "the host is missing", hint);
            }
        });
    }
}

pub(super) fn destination_rule(root: &Node, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let host = spec.and_then(|spec| spec.get("host"));
    if host.and_then(Node::text).unwrap_or_default().is_empty() {
        let at = host.or(spec).map_or(root.at, |node| node.at);
        flaws.add(
            "MAN005",
            at,
            "spec.host",
            "no host",
            "the name of a Service, short or whole, or one that begins with *",
        );
    }
    each(root, "spec.subsets[]", &mut |subset, path| {
        if subset.get("name").and_then(Node::text).unwrap_or_default().is_empty() {
            flaws.add(
                "MAN005",
                subset.at,
                &format!("{path}.name"),
                "the name is missing",
                "routes name a subset by it",
            );
        }
    });
    for path in [
        "spec.trafficPolicy.portLevelSettings[].port.number",
        "spec.subsets[].trafficPolicy.portLevelSettings[].port.number",
    ] {
        ports(root, path, Least::One, flaws);
    }
}

fn is_something(node: &Node) -> bool {
    !node.is_null() && (node.items().is_empty() != node.entries().is_empty() || node.text().is_some())
}
