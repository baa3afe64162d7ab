//! Spans and records of logs, as a collector gets them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use prost::Message as _;
use stillmesh_core::fixtures::{self, policy_key};
use stillmesh_core::model::access::Access;
use stillmesh_core::model::telemetry::{
    Collector, LogRule, Provider, ProviderKind, SpanTag, TagValue, Telemetry, TelemetryScope, TelemetrySettings,
    TraceRule,
};
use stillmesh_core::observe::{Expression, Layout};
use stillmesh_core::snapshot::Change;
use stillmesh_otlp::message::{AnyValue, ExportLogsServiceRequest, ExportTraceServiceRequest, Span, Value};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::collector::{self, Sent};
use stillmesh_waypoint_tests::routes::{asked, shop};
use stillmesh_waypoint_tests::{PATIENCE, World};
use tokio::sync::mpsc::Receiver;

fn provider(at: SocketAddr, path: Option<&str>) -> Collector {
    Collector {
        host: at.ip().to_string().into(),
        port: at.port(),
        path: path.map(Into::into),
        timeout: Duration::from_secs(5),
        log_name: "".into(),
        layout: None,
        longest: None,
    }
}

fn published(access: Access) -> Change {
    Change::Access(Arc::new(access))
}

fn changes(kind: ProviderKind, rule: TraceRule) -> Vec<Change> {
    let provider = Provider { name: "otel".into(), kind };
    let settings =
        TelemetrySettings { providers: vec![provider], ..TelemetrySettings::new(policy_key("istio-system/istio")) };
    let telemetry = Telemetry {
        key: policy_key("istio-system/mesh"),
        scope: TelemetryScope::Mesh,
        created: 0,
        logs: Vec::new(),
        metrics: Vec::new(),
        tracing: vec![TraceRule { providers: vec!["otel".into()], ..rule }],
    };
    vec![published(Access::TelemetrySettings(settings)), published(Access::Telemetry(telemetry))]
}

async fn next(sent: &mut Receiver<Sent>) -> Sent {
    tokio::time::timeout(PATIENCE, sent.recv()).await.expect("an export in time").unwrap()
}

fn spans(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let resource = &request.resource_spans[0];
    let named = resource.resource.as_ref().unwrap().attributes.iter().any(|one| one.key == "service.name");
    assert!(named, "{resource:?}");
    request.resource_spans.into_iter().flat_map(|one| one.scope_spans).flat_map(|one| one.spans).collect()
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let found = span.attributes.iter().find(|one| one.key == key)?;
    match &found.value {
        Some(AnyValue { value: Some(Value::Text(text)) }) => Some(text),
        _ => None,
    }
}

