//! Two sessions of the same secrets, and a peer that seals whatever it likes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fixtures::secret;
use crate::keys::Suite;
use crate::record::{HEADER, TRAILER};

const SUITE: Suite = Suite::Aes128GcmSha256;
/// A NewSessionTicket of 14 bytes, the shortest.
const TICKET: [u8; 18] = [4, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0];
const UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];

fn session(role: Role) -> Session {
    with_limits(role, Limits::of(SUITE))
}

fn with_limits(role: Role, limits: Limits) -> Session {
    Session::with_limits(role, secret(SUITE, 1), secret(SUITE, 2), 0, limits).unwrap()
}

/// The peer of a session, which seals anything.
struct Peer(Sealer);

impl Peer {
    fn of(role: Role) -> Self {
        let byte = if role == Role::Client { 2 } else { 1 };
        Self(Sealer::new(secret(SUITE, byte), 0, Limits::of(SUITE)).unwrap())
    }

    fn seal(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let mut buffer = [&[0; HEADER][..], content, &[0; TRAILER]].concat();
        self.0.seal(&mut buffer, kind, content.len()).unwrap();
        buffer
    }

    fn data(&mut self, content: &[u8]) -> Vec<u8> {
        self.seal(ContentType::ApplicationData, content)
    }

    fn handshake(&mut self, content: &[u8]) -> Vec<u8> {
        self.seal(ContentType::Handshake, content)
    }
}

/// Sends data from one session to another: what came.
fn pass(from: &mut Session, to: &mut Session, content: &[u8]) -> Vec<u8> {
    flush(from, to);
    let mut wire = [&[0; HEADER][..], content, &[0; TRAILER]].concat();
    let length = from.seal(&mut wire, content.len()).unwrap();
    assert_eq!(length, wire.len());
    let Received::Data { length, data } = to.open(&mut wire).unwrap() else { panic!("no data") };
    assert_eq!(length, wire.len());
    wire[data].to_vec()
}

/// Sends what is due.
fn flush(from: &mut Session, to: &mut Session) -> Vec<Result<Received, SessionError>> {
    let mut room = [0; MAX_DUE];
    let length = from.seal_due(&mut room).unwrap();
    assert!(!from.due());
    let mut rest = &mut room[..length];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let length = HEADER + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        let (first, others) = rest.split_at_mut(length);
        all.push(to.open(first));
        rest = others;
    }
    all
}

#[test]
fn a_requested_key_update_is_answered_once_before_more_data() {
    let (mut client, mut server) = (session(Role::Client), session(Role::Server));
    client.update_keys(KeyUpdateRequest::Requested);
    let mut slot = [0; HEADER + 1 + TRAILER];
    assert_eq!(client.seal(&mut slot, 1), Err(SealError::KeyUpdateDue));
    assert_eq!(flush(&mut client, &mut server), [Ok(Received::Other { length: 27 })]);
    client.update_keys(KeyUpdateRequest::Requested);
    flush(&mut client, &mut server);
    // Two questions, one answer.
    assert_eq!(server.seal(&mut slot, 1), Err(SealError::KeyUpdateDue));
    assert!(server.due());
    assert_eq!(flush(&mut server, &mut client).len(), 1);
    assert!(!server.due() && !client.due());
    assert_eq!(pass(&mut client, &mut server, b"to the server"), b"to the server");
    assert_eq!(pass(&mut server, &mut client, b"to the client"), b"to the client");
}

#[test]
fn an_answer_asks_for_nothing() {
    let (mut client, mut server) = (session(Role::Client), session(Role::Server));
    server.update_keys(KeyUpdateRequest::Requested);
    client.update_keys(KeyUpdateRequest::Requested);
    flush(&mut client, &mut server);
    server.update_keys(KeyUpdateRequest::Requested);
    flush(&mut server, &mut client);
    assert!(!client.due() && !server.due());
    // Both questions under way at once are two answers.
    server.update_keys(KeyUpdateRequest::Requested);
    client.update_keys(KeyUpdateRequest::Requested);
    let mut room = [0; MAX_DUE];
    let length = client.seal_due(&mut room).unwrap();
    flush(&mut server, &mut client);
    server.open(&mut room[..length]).unwrap();
    assert!(client.due() && server.due());
    assert_eq!(pass(&mut client, &mut server, b"x"), b"x");
    assert_eq!(pass(&mut server, &mut client, b"y"), b"y");
}

