use super::*;

fn text(plan: &RulePlan) -> String {
    plan.to_string()
}

#[track_caller]
fn golden(name: &str, plan: &RulePlan, expected: &str) {
    let actual = text(plan);
    assert_eq!(actual, expected, "{name} differs; it is now:\n{actual}");
}

#[test]
fn capture_of_an_ordinary_pod() {
    golden("capture.nft", &capture(&Facts::default()), include_str!("golden/capture.nft"));
}

#[test]
fn capture_without_ipv6_refuses_it() {
    let facts = Facts { ipv6: Ipv6::Off, ..Facts::default() };
    golden("capture-ipv4.nft", &capture(&facts), include_str!("golden/capture-ipv4.nft"));
}

#[test]
fn capture_without_dns_leaves_port_53_alone() {
    let facts = Facts { dns: Dns::Direct, ..Facts::default() };
    let text = text(&capture(&facts));
    assert!(!text.contains("port 53") && !text.contains(RAW_TABLE) && !text.contains("15053"), "{text}");
}

#[test]
fn capture_with_inbound_bypassed_has_no_inbound_rule() {
    let facts = Facts { inbound: Inbound::Bypassed, ..Facts::default() };
    let plan = capture(&facts);
    assert_eq!(nat_prerouting(&facts), []);
    let text = text(&plan);
    assert!(!text.contains("15006") && text.contains("redirect to :15001"), "{text}");
}

#[test]
fn virtual_interfaces_come_first_and_are_outbound() {
    let names = ["vm0", "vm1"].map(|name| InterfaceName::new(name).unwrap());
    let facts = Facts { virtual_interfaces: names.into(), ..Facts::default() };
    let lines: Vec<String> = nat_prerouting(&facts).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines[..4],
        [
            "iifname \"vm0\" tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001",
            "iifname \"vm0\" counter return",
            "iifname \"vm1\" tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001",
            "iifname \"vm1\" counter return",
        ]
    );
}

#[test]
fn a_port_of_a_socket_probe_is_refused_where_nobody_listens() {
    let facts = Facts { socket_probes: vec![8080], ..Facts::default() };
    let lines: Vec<String> = closed_ports(&facts).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "tcp flags & (fin | syn | rst | ack) == syn tcp dport 8080 socket transparent != 2 counter return",
            "tcp flags & (fin | syn | rst | ack) == syn tcp dport 8080 counter reject with tcp reset",
        ]
    );
    let machine = vec![InterfaceName::new("vm0").unwrap()];
    assert_eq!(closed_ports(&Facts { virtual_interfaces: machine, ..facts.clone() }), []);
    assert_eq!(closed_ports(&Facts { inbound: Inbound::Bypassed, ..facts.clone() }), []);
    assert_ne!(capture(&facts).fingerprint(), capture(&Facts::default()).fingerprint());
}

#[test]
fn a_leaving_pod_keeps_its_nat_chains_and_marks() {
    golden("leave.nft", &leave(&Facts::default()), include_str!("golden/leave.nft"));
}

#[test]
fn the_guard_stops_what_opens_and_nothing_else() {
    golden("guard.nft", &guard(&Facts::default()), include_str!("golden/guard.nft"));
}

/// Whatever the facts, a redirect of TCP must see opening packets only, or it would break open connections.
#[test]
fn every_redirect_of_tcp_is_of_opening_packets_only() {
    for facts in all_facts() {
        for rule in capture(&facts).tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules) {
            if matches!(rule.action, Action::Redirect(_)) && !rule.matches.contains(&Match::Udp) {
                assert!(rule.matches.contains(&Match::OpeningSyn), "{rule}");
            }
        }
    }
}

#[test]
fn every_fact_changes_the_fingerprint() {
    let plans: Vec<u64> = all_facts().iter().map(|facts| capture(facts).fingerprint()).collect();
    let distinct: std::collections::HashSet<u64> = plans.iter().copied().collect();
    assert_eq!(distinct.len(), plans.len());
    assert_eq!(capture(&Facts::default()).fingerprint(), capture(&Facts::default()).fingerprint());
}

#[test]
fn interface_names_are_those_of_the_kernel() {
    for good in ["eth0", "vm-1.2", "a", "fifteen-bytes-x"] {
        assert_eq!(InterfaceName::new(good).map(|name| name.as_str().to_owned()).as_deref(), Some(good));
    }
    for bad in ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx", "q\"", "é"] {
        assert_eq!(InterfaceName::new(bad), None, "{bad}");
    }
}

fn all_facts() -> Vec<Facts> {
    let mut all = Vec::new();
    for ipv6 in [Ipv6::On, Ipv6::Off] {
        for dns in [Dns::Captured, Dns::Direct] {
            for inbound in [Inbound::Captured, Inbound::Bypassed] {
                for probes in [Probes::Honoured, Probes::Captured] {
                    for interfaces in [vec![], vec![InterfaceName::new("vm0").unwrap()]] {
                        let (virtual_interfaces, socket_probes) = (interfaces, Vec::new());
                        all.push(Facts { ipv6, dns, inbound, virtual_interfaces, socket_probes, probes });
                    }
                }
            }
        }
    }
    all
}
