//! What Istio's validating webhook refuses: policies that could be read as less than what was meant.

use ipnet::IpNet;
use std::net::IpAddr;

use super::check::{Flaws, PORT, each};
use super::node::{Node, Value};

pub(super) fn authorization_policy(root: &Node, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let has = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(|node| !node.is_null());
    if has("selector") && (has("targetRef") || has("targetRefs")) {
        let hint = "a policy has a selector, or targetRefs, or neither";
        flaws.add("MAN012", root.at, "spec.selector", "both a selector and targetRefs", hint);
    }
    let custom = spec.and_then(|spec| spec.get("action")).and_then(Node::text) == Some("CUSTOM");
    if custom != has("provider") {
        let (at, message) = match spec.and_then(|spec| spec.get("provider")) {
            Some(provider) if !custom => (provider.at, "a provider without action CUSTOM"),
            _ => (root.at, "action CUSTOM without a provider"),
        };
        let hint = "action CUSTOM needs a provider, and no other action has one";
        flaws.add("MAN012", at, "spec.provider", message, hint);
    }
    let deny = spec.and_then(|spec| spec.get("action")).and_then(Node::text) == Some("DENY");
    if deny && spec.and_then(|spec| spec.get("rules")).map_or(&[][..], Node::items).is_empty() {
        let hint = "a rule without content, written {}, denies everything";
        flaws.warn("MAN012", root.at, "spec.rules", "a DENY policy without rules denies nothing", hint);
    }
    for path in ["spec.rules[].from[]", "spec.rules[].to[]"] {
        let key = if path.ends_with("from[]") { "source" } else { "operation" };
        each(root, path, &mut |node, path| {
            let empty = node.get(key).is_none_or(|inner| inner.entries().iter().all(|entry| nothing(&entry.node)));
            if empty {
                let hint = "at least one list with a value is needed";
                flaws.add("MAN012", node.at, &format!("{path}.{key}"), format!("the {key} is empty"), hint);
            }
        });
    }
    for list in ["ports", "notPorts"] {
        each(root, &format!("spec.rules[].to[].operation.{list}[]"), &mut |node, path| port(node, path, flaws));
    }
    for list in ["ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"] {
        each(root, &format!("spec.rules[].from[].source.{list}[]"), &mut |node, path| block(node, path, flaws));
    }
    each(root, "spec.rules[].when[]", &mut |node, path| {
        let key = node.get("key").and_then(Node::text).unwrap_or_default();
        if key.is_empty() {
            let hint = "the name of an attribute, for example source.ip";
            flaws.add("MAN012", node.at, &format!("{path}.key"), "the key is missing", hint);
        }
        if ["values", "notValues"].iter().all(|list| node.get(list).is_none_or(nothing)) {
            flaws.add("MAN012", node.at, path, "neither values nor notValues", "at least one value is needed");
        }
        for list in ["values", "notValues"] {
            each(node, &format!("{list}[]"), &mut |value, below| {
                let path = format!("{path}.{below}");
                match key {
                    "destination.port" => port(value, &path, flaws),
                    "source.ip" | "destination.ip" | "remote.ip" => block(value, &path, flaws),
                    _ => {}
                }
            });
        }
    });
}

pub(super) fn request_authentication(root: &Node, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let has = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(|node| !node.is_null());
    if has("selector") && (has("targetRef") || has("targetRefs")) {
        let hint = "a RequestAuthentication has a selector, or targetRefs, or neither";
        flaws.add("MAN012", root.at, "spec.selector", "both a selector and targetRefs", hint);
    }
    if !has("targetRef") && !has("targetRefs") {
        let hint = "attach it to a Service, Gateway or GatewayClass by targetRefs";
        flaws.warn("MAN016", root.at, "spec", "only waypoints see requests: this is enforced nowhere", hint);
    }
}

pub(super) fn peer_authentication(root: &Node, flaws: &mut Flaws) {
    let Some(spec) = root.get("spec") else { return };
    let Some(ports) = spec.get("portLevelMtls").filter(|ports| !ports.is_null()) else { return };
    if spec.at_path(&["selector", "matchLabels"]).is_none_or(|labels| labels.entries().is_empty()) {
        let hint = "modes of single ports need a selector with labels";
        flaws.add("MAN012", ports.at, "spec.portLevelMtls", "modes of ports without a selector", hint);
    }
    for entry in ports.entries() {
        if !is_port(&entry.key) {
            let message = format!("{:?} is not a port", entry.key);
            flaws.add("MAN006", entry.at, "spec.portLevelMtls", message, PORT);
        }
    }
}

fn nothing(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::List(items) => items.is_empty(),
        _ => false,
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn port(node: &Node, path: &str, flaws: &mut Flaws) {
    if let Some(text) = node.text()
        && !is_port(text)
    {
        flaws.add("MAN006", node.at, path, format!("{text:?} is not a port"), PORT);
    }
}

fn block(node: &Node, path: &str, flaws: &mut Flaws) {
    if let Some(text) = node.text()
        && text.parse::<IpAddr>().is_err()
        && text.parse::<IpNet>().is_err()
    {
        let hint = "an IP address or a range such as 10.0.0.0/8 is accepted";
        flaws.add("MAN012", node.at, path, format!("{text:?} is not an address"), hint);
    }
}
