use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::istio::AuthorizationPolicySpec;
use crate::object::Object;

fn translated(spec: &str) -> Authorization {
    named("shop", spec)
}

fn named(namespace: &str, spec: &str) -> Authorization {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    );
    let found = crate::parse::documents("p.yaml", &text);
    let Some(Object::AuthorizationPolicy(policy)) = found.objects.first().map(|one| &one.object) else {
        panic!("{:?}", found.findings)
    };
    authorization(policy, &Mesh::default())
}

fn only(rule: &Rule) -> Vec<Vec<Match>> {
    rule.clauses.iter().map(|clause| clause.matches.clone()).collect()
}

#[test]
fn scope_follows_selector_and_namespace() {
    assert_eq!(translated("{}").policy.unwrap().scope, Scope::Namespace);
    assert_eq!(named("istio-system", "{}").policy.unwrap().scope, Scope::Global);
    assert_eq!(translated("{selector: {matchLabels: {a: b}}}").policy.unwrap().scope, Scope::WorkloadSelector);
    assert_eq!(named("istio-system", "{selector: {}}").policy.unwrap().scope, Scope::WorkloadSelector);
}

#[test]
fn a_rule_becomes_one_clause_of_to_one_of_from_and_one_per_condition() {
    let policy = translated(
        "{rules: [{to: [{operation: {ports: ['80', '443']}}, {operation: {notPorts: ['22']}}], \
          from: [{source: {principals: ['td/ns/a/sa/b', 'x*', '*y', '*'], notNamespaces: [nn]}}, {source: {ipBlocks: [10.0.0.0/8, '::1'], \
          serviceAccounts: [sa, other/sa]}}], when: [{key: destination.port, values: ['1']}, {key: source.ip, notValues: [1.2.3.4]}]}]}",
    )
    .policy
    .unwrap();
    assert_eq!((policy.key.to_string().as_str(), policy.action), ("shop/p", Action::Allow));
    let account = |namespace: &str| ServiceAccountMatch { namespace: namespace.into(), service_account: "sa".into() };
    assert_eq!(
        only(&policy.rules[0]),
        [
            vec![
                Match { destination_ports: vec![80, 443], ..Match::default() },
                Match { not_destination_ports: vec![22], ..Match::default() },
            ],
            vec![
                Match {
                    principals: vec![
                        StringMatch::Exact("td/ns/a/sa/b".into()),
                        StringMatch::Prefix("x".into()),
                        StringMatch::Suffix("y".into()),
                        StringMatch::Presence,
                    ],
                    not_namespaces: vec![StringMatch::Exact("nn".into())],
                    ..Match::default()
                },
                Match {
                    source_ips: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
                    service_accounts: vec![account("shop"), account("other")],
                    ..Match::default()
                },
            ],
            vec![Match { destination_ports: vec![1], ..Match::default() }],
            vec![Match { not_source_ips: vec!["1.2.3.4/32".parse().unwrap()], ..Match::default() }],
        ]
    );
}

#[test]
fn an_empty_rule_matches_everything_and_no_rule_nothing() {
    assert_eq!(translated("{rules: [{}]}").policy.unwrap().rules, [Rule::default()]);
    assert_eq!(translated("{}").policy.unwrap().rules, []);
}

#[test]
fn an_allow_rule_that_needs_http_is_left_out_and_a_deny_rule_enforced_without_it() {
    let spec = |action: &str| {
        format!(
            "{{action: {action}, rules: [{{to: [{{operation: {{methods: [GET], ports: ['80']}}}}]}}, {{from: [{{source: {{namespaces: [a]}}}}]}}]}}"
        )
    };
    let allow = translated(&spec("ALLOW"));
    assert_eq!(allow.policy.as_ref().unwrap().rules.len(), 1);
    let condition = allow.condition.unwrap();
    assert_eq!((condition.type_, condition.status, condition.reason), ("ZtunnelAccepted", "True", "UnsupportedValue"));
    assert_eq!(
        condition.message,
        "ztunnel does not support HTTP attributes (found: methods). In ambient mode you must use a waypoint proxy to enforce HTTP \
         rules. Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested."
    );
    let deny = translated(&spec("DENY")).policy.unwrap();
    assert_eq!(deny.rules.len(), 2);
    assert_eq!(only(&deny.rules[0]), [vec![Match { destination_ports: vec![80], ..Match::default() }]]);
}

