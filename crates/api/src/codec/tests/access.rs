//! What decides about requests: what is written is read, and what is not known refuses.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use stillmesh_core::model::access::{
    Access, Alternative, Attachment, ClaimHeader, Condition, JwtKeys, JwtRule, PathNormalization, PathPattern,
    PathTemplate, RequestAction, RequestAuthentication, RequestClause, RequestPolicy, RequestRule, RequestSettings,
    Sense, TokenLocation, Wanted,
};
use stillmesh_core::model::telemetry::{
    Collector, FileLog, LogRule, MetricName, MetricOverride, MetricRule, Provider, ProviderKind, SpanTag, TagValue,
    Telemetry, TelemetryScope, TelemetrySettings, TraceRule,
};
use stillmesh_core::model::{PolicyKey, ServiceAccountMatch, ServiceKey, Str, StringMatch};
use stillmesh_core::observe::{Expression, Layout, Redaction};
use stillmesh_core::snapshot::Change;

use crate::codec::{access, decode, name, removed};
use crate::xds::ResourceType;

fn word() -> impl Strategy<Value = Str> {
    "[a-z]{1,6}".prop_map(Str::from)
}

fn key() -> impl Strategy<Value = PolicyKey> {
    (word(), word()).prop_map(|(namespace, name)| PolicyKey::new(namespace, name))
}

