//! Routes: round trips of everything that the model can say, and what is refused.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use stillmesh_core::model::http::*;
use stillmesh_core::model::stream::{ServerName, StreamBackend, StreamMatch, StreamRule};
use stillmesh_core::model::{ServiceKey, Str};
use stillmesh_core::snapshot::Change;

use crate::codec::{decode, name, removed, route};
use crate::xds::ResourceType;

fn text() -> impl Strategy<Value = Str> {
    "[a-zé0-9/.*-]{1,12}".prop_map(Str::from)
}

fn word() -> impl Strategy<Value = Str> {
    "[a-z0-9.-]{1,12}".prop_map(Str::from)
}

fn service() -> impl Strategy<Value = ServiceKey> {
    (word(), word()).prop_map(|(namespace, hostname)| ServiceKey::new(namespace, hostname))
}

fn time() -> impl Strategy<Value = Duration> {
    (0..u64::from(u32::MAX), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn share() -> impl Strategy<Value = Share> {
    (0..=1_000_000u32).prop_map(Share::parts_per_million)
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        text().prop_map(TextMatch::Exact),
        text().prop_map(TextMatch::Prefix),
        "[a-z]{0,4}\\.\\*".prop_map(|text| TextMatch::Regex(Pattern::new(&text).unwrap())),
        Just(TextMatch::Present),
    ]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        text().prop_map(PathMatch::Exact),
        text().prop_map(|text| PathMatch::segments(&text)),
        text().prop_map(PathMatch::Prefix),
        "/[a-z]{0,4}\\.\\*".prop_map(|text| PathMatch::Regex(Pattern::new(&text).unwrap())),
        text().prop_map(PathMatch::ExactIgnoringCase),
        text().prop_map(PathMatch::PrefixIgnoringCase),
    ]
}

fn claim() -> impl Strategy<Value = ClaimMatch> {
    (vec(word(), 1..3), text_match()).prop_map(|(path, value)| ClaimMatch { path, value })
}

prop_compose! {
    fn request_match()(
        path in option::of(path_match()), method in option::of(text_match()), authority in option::of(text_match()),
        scheme in option::of(text_match()), headers in vec((word(), text_match()), 0..2),
        without in vec((word(), text_match()), 0..2), query in vec((word(), text_match()), 0..2),
        port in option::of(1..=u16::MAX),
        claims in vec(claim(), 0..2), without_claims in vec(claim(), 0..2),
    ) -> RequestMatch {
        let header = |(name, value)| HeaderMatch { name, value };
        RequestMatch {
            port, claims, without_claims,
            path, method, authority, scheme,
            headers: headers.into_iter().map(header).collect(),
            without_headers: without.into_iter().map(header).collect(),
            query: query.into_iter().map(|(name, value)| QueryMatch { name, value }).collect(),
        }
    }
}

fn edit() -> impl Strategy<Value = HeaderEdit> {
    let pairs = || vec((word(), "[ -~]{0,8}".prop_map(Str::from)), 0..2);
    (pairs(), pairs(), vec(word(), 0..2)).prop_map(|(set, add, remove)| HeaderEdit { set, add, remove })
}

fn backend() -> impl Strategy<Value = RouteBackend> {
    let port = option::of((1..=u16::MAX).prop_map(|port| port.try_into().unwrap()));
    prop_oneof![
        (service(), port, option::of(word())).prop_map(|(service, port, subset)| RouteBackend::Service {
            service,
            port,
            subset
        }),
        text().prop_map(|problem| RouteBackend::Invalid { problem }),
    ]
}

fn rewrite() -> impl Strategy<Value = PathRewrite> {
    prop_oneof![
        text().prop_map(PathRewrite::Full),
        text().prop_map(PathRewrite::Prefix),
        text().prop_map(|to| PathRewrite::Regex(Substitution::new("/v([0-9])", &to).unwrap())),
    ]
}

fn retry() -> impl Strategy<Value = Retry> {
    let on = prop_oneof![
        prop::sample::select(vec![
            RetryOn::ConnectFailure,
            RetryOn::RefusedStream,
            RetryOn::Reset,
            RetryOn::PerTryTimeout,
            RetryOn::GatewayError,
            RetryOn::ServerError,
            RetryOn::Conflict,
        ]),
        (100..600u16).prop_map(RetryOn::Status),
        (0..=16u16).prop_map(RetryOn::Grpc),
    ];
    (any::<u32>(), option::of(time()), option::of(time()), vec(on, 0..3))
        .prop_map(|(attempts, per_try, backoff, on)| Retry { attempts, per_try, backoff, on })
}

