//! What users ask to be told of requests and connections.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use stillmesh_core::fixtures::{policy_key, service_key};
use stillmesh_core::model::access::Access;
use stillmesh_core::model::telemetry::{
    FileLog, LogRule, Provider, ProviderKind, Telemetry, TelemetryScope, TelemetrySettings,
};
use stillmesh_core::observe::{Expression, Layout};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::PATIENCE;
use stillmesh_waypoint_tests::routes::{asked, shop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn published(access: Access) -> Change {
    Change::Access(Arc::new(access))
}

fn settings(providers: Vec<Provider>) -> TelemetrySettings {
    TelemetrySettings { providers, ..TelemetrySettings::new(policy_key("istio-system/istio")) }
}

fn file(name: &str, path: &Path, layout: Layout) -> Provider {
    let file = FileLog { path: path.to_str().unwrap().into(), layout };
    Provider { name: name.into(), kind: ProviderKind::File(file) }
}

fn telemetry(name: &str, scope: TelemetryScope) -> Telemetry {
    Telemetry { key: policy_key(name), scope, created: 0, logs: Vec::new(), metrics: Vec::new(), tracing: Vec::new() }
}

/// The lines of a file, once there are so many.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let begin = tokio::time::Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count && text.ends_with('\n') {
            assert_eq!(lines.len(), count, "{text}");
            return lines;
        }
        assert!(begin.elapsed() < PATIENCE, "{count} lines in time: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn requests_are_logged_as_istio_does_and_secrets_are_not() {
    isolated_async(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (text, json) = (folder.path().join("text"), folder.path().join("json"));
        let mut logs = settings(vec![file("text", &text, Layout::text()), file("json", &json, Layout::json())]);
        logs.default_logs = vec!["text".into(), "json".into()];
        let shop = shop(1, &[], vec![published(Access::TelemetrySettings(logs))]).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        let headers = [("user-agent", "curl/8"), ("authorization", "Bearer SECRET"), ("x-request-id", "one")];
        let (head, _) = asked(&mut http, "/name?a=1&access_token=SECRET", &headers).await;
        assert_eq!(head.status, StatusCode::OK);
        let line = lines(&text, 1).await.remove(0);
        assert!(!line.contains("SECRET"), "{line}");
        let (time, rest) = line.split_once("] ").unwrap();
        assert!(time.starts_with("[20") && time.ends_with('Z') && time.len() == 25, "{time}");
        let begins = "\"GET /name?a=1&access_token=[redacted] HTTP/1.1\" 200 - via_upstream - \"-\" 0 3 ";
        assert!(rest.starts_with(begins), "{rest}");
        assert!(rest.contains(" \"-\" \"curl/8\" \"one\" \""), "{rest}");
        assert!(rest.contains(" inbound-vip|80|http|"), "{rest}");
        assert!(rest.ends_with(" - default"), "{rest}");
        let line = lines(&json, 1).await.remove(0);
        let told: Value = serde_json::from_str(&line).unwrap();
        assert!(line.starts_with("{\"authority\":") && !line.contains("SECRET"), "{line}");
        assert_eq!((&told["response_code"], &told["bytes_sent"]), (&200.into(), &3.into()));
        assert_eq!((&told["user_agent"], &told["response_flags"]), (&"curl/8".into(), &"-".into()));
        assert!(told["requested_server_name"].is_null());
        // What is kept of decisions has no query at all.
        let decisions = shop.world.admin("/decisions?limit=100").await.to_string();
        assert!(decisions.contains("/name") && !decisions.contains("SECRET"), "{decisions}");
    });
}

#[test]
fn what_is_logged_follows_who_says_it() {
    isolated_async(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (all, some) = (folder.path().join("all"), folder.path().join("some"));
        let line = |format: &str| Layout::Text(format!("{format}\n").into());
        let keyed = "%REQ(X-API-KEY)% %REQ(X-USER)% %RESPONSE_CODE%";
        let providers = vec![file("all", &all, line("%REQ(:PATH)%")), file("some", &some, line(keyed))];
        let mut far = telemetry("istio-system/mesh", TelemetryScope::Mesh);
        far.logs = vec![LogRule { providers: vec!["all".into()], ..LogRule::default() }];
        let published_all =
            vec![published(Access::TelemetrySettings(settings(providers))), published(Access::Telemetry(far))];
        let shop = shop(1, &[], published_all).await;
        let store = &shop.world.control.store;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
        assert_eq!(lines(&all, 1).await, ["/name"]);
        let mut near = telemetry("shop/errors", TelemetryScope::To(vec![service_key("shop/web")]));
        let filter = Expression::read("response.code >= 400 && request.headers['x-user'] != 'probe'").ok();
        near.logs = vec![LogRule { providers: vec!["some".into()], is_disabled: false, filter }];
        store.publish(vec![published(Access::Telemetry(near.clone()))]);
        // Until it has arrived, requests are logged to the other file: the first that is not has the new rule.
        let begin = tokio::time::Instant::now();
        while !some.exists() {
            assert!(begin.elapsed() < PATIENCE, "the rule arrives in time");
            drop(asked(&mut http, "/none", &[("x-user", "ann"), ("x-api-key", "SECRET")]).await);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
        drop(asked(&mut http, "/none", &[("x-user", "probe")]).await);
        drop(asked(&mut http, "/none", &[("x-user", "bob")]).await);
        let begin = tokio::time::Instant::now();
        let logged = loop {
            let logged = std::fs::read_to_string(&some).unwrap();
            if logged.ends_with("bob 404\n") {
                break logged;
            }
            assert!(begin.elapsed() < PATIENCE, "the last one is logged in time: {logged}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let mut others = logged.lines().rev();
        assert_eq!(others.next(), Some("- bob 404"));
        assert!(others.all(|line| line == "[redacted] ann 404"), "{logged}");
        assert_eq!(shop.world.metric("stillmesh_waypoint_telemetry_lost_total", &["what=\"access_log\""]).await, 0.0);
    });
}

#[test]
fn a_connection_is_logged_too() {
    isolated_async(|| async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let format =
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %REQ(:METHOD)% %UPSTREAM_CLUSTER%\n";
        let mut logs = settings(Vec::new());
        logs.log = Some(FileLog { path: path.to_str().unwrap().into(), layout: Layout::Text(format.into()) });
        let shop = shop(4, &[], vec![published(Access::TelemetrySettings(logs))]).await;
        let mut stream = shop.world.client("page", 1).stream(shop.web).await;
        stream.write_all(b"GET /name HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let line = lines(&path, 1).await.remove(0);
        assert!(line.starts_with(&format!("0 - 50 {} - inbound-vip|80|tcp|", answer.len())), "{line}");
    });
}
