use std::time::Duration;

use serde_json::{Value, json};
use stillmesh_core::model::http::{
    Abort, ClaimMatch, Forward, HeaderMatch, PathMatch, PathRewrite, RedirectPort, RequestMatch, RetryOn, RouteAction,
    RouteBackend, Share, TextMatch,
};

use super::*;
use crate::translate::route::fixtures::World;

fn translated(spec: Value) -> Virtual {
    let written = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z"}, "spec": spec});
    virtual_service(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn with(rules: Value) -> Virtual {
    translated(json!({"hosts": ["details"], "http": rules}))
}

fn to_details() -> Value {
    json!([{"destination": {"host": "details"}}])
}

/// A rule that leads to `details`, with more in it.
fn rule(mut more: Value) -> RouteRule {
    let alone = ["redirect", "directResponse", "route"].iter().any(|key| more.get(key).is_some());
    if !alone {
        more["route"] = to_details();
    }
    let read = with(json!([more]));
    assert_eq!(read.condition.as_ref().unwrap().status, "True", "{read:?}");
    read.route.unwrap().rules[0].clone()
}

fn forward(more: Value) -> Forward {
    match rule(more).action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn told(read: &Virtual) -> (&'static str, &'static str, &str) {
    let condition = read.condition.as_ref().unwrap();
    assert_eq!(condition.type_, "WaypointAccepted");
    (condition.status, condition.reason, &condition.message)
}

#[test]
fn it_holds_for_services_of_its_namespace_and_of_those_that_its_waypoints_serve() {
    let hosts = |hosts: Value| {
        let read = translated(json!({"hosts": hosts, "http": [{"route": to_details()}]}));
        let parents = read.route.as_ref().map(|route| {
            route
                .parents
                .iter()
                .map(|parent| parent.service.hostname.split(".svc").next().unwrap().to_owned())
                .collect()
        });
        let parents: Vec<String> = parents.unwrap_or_default();
        let (status, reason, message) = told(&read);
        (parents.join(" "), status, reason, message.to_owned())
    };
    for (written, parents, status, reason, part) in [
        (json!(["details"]), "details.shop", "True", "Accepted", "bound to shop/w"),
        (json!(["details.shop.svc.cluster.local"]), "details.shop", "True", "Accepted", "shop/w"),
        (json!(["page.else.svc.cluster.local"]), "page.else", "True", "Accepted", "shop/other"),
        (json!(["page"]), "page.shop", "False", "AncestorNotBound", "none of its Services is bound"),
        (json!(["page.closed.svc.cluster.local"]), "", "False", "TargetNotFound", "closed/page"),
        (
            json!(["details", "page.closed.svc.cluster.local"]),
            "details.shop",
            "False",
            "PartiallyInvalid",
            "does not hold for closed/page",
        ),
        (json!(["details.shop"]), "", "False", "TargetNotFound", "none of its hosts"),
        (json!(["details.example.com"]), "", "False", "TargetNotFound", "none of its hosts"),
        (json!(["*.else.svc.cluster.local"]), "page.else", "True", "Accepted", "shop/other"),
        (json!(["*"]), "page.else details.shop mixed.shop page.shop", "True", "Accepted", "shop/other, shop/w"),
    ] {
        let found = hosts(written.clone());
        assert_eq!((found.0.as_str(), found.1, found.2), (parents, status, reason), "{written}");
        assert!(found.3.contains(part), "{written}: {}", found.3);
    }
    let route = with(json!([{"route": to_details()}])).route.unwrap();
    assert_eq!((route.key.to_string().as_str(), route.created), ("VirtualService shop/v", 1_767_323_045));
}

#[test]
fn who_it_is_exported_to_and_where_it_holds_counts() {
    let with = |more: Value| {
        let mut spec = json!({"hosts": ["page.else.svc.cluster.local"], "http": [{"route": to_details()}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        translated(spec)
    };
    for (more, holds) in [
        (json!({"exportTo": ["."]}), true),
        (json!({"exportTo": ["*"]}), true),
        (json!({"exportTo": ["shop"]}), true),
        (json!({"exportTo": ["x"]}), false),
        (json!({"gateways": ["mesh", "ingress"]}), true),
    ] {
        assert_eq!(with(more.clone()).route.is_some(), holds, "{more}");
    }
    let elsewhere = with(json!({"gateways": ["istio-system/ingress"]}));
    assert_eq!((elsewhere.route, elsewhere.condition, elsewhere.refused), (None, None, false));
}

#[test]
fn every_match_is_read() {
    let matched = |written: Value| rule(json!({"match": [written]})).matches[0].clone();
    for (uri, ignoring, path) in [
        (json!({"exact": "/a"}), false, Some(PathMatch::Exact("/a".into()))),
        (json!({"exact": "/a"}), true, Some(PathMatch::ExactIgnoringCase("/a".into()))),
        (json!({"prefix": "/a/"}), false, Some(PathMatch::Prefix("/a/".into()))),
        (json!({"prefix": "/a/"}), true, Some(PathMatch::PrefixIgnoringCase("/a/".into()))),
        (json!({"regex": "/a.*"}), true, Some(PathMatch::Regex(Pattern::new("/a.*").unwrap()))),
        (json!({}), false, None),
    ] {
        assert_eq!(matched(json!({"uri": uri, "ignoreUriCase": ignoring})).path, path, "{uri}");
    }
    let exact = |text: &str| Some(TextMatch::Exact(text.into()));
    let all = matched(json!({
        "name": "n", "scheme": {"exact": "https"}, "method": {"exact": "PUT"}, "authority": {"prefix": "shop."},
        "headers": {"X-A": {"exact": "1"}, "x-b": {}}, "withoutHeaders": {"X-No": {"regex": "a+"}},
        "queryParams": {"q": {"exact": ""}}, "port": 9080, "gateways": ["mesh"]}));
    let header = |name: &str, value| HeaderMatch { name: name.into(), value };
    let expected = RequestMatch {
        path: None,
        scheme: exact("https"),
        method: exact("PUT"),
        authority: Some(TextMatch::Prefix("shop.".into())),
        headers: vec![header("x-a", TextMatch::Exact("1".into())), header("x-b", TextMatch::Present)],
        without_headers: vec![header("x-no", TextMatch::Regex(Pattern::new("a+").unwrap()))],
        query: all.query.clone(),
        port: Some(9080),
        claims: Vec::new(),
        without_claims: Vec::new(),
    };
    assert_eq!(all, expected);
    assert_eq!((&*all.query[0].name, &all.query[0].value), ("q", &TextMatch::Exact("".into())));
}

#[test]
fn claims_of_tokens_are_written_among_headers() {
    let matched = |more: Value| rule(json!({"match": [more]})).matches[0].clone();
    let read = matched(json!({
        "headers": {"x-a": {}, "@request.auth.claims.groups": {"exact": "Admin"},
            "@Request.Auth.Claims.org.Team": {"prefix": "s"}},
        "withoutHeaders": {"@request.auth.claims[a.b][c]": {}}}));
    assert_eq!(read.headers.len(), 1);
    let claim = |path: &[&str], value| ClaimMatch { path: path.iter().map(|one| (*one).into()).collect(), value };
    let exact = claim(&["groups"], TextMatch::Exact("Admin".into()));
    assert_eq!(read.claims, [claim(&["org", "Team"], TextMatch::Prefix("s".into())), exact]);
    assert_eq!(read.without_claims, [claim(&["a.b", "c"], TextMatch::Present)]);
}

#[test]
fn a_match_that_cannot_hold_at_a_waypoint_is_left_out_and_said_and_never_becomes_every_request() {
    for (never, field) in [
        (json!({"sourceLabels": {"app": "x"}}), "sourceLabels"),
        (json!({"sourceNamespace": "shop"}), "sourceNamespace"),
        (json!({"gateways": ["ingress"]}), "gateways"),
    ] {
        let read = with(json!([
            {"match": [never, {"uri": {"exact": "/a"}}], "route": to_details()},
            {"match": [never], "name": "gone", "route": to_details()}]));
        assert_eq!(told(&read).1, "PartiallyInvalid");
        assert!(told(&read).2.contains(field), "{}", told(&read).2);
        let rules = read.route.unwrap().rules;
        assert_eq!((rules.len(), rules[0].matches.len()), (1, 1), "{field}");
    }
}

#[test]
fn destinations_have_shares_subsets_and_ports() {
    let two = forward(json!({"route": [
        {"destination": {"host": "page", "subset": "v1", "port": {"number": 80}}, "weight": 90,
            "headers": {"request": {"set": {"X-To": "1%%"}}, "response": {"remove": ["Server"]}}},
        {"destination": {"host": "page.else.svc.cluster.local", "port": {"number": 8080}}, "weight": 10}]}));
    let found: Vec<_> = two
        .backends
        .iter()
        .map(|one| match &one.backend {
            RouteBackend::Service { service, port, subset } => {
                (service.to_string(), port.map(std::num::NonZeroU16::get), subset.as_deref(), one.weight)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let (own, other) = ("shop/page.shop.svc.cluster.local", "else/page.else.svc.cluster.local");
    assert_eq!(found, [(own.to_owned(), Some(80), Some("v1"), 90), (other.to_owned(), Some(8080), None, 10)]);
    assert_eq!(two.backends[0].request_headers.set, [("x-to".into(), "1%".into())]);
    assert_eq!(two.backends[0].response_headers.remove, ["server".into()]);
    let port_of = |host: &str| match &forward(json!({"route": [{"destination": {"host": host}}]})).backends[0] {
        stillmesh_core::model::http::WeightedBackend {
            backend: RouteBackend::Service { port, .. }, weight: 1, ..
        } => port.map(std::num::NonZeroU16::get),
        other => panic!("{other:?}"),
    };
    assert_eq!((port_of("details"), port_of("page")), (Some(9080), None), "the only port, or the one that was dialled");
    for (destination, part) in [
        (json!({"host": "nobody"}), "\"nobody\" is not a Service here"),
        (json!({"host": "details", "port": {"number": 1}}), "shop/details has no port 1"),
    ] {
        let read = with(json!([{"route": [{"destination": destination}]}]));
        assert_eq!(told(&read).1, "PartiallyInvalid");
        assert!(told(&read).2.contains(part) && told(&read).2.contains("answered 500"), "{}", told(&read).2);
        let RouteAction::Forward(forward) = &read.route.as_ref().unwrap().rules[0].action else { panic!() };
        assert!(matches!(&forward.backends[0].backend, RouteBackend::Invalid { .. }));
    }
}

#[test]
fn hosts_paths_and_headers_are_written_anew() {
    let path = |rewrite: Value| forward(json!({"rewrite": rewrite})).rewrite;
    assert_eq!(path(json!({"uri": "/x", "authority": "h"})).path, Some(PathRewrite::Prefix("/x".into())));
    assert_eq!(path(json!({"authority": "h"})).authority.as_deref(), Some("h"));
    let regex = path(json!({"uriRegexRewrite": {"match": "^/a/(.*)", "rewrite": "/b/\\1"}})).path;
    let Some(PathRewrite::Regex(substitution)) = regex else { panic!("{regex:?}") };
    assert_eq!(substitution.apply("/a/c"), "/b/c");
    // Envoy replaces the `/` of a rule that asks for no path.
    let any = PathMatch::Prefix("/".into());
    for matches in [json!([]), json!([{"method": {"exact": "GET"}}])] {
        let read = rule(json!({"match": matches, "rewrite": {"uri": "/x"}}));
        assert_eq!(read.matches[0].path, Some(any.clone()));
    }
    let edited = rule(json!({"headers": {
        "request": {"set": {"Host": "h", "X-A": "1"}, "add": {"X-B": "2"}, "remove": ["X-C"]},
        "response": {"add": {"X-D": "3"}}}}));
    assert_eq!(edited.request_headers.set, [("x-a".into(), "1".into())]);
    assert_eq!(edited.request_headers.remove, ["x-c".into()]);
    assert_eq!(edited.response_headers.add, [("x-d".into(), "3".into())]);
    let RouteAction::Forward(forward) = edited.action else { panic!() };
    assert_eq!(forward.rewrite.authority.as_deref(), Some("h"));
}

#[test]
fn redirects_and_answers_are_read() {
    let redirect = |written: Value| match rule(json!({"redirect": written})).action {
        RouteAction::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let all = redirect(json!({"uri": "/n", "authority": "h", "scheme": "https", "redirectCode": 308, "port": 8443}));
    assert_eq!((all.path, all.host.as_deref()), (Some(PathRewrite::Full("/n".into())), Some("h")));
    assert_eq!((all.scheme.as_deref(), all.status), (Some("https"), 308));
    assert_eq!(all.port, RedirectPort::Number(8443.try_into().unwrap()));
    for (written, port) in [
        (json!({"uri": "/n"}), RedirectPort::OfRequest),
        (json!({"authority": "h"}), RedirectPort::OfScheme),
        (json!({"derivePort": "FROM_PROTOCOL_DEFAULT"}), RedirectPort::OfScheme),
        (json!({"authority": "h", "derivePort": "FROM_REQUEST_PORT"}), RedirectPort::OfRequest),
    ] {
        assert_eq!((redirect(written.clone()).port, redirect(written).status), (port, 301));
    }
    let answer = |written: Value| match rule(json!({"directResponse": written})).action {
        RouteAction::Respond(respond) => (respond.status, respond.body.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(answer(json!({"status": 503, "body": {"string": "no"}})), (503, "no".to_owned()));
    assert_eq!(answer(json!({"status": 204})), (204, String::new()));
}

#[test]
fn times_retries_faults_mirrors_and_cors_are_read() {
    assert_eq!(forward(json!({"timeout": "0.5s"})).timeout, Some(Duration::from_millis(500)));
    assert_eq!(forward(json!({"timeout": "0s"})).timeout, None);
    assert_eq!(forward(json!({})).retry, None);
    let retry = |written: Value| forward(json!({"retries": written})).retry.unwrap();
    assert_eq!((retry(json!({"attempts": 0})).attempts, retry(json!({})).on), (0, vec![]));
    let said = retry(json!({"attempts": 3, "perTryTimeout": "2s", "backoff": "10ms",
        "retryOn": "5xx, gateway-error,reset,503,retriable-4xx,retriable-status-codes,deadline-exceeded",
        "retryRemoteLocalities": true, "retryIgnorePreviousHosts": false}));
    assert_eq!(
        (said.attempts, said.per_try, said.backoff),
        (3, Some(Duration::from_secs(2)), Some(Duration::from_millis(10)))
    );
    assert_eq!(
        said.on,
        [
            RetryOn::ServerError,
            RetryOn::GatewayError,
            RetryOn::Reset,
            RetryOn::Status(503),
            RetryOn::Conflict,
            RetryOn::Grpc(4)
        ]
    );
    let usual = [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Grpc(14), RetryOn::Grpc(1)];
    assert_eq!(retry(json!({"attempts": 2})).on, usual);

    let fault = |written: Value| rule(json!({"fault": written})).fault.unwrap();
    let share = Share::parts_per_million;
    let both = fault(json!({"delay": {"fixedDelay": "5s", "percentage": {"value": 0.5}},
        "abort": {"httpStatus": 503, "percentage": {"value": 100}}}));
    assert_eq!(both.delay, Some((Duration::from_secs(5), share(5000))));
    assert_eq!(both.abort, Some((Abort::Http(503), Share::ALL)));
    let grpc = fault(json!({"abort": {"grpcStatus": "UNAVAILABLE"}, "delay": {"fixedDelay": "1s", "percent": 7}}));
    assert_eq!(grpc.abort, Some((Abort::Grpc(14), share(0))), "nothing said is nobody");
    assert_eq!(grpc.delay.unwrap().1, share(70_000));

    let mirrors = |more: Value| -> Vec<u32> { forward(more).mirrors.iter().map(|one| one.share.get()).collect() };
    assert_eq!(mirrors(json!({"mirror": {"host": "page"}})), [1_000_000]);
    assert_eq!(mirrors(json!({"mirror": {"host": "page"}, "mirrorPercentage": {"value": 12.5}})), [125_000]);
    assert_eq!(mirrors(json!({"mirror": {"host": "page"}, "mirrorPercent": 3})), [30_000]);
    let several = json!({"mirrors": [{"destination": {"host": "page"}, "percentage": {"value": 1}},
        {"destination": {"host": "details"}}]});
    assert_eq!(mirrors(several), [10_000, 1_000_000]);

    let cors = rule(
        json!({"corsPolicy": {"allowOrigins": [{"exact": "https://a"}, {"exact": "*"}, {"prefix": "http://"}],
        "allowMethods": ["GET"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"], "maxAge": "24h", "allowCredentials": true}}),
    );
    let cors = cors.cors.unwrap();
    assert!(cors.forward_unmatched);
    assert!(!rule(json!({"corsPolicy": {"unmatchedPreflights": "IGNORE"}})).cors.unwrap().forward_unmatched);
    let expected = [TextMatch::Exact("https://a".into()), TextMatch::Present, TextMatch::Prefix("http://".into())];
    assert_eq!(
        (cors.origins, cors.max_age, cors.credentials),
        (expected.into(), Some(Duration::from_secs(86_400)), true)
    );
    assert_eq!((cors.methods, cors.headers, cors.expose), (vec!["GET".into()], vec!["x-a".into()], vec!["x-b".into()]));
}

#[test]
fn what_is_not_supported_refuses_the_whole_and_says_where() {
    for (more, part) in [
        (json!({"redirect": {"uri": "/"}, "route": to_details()}), "exactly one of"),
        (json!({"route": []}), "exactly one of"),
        (json!({"match": [{"uri": {"exact": "/", "prefix": "/"}}]}), "more than one of exact"),
        (json!({"match": [{"uri": {"regex": "("}}]}), "("),
        (json!({"match": [{"headers": {"uri": {"exact": "/"}}}]}), "the field uri"),
        (json!({"match": [{"headers": {"@request.auth.claims": {}}}]}), "@request.auth.claims.NAME"),
        (json!({"match": [{"headers": {"@request.auth.claims.a..b": {}}}]}), "@request.auth.claims.NAME"),
        (json!({"match": [{"headers": {"@request.auth.claims[a]b": {}}}]}), "@request.auth.claims.NAME"),
        (json!({"match": [{"withoutHeaders": {"@other": {}}}]}), "@request.auth.claims.NAME"),
        (json!({"headers": {"request": {"set": {"x": "%PROTOCOL%"}}}}), "percent signs"),
        (json!({"headers": {"request": {"remove": [":path"]}}}), ":path"),
        (json!({"timeout": "5"}), "\"5\" is not a duration"),
        (json!({"retries": {"attempts": 1, "retryOn": "retriable-headers"}}), "retriable-headers"),
        (json!({"fault": {"delay": {"exponentialDelay": "1s"}}}), "exponentialDelay"),
        (json!({"fault": {"abort": {"http2Error": "x"}}}), "grpcStatus is needed"),
        (json!({"fault": {"abort": {"httpStatus": 503, "percentage": {"value": 101}}}}), "101 is not a percentage"),
        (json!({"corsPolicy": {"unmatchedPreflights": "ODD"}}), "unmatchedPreflights"),
        (json!({"redirect": {"redirectCode": 200}}), "status 200"),
        (json!({"directResponse": {"status": 200, "body": {"bytes": "AA=="}}}), "bytes"),
        (json!({"rewrite": {"uri": "/", "uriRegexRewrite": {"match": "/", "rewrite": "/"}}}), "do not go together"),
        (
            json!({"route": [{"destination": {"host": "page"}}, {"destination": {"host": "details"}}]}),
            "add up to nothing",
        ),
    ] {
        let mut written = more.clone();
        let alone = ["redirect", "directResponse", "route"].iter().any(|key| more.get(key).is_some());
        if !alone {
            written["route"] = to_details();
        }
        let read = with(json!([{"route": to_details()}, written]));
        assert!(read.refused && read.route.is_none(), "{more}");
        assert_eq!((told(&read).0, told(&read).1), ("False", "Invalid"), "{more}");
        assert!(
            told(&read).2.starts_with("spec.http[1]: ") && told(&read).2.contains(part),
            "{more}: {}",
            told(&read).2
        );
    }
}
