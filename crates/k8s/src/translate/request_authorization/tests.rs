use stillmesh_core::model::ServiceAccountMatch;

use super::*;
use crate::gateway::binding::{Binding, Named, Why};
use crate::object::Object;

/// Service `reviews` is bound to `shop/gate`, `lonely` to nothing; `shop/gate` is the one waypoint.
struct Shop;

impl Targets for Shop {
    fn service(&self, named: &Named) -> Option<Binding> {
        let waypoint = Named { namespace: "shop".into(), name: "gate".into() };
        match &*named.name {
            "reviews" => Some(Binding::Bound {
                waypoint,
                destination: stillmesh_core::fixtures::waypoint("shop/gate"),
                ready: true,
            }),
            "lonely" => Some(Binding::Unasked),
            "refused" => Some(Binding::Unbound { waypoint, why: Why::NotAllowed }),
            _ => None,
        }
    }

    fn gateway(&self, named: &Named) -> Option<Str> {
        (*named.namespace == *"shop" && *named.name == *"gate").then(|| "gate".into())
    }

    fn class(&self, name: &str) -> Option<Vec<(Named, Str)>> {
        let gate = Named { namespace: "shop".into(), name: "gate".into() };
        (name == "istio-waypoint").then(|| vec![(gate, "gate".into())])
    }
}

fn written(namespace: &str, annotations: &str, spec: &str) -> istio::AuthorizationPolicy {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    );
    let found = crate::parse::documents("p.yaml", &text);
    match found.objects.first().map(|one| &one.object) {
        Some(Object::AuthorizationPolicy(policy)) => istio::AuthorizationPolicy::clone(policy),
        _ => panic!("{:?}", found.findings),
    }
}

fn translated(namespace: &str, spec: &str) -> RequestAuthorization {
    request_authorization(&written(namespace, "", spec), &Shop, &Mesh::default()).unwrap()
}

fn rules(action: &str, rules: &str) -> (Vec<RequestRule>, status::Condition) {
    let spec = format!("{{targetRefs: [{{kind: Service, name: reviews}}], action: {action}, rules: [{rules}]}}");
    let one = translated("shop", &spec);
    (one.policy.rules, one.condition)
}

/// The conditions of a rule that has one clause with one alternative.
fn only(action: &str, rule: &str) -> Vec<Condition> {
    let (rules, condition) = rules(action, rule);
    assert_eq!((condition.status, condition.reason), ("True", "Accepted"), "{}", condition.message);
    assert_eq!((rules.len(), rules[0].clauses.len(), rules[0].clauses[0].alternatives.len()), (1, 1, 1), "{rule}");
    rules[0].clauses[0].alternatives[0].conditions.clone()
}

fn exact(texts: &[&str]) -> Vec<StringMatch> {
    texts.iter().map(|text| StringMatch::Exact((*text).into())).collect()
}

#[test]
fn a_policy_without_targets_is_not_for_waypoints() {
    assert_eq!(request_authorization(&written("shop", "", "{}"), &Shop, &Mesh::default()), None);
}

#[test]
fn statuses_say_what_it_is_bound_to_and_why_not() {
    let service = |name: &str| format!("{{kind: Service, name: {name}}}");
    let gateway = |kind: &str, name: &str| format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}");
    let many = vec![service("reviews"); 17].join(", ");
    let class = gateway("GatewayClass", "istio-waypoint");
    #[rustfmt::skip]
    let table = [
        ("shop", service("reviews"), "True", "Accepted", "bound to shop/gate", 1),
        ("shop", gateway("Gateway", "gate"), "True", "Accepted", "bound to shop/gate", 1),
        ("istio-system", class.clone(), "True", "Accepted", "bound to istio-waypoint", 1),
        ("shop", class, "False", "Invalid", "root namespace", 0),
        ("shop", service("nobody"), "False", "TargetNotFound", "Service shop/nobody is not there", 0),
        ("shop", gateway("Gateway", "nobody"), "False", "TargetNotFound", "Gateway shop/nobody", 0),
        ("istio-system", gateway("GatewayClass", "nginx"), "False", "TargetNotFound", "GatewayClass nginx", 0),
        ("shop", service("lonely"), "False", "AncestorNotBound", "not bound to a waypoint", 1),
        ("shop", service("refused"), "False", "AncestorNotBound", "not bound to a waypoint", 1),
        ("shop", "{group: networking.istio.io, kind: ServiceEntry, name: x}".to_owned(), "False", "Invalid", "ServiceEntry x", 0),
        ("shop", "{kind: Service, name: reviews, namespace: bank}".to_owned(), "False", "Invalid", "another namespace", 0),
        ("shop", format!("{}, {}", service("reviews"), service("nobody")), "True", "PartiallyInvalid", "bound to shop/gate; Service shop/nobody", 1),
        ("shop", many, "False", "Invalid", "at most 16", 0),
    ];
    for (namespace, refs, status, reason, message, attached) in table {
        let one = translated(namespace, &format!("{{targetRefs: [{refs}]}}"));
        let condition = one.condition;
        assert_eq!((condition.type_, condition.status, condition.reason), (ACCEPTED, status, reason), "{refs}");
        assert!(condition.message.contains(message), "{refs}: {}", condition.message);
        let Attachment::To(services) = one.policy.attached else { panic!("attached to everything") };
        assert_eq!(services.len(), attached, "{refs}");
    }
    let one = translated("shop", &format!("{{targetRef: {}}}", service("reviews")));
    let reviews = crate::translate::service_key("shop", "reviews", &Mesh::default());
    assert_eq!(one.policy.attached, Attachment::To(vec![reviews]));
}

