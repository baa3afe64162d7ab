use serde_json::json;

use super::tables::{Filter, Part};
use super::*;

/// Taken from a waypoint of a running mesh.
fn ours() -> Value {
    parsed(include_bytes!("../../fixtures/proxy/waypoint.json")).unwrap()
}

fn table(part: Part, filter: &Filter) -> String {
    aligned(&part.section(&ours(), filter).rows)
}

#[test]
fn the_tables_of_a_running_waypoint_are_as_they_were() {
    for (part, golden) in [
        (Part::Listeners, include_str!("../../fixtures/proxy/listener.txt")),
        (Part::Routes, include_str!("../../fixtures/proxy/route.txt")),
        (Part::Clusters, include_str!("../../fixtures/proxy/cluster.txt")),
        (Part::Endpoints, include_str!("../../fixtures/proxy/endpoint.txt")),
        (Part::Policies, include_str!("../../fixtures/proxy/policy.txt")),
    ] {
        assert_eq!(table(part, &Filter::default()), golden.trim_end(), "{}", part.noun());
    }
    let secrets = table(Part::Secrets, &Filter::default());
    assert!(
        secrets.starts_with("RESOURCE NAME") && secrets.contains("spiffe://cluster.local/ns/shop/sa/waypoint"),
        "{secrets}"
    );
    assert_eq!(roots(&ours()).len(), 1);
}

#[test]
fn filters_narrow_by_host_and_port() {
    let filter = |host: Option<&str>, port| Filter { host: host.map(str::to_owned), port };
    let clusters = |filter: Filter| Part::Clusters.section(&ours(), &filter).items.len();
    assert_eq!(clusters(filter(Some("web"), None)), 4);
    assert_eq!(clusters(filter(Some("web.shop"), Some(80))), 2);
    assert_eq!(clusters(filter(Some("we"), None)), 0);
    assert_eq!(clusters(filter(None, Some(9000))), 2);
    assert!(!table(Part::Listeners, &filter(Some("web"), None)).contains("15008"));
}

#[test]
fn what_a_rule_asks_and_does_is_told() {
    let mut dump = ours();
    dump["routes"] = json!([{
        "key": {"kind": "VirtualService", "namespace": "shop", "name": "v"},
        "parents": [{"service": "shop/web.shop.svc.cluster.local", "port": null}],
        "rules": [
            {"matches": [{"path": {"prefix": "/a"}, "authority": {"exact": "x"}, "withoutHeaders": [{"name": "h", "value": "present"}],
                "query": [{"name": "q", "value": {"regex": "1+"}}], "claims": [{"path": ["groups"], "value": {"exact": "staff"}}]}],
             "action": {"respond": {"status": 418, "body": ""}}},
            {"matches": [], "action": {"forward": {"backends": []}}},
            {"matches": [], "action": {"forward": {"backends": [
                {"weight": 1, "backend": {"invalid": {"reason": "x"}}}]}}},
            {"matches": [], "action": {"forward": {"backends": [
                {"weight": 1, "backend": {"service": {"service": "shop/web.shop.svc", "port": 80, "subset": "one"}}}]}}},
        ],
        "streams": [{"matches": [{"serverNames": [{"suffix": ".example.com"}], "port": null}], "backends": []}],
    }]);
    let rows = Part::Routes.section(&dump, &Filter { host: None, port: Some(80) }).rows;
    let cells: Vec<[&str; 2]> = rows[1..].iter().map(|row| [row[2].as_str(), row[3].as_str()]).collect();
    assert_eq!(
        cells,
        [
            ["/a* authority=x not h: * ?q=~1+ claim groups: staff", "answer 418"],
            ["/*", "refused: no backend"],
            ["/*", "invalid"],
            ["/*", "web.shop.svc:80 subset one"],
            ["TLS *.example.com", "refused"],
        ]
    );
}

#[test]
fn other_dumps_are_refused_with_what_reads_them() {
    for (dump, says) in [
        ("hello", "/config_dump"),
        ("{\"configs\": []}", "istioctl"),
        ("{\"workloadState\": {}}", "stillmesh zc"),
        ("{\"routes\": []}", "bound, clusters, routes"),
    ] {
        let error = parsed(dump.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
