//! What is told, compared with what Envoy and CEL say.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn captured(headers: &[(&str, &str)]) -> Captured {
    let mut captured = Captured::default();
    headers.iter().for_each(|(name, value)| captured.keep(&(*name).into(), value));
    captured
}

fn facts(request: &Captured) -> Facts<'_> {
    Facts {
        request: Some(request),
        began_us: 1_795_334_400_123_456,
        duration_us: 12_345,
        upstream_ms: Some(11),
        method: Some("GET"),
        target: Some("/page?id=1"),
        host: Some("web.shop"),
        protocol: Some("HTTP/1.1"),
        id: Some("abc"),
        code: 503,
        code_details: Some("via_upstream".into()),
        flags: "UF,URX".into(),
        received: 3,
        sent: 91,
        route: Some("default".into()),
        upstream: "10.0.0.9:8080".parse().ok(),
        cluster: Some("inbound-vip|80|http|web.shop.svc.cluster.local".into()),
        client: "10.0.0.7:40000".parse().ok(),
        local: "10.96.0.1:80".parse().ok(),
        ..Facts::default()
    }
}

fn line(layout: &Layout, facts: &Facts<'_>) -> String {
    match layout {
        Layout::Text(text) => Format::read(text).0.text(facts),
        Layout::Json(keys) => {
            let mut keys: Vec<_> = keys.iter().map(|(key, format)| (key.clone(), Format::read(format).0)).collect();
            keys.sort_by(|(one, _), (other, _)| one.cmp(other));
            json(&keys, facts)
        }
    }
}

#[test]
fn lines_are_istios_byte_for_byte() {
    let headers = captured(&[("user-agent", "curl/8"), ("x-forwarded-for", "10.1.1.1")]);
    assert_eq!(
        line(&Layout::text(), &facts(&headers)),
        "[2026-11-22T08:00:00.123Z] \"GET /page?id=1 HTTP/1.1\" 503 UF,URX via_upstream - \"-\" 3 91 12 11 \"10.1.1.1\" \
         \"curl/8\" \"abc\" \"web.shop\" \"10.0.0.9:8080\" inbound-vip|80|http|web.shop.svc.cluster.local - 10.96.0.1:80 \
         10.0.0.7:40000 - default\n"
    );
    assert_eq!(
        line(&Layout::json(), &facts(&headers)),
        "{\"authority\":\"web.shop\",\"bytes_received\":3,\"bytes_sent\":91,\"connection_termination_details\":null,\
         \"downstream_local_address\":\"10.96.0.1:80\",\"downstream_remote_address\":\"10.0.0.7:40000\",\"duration\":12,\
         \"method\":\"GET\",\"path\":\"/page?id=1\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"abc\",\
         \"requested_server_name\":null,\"response_code\":503,\"response_code_details\":\"via_upstream\",\
         \"response_flags\":\"UF,URX\",\"route_name\":\"default\",\"start_time\":\"2026-11-22T08:00:00.123Z\",\
         \"upstream_cluster\":\"inbound-vip|80|http|web.shop.svc.cluster.local\",\"upstream_host\":\"10.0.0.9:8080\",\
         \"upstream_local_address\":null,\"upstream_service_time\":\"11\",\"upstream_transport_failure_reason\":null,\
         \"user_agent\":\"curl/8\",\"x_forwarded_for\":\"10.1.1.1\"}\n"
    );
}

