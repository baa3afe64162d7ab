//! What `get` shows of what users configure: policies, routes, and what has become of them.

use serde_json::Value;

use super::{list, name, text};

/// A policy: what it does, to whom, and whether it is in force.
pub(super) fn policy_row(policy: &Value, _: bool) -> Vec<String> {
    let spec = &policy["spec"];
    let rules = list(&spec["rules"]).count();
    let effect = match policy["kind"].as_str() {
        Some("PeerAuthentication") => spec["mtls"]["mode"].as_str().unwrap_or("UNSET").to_owned(),
        Some("RequestAuthentication") => format!("{} issuers", list(&spec["jwtRules"]).count()),
        _ => format!("{} ({rules} rules)", spec["action"].as_str().unwrap_or("ALLOW")),
    };
    let selector = spec["selector"]["matchLabels"].as_object().into_iter().flatten();
    let labels = selector.map(|(key, value)| format!("{key}={}", text(value)));
    let one = Some(&spec["targetRef"]).filter(|target| target.is_object());
    let targets = one.into_iter().chain(list(&spec["targetRefs"]));
    let targets = targets.map(|target| format!("{}/{}", text(&target["kind"]), text(&target["name"])));
    let selects: Vec<String> = labels.chain(targets).collect();
    let selects = if selects.is_empty() { "all of its namespace".to_owned() } else { selects.join(",") };
    let said = list(&policy["status"]["conditions"]);
    vec![name(policy), text(&policy["kind"]), effect, selects, accepted(said)]
}

/// A route or DestinationRule: for what it is, and whether it is in force.
pub(super) fn route_row(route: &Value, _: bool) -> Vec<String> {
    let spec = &route["spec"];
    let parent = |parent: &Value| match &parent["port"] {
        Value::Number(port) => format!("{}:{port}", text(&parent["name"])),
        _ => text(&parent["name"]),
    };
    let host = Some(&spec["host"]).filter(|host| host.is_string());
    let hosts = host.into_iter().chain(list(&spec["hosts"])).map(text);
    let meant: Vec<String> = list(&spec["parentRefs"]).map(parent).chain(hosts).collect();
    let of_parents = list(&route["status"]["parents"]).flat_map(|parent| list(&parent["conditions"]));
    let said = of_parents.chain(list(&route["status"]["conditions"]));
    vec![name(route), text(&route["kind"]), meant.join(","), accepted(said)]
}

/// What the conditions come to: the first that is not well, with its reason.
fn accepted<'a>(said: impl Iterator<Item = &'a Value>) -> String {
    const ASKED: [&str; 4] = ["Accepted", "ResolvedRefs", "WaypointAccepted", "ZtunnelAccepted"];
    let mut asked = said.filter(|one| one["type"].as_str().is_some_and(|name| ASKED.contains(&name))).peekable();
    if asked.peek().is_none() {
        return "-".to_owned();
    }
    let bad = asked.find(|one| one["status"] != "True");
    bad.map_or("yes".to_owned(), |one| format!("no: {}", text(&one["reason"])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(name: &str, status: &str, reason: &str) -> Value {
        json!({"type": name, "status": status, "reason": reason})
    }

    #[test]
    fn a_route_is_accepted_where_all_that_is_said_of_it_is_well() {
        let route = |conditions: Value| {
            let parents = json!([{"name": "web", "port": 80}, {"name": "page"}]);
            let status = json!({"parents": [{"conditions": conditions}]});
            let metadata = json!({"name": "r"});
            route_row(
                &json!({"kind": "HTTPRoute", "metadata": metadata, "spec": {"parentRefs": parents}, "status": status}),
                false,
            )
        };
        let (good, bad) = (said("Accepted", "True", "Accepted"), said("ResolvedRefs", "False", "BackendNotFound"));
        assert_eq!(route(json!([good])), ["r", "HTTPRoute", "web:80,page", "yes"]);
        assert_eq!(route(json!([good, bad]))[3], "no: BackendNotFound");
        assert_eq!(route(json!([said("ResolvedWaypoints", "True", "")]))[3], "-", "nothing is said of it");
    }

    #[test]
    fn hosts_and_targets_are_what_an_object_is_for() {
        let rule = json!({"kind": "DestinationRule", "metadata": {"name": "d"}, "spec": {"host": "web"},
            "status": {"conditions": [said("WaypointAccepted", "False", "Invalid")]}});
        assert_eq!(route_row(&rule, false), ["d", "DestinationRule", "web", "no: Invalid"]);
        let policy = json!({"kind": "AuthorizationPolicy", "metadata": {"name": "p"},
            "spec": {"action": "DENY", "rules": [{}], "targetRefs": [{"kind": "Service", "name": "web"}]},
            "status": {"conditions": [said("WaypointAccepted", "True", "Accepted")]}});
        assert_eq!(policy_row(&policy, false), ["p", "AuthorizationPolicy", "DENY (1 rules)", "Service/web", "yes"]);
    }
}
