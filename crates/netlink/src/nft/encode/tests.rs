//! Golden bytes, written from linux/netfilter/nf_tables.h and the layout of packets, not by the encoder.

use super::super::expr::*;
use super::super::model::{DataType, Element, Family, Rule, Set};
use super::*;

/// One attribute: length, type, payload, padding.
fn attribute(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), u16::from(kind).to_ne_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One expression of a rule: its name and its attributes, each a type and bytes.
fn expression(name: &str, attributes: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = attribute(1, format!("{name}\0").as_bytes());
    if !attributes.is_empty() {
        let inside: Vec<u8> = attributes.iter().flat_map(|(kind, payload)| attribute(*kind, payload)).collect();
        bytes.extend(attribute(2, &inside));
    }
    attribute(1, &bytes)
}

fn value(bytes: &[u8]) -> Vec<u8> {
    attribute(1, bytes)
}

/// Loads the transport protocol and goes on if it is TCP.
fn is_tcp() -> Vec<u8> {
    let load = expression("meta", &[(2, &[0, 0, 0, 16]), (1, &[0, 0, 0, 1])]);
    let compare = expression("cmp", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 0]), (3, &value(&[6]))]);
    [load, compare].concat()
}

#[track_caller]
fn assert_encodes(family: Family, exprs: impl IntoIterator<Item = Expr>, expected: &[Vec<u8>]) {
    let encoded = expressions(family, &Rule::new(exprs)).unwrap();
    assert_eq!(encoded.as_bytes(), expected.concat());
}

#[test]
fn opening_syn_to_redirect() {
    let flags =
        expression("payload", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 2]), (3, &[0, 0, 0, 13]), (4, &[0, 0, 0, 1])]);
    let mask = expression(
        "bitwise",
        &[
            (1, &[0, 0, 0, 1]),
            (2, &[0, 0, 0, 1]),
            (3, &[0, 0, 0, 1]),
            (6, &[0, 0, 0, 0]),
            (4, &value(&[0x17])),
            (5, &value(&[0])),
        ],
    );
    let compare = expression("cmp", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 0]), (3, &value(&[0x02]))]);
    let port = expression("immediate", &[(1, &[0, 0, 0, 1]), (2, &value(&[0x3a, 0x99]))]);
    let redirect_to = expression("redir", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 1]), (3, &[0, 0, 0, 2])]);
    let expected = [is_tcp(), flags, mask, compare, port, redirect_to];
    assert_encodes(Family::Inet, [syn_only(), redirect(15001)], &expected);
    // What the rule says itself is not said again.
    assert_encodes(Family::Inet, [eq(Field::L4Proto, TCP), syn_only(), redirect(15001)], &expected);
}

#[test]
fn address_in_an_inet_table_presupposes_its_ip_version() {
    let version = [
        expression("meta", &[(2, &[0, 0, 0, 15]), (1, &[0, 0, 0, 1])]),
        expression("cmp", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 0]), (3, &value(&[2]))]),
    ];
    let address = [
        expression("payload", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 1]), (3, &[0, 0, 0, 16]), (4, &[0, 0, 0, 4])]),
        expression("cmp", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 1]), (3, &value(&[127, 0, 0, 1]))]),
    ];
    let not_loopback = || [ne(Field::IpDaddr, std::net::Ipv4Addr::LOCALHOST)];
    assert_encodes(Family::Inet, not_loopback(), &[version.concat(), address.concat()]);
    assert_encodes(Family::Ip, not_loopback(), &address);
    assert!(expressions(Family::Ip6, &Rule::new(not_loopback())).unwrap_err().contains("other IP version"));
}

#[test]
fn mark_and_connection_mark_keep_the_other_bits() {
    let load = expression("ct", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 3])]);
    let replace = expression(
        "bitwise",
        &[
            (1, &[0, 0, 0, 1]),
            (2, &[0, 0, 0, 1]),
            (3, &[0, 0, 0, 4]),
            (6, &[0, 0, 0, 0]),
            (4, &value(&0xffff_f000u32.to_ne_bytes())),
            (5, &value(&0x111u32.to_ne_bytes())),
        ],
    );
    let store = expression("ct", &[(4, &[0, 0, 0, 1]), (2, &[0, 0, 0, 3])]);
    assert_encodes(Family::Inet, [set_ct_mark(0x111, 0xfff)], &[load.clone(), replace, store]);
    let restore = [load, expression("meta", &[(2, &[0, 0, 0, 3]), (3, &[0, 0, 0, 1])])];
    assert_encodes(Family::Inet, [Expr::SetMetaMark { source: MarkSource::OtherMark }], &restore);
}

