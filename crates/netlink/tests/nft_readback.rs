//! What is applied is what the kernel has, for every expression, family and kind of set.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, SocketAddr};

use stillmesh_netlink::nft::*;
use stillmesh_test_support::isolated;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn apply_or_panic(batch: &Batch) {
    apply(batch).unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
}

fn put(table: &Table) {
    let mut batch = Batch::new();
    batch.replace_table(table);
    apply_or_panic(&batch);
}

fn every_match() -> Vec<Expr> {
    vec![
        masked_ne(Field::MetaMark, 0xfffu32, 0x539u32),
        eq(Field::IifName, "lo"),
        ne(Field::OifName, "eth0"),
        eq(Field::L4Proto, TCP),
        syn_only(),
        ne(Field::TcpDport, 15008u16),
        eq(Field::TcpSport, 1u16),
        Expr::Range { field: Field::TcpDport, from: 1u16.into(), to: 1024u16.into(), negated: true },
        Expr::Range { field: Field::ThSport, from: 1u16.into(), to: 1024u16.into(), negated: false },
        any_of(Field::CtState, Field::NEW | Field::RELATED),
        none_of(Field::CtStatus, Field::DNAT),
        eq(Field::CtMark, 0x111u32),
        counter(),
    ]
}

fn filter_table(family: Family, name: &str) -> Table {
    let address = match family {
        Family::Ip | Family::Inet => {
            vec![ne(Field::IpDaddr, ip("127.0.0.1")), in_cidr(Field::IpSaddr, "10.0.0.0/8".parse().unwrap())]
        }
        Family::Ip6 => vec![ne(Field::Ip6Daddr, ip("::1")), in_cidr(Field::Ip6Saddr, "fd00::/8".parse().unwrap())],
    };
    Table::new(family, name)
        .comment("hash 1234")
        .chain(
            Chain::base("out", Kind::Filter, Hook::Output, -150)
                .rule(Rule::new(every_match()).comment("every match"))
                .rule(Rule::new(address.into_iter().chain([counter(), jump("other")])))
                .rule(Rule::new([eq(Field::SkUid, 0u32), goto("other")]))
                .rule(Rule::new([set_meta_mark(0x539, 0xfff), set_ct_mark(0x111, 0xfff)]))
                .rule(Rule::new([set_meta_mark(7, u32::MAX), Expr::SetMetaMark { source: MarkSource::OtherMark }]))
                .rule(Rule::new([Expr::SetCtMark { source: MarkSource::OtherMark }]))
                .rule(Rule::new([eq(Field::UdpDport, 53u16), eq(Field::UdpSport, 1u16), accept()])),
        )
        .chain(Chain::base("in", Kind::Filter, Hook::Input, 0).policy_drop().rule(Rule::new([accept()])))
        .chain(Chain::base("fwd", Kind::Filter, Hook::Forward, 5))
        .chain(
            Chain::new("other")
                .rule(Rule::new([eq(Field::TcpDport, 1u16), reject_tcp_reset()]))
                .rule(Rule::new([eq(Field::L4Proto, UDP), Expr::Reject(Reject::PortUnreachable)]))
                .rule(Rule::new([eq(Field::FibDaddrType, 2u32), Expr::Reject(Reject::AdminProhibited)]))
                .rule(Rule::new([eq(Field::TcpDport, 2u16), drop()]))
                .rule(Rule::new([ret()])),
        )
        .chain(
            Chain::base("raw", Kind::Filter, Hook::Prerouting, -300)
                .rule(Rule::new([eq(Field::UdpDport, 53u16), set_ct_zone(1)]))
                .rule(Rule::new([eq(Field::UdpDport, 54u16), Expr::Notrack]))
                .rule(Rule::new([eq(Field::TcpDport, 1u16), ne(Field::SocketTransparent, 2u8), ret()])),
        )
        .chain(Chain::base("reroute", Kind::Route, Hook::Output, -140).rule(Rule::new([counter()])))
}

fn service_sets(address: DataType) -> [Set; 3] {
    let (vip, endpoints) = match address {
        DataType::Ipv6 => ("fd00:96::10", ["[fd00::1]:8080", "[fd00::2]:8081"]),
        _ => ("10.96.0.10", ["10.0.0.1:8080", "10.0.0.2:8081"]),
    };
    let key = [address, DataType::Protocol, DataType::Port];
    let element = Element::verdict([ip(vip).into(), TCP.into(), 80u16.into()], Verdict::Goto("svc".to_owned()));
    let single = Set::of("ports", [DataType::Port]).element(Element::key([443u16.into()]));
    [
        Set::verdicts("services", key).element(element),
        Set::endpoints("endpoints", endpoints.map(|text| text.parse::<SocketAddr>().unwrap())),
        single,
    ]
}

