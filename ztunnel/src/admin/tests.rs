use serde_json::json;
use stillmesh_core::model::{
    Action, Clause, Gateway, GatewayDestination, Match, Policy, PolicyKey, Rule, Scope, ServiceKey, StringMatch,
};

use crate::testing;
use stillmesh_proxy::dump::model;

#[test]
fn a_workload_is_written_as_istioctl_reads_it() {
    let mut workload = testing::workload("shop", "page-1", [10, 0, 0, 1]);
    workload.waypoint = Some(Gateway {
        destination: GatewayDestination::Hostname(ServiceKey::new("shop", "waypoint.shop.svc.cluster.local")),
        hbone_mtls_port: 15008.try_into().unwrap(),
    });
    workload.authorization_policies = vec![PolicyKey::new("shop", "no")];
    let expected = json!({
        "workloadIps": ["10.0.0.1"],
        "waypoint": { "destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008 },
        "protocol": "HBONE",
        "uid": "Kubernetes//Pod/shop/page-1",
        "name": "page-1",
        "namespace": "shop",
        "trustDomain": "cluster.local",
        "serviceAccount": "page",
        "workloadName": "page",
        "workloadType": "deployment",
        "canonicalName": "page",
        "canonicalRevision": "latest",
        "node": "node-1",
        "authorizationPolicies": ["shop/no"],
        "status": "Healthy",
        "clusterId": "Kubernetes",
    });
    assert_eq!(model::workload(&workload), expected);
}

#[test]
fn a_policys_rules_are_nested_lists_without_what_is_empty() {
    let matching = Match {
        principals: vec![StringMatch::Exact("cluster.local/ns/a/sa/b".into()), StringMatch::Presence],
        destination_ports: vec![80],
        not_source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    };
    let policy = Policy {
        key: PolicyKey::new("shop", "no"),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![matching] }] }],
        dry_run: false,
        unreadable: None,
        order: None,
    };
    let expected = json!({
        "name": "no",
        "namespace": "shop",
        "scope": "WorkloadSelector",
        "action": "Deny",
        "rules": [[[{
            "principals": [{ "Exact": "cluster.local/ns/a/sa/b" }, { "Presence": [] }],
            "notSourceIps": ["10.0.0.0/8"],
            "destinationPorts": [80],
        }]]],
    });
    assert_eq!(model::policy(&policy), expected);
}

#[test]
fn every_key_has_one_row() {
    let mut keys: Vec<_> = crate::config::ROWS.iter().map(|row| row.key).collect();
    keys.sort_unstable();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count);
}
