use std::time::Duration;

use serde_json::{Value, json};
use stillmesh_core::model::RoutingScope;
use stillmesh_core::model::destination::{
    Balancing, ConnectionPool, EndpointVersion, HashCookie, HashKey, LocalityPolicy, Method, OutlierDetection,
    TrafficPolicy, WarmUp,
};

use super::*;
use crate::translate::route::fixtures::World;

impl Endpoints for World {
    fn endpoints(&self, namespace: &str, name: &str, labels: &Labels) -> Vec<WorkloadUid> {
        let version = labels.get("version").map_or("any", String::as_str);
        vec![WorkloadUid(format!("{namespace}/{name}-{version}").into())]
    }
}

fn translated_in(namespace: &str, spec: Value) -> Destined {
    let written = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "d", "namespace": namespace, "creationTimestamp": "2026-01-02T03:04:05Z"}, "spec": spec});
    destination_rule(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn translated(spec: Value) -> Destined {
    translated_in("shop", spec)
}

/// A policy that is carried out whole.
fn policy(policy: Value) -> TrafficPolicy {
    let read = translated(json!({"host": "details", "trafficPolicy": policy}));
    assert_eq!(read.condition.status, "True", "{read:?}");
    read.rule.unwrap().traffic.policy
}

/// Why a policy is refused.
fn why(policy: Value) -> String {
    let read = translated(json!({"host": "details", "trafficPolicy": policy}));
    assert!(read.refused && read.rule.is_none() && read.condition.reason == "Invalid", "{read:?}");
    read.condition.message
}

fn balancing(written: Value) -> Balancing {
    policy(json!({"loadBalancer": written})).balancing.unwrap()
}

fn told(read: &Destined) -> (&'static str, &'static str, &str) {
    assert_eq!(read.condition.type_, "WaypointAccepted");
    (read.condition.status, read.condition.reason, &read.condition.message)
}

#[test]
fn it_holds_from_the_services_the_waypoints_and_the_root_namespace() {
    let services = |namespace: &str, spec: Value| {
        let read = translated_in(namespace, spec);
        let services: Vec<String> = read.rule.iter().flat_map(|rule| &rule.services).map(ToString::to_string).collect();
        (services.join(" "), read.condition.reason)
    };
    let details = "shop/details.shop.svc.cluster.local";
    assert_eq!(services("shop", json!({"host": "details"})), (details.to_owned(), "Accepted"));
    assert_eq!(services("shop", json!({"host": "details.shop.svc.cluster.local"})), (details.to_owned(), "Accepted"));
    let of_else = "else/page.else.svc.cluster.local";
    assert_eq!(
        services("shop", json!({"host": "page.else.svc.cluster.local"})).0,
        of_else,
        "shop's waypoint serves it"
    );
    assert_eq!(services("istio-system", json!({"host": "details.shop.svc.cluster.local"})).0, details);
    assert_eq!(services("else", json!({"host": "details.shop.svc.cluster.local"})), (String::new(), "TargetNotFound"));
    assert_eq!(services("shop", json!({"host": "nothing"})), (String::new(), "TargetNotFound"));
    assert_eq!(services("shop", json!({"host": "page"})).1, "AncestorNotBound");
    let only_own = json!({"host": "page.else.svc.cluster.local", "exportTo": ["."]});
    assert_eq!(services("else", only_own), (String::new(), "TargetNotFound"), "its waypoint is another namespace's");
    let wild = translated(json!({"host": "*.shop.svc.cluster.local"}));
    assert_eq!(wild.rule.as_ref().unwrap().services.len(), 3);
    assert_eq!(wild.rule.unwrap().exactness, 23);
    let root = translated_in("istio-system", json!({"host": "*"})).rule.unwrap();
    assert!(root.is_mesh_wide && root.exactness == 0 && root.services.len() == 5);
}

#[test]
fn subsets_are_the_pods_with_their_labels() {
    let rule = translated(json!({"host": "details", "subsets": [
        {"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}, {"name": "all"}]}));
    let subsets = rule.rule.unwrap().subsets;
    assert_eq!(subsets[0].members, [WorkloadUid("shop/details-v1".into())]);
    assert_eq!(subsets[0].traffic.policy.balancing.as_ref().unwrap().method, Method::Random);
    assert_eq!((&*subsets[1].name, &*subsets[1].members[0].0), ("all", "shop/details-any"));
    let twice = translated(json!({"host": "details", "subsets": [{"name": "a"}, {"name": "a"}]}));
    assert!(twice.condition.message.contains("spec.subsets[1].name: a is there twice"), "{twice:?}");
}

#[test]
fn a_port_has_its_own() {
    let read = translated(json!({"host": "details", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"},
        "portLevelSettings": [{"port": {"number": 9080}, "connectionPool": {"tcp": {"maxConnections": 3}}}]}}));
    let traffic = read.rule.unwrap().traffic;
    let limits = ConnectionPool { connections: Some(3), ..ConnectionPool::default() };
    assert_eq!(traffic.ports, [(9080, TrafficPolicy { limits: Some(limits), ..TrafficPolicy::default() })]);
    assert!(
        why(json!({"portLevelSettings": [{"port": {"number": 70000}}]})).contains("portLevelSettings[0].port.number")
    );
}

#[test]
fn all_ways_to_pick_an_endpoint_are_there() {
    let method = |name: &str| balancing(json!({"simple": name})).method;
    for (name, expected) in [
        ("LEAST_REQUEST", Method::LeastRequest),
        ("LEAST_CONN", Method::LeastRequest),
        ("UNSPECIFIED", Method::LeastRequest),
        ("ROUND_ROBIN", Method::RoundRobin),
        ("RANDOM", Method::Random),
        ("PASSTHROUGH", Method::Passthrough),
    ] {
        assert_eq!(method(name), expected);
    }
    let hashed = |key: Value| match balancing(json!({"consistentHash": key})).method {
        Method::ConsistentHash(key) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(hashed(json!({"httpHeaderName": "X-User", "minimumRingSize": 1024})), HashKey::Header("x-user".into()));
    assert_eq!(hashed(json!({"useSourceIp": true, "maglev": {"tableSize": 65537}})), HashKey::SourceAddress);
    assert_eq!(hashed(json!({"httpQueryParameterName": "user"})), HashKey::Query("user".into()));
    let cookie = json!({"httpCookie": {"name": "who", "path": "/", "ttl": "1h"}});
    let (path, ttl) = (Some("/".into()), Some(Duration::from_secs(3600)));
    assert_eq!(hashed(cookie), HashKey::Cookie(HashCookie { name: "who".into(), path, ttl }));
    for (bad, wanted) in [
        (json!({"simple": "FASTEST"}), "spec.trafficPolicy.loadBalancer.simple: \"FASTEST\" is none of"),
        (json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}}), "both simple and consistentHash"),
        (json!({"consistentHash": {}}), "no key"),
        (json!({"consistentHash": {"useSourceIp": true, "httpHeaderName": "a"}}), "more than one key"),
        (json!({"consistentHash": {"httpCookie": {"name": "a", "ttl": "soon"}}}), "httpCookie.ttl: \"soon\""),
    ] {
        let why = why(json!({"loadBalancer": bad}));
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn new_endpoints_warm_up_as_written_in_either_way() {
    let warm_up = |written: Value| balancing(written).warm_up.unwrap();
    let minute = Duration::from_secs(60);
    let plain = WarmUp { duration: minute, least_percent: 10, aggression: 1000 };
    assert_eq!(warm_up(json!({"warmupDurationSecs": "60s"})), plain);
    assert_eq!(warm_up(json!({"warmup": {"duration": "1m"}})), plain);
    let other = WarmUp { duration: minute, least_percent: 30, aggression: 1500 };
    assert_eq!(warm_up(json!({"warmup": {"duration": "1m", "minimumPercent": 30, "aggression": 1.5}})), other);
    assert!(why(json!({"loadBalancer": {"warmup": {}}})).contains("warmup.duration is missing"));
    assert!(why(json!({"loadBalancer": {"warmup": {"duration": "1s", "minimumPercent": 101}}})).contains("0 to 100"));
}

#[test]
fn places_count_as_written() {
    let locality = |written: Value| balancing(json!({"localityLbSetting": written})).locality.unwrap();
    assert_eq!(locality(json!({"enabled": false})), LocalityPolicy::Ignored);
    assert_eq!(locality(json!({"enabled": true})), LocalityPolicy::Failover(vec![]));
    let pair = json!({"failover": [{"from": "eu", "to": "us"}]});
    assert_eq!(locality(pair), LocalityPolicy::Failover(vec![("eu".into(), "us".into())]));
    let labels = json!({"failoverPriority": ["topology.kubernetes.io/region", "kubernetes.io/hostname"]});
    assert_eq!(locality(labels), LocalityPolicy::Priority(vec![RoutingScope::Region, RoutingScope::Node]));
    let LocalityPolicy::Distribute(rules) =
        locality(json!({"distribute": [{"from": "eu/z1/*", "to": {"eu/z1/*": 80, "us/*": 20}}]}))
    else {
        panic!("shares");
    };
    assert_eq!(rules[0].from.zone.as_deref(), Some("z1"));
    assert_eq!(rules[0].from.subzone, None);
    assert_eq!(rules[0].to.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), [80, 20]);
    for (bad, wanted) in [
        (json!({"distribute": [{"from": "a", "to": {"a": 99}}]}), "add up to 99"),
        (json!({"failoverPriority": ["team"]}), "\"team\" is not supported"),
        (json!({"failover": [{"from": "a"}]}), "both from and to"),
        (
            json!({"failover": [{"from": "a", "to": "b"}], "failoverPriority": ["kubernetes.io/hostname"]}),
            "only one of",
        ),
    ] {
        let why = why(json!({"loadBalancer": {"localityLbSetting": bad}}));
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn bounds_are_read_and_zero_is_none() {
    let limits = policy(json!({"connectionPool": {
        "tcp": {"maxConnections": 5, "connectTimeout": "30ms", "maxConnectionDuration": "1h", "idleTimeout": "0s"},
        "http": {"http1MaxPendingRequests": 7, "http2MaxRequests": 8, "maxRequestsPerConnection": 0, "maxRetries": 3,
            "idleTimeout": "5s", "h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 9}}}))
    .limits
    .unwrap();
    let wanted = ConnectionPool {
        connections: Some(5),
        pending: Some(7),
        requests: Some(8),
        retries: Some(3),
        requests_per_connection: None,
        streams: Some(9),
        connect_timeout: Some(Duration::from_millis(30)),
        http_idle: Some(Duration::from_secs(5)),
        tcp_idle: Some(Duration::ZERO),
        age: Some(Duration::from_secs(3600)),
        version: EndpointVersion::Two,
    };
    assert_eq!(limits, wanted);
    assert!(why(json!({"connectionPool": {"tcp": {"maxConnections": -1}}})).contains("tcp.maxConnections: -1"));
    assert!(why(json!({"connectionPool": {"http": {"h2UpgradePolicy": "MAYBE"}}})).contains("MAYBE"));
    assert!(why(json!({"connectionPool": {"tcp": {"connectTimeout": "0s"}}})).contains("connectTimeout: at least 1ms"));
}

#[test]
fn outliers_have_istios_defaults() {
    let read = |written: Value| policy(json!({"outlierDetection": written})).outliers.unwrap();
    assert_eq!(read(json!({})), OutlierDetection::default());
    let all = json!({"consecutive5xxErrors": 3, "consecutiveGatewayErrors": 2, "interval": "1s", "baseEjectionTime": "3m",
        "maxEjectionPercent": 100, "minHealthPercent": 50, "splitExternalLocalOriginErrors": true});
    let wanted = OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway: 2,
        consecutive_local: Some(5),
        interval: Duration::from_secs(1),
        base_ejection: Duration::from_secs(180),
        most_percent: 100,
        least_healthy_percent: 50,
    };
    assert_eq!(read(all), wanted);
    assert!(why(json!({"outlierDetection": {"maxEjectionPercent": 101}})).contains("maxEjectionPercent: 101"));
}

#[test]
fn what_is_not_carried_out_is_refused_or_said() {
    for mode in ["DISABLE", "ISTIO_MUTUAL"] {
        assert_eq!(policy(json!({"tls": {"mode": mode}})), TrafficPolicy::default(), "the mesh's own stays");
    }
    assert!(why(json!({"tls": {"mode": "SIMPLE"}})).contains("tls.mode SIMPLE is not supported"));
    assert!(why(json!({"tunnel": {}})).contains("tunnel is not supported"));
    let selecting = translated(json!({"host": "details", "workloadSelector": {"matchLabels": {"a": "b"}}}));
    assert!(selecting.refused && selecting.condition.message.contains("workloadSelector"));
    let probing =
        translated(json!({"host": "details", "trafficPolicy": {"connectionPool": {"tcp": {"tcpKeepalive": {}}}}}));
    let (status, reason, message) = told(&probing);
    assert_eq!((status, reason), ("False", "PartiallyInvalid"));
    assert!(message.contains("tcpKeepalive is without effect"), "{message}");
    assert!(probing.rule.is_some());
}
