//! The programs that the end-to-end tests run in pods: a server of several small protocols and its client.
//!
//! They know nothing of the mesh and use blocking sockets only. The client prints one JSON object and exits with 0 if
//! everything it checked was so.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a small program of the tests' own"
)]

mod client;
mod data;
mod relay;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", ports @ ..] => server::serve(ports),
        ["client", operation, address, rest @ ..] => client::run(operation, address, rest),
        ["relay", listen, to] => relay::relay(listen, to),
        _ => Err("usage: peer serve PORT..., peer relay LISTEN TO, peer client OPERATION ADDRESS [ARGUMENT...]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What anything here can fail with.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
