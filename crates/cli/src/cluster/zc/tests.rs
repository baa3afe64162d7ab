use super::certificates::{self, hexadecimal};
use super::source::named;
use super::*;

/// Taken from a running mesh.
fn ours() -> Dump {
    Dump::parse(include_bytes!("../../../fixtures/zc/config_dump.json")).unwrap()
}

/// In the shape of a real ztunnel: defaults are left out, and there are waypoints (contract 9.5).
fn istios() -> Dump {
    Dump::parse(include_bytes!("../../../fixtures/zc/istio.json")).unwrap()
}

fn table(filter: &Filter, dump: &Dump) -> String {
    aligned(&filter.section(dump).rows)
}

#[test]
fn the_tables_of_a_running_mesh_are_as_they_were() {
    let [workloads, services, policies, _, connections] = Filter::everything();
    let raw = Filter::Connections { namespace: None, direction: None, names: false };
    for (filter, golden) in [
        (workloads, include_str!("../../../fixtures/zc/workload.txt")),
        (services, include_str!("../../../fixtures/zc/service.txt")),
        (policies, include_str!("../../../fixtures/zc/policy.txt")),
        (connections, include_str!("../../../fixtures/zc/connections.txt")),
        (raw, include_str!("../../../fixtures/zc/connections-raw.txt")),
    ] {
        assert_eq!(table(&filter, &ours()), golden.trim_end(), "{}", filter.noun());
    }
}

#[test]
fn a_certificate_is_read_from_the_dump_or_else_from_itself() {
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    let rows = certificates::at(&ours(), now).rows;
    assert_eq!(rows.len(), 3, "{rows:?}");
    for row in &rows[1..] {
        assert_eq!(row[3], "true", "{row:?}");
        assert!(row[4].len() > 20 && row[5].as_str() > "2026-11-22", "{row:?}");
    }
    let rows = certificates::at(&istios(), now).rows;
    assert_eq!(
        rows[1],
        ["spiffe://cluster.local/ns/shop/sa/api", "Leaf", "Unavailable: connection refused", "false", "-", "-", "-"]
    );
    let short: Vec<[&str; 3]> =
        rows[2..].iter().map(|row| [row[1].as_str(), row[3].as_str(), row[4].as_str()]).collect();
    assert_eq!(short, [["Leaf", "false", "ff"], ["Intermediate", "true", "100"], ["Root", "true", "1"]]);
}

#[test]
fn a_real_ztunnels_dump_reads_the_same_way() {
    let [workloads, services, _, _, connections] = Filter::everything();
    assert_eq!(
        table(&workloads, &istios()),
        "NAMESPACE     POD NAME   ADDRESS      NODE   WAYPOINT   PROTOCOL\n\
         kube-system   proxy      172.18.0.2   w1     None       TCP\n\
         shop          api        10.1.0.6     w2     wp         TCP\n\
         shop          entry      -            -      None       TCP\n\
         shop          web        10.1.0.5     w1     wp         HBONE"
    );
    assert_eq!(
        table(&services, &istios()),
        "NAMESPACE   SERVICE NAME   SERVICE VIP        WAYPOINT   ENDPOINTS\n\
         shop        web            10.9.0.2,fd00::2   wp         1/2\n\
         shop        wp             10.9.0.1           None       1/1"
    );
    assert_eq!(
        connections.section(&istios()).rows[1],
        [
            "web.shop",
            "Outbound",
            "web.shop:40000",
            "wp.shop.svc.cluster.local:15008",
            "web.shop.svc.cluster.local:80",
            "HBONE"
        ]
    );
}

#[test]
fn filters_narrow_items_and_table_alike() {
    let only = |filter: Filter| {
        let section = filter.section(&istios());
        assert_eq!(section.items.len() + 1, section.rows.len());
        section.items.len()
    };
    let workloads = |namespace: Option<&str>, node: Option<&str>, address: Option<&str>| Filter::Workloads {
        namespace: namespace.map(str::to_owned),
        node: node.map(str::to_owned),
        address: address.map(|address| address.parse().unwrap()),
    };
    assert_eq!(only(workloads(Some("shop"), None, None)), 3);
    assert_eq!(only(workloads(None, Some("w1"), None)), 2);
    assert_eq!(only(workloads(None, None, Some("10.1.0.6"))), 1);
    assert_eq!(only(Filter::Services { namespace: Some("other".into()) }), 0);
    let inbound = Filter::Connections { namespace: None, direction: Some(Direction::Inbound), names: true };
    assert_eq!(inbound.section(&istios()).rows.len(), 1);
}

#[test]
fn every_section_has_its_heading() {
    let text = all(&istios(), Format::Table, true).unwrap();
    for section in ["WORKLOAD", "SERVICE", "POLICY", "CERTIFICATE", "CONNECTIONS"] {
        assert!(text.contains(&format!("------ {section} INFO ------")), "{text}");
    }
}

#[test]
fn a_serial_number_is_shown_in_hexadecimal_digits() {
    for (decimal, hex) in [
        ("0", "0"),
        ("255", "ff"),
        ("256", "100"),
        ("340282366920938463463374607431768211456", "100000000000000000000000000000000"),
    ] {
        assert_eq!(hexadecimal(decimal).as_deref(), Some(hex));
    }
    assert_eq!(hexadecimal("12x"), None);
    assert_eq!(hexadecimal(""), None);
}

#[test]
fn a_pod_is_named_with_or_without_type_and_namespace() {
    assert_eq!(named("ztunnel-abc", "m").unwrap(), ("ztunnel-abc".into(), "m".into()));
    assert_eq!(named("pod/ztunnel-abc.other", "m").unwrap(), ("ztunnel-abc".into(), "other".into()));
    for (wrong, says) in
        [("deploy/ztunnel", "not a deploy"), ("", "names no pod"), ("a b", "names no pod"), ("x.N", "lower case")]
    {
        let error = named(wrong, "m").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_is_no_dump_is_refused_with_what_one_has() {
    assert!(Dump::parse(b"hello").unwrap_err().to_string().contains("/config_dump"));
    assert!(Dump::parse(b"{\"a\": 1}").unwrap_err().to_string().contains("workloads"));
}

#[test]
fn a_word_that_is_no_level_is_refused() {
    for good in ["info", "off", "DEBUG", "warn,ztunnel=debug", "stillmesh_core::decide=trace"] {
        assert!(super::logging_path(Some(good), false).is_ok(), "{good}");
    }
    for bad in ["", "bogus", "info,", "ztunnel=loud", "=debug", "a b=info", "info&x=info"] {
        assert!(super::logging_path(Some(bad), false).is_err(), "{bad}");
    }
}
