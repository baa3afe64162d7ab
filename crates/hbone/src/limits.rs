//! The bounds of tunnels, in one place.

use std::time::Duration;

use crate::Memory;

/// The bounds of tunnels. Defaults are contract 3.3 unless said otherwise. Times are wall time.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Receive window of a stream at its start, bytes; see [`Limits::stream_window`].
    pub first_window: u32,
    /// What the receive window of a stream may grow to, bytes. It grows while an application reads as fast as the
    /// window lets its peer send; to 1 MiB for all streams of a connection together also where one reads its window within
    /// 10 ms and the round trip needs less. It is kept so small that all streams together fit into the connection's window:
    /// applications that do not read never stop their neighbours.
    pub stream_window: u32,
    /// Receive window of a connection, bytes.
    pub connection_window: u32,
    /// Largest DATA frame accepted, bytes.
    pub frame: u32,
    /// What all tunnels hold together.
    pub memory: Memory,
    /// Streams of one connection that a client opens; the peer's own limit applies too.
    pub client_streams: usize,
    /// Streams of one connection that a server takes.
    pub server_streams: u32,
    /// Header list that a client accepts, bytes.
    pub client_headers: u32,
    /// Header list that a server accepts, bytes.
    pub server_headers: u32,
    /// From dialling to the end of the TLS and HTTP/2 handshakes.
    pub handshake: Duration,
    /// For a whole opening: certificate, connection, CONNECT, response.
    pub connect: Duration,
    /// Time between two PINGs.
    pub ping_every: Duration,
    /// How long a PING's answer may take before the connection is given up.
    pub ping_patience: Duration,
    /// How long a client keeps a connection without streams. A server keeps it twice as long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_window: 256 << 10,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame: 1 << 20,
            memory: Memory::of_process(),
            client_streams: 100,
            server_streams: 200,
            client_headers: 16 << 10,
            server_headers: 64 << 10,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            ping_every: Duration::from_secs(10),
            ping_patience: Duration::from_secs(20),
            idle: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// The window that a new connection begins with.
    pub(crate) fn first_window(&self) -> u32 {
        self.first_window.min(self.stream_window)
    }
}
