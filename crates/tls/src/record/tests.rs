//! Properties of records, and RFC 8448's.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{hex, rfc8448, secret};

fn sealer(suite: Suite) -> Sealer {
    Sealer::new(secret(suite, 0x5e), 0, Limits::of(suite)).unwrap()
}

fn opener(suite: Suite) -> Opener {
    Opener::new(secret(suite, 0x5e), 0, Limits::of(suite)).unwrap()
}

fn suites() -> impl Strategy<Value = Suite> {
    prop_oneof![Just(Suite::Aes128GcmSha256), Just(Suite::Aes256GcmSha384)]
}

fn kinds() -> impl Strategy<Value = ContentType> {
    prop_oneof![Just(ContentType::Alert), Just(ContentType::Handshake), Just(ContentType::ApplicationData)]
}

/// Small ones mostly, and those around each limit.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![0..100usize, MAX_CONTENT - 20..=MAX_CONTENT, 0..=MAX_CONTENT]
}

/// A record sealed by hand: any inner bytes, any header.
fn raw(suite: Suite, number: u64, header: Option<[u8; 5]>, inner: &[u8]) -> Vec<u8> {
    let protection = Protection::new(secret(suite, 0x5e), number).unwrap();
    let [high, low] = u16::try_from(inner.len() + TAG).unwrap().to_be_bytes();
    let header = header.unwrap_or([23, 3, 3, high, low]);
    let mut inner = inner.to_vec();
    let (nonce, _) = protection.nonce().unwrap();
    let tag = protection.aead.seal_in_place_separate_tag(nonce, Aad::from(header), &mut inner).unwrap();
    [&header[..], &inner, tag.as_ref()].concat()
}

fn slot(content: &[u8]) -> Vec<u8> {
    [&[0; HEADER][..], content, &[0; TRAILER]].concat()
}