#[test]
fn a_deny_rule_of_nothing_but_http_denies_everything_rather_than_nothing() {
    for rule in [
        "{to: [{operation: {methods: [GET]}}]}",
        "{to: [{operation: {paths: ['/a']}}, {operation: {ports: ['80']}}]}",
        "{when: [{key: 'request.headers[x]', values: [a]}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
    ] {
        assert_eq!(
            translated(&format!("{{action: DENY, rules: [{rule}]}}")).policy.unwrap().rules,
            [Rule::default()],
            "{rule}"
        );
        assert_eq!(translated(&format!("{{rules: [{rule}]}}")).policy.unwrap().rules, [], "{rule}");
    }
}

#[test]
fn what_nodes_do_not_enforce_is_rejected_with_a_reason() {
    for (spec, message) in [
        ("{action: AUDIT}", "ztunnel does not support the AUDIT action"),
        ("{action: CUSTOM, provider: {name: x}}", "ztunnel does not support the CUSTOM action"),
    ] {
        let answer = translated(spec);
        let condition = answer.condition.unwrap();
        assert_eq!(answer.policy, None);
        assert_eq!(
            (condition.status, condition.reason, condition.message.as_str()),
            ("False", "UnsupportedValue", message)
        );
    }
    let for_waypoints = translated("{targetRefs: [{kind: Gateway, name: w}]}");
    assert_eq!(for_waypoints, Authorization { policy: None, condition: None });
    let accepted = translated("{}").condition.unwrap();
    assert_eq!(
        (accepted.status, accepted.reason, accepted.message.as_str()),
        ("True", "Accepted", "attached to ztunnel")
    );
}

#[test]
fn dry_run_needs_the_meshs_consent() {
    let mut policy = istio::AuthorizationPolicy::default();
    policy.metadata.annotations = Some([(DRY_RUN.to_owned(), "true".to_owned())].into());
    let refused = authorization(&policy, &Mesh::default());
    assert_eq!((refused.policy, refused.condition.unwrap().status), (None, "False"));
    let sent = authorization(&policy, &Mesh { dry_run: true, ..Mesh::default() });
    assert!(sent.policy.unwrap().dry_run);
    policy.metadata.annotations = Some([(DRY_RUN.to_owned(), "maybe".to_owned())].into());
    assert!(!authorization(&policy, &Mesh::default()).policy.unwrap().dry_run);
}

#[test]
fn values_that_cannot_be_read_never_widen_an_allow() {
    let mut written = istio::AuthorizationPolicy::default();
    let source =
        istio::Source { ip_blocks: vec!["nonsense".into()], namespaces: vec!["a".into()], ..Default::default() };
    written.spec.rules =
        vec![istio::Rule { from: vec![istio::RuleFrom { source: Some(source) }], ..Default::default() }];
    let allow = authorization(&written, &Mesh::default()).policy.unwrap();
    assert_eq!(only(&allow.rules[0]), [vec![Match::default()]], "matches nothing");
    written.spec.action = istio::Action::Deny;
    let deny = authorization(&written, &Mesh::default()).policy.unwrap();
    assert_eq!(only(&deny.rules[0])[0][0].namespaces, [StringMatch::Exact("a".into())]);
    assert_eq!(only(&deny.rules[0])[0][0].source_ips, []);
}

// What a policy says, read as its writer reads it, against what nodes are told.

/// A connection, and what an HTTP proxy would see in it.
#[derive(Clone, Debug)]
struct Connection {
    identity: Option<(&'static str, &'static str)>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    http: &'static str,
}

fn text_matches(pattern: &str, text: &str) -> bool {
    match (pattern, pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        ("*", _, _) => !text.is_empty(),
        (_, Some(end), _) => text.ends_with(end),
        (_, _, Some(start)) => text.starts_with(start),
        _ => pattern == text,
    }
}

fn listed(wanted: &[String], unwanted: &[String], holds: impl Fn(&str) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(|one| holds(one))) && !unwanted.iter().any(|one| holds(one))
}

impl Connection {
    fn principal(&self) -> Option<String> {
        self.identity.map(|(namespace, account)| format!("cluster.local/ns/{namespace}/sa/{account}"))
    }

    fn is_principal(&self, pattern: &str) -> bool {
        self.principal().is_some_and(|principal| text_matches(pattern, &principal))
    }

    fn is_namespace(&self, pattern: &str) -> bool {
        text_matches(pattern, self.identity.map_or("", |(namespace, _)| namespace))
    }