#[test]
fn keys_are_updated_by_themselves_when_they_are_used_up() {
    let limits = Limits { update: 3, ask: 100, refuse: 5 };
    let (mut client, mut server) = (with_limits(Role::Client, limits), session(Role::Server));
    let mut updates = 0;
    for number in 0..20u8 {
        updates += usize::from(client.due());
        assert_eq!(pass(&mut client, &mut server, &[number]), [number]);
    }
    assert_eq!(updates, 6);
    // Whoever does not flush what is due comes to an end before the key does.
    let mut lazy = with_limits(Role::Client, limits);
    for number in 0..6 {
        let sealed = lazy.seal(&mut [0; HEADER + 1 + TRAILER], 1);
        assert_eq!(sealed.is_ok(), number < 5, "{sealed:?}");
    }
    assert_eq!(lazy.seal(&mut [0; HEADER + 1 + TRAILER], 1), Err(SealError::KeyUpdateDue));
}

#[test]
fn a_peer_that_uses_its_key_up_is_asked_once_for_another() {
    let (mut client, mut server) =
        (session(Role::Client), with_limits(Role::Server, Limits { update: 100, ask: 3, refuse: 200 }));
    for number in 0..10u8 {
        assert_eq!(pass(&mut client, &mut server, &[number]), [number]);
        assert_eq!(server.due(), number >= 2);
    }
    assert_eq!(flush(&mut server, &mut client).len(), 1);
    assert_eq!(pass(&mut client, &mut server, b"x"), b"x");
    assert!(!server.due() && !server.state.asked);
}

