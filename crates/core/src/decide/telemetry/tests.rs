//! What is told, level by level.

use std::sync::Arc;

use super::*;
use crate::fixtures::{World, policy_key, service_key, uid};
use crate::model::access::Access;
use crate::model::telemetry::{Collector, MetricOverride, MetricRule, TelemetrySettings};
use crate::snapshot::Change;

fn named(name: &str, scope: TelemetryScope, created: i64) -> Telemetry {
    Telemetry { key: policy_key(name), scope, created, logs: vec![], metrics: vec![], tracing: vec![] }
}

fn log(providers: &[&str]) -> LogRule {
    LogRule { providers: providers.iter().map(|name| Str::from(*name)).collect(), ..LogRule::default() }
}

fn filter(text: &str) -> Option<Expression> {
    Expression::read(text).ok()
}

fn settings() -> TelemetrySettings {
    let collector = Collector {
        host: "otel".into(),
        port: 4317,
        path: None,
        timeout: std::time::Duration::from_secs(1),
        log_name: "".into(),
        layout: None,
        longest: None,
    };
    TelemetrySettings {
        providers: vec![Provider { name: "otel".into(), kind: ProviderKind::TraceCollector(collector) }],
        ..TelemetrySettings::new(policy_key("istio-system/istio"))
    }
}

fn told(all: &[Telemetry], settings: Option<TelemetrySettings>) -> Told {
    let world = World::new().workload("web").workload("gate");
    let world = world.service("ns/web", &[(80, 8080)], &["web"]).service("ns/gate", &[(15008, 15008)], &["gate"]);
    let all = all.iter().cloned().map(Access::Telemetry);
    let all = all.chain(settings.map(Access::TelemetrySettings)).map(|one| Change::Access(Arc::new(one)));
    let snapshot = world.snapshot().apply(&all.collect::<Vec<_>>()).0;
    let gate = snapshot.workload(&uid("gate")).unwrap();
    telemetry(&snapshot, gate, Some(&service_key("ns/web")))
}

fn providers(told: &Told) -> Option<Vec<(String, Option<String>)>> {
    let shown =
        |one: &Logged| (one.provider.name.to_string(), one.filter.as_ref().map(|filter| filter.as_str().to_owned()));
    told.logs.as_ref().map(|logs| logs.iter().map(shown).collect())
}

fn mesh() -> TelemetryScope {
    TelemetryScope::Mesh
}

#[test]
fn nobody_says_anything_unless_somebody_does() {
    let nothing = told(&[], None);
    assert_eq!((nothing.logs, nothing.tracing), (None, None));
    let file = FileLog { path: "/dev/stdout".into(), layout: Layout::text() };
    let by_mesh = told(&[], Some(TelemetrySettings { log: Some(file), ..settings() }));
    assert_eq!(providers(&by_mesh), Some(vec![("accessLogFile".into(), None)]));
    let defaulted = told(&[], Some(TelemetrySettings { default_logs: vec!["envoy".into()], ..settings() }));
    assert_eq!(providers(&defaulted), Some(vec![("envoy".into(), None)]));
}

#[test]
fn of_several_the_oldest_holds_and_nearer_levels_hold_over_farther_ones() {
    let mut old = named("istio-system/old", mesh(), 1);
    old.logs = vec![LogRule { filter: filter("response.code >= 500"), ..log(&["envoy"]) }];
    let mut new = named("istio-system/new", mesh(), 2);
    new.logs = vec![log(&["envoy"])];
    let found = told(&[new.clone(), old.clone()], None);
    assert_eq!(providers(&found), Some(vec![("envoy".into(), Some("response.code >= 500".into()))]));
    // What names no provider changes those that hold already.
    let mut near = named("ns/near", TelemetryScope::Namespace, 9);
    near.logs = vec![LogRule { is_disabled: true, ..log(&[]) }];
    assert_eq!(providers(&told(&[old.clone(), near.clone()], None)), Some(vec![]));
    let mut nearest = named("ns/nearest", TelemetryScope::To(vec![service_key("ns/web")]), 9);
    nearest.logs = vec![LogRule { filter: filter("true"), ..log(&["envoy"]) }];
    assert_eq!(
        providers(&told(&[old.clone(), near.clone(), nearest.clone()], None)),
        Some(vec![("envoy".into(), Some("true".into()))])
    );
    // To the waypoint itself is to all that it carries; of another namespace's nothing holds.
    nearest.scope = TelemetryScope::To(vec![service_key("ns/gate")]);
    assert!(providers(&told(&[nearest.clone()], None)).is_some());
    nearest.scope = TelemetryScope::To(vec![service_key("ns/other")]);
    near.key = policy_key("other/near");
    assert_eq!(providers(&told(&[nearest, near], None)), None);
}

#[test]
fn a_level_that_names_providers_takes_the_others_away() {
    let mut far = named("istio-system/far", mesh(), 1);
    far.logs = vec![log(&["envoy"])];
    let mut near = named("ns/near", TelemetryScope::Namespace, 2);
    near.logs = vec![log(&["file"])];
    let file = ProviderKind::File(FileLog { path: "/tmp/x".into(), layout: Layout::json() });
    let mut with_file = settings();
    with_file.providers.push(Provider { name: "file".into(), kind: file });
    assert_eq!(providers(&told(&[far, near], Some(with_file))), Some(vec![("file".into(), None)]));
}

#[test]
fn metrics_are_changed_one_by_one_and_all_at_once() {
    let mut far = named("istio-system/far", mesh(), 1);
    let tag = |name: &str, value: Option<&str>| (Str::from(name), value.and_then(filter));
    far.metrics = vec![MetricRule {
        providers: vec!["prometheus".into()],
        overrides: vec![
            MetricOverride { tags: vec![tag("host", Some("request.host"))], ..MetricOverride::default() },
            MetricOverride { metric: Some(MetricName::RequestSize), is_disabled: Some(true), tags: vec![] },
        ],
    }];
    let mut near = named("ns/near", TelemetryScope::Namespace, 2);
    near.metrics = vec![MetricRule {
        providers: vec![],
        overrides: vec![MetricOverride {
            metric: Some(MetricName::RequestCount),
            is_disabled: None,
            tags: vec![tag("host", None)],
        }],
    }];
    let found = told(&[far, near], None).metrics;
    assert_eq!(found.disabled, BTreeSet::from([MetricName::RequestSize]));
    assert_eq!(found.tags[&MetricName::RequestCount][&Str::from("host")], None);
    assert!(found.tags[&MetricName::RequestDuration][&Str::from("host")].is_some());
}

#[test]
fn traces_are_merged_part_by_part() {
    let mut far = named("istio-system/far", mesh(), 1);
    far.tracing = vec![TraceRule { providers: vec!["otel".into()], sampling: Some(5000), ..TraceRule::default() }];
    let mut near = named("ns/near", TelemetryScope::Namespace, 2);
    near.tracing = vec![TraceRule { is_disabled: Some(true), ..TraceRule::default() }];
    let found = told(&[far.clone(), near], Some(settings())).tracing.unwrap();
    assert_eq!((&*found.provider.name, found.is_silent, found.sampling), ("otel", true, 5000));
    far.tracing[0].sampling = None;
    assert_eq!(told(&[far.clone()], Some(settings())).tracing.map(|one| one.sampling), Some(SAMPLING));
    far.tracing[0].providers = vec!["nobody".into()];
    assert_eq!(told(&[far], Some(settings())).tracing, None);
}
