//! rustls' buffered connections as the peer, in memory.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use stillmesh_tls::session::KeyUpdateRequest;
use stillmesh_tls::{
    Established, Handshake, HandshakeError, Role, SessionError, Suite, prepare_client, prepare_server,
};

use crate::end::{Came, End};
use crate::pki::{Pki, name};

/// rustls' end.
pub struct Peer(pub Connection);

impl Peer {
    pub fn client(config: ClientConfig) -> Self {
        let mut connection = ClientConnection::new(Arc::new(config), name()).unwrap();
        connection.set_buffer_limit(None);
        Self(connection.into())
    }

    pub fn server(config: ServerConfig) -> Self {
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        connection.set_buffer_limit(None);
        Self(connection.into())
    }

    /// All that it wants to send.
    pub fn outgoing(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// What comes of these bytes.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<Came, rustls::Error> {
        let mut came = Came::default();
        loop {
            let read = if bytes.is_empty() { 0 } else { self.0.read_tls(&mut bytes).unwrap() };
            let state = self.0.process_new_packets()?;
            let mut data = vec![0; state.plaintext_bytes_to_read()];
            self.0.reader().read_exact(&mut data).unwrap();
            came.data.extend(data);
            came.closed |= state.peer_has_closed();
            if read == 0 {
                return Ok(came);
            }
        }
    }

    pub fn send(&mut self, data: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(data).unwrap();
        self.outgoing()
    }
}

/// Both sides until ours is done, the bytes in pieces of this size.
pub fn shake(mut ours: Handshake, peer: &mut Peer, piece: usize) -> Result<Established, HandshakeError> {
    loop {
        let to_peer = ours.outgoing();
        let refused = peer.receive(&to_peer).is_err();
        if ours.is_done() {
            return ours.finish();
        }
        let from_peer = peer.outgoing();
        assert!(!from_peer.is_empty() || refused, "nobody has anything to say");
        for bytes in from_peer.chunks(piece) {
            ours.receive(bytes)?;
        }
    }
}

/// Our end and rustls', of each suite in each role.
fn pairs() -> Vec<(Suite, Role, End, Peer)> {
    let pki = Pki::new();
    let mut pairs = Vec::new();
    for suite in Suite::ALL {
        let mut config = pki.client(suite);
        prepare_client(&mut config);
        let mut peer = Peer::server(pki.server(suite));
        let end = shake(Handshake::client(Arc::new(config), name()).unwrap(), &mut peer, 1000).unwrap();
        pairs.push((suite, Role::Client, End::new(end), peer));

        let mut config = pki.server(suite);
        prepare_server(&mut config);
        let mut peer = Peer::client(pki.client(suite));
        let end = shake(Handshake::server(Arc::new(config)).unwrap(), &mut peer, 1000).unwrap();
        pairs.push((suite, Role::Server, End::new(end), peer));
    }
    pairs
}

/// Bytes that repeat nowhere near.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
}

fn check(end: &mut End, peer: &mut Peer, length: usize) {
    let data = pattern(length);
    let wire = end.send(&data);
    assert_eq!(peer.receive(&wire).unwrap(), Came { data: data.clone(), closed: false });
    let wire = peer.send(&data);
    let mut came = Vec::new();
    // Not at the boundaries of records.
    for bytes in wire.chunks(10_007) {
        came.extend(end.receive(bytes).unwrap().data);
    }
    assert!(came == data, "{length} bytes are others");
}

#[test]
fn bytes_go_both_ways_in_bulk_and_one_by_one() {
    for (_, _, mut end, mut peer) in pairs() {
        for length in [1, 2, 100, 16_383, 16_384, 16_385, 1 << 20] {
            check(&mut end, &mut peer, length);
        }
    }
}

#[test]
fn both_sides_update_their_keys_again_and_again_also_moved() {
    for moves in [false, true] {
        for (_, _, mut end, mut peer) in pairs() {
            end.moves = moves;
            for round in 0..40 {
                match round % 4 {
                    0 => drop(peer.receive(&end.update(KeyUpdateRequest::Requested)).unwrap()),
                    1 => drop(peer.receive(&end.update(KeyUpdateRequest::NotRequested)).unwrap()),
                    2 => {
                        // rustls asks for an answer.
                        peer.0.refresh_traffic_keys().unwrap();
                        let asked = peer.outgoing();
                        end.receive(&asked).unwrap();
                        assert!(end.session().due());
                    }
                    _ => {
                        // Both at once: each gets the other's while its own is on the way.
                        peer.0.refresh_traffic_keys().unwrap();
                        let (from_peer, to_peer) = (peer.outgoing(), end.update(KeyUpdateRequest::Requested));
                        peer.receive(&to_peer).unwrap();
                        end.receive(&from_peer).unwrap();
                    }
                }
                check(&mut end, &mut peer, 100 * round + 1);
            }
        }
    }
}

#[test]
fn close_notify_goes_both_ways_and_each_direction_by_itself() {
    for (_, _, mut end, mut peer) in pairs() {
        let wire = end.close();
        assert!(peer.receive(&wire).unwrap().closed);
        let data = pattern(50_000);
        let wire = peer.send(&data);
        assert!(end.receive(&wire).unwrap() == Came { data, closed: false });
        peer.0.send_close_notify();
        let wire = peer.outgoing();
        assert!(end.receive(&wire).unwrap().closed);
        assert_eq!(end.session().end_of_stream(), Ok(()));
    }
    for (_, _, mut end, mut peer) in pairs() {
        peer.0.send_close_notify();
        let wire = peer.outgoing();
        assert!(end.receive(&wire).unwrap().closed);
        let wire = end.send(b"still here");
        assert_eq!(peer.receive(&wire).unwrap().data, b"still here");
        let wire = end.close();
        assert!(peer.receive(&wire).unwrap().closed);
    }
}

#[test]
fn a_stream_that_ends_early_is_truncated() {
    for (_, _, mut end, mut peer) in pairs() {
        let wire = peer.send(&pattern(20_000));
        end.receive(&wire[..wire.len() - 1]).unwrap();
        assert_eq!(end.session().end_of_stream(), Err(SessionError::Truncated));
    }
}

#[test]
fn the_peer_is_told_of_an_error_and_tells_of_its_own() {
    for (_, _, mut end, mut peer) in pairs() {
        let mut wire = peer.send(b"abc");
        wire[6] ^= 1;
        end.receive(&wire).unwrap_err();
        let alert = end.due();
        let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert_eq!(peer.receive(&alert), Err(told));
    }
    for (_, _, mut end, mut peer) in pairs() {
        let mut wire = end.send(b"abc");
        wire[6] ^= 1;
        peer.receive(&wire).unwrap_err();
        let alert = peer.outgoing();
        let told = SessionError::Alert(rustls::AlertDescription::BadRecordMac);
        assert_eq!(end.receive(&alert), Err(told));
    }
}
