use std::num::NonZeroU16;

use serde_json::{Value, json};
use stillmesh_core::model::http::{PathRewrite, Pattern, RedirectPort, RouteBackend};

use super::*;
use crate::translate::route::fixtures::{World, message, page, said};

fn translated(spec: Value) -> Routed {
    let written = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z"}, "spec": spec});
    http_route(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

/// A route of one rule.
fn with(rule: Value) -> Routed {
    translated(json!({"parentRefs": [page()], "rules": [rule]}))
}

fn rule(rule: Value) -> RouteRule {
    let routed = with(rule);
    assert_eq!(said(&routed)[0], ("Accepted", "True", "Accepted"), "{:?}", routed.parents);
    routed.routes[0].rules[0].clone()
}

fn forward(written: Value) -> Forward {
    match rule(written).action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_is_for_the_services_it_names_in_its_namespace_for_everybody() {
    let routed = translated(json!({
        "parentRefs": [page(), {"group": "", "kind": "Service", "name": "page", "port": 8080}, {"name": "a-gateway"}],
        "rules": [{"backendRefs": [{"name": "details", "port": 9080}]}],
    }));
    let [route] = routed.routes.as_slice() else { panic!("{routed:?}") };
    assert_eq!(route.key.to_string(), "HTTPRoute shop/r");
    assert_eq!((route.consumer.as_ref(), route.created), (None, 1_767_323_045));
    let hosts: Vec<_> = route.parents.iter().map(|parent| (parent.service.to_string(), parent.port)).collect();
    let page = "shop/page.shop.svc.cluster.local".to_owned();
    assert_eq!(hosts, [(page.clone(), None), (page, Some(8080))]);
    assert_eq!(routed.parents.len(), 2, "a Gateway that is not a waypoint is somebody else's to speak of");
    assert_eq!(said(&routed), [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")]);
}

#[test]
fn a_waypoint_is_no_parent_and_a_service_beside_it_is() {
    let routed = translated(json!({"parentRefs": [{"name": "w"}, page()], "rules": [{}]}));
    assert_eq!(routed.routes.len(), 1);
    let told: Vec<_> =
        routed.parents.iter().map(|said| (said.conditions[0].status, said.conditions[0].reason)).collect();
    assert_eq!(told, [("False", "NotAllowedByListeners"), ("True", "Accepted")]);
    let broken = json!({"parentRefs": [{"name": "w"}, page()], "rules": [{"sessionPersistence": {}}]});
    let mut routed = translated(broken);
    routed.stays_as_it_was();
    let stays = |at: usize| routed.parents[at].conditions[0].message.contains("stays in force");
    assert!(routed.refused && !stays(0) && stays(1), "what never was is not kept: {:?}", routed.parents);
}

#[test]
fn a_route_on_another_namespaces_service_is_for_its_own_clients() {
    let other = json!({"group": "", "kind": "Service", "name": "page", "namespace": "else"});
    let routed = translated(json!({"parentRefs": [page(), other], "rules": [{}]}));
    let found: Vec<_> =
        routed.routes.iter().map(|route| (route.key.name.to_string(), route.consumer.as_deref())).collect();
    assert_eq!(found, [("r".to_owned(), None), ("r@consumer".to_owned(), Some("shop"))]);
}

#[test]
fn a_parent_that_is_not_there_does_not_take_the_route() {
    for (parent, part) in [
        (json!({"group": "", "kind": "Service", "name": "nobody"}), "Service shop/nobody is not there"),
        (json!({"group": "", "kind": "Service", "name": "page", "port": 81}), "has no port 81"),
        (json!({"group": "", "kind": "Service", "name": "page", "sectionName": "http"}), "sectionName"),
    ] {
        let routed = translated(json!({"parentRefs": [parent], "rules": [{}]}));
        assert!(routed.routes.is_empty());
        assert_eq!(said(&routed)[0], ("Accepted", "False", "NoMatchingParent"));
        assert!(message(&routed).contains(part), "{}", message(&routed));
    }
}

#[test]
fn what_a_match_leaves_out_has_its_default() {
    let matched = |written: Value| rule(json!({"matches": [written]})).matches[0].clone();
    assert_eq!(matched(json!({})).path, Some(PathMatch::segments("/")));
    assert_eq!(matched(json!({"path": {"value": "/a/"}})).path, Some(PathMatch::Segments("/a".into())));
    assert_eq!(matched(json!({"path": {"type": "Exact", "value": "/a/"}})).path, Some(PathMatch::Exact("/a/".into())));
    let regex = matched(json!({"path": {"type": "RegularExpression", "value": "/a+"}}));
    assert_eq!(regex.path, Some(PathMatch::Regex(Pattern::new("/a+").unwrap())));
    let all = matched(json!({"method": "PUT",
        "headers": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}],
        "queryParams": [{"name": "q", "value": "1", "type": "RegularExpression"}]}));
    assert_eq!(all.method, Some(TextMatch::Exact("PUT".into())));
    assert_eq!(all.headers, [HeaderMatch { name: "x-a".into(), value: TextMatch::Exact("1".into()) }]);
    let value = TextMatch::Regex(Pattern::new("1").unwrap());
    assert_eq!(all.query, [QueryMatch { name: "q".into(), value }]);
    assert_eq!(rule(json!({})).matches, []);
}

#[test]
fn backends_have_their_weights_edits_and_hosts() {
    let written = json!({"backendRefs": [
        {"name": "details", "port": 9080, "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-To", "value": "d"}]}},
            {"type": "URLRewrite", "urlRewrite": {"hostname": "d.example"}}]},
        {"name": "page", "namespace": "else", "port": 80, "weight": 0}]});
    let forward = forward(written);
    let backends: Vec<_> = forward.backends.iter().map(|one| (one.weight, one.authority.as_deref())).collect();
    assert_eq!(backends, [(1, Some("d.example")), (0, None)]);
    assert_eq!(forward.backends[0].request_headers.set, [("x-to".into(), "d".into())]);
    let RouteBackend::Service { service, port, .. } = &forward.backends[1].backend else { panic!("{forward:?}") };
    assert_eq!((service.to_string().as_str(), port.unwrap().get()), ("else/page.else.svc.cluster.local", 80));
}