use super::super::ACCEPTED;

#[test]
fn every_attribute_is_translated() {
    let any = |wanted| vec![Condition { sense: Sense::AnyOf, wanted }];
    let none = |wanted| vec![Condition { sense: Sense::NoneOf, wanted }];
    let net = |text: &str| vec![text.parse().unwrap()];
    let account = |namespace: &str| ServiceAccountMatch { namespace: namespace.into(), service_account: "sa".into() };
    let template = |text: &str| PathPattern::Template(PathTemplate::new(text).unwrap());
    let claim = |path: &[&str], text: &str| Wanted::Claim {
        path: path.iter().map(|name| Str::from(*name)).collect(),
        values: exact(&[text]),
    };
    #[rustfmt::skip]
    let table = [
        ("from: [{source: {principals: ['*']}}]", any(Wanted::Principal(vec![StringMatch::Presence]))),
        ("from: [{source: {notPrincipals: [a]}}]", none(Wanted::Principal(exact(&["a"])))),
        ("from: [{source: {requestPrincipals: ['iss/*']}}]", any(Wanted::RequestPrincipal(vec![StringMatch::Prefix("iss/".into())]))),
        ("from: [{source: {notRequestPrincipals: ['*']}}]", none(Wanted::RequestPrincipal(vec![StringMatch::Presence]))),
        ("from: [{source: {namespaces: [a]}}]", any(Wanted::Namespace(exact(&["a"])))),
        ("from: [{source: {serviceAccounts: [sa, b/sa]}}]", any(Wanted::ServiceAccount(vec![account("shop"), account("b")]))),
        ("from: [{source: {ipBlocks: [10.1.2.3/8]}}]", any(Wanted::SourceIp(net("10.0.0.0/8")))),
        ("from: [{source: {notRemoteIpBlocks: [192.0.2.1]}}]", none(Wanted::RemoteIp(net("192.0.2.1/32")))),
        ("to: [{operation: {hosts: ['Shop.*']}}]", any(Wanted::Host(vec![StringMatch::Prefix("shop.".into())]))),
        ("to: [{operation: {ports: ['80']}}]", any(Wanted::DestinationPort(vec![80]))),
        ("to: [{operation: {notMethods: [GET]}}]", none(Wanted::Method(exact(&["GET"])))),
        ("to: [{operation: {paths: ['/a', '/b*', '*.js', '/c/{*}']}}]", any(Wanted::Path(vec![
            PathPattern::Text(StringMatch::Exact("/a".into())), PathPattern::Text(StringMatch::Prefix("/b".into())),
            PathPattern::Text(StringMatch::Suffix(".js".into())), template("/c/{*}"),
        ]))),
        ("when: [{key: 'request.headers[X-Team]', values: [a]}]", any(Wanted::Header { name: "x-team".into(), values: exact(&["a"]) })),
        ("when: [{key: 'request.auth.claims[a][b]', notValues: [c]}]", none(claim(&["a", "b"], "c"))),
        ("when: [{key: request.auth.audiences, values: [a]}]", any(Wanted::Audience(exact(&["a"])))),
        ("when: [{key: request.auth.presenter, values: [a]}]", any(Wanted::Presenter(exact(&["a"])))),
        ("when: [{key: request.auth.principal, values: [a]}]", any(Wanted::RequestPrincipal(exact(&["a"])))),
        ("when: [{key: connection.sni, values: [a]}]", any(Wanted::ServerName(exact(&["a"])))),
        ("when: [{key: source.serviceAccount, values: [sa]}]", any(Wanted::ServiceAccount(vec![account("shop")]))),
        ("when: [{key: source.namespace, values: [a]}]", any(Wanted::Namespace(exact(&["a"])))),
        ("when: [{key: source.principal, values: [a]}]", any(Wanted::Principal(exact(&["a"])))),
        ("when: [{key: source.ip, values: [10.0.0.0/8]}]", any(Wanted::SourceIp(net("10.0.0.0/8")))),
        ("when: [{key: remote.ip, values: [10.0.0.0/8]}]", any(Wanted::RemoteIp(net("10.0.0.0/8")))),
        ("when: [{key: destination.ip, values: [10.0.0.0/8]}]", any(Wanted::DestinationIp(net("10.0.0.0/8")))),
        ("when: [{key: destination.port, values: ['81']}]", any(Wanted::DestinationPort(vec![81]))),
    ];
    for (rule, expected) in table {
        for action in ["ALLOW", "DENY", "AUDIT"] {
            assert_eq!(only(action, &format!("{{{rule}}}")), expected, "{rule}");
        }
    }
}

