//! What waypoints are told of a Telemetry, and what its status says.

use super::*;
use crate::gateway::binding::{Binding, Named};
use crate::object::Object;
use crate::parse;

struct Nobody;

impl Targets for Nobody {
    fn service(&self, named: &Named) -> Option<Binding> {
        (&*named.name == "web").then_some(Binding::Unasked)
    }

    fn gateway(&self, named: &Named) -> Option<Str> {
        (&*named.name == "gate").then(|| "gate".into())
    }

    fn class(&self, _: &str) -> Option<Vec<(Named, Str)>> {
        None
    }
}

fn providers() -> Providers {
    let names = |names: &[&str]| names.iter().map(|name| Str::from(*name)).collect();
    Providers { logs: names(&["envoy"]), tracing: names(&["otel"]), metrics: names(&["prometheus"]) }
}

fn read(namespace: &str, spec: &str) -> (Option<Model>, Condition) {
    let text = format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: {namespace}}}\nspec:\n{spec}\n"
    );
    let found = parse::documents("", &text);
    assert!(!found.has_errors(), "{:?}", found.findings);
    let Some(Object::Telemetry(written)) = found.objects.first().map(|one| one.object.clone()) else {
        panic!("no Telemetry in {text}")
    };
    telemetry(&written, &Nobody, &providers(), &Mesh::default())
}

#[test]
fn what_is_written_is_told() {
    let (model, condition) = read(
        "istio-system",
        "  accessLogging:\n  - providers: [{name: envoy}]\n    filter: {expression: 'response.code >= 400'}\n  - disabled: true\n\
         \x20 metrics:\n  - providers: [{name: prometheus}]\n    overrides:\n    - match: {metric: REQUEST_COUNT, mode: SERVER}\n\
         \x20     tagOverrides:\n        host: {value: request.host}\n        source_app: {operation: REMOVE}\n\
         \x20   - match: {metric: ALL_METRICS}\n      disabled: false\n\
         \x20 tracing:\n  - providers: [{name: otel}]\n    randomSamplingPercentage: 12.5\n    customTags:\n      a: {literal: {value: b}}\n\
         \x20     c: {header: {name: X-C, defaultValue: d}}",
    );
    let model = model.unwrap();
    assert_eq!(
        (condition.status, condition.reason, &*condition.message),
        ("True", "Accepted", "holds at all waypoints")
    );
    assert_eq!(model.scope, TelemetryScope::Mesh);
    assert_eq!(model.logs[0].filter.as_ref().map(Expression::as_str), Some("response.code >= 400"));
    assert!(model.logs[1].is_disabled);
    let changes = &model.metrics[0].overrides;
    assert_eq!((changes[0].metric, changes[1].metric), (Some(MetricName::RequestCount), None));
    let tags: Vec<_> = changes[0].tags.iter().map(|(name, value)| (&**name, value.is_some())).collect();
    assert_eq!(tags, [("host", true), ("source_app", false)]);
    assert_eq!(model.tracing[0].sampling, Some(1250));
    assert_eq!(model.tracing[0].tags[1].value, TagValue::Header("x-c".into(), "d".into()));
}

#[test]
fn what_cannot_be_carried_out_is_left_out_and_named() {
    let (model, condition) = read(
        "shop",
        "  accessLogging:\n  - providers: [{name: nobody}]\n  - match: {mode: CLIENT}\n  - filter: {expression: 'metadata.x == 1'}\n\
         \x20 metrics:\n  - overrides:\n    - tagOverrides:\n        a-b: {value: request.host}\n        c: {value: 'upstream_peer.x'}\n\
         \x20 tracing:\n  - customTags:\n      a: {formatter: {value: '%X%'}}\n\
         \x20     b: {environment: {name: HOME}}",
    );
    let model = model.unwrap();
    assert_eq!((model.scope, model.logs.len()), (TelemetryScope::Namespace, 0));
    assert!(model.metrics[0].overrides[0].tags.is_empty() && model.tracing[0].tags.is_empty());
    assert_eq!((condition.status, condition.reason), ("True", "PartiallyInvalid"));
    for part in [
        "accessLogging[0].providers: \"nobody\"",
        "accessLogging[1]: mode CLIENT",
        "accessLogging[2].filter: without effect: the attribute metadata.x",
        "metrics[0].overrides[0].tagOverrides.a-b",
        "tagOverrides.c: without effect: the attribute upstream_peer.x",
        "tracing[0].customTags.a: literal",
        "tracing[0].customTags.b.environment: a waypoint's environment is not told",
    ] {
        assert!(condition.message.contains(part), "{part} is not in {}", condition.message);
    }
}

#[test]
fn it_is_attached_as_policies_are() {
    let (model, condition) =
        read("shop", "  targetRefs:\n  - {kind: Gateway, group: gateway.networking.k8s.io, name: gate}");
    let TelemetryScope::To(services) = model.unwrap().scope else { panic!("not attached") };
    assert_eq!((services.len(), condition.message.as_str()), (1, "bound to shop/gate"));
    let (_, condition) = read("shop", "  targetRefs: [{kind: Service, name: gone}]");
    assert_eq!((condition.status, condition.reason), ("False", "TargetNotFound"));
    let (model, condition) = read("shop", "  selector: {matchLabels: {app: a}}");
    assert_eq!((model, condition.status), (None, "False"));
}

#[test]
fn what_nobody_takes_is_refused_where_it_stands() {
    for (spec, path) in [
        ("  tracing: [{randomSamplingPercentage: 120}]", "spec.tracing[0].randomSamplingPercentage"),
        ("  metrics: [{overrides: [{match: {metric: REQUESTS}}]}]", "spec.metrics[0].overrides[0].match.metric"),
        ("  metrics: [{overrides: [{tagOverrides: {a: {}}}]}]", "spec.metrics[0].overrides[0].tagOverrides.a"),
        ("  accessLogging: [{match: {mode: BOTH}}]", "spec.accessLogging[0].match.mode"),
        ("  accessLogging: [{filters: {}}]", "spec.accessLogging[0]"),
        ("  accessLogging: [{providers: [{}]}]", "spec.accessLogging[0].providers[0].name"),
        ("  selector: {}\n  targetRefs: [{kind: Service, name: a}]", "spec.selector"),
    ] {
        let text =
            format!("apiVersion: telemetry.istio.io/v1alpha1\nkind: Telemetry\nmetadata: {{name: t}}\nspec:\n{spec}\n");
        let found = parse::documents("f", &text);
        assert!(
            found.has_errors() && found.findings.iter().any(|one| one.path.starts_with(path)),
            "{spec}: {:?}",
            found.findings
        );
        assert!(found.findings.iter().all(|one| one.at.line > 0));
    }
}
