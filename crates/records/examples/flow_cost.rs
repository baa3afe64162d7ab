//! What keeping and counting costs for each connection or request, on one thread: `cargo run --release --example flow_cost`.

#![expect(clippy::print_stdout, reason = "the numbers are what was asked for")]

use std::net::SocketAddr;
use std::time::Instant;

use stillmesh_records::{DEFAULT_BUDGET, DEFAULT_FLOWS, Draft, Field, Hop, Record, Recorder};

const ROUNDS: u32 = 500_000;

fn draft(number: u32) -> Draft {
    let mut draft = Draft::new(Record {
        at_us: 1_700_000_000_000_000,
        hop: Hop::Request,
        source: SocketAddr::from(([10, 0, 0, 1], 4000)).into(),
        ..Record::default()
    });
    draft.name(Field::SourceIdentity, "spiffe://cluster.local/ns/shop/sa/page");
    draft.name(Field::Authority, "10.96.0.7:80");
    draft.name(Field::Service, "shop/stock.shop.svc.cluster.local");
    draft.name(Field::Method, "GET");
    draft.name(Field::Path, format_args!("/items/{}/price/{}", number % 1000, number % 30));
    draft
}

fn main() {
    let drafts: Vec<Draft> = (0..1000).map(draft).collect();
    for (name, records, flows) in [
        ("records alone", DEFAULT_BUDGET, 0),
        ("flows alone", 0, DEFAULT_FLOWS),
        ("both", DEFAULT_BUDGET, DEFAULT_FLOWS),
    ] {
        let recorder = Recorder::with_flows(records, flows, 0);
        let began = Instant::now();
        for draft in drafts.iter().cycle().take(ROUNDS as usize) {
            recorder.put(draft);
        }
        println!("{name}: {:?} each", began.elapsed() / ROUNDS);
    }
}
