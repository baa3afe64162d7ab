use std::sync::atomic::Ordering;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use stillmesh_core::Fault;
use stillmesh_core::model::PolicyKey;
use stillmesh_proxy::series::Budget;
use stillmesh_records::{DEFAULT_BUDGET, Recorder};

use super::*;
use crate::testing::{self, Events};

struct World {
    registry: Registry,
    ledger: Arc<Ledger>,
}

impl World {
    fn new() -> Self {
        Self::holding(100)
    }

    /// At most `most` label sets.
    fn holding(most: usize) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, "test", &Budget::new(most));
        Self { registry, ledger: Ledger::new(metrics, Recorder::new(DEFAULT_BUDGET)) }
    }

    /// What the TCP metrics count, as `METRIC FLAGS VALUE`, the destination's name before that where it reads `overflow`.
    fn counted(&self) -> Vec<String> {
        let text = self.metrics();
        let mut counted: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix("istio_tcp_")?.split_once('{')?;
                let (_, flags) = rest.split_once("response_flags=\"")?;
                let (flags, _) = flags.split_once('"')?;
                let (_, value) = rest.rsplit_once(' ')?;
                let overflow = if rest.contains("destination_workload=\"overflow\"") { "overflow " } else { "" };
                Some(format!("{overflow}{} {flags} {value}", name.trim_end_matches("_total")))
            })
            .collect();
        counted.sort_unstable();
        counted
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    /// The value of the only series of `name`, 0 where there is none.
    fn value(&self, name: &str) -> u64 {
        let text = self.metrics();
        let mut values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap());
        let value = values.next().unwrap_or(0);
        assert_eq!(values.next(), None, "{name} has several series:\n{text}");
        value
    }

    fn facts(&self) -> Facts {
        let source = testing::workload("shop", "page-1", [10, 0, 0, 1]);
        Facts {
            id: Id(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c),
            parent: 0,
            direction: Direction::Inbound,
            protocol: Protocol::Hbone,
            source_addr: "10.0.0.1:4000".parse().unwrap(),
            described: None,
            peer: Some(Arc::new(source.identity())),
            source: Some(Arc::new(source)),
            original: "10.0.0.2:8080".parse().unwrap(),
            destination_addr: "10.0.0.2:15008".parse().unwrap(),
            authority: Some(Authority::Address("10.0.0.2:8080".parse().unwrap())),
            upstream: Some("10.0.0.2:8080".parse().unwrap()),
            destination: Some(Arc::new(testing::workload("shop", "details-1", [10, 0, 0, 2]))),
            service: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("connection closed due to policy rejection: explicitly denied by: shop/no")]
struct Denied(Reason);

impl Ending for Denied {
    fn flag(&self) -> Flag {
        Flag::Deny
    }
    fn reason(&self) -> Option<&Reason> {
        Some(&self.0)
    }
}

impl Diagnose for Denied {
    fn code(&self) -> &'static str {
        self.0.code()
    }
    fn remedy(&self) -> &'static str {
        self.0.remedy()
    }
    fn fault(&self) -> Fault {
        self.0.fault()
    }
}

#[test]
fn a_connection_is_counted_once_and_its_bytes_while_it_is_open() {
    let world = World::new();
    let mut record = Record::new(&world.ledger, world.facts());
    record.opened();
    record.opened();
    assert_eq!(world.value("istio_tcp_connections_opened_total"), 1);
    assert_eq!(world.value("istio_tcp_sockets_open"), 1);
    record.counters().backward.fetch_add(10, Ordering::Relaxed);
    world.ledger.flush();
    world.ledger.flush();
    assert_eq!(world.value("istio_tcp_received_bytes_total"), 10);
    record.counters().backward.fetch_add(5, Ordering::Relaxed);
    record.counters().forward.fetch_add(7, Ordering::Relaxed);
    record.complete();
    assert_eq!(world.value("istio_tcp_received_bytes_total"), 15);
    assert_eq!(world.value("istio_tcp_sent_bytes_total"), 7);
    assert_eq!(world.value("istio_tcp_connections_closed_total"), 1);
    assert_eq!(world.value("istio_tcp_connections_failed_total"), 0);
    assert_eq!(world.value("istio_tcp_sockets_open"), 0);
    assert!(world.ledger.is_empty());
}

#[test]
fn a_failed_connection_counts_as_opened_failed_and_closed() {
    let world = World::new();
    let reason = Reason::DeniedBy { policy: PolicyKey::new("shop", "no"), rule: 0 };
    Record::new(&world.ledger, world.facts()).fail(&Denied(reason));
    for name in ["opened", "failed", "closed"] {
        assert_eq!(world.value(&format!("istio_tcp_connections_{name}_total")), 1, "{name}");
    }
    assert!(world.metrics().contains("response_flags=\"DENY\""));
}

