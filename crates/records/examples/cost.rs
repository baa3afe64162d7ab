//! What keeping a record costs, and adding it up. Run by hand, optimized: `cargo run --release -p stillmesh-records --example cost`.
#![expect(clippy::print_stdout, reason = "what is measured is to be read")]

use std::hint::black_box;
use std::time::Instant;

use stillmesh_records::{DEFAULT_BUDGET, DEFAULT_FLOWS, Draft, Field, Hop, Query, Record, Recorder};

const RECORDS: u32 = 1_000_000;

fn draft(number: u32) -> Draft {
    let record = Record { at_us: u64::from(number), id: u128::from(number), hop: Hop::Request, ..Record::default() };
    let mut draft = Draft::new(record);
    draft.name(Field::Source, format_args!("Kubernetes//Pod/shop/page-{}", number % 100));
    draft.name(Field::SourceIdentity, "spiffe://cluster.local/ns/shop/sa/page");
    draft.name(Field::Service, format_args!("{}/{}", "shop", "stock.shop.svc.cluster.local"));
    draft.name(Field::Endpoint, format_args!("Kubernetes//Pod/shop/stock-{}", number % 50));
    draft.name(Field::Because, format_args!("taken by HTTPRoute shop/stock, rule {}", number % 3));
    draft.name(Field::Object, format_args!("HTTPRoute shop/stock, rule {}", number % 3));
    draft.name(Field::Authority, "stock.shop.svc.cluster.local:80");
    draft.name(Field::Method, "GET");
    draft.name(Field::Host, "stock");
    draft.name(Field::Path, format_args!("/items/{number}"));
    draft.name(Field::Flags, "-");
    draft
}

fn nanoseconds(what: &str, mut each: impl FnMut(u32)) {
    let begin = Instant::now();
    (0..RECORDS).for_each(&mut each);
    println!("{what}: {:.0} ns each", begin.elapsed().as_secs_f64() * 1e9 / f64::from(RECORDS));
}

fn main() {
    nanoseconds("a draft is written in", |number| drop(black_box(draft(number))));
    let recorder = Recorder::new(DEFAULT_BUDGET);
    nanoseconds("written and kept in", |number| recorder.put(&draft(number)));
    let (kept, _, bytes) = recorder.size();
    println!("{kept} records in {bytes} bytes: {} each with their names", bytes / kept.max(1));
    let adding = Recorder::with_flows(0, DEFAULT_FLOWS, 0);
    nanoseconds("written and added up in", |number| adding.put(&draft(number)));
    let query = Query {
        sources: vec!["pod/nobody/here".parse().unwrap_or(stillmesh_records::Term::Pod(String::new()))],
        ..Query::all()
    };
    let begin = Instant::now();
    let found = recorder.find(&query, 0).len();
    println!("a question that nothing answers looks at all of them in {:?} ({found} found)", begin.elapsed());
}