    fn is_account(&self, text: &str) -> bool {
        let (namespace, account) = text.split_once('/').unwrap_or(("shop", text));
        self.identity.is_some_and(|one| one == (namespace, account))
    }

    fn is_in(address: IpAddr, text: &str) -> bool {
        block(text).is_some_and(|net| net.contains(&address))
    }

    fn is_port(&self, text: &str) -> bool {
        text.parse::<u16>().is_ok_and(|port| port == self.port)
    }

    fn is_http(&self, pattern: &str) -> bool {
        text_matches(pattern, self.http)
    }

    fn written_rule(&self, rule: &istio::Rule) -> bool {
        let to = |to: &istio::RuleTo| {
            let one = to.operation.clone().unwrap_or_default();
            listed(&one.ports, &one.not_ports, |port| self.is_port(port))
                && listed(&one.methods, &one.not_methods, |method| self.is_http(method))
        };
        let from = |from: &istio::RuleFrom| {
            let one = from.source.clone().unwrap_or_default();
            listed(&one.principals, &one.not_principals, |text| self.is_principal(text))
                && listed(&one.namespaces, &one.not_namespaces, |text| self.is_namespace(text))
                && listed(&one.ip_blocks, &one.not_ip_blocks, |text| Self::is_in(self.source, text))
                && listed(&one.service_accounts, &one.not_service_accounts, |text| self.is_account(text))
                && listed(&one.request_principals, &one.not_request_principals, |text| self.is_http(text))
        };
        let when = |one: &istio::Condition| match one.key.as_str() {
            "source.principal" => listed(&one.values, &one.not_values, |text| self.is_principal(text)),
            "source.namespace" => listed(&one.values, &one.not_values, |text| self.is_namespace(text)),
            "source.ip" => listed(&one.values, &one.not_values, |text| Self::is_in(self.source, text)),
            "destination.ip" => listed(&one.values, &one.not_values, |text| Self::is_in(self.destination, text)),
            "destination.port" => listed(&one.values, &one.not_values, |text| self.is_port(text)),
            _ => listed(&one.values, &one.not_values, |text| self.is_http(text)),
        };
        (rule.to.is_empty() || rule.to.iter().any(to))
            && (rule.from.is_empty() || rule.from.iter().any(from))
            && rule.when.iter().all(when)
    }

    fn sent_match(&self, one: &Match) -> bool {
        let texts = |wanted: &[StringMatch], unwanted: &[StringMatch], text: Option<&str>| {
            let holds = |pattern: &StringMatch| {
                text.is_some_and(|text| match pattern {
                    StringMatch::Exact(exact) => **exact == *text,
                    StringMatch::Prefix(start) => text.starts_with(&**start),
                    StringMatch::Suffix(end) => text.ends_with(&**end),
                    StringMatch::Presence => !text.is_empty(),
                })
            };
            (wanted.is_empty() || wanted.iter().any(holds)) && !unwanted.iter().any(holds)
        };
        let nets = |wanted: &[IpNet], unwanted: &[IpNet], address: IpAddr| {
            (wanted.is_empty() || wanted.iter().any(|net| net.contains(&address)))
                && !unwanted.iter().any(|net| net.contains(&address))
        };
        let account = |one: &ServiceAccountMatch| self.identity == Some((&*one.namespace, &*one.service_account));
        *one != Match::default()
            && texts(&one.principals, &one.not_principals, self.principal().as_deref())
            && texts(&one.namespaces, &one.not_namespaces, Some(self.identity.map_or("", |(namespace, _)| namespace)))
            && nets(&one.source_ips, &one.not_source_ips, self.source)
            && nets(&one.destination_ips, &one.not_destination_ips, self.destination)
            && (one.destination_ports.is_empty() || one.destination_ports.contains(&self.port))
            && !one.not_destination_ports.contains(&self.port)
            && (one.service_accounts.is_empty() || one.service_accounts.iter().any(account))
            && !one.not_service_accounts.iter().any(account)
    }

    fn sent_rule(&self, rule: &Rule) -> bool {
        rule.clauses
            .iter()
            .all(|clause| clause.matches.is_empty() || clause.matches.iter().any(|one| self.sent_match(one)))
    }
}

fn some(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        3 => Just(Vec::new()),
        2 => subsequence(values, 0..=2).prop_map(|list| list.into_iter().map(str::to_owned).collect()),
    ]
}