#[test]
fn from_and_to_are_alternatives_and_each_when_is_a_clause() {
    let rule = "{from: [{source: {namespaces: [a], principals: [b]}}, {source: {namespaces: [c]}}], \
                to: [{operation: {methods: [GET]}}], \
                when: [{key: source.ip, values: [10.0.0.1]}, {key: remote.ip, values: [10.0.0.1]}]}";
    let (rules, _) = rules("ALLOW", rule);
    let shape: Vec<Vec<usize>> = rules[0]
        .clauses
        .iter()
        .map(|clause| clause.alternatives.iter().map(|one| one.conditions.len()).collect())
        .collect();
    assert_eq!(shape, [vec![2, 1], vec![1], vec![1], vec![1]]);
}

#[test]
fn what_cannot_be_carried_out_makes_a_policy_stricter() {
    let odd = "{to: [{operation: {paths: ['/a{b}'], methods: [GET]}}]}";
    let (kept, condition) = rules("ALLOW", odd);
    assert!(kept.is_empty(), "an allow rule is left out");
    assert_eq!((condition.status, condition.reason), ("True", "PartiallyInvalid"));
    assert!(condition.message.contains("rules[0]: \"/a{b}\" cannot be read: the rule is left out"));
    let (kept, condition) = rules("DENY", odd);
    assert_eq!(kept[0].clauses[0].alternatives[0].conditions.len(), 1, "the method is still asked for");
    assert!(condition.message.contains("enforced without it"));
    let key = "{when: [{key: experimental.envoy.filters.x, values: [a]}]}";
    assert!(rules("ALLOW", key).0.is_empty());
    assert!(rules("DENY", key).0[0].clauses.is_empty(), "it denies everything");
    for key in ["request.headers", "request.headers[]", "request.headers[a][b]", "request.auth.claims[a"] {
        let (_, condition) = rules("ALLOW", &format!("{{when: [{{key: '{key}', values: [a]}}]}}"));
        assert!(condition.message.contains("is not supported"), "{key}: {}", condition.message);
    }
}

#[test]
fn custom_is_refused_and_denies_what_it_would_ask_about() {
    let spec = "{targetRefs: [{kind: Service, name: reviews}], action: CUSTOM, provider: {name: x}, \
                rules: [{to: [{operation: {paths: [/admin]}}]}]}";
    let one = translated("shop", spec);
    assert_eq!((one.condition.status, one.condition.reason), ("False", "Invalid"));
    assert!(one.condition.message.contains("CUSTOM action is not supported"));
    assert_eq!((one.policy.action, one.policy.rules.len()), (RequestAction::Deny, 1));
}

#[test]
fn dry_run_needs_no_switch_and_guards_nothing() {
    let spec = "{targetRefs: [{kind: Service, name: reviews}], action: DENY, rules: [{}]}";
    let dry = written("shop", "istio.io/dry-run: 'true'", spec);
    assert!(request_authorization(&dry, &Shop, &Mesh::default()).unwrap().policy.dry_run && !guards(&dry));
    assert!(guards(&written("shop", "", spec)));
    assert!(!guards(&written("shop", "", "{targetRefs: [{kind: Service, name: reviews}], action: AUDIT}")));
}