#[test]
fn destination_from_a_map_of_addresses_and_ports() {
    let number = expression("numgen", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 3]), (3, &[0, 0, 0, 1]), (4, &[0; 4])]);
    // The value goes into registers 16 (address) and 17 (port); the first of a group of four has a short number.
    let lookup = expression("lookup", &[(1, b"eps\0"), (2, &[0, 0, 0, 1]), (3, &[0, 0, 0, 3]), (5, &[0; 4])]);
    let nat = expression(
        "nat",
        &[
            (1, &[0, 0, 0, 1]),
            (2, &[0, 0, 0, 2]),
            (3, &[0, 0, 0, 3]),
            (4, &[0, 0, 0, 3]),
            (5, &[0, 0, 0, 17]),
            (6, &[0, 0, 0, 17]),
            (7, &[0, 0, 0, 3]),
        ],
    );
    let target = NatTarget::Map { key: Key::Random { modulus: 3 }, map: "eps".to_owned(), ipv6: false };
    assert_encodes(Family::Ip, [Expr::Dnat(target)], &[number, lookup, nat]);
}

#[test]
fn concatenated_key_takes_whole_registers() {
    let daddr =
        expression("payload", &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 1]), (3, &[0, 0, 0, 16]), (4, &[0, 0, 0, 4])]);
    let protocol = expression("meta", &[(2, &[0, 0, 0, 16]), (1, &[0, 0, 0, 9])]);
    let port =
        expression("payload", &[(1, &[0, 0, 0, 10]), (2, &[0, 0, 0, 2]), (3, &[0, 0, 0, 2]), (4, &[0, 0, 0, 2])]);
    let verdict = expression("lookup", &[(1, b"svc\0"), (2, &[0, 0, 0, 1]), (3, &[0, 0, 0, 0]), (5, &[0; 4])]);
    let key = Key::Fields(vec![Field::IpDaddr, Field::L4Proto, Field::ThDport]);
    let expr = Expr::VerdictMap { key, map: "svc".to_owned() };
    assert_encodes(Family::Ip, [expr], &[daddr, protocol, port, verdict]);

    let set = Set::verdicts("svc", [DataType::Ipv4, DataType::Protocol, DataType::Port]);
    assert_eq!(set_type(&set.key).unwrap(), (7 << 12 | 12 << 6 | 13, 12));
    let address = std::net::Ipv4Addr::new(10, 96, 0, 10);
    let one = Element::verdict([address.into(), TCP.into(), 80u16.into()], Verdict::Goto("c".to_owned()));
    let (key, data) = element(&set, &one).unwrap();
    assert_eq!(key, [10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0]);
    let goto = [attribute(1, &(-4i32).to_be_bytes()), attribute(2, b"c\0")].concat();
    assert_eq!(data.unwrap().as_bytes(), attribute(2, &goto));
}

#[test]
fn statements_without_parameters_have_none() {
    let verdict = |code: i32| {
        let code = attribute(1, &code.to_be_bytes());
        expression("immediate", &[(1, &[0, 0, 0, 0]), (2, &attribute(2, &code))])
    };
    let expected = [expression("notrack", &[]), expression("masq", &[]), verdict(1), verdict(0), verdict(-5)];
    assert_encodes(Family::Inet, [Expr::Notrack, masquerade(), accept(), drop(), ret()], &expected);
    let reset = [is_tcp(), expression("reject", &[(1, &[0, 0, 0, 1])])];
    assert_encodes(Family::Inet, [reject_tcp_reset()], &reset);
}

#[test]
fn what_could_never_match_or_does_not_fit_is_refused() {
    let refused = [
        vec![eq(Field::TcpDport, 65_536u32)],
        vec![eq(Field::TcpDport, "lo")],
        vec![eq(Field::IifName, "a-name-that-is-too-long")],
        vec![eq(Field::IpDaddr, std::net::Ipv6Addr::LOCALHOST)],
        vec![eq(Field::L4Proto, UDP), eq(Field::TcpDport, 80u16)],
        vec![masked_eq(Field::MetaMark, 0xffu32, 0x100u32)],
        vec![set_meta_mark(0x100, 0xff)],
        vec![in_set([Field::IifName, Field::OifName, Field::MetaMark], "too-long")],
        vec![Expr::VerdictMap { key: Key::Random { modulus: 0 }, map: "m".to_owned() }],
    ];
    for exprs in refused {
        assert!(expressions(Family::Inet, &Rule::new(exprs.clone())).is_err(), "{exprs:?}");
    }
    let set = Set::of("s", [DataType::Ipv4, DataType::Port]);
    assert!(element(&set, &Element::key([80u16.into()])).is_err());
    assert!(element(&set, &Element::verdict([80u16.into()], Verdict::Drop)).is_err());
}
