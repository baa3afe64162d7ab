use std::net::SocketAddr;

use super::*;
use crate::draft::Draft;
use crate::record::Record;

const NOW: u64 = 500_000 * HOUR_US + 7;

fn draft(at_us: u64, path: &str) -> Draft {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap().into();
    let mut draft = Draft::new(Record {
        at_us,
        hop: Hop::Request,
        source: address("10.0.0.1:4000"),
        original: address("10.0.0.9:15008"),
        ..Record::default()
    });
    draft.name(Field::SourceIdentity, "spiffe://td/ns/shop/sa/page");
    draft.name(Field::Authority, "10.1.0.1:80");
    draft.name(Field::Service, "shop/stock.shop.svc.cluster.local");
    draft.name(Field::Method, "GET");
    draft.name(Field::Path, path);
    draft
}

fn put(flows: &mut Flows, draft: &Draft) {
    flows.count(&Row::of(draft));
}

fn told(flows: &Flows) -> Vec<Flow> {
    flows.moment().tell(0, &[] as &[Draft], NOW).flows
}

#[test]
fn what_is_alike_is_one_row() {
    let mut flows = Flows::new(DEFAULT_FLOWS, NOW);
    for number in 0..100u64 {
        put(&mut flows, &draft(NOW + number, &format!("/items/{number}")));
    }
    let mut refused = draft(NOW, "/items/1");
    (refused.record.is_refused, refused.record.reason) = (true, "DENIED_BY");
    put(&mut flows, &refused);
    let told = told(&flows);
    assert_eq!(told.len(), 2, "{told:?}");
    let first = &told[0];
    assert_eq!((first.count, first.first_us, first.last_us, first.port), (100, NOW, NOW + 99, 80));
    assert_eq!((first.method.as_str(), first.path.as_str()), ("GET", "/items/{id}"));
    assert_eq!((told[1].refused, told[1].reason.as_str()), (true, "DENIED_BY"));
    assert_eq!(first.hour % 3600, 0);
}

#[test]
fn a_day_is_kept() {
    let mut flows = Flows::new(DEFAULT_FLOWS, NOW - 30 * HOUR_US);
    for hour in (0..30u64).rev() {
        put(&mut flows, &draft(NOW - hour * HOUR_US, "/"));
    }
    assert_eq!(told(&flows).len(), 24);
    assert_eq!(flows.moment().tell(0, &[] as &[Draft], NOW).since_us, NOW / HOUR_US * HOUR_US - 23 * HOUR_US);
    assert_eq!(flows.moment().tell(NOW - HOUR_US, &[] as &[Draft], NOW).flows.len(), 2);
}

#[test]
fn rows_stay_within_the_budget_and_no_count_is_lost() {
    let mut flows = Flows::new(SMALLEST_FLOWS, NOW);
    let letters = |number: u32| number.to_string().bytes().map(|byte| char::from(byte + 50)).collect::<String>();
    for number in 0..5000u32 {
        put(&mut flows, &draft(NOW, &format!("/{}", letters(number))));
    }
    let answer = flows.moment().tell(0, &[] as &[Draft], NOW);
    assert!(answer.bytes <= SMALLEST_FLOWS / 24, "{}", answer.bytes);
    assert_eq!(answer.flows.iter().map(|flow| flow.count).sum::<u64>(), 5000);
    assert!(answer.flows.last().unwrap().overflow);
}

#[test]
fn what_is_saved_comes_back_and_what_is_not_ours_does_not() {
    let mut flows = Flows::new(DEFAULT_FLOWS, NOW);
    put(&mut flows, &draft(NOW, "/a"));
    put(&mut flows, &draft(NOW - 40 * HOUR_US, "/old"));
    let saved = flows.moment().save().unwrap();
    let mut again = Flows::new(DEFAULT_FLOWS, NOW + 5);
    again.restore(&saved, NOW + 5).unwrap();
    put(&mut again, &draft(NOW + 6, "/a"));
    let told = told(&again);
    assert_eq!(told.iter().map(|flow| (flow.path.as_str(), flow.count)).collect::<Vec<_>>(), [("/a", 2)]);
    assert_eq!(again.moment().tell(0, &[] as &[Draft], NOW).since_us, NOW);
    assert!(again.restore(b"{", NOW).is_err());
    // A clock that went back.
    let mut earlier = Flows::new(DEFAULT_FLOWS, NOW - 50 * HOUR_US);
    earlier.restore(&saved, NOW - 50 * HOUR_US).unwrap();
    assert!(earlier.moment().tell(0, &[] as &[Draft], NOW).flows.is_empty());
}

#[test]
fn what_is_open_is_told_and_not_kept() {
    let flows = Flows::new(DEFAULT_FLOWS, NOW);
    let mut clear = draft(NOW, "");
    (clear.record.hop, clear.record.is_tunnelled) = (Hop::Inbound, false);
    clear.record.upstream = "10.0.0.2:8080".parse::<SocketAddr>().unwrap().into();
    clear.name(Field::SourceIdentity, "");
    clear.name(Field::Source, "K//Pod/street/visitor");
    clear.name(Field::Endpoint, "K//Pod/shop/stock-0");
    let told = flows.moment().tell(0, &[clear], NOW).flows;
    let row = &told[0];
    assert_eq!((row.count, row.open, row.clear, row.port), (1, 1, true, 8080));
    assert_eq!((row.source.as_str(), row.endpoint.as_str()), ("street/visitor", "shop/stock-0"));
    assert!(flows.moment().tell(0, &[] as &[Draft], NOW).flows.is_empty());
}