prop_compose! {
    fn forward()(
        backends in vec((backend(), any::<u32>(), edit(), edit(), option::of(word())), 0..3),
        authority in option::of(word()), path in option::of(rewrite()), mirrors in vec((backend(), share()), 0..2),
        timeout in option::of(time()), retry in option::of(retry()),
    ) -> Forward {
        let weighted = |(backend, weight, request_headers, response_headers, authority)| {
            WeightedBackend { backend, weight, request_headers, response_headers, authority }
        };
        Forward {
            backends: backends.into_iter().map(weighted).collect(),
            rewrite: Rewrite { authority, path },
            mirrors: mirrors.into_iter().map(|(backend, share)| Mirror { backend, share }).collect(),
            timeout, retry,
        }
    }
}

fn action() -> impl Strategy<Value = RouteAction> {
    let port = prop_oneof![
        Just(RedirectPort::Derived),
        Just(RedirectPort::OfScheme),
        Just(RedirectPort::OfRequest),
        (1..=u16::MAX).prop_map(|port| RedirectPort::Number(port.try_into().unwrap())),
    ];
    let redirect = (option::of(word()), option::of(word()), port, option::of(rewrite()), 300..400u16)
        .prop_map(|(scheme, host, port, path, status)| Redirect { scheme, host, port, path, status });
    prop_oneof![
        forward().prop_map(RouteAction::Forward),
        redirect.prop_map(RouteAction::Redirect),
        (100..600u16, "[ -~]{0,8}")
            .prop_map(|(status, body)| RouteAction::Respond(Respond { status, body: body.into() })),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let abort = prop_oneof![(100..600u16).prop_map(Abort::Http), (0..=16u16).prop_map(Abort::Grpc)];
    (option::of((time(), share())), option::of((abort, share()))).prop_map(|(delay, abort)| Fault { delay, abort })
}

prop_compose! {
    fn cors()(
        origins in vec(text_match(), 0..2), methods in vec(word(), 0..2), headers in vec(word(), 0..2),
        expose in vec(word(), 0..2), max_age in option::of(time()), credentials in any::<bool>(),
        forward_unmatched in any::<bool>(),
    ) -> Cors {
        Cors { origins, methods, headers, expose, max_age, credentials, forward_unmatched }
    }
}

prop_compose! {
    fn rule()(
        name in option::of(word()), matches in vec(request_match(), 0..3), action in action(),
        request_headers in edit(), response_headers in edit(), fault in option::of(fault()), cors in option::of(cors()),
    ) -> RouteRule {
        RouteRule { name, matches, action, request_headers, response_headers, fault, cors }
    }
}

fn stream() -> impl Strategy<Value = StreamRule> {
    let name =
        prop_oneof![word().prop_map(ServerName::Exact), word().prop_map(ServerName::Suffix), Just(ServerName::Any),];
    let matched =
        (vec(name, 0..3), option::of(1..=u16::MAX)).prop_map(|(server_names, port)| StreamMatch { server_names, port });
    let weighted = (backend(), any::<u32>()).prop_map(|(backend, weight)| StreamBackend { backend, weight });
    (option::of(word()), vec(matched, 0..3), vec(weighted, 0..3)).prop_map(|(name, matches, backends)| StreamRule {
        name,
        matches,
        backends,
    })
}

prop_compose! {
    fn http_route()(
        kind in prop::sample::select(RouteKind::ALL.to_vec()),
        namespace in word(), name in word(), parents in vec((service(), option::of(1..=u16::MAX)), 0..3),
        consumer in option::of(word()), created in any::<i64>(), rules in vec(rule(), 0..3),
        streams in vec(stream(), 0..3),
    ) -> HttpRoute {
        HttpRoute {
            key: RouteKey { kind, namespace, name },
            parents: parents.into_iter().map(|(service, port)| RouteParent { service, port }).collect(),
            consumer, created, rules, streams,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(route in http_route()) {
        let change = Change::Route(route.clone().into());
        let (kind, name) = name(&change);
        prop_assert_eq!(decode(kind, &name, route::encode(&route).into()), Ok(change));
        prop_assert_eq!(removed(kind, &name), Some(Change::RouteRemoved(route.key)));
    }

    #[test]
    fn a_byte_changed_is_another_route_or_refused_and_never_a_panic(
        route in http_route(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut bytes = route::encode(&route);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(read) = route::decode(&route::name(&route.key), bytes.into()) {
            let again = route::decode(&route::name(&read.key), route::encode(&read).into());
            prop_assert_eq!(again, Ok(read));
        }
    }
}

fn plain() -> HttpRoute {
    HttpRoute {
        key: RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "page".into() },
        parents: Vec::new(),
        consumer: None,
        created: 7,
        rules: Vec::new(),
        streams: Vec::new(),
    }
}

fn refused(name: &str, bytes: Vec<u8>) -> String {
    decode(ResourceType::Route, name, bytes.into()).unwrap_err().to_string()
}

#[test]
fn what_a_newer_controller_says_besides_refuses_the_route() {
    let mut bytes = route::encode(&plain());
    // Field 99, a number.
    bytes.extend([0x98, 0x06, 0x01]);
    let error = refused("HTTPRoute/shop/page", bytes);
    assert!(error.contains("HTTPRoute/shop/page: route: has parts that this version does not know"), "{error}");
}

#[test]
fn a_route_under_another_name_is_refused() {
    for name in ["HTTPRoute/shop/other", "GRPCRoute/shop/page", "shop/page", "HTTPRoute/shop", "Route/shop/page"] {
        let error = refused(name, route::encode(&plain()));
        assert!(error.contains(name) && error.contains("HTTPRoute/shop/page"), "{error}");
    }
}

#[test]
fn parts_without_meaning_are_refused_with_their_field() {
    use crate::proto::stillmesh::config::v1 as wire;
    let with = |rule: wire::Rule| {
        let route = wire::HttpRoute {
            namespace: "shop".to_owned(),
            name: "page".to_owned(),
            rules: vec![rule],
            ..wire::HttpRoute::default()
        };
        refused("HTTPRoute/shop/page", route.encode_to_vec())
    };
    let respond = |status| Some(wire::rule::Action::Respond(wire::Respond { status, body: String::new() }));
    let path = |kind| wire::RequestMatch { path: Some(wire::PathMatch { kind }), ..wire::RequestMatch::default() };
    let regex = wire::path_match::Kind::Regex("(".to_owned());
    let to_nobody = wire::rule::Action::Forward(wire::Forward {
        backends: vec![wire::WeightedBackend::default()],
        ..wire::Forward::default()
    });
    let nameless = wire::RequestMatch { claims: vec![wire::ClaimMatch::default()], ..wire::RequestMatch::default() };
    for (rule, field) in [
        (wire::Rule { action: respond(200), matches: vec![nameless], ..wire::Rule::default() }, "rules.matches.claims"),
        (wire::Rule::default(), "rules.action"),
        (wire::Rule { action: respond(99), ..wire::Rule::default() }, "rules.respond.status"),
        (wire::Rule { action: Some(to_nobody), ..wire::Rule::default() }, "rules.forward.backends"),
        (wire::Rule { action: respond(200), matches: vec![path(None)], ..wire::Rule::default() }, "rules.matches.path"),
        (
            wire::Rule { action: respond(200), matches: vec![path(Some(regex))], ..wire::Rule::default() },
            "not a regular expression|rules.matches.path",
        ),
    ] {
        let error = with(rule);
        assert!(field.split('|').any(|field| error.contains(field)), "{error}");
    }
}

#[test]
fn parts_of_rules_for_connections_without_meaning_are_refused_with_their_field() {
    use crate::proto::stillmesh::config::v1 as wire;
    let with = |streams: Vec<wire::StreamRule>| {
        let (namespace, name) = ("shop".to_owned(), "page".to_owned());
        let kind = wire::RouteKind::TlsRoute.into();
        let route = wire::HttpRoute { kind, namespace, name, streams, ..wire::HttpRoute::default() };
        refused("TLSRoute/shop/page", route.encode_to_vec())
    };
    let matched = |kind, port| wire::StreamRule {
        matches: vec![wire::StreamMatch { server_names: vec![wire::ServerName { kind }], port }],
        ..wire::StreamRule::default()
    };
    let any = |any| Some(wire::server_name::Kind::Any(any));
    let to_nobody = wire::StreamRule { backends: vec![wire::StreamBackend::default()], ..wire::StreamRule::default() };
    for (rule, field) in [
        (matched(None, 0), "streams.matches.server_names"),
        (matched(any(false), 0), "streams.matches.server_names"),
        (matched(any(true), 65536), "streams.matches.port"),
        (to_nobody, "streams.backends"),
    ] {
        let error = with(vec![rule]);
        assert!(error.contains(field), "{error}");
    }
}
