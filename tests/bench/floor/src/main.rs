//! The floor: what a user-space mTLS hop costs when nothing is wasted. A yardstick for measurements, not a product.
//!
//!     floor client --listen 127.0.0.1:0 --to RECORDS     # plain bytes in, records out
//!     floor server --listen 127.0.0.1:0 --to PLAIN       # records in, plain bytes out
//!
//! What it does: one epoll thread carries every accepted connection over a TCP connection of its own, in records shaped
//! as TLS 1.3's (AES-128-GCM) that each hold one HTTP/2 DATA frame ([`record`]). Bytes are read to where they are
//! sealed and written from where they were opened; only the beginning of an incomplete record is ever moved. Buffers
//! belong to the thread: a connection holds one per direction at most, and none while nothing is under way. One that
//! the next hop does not take is not read on for ([`direction`]); a half-close is END_STREAM; what breaks off is reset
//! on both sides ([`connection`]).
//!
//! What it does not do, so that its figures are a bound that a real tunnel can come near and not reach: no handshake
//! (both keys are written down in [`record`], so nothing sent through it is secret, and nobody is authenticated), no
//! multiplexing, no flow control but TCP's, no policy, no records kept, no deadlines but the kernel's.
//!
//! It prints the address it listens on, one line, as soon as it does, and ends with SIGTERM or SIGINT; then it says on
//! stderr how many connections broke off, and why the last did.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod buffers;
mod connection;
mod direction;
mod incoming;
mod outgoing;
mod record;
mod relay;

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use mio::net::TcpListener;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Carries TCP connections in sealed records with nothing wasted and nothing checked: a yardstick, not a product.
#[derive(Debug, Parser)]
#[command(name = "floor")]
struct Options {
    /// Which end of the tunnel this is.
    role: Role,
    /// Where connections are accepted: an address and a port, 0 for any that is free.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where each of them is carried to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
}

/// An end of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Accepts plain connections, dials the tunnel.
    Client,
    /// Accepts the tunnel, dials plain connections.
    Server,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block().context("cannot block SIGTERM and SIGINT")?;
    let ends = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot wait for SIGTERM and SIGINT")?;
    // Two descriptors per connection.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read how many descriptors are allowed")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot use all descriptors that are allowed")?;

    let listener = TcpListener::bind(options.listen).with_context(|| {
        format!("cannot listen on {}: name an address of this machine and a free port", options.listen)
    })?;
    let bound = listener.local_addr().context("cannot tell where it listens")?;
    let relay = relay::Relay::new(listener, options.to, options.role, ends).context("cannot set up epoll and keys")?;
    let mut out = std::io::stdout();
    writeln!(out, "{bound}").and_then(|()| out.flush()).context("cannot print the address")?;

    let tally = relay.run().context("cannot wait for events")?;
    if let Some(last) = tally.last_break {
        let _ = writeln!(
            std::io::stderr(),
            "{} of {} connections broke off; the last: {last}",
            tally.broken,
            tally.accepted
        );
    }
    Ok(())
}
