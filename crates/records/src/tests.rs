//! Properties of the ring and of what its records share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use crate::held::Found;
use crate::ring::CHUNK_BYTES;
use crate::*;

fn draft(number: u64, source: &str, path: &str) -> Draft {
    let record = Record { at_us: number, id: u128::from(number) + 1, hop: Hop::Request, ..Record::default() };
    let mut draft = Draft::new(record);
    draft.name(Field::Source, source);
    draft.name(Field::Path, path);
    draft.name_some(Field::Method, Some("GET"));
    draft.name_some(Field::Host, None::<&str>);
    draft
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_ring_stays_within_its_budget_keeps_the_newest_in_order_and_leaks_nothing(
        records in proptest::collection::vec(
            ("[a-c]{1,2}", "/[a-z0-9]{0,40}", 0..4_u128, 0..3_usize, 0..3_u16, any::<bool>()),
            1..400,
        ),
        budget in 4 * CHUNK_BYTES..8 * CHUNK_BYTES,
    ) {
        let mut ring = Ring::new(budget);
        let mut shapes = BTreeMap::new();
        let drafts: Vec<Draft> = records.iter().enumerate().map(|(number, (source, path, id, reason, port, _))| {
            let mut draft = draft(number as u64, source, path);
            draft.record.id = *id;
            draft.record.reason = ["ROUTED", "CARRIED", "DENIED"][*reason];
            draft.record.upstream = SocketAddr::from(([10, 0, 0, 1], *port)).into();
            draft
        }).collect();
        for (draft, (source, path, _, reason, port, is_shaped)) in drafts.iter().zip(&records) {
            if *is_shaped {
                let shape = shapes.entry((source, reason, port)).or_insert_with(|| Shape::of(draft));
                let (_, shared, path) = shape.remembered(path).unwrap();
                ring.push_again(&draft.record, shared, path);
            } else {
                ring.push(draft);
            }
            prop_assert!(ring.bytes() <= budget, "{} of {budget} bytes with {} records", ring.bytes(), ring.len());
        }
        prop_assert!(!ring.is_empty());
        prop_assert_eq!(ring.written(), records.len() as u64);
        let kept: Vec<(u64, Told)> = ring.before(u64::MAX).map(|(number, kept)| (number, Told::of(&kept))).collect();
        prop_assert_eq!(kept.len(), ring.len());
        // The newest, without a gap, newest first, as they were written.
        for (place, ((number, kept), draft)) in kept.iter().zip(drafts.iter().rev()).enumerate() {
            prop_assert_eq!(*number, (records.len() - 1 - place) as u64);
            prop_assert_eq!(kept, &Told::of(draft));
        }
        // What they share is what those that are kept have, and nothing else; method, host and others are one text.
        let texts = kept.iter().flat_map(|(_, told)| [&*told.source.workload, &*told.path]).chain(["GET"]);
        prop_assert_eq!(ring.names().len(), texts.collect::<BTreeSet<_>>().len());
        let kinds = kept.iter().map(|(_, told)| (&told.reason, &told.destination.upstream)).collect::<BTreeSet<_>>();
        prop_assert_eq!(ring.shared(), (kinds.len(), [kept.len(), kept.len()]));
    }

    #[test]
    fn names_are_held_as_often_as_they_are_used(
        steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..12_usize), 0..300),
    ) {
        let (mut names, mut model) = (Names::default(), BTreeMap::<usize, Vec<Handle>>::new());
        let mut found: [Found<str>; 12] = Default::default();
        for (holds, again, which) in steps {
            if holds {
                let name = format!("name {which}");
                let held = if again { names.hold_again(&name, &mut found[which]) } else { names.hold(&*name) };
                model.entry(which).or_default().push(held);
            } else if let Some(handle) = model.get_mut(&which).and_then(Vec::pop) {
                names.release(handle);
            }
            model.retain(|_, uses| !uses.is_empty());
            prop_assert_eq!(names.len(), model.len());
            for (which, uses) in &model {
                let name = format!("name {which}");
                prop_assert!(uses.iter().all(|handle| names.text(*handle) == name));
            }
        }
        for handle in model.into_values().flatten() {
            names.release(handle);
        }
        prop_assert!(names.is_empty() && names.bytes() == 0);
    }

    #[test]
    fn no_question_breaks_the_reader(parameters in proptest::collection::vec((".{0,8}", ".{0,40}"), 0..4)) {
        drop(Query::read(&parameters));
    }

    #[test]
    fn what_is_asked_is_read_as_it_was_meant(
        ids in proptest::collection::vec(1_u128.., 0..3),
        pods in proptest::collection::vec(".{1,20}", 0..3),
        port in proptest::option::of(0_u16..),
        since in proptest::option::of(0_u64..1 << 40),
        path in proptest::option::of(".{0,40}"),
        limit in 1..=MOST_ANSWERS,
    ) {
        let sources = pods.into_iter().map(Term::Pod).collect();
        let destinations = vec![Term::Ip([10, 0, 0, 1].into()), Term::Service("shop/stock".to_owned())];
        let since = since.map(Duration::from_secs);
        let meant = Query { ids, sources, destinations, port, since, path, method: Some("GET".to_owned()), limit };
        let written = meant.to_string();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(written.as_bytes()).into_owned().collect();
        prop_assert_eq!(Query::read(&pairs), Ok(meant));
    }

    #[test]
    fn long_texts_are_cut_between_characters(text in "[aä€]{0,400}") {
        let mut draft = draft(0, "x", "/");
        draft.name(Field::Error, &text);
        let kept = draft.text(Field::Error);
        prop_assert!(text.starts_with(kept) && kept.len() <= LONGEST_NAME);
        prop_assert!(kept.len() == text.len() || kept.len() > LONGEST_NAME - 4);
    }

    #[test]
    fn each_text_is_found_again_whatever_stands_in_it_and_beside_it(
        texts in proptest::collection::vec(proptest::option::of("[a\\x00ä /]{0,12}"), 12),
    ) {
        let fields: Vec<Field> = Field::GROUPS.iter().flat_map(|group| group.iter().copied()).collect();
        prop_assert_eq!(fields.len(), Field::COUNT);
        let mut draft = Draft::new(Record::default());
        fields.iter().zip(&texts).for_each(|(field, text)| draft.name_some(*field, text.as_ref()));
        let mut ring = Ring::new(DEFAULT_BUDGET);
        ring.push(&draft);
        let (_, kept) = ring.before(u64::MAX).next().unwrap();
        for (field, text) in fields.iter().zip(&texts) {
            prop_assert_eq!(kept.text(*field), text.as_deref().unwrap_or_default().replace('\0', " "), "{:?}", field);
        }
    }
}

