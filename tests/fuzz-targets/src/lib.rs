//! Every parser of a peer's bytes as a function of bytes, for two callers: this crate's tests replay the corpus and a
//! bounded, seeded set of mutations; `tests/fuzz` lets a coverage-guided fuzzer search on.
//!
//! A target asserts what holds for all bytes: nothing panics; what was read, written and read again is the same; state
//! machines stay bounded. It answers whether the bytes were understood, so that the corpus can be checked for meaning
//! what its names say (`ok-…`, `bad-…`).
#![expect(clippy::expect_used, reason = "a target that cannot run, or a promise that is broken, ends its test")]

mod cut;
mod dns;
mod headers;
mod http2;
mod identity;
mod manifests;
mod node;
mod tls;
mod xds;
mod zds;

/// A parser with its promises.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Feeds it. Panics where a promise is broken; else whether the bytes were understood.
    pub run: fn(&[u8]) -> bool,
    /// Longer inputs teach nothing, bytes.
    pub longest: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "zds-tunnel", run: zds::tunnel, longest: 4096 },
    Target { name: "zds-agent", run: zds::agent, longest: 1025 },
    Target { name: "succession", run: node::succession, longest: 1025 },
    Target { name: "probe-question", run: node::probe, longest: 1025 },
    Target { name: "revocations", run: identity::revocations, longest: 4096 },
    Target { name: "connect-headers", run: headers::connect, longest: 4096 },
    Target { name: "trace-headers", run: headers::trace, longest: 2048 },
    Target { name: "http2-server", run: http2::server, longest: 4096 },
    Target { name: "http2-client", run: http2::client, longest: 4096 },
    Target { name: "http2-state", run: http2::state, longest: 4096 },
    Target { name: "xds-address", run: xds::address, longest: 4096 },
    Target { name: "xds-authorization", run: xds::authorization, longest: 4096 },
    Target { name: "xds-client", run: xds::client, longest: 8192 },
    Target { name: "xds-server", run: xds::server, longest: 4096 },
    Target { name: "spiffe-id", run: identity::spiffe, longest: 1024 },
    Target { name: "certificate", run: identity::certificate, longest: 4096 },
    Target { name: "csr", run: identity::csr, longest: 4096 },
    Target { name: "manifests", run: manifests::documents, longest: 4096 },
    Target { name: "tls-records", run: tls::records, longest: 2048 },
    Target { name: "tls-messages", run: tls::messages, longest: 4096 },
    Target { name: "tls-exported", run: tls::exported, longest: 256 },
    Target { name: "dns-question", run: dns::question, longest: 1024 },
    Target { name: "dns-reply", run: dns::reply, longest: 2048 },
];

/// The target of that name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