#[test]
fn a_metric_has_a_label_set_from_when_it_is_counted_in_it() {
    let denied = || Denied(Reason::DeniedBy { policy: PolicyKey::new("shop", "no"), rule: 0 });
    let opened = |world: &World| {
        let mut record = Record::new(&world.ledger, world.facts());
        record.opened();
        record.counters().backward.fetch_add(3, Ordering::Relaxed);
        record
    };
    let open = ["connections_opened - 1", "received_bytes - 0", "sent_bytes - 0"];
    let bytes = ["received_bytes - 3", "sent_bytes - 0"];
    let (closed, failed) = ("connections_closed - 1", "connections_failed - 1");
    let refused = ["connections_closed DENY 1", "connections_failed DENY 1", "connections_opened - 1"];

    let world = World::new();
    let record = opened(&world);
    assert_eq!(world.counted(), open);
    record.complete();
    assert_eq!(world.counted(), [&[closed, open[0]], &bytes[..]].concat());

    let world = World::new();
    opened(&world).fail(&denied());
    assert_eq!(world.counted(), [&refused, &bytes[..]].concat());

    let world = World::new();
    drop(opened(&world));
    assert_eq!(world.counted(), [&[closed, failed, open[0]], &bytes[..]].concat());

    let world = World::new();
    Record::new(&world.ledger, world.facts()).fail(&denied());
    assert_eq!(world.counted(), refused);

    let world = World::new();
    Record::new(&world.ledger, world.facts()).complete();
    assert_eq!(world.counted(), [closed, open[0]]);
}

#[test]
fn no_count_is_lost_where_many_count_and_flush_at_once() {
    const THREADS: u64 = 4;
    const EACH: u64 = 200;
    let world = World::new();
    let ledger = &world.ledger;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let facts = world.facts();
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut record = Record::new(ledger, facts.clone());
                    record.opened();
                    let live = record.live().clone();
                    record.counters().backward.fetch_add(5, Ordering::Relaxed);
                    ledger.flush();
                    record.counters().backward.fetch_add(2, Ordering::Relaxed);
                    record.complete();
                    // As somebody who looked while it was open.
                    live.flush();
                }
            });
        }
    });
    let all = THREADS * EACH;
    let expected = [
        format!("connections_closed - {all}"),
        format!("connections_opened - {all}"),
        format!("received_bytes - {}", all * 7),
        "sent_bytes - 0".to_owned(),
    ];
    assert_eq!(world.counted(), expected);
    assert_eq!(world.value("istio_tcp_sockets_open"), 0);
}