/// The headers that the application saw.
fn seen(body: &str, name: &str) -> Option<String> {
    let who: serde_json::Value = serde_json::from_str(body).unwrap();
    who["headers"][name].as_str().map(str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

const LOST: &str = "stillmesh_waypoint_telemetry_lost_total";

fn everything() -> TraceRule {
    TraceRule { sampling: Some(10_000), ..TraceRule::default() }
}

#[test]
fn spans_reach_a_collector_over_grpc_and_traces_go_on() {
    isolated_async(|| async {
        let (at, mut sent) = collector::start(&[]).await;
        let tags = vec![
            SpanTag { name: "a".into(), value: TagValue::Literal("b".into()) },
            SpanTag { name: "who".into(), value: TagValue::Header("x-who".into(), "nobody".into()) },
            SpanTag { name: "key".into(), value: TagValue::Header("x-api-key".into(), "".into()) },
        ];
        let rule = TraceRule { sampling: Some(0), tags, ..TraceRule::default() };
        let shop = shop(1, &[], changes(ProviderKind::TraceCollector(provider(at, None)), rule)).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        // Of clients that do not ask for it nobody is traced, and who says no is not either.
        let (_, body) = asked(&mut http, "/who", &[]).await;
        assert!(seen(&body, "traceparent").unwrap().ends_with("-00"));
        let no = format!("00-{TRACE}-b7ad6b7169203331-00");
        let (_, body) = asked(&mut http, "/who", &[("traceparent", &no)]).await;
        assert!(seen(&body, "traceparent").unwrap().ends_with("-00"));
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let headers =
            [("traceparent", parent.as_str()), ("tracestate", "x=y"), ("x-who", "ann"), ("x-api-key", "SECRET")];
        let (_, body) = asked(&mut http, "/who?token=SECRET", &headers).await;
        let passed = seen(&body, "traceparent").unwrap();
        assert!(passed.starts_with(&format!("00-{TRACE}-")) && passed.ends_with("-01"), "{passed}");
        assert_eq!(seen(&body, "tracestate").as_deref(), Some("x=y"));
        let export = next(&mut sent).await;
        assert_eq!(export.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        assert_eq!(export.headers["content-type"], "application/grpc");
        let spans = spans(&export.body[5..]);
        assert_eq!(spans.len(), 1, "{spans:?}");
        let span = &spans[0];
        assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (TRACE, "b7ad6b7169203331"));
        assert_eq!(passed, format!("00-{TRACE}-{}-01", hex(&span.span_id)));
        assert_eq!((span.trace_state.as_str(), span.kind, span.flags), ("x=y", 2, 0x301));
        assert!(span.name.ends_with(":80/*"), "{}", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.status.is_none());
        assert_eq!(
            (attribute(span, "http.status_code"), attribute(span, "http.request.method")),
            (Some("200"), Some("GET"))
        );
        assert_eq!(
            (attribute(span, "url.path"), attribute(span, "url.query")),
            (Some("/who"), Some("token=[redacted]"))
        );
        assert!(attribute(span, "http.url").is_some_and(|url| url.ends_with("/who?token=[redacted]")));
        assert_eq!(attribute(span, "istio.canonical_service"), Some("w"));
        assert_eq!((attribute(span, "a"), attribute(span, "who")), (Some("b"), Some("ann")));
        assert!(!format!("{span:?}").contains("SECRET"), "{span:?}");
    });
}

#[test]
fn a_collector_of_the_mesh_is_reached_through_its_tunnel() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let (web, otel) = (world.workload("web"), world.workload("otel"));
        let address = world.service("web", "10.1.0.1", 1, &[&web]);
        world.unbound("otel", "10.1.0.2", &[&otel]);
        let (_app, tunnel) = (world.endpoint(&web).await.app("web").await, world.endpoint(&otel).await);
        let mut sent = collector::at(tunnel.listen().await, &[]);
        let host = fixtures::service("shop/otel", &[]).key.hostname;
        let collector = Collector { host, port: 80, ..provider(SocketAddr::from(([127, 0, 0, 1], 1)), None) };
        world.control.store.publish(changes(ProviderKind::TraceCollector(collector), everything()));
        world.start(&[]).await;
        let mut http = world.client("page", 1).http1(address).await;
        drop(asked(&mut http, "/name", &[]).await);
        assert_eq!(spans(&next(&mut sent).await.body[5..]).len(), 1);
    });
}

#[test]
fn spans_reach_a_collector_over_http() {
    isolated_async(|| async {
        let (at, mut sent) = collector::start(&[]).await;
        let kind = ProviderKind::TraceCollector(provider(at, Some("/v1/traces")));
        let shop = shop(1, &[], changes(kind, everything())).await;
        let mut http = shop.world.client("page", 1).http2(shop.web).await;
        drop(asked(&mut http, "/none", &[]).await);
        let export = next(&mut sent).await;
        assert_eq!(
            (export.path.as_str(), &export.headers["content-type"]),
            ("/v1/traces", &HeaderValue::from_static("application/x-protobuf"))
        );
        let span = spans(&export.body).remove(0);
        assert_eq!((attribute(&span, "http.status_code"), span.parent_span_id.len()), (Some("404"), 0));
    });
}

#[test]
fn what_a_collector_has_no_time_for_is_sent_again_and_what_it_refuses_is_dropped_and_counted() {
    isolated_async(|| async {
        // Unavailable, then taken, then an invalid argument.
        let (at, mut sent) = collector::start(&["14", "0", "3"]).await;
        let kind = ProviderKind::TraceCollector(provider(at, None));
        let shop = shop(1, &[], changes(kind, everything())).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        drop(asked(&mut http, "/name", &[]).await);
        let (first, again) = (next(&mut sent).await, next(&mut sent).await);
        assert_eq!(first.body, again.body);
        assert_eq!(shop.world.metric(LOST, &["what=\"span\""]).await, 0.0);
        drop(asked(&mut http, "/name", &[]).await);
        assert_ne!(next(&mut sent).await.body, first.body);
        shop.world.counts(LOST, &["what=\"span\""], 1.0).await;
    });
}

#[test]
fn without_its_collector_requests_go_on_and_the_end_is_not_held_up() {
    isolated_async(|| async {
        // Nobody listens at port 1.
        let nowhere = provider(SocketAddr::from(([127, 0, 0, 1], 1)), None);
        let mut shop = shop(1, &[], changes(ProviderKind::TraceCollector(nowhere), everything())).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        for _ in 0..QUEUE {
            assert_eq!(http.get("/name").await.0, StatusCode::OK);
        }
        let lost = shop.world.metric(LOST, &["what=\"span\""]).await;
        assert!(lost > 0.0, "what finds no room is counted");
        drop(http);
        shop.world.drain(Duration::from_secs(1));
        shop.world.ended().await;
    });
}

/// More than waits for a collector, with what one batch has.
const QUEUE: usize = 2048 + 512 + 10;