const PRINCIPALS: &[&str] = &["cluster.local/ns/a/sa/x", "cluster.local/ns/a/*", "*/sa/y", "*", ""];
const NAMESPACES: &[&str] = &["a", "b", "*", "", "a*"];
const BLOCKS: &[&str] = &["10.0.0.1", "10.0.0.0/8", "::/0", "nonsense", "10.0.0.0/99"];
const ACCOUNTS: &[&str] = &["x", "a/x", "shop/y", "a/"];
const PORTS: &[&str] = &["80", "8080", "http", "99999", "0"];
const HTTP: &[&str] = &["GET", "*", "P*"];

fn any_source() -> impl Strategy<Value = istio::RuleFrom> {
    let positive = (some(PRINCIPALS), some(NAMESPACES), some(BLOCKS), some(ACCOUNTS), some(HTTP));
    let negative = (some(PRINCIPALS), some(NAMESPACES), some(BLOCKS), some(ACCOUNTS), some(HTTP));
    (positive, negative, any::<bool>()).prop_map(|(yes, no, there)| istio::RuleFrom {
        source: there.then_some(istio::Source {
            principals: yes.0,
            namespaces: yes.1,
            ip_blocks: yes.2,
            service_accounts: yes.3,
            request_principals: yes.4,
            not_principals: no.0,
            not_namespaces: no.1,
            not_ip_blocks: no.2,
            not_service_accounts: no.3,
            not_request_principals: no.4,
            ..Default::default()
        }),
    })
}

fn any_operation() -> impl Strategy<Value = istio::RuleTo> {
    (some(PORTS), some(PORTS), some(HTTP), some(HTTP)).prop_map(|(ports, not_ports, methods, not_methods)| {
        istio::RuleTo {
            operation: Some(istio::Operation { ports, not_ports, methods, not_methods, ..Default::default() }),
        }
    })
}

fn any_condition() -> impl Strategy<Value = istio::Condition> {
    let keys = [
        ("source.principal", PRINCIPALS),
        ("source.namespace", NAMESPACES),
        ("source.ip", BLOCKS),
        ("destination.ip", BLOCKS),
        ("destination.port", PORTS),
        ("request.headers[x]", HTTP),
    ];
    select(keys.to_vec()).prop_flat_map(|(key, values)| {
        (some(values), some(values)).prop_map(move |(values, not_values)| istio::Condition {
            key: key.to_owned(),
            values,
            not_values,
        })
    })
}

fn any_policy() -> impl Strategy<Value = istio::AuthorizationPolicy> {
    let rule = (vec(any_source(), 0..3), vec(any_operation(), 0..3), vec(any_condition(), 0..2));
    let rule = rule.prop_map(|(from, to, when)| istio::Rule { from, to, when });
    vec(rule, 0..3).prop_map(|rules| {
        let mut policy = istio::AuthorizationPolicy {
            spec: AuthorizationPolicySpec { rules, ..Default::default() },
            ..Default::default()
        };
        policy.metadata.namespace = Some("shop".to_owned());
        policy
    })
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let identity = select(vec![None, Some(("a", "x")), Some(("b", "y")), Some(("shop", "x"))]);
    let address = || select(vec!["10.0.0.1", "10.9.9.9", "192.0.2.1", "fd00::1"]);
    (identity, address(), address(), select(vec![80_u16, 8080, 22]), select(vec!["GET", "PUT", ""])).prop_map(
        |(identity, source, destination, port, http)| Connection {
            identity,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port,
            http,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_deny_is_never_weaker_than_written(policy in any_policy(), connection in any_connection()) {
        let mut policy = policy;
        policy.spec.action = istio::Action::Deny;
        let sent = authorization(&policy, &Mesh::default()).policy.unwrap();
        let written = policy.spec.rules.iter().any(|rule| connection.written_rule(rule));
        let denied = sent.rules.iter().any(|rule| connection.sent_rule(rule));
        prop_assert!(!written || denied, "{:#?}", sent.rules);
    }

    #[test]
    fn an_allow_never_admits_more_than_written(policy in any_policy(), connection in any_connection()) {
        let sent = authorization(&policy, &Mesh::default()).policy.unwrap();
        let written = policy.spec.rules.iter().any(|rule| connection.written_rule(rule));
        let allowed = sent.rules.iter().any(|rule| connection.sent_rule(rule));
        prop_assert!(!allowed || written, "{:#?}", sent.rules);
    }
}
