use serde_json::{Value, json};

use super::*;

fn pod(namespace: &str, app: &str, ip: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": app, "namespace": namespace, "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
        "status": {"podIPs": [{"ip": ip}]},
    });
    serde_json::from_value(pod).unwrap()
}

fn policy(spec: Value) -> NetworkPolicy {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})).unwrap()
}

fn space(name: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": name}}})).unwrap()
}

/// Whether `page` of shop, `till` of shop and `page` of other reach `web` of shop at a port.
fn who(policies: &[NetworkPolicy], port: u16) -> [bool; 3] {
    let (web, near) = (pod("shop", "web", "10.0.0.1"), pod("shop", "page", "10.0.0.2"));
    let (till, far) = (pod("shop", "till", "10.0.0.3"), pod("other", "page", "10.9.0.1"));
    let (shop, other) = (space("shop"), space("other"));
    let web = End::pod(&web, Some(&shop));
    [(&near, &shop), (&till, &shop), (&far, &other)]
        .map(|(peer, place)| verdict(policies, Direction::Ingress, &web, &End::pod(peer, Some(place)), port).passes())
}

#[test]
fn who_may_reach_a_port_by_one_policy() {
    let all = [true; 3];
    let none = [false; 3];
    let near = [true, true, false];
    for (spec, on_application, on_tunnel) in [
        // Selection.
        (json!({"podSelector": {}}), none, none),
        (json!({"podSelector": {"matchLabels": {"app": "web"}}}), none, none),
        (json!({"podSelector": {"matchLabels": {"app": "else"}}}), all, all),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), all, all),
        (json!({"podSelector": {}, "policyTypes": ["Ingress"]}), none, none),
        (json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}), all, all),
        // Peers.
        (json!({"podSelector": {}, "ingress": [{}]}), all, all),
        (json!({"podSelector": {}, "ingress": [{"from": []}]}), all, all),
        (json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}), near, near),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "page"}}}]}]}),
            [true, false, false],
            [true, false, false],
        ),
        (json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}), all, all),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "other"}}}]}]}),
            [false, false, true],
            [false, false, true],
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}]}]}),
            [false, false, true],
            [false, false, true],
        ),
        // Both in one entry: of those namespaces these pods; in two entries: either.
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "page"}}}]}]}),
            [true, false, true],
            [true, false, true],
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "other"}}}, {"podSelector": {"matchLabels": {"app": "till"}}}]}]}),
            [false, true, true],
            [false, true, true],
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.3/32"]}}]}]}),
            [true, false, false],
            [true, false, false],
        ),
        (json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "nonsense"}}]}]}), none, none),
        // Ports.
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]}), all, none),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}), all, none),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080, "protocol": "UDP"}]}]}), none, none),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"protocol": "TCP"}]}]}), all, all),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8000, "endPort": 16000}]}]}), all, all),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}, {"port": 15008}]}]}), all, all),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]}), none, all),
        // Rules add up.
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 8080}]}, {"ports": [{"port": 15008}]}]}),
            near,
            all,
        ),
    ] {
        let policies = [policy(spec.clone())];
        assert_eq!(who(&policies, 8080), on_application, "{spec} on 8080");
        assert_eq!(who(&policies, TUNNEL_PORT), on_tunnel, "{spec} on 15008");
    }
}

#[test]
fn policies_add_up_and_those_of_other_namespaces_do_not_count() {
    let nothing = policy(json!({"podSelector": {}}));
    let near = policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    assert_eq!(who(&[nothing.clone(), near.clone()], 8080), [true, true, false]);
    let mut elsewhere = nothing;
    elsewhere.metadata.namespace = Some("other".to_owned());
    assert_eq!(who(&[elsewhere], 8080), [true; 3]);
    assert_eq!(who(&[], 8080), [true; 3]);
}