#[test]
fn an_empty_ring_costs_nothing_and_one_that_is_off_keeps_nothing() {
    assert_eq!(Ring::new(DEFAULT_BUDGET).bytes(), 0);
    let off = Recorder::new(0);
    assert!(!off.is_on());
    off.put(&draft(1, "a", "/"));
    assert!(off.find(&Query::all(), 0).is_empty() && off.size() == (0, 0, 0) && off.oldest_us().is_none());
}

// README says how many records the default budget keeps.
const _: () = assert!(CHUNK_BYTES / 64 <= 104);

fn ask(parameters: &[(&str, &str)]) -> Result<Query, String> {
    let owned: Vec<_> = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Query::read(&owned).map_err(|error| error.to_string())
}

#[test]
fn questions_are_answered_newest_first_and_bounded() {
    let recorder = Recorder::new(DEFAULT_BUDGET);
    for number in 0..1000 {
        recorder.put(&draft(number, if number % 2 == 0 { "K//Pod/shop/even" } else { "K//Pod/shop/odd" }, "/a"));
    }
    let find = |parameters: &[(&str, &str)], now| {
        let found = recorder.find(&ask(parameters).unwrap_or_default(), now);
        found.into_iter().map(|told| told.at_us).collect::<Vec<_>>()
    };
    assert_eq!(find(&[("src", "pod/shop/even"), ("limit", "3")], 0), [998, 996, 994]);
    assert_eq!(find(&[("src", "pod/shop/even"), ("src", "pod/shop/odd"), ("limit", "2")], 0), [999, 998]);
    assert_eq!(find(&[("src", "pod/op/even")], 0), [0_u64; 0]);
    assert_eq!(find(&[("id", "00000000000000000000000000000005")], 0), [4]);
    assert_eq!(find(&[("path", "/b")], 0), [0_u64; 0]);
    assert_eq!(find(&[("path", "/a"), ("method", "GET"), ("limit", "1")], 0), [999]);
    assert_eq!(find(&[("since", "1"), ("limit", "1000")], 1_000_998).len(), 2);
    assert_eq!(find(&[], 0).len(), 100);
    assert_eq!(recorder.oldest_us(), Some(0));
    for bad in [("src", "shop"), ("id", "xyz"), ("limit", "0"), ("limit", "1001"), ("port", "x"), ("what", "x")] {
        let error = ask(&[bad]).unwrap_err();
        assert!(error.contains(bad.0) && error.contains("is accepted"), "{error}");
    }
}