#[test]
fn operators_are_envoys() {
    let headers = captured(&[("user-agent", "a \"quoted\" one\n")]);
    let facts = facts(&headers);
    for (format, text) in [
        ("%REQ(X-A?:METHOD)% 100%%", "GET 100%"),
        ("%REQ(:PATH):5%|%REQ(x-none)%", "/page|-"),
        ("%REQ(USER-AGENT)%", "a \"quoted\" one\\n"),
        ("%START_TIME(%Y/%m/%d %s %3f)%", "2026/11/22 1795334400 123"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:%DOWNSTREAM_LOCAL_PORT%", "10.0.0.7:80"),
        ("%GRPC_STATUS% %RESP(:STATUS)%", "- 503"),
        ("", ""),
    ] {
        let (read, problems) = Format::read(format);
        assert_eq!((read.text(&facts), problems), (text.to_owned(), vec![]), "{format}");
    }
    let keys = [(crate::model::Str::from("a"), Format::read("%REQ(USER-AGENT)% %RESPONSE_CODE%").0)];
    assert_eq!(json(&keys, &facts), "{\"a\":\"a \\\"quoted\\\" one\\n 503\"}\n");
}

#[test]
fn what_is_not_known_is_told_and_written_as_absent() {
    for format in
        ["%DYNAMIC_METADATA(a:b)%", "%DOWNSTREAM_PEER_ISSUER%", "%REQ()%", "%REQ(A):x%", "%START_TIME(%Q)%", "%X"]
    {
        let (read, problems) = Format::read(format);
        assert_eq!(problems.len(), 1, "{format}");
        let text = read.text(&Facts::default());
        assert_eq!(text, if format == "%X" { "" } else { "-" }, "{format}");
    }
}

#[test]
fn expressions_hold_as_in_cel() {
    let headers = captured(&[("x-user", "ann"), ("user-agent", "kube-probe/1.30")]);
    let facts = facts(&headers);
    for (text, holds) in [
        ("response.code >= 400", true),
        ("response.code >= 400 && response.code < 500", false),
        ("response.code == 503 || !has(request.id)", true),
        ("response.code in [500, 503]", true),
        ("'x-user' in request.headers", true),
        ("'x-other' in request.headers", false),
        ("request.headers['x-user'] == 'ann'", true),
        ("request.headers['X-User'] == \"ann\"", true),
        ("request.headers['x-other'] != 'ann'", false),
        ("!(request.headers['x-other'] == 'ann')", false),
        ("request.headers['x-other'] == 'a' || true", true),
        ("request.headers['x-other'] == 'a' && false", false),
        ("!has(response.grpc_status)", true),
        ("has(request.headers['x-user'])", true),
        ("request.url_path.startsWith('/pa')", true),
        ("!request.url_path.startsWith(\"/healthz\") && request.useragent.matches('^kube-probe/.*')", true),
        ("request.duration > duration('12ms')", true),
        ("request.duration > duration('1s')", false),
        ("request.host.size() == 8 && size(request.host) == 8", true),
        ("(response.code == 200 ? 'a' : 'b') == 'b'", true),
        ("request.method == 'GET' ? true : false", true),
        ("response.code", false),
        ("-1 < 0", true),
        ("connection.mtls", true),
        ("string(destination.port) + '/' + request.method == '80/GET'", true),
        ("response.code > '4'", false),
    ] {
        let expression = Expression::read(text);
        assert_eq!(expression.map(|read| read.holds(&facts)), Ok(holds), "{text}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (text, word) in [
        ("response.code ==", "end"),
        ("response.cod == 1", "response.cod "),
        ("upstream_peer.labels['app'].value", "upstream_peer.labels[\"app\"]"),
        ("request.time > 1", "request.time"),
        ("f(request.id)", "f()"),
        ("request.id.lower() == 'a'", "lower()"),
        ("request.id.matches('(')", "regular"),
        ("response.code = 200", "'='"),
        ("'a", "ends"),
        ("(response.code == 200", "\")\""),
        ("response.code == 200 200", "number 200"),
        ("has('a')", "has()"),
        ("duration('x')", "duration"),
        ("", "missing"),
    ] {
        let told = Expression::read(text).unwrap_err();
        assert!(told.contains(word), "{text}: {told}");
    }
    assert!(Expression::read(&"!".repeat(2000)).unwrap_err().contains("deeper"));
    assert!(Expression::read(&format!("{}1", "(".repeat(2000))).unwrap_err().contains("deeper"));
    assert!(Expression::read(&"a".repeat(5000)).unwrap_err().contains("4096"));
    assert!(Expression::read(&vec!["true"; 500].join("&&")).is_ok(), "a chain is not deep");
}

#[test]
fn what_is_read_is_wanted() {
    let mut wanted = Wanted::default();
    Expression::read("request.headers['A'] == '1' && 'b' in response.headers && has(request.useragent)")
        .unwrap()
        .wants(&mut wanted);
    Format::read("%REQ(C?D)% %RESP(E)%").0.wants(&mut wanted);
    let all = |set: &BTreeSet<crate::model::Str>| set.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(all(&wanted.request), ["a", "c", "d", "user-agent"]);
    assert_eq!(all(&wanted.response), ["b", "e"]);
}

#[test]
fn secrets_are_hidden_however_their_names_are_written() {
    let redaction = Redaction::default();
    for (target, told) in [
        ("/a", "/a"),
        ("/a?b=c&d", "/a?b=c&d"),
        ("/a?token=x", "/a?token=[redacted]"),
        ("/a?b=1&Access_Token=x&c=2", "/a?b=1&Access_Token=[redacted]&c=2"),
        ("/a?to%6Ben=x", "/a?to%6Ben=[redacted]"),
        ("/a?b=1;api_key=x=y;c", "/a?b=1;api_key=[redacted];c"),
        ("/a?X-Amz-Signature=x&X-Amz-Credential=y", "/a?X-Amz-Signature=[redacted]&X-Amz-Credential=[redacted]"),
        ("/a?monkey=1", "/a?monkey=1"),
        ("/a?", "/a?"),
    ] {
        assert_eq!(redaction.target(target), told);
    }
    for name in ["authorization", "cookie", "set-cookie", "proxy-authorization", "x-api-key", "x-auth-token"] {
        assert_eq!(redaction.header(name, "secret"), HIDDEN, "{name}");
    }
    assert_eq!(redaction.header("referer", "http://a/?token=b"), "http://a/?token=[redacted]");
    assert_eq!(redaction.header("user-agent", "curl"), "curl");
}

#[test]
fn lists_are_edited() {
    let mut redaction = Redaction::default();
    Redaction::edit(&mut redaction.headers, "X-Session, -x-api-key,").unwrap();
    assert!(redaction.hides_header("x-session") && !redaction.hides_header("x-api-key"));
    assert!(redaction.hides_header("authorization"));
    assert!(Redaction::edit(&mut redaction.headers, "a b").is_err());
    assert!(Redaction::edit(&mut redaction.headers, "-").is_err());
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_or_refused(text in "[a-z.()\\[\\]'%&|=!<>?:, 0-9A-Z_\"-]{0,80}") {
        if let Ok(expression) = Expression::read(&text) {
            expression.holds(&Facts::default());
        }
        let (format, _) = Format::read(&text);
        format.text(&Facts::default());
        Redaction::default().target(&text);
    }

    #[test]
    fn a_hidden_value_is_never_told(
        before in "[a-c=&;]{0,6}", name in "(token|x_token|%74oken|password|client_secret)", after in "([&;][a-c=]{0,6})?",
    ) {
        let before = if before.is_empty() { before } else { format!("{before}&") };
        let target = format!("/p?{before}{name}=SECRET{after}");
        let told = Redaction::default().target(&target).into_owned();
        prop_assert!(!told.contains("SECRET"), "{}", told);
    }
}