#[test]
fn what_pods_reach_is_filtered_by_the_ports_of_those_they_reach() {
    let (page, web) = (pod("shop", "page", "10.0.0.2"), pod("shop", "web", "10.0.0.1"));
    let (page, web) = (End::pod(&page, None), End::pod(&web, None));
    let passes = |spec: Value, port: u16| verdict(&[policy(spec)], Direction::Egress, &page, &web, port).passes();
    assert!(passes(json!({"podSelector": {}}), 8080), "without egress rules it is about ingress alone");
    assert!(!passes(json!({"podSelector": {}, "policyTypes": ["Egress"]}), 8080));
    let to = |ports: Value| json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}], "ports": ports}]});
    assert!(passes(to(json!([{"port": "web"}])), 8080));
    assert!(!passes(to(json!([{"port": "web"}])), TUNNEL_PORT));
    assert!(!passes(to(json!([{"port": "dns"}])), 53), "a name of a UDP port is no TCP port");
    let world = End::address("192.0.2.1".parse().unwrap());
    let block = policy(json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}));
    assert!(verdict([&block], Direction::Egress, &page, &world, 443).passes());
    assert!(!verdict([&block], Direction::Egress, &page, &web, 443).passes());
}

#[test]
fn pods_on_their_nodes_network_are_not_filtered_and_not_found_by_labels() {
    let mut host = pod("shop", "web", "172.16.0.1");
    host.spec.as_mut().unwrap().host_network = Some(true);
    let page = pod("shop", "page", "10.0.0.2");
    let (host, page) = (End::pod(&host, None), End::pod(&page, None));
    let near = policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    assert_eq!(verdict([&near], Direction::Ingress, &host, &page, 80), Verdict::NotSelected);
    assert_eq!(verdict([&near], Direction::Ingress, &page, &host, 80), Verdict::Refused(vec![&near]));
}

#[test]
fn the_application_ports_of_a_policy_are_those_it_lets_this_peer_reach() {
    let (web, page) = (pod("shop", "web", "10.0.0.1"), pod("shop", "page", "10.0.0.2"));
    let far = pod("other", "page", "10.9.0.1");
    let (web, page, far) = (End::pod(&web, None), End::pod(&page, None), End::pod(&far, None));
    let written = policy(json!({"podSelector": {}, "ingress": [
        {"from": [{"podSelector": {}}], "ports": [{"port": "web"}, {"port": 15008}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]},
    ]}));
    assert_eq!(ports_admitted(&written, Direction::Ingress, &web, &page, &[8080, 9090]), [8080]);
    assert!(ports_admitted(&written, Direction::Ingress, &web, &far, &[8080]).is_empty());
    let open = policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    assert_eq!(ports_admitted(&open, Direction::Ingress, &web, &page, &[8080, 9090]), [8080, 9090]);
}

#[test]
fn what_mends_a_policy_lets_its_own_peers_and_waypoints_reach_the_tunnel_and_nobody_else() {
    let written = policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "page"}}}], "ports": [{"port": 8080}]},
        {"from": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]},
    ]}));
    let waypoint: NetworkPolicyPeer =
        serde_json::from_value(json!({"podSelector": {"matchLabels": {"app": "till"}}})).unwrap();
    let mend = mended(&written, Direction::Ingress, std::slice::from_ref(&waypoint)).unwrap();
    assert_eq!(mend.metadata.name.as_deref(), Some("p-hbone-in"));
    let both = [written.clone(), mend];
    assert_eq!(who(&both, TUNNEL_PORT), [true, true, false]);
    assert_eq!(who(&both, 8080), [true, false, false], "nobody reaches the application past the tunnel");
    assert_eq!(mended(&written, Direction::Egress, &[waypoint]), None, "it is not about egress");
    let nobody = policy(json!({"podSelector": {}}));
    assert_eq!(mended(&nobody, Direction::Ingress, &[]), None, "who lets nobody in wants nobody in");
    let everybody = policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]}));
    let mend = mended(&everybody, Direction::Ingress, &[]).unwrap();
    assert_eq!(who(&[everybody, mend], TUNNEL_PORT), [true; 3]);
}