fn string() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        word().prop_map(StringMatch::Exact),
        word().prop_map(StringMatch::Prefix),
        word().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn path() -> impl Strategy<Value = PathPattern> {
    let template = select(vec!["/{*}", "/a/{*}/b", "/{**}", "/a/{*}/{**}/b"]);
    prop_oneof![
        string().prop_map(PathPattern::Text),
        template.prop_map(|text| PathPattern::Template(PathTemplate::new(text).unwrap())),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let texts = || vec(string(), 0..3);
    let nets = || vec(select(vec!["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]), 0..3);
    let nets = move || nets().prop_map(|nets| nets.into_iter().map(|net| net.parse().unwrap()).collect());
    let account =
        (word(), word()).prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
    prop_oneof![
        texts().prop_map(Wanted::Namespace),
        texts().prop_map(Wanted::Principal),
        vec(account, 0..3).prop_map(Wanted::ServiceAccount),
        nets().prop_map(Wanted::SourceIp),
        nets().prop_map(Wanted::RemoteIp),
        nets().prop_map(Wanted::DestinationIp),
        vec(any::<u16>(), 0..3).prop_map(Wanted::DestinationPort),
        texts().prop_map(Wanted::ServerName),
        texts().prop_map(Wanted::RequestPrincipal),
        texts().prop_map(Wanted::Audience),
        texts().prop_map(Wanted::Presenter),
        (vec(word(), 1..3), texts()).prop_map(|(path, values)| Wanted::Claim { path, values }),
        texts().prop_map(Wanted::host),
        texts().prop_map(Wanted::Method),
        vec(path(), 0..3).prop_map(Wanted::Path),
        (word(), texts()).prop_map(|(name, values)| Wanted::header(&name, values)),
    ]
}

prop_compose! {
    fn condition()(sense in select(vec![Sense::AnyOf, Sense::NoneOf]), wanted in wanted()) -> Condition {
        Condition { sense, wanted }
    }
}

fn rules() -> impl Strategy<Value = Vec<RequestRule>> {
    let alternative = vec(condition(), 0..3).prop_map(|conditions| Alternative { conditions });
    let clause = vec(alternative, 0..3).prop_map(|alternatives| RequestClause { alternatives });
    vec(vec(clause, 0..3).prop_map(|clauses| RequestRule { clauses }), 0..3)
}

fn services() -> impl Strategy<Value = Vec<ServiceKey>> {
    vec((word(), word()).prop_map(|(namespace, hostname)| ServiceKey::new(namespace, hostname)), 1..3)
}

prop_compose! {
    fn policy()(
        key in key(), services in services(), rules in rules(), dry_run in any::<bool>(), unreadable in option::of(word()),
        action in select(vec![RequestAction::Allow, RequestAction::Deny, RequestAction::Audit]),
    ) -> Access {
        let attached = Attachment::To(services);
        Access::Policy(RequestPolicy { key, attached, action, rules, dry_run, unreadable })
    }
}

fn keys() -> impl Strategy<Value = JwtKeys> {
    prop_oneof![word().prop_map(JwtKeys::Inline), word().prop_map(JwtKeys::At), Just(JwtKeys::Discovered)]
}

fn location() -> impl Strategy<Value = TokenLocation> {
    prop_oneof![
        (word(), "[A-Za-z ]{0,4}").prop_map(|(name, prefix)| TokenLocation::Header { name, prefix: prefix.into() }),
        word().prop_map(TokenLocation::Parameter),
        word().prop_map(TokenLocation::Cookie),
    ]
}

prop_compose! {
    fn jwt_rule()(
        issuer in word(), audiences in vec(word(), 0..3), keys in keys(), from in vec(location(), 0..3),
        forwards_token in any::<bool>(), payload_header in option::of(word()),
        claim_headers in vec((word(), word()), 0..3), timeout in (0..100u64, 0..1_000_000_000u32),
    ) -> JwtRule {
        JwtRule {
            issuer, audiences, keys, from, forwards_token, payload_header,
            claim_headers: claim_headers.into_iter().map(|(header, claim)| ClaimHeader { header, claim }).collect(),
            timeout: std::time::Duration::new(timeout.0, timeout.1),
        }
    }
}

prop_compose! {
    fn authentication()(
        key in key(), services in services(), rules in vec(jwt_rule(), 0..3), unreadable in option::of(word()),
    ) -> Access {
        Access::Authentication(RequestAuthentication { key, attached: Attachment::To(services), rules, unreadable })
    }
}

prop_compose! {
    fn settings()(
        key in key(), normalization in select(PathNormalization::ALL.to_vec()),
        gateways in vec((word(), word()), 0..3),
    ) -> Access {
        let gateway = |(namespace, account)| format!("spiffe://td/ns/{namespace}/sa/{account}").parse().unwrap();
        Access::Settings(RequestSettings { key, normalization, gateways: gateways.into_iter().map(gateway).collect() })
    }
}

fn expression() -> impl Strategy<Value = Expression> {
    select(vec!["response.code >= 400", "request.headers['a'] == 'b' || has(request.id)", "string(destination.port)"])
        .prop_map(|text| Expression::read(text).unwrap())
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        "[a-z%]{0,9}".prop_map(|text| Layout::Text(text.into())),
        vec((word(), word()), 0..3).prop_map(Layout::Json),
    ]
}

prop_compose! {
    fn collector()(
        host in word(), port in any::<u16>(), path in option::of(word()), timeout in 0..100u64, log_name in word(),
        layout in option::of(layout()), longest in option::of(any::<u32>()),
    ) -> Collector {
        Collector { host, port, path, timeout: std::time::Duration::from_secs(timeout), log_name, layout, longest }
    }
}

fn file_log() -> impl Strategy<Value = FileLog> {
    (word(), layout()).prop_map(|(path, layout)| FileLog { path, layout })
}

fn provider() -> impl Strategy<Value = Provider> {
    let kind = prop_oneof![
        file_log().prop_map(ProviderKind::File),
        collector().prop_map(ProviderKind::LogCollector),
        collector().prop_map(ProviderKind::TraceCollector),
        select(vec![ProviderKind::Zipkin, ProviderKind::Prometheus]),
    ];
    (word(), kind).prop_map(|(name, kind)| Provider { name, kind })
}

prop_compose! {
    fn telemetry_settings()(
        key in key(), providers in vec(provider(), 0..3), default_logs in vec(word(), 0..2),
        default_tracing in vec(word(), 0..2), log in option::of(file_log()), layout in layout(),
        sampling in option::of(0..10_000u32), headers in vec(word(), 0..3), parameters in vec(word(), 0..3),
    ) -> Access {
        let redaction = Redaction { headers, parameters };
        Access::TelemetrySettings(TelemetrySettings {
            key, providers, default_logs, default_tracing, log, layout, sampling, redaction,
        })
    }
}

prop_compose! {
    fn log_rule()(
        providers in vec(word(), 0..2), is_disabled in any::<bool>(), filter in option::of(expression()),
    ) -> LogRule {
        LogRule { providers, is_disabled, filter }
    }
}

prop_compose! {
    fn metric_rule()(
        providers in vec(word(), 0..2), metric in option::of(select(MetricName::ALL.to_vec())),
        is_disabled in option::of(any::<bool>()), tags in vec((word(), option::of(expression())), 0..3),
    ) -> MetricRule {
        MetricRule { providers, overrides: vec![MetricOverride { metric, is_disabled, tags }] }
    }
}

prop_compose! {
    fn trace_rule()(
        providers in vec(word(), 0..2), is_disabled in option::of(any::<bool>()), sampling in option::of(0..9u32),
        name in word(), value in prop_oneof![
            word().prop_map(TagValue::Literal),
            (word(), word()).prop_map(|(name, other)| TagValue::Header(name, other)),
        ],
    ) -> TraceRule {
        TraceRule { providers, is_disabled, sampling, tags: vec![SpanTag { name, value }] }
    }
}

prop_compose! {
    fn telemetry()(
        key in key(), scope in prop_oneof![
            Just(TelemetryScope::Mesh), Just(TelemetryScope::Namespace), services().prop_map(TelemetryScope::To),
        ],
        created in any::<i64>(), logs in vec(log_rule(), 0..3), metrics in vec(metric_rule(), 0..3),
        tracing in vec(trace_rule(), 0..2),
    ) -> Access {
        Access::Telemetry(Telemetry { key, scope, created, logs, metrics, tracing })
    }
}

fn any_access() -> impl Strategy<Value = Access> {
    prop_oneof![3 => policy(), 2 => authentication(), 1 => settings(), 2 => telemetry(), 2 => telemetry_settings()]
}

proptest! {
    #[test]
    fn what_is_written_is_read(one in any_access()) {
        let change = Change::Access(one.clone().into());
        let (kind, name) = name(&change);
        prop_assert_eq!(removed(kind, &name), Some(Change::AccessRemoved(one.key())));
        prop_assert_eq!(decode(kind, &name, access::encode(&one).into()), Ok(change));
    }

    #[test]
    fn a_byte_changed_never_panics_and_keeps_the_key(
        one in any_access(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut bytes = access::encode(&one);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(read) = access::decode(&access::name(&one.key()), bytes.into()) {
            prop_assert_eq!(read.key(), one.key());
        }
    }
}

fn plain() -> RequestPolicy {
    RequestPolicy {
        key: PolicyKey::new("shop", "only-page"),
        attached: Attachment::To(vec![ServiceKey::new("shop", "reviews")]),
        action: RequestAction::Deny,
        rules: vec![RequestRule::default()],
        dry_run: false,
        unreadable: None,
    }
}

const NAME: &str = "AuthorizationPolicy/shop/only-page";

fn read(bytes: Vec<u8>) -> RequestPolicy {
    match access::decode(NAME, bytes.into()) {
        Ok(Access::Policy(policy)) => policy,
        other => panic!("not a policy: {other:?}"),
    }
}

#[test]
fn what_is_not_known_makes_a_policy_unreadable_where_it_is_attached() {
    let mut bytes = access::encode(&Access::Policy(plain()));
    // Field 15 of the message, a number: nothing that this version knows.
    bytes.extend([0x78, 1]);
    let policy = read(bytes);
    assert!(policy.unreadable.as_ref().is_some_and(|why| why.contains("does not know")), "{policy:?}");
    assert_eq!((policy.attached, policy.action, policy.rules.len()), (plain().attached, RequestAction::Allow, 0));
}

#[test]
fn what_is_no_message_counts_for_everything() {
    let policy = read(vec![0xff; 7]);
    assert_eq!(policy.attached, Attachment::Everything);
    assert!(policy.unreadable.is_some());
    // Another object under this name: nobody knows what it is for.
    let policy = read(access::encode(&Access::Policy(RequestPolicy { key: PolicyKey::new("x", "y"), ..plain() })));
    assert!(policy.unreadable.is_some());
}

#[test]
fn an_attachment_that_the_control_plane_lost_is_everything() {
    let lost = RequestPolicy { attached: Attachment::Everything, unreadable: Some("odd".into()), ..plain() };
    assert_eq!(read(access::encode(&Access::Policy(lost.clone()))), lost);
}

#[test]
fn settings_that_are_not_known_are_refused_and_names_must_be_keys() {
    let settings = RequestSettings {
        key: PolicyKey::new("istio-system", "istio"),
        normalization: PathNormalization::None,
        gateways: Vec::new(),
    };
    let mut bytes = access::encode(&Access::Settings(settings));
    bytes.extend([0x78, 1]);
    assert!(access::decode("MeshConfig/istio-system/istio", bytes.into()).is_err());
    for name in ["", "AuthorizationPolicy", "AuthorizationPolicy/shop", "Policy/shop/page", "MeshConfig//x"] {
        assert!(decode(ResourceType::Access, name, Vec::new().into()).is_err(), "{name}");
        assert_eq!(removed(ResourceType::Access, name), None, "{name}");
    }
}
