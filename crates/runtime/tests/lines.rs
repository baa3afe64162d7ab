//! A process whose access log is deferred: what of it comes out at the other end of a pipe. Without a test harness, since the log is the
//! process's own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use stillmesh_runtime::env::Reader;
use stillmesh_runtime::telemetry::{self, ROOM};

fn main() {
    let child = std::env::args().nth(1).filter(|argument| argument.starts_with("child"));
    match child.as_deref() {
        Some("child-few") => logs(1000),
        Some("child-many") => logs(MANY),
        _ => {
            all_lines_come_in_their_order();
            nobody_waits_for_a_slow_reader();
        }
    }
}

/// More than there is room for.
const MANY: usize = ROOM / 50;

/// Logs so many lines and ends in order; each tenth is none of the access log's.
fn logs(count: usize) {
    telemetry::init_from("test", Reader::from_values([("RUST_LOG", "info")])).unwrap();
    let last_lines = telemetry::defer("access").unwrap();
    for number in 0..count {
        if number % 10 == 7 && count != MANY {
            tracing::warn!(target: "other", number, "between");
        } else {
            tracing::info!(target: "access", number, text = "something that takes its room", "request complete");
        }
    }
    // Whoever reads may begin.
    std::io::stdout().write_all(b"logged\n").unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(last_lines);
}

fn start(what: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The numbers of lines, and how many more are said to have been dropped.
fn numbers(mut child: Child, ends: bool) -> (Vec<usize>, usize) {
    if ends {
        drop(child.stdin.take());
    }
    let (mut numbers, mut dropped) = (Vec::new(), 0);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let field = |name: &str| {
            let (_, value) = line.split_once(name)?;
            value.split(' ').next()?.parse::<usize>().ok()
        };
        numbers.extend(field("number="));
        dropped += field("count=").unwrap_or(0);
        if numbers.len() + dropped >= MANY {
            drop(child.stdin.take());
        }
    }
    assert!(child.wait().unwrap().success());
    (numbers, dropped)
}

fn all_lines_come_in_their_order() {
    let (numbers, dropped) = numbers(start("child-few"), true);
    assert_eq!((numbers, dropped), ((0..1000).collect(), 0));
}

fn nobody_waits_for_a_slow_reader() {
    let mut child = start("child-many");
    // It gets here although nobody reads its log.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "logged\n");
    let (numbers, dropped) = numbers(child, false);
    assert!(dropped > 0 && numbers.is_sorted(), "{dropped} of {MANY}");
    assert_eq!(numbers.len() + dropped, MANY);
}