#[test]
fn at_its_end_a_waypoint_tells_what_there_is() {
    isolated_async(|| async {
        let (at, mut sent) = collector::start(&[]).await;
        let kind = ProviderKind::TraceCollector(provider(at, None));
        let mut shop = shop(1, &[], changes(kind, everything())).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        drop(asked(&mut http, "/name", &[]).await);
        drop(http);
        shop.world.drain(Duration::from_secs(1));
        shop.world.ended().await;
        assert_eq!(spans(&sent.try_recv().unwrap().body[5..]).len(), 1);
    });
}

#[test]
fn b3_goes_on_in_the_way_that_it_came() {
    isolated_async(|| async {
        let shop = shop(1, &[], changes(ProviderKind::Zipkin, everything())).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        let single = format!("{TRACE}-b7ad6b7169203331-0");
        let (_, body) = asked(&mut http, "/who", &[("b3", &single)]).await;
        let passed = seen(&body, "b3").unwrap();
        assert!(passed.starts_with(TRACE) && passed.ends_with("-0-b7ad6b7169203331"), "{passed}");
        assert_eq!((seen(&body, "traceparent"), seen(&body, "x-b3-traceid")), (None, None));
        let (_, body) = asked(&mut http, "/who", &[]).await;
        assert_eq!(seen(&body, "x-b3-sampled").as_deref(), Some("1"));
        assert_eq!(seen(&body, "x-b3-traceid").map(|id| id.len()), Some(32));
        assert_eq!(seen(&body, "traceparent"), None);
    });
}

#[test]
fn a_span_is_part_of_the_trace_of_a_client_that_speaks_b3() {
    isolated_async(|| async {
        let (at, mut sent) = collector::start(&[]).await;
        let rule = TraceRule { sampling: Some(0), ..TraceRule::default() };
        let shop = shop(1, &[], changes(ProviderKind::TraceCollector(provider(at, None)), rule)).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        let headers = [("x-b3-traceid", TRACE), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-sampled", "1")];
        let (_, body) = asked(&mut http, "/who", &headers).await;
        assert_eq!(seen(&body, "x-b3-parentspanid").as_deref(), Some("b7ad6b7169203331"));
        assert_eq!(seen(&body, "traceparent"), None);
        let span = spans(&next(&mut sent).await.body[5..]).remove(0);
        assert_eq!(seen(&body, "x-b3-spanid"), Some(hex(&span.span_id)));
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), "b7ad6b7169203331".into()));
    });
}

#[test]
fn where_nothing_is_traced_headers_go_on_as_they_are() {
    isolated_async(|| async {
        let shop = shop(1, &[], Vec::new()).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        let (_, body) = asked(&mut http, "/who", &[]).await;
        assert_eq!((seen(&body, "traceparent"), seen(&body, "x-b3-traceid")), (None, None));
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let (_, body) = asked(&mut http, "/who", &[("traceparent", &parent)]).await;
        assert_eq!(seen(&body, "traceparent"), Some(parent));
    });
}

#[test]
fn access_logs_reach_a_collector() {
    isolated_async(|| async {
        let (at, mut sent) = collector::start(&[]).await;
        let keys = vec![("path".into(), "%REQ(:PATH)%".into()), ("code".into(), "%RESPONSE_CODE%".into())];
        let collector = Collector { log_name: "shop".into(), layout: Some(Layout::Json(keys)), ..provider(at, None) };
        let mut changes = changes(ProviderKind::LogCollector(collector), TraceRule::default());
        let filter = Expression::read("response.code < 400").ok();
        let telemetry = Telemetry {
            key: policy_key("istio-system/mesh"),
            scope: TelemetryScope::Mesh,
            created: 0,
            logs: vec![LogRule { providers: vec!["otel".into()], is_disabled: false, filter }],
            metrics: Vec::new(),
            tracing: Vec::new(),
        };
        changes[1] = published(Access::Telemetry(telemetry));
        let shop = shop(1, &[], changes).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        drop(asked(&mut http, "/none", &[]).await);
        drop(asked(&mut http, "/name?key=SECRET", &[]).await);
        let export = next(&mut sent).await;
        assert_eq!(export.path, "/opentelemetry.proto.collector.logs.v1.LogsService/Export");
        let request = ExportLogsServiceRequest::decode(&export.body[5..]).unwrap();
        let records = &request.resource_logs[0].scope_logs[0].log_records;
        assert_eq!(records.len(), 1, "{records:?}");
        let text = format!("{records:?}");
        assert!(
            text.contains("\"/name?key=[redacted]\"") && text.contains("\"200\"") && !text.contains("SECRET"),
            "{text}"
        );
        assert!(format!("{:?}", request.resource_logs[0].resource).contains("\"shop\""));
    });
}
