use super::*;

fn flow(hour: u64, source: &str, count: u64) -> Flow {
    Flow {
        hour,
        source: source.to_owned(),
        endpoint: "shop/stock".to_owned(),
        port: 8080,
        count,
        first_us: hour * 1_000_000,
        last_us: hour * 1_000_000 + 5,
        ..Flow::default()
    }
}

#[test]
fn rows_of_all_hours_and_places_are_one() {
    let found = merged(vec![flow(1, "a", 2), flow(2, "b", 9), flow(3, "a", 40)], |_| true);
    let rows: Vec<_> =
        found.iter().map(|flow| (flow.source.as_str(), flow.count, flow.first_us, flow.last_us)).collect();
    assert_eq!(rows, [("a", 42, 1_000_000, 3_000_005), ("b", 9, 2_000_000, 2_000_005)]);
    assert_eq!(merged(vec![flow(1, "a", 2)], |flow| flow.source == "b"), []);
}

#[test]
fn who_has_not_answered_is_named() {
    let asked = |error: Option<&str>, reach| Asked {
        by: "ztunnel-node1".to_owned(),
        reaches_back_s: reach,
        error: error.map(str::to_owned),
    };
    assert!(notes(&[asked(None, Some(3))]).is_empty());
    assert!(notes(&[asked(Some("no route"), None)])[0].contains("no route"));
    assert!(notes(&[asked(None, None)])[0].contains("FLOWS_MEMORY"));
    assert!(notes(&[])[0].contains("no ztunnel"));
}
