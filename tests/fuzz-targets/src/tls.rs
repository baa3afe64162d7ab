//! TLS records, what is in them, and sessions handed over. The keys are known, so that all of it gets past them.

use stillmesh_tls::record::{ContentType, HEADER, Limits, MAX_RECORD, Sealer, TRAILER};
use stillmesh_tls::session::MAX_DUE;
use stillmesh_tls::{Exported, Received, Role, Session, Suite, TrafficSecret};

use crate::cut::Pieces;

fn secret(suite: Suite, byte: u8) -> TrafficSecret {
    TrafficSecret::new(suite, vec![byte; suite.secret_length()].into()).expect("the suite's length")
}

/// The sessions of a connection.
fn pair() -> (Session, Session) {
    let session = |role| {
        let suite = Suite::Aes128GcmSha256;
        Session::new(role, secret(suite, 1), secret(suite, 2), 0).expect("keys can be made")
    };
    (session(Role::Client), session(Role::Server))
}

/// Whether a session goes on: what it says of bytes, and what it wants to send, are what its peer can do with.
fn open(session: &mut Session, peer: &mut Session, bytes: &mut [u8]) -> bool {
    let before = bytes.len();
    let opened = session.open(bytes);
    let mut due = [0; MAX_DUE];
    let length = session.seal_due(&mut due).expect("there is room for all that is due");
    assert!(!session.due());
    let mut due = &mut due[..length];
    while !due.is_empty() {
        match peer.open(due) {
            Ok(Received::Other { length }) => due = &mut due[length..],
            _ => due = &mut [],
        }
    }
    match opened {
        Ok(Received::Data { length, data }) => {
            assert!(!data.is_empty() && data.start >= HEADER && data.end < length && length <= before);
            true
        }
        Ok(Received::Other { length }) => {
            assert!(length <= before && length <= MAX_RECORD);
            true
        }
        Ok(Received::Closed | Received::Incomplete) => true,
        Err(_) => {
            session.open(&mut []).expect_err("the first error is the last");
            false
        }
    }
}

/// Bytes as they come from the network: whoever does not know the keys gets nothing through.
pub(crate) fn records(input: &[u8]) -> bool {
    let (mut client, mut server) = pair();
    let mut bytes = input.to_vec();
    let incomplete = client.open(&mut bytes) == Ok(Received::Incomplete);
    if incomplete {
        assert_eq!(bytes, input);
        assert!(bytes.len() < MAX_RECORD);
    } else {
        assert!(!open(&mut client, &mut server, &mut input.to_vec()), "a record was forged");
    }
    incomplete
}

/// Records of a peer that has the keys: pieces of any type and content, padded or empty, to a client or a server (the
/// first byte says which), which moves to another process wherever a piece says so.
pub(crate) fn messages(input: &[u8]) -> bool {
    let Some((&first, rest)) = input.split_first() else { return false };
    let (client, server) = pair();
    let role = if first & 1 == 0 { Role::Client } else { Role::Server };
    let (mut session, mut peer) = if role == Role::Client { (client, server) } else { (server, client) };
    let byte = if role == Role::Client { 2 } else { 1 };
    let suite = Suite::Aes128GcmSha256;
    let mut sealer = Sealer::new(secret(suite, byte), 0, Limits::of(suite)).expect("keys can be made");
    let mut understood = true;
    for (how, piece) in Pieces(rest) {
        let kind = match how & 3 {
            1 => ContentType::Handshake,
            2 => ContentType::Alert,
            _ => ContentType::ApplicationData,
        };
        let mut wire = [&[0; HEADER][..], piece, &[0; TRAILER]].concat();
        if sealer.seal(&mut wire, kind, piece.len()).is_err() {
            continue;
        }
        understood &= open(&mut session, &mut peer, &mut wire);
        // A KeyUpdate that ends its record; where it does not count as one, the next record does not open.
        if how & 0x40 != 0 {
            sealer.update().expect("keys can be made");
        }
        if how & 0x80 != 0 {
            let bytes = session.export().to_bytes();
            session = Session::import(Exported::from_bytes(&bytes).expect("what was written")).expect("a session");
        }
    }
    understood
}

/// What a predecessor hands over: bytes are no session, or exactly one.
pub(crate) fn exported(input: &[u8]) -> bool {
    let Ok(exported) = Exported::from_bytes(input) else { return false };
    assert_eq!(&exported.to_bytes()[..], input);
    let mut session = Session::import(exported).expect("keys can be made");
    let mut slot = [0; HEADER + 1 + TRAILER];
    let _ = session.seal(&mut slot, 1);
    let _ = session.open(&mut slot);
    true
}
