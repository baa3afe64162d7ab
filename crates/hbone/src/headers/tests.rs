use super::*;
use proptest::prelude::*;

#[test]
fn baggage_is_written_as_the_contract_has_it() {
    let baggage = Baggage {
        cluster: Some("Kubernetes".into()),
        namespace: Some("shop".into()),
        workload: Some(("deployment", "page".into())),
        service: Some("page".into()),
        revision: Some("v1".into()),
        region: None,
        zone: Some("a".into()),
    };
    let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=page,service.name=page,\
                service.version=v1,cloud.availability_zone=a";
    assert_eq!(baggage.to_string(), text);
    assert_eq!(Baggage::parse(text), baggage);
}

#[test]
fn a_separator_in_a_value_makes_no_other_member() {
    let baggage = Baggage { namespace: Some("a,service.name=b".into()), ..Baggage::default() };
    assert_eq!(baggage.to_string(), "");
}

#[test]
fn unknown_and_repeated_members_are_passed_over() {
    let baggage = Baggage::parse("x=y, service.name = a ;p=q,service.name=b,k8s.node.name=n,,=,service.version=");
    assert_eq!(baggage, Baggage { service: Some("a".into()), ..Baggage::default() });
}

#[test]
fn forwarded_is_written_and_read_with_and_without_quotes() {
    let forwarded = Forwarded { source: Some("10.0.0.1:80".parse().unwrap()), host: Some("a.b.svc".into()) };
    assert_eq!(forwarded.to_string(), "for=\"10.0.0.1:80\";host=a.b.svc");
    assert_eq!(Forwarded::parse(&forwarded.to_string()), forwarded);
    assert_eq!(Forwarded::parse("For=10.0.0.1:80; Host=\"a.b.svc\", for=9.9.9.9:1"), forwarded);
    let six = Forwarded { source: Some("[fd00::1]:80".parse().unwrap()), host: None };
    assert_eq!(six.to_string(), "for=\"[fd00::1]:80\"");
    assert_eq!(Forwarded::parse(&six.to_string()), six);
}

#[test]
fn a_host_makes_no_other_pair_and_what_is_no_host_is_neither_written_nor_read() {
    for host in ["a;for=9.9.9.9:1", "a,for=9.9.9.9:1", "a b", "a\"b", ""] {
        let forwarded = Forwarded { source: Some("10.0.0.1:80".parse().unwrap()), host: Some(host.to_owned()) };
        assert_eq!(forwarded.to_string(), "for=\"10.0.0.1:80\"", "{host}");
    }
    assert_eq!(Forwarded::parse("host=\" \""), Forwarded::default());
    assert_eq!(Forwarded::parse("host=a\"b"), Forwarded::default());
}

#[test]
fn a_value_with_an_equals_sign_is_written_as_it_was_read() {
    let baggage = Baggage::parse("service.version=a=b");
    assert_eq!(baggage.revision.as_deref(), Some("a=b"));
    assert_eq!(Baggage::parse(&baggage.to_string()), baggage);
}

#[test]
fn traceparent_follows_the_specification() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(Traceparent::parse(text).unwrap().to_string(), text);
    let malformed = [
        "",
        "00",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ];
    for text in malformed {
        assert_eq!(Traceparent::parse(text), None, "{text}");
    }
}

#[test]
fn authorities_are_addresses_or_names_with_a_port() {
    let address = |text: &str| Some(Authority::Address(text.parse().unwrap()));
    assert_eq!(parse_authority("10.0.0.1:80"), address("10.0.0.1:80"));
    assert_eq!(parse_authority("[fd00::1]:80"), address("[fd00::1]:80"));
    assert_eq!(parse_authority("a.b.svc:80"), Some(Authority::Name("a.b.svc".into(), 80)));
    for text in [
        "",
        ":",
        "a",
        "a:",
        ":80",
        "a:b",
        "a:99999",
        "a:+80",
        "fd00::1:80",
        "1.2.3:80",
        "a b:80",
        "u@h:80",
        "999.0.0.1:80",
    ] {
        assert_eq!(parse_authority(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut headers = HeaderMap::new();
        for name in [BAGGAGE, FORWARDED, TRACEPARENT, FORWARDED_NETWORK] {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(name, value);
            }
        }
        let _ = ConnectHeaders::read(&headers);
        let _ = parse_authority(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn what_is_written_is_read_back(trace in 1_u128.., span in 1_u64.., port: u16, host in "[a-z.]{1,20}", ns in "[a-z-]{1,20}") {
        let written = ConnectHeaders {
            baggage: Some(Baggage { namespace: Some(ns.into()), ..Baggage::default() }),
            forwarded: Some(Forwarded { source: Some(([10, 1, 2, 3], port).into()), host: Some(host) }),
            traceparent: Some(Traceparent::new(trace, span)),
            network: Some("n1".into()),
        };
        let mut headers = HeaderMap::new();
        written.write(&mut headers);
        prop_assert_eq!(ConnectHeaders::read(&headers), written);
    }
}
