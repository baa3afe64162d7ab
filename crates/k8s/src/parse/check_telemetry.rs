//! What is wrong with a Telemetry, with its place: what nobody takes is refused, what waypoints do not do is told.

use stillmesh_core::model::telemetry::MetricName;
use stillmesh_core::observe::Expression;

use super::check::{Flaws, each, one_of};
use super::node::Node;

/// What a waypoint does with what it cannot carry out.
const LEFT_OUT: &str = "waypoints leave this out, and the rest holds";

pub(super) fn telemetry(root: &Node, flaws: &mut Flaws) {
    let spec = root.get("spec");
    let has = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(|node| !node.is_null());
    if has("selector") && (has("targetRef") || has("targetRefs")) {
        let hint = "a Telemetry has a selector, or targetRefs, or neither";
        flaws.add("MAN012", root.at, "spec.selector", "both a selector and targetRefs", hint);
    } else if has("selector") {
        let hint = "attach it to a Service, Gateway or GatewayClass by targetRefs";
        flaws.warn("MAN016", root.at, "spec.selector", "a selector is for sidecars: this holds nowhere", hint);
    }
    let modes = ["CLIENT", "SERVER", "CLIENT_AND_SERVER"];
    for path in
        ["spec.tracing[].match.mode", "spec.metrics[].overrides[].match.mode", "spec.accessLogging[].match.mode"]
    {
        one_of(root, path, &modes, flaws);
    }
    let mut metrics: Vec<&str> = MetricName::ALL.iter().map(|metric| metric.as_str()).collect();
    metrics.push("ALL_METRICS");
    one_of(root, "spec.metrics[].overrides[].match.metric", &metrics, flaws);
    for list in ["tracing", "metrics", "accessLogging"] {
        each(root, &format!("spec.{list}[].providers[]"), &mut |provider, path| {
            if provider.get("name").and_then(Node::text).unwrap_or_default().is_empty() {
                let hint = "a name from the mesh's configuration (extensionProviders)";
                flaws.add("MAN005", provider.at, &format!("{path}.name"), "the name is missing", hint);
            }
        });
    }
    each(root, "spec.tracing[].randomSamplingPercentage", &mut |node, path| {
        let percent = node.plain().as_f64();
        if percent.is_none_or(|percent| !(0.0..=100.0).contains(&percent)) {
            flaws.add("MAN005", node.at, path, "not a percentage", "a number from 0 to 100 is accepted");
        }
    });
    each(root, "spec.accessLogging[].filter.expression", &mut |node, path| expression(node, path, flaws));
    each(root, "spec.metrics[].overrides[].tagOverrides", &mut |tags, path| {
        for entry in tags.entries() {
            let path = format!("{path}.{}", entry.key);
            match entry.node.get("operation").and_then(Node::text) {
                Some("REMOVE") => {}
                None | Some("UPSERT") => match entry.node.get("value").filter(|value| !value.is_null()) {
                    Some(value) => expression(value, &format!("{path}.value"), flaws),
                    None => flaws.add("MAN005", entry.at, &path, "UPSERT without a value", "an expression is needed"),
                },
                Some(_) => {
                    flaws.add("MAN005", entry.at, &format!("{path}.operation"), "unknown word", "UPSERT or REMOVE");
                }
            }
        }
    });
}

fn expression(node: &Node, path: &str, flaws: &mut Flaws) {
    if let Some(text) = node.text().filter(|text| !text.is_empty())
        && let Err(problem) = Expression::read(text)
    {
        flaws.warn("MAN020", node.at, path, problem, LEFT_OUT);
    }
}
