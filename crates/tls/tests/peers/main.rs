//! Connections of ours with peers that are not: rustls' own record layer, and OpenSSL.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot run, or a broken promise, fails")]

mod end;
mod handshake;
mod openssl;
mod pki;
mod rustls_peer;