#[test]
fn tickets_are_passed_over_in_any_parts() {
    let four = [&TICKET[..], &[4, 0, 0, 20], &[9; 20], &TICKET, &UPDATE].concat();
    for parts in [1, 2, 3, 7, 13, 30] {
        let (mut client, mut peer) = (session(Role::Client), Peer::of(Role::Client));
        for part in four.chunks(four.len().div_ceil(parts)) {
            assert!(matches!(client.open(&mut peer.handshake(part)), Ok(Received::Other { .. })), "{parts} parts");
        }
        peer.0.update().unwrap();
        assert!(matches!(client.open(&mut peer.data(b"x")), Ok(Received::Data { .. })));
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_alert() {
    use AlertDescription as A;
    use ContentType::{Alert, ApplicationData, Handshake};
    let long = [&[4, 0, 0, 100][..], &[0; 10]].concat();
    let both = [Role::Client, Role::Server];
    type Case<'a> = (&'a [Role], Vec<(ContentType, &'a [u8])>, SessionError, Option<A>);
    let cases: Vec<Case<'_>> = vec![
        // CertificateRequest, ClientHello, HelloRequest; a ticket from a client.
        (&both, vec![(Handshake, &[13])], MessageError::Type(13).into(), Some(A::UnexpectedMessage)),
        (&both, vec![(Handshake, &[1, 0])], MessageError::Type(1).into(), Some(A::UnexpectedMessage)),
        (&both, vec![(Handshake, &[0])], MessageError::Type(0).into(), Some(A::UnexpectedMessage)),
        (&[Role::Server], vec![(Handshake, &TICKET)], MessageError::Type(4).into(), Some(A::UnexpectedMessage)),
        // Lengths.
        (&both, vec![(Handshake, &[24, 0, 0, 0])], MessageError::Length(24, 0).into(), Some(A::DecodeError)),
        (&both, vec![(Handshake, &[24, 1, 0, 1])], MessageError::Length(24, 65537).into(), Some(A::DecodeError)),
        (&[Role::Client], vec![(Handshake, &[4, 0, 0, 13])], MessageError::Length(4, 13).into(), Some(A::DecodeError)),
        (
            &[Role::Client],
            vec![(Handshake, &[4, 2, 1, 10])],
            MessageError::Length(4, 131_338).into(),
            Some(A::DecodeError),
        ),
        // KeyUpdate: its request, and that it is the last of its record.
        (&both, vec![(Handshake, &[24, 0, 0, 1, 2])], MessageError::Request(2).into(), Some(A::IllegalParameter)),
        (&both, vec![(Handshake, &[24, 0, 0, 1, 0, 24])], MessageError::NotLast.into(), Some(A::UnexpectedMessage)),
        // Interrupted messages.
        (
            &both,
            vec![(Handshake, &UPDATE[..4]), (ApplicationData, b"x")],
            MessageError::Interrupted.into(),
            Some(A::UnexpectedMessage),
        ),
        (
            &both,
            vec![(Handshake, &UPDATE[..1]), (ApplicationData, b"")],
            MessageError::Interrupted.into(),
            Some(A::UnexpectedMessage),
        ),
        (
            &[Role::Client],
            vec![(Handshake, &long), (Alert, &[1, 0])],
            MessageError::Interrupted.into(),
            Some(A::UnexpectedMessage),
        ),
        // Alerts.
        (&both, vec![(Alert, &[1])], MessageError::Alert(1).into(), Some(A::DecodeError)),
        (&both, vec![(Alert, &[1, 0, 1, 0])], MessageError::Alert(4).into(), Some(A::DecodeError)),
        (&both, vec![(Alert, &[2, 116])], SessionError::Alert(A::CertificateRequired), None),
        (&both, vec![(Alert, &[1, 42])], SessionError::Alert(A::BadCertificate), None),
        (&both, vec![(Alert, &[2, 222])], SessionError::Alert(A::Unknown(222)), None),
        (&both, vec![(Handshake, &UPDATE[..2]), (Alert, &[2, 40])], SessionError::Alert(A::HandshakeFailure), None),
    ];
    for (roles, records, expected, alert) in cases {
        for &role in roles {
            let (mut own, mut peer) = (session(role), Peer::of(role));
            let mut last = Ok(Received::Incomplete);
            for (kind, content) in &records {
                assert!(last.is_ok(), "{expected:?}: too early: {last:?}");
                last = own.open(&mut peer.seal(*kind, content));
            }
            assert_eq!(last, Err(expected));
            assert_eq!(expected.alert(), alert);
            // The peer is told, once; nothing else goes on.
            let mut own = moved(own);
            assert_eq!(own.due(), alert.is_some());
            let mut slot = [0; HEADER + 1 + TRAILER];
            assert_eq!(own.seal(&mut slot, 1), Err(SealError::Ended));
            let mut other = session(if role == Role::Client { Role::Server } else { Role::Client });
            let told = flush(&mut own, &mut other);
            let expected: Vec<_> = alert.into_iter().map(|alert| Err(SessionError::Alert(alert))).collect();
            assert_eq!(told, expected);
            assert_eq!(own.open(&mut peer.data(b"x")), Err(SessionError::Failed));
            assert_eq!(own.end_of_stream(), Err(SessionError::Failed));
            assert_eq!(own.seal(&mut slot, 1), Err(SealError::Ended));
            own.close_notify();
            assert!(!own.due());
        }
    }
}

#[test]
fn a_changed_record_ends_the_session_with_bad_record_mac() {
    let (mut client, mut peer) = (session(Role::Client), Peer::of(Role::Client));
    let mut wire = peer.data(b"abc");
    wire[HEADER] ^= 1;
    assert_eq!(client.open(&mut wire), Err(RecordError::Sealed(0).into()));
    let told = flush(&mut client, &mut session(Role::Server));
    assert_eq!(told, [Err(SessionError::Alert(AlertDescription::BadRecordMac))]);
}

#[test]
fn records_without_data_come_32_times_in_a_row() {
    let useless: [(ContentType, &[u8]); 4] = [
        (ContentType::ApplicationData, b""),
        (ContentType::Handshake, &TICKET),
        (ContentType::Handshake, &UPDATE_REQUESTED),
        (ContentType::Alert, &[1, 90]),
    ];
    for (kind, content) in useless {
        let (mut client, mut peer) = (session(Role::Client), Peer::of(Role::Client));
        let mut open = |kind, content: &[u8]| {
            let opened = client.open(&mut peer.seal(kind, content));
            if content == UPDATE_REQUESTED {
                peer.0.update().unwrap();
            }
            opened
        };
        for _ in 0..3 {
            for _ in 0..MAX_WITHOUT_DATA {
                assert!(matches!(open(kind, content), Ok(Received::Other { .. })));
            }
            assert!(matches!(open(ContentType::ApplicationData, b"x"), Ok(Received::Data { .. })));
        }
        for _ in 0..MAX_WITHOUT_DATA {
            assert!(open(kind, content).is_ok());
        }
        assert_eq!(open(kind, content), Err(SessionError::WithoutData), "{kind:?}");
    }
}

#[test]
fn close_notify_ends_one_direction_only() {
    let (mut client, mut server) = (session(Role::Client), session(Role::Server));
    client.close_notify();
    let mut slot = [0; HEADER + 1 + TRAILER];
    assert_eq!(client.seal(&mut slot, 1), Err(SealError::Ended));
    assert_eq!(flush(&mut client, &mut server), [Ok(Received::Closed)]);
    client.close_notify();
    assert!(!client.due());
    // What is behind it does not count, whatever it is.
    assert_eq!(server.open(&mut [0xff; 100]), Ok(Received::Closed));
    assert_eq!(server.end_of_stream(), Ok(()));
    // The other direction goes on; a KeyUpdate is opened, and cannot be answered any more.
    assert_eq!(pass(&mut server, &mut client, b"later"), b"later");
    server.update_keys(KeyUpdateRequest::Requested);
    assert_eq!(flush(&mut server, &mut client).len(), 1);
    assert!(!client.due());
    assert_eq!(pass(&mut server, &mut client, b"last"), b"last");
    // An error's alert is not sent behind close_notify.
    assert_eq!(client.open(&mut [23, 3, 3, 255, 255]), Err(RecordError::TooLong(1).into()));
    assert!(!client.due());
}

#[test]
fn the_end_of_the_stream_alone_is_truncation() {
    let mut client = session(Role::Client);
    client.close_notify();
    assert_eq!(client.end_of_stream(), Err(SessionError::Truncated));
    // What was to be sent still can be.
    assert!(client.due());
    let error = io::Error::from(SessionError::Truncated);
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_peers_alert_is_found_in_io_errors_as_rustls_tells_it() {
    let error = io::Error::from(SessionError::Alert(AlertDescription::CertificateExpired));
    let inside = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert_eq!(inside, Some(&rustls::Error::AlertReceived(AlertDescription::CertificateExpired)));
}

#[test]
fn room_for_what_is_due_is_asked_for() {
    let mut client = session(Role::Client);
    assert_eq!(client.seal_due(&mut []), Ok(0));
    client.update_keys(KeyUpdateRequest::NotRequested);
    client.close_notify();
    assert_eq!(client.seal_due(&mut [0; MAX_DUE - 1]), Err(SealError::Room(MAX_DUE - 1)));
    assert_eq!(client.seal_due(&mut [0; MAX_DUE]), Ok(MAX_DUE));
}

/// Exports and imports as two processes would.
fn moved(session: Session) -> Session {
    let bytes = session.export().to_bytes();
    let exported = Exported::from_bytes(&bytes).unwrap();
    assert_eq!(exported.to_bytes(), bytes);
    Session::import(exported).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    Update(KeyUpdateRequest),
    Flush,
    Move,
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        3 => vec(any::<u8>(), 1..40).prop_map(Step::Data),
        1 => Just(Step::Update(KeyUpdateRequest::Requested)),
        1 => Just(Step::Update(KeyUpdateRequest::NotRequested)),
        2 => Just(Step::Flush),
        3 => Just(Step::Move),
    ];
    vec((any::<bool>(), step), 0..40)
}

proptest! {
    #[test]
    fn sessions_go_on_wherever_they_are_exported(steps in steps()) {
        let (mut client, mut server) = (session(Role::Client), session(Role::Server));
        for (turn, step) in steps {
            let (from, to) = if turn { (&mut client, &mut server) } else { (&mut server, &mut client) };
            match step {
                Step::Data(content) => prop_assert_eq!(pass(from, to, &content), content),
                Step::Update(request) => from.update_keys(request),
                Step::Flush => prop_assert!(flush(from, to).iter().all(Result::is_ok)),
                Step::Move => {
                    let session = std::mem::replace(from, session(Role::Client));
                    *from = moved(session);
                }
            }
        }
        prop_assert_eq!(pass(&mut client, &mut server, b"end"), b"end");
        prop_assert_eq!(pass(&mut server, &mut client, b"end"), b"end");
    }

    #[test]
    fn messages_go_on_wherever_they_are_cut_by_an_export(cut in 0..=41usize) {
        let messages = [&TICKET[..], &TICKET, &UPDATE].concat();
        let (mut client, mut peer) = (session(Role::Client), Peer::of(Role::Client));
        let (first, second) = messages.split_at(cut);
        if !first.is_empty() {
            client.open(&mut peer.handshake(first)).unwrap();
        }
        if cut == messages.len() {
            peer.0.update().unwrap();
        }
        let mut client = moved(client);
        if !second.is_empty() {
            client.open(&mut peer.handshake(second)).unwrap();
            peer.0.update().unwrap();
        }
        let opened = client.open(&mut peer.data(b"x"));
        prop_assert!(matches!(opened, Ok(Received::Data { length: 23, .. })), "{:?}", opened);
    }

    #[test]
    fn bytes_that_are_no_session_are_an_error(
        role in prop_oneof![Just(Role::Client), Just(Role::Server)],
        changes in vec((0..100usize, any::<u8>()), 0..4),
        cut in 0..120usize,
    ) {
        let mut bytes = session(role).export().to_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(exported) = Exported::from_bytes(&bytes) {
            // Strict: there is one way to write a session.
            prop_assert_eq!(&exported.to_bytes()[..], &bytes[..]);
            prop_assert!(Session::import(exported).is_ok());
        }
        bytes.resize(cut, 0);
        prop_assert_eq!(Exported::from_bytes(&bytes).is_ok() && cut != 100, false);
    }
}

#[test]
fn fields_that_cannot_be_are_named() {
    let good = session(Role::Server).export().to_bytes();
    assert_eq!(good.len(), 100);
    let error = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        Exported::from_bytes(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(error(0, 2), ImportError::Version(2));
    assert_eq!(error(2, 3), ImportError::Suite(0x1303));
    assert_eq!(error(2, 2), ImportError::Length { found: 100, expected: 132 });
    for (at, byte, field) in [
        (3, 2, "role"),
        (4, 2, "sending state"),
        (5, 3, "receiving state"),
        (6, 3, "KeyUpdate"),
        (7, 2, "alert"),
        (8, 40, "alert"),
        (9, 2, "question for a KeyUpdate"),
        (10, 33, "count of records without data"),
        (11, 1, "handshake message"),
        (11, 5, "handshake message"),
        (12, 24, "handshake message"),
        // A ticket on its way to a server.
        (19, 1, "handshake message"),
    ] {
        assert_eq!(error(at, byte), ImportError::Field(field));
    }
    assert_eq!(Exported::from_bytes(&[]).map(|_| ()), Err(ImportError::Length { found: 0, expected: 100 }));
}

#[test]
fn nothing_secret_is_shown() {
    let client = Session::new(Role::Client, secret(SUITE, 0xab), secret(SUITE, 0xab), 0).unwrap();
    for shown in [format!("{client:?}"), format!("{:?}", client.export())] {
        assert!(!shown.contains("171") && !shown.contains("ab, ab"), "{shown}");
    }
}