#[test]
fn a_backend_that_cannot_be_used_is_500_for_its_share_and_said() {
    for (backend, reason, part) in [
        (json!({"name": "nobody", "port": 80}), "BackendNotFound", "Service shop/nobody is not there"),
        (json!({"name": "details", "port": 80}), "BackendNotFound", "no port 80"),
        (json!({"name": "details"}), "UnsupportedValue", "port is missing"),
        (json!({"name": "page", "namespace": "closed", "port": 80}), "RefNotPermitted", "ReferenceGrant in closed"),
        (json!({"kind": "Bucket", "group": "x.io", "name": "b"}), "InvalidKind", "Bucket"),
    ] {
        let routed = with(json!({"backendRefs": [backend, {"name": "details", "port": 9080}]}));
        assert_eq!(said(&routed), [("Accepted", "True", "Accepted"), ("ResolvedRefs", "False", reason)]);
        assert!(message(&routed).contains(part), "{}", message(&routed));
        let RouteAction::Forward(forward) = &routed.routes[0].rules[0].action else { panic!("{routed:?}") };
        assert!(matches!(&forward.backends[0].backend, RouteBackend::Invalid { .. }));
        assert!(matches!(&forward.backends[1].backend, RouteBackend::Service { .. }));
    }
}

#[test]
fn a_consumers_route_leads_to_its_one_parent_without_a_grant_and_to_nothing_else_there() {
    let page = json!({"group": "", "kind": "Service", "name": "page", "namespace": "closed"});
    let details = json!({"group": "", "kind": "Service", "name": "details"});
    let resolved = |parents: Value| {
        let backend = json!({"name": "page", "namespace": "closed", "port": 80});
        said(&translated(json!({"parentRefs": parents, "rules": [{"backendRefs": [backend]}]})))[1].2
    };
    assert_eq!(resolved(json!([page])), "ResolvedRefs");
    assert_eq!(resolved(json!([details])), "RefNotPermitted");
    // What is sent to another parent would go there too.
    assert_eq!(resolved(json!([page, details])), "RefNotPermitted");
}

#[test]
fn filters_become_edits_mirrors_rewrites_redirects_and_cors() {
    let read = rule(json!({"filters": [
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "A", "value": "1"}], "remove": ["B"]}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "details", "port": 9080}, "percent": 42}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "page", "port": 80},
            "fraction": {"numerator": 5, "denominator": 1000}}},
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "page", "port": 80}}},
        {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}},
        {"type": "CORS", "cors": {"allowOrigins": ["https://*.shop.example", "*", "https://a.example"], "maxAge": 7}}]}));
    assert_eq!((read.response_headers.add.len(), read.response_headers.remove), (1, vec!["b".into()]));
    let RouteAction::Forward(forward) = read.action else { panic!() };
    let shares: Vec<u32> = forward.mirrors.iter().map(|mirror| mirror.share.get()).collect();
    assert_eq!(shares, [420_000, 5_000, 1_000_000]);
    assert_eq!(forward.rewrite.path, Some(PathRewrite::Prefix("/x".into())));
    let cors = read.cors.unwrap();
    let allowed = |origin: &str| cors.origins.iter().map(|one| one.holds(origin)).collect::<Vec<_>>();
    assert_eq!(allowed("https://b.shop.example"), [true, true, false]);
    assert_eq!(allowed("https://b.shop!example"), [false, true, false]);
    assert_eq!((cors.max_age, cors.credentials), (Some(Duration::from_secs(7)), false));
    let moved =
        rule(json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443,
        "statusCode": 301, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}}}]}));
    let RouteAction::Redirect(redirect) = moved.action else { panic!("{moved:?}") };
    assert_eq!((redirect.scheme.as_deref(), redirect.status), (Some("https"), 301));
    assert_eq!(redirect.port, RedirectPort::Number(NonZeroU16::new(8443).unwrap()));
}

