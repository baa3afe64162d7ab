//! What belongs together, and how it reads.

use stillmesh_records::{Destination, Hop, Miss, Source, Told};

use super::{join, story};

fn told(hop: Hop, id: &str, next: Option<&str>, at_us: u64) -> Told {
    Told {
        by: format!("{hop:?}"),
        hop,
        id: id.to_owned(),
        next: next.map(str::to_owned),
        at_us,
        tunnelled: true,
        flags: "-".to_owned(),
        source: Source {
            workload: "K//Pod/shop/page".to_owned(),
            address: "10.0.0.1:4000".to_owned(),
            ..Source::default()
        },
        destination: Destination {
            endpoint: "K//Pod/shop/stock-0".to_owned(),
            address: "10.1.0.1:80".to_owned(),
            upstream: "10.0.0.2:8080".to_owned(),
            ..Destination::default()
        },
        ..Told::default()
    }
}

#[test]
fn requests_of_two_clients_on_one_connection_onwards_are_two_stories() {
    let all = vec![
        told(Hop::Inbound, "c", None, 9),
        told(Hop::Request, "a", Some("c"), 3),
        told(Hop::Request, "b", Some("c"), 4),
        told(Hop::Outbound, "a", None, 5),
        told(Hop::Outbound, "b", None, 6),
    ];
    let found = join::connections(all, &|_| true);
    let ids: Vec<_> = found.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    let hops: Vec<_> = found[0].hops.iter().map(|told| told.hop).collect();
    assert_eq!(hops, [Hop::Outbound, Hop::Request, Hop::Inbound]);
}

#[test]
fn refused_ones_come_first_and_only_what_is_asked_for_is_told() {
    let refused = Told { refused: true, decision: Some("d".repeat(16)), ..told(Hop::Request, "a", None, 2) };
    let all = vec![
        told(Hop::Outbound, "a", None, 3),
        refused,
        told(Hop::Request, "a", None, 4),
        told(Hop::Outbound, "z", None, 9),
    ];
    let found = join::connections(all.clone(), &|_| true);
    assert_eq!(found.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["a", "z"]);
    let by_id = join::connections(all, &|told| join::has_id(told, 0xdddd_dddd_dddd_dddd));
    assert_eq!(by_id.len(), 1);
    assert_eq!(by_id[0].hops.len(), 2, "the client's and the one request");
}

#[test]
fn a_refusal_reads_as_who_wanted_what_and_what_was_seen() {
    let mut inbound = Told {
        refused: true,
        reason: "NO_ALLOW_MATCHED".to_owned(),
        because: "allow policies apply and none matched: shop/only".to_owned(),
        remedy: "add it".to_owned(),
        ..told(Hop::Inbound, "a", None, 2)
    };
    inbound.source.identity = "spiffe://td/ns/shop/sa/page".to_owned();
    inbound.misses = vec![Miss {
        policy: "shop/only".to_owned(),
        rule: 0,
        attribute: "principal".to_owned(),
        wanted: "td/ns/shop/sa/cart".to_owned(),
        seen: "td/ns/shop/sa/page".to_owned(),
    }];
    let found = join::connections(vec![inbound, told(Hop::Outbound, "a", None, 1)], &|_| true);
    let text = story::of(&found[0]);
    for part in [
        "shop/page (10.0.0.1:4000) → shop/stock-0 (10.1.0.1:80): REFUSED",
        "from spiffe://td/ns/shop/sa/page; for shop/stock-0 (10.0.0.2:8080)",
        "refused: NO_ALLOW_MATCHED: allow policies apply",
        "rule 0 of shop/only wants principal td/ns/shop/sa/cart, seen is td/ns/shop/sa/page",
        "what to do: add it",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