#[test]
fn destinations_are_found_by_service_address_pod_and_port() {
    let mut draft = draft(1, "K//Pod/shop/page", "/");
    draft.record.original = "10.0.0.9:80".parse::<SocketAddr>().map(Address::from).unwrap_or_default();
    draft.record.decision = 7;
    draft.record.hop = Hop::Outbound;
    draft.name(Field::Service, "shop/stock.shop.svc.local");
    draft.name(Field::Endpoint, "K//Pod/shop/stock-0");
    let takes = |parameters: &[(&str, &str)]| ask(parameters).is_ok_and(|query| query.takes(&draft, 0));
    for dst in [
        "service/shop/stock.shop.svc.local",
        "service/shop/stock",
        "pod/shop/stock-0",
        "ip/10.0.0.9",
        "ip/::ffff:10.0.0.9",
    ] {
        assert!(takes(&[("dst", dst)]), "{dst}");
    }
    for dst in ["service/shop/stoc", "service/depot/stock", "pod/hop/stock-0", "ip/10.0.0.8", "identity/spiffe://x"] {
        assert!(!takes(&[("dst", dst)]), "{dst}");
    }
    assert!(takes(&[("port", "80"), ("path", "/other")]) && !takes(&[("port", "81")]));
    assert!(takes(&[("id", "0000000000000007")]) && !takes(&[("id", "0000000000000008")]));
    let query = ask(&[("since", "5")]).unwrap_or_default();
    assert_eq!(query.since, Some(Duration::from_secs(5)));
}

#[test]
fn a_record_of_a_shape_is_what_its_draft_would_be() {
    let long = format!("/items/{}", "x".repeat(300));
    let words = "/abcdefghijklmnopqrstuvwxyzabcdefghij".repeat(8);
    for path in ["", "/", "/items/42", "/odd\0path", long.as_str(), words.as_str()] {
        for is_refused in [false, true] {
            let mut like = draft(1, "K//Pod/shop/page", "/another");
            like.record.is_refused = is_refused;
            like.record.reason = "ROUTED";
            like.record.remedy = "none";
            like.name(Field::SourceIdentity, "spiffe://td/ns/shop/sa/page");
            like.name(Field::Authority, "stock.shop:80");
            like.name(Field::Object, "HTTPRoute shop/stock, rule 0");
            let mut shape = Shape::of(&like);
            let numbers = Record { at_us: 7, id: 9, status: 200, sent: 5, ..like.record };
            like.record = numbers;
            like.name(Field::Path, path);
            let [drafted, shaped] = [(); 2].map(|()| Recorder::with_flows(DEFAULT_BUDGET, DEFAULT_FLOWS, 0));
            drafted.put(&like);
            shaped.put_shaped(Record { reason: "", remedy: "", ..numbers }, path, &mut shape);
            let told = |recorder: &Recorder| {
                let flows = recorder.flows().map(|flows| flows.tell(0, &[] as &[Draft], 7).flows);
                (recorder.find(&Query::all(), 7), flows)
            };
            assert_eq!(told(&drafted), told(&shaped), "{path:?}");
            assert_eq!(told(&drafted).0.len(), 1);
        }
    }
}

#[test]
fn requests_of_a_shape_are_counted_where_they_belong_whatever_came_between() {
    const HOUR_US: u64 = 3_600_000_000;
    let [drafted, shaped] = [(); 2].map(|()| Recorder::with_flows(SMALLEST_BUDGET, SMALLEST_FLOWS, 0));
    let mut shapes = ["page", "cart"].map(|source| Shape::of(&draft(0, source, "/")));
    // Hours pass, there are more paths than a shape remembers, and more records than are kept.
    for number in 0..20_000_u64 {
        let (which, path) =
            (number % 2, format!("/{}", ["a", "b", "c"][(number % 3) as usize].repeat(number as usize % 40)));
        let at_us = number * 30 * HOUR_US / 20_000;
        let source = ["page", "cart"][which as usize];
        drafted.put(&draft(at_us, source, &path));
        let record = draft(at_us, source, &path).record;
        shaped.put_shaped(record, &path, &mut shapes[which as usize]);
        if number % 1000 == 0 {
            // Whoever looks meanwhile has a copy.
            assert!(shaped.flows().is_some());
        }
    }
    let told = |recorder: &Recorder| {
        let now = 30 * HOUR_US;
        let flows = recorder.flows().map(|flows| flows.tell(0, &[] as &[Draft], now));
        (recorder.find(&Query { limit: MOST_ANSWERS, ..Query::all() }, now), flows, recorder.size())
    };
    assert_eq!(told(&drafted), told(&shaped));
    // A shape that was counted elsewhere is counted here all the same.
    let other = Recorder::with_flows(DEFAULT_BUDGET, DEFAULT_FLOWS, 0);
    for _ in 0..3 {
        other.put_shaped(draft(30 * HOUR_US - 1, "page", "/a").record, "/a", &mut shapes[0]);
    }
    let flows = other.flows().map(|flows| flows.tell(0, &[] as &[Draft], 30 * HOUR_US).flows).unwrap_or_default();
    assert_eq!(flows.iter().map(|flow| flow.count).collect::<Vec<_>>(), [3]);
    assert_eq!(other.size().0, 3);
}

#[test]
fn what_is_told_reads_back() {
    let told = Told::of(&draft(1, "a", "/"));
    let text = serde_json::to_string(&told).unwrap_or_default();
    assert_eq!(serde_json::from_str::<Told>(&text).ok(), Some(told));
}