#[test]
fn timeouts_and_retries_are_read() {
    let times = forward(json!({"timeouts": {"request": "1m30s", "backendRequest": "500ms"}}));
    assert_eq!(times.timeout, Some(Duration::from_secs(90)));
    let retry = times.retry.unwrap();
    assert_eq!((retry.attempts, retry.per_try, retry.on), (0, Some(Duration::from_millis(500)), vec![]));
    assert_eq!(forward(json!({"timeouts": {"request": "0s"}})).timeout, None);
    let retry = forward(json!({"retry": {"codes": [503], "attempts": 3, "backoff": "100ms"}})).retry.unwrap();
    assert_eq!((retry.attempts, retry.backoff), (3, Some(Duration::from_millis(100))));
    assert!(retry.on.contains(&RetryOn::Status(503)) && retry.on.contains(&RetryOn::ConnectFailure));
    assert_eq!(forward(json!({})).retry, None);
}

#[test]
fn what_is_not_supported_refuses_the_whole_route_and_says_so() {
    let filter = |filter: Value| json!({"filters": [filter]});
    for (written, reason, part) in [
        (filter(json!({"type": "ExtensionRef", "extensionRef": {}})), "UnsupportedValue", "ExtensionRef"),
        (filter(json!({"type": "URLRewrite"})), "UnsupportedValue", "URLRewrite"),
        (
            filter(json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "Other"}}})),
            "UnsupportedValue",
            "\"Other\"",
        ),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 200}})),
            "UnsupportedValue",
            "status 200",
        ),
        (
            filter(json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "page", "port": 80},
                "percent": 101}})),
            "UnsupportedValue",
            "101 of 100",
        ),
        (
            json!({"filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "a"}}, {"type": "URLRewrite", "urlRewrite": {"hostname": "b"}}]}),
            "IncompatibleFilters",
            "twice",
        ),
        (
            json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a"}},
                {"type": "RequestRedirect", "requestRedirect": {}}]}),
            "IncompatibleFilters",
            "URLRewrite",
        ),
        (json!({"sessionPersistence": {}}), "UnsupportedValue", "sessionPersistence"),
        (json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}), "UnsupportedValue", "\"(\""),
        (json!({"matches": [{"path": {"type": "Glob", "value": "/*"}}]}), "UnsupportedValue", "\"Glob\""),
        (json!({"timeouts": {"request": "10"}}), "UnsupportedValue", "\"10\""),
        (
            json!({"backendRefs": [{"name": "page", "port": 80, "filters": [
                {"type": "RequestRedirect", "requestRedirect": {}}]}]}),
            "UnsupportedValue",
            "at a backendRef",
        ),
    ] {
        let routed = with(written.clone());
        assert!(routed.routes.is_empty(), "{written}");
        assert_eq!(said(&routed)[0], ("Accepted", "False", reason), "{written}");
        assert!(message(&routed).contains(part), "{written}: {}", message(&routed));
    }
}

#[test]
fn durations_are_those_of_the_gateway_api() {
    for (text, millis) in
        [("0s", 0), ("1h", 3_600_000), ("1h30m", 5_400_000), ("10s500ms", 10_500), ("99999ms", 99_999)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "1", "s", "-1s", "1.5s", "1d", "100000s", "1h1h1h1h1h", "1 s", "1S"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn an_http_route_gives_way_to_what_grpc_routes_take() {
    let of = |parent: Value| translated(json!({"parentRefs": [parent], "rules": [{}]}));
    let mixed = || json!({"group": "", "kind": "Service", "name": "mixed"});
    let on = |port: u16| of(json!({"group": "", "kind": "Service", "name": "mixed", "port": port}));
    assert_eq!(said(&on(8080))[0], ("Accepted", "False", "Conflicted"));
    assert!(on(8080).routes.is_empty() && message(&on(8080)).contains("mixed, port 8080 has GRPCRoutes"));
    assert_eq!(said(&on(80))[0], ("Accepted", "True", "Accepted"));
    assert_eq!(said(&of(mixed()))[0], ("Accepted", "True", "Accepted"), "a port is left");
    let consumed = of(json!({"group": "", "kind": "Service", "name": "page", "namespace": "closed"}));
    assert_eq!(said(&consumed)[0], ("Accepted", "False", "Conflicted"));
}

#[test]
fn a_route_is_accepted_at_a_service_that_has_no_port_yet() {
    let bare = json!({"group": "", "kind": "Service", "name": "bare"});
    let routed = translated(json!({"parentRefs": [bare], "rules": [{}]}));
    assert_eq!(said(&routed)[0], ("Accepted", "True", "Accepted"), "{}", message(&routed));
}