fn nat_table(family: Family, name: &str) -> Table {
    let ipv6 = family == Family::Ip6;
    let (daddr, address) = if ipv6 { (Field::Ip6Daddr, DataType::Ipv6) } else { (Field::IpDaddr, DataType::Ipv4) };
    let [services, endpoints, ports] = service_sets(address);
    let to = |key| Expr::Dnat(NatTarget::Map { key, map: "endpoints".to_owned(), ipv6 });
    let fixed = if ipv6 { ip("fd00::9") } else { ip("10.0.0.9") };
    Table::new(family, name)
        .set(services)
        .set(endpoints)
        .set(ports)
        .chain(
            Chain::base("pre", Kind::Nat, Hook::Prerouting, -100)
                .rule(Rule::new([Expr::VerdictMap {
                    key: Key::Fields(vec![daddr, Field::L4Proto, Field::ThDport]),
                    map: "services".to_owned(),
                }]))
                .rule(Rule::new([eq(Field::L4Proto, TCP), in_set([Field::TcpDport], "ports"), redirect(15001)]))
                .rule(Rule::new([
                    eq(Field::L4Proto, TCP),
                    Expr::InSet { fields: vec![Field::TcpDport], set: "ports".to_owned(), negated: true },
                    Expr::Dnat(NatTarget::Address { ip: fixed, port: Some(99) }),
                ]))
                .rule(Rule::new([Expr::Dnat(NatTarget::Address { ip: fixed, port: None })])),
        )
        .chain(
            Chain::new("svc")
                .rule(Rule::new([eq(Field::L4Proto, TCP), counter(), to(Key::RoundRobin { modulus: 2 })]))
                .rule(Rule::new([eq(Field::L4Proto, TCP), to(Key::Random { modulus: 2 })])),
        )
        .chain(
            Chain::base("post", Kind::Nat, Hook::Postrouting, 100)
                .rule(Rule::new([any_of(Field::CtStatus, Field::DNAT), masquerade()])),
        )
}

#[test]
fn every_expression_is_listed_as_it_was_applied() {
    isolated(|| {
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            for table in [filter_table(family, "filter"), nat_table(family, "nat")] {
                put(&table);
                assert_eq!(differences(&table).unwrap(), Vec::<String>::new(), "{family} {}", table.name);
                put(&table);
                assert_eq!(differences(&table).unwrap(), Vec::<String>::new(), "{family} {}", table.name);
            }
        }
        assert_eq!(tables().unwrap().len(), 6);
        assert!(tables().unwrap().iter().any(|table| table.comment.as_deref() == Some("hash 1234")));
    });
}

#[test]
fn differences_name_what_is_absent_changed_or_not_ours() {
    isolated(|| {
        let table = filter_table(Family::Inet, "t");
        assert_eq!(differences(&table).unwrap(), ["table inet t is absent"]);
        put(&table);
        let mut batch = Batch::new();
        batch.add_chain(Family::Inet, "t", &Chain::new("foreign"));
        batch.flush_chain(Family::Inet, "t", "raw");
        batch.add_rule(Family::Inet, "t", "reroute", &Rule::new([drop()]));
        let first = list(Family::Inet, "t").unwrap().into_iter().find(|rule| rule.chain == "in").unwrap();
        batch.delete_rule(Family::Inet, "t", "in", first.handle);
        batch.add_rule(Family::Inet, "t", "in", &Rule::new([drop()]));
        apply_or_panic(&batch);
        let mut found = differences(&table).unwrap();
        found.sort();
        let expected = [
            "chain foreign is not ours",
            "chain reroute has 1 more rules",
            "rule 1 of chain in is another",
            "rule 1 of chain raw is absent",
            "rule 2 of chain raw is absent",
            "rule 3 of chain raw is absent",
        ];
        assert_eq!(found, expected);
        let mut batch = Batch::new();
        batch.replace_rules(Family::Inet, "t", &table.chains[1]);
        apply_or_panic(&batch);
        assert!(!differences(&table).unwrap().iter().any(|line| line.contains("chain in")));
    });
}

#[test]
fn a_refused_rule_is_named_and_nothing_of_its_batch_is_done() {
    isolated(|| {
        let table = Table::new(Family::Inet, "t").chain(
            Chain::base("out", Kind::Filter, Hook::Output, 0)
                .rule(Rule::new([accept()]))
                .rule(Rule::new([jump("nowhere")]).comment("the bad one")),
        );
        let mut batch = Batch::new();
        batch.replace_table(&table);
        let error = apply(&batch).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("cannot add rule 2 (the bad one) to chain out of table inet t"), "{text}");
        assert!(error.is_absent(), "{error:?}");
        assert_eq!(tables().unwrap(), []);
        // A value that does not fit is refused before the kernel is asked.
        let mut batch = Batch::new();
        let rule = Rule::new([eq(Field::TcpDport, 70_000u32)]);
        batch.add_table(&Table::new(Family::Inet, "t").chain(Chain::new("c").rule(rule)));
        assert!(apply(&batch).unwrap_err().to_string().contains("too large"));
    });
}

#[test]
fn an_absent_table_is_deleted_and_listed_without_error() {
    isolated(|| {
        let mut batch = Batch::new();
        batch.delete_table(Family::Inet, "absent");
        apply_or_panic(&batch);
        assert_eq!(list(Family::Inet, "absent").unwrap(), []);
        assert_eq!(counters(Family::Inet, "absent").unwrap(), []);
        apply_or_panic(&Batch::new());
    });
}

#[test]
fn a_map_takes_thousands_of_elements_and_gives_them_back() {
    isolated(|| {
        let elements: Vec<_> = (0..4000u32)
            .map(|index| {
                let [_, _, c, d] = index.to_be_bytes();
                let key = [Value::from(ip(&format!("10.1.{c}.{d}"))), TCP.into(), 80u16.into()];
                Element::verdict(key, Verdict::Goto("svc".to_owned()))
            })
            .collect();
        let set = Set::verdicts("services", [DataType::Ipv4, DataType::Protocol, DataType::Port]);
        let mut table = Table::new(Family::Ip, "t").chain(Chain::new("svc")).set(Set { elements, ..set.clone() });
        put(&table);
        assert_eq!(differences(&table).unwrap(), Vec::<String>::new());
        let removed = table.sets[0].elements.split_off(3990);
        let mut batch = Batch::new();
        batch.delete_elements(Family::Ip, "t", &set, removed);
        apply_or_panic(&batch);
        assert_eq!(differences(&table).unwrap(), Vec::<String>::new());
    });
}