#[test]
fn records_of_rfc_8448_open_and_are_sealed_the_same() {
    let data: Vec<u8> = (0..50).collect();
    let limits = Limits::of(Suite::Aes128GcmSha256);
    for (own, secret, number, record) in [
        (&data[..], rfc8448::client(), 0, rfc8448::CLIENT_DATA),
        (&data[..], rfc8448::server(), 1, rfc8448::SERVER_DATA),
        (&[1, 0][..], rfc8448::client(), 1, rfc8448::ENDS[0]),
        (&[1, 0][..], rfc8448::server(), 2, rfc8448::ENDS[1]),
    ] {
        let kind = if own.len() == 2 { ContentType::Alert } else { ContentType::ApplicationData };
        let mut buffer = slot(own);
        let length = Sealer::new(secret, number, limits).unwrap().seal(&mut buffer, kind, own.len()).unwrap();
        assert_eq!((length, &buffer), (buffer.len(), &hex(record)));
    }
    let mut ticket = hex(rfc8448::TICKET);
    let opened = Opener::new(rfc8448::server(), 0, limits).unwrap().open(&mut ticket).unwrap().unwrap();
    assert_eq!((opened.length, opened.kind), (227, ContentType::Handshake));
    // NewSessionTicket of 201 bytes, lifetime 30 s.
    assert_eq!(ticket[opened.content][..8], hex("04 00 00 c9 00 00 00 1e"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_sealed_opens_however_it_is_split(
        suite in suites(),
        contents in vec((lengths(), kinds(), any::<u8>()), 1..6),
        cuts in vec(1..40_000usize, 0..20),
    ) {
        let (mut sealer, mut opener) = (sealer(suite), opener(suite));
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (length, kind, byte) in contents {
            let length = if kind == ContentType::ApplicationData { length } else { length.max(1) };
            let mut buffer = slot(&vec![byte; length]);
            prop_assert_eq!(sealer.seal(&mut buffer, kind, length), Ok(buffer.len()));
            wire.extend(buffer);
            expected.push((kind, vec![byte; length]));
        }
        let mut found = Vec::new();
        let mut pending: Vec<u8> = Vec::new();
        let mut cuts = cuts.into_iter();
        while !wire.is_empty() {
            let count = cuts.next().unwrap_or(wire.len()).min(wire.len());
            pending.extend(wire.drain(..count));
            while let Some(record) = opener.open(&mut pending).unwrap() {
                found.push((record.kind, pending[record.content.clone()].to_vec()));
                pending.drain(..record.length);
            }
        }
        prop_assert!(pending.is_empty());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn padding_is_taken_off_whatever_its_length(
        suite in suites(),
        content in vec(any::<u8>(), 1..200),
        padding in prop_oneof![0..300usize, 16_000..16_184usize],
        kind in kinds(),
    ) {
        let inner = [&content[..], &[kind as u8], &vec![0; padding]].concat();
        let mut wire = raw(suite, 0, None, &inner);
        let all = wire.len();
        let record = opener(suite).open(&mut wire).unwrap().unwrap();
        prop_assert_eq!((record.length, record.kind), (all, kind));
        prop_assert_eq!(&wire[record.content], &content[..]);
    }

    #[test]
    fn one_flipped_bit_anywhere_does_not_open(
        suite in suites(),
        length in prop_oneof![0..40usize, Just(MAX_CONTENT)],
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut wire = slot(&vec![0x61; length]);
        sealer(suite).seal(&mut wire, ContentType::ApplicationData, length).unwrap();
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        // What may follow: a longer length takes it in.
        wire.extend([0; 1 << 16]);
        let error = opener(suite).open(&mut wire).unwrap_err();
        let expected = match at {
            0 => RecordError::Type(0, wire[0]),
            1 | 2 => RecordError::Version(0),
            3 | 4 if error == RecordError::TooLong(0) => {
                prop_assert!(usize::from(u16::from_be_bytes([wire[3], wire[4]])) > MAX_CONTENT + 17);
                error
            }
            _ => RecordError::Sealed(0),
        };
        prop_assert_eq!(error, expected);
    }

    #[test]
    fn records_missing_repeated_or_out_of_order_do_not_open(suite in suites(), order in vec(0..6usize, 1..8)) {
        let mut sealer = sealer(suite);
        let records: Vec<Vec<u8>> = (0..6u8).map(|number| {
            let mut wire = slot(&[number]);
            sealer.seal(&mut wire, ContentType::ApplicationData, 1).unwrap();
            wire
        }).collect();
        let mut opener = opener(suite);
        for (position, number) in order.into_iter().enumerate() {
            let outcome = opener.open(&mut records[number].clone());
            if number == position {
                prop_assert!(outcome.unwrap().is_some());
            } else {
                prop_assert_eq!(outcome, Err(RecordError::Sealed(position as u64)));
                break;
            }
        }
    }

    #[test]
    fn nothing_panics_and_what_is_incomplete_is_left_alone(
        suite in suites(),
        bytes in vec(prop_oneof![Just(23u8), Just(3u8), Just(0u8), any::<u8>()], 0..64),
    ) {
        let mut wire = bytes.clone();
        if let Ok(opened) = opener(suite).open(&mut wire) {
            prop_assert_eq!((opened, wire), (None, bytes));
        }
    }
}

#[test]
fn what_is_no_record_of_a_session_is_refused_by_its_name() {
    let suite = Suite::Aes256GcmSha384;
    let open = |mut wire: Vec<u8>| opener(suite).open(&mut wire);
    let inner = |inner: &[u8]| open(raw(suite, 0, None, inner));
    let error = |error| Err::<Option<Record>, _>(error);

    // change_cipher_spec after the handshake; an alert and a handshake message that are not sealed.
    assert_eq!(open(vec![20, 3, 3, 0, 1, 1]), error(RecordError::Type(0, 20)));
    assert_eq!(open(vec![21, 3, 3, 0, 2, 2, 40]), error(RecordError::Type(0, 21)));
    assert_eq!(open(vec![22, 3, 3, 0, 4, 24, 0, 0, 1]), error(RecordError::Type(0, 22)));
    assert_eq!(open(b"GET / HTTP/1.1\r\n".to_vec()), error(RecordError::Type(0, b'G')));
    assert_eq!(open(vec![23, 3, 1, 0, 20]), error(RecordError::Version(0)));
    // Refused by the header alone.
    assert_eq!(open(vec![23, 3, 3, 0x40, 18]), error(RecordError::TooLong(0)));
    assert_eq!(open(vec![23, 3, 3, 0x40, 17]), Ok(None));
    // No room for a tag.
    for length in 0..TAG {
        let wire = [&[23, 3, 3, 0, length as u8][..], &[0; TAG][..length]].concat();
        assert_eq!(open(wire), error(RecordError::Sealed(0)), "{length}");
    }
    // Sealed, and wrong inside.
    assert_eq!(inner(&[]), error(RecordError::NoType(0)));
    assert_eq!(inner(&[0; 100]), error(RecordError::NoType(0)));
    for kind in [1, 20, 24, 25, 255] {
        assert_eq!(inner(&[1, 2, kind]), error(RecordError::InnerType(0, kind)));
    }
    assert_eq!(inner(&[21]), error(RecordError::Empty(0)));
    assert_eq!(inner(&[22, 0, 0]), error(RecordError::Empty(0)));
    let empty = Record { length: 5 + 3 + 16, kind: ContentType::ApplicationData, content: 5..5 };
    assert_eq!(inner(&[23, 0, 0]), Ok(Some(empty)));
    // The longest of all: padding up to 2^14 + 1 bytes.
    let longest = [vec![9; 100], vec![23], vec![0; MAX_CONTENT - 100]].concat();
    assert_eq!(inner(&longest).unwrap().unwrap().content, 5..105);
    assert_eq!(inner(&[longest, vec![0]].concat()), error(RecordError::TooLong(0)));
}

#[test]
fn each_error_has_its_alert() {
    for (error, alert) in [
        (RecordError::Type(0, 20), AlertDescription::UnexpectedMessage),
        (RecordError::Version(0), AlertDescription::DecodeError),
        (RecordError::TooLong(0), AlertDescription::RecordOverflow),
        (RecordError::Sealed(0), AlertDescription::BadRecordMac),
        (RecordError::NoType(0), AlertDescription::UnexpectedMessage),
        (RecordError::InnerType(0, 1), AlertDescription::UnexpectedMessage),
        (RecordError::Empty(0), AlertDescription::UnexpectedMessage),
        (RecordError::Exhausted, AlertDescription::InternalError),
    ] {
        assert_eq!(error.alert(), alert);
    }
}

#[test]
fn what_does_not_fit_is_not_sealed() {
    let mut sealer = sealer(Suite::Aes128GcmSha256);
    let data = ContentType::ApplicationData;
    for length in [0, 1, 100] {
        let mut short = vec![0; HEADER + length + TRAILER - 1];
        let room = short.len();
        assert_eq!(sealer.seal(&mut short, data, length), Err(SealError::Room(room)));
    }
    let mut buffer = vec![0; MAX_RECORD + 1];
    assert_eq!(sealer.seal(&mut buffer, data, MAX_CONTENT + 1), Err(SealError::TooLong(MAX_CONTENT + 1)));
    assert_eq!(sealer.seal(&mut buffer, ContentType::Alert, 0), Err(SealError::Empty));
    assert_eq!(sealer.protection.number, 0);
    assert_eq!(sealer.seal(&mut buffer, data, MAX_CONTENT), Ok(MAX_RECORD));
}

#[test]
fn a_key_protects_so_many_records_and_no_more() {
    let suite = Suite::Aes128GcmSha256;
    let limits = Limits { update: 2, ask: 3, refuse: 4 };
    let (mut sealer, mut opener) =
        (Sealer::new(secret(suite, 1), 0, limits).unwrap(), Opener::new(secret(suite, 1), 0, limits).unwrap());
    for number in 0..4 {
        assert_eq!((sealer.update_due(), opener.update_overdue()), (number >= 2, number >= 3));
        let mut wire = slot(b"x");
        sealer.seal(&mut wire, ContentType::ApplicationData, 1).unwrap();
        opener.open(&mut wire).unwrap().unwrap();
    }
    let mut wire = slot(b"xx");
    assert_eq!(sealer.seal(&mut wire, ContentType::ApplicationData, 2), Err(SealError::KeyUpdateDue));
    // A KeyUpdate and an alert can always be sealed.
    assert_eq!(sealer.seal(&mut wire, ContentType::Handshake, 2), Ok(24));
    assert!(opener.open(&mut wire).unwrap().is_some());
    sealer.update().unwrap();
    opener.update().unwrap();
    assert_eq!((sealer.update_due(), opener.update_overdue()), (false, false));
    let mut wire = slot(b"xx");
    sealer.seal(&mut wire, ContentType::ApplicationData, 2).unwrap();
    assert_eq!(opener.open(&mut wire).unwrap().unwrap().content, 5..7);
    assert_eq!(&wire[5..7], b"xx");
}

#[test]
fn numbers_do_not_wrap() {
    let suite = Suite::Aes128GcmSha256;
    let limits = Limits { update: u64::MAX, ask: u64::MAX, refuse: u64::MAX };
    let mut sealer = Sealer::new(secret(suite, 0x5e), u64::MAX - 1, limits).unwrap();
    let mut opener = Opener::new(secret(suite, 0x5e), u64::MAX - 1, limits).unwrap();
    let mut wire = slot(b"x");
    sealer.seal(&mut wire, ContentType::Alert, 1).unwrap();
    let last = wire.clone();
    assert!(opener.open(&mut wire).unwrap().is_some());
    assert_eq!(sealer.seal(&mut wire, ContentType::Alert, 1), Err(SealError::Internal));
    assert_eq!(opener.open(&mut last.clone()), Err(RecordError::Exhausted));
}
