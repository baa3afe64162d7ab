use std::time::Duration;

use stillmesh_api::{Root, Token};
use stillmesh_runtime::env::Reader;

use super::*;

fn read(values: &[(&str, &str)]) -> Config {
    Config::read(Reader::from_values(values.iter().copied())).unwrap()
}

#[test]
fn an_empty_environment_is_istios_default() {
    let config = read(&[]);
    let xds = config.xds;
    assert_eq!(xds.address, "https://istiod.istio-system.svc:15012");
    assert!(matches!(xds.root, Root::File(path) if path.ends_with("root-cert.pem")));
    assert!(matches!(xds.token, Token::File(path) if path.ends_with("istio-token")));
    assert_eq!(config.cluster_id, "Kubernetes");
    assert_eq!(config.cluster_domain, "cluster.local");
    assert_eq!(config.identity.to_string(), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    assert_eq!(config.mark.get(), 0x539);
    assert_eq!(config.secret_ttl, Duration::from_secs(86_400));
    assert_eq!(config.source_address, SourceAddress::Auto);
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.unknown_policies, None);
    assert_eq!(config.hbone.streams, 100);
    let dns: Vec<_> = config.dns.unwrap().listen.iter().map(ToString::to_string).collect();
    assert_eq!(dns, ["127.0.0.1:15053", "[::1]:15053"]);
}

#[test]
fn all_problems_are_reported_together() {
    let bad = [
        ("XDS_ADDRESS", "http://istiod:15012"),
        ("TRUST_DOMAIN", "No Domain"),
        ("INSTANCE_IP", "10.0.0.256"),
        ("PACKET_MARK", "0"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("ZTUNNEL_WORKER_THREADS", "120%"),
        ("SECRET_TTL", "91d"),
        ("UNKNOWN_POLICIES", "skip"),
        ("FAKE_CA", "true"),
        ("XDS_ROOT_CA", "SYSTEM"),
        ("PROXY_MODE", "dedicated"),
        ("COMPLIANCE_POLICY", "pqc"),
        ("HOP_SPANS_COLLECTOR", "http://otel:4317/x"),
        ("HOP_SPANS_PERCENT", "101"),
    ];
    let problems = Config::read(Reader::from_values(bad)).unwrap_err();
    let text = problems.to_string();
    for (key, value) in bad {
        assert!(text.contains(key) && text.contains(value), "{key} is not in {text}");
    }
}

#[test]
fn spans_of_connections_are_told_to_nobody_unless_it_is_said() {
    let spans = |values: &[(&str, &str)]| read(values).hop_spans.map(|spans| (spans.host, spans.port, spans.percent));
    assert_eq!(spans(&[("HOP_SPANS_PERCENT", "5")]), None);
    assert_eq!(spans(&[("HOP_SPANS_COLLECTOR", "otel.obs.svc:4317")]), Some(("otel.obs.svc".to_owned(), 4317, 100)));
    let six = [("HOP_SPANS_COLLECTOR", "[fd00::1]:4317"), ("HOP_SPANS_PERCENT", "5")];
    assert_eq!(spans(&six), Some(("fd00::1".to_owned(), 4317, 5)));
}

#[test]
fn what_istios_chart_sets_is_taken_as_it_is() {
    let config = read(&[
        ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
        ("CA_ADDRESS", "istiod-canary.istio-system.svc:15012"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("INPOD_ENABLED", "true"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("ISTIO_META_ENABLE_HBONE", "true"),
        ("ZTUNNEL_CPU_LIMIT", "2"),
    ]);
    assert_eq!(config.xds.address, "https://istiod.istio-system.svc:15012");
    assert_eq!(config.ca.address, "https://istiod-canary.istio-system.svc:15012");
    assert_eq!(config.cluster_id, "east");
    assert_eq!(config.metadata["CLUSTER_ID"], "east");
    assert_eq!(config.metadata["ENABLE_HBONE"], "true");
}

#[test]
fn the_drain_follows_the_grace_period() {
    for (grace, drain) in [("30", 25), ("11", 6), ("10", 9), ("2", 1), ("1", 1), ("0", 1)] {
        let config = read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]);
        assert_eq!(config.drain, Duration::from_secs(drain), "grace {grace}");
    }
    let values = [("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "90s")];
    assert_eq!(read(&values).drain, Duration::from_secs(90));
}

#[test]
fn workers_are_a_number_all_cores_or_a_share() {
    let workers = |value| read(&[("ZTUNNEL_CPU_LIMIT", "16"), ("ZTUNNEL_WORKER_THREADS", value)]).workers.0;
    assert_eq!(workers("3"), 3);
    assert_eq!(workers("0"), 16);
    assert_eq!(workers("50%"), 8);
    assert_eq!(workers("1%"), 1);
    assert_eq!(read(&[("ZTUNNEL_CPU_LIMIT", "16")]).workers.0, 4);
    assert_eq!(read(&[("ZTUNNEL_CPU_LIMIT", "1")]).workers.0, 2);
}

#[test]
fn roots_and_tokens_are_files_or_themselves() {
    let config = read(&[("XDS_ROOT_CA", "-----BEGIN CERTIFICATE-----\n"), ("AUTH_TOKEN", "a.b.c")]);
    let xds = config.xds;
    assert!(matches!(xds.root, Root::Pem(_)));
    assert!(matches!(xds.token, Token::Literal(token) if token == "a.b.c"));
    assert!(matches!(config.ca.root, Root::Pem(_)));
}

#[test]
fn secret_ttl_is_seconds_or_a_duration() {
    assert_eq!(read(&[("SECRET_TTL", "3600")]).secret_ttl, Duration::from_secs(3600));
    assert_eq!(read(&[("SECRET_TTL", "90m")]).secret_ttl, Duration::from_secs(5400));
}

#[test]
fn without_ipv6_nothing_listens_on_it() {
    let config = read(&[("IPV6_ENABLED", "false")]);
    assert!(config.stats.is_ipv4() && config.readiness.is_ipv4());
    assert_eq!(config.dns.unwrap().listen.len(), 1);
}