#[test]
fn what_finds_no_place_is_counted_under_overflow_from_its_opening_to_its_end() {
    let world = World::holding(1);
    Record::new(&world.ledger, world.facts()).complete();
    for n in 0..10 {
        let mut facts = world.facts();
        facts.destination = Some(Arc::new(testing::workload("shop", &format!("other{n}-1"), [10, 0, 1, n])));
        let mut record = Record::new(&world.ledger, facts);
        record.opened();
        record.counters().forward.fetch_add(4, Ordering::Relaxed);
        record.complete();
    }
    let expected = [
        "connections_closed - 1",
        "connections_opened - 1",
        "overflow connections_closed - 10",
        "overflow connections_opened - 10",
        "overflow received_bytes - 0",
        "overflow sent_bytes - 40",
    ];
    assert_eq!(world.counted(), expected);
    let text = world.metrics();
    for metric in ["connections_opened", "connections_closed", "connections_failed", "received_bytes", "sent_bytes"] {
        for line in [
            format!("stillmesh_series_held{{metric=\"istio_tcp_{metric}_total\"}} 1\n"),
            format!("stillmesh_series_overflow_total{{metric=\"istio_tcp_{metric}_total\"}} 10\n"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}

#[test]
fn a_dropped_record_is_written_down_too() {
    let world = World::new();
    let events = Events::capture(|| {
        let mut record = Record::new(&world.ledger, world.facts());
        record.opened();
    });
    assert_eq!(world.value("istio_tcp_connections_closed_total"), 1);
    assert!(world.ledger.is_empty());
    let event = events.of("connection complete");
    assert_eq!(event.field("error"), Some("\"connection closed before it ended\""));
}

#[test]
fn a_panic_counts_and_is_written_down() {
    let world = World::new();
    let (ledger, facts) = (world.ledger.clone(), world.facts());
    let panicked = std::thread::spawn(move || {
        let mut record = Record::new(&ledger, facts);
        record.opened();
        panic!("a fault");
    })
    .join();
    assert!(panicked.is_err());
    assert_eq!(world.value("istio_tcp_connections_closed_total"), 1);
    assert!(world.metrics().contains("stillmesh_ztunnel_panics_total 1"));
}

#[test]
fn the_access_log_has_istios_fields_in_order() {
    let world = World::new();
    let events = Events::capture(|| {
        let mut record = Record::new(&world.ledger, world.facts());
        record.opened();
        record.counters().backward.fetch_add(67, Ordering::Relaxed);
        record.counters().forward.fetch_add(490, Ordering::Relaxed);
        record.complete();
    });
    let event = events.of("connection complete");
    assert_eq!((event.level.as_str(), event.target.as_str()), ("INFO", "access"));
    let fields: Vec<_> = event.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let expected = [
        "src.addr=10.0.0.1:4000",
        "src.workload=\"page-1\"",
        "src.namespace=\"shop\"",
        "src.identity=\"spiffe://cluster.local/ns/shop/sa/page\"",
        "src.cluster=\"Kubernetes\"",
        "dst.addr=10.0.0.2:15008",
        "dst.hbone_addr=10.0.0.2:8080",
        "dst.workload=\"details-1\"",
        "dst.namespace=\"shop\"",
        "dst.identity=\"spiffe://cluster.local/ns/shop/sa/details\"",
        "dst.cluster=\"Kubernetes\"",
        "direction=\"inbound\"",
        "bytes_sent=490",
        "bytes_recv=67",
        "duration=\"0ms\"",
        "conn.id=0af7651916cd43dd8448eb211c80319c",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn a_denial_names_reason_and_policy() {
    let world = World::new();
    let events = Events::capture(|| {
        let reason = Reason::DeniedBy { policy: PolicyKey::new("shop", "no"), rule: 0 };
        Record::new(&world.ledger, world.facts()).fail(&Denied(reason));
    });
    let event = events.of("connection complete");
    assert_eq!(event.level, "ERROR");
    assert_eq!(event.field("policy"), Some("\"shop/no\""));
    assert!(event.field("reason").is_some());
    assert!(event.field("error").is_some_and(|error| error.contains("explicitly denied by: shop/no")));
}

#[test]
fn clear_text_claims_no_identity() {
    let world = World::new();
    let events = Events::capture(|| {
        let mut facts = world.facts();
        facts.protocol = Protocol::Tcp;
        facts.authority = None;
        Record::new(&world.ledger, facts).complete();
    });
    let event = events.of("connection complete");
    assert_eq!(event.field("src.identity"), None);
    assert_eq!(event.field("dst.identity"), None);
    assert!(world.metrics().contains("source_principal=\"unknown\""));
}

#[test]
fn outbound_sent_bytes_are_what_the_client_sent() {
    let world = World::new();
    let events = Events::capture(|| {
        let mut facts = world.facts();
        facts.direction = Direction::Outbound;
        let record = Record::new(&world.ledger, facts);
        record.counters().forward.fetch_add(67, Ordering::Relaxed);
        record.complete();
    });
    assert_eq!(events.of("connection complete").field("bytes_sent"), Some("67"));
}

#[test]
fn inbound_connections_are_found_by_their_destination() {
    let world = World::new();
    let uid = world.facts().destination.unwrap().uid.clone();
    let mut inbound = Record::new(&world.ledger, world.facts());
    let number = inbound.enlist().number;
    let mut facts = world.facts();
    facts.direction = Direction::Outbound;
    let mut outbound = Record::new(&world.ledger, facts);
    outbound.enlist();
    assert_eq!(world.ledger.at(&uid).iter().map(|live| live.number).collect::<Vec<_>>(), [number]);
    assert_eq!(world.ledger.all().len(), 2);
    drop(inbound);
    assert!(world.ledger.at(&uid).is_empty());
}

#[test]
fn it_is_known_how_many_are_open_and_how_many_were() {
    let world = World::new();
    let seen = || (world.ledger.len(), world.ledger.most());
    let mut records: Vec<Record> = (0..5).map(|_| Record::new(&world.ledger, world.facts())).collect();
    assert_eq!(seen(), (0, 0), "listed when they open");
    for record in &mut records {
        record.enlist();
        record.enlist();
    }
    assert_eq!(seen(), (5, 5));
    records.truncate(2);
    assert_eq!(seen(), (2, 5), "since it was asked last");
    assert_eq!(seen(), (2, 2));
    records.clear();
    assert_eq!((seen(), world.ledger.is_empty()), ((0, 2), true));
}

/// Each open connection has one; all that an idle one takes of memory is promised to be 2 KiB (`tests/bench/budgets.toml`).
#[test]
fn what_is_known_of_an_open_connection_is_small() {
    assert!(size_of::<Live>() <= 416, "{}", size_of::<Live>());
}
