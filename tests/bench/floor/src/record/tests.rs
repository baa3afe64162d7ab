use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;

use super::*;

fn both() -> (Keys, Keys) {
    (Keys::of(Role::Client).unwrap(), Keys::of(Role::Server).unwrap())
}

/// Seals each of these payloads by itself, and the end where `ended`.
fn seal(keys: &Keys, payloads: &[&[u8]], ended: bool) -> Vec<u8> {
    let mut sealer = Sealer::default();
    let mut wire = Vec::new();
    for payload in payloads.iter().copied().chain(ended.then_some(&[] as &[u8])) {
        let mut buffer = vec![0; (payload.len() / PAYLOAD + 1) * SLOT];
        for (place, bytes) in places(&mut buffer).zip(payload.chunks(PAYLOAD)) {
            place[..bytes.len()].copy_from_slice(bytes);
        }
        let sealed = sealer.seal(&keys.seal, &mut buffer, payload.len()).unwrap();
        wire.extend_from_slice(&buffer[..sealed]);
    }
    wire
}

/// Opens all records in these bytes.
fn open(opener: &mut Opener, keys: &Keys, bytes: &mut [u8]) -> Result<(usize, Vec<u8>), RecordError> {
    let mut opened = 0;
    while let Some(record) = opener.open(&keys.open, &mut bytes[opened..])? {
        opened += record;
    }
    let found: Vec<(usize, &[u8])> = payloads(&bytes[..opened]).collect();
    assert_eq!(found.iter().map(|(record, _)| record).sum::<usize>(), opened);
    Ok((opened, found.iter().flat_map(|(_, payload)| payload.iter().copied()).collect()))
}

#[test]
fn on_the_wire_it_is_a_tls_record_with_a_data_frame() {
    let (client, _) = both();
    let wire = seal(&client, &[b"first", b"second"], false);
    let (first, second) = wire.split_at(HEADER + FRAME + 5 + 1 + TAG);
    assert_eq!(first[..HEADER], [23, 3, 3, 0, 9 + 5 + 1 + 16]);
    // RFC 8446, section 5.3: the record's number, to the right, over the nonce.
    let mut nonce = [0x5e; 12];
    nonce[11] ^= 1;
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[0x5e; 16]).unwrap());
    let mut sealed = second[HEADER..].to_vec();
    let header = &second[..HEADER];
    let inner = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed).unwrap();
    assert_eq!(inner, b"\0\0\x06\0\0\0\0\0\x01second\x17");
}

#[test]
fn the_longest_record_is_the_longest_that_tls_allows() {
    let (client, server) = both();
    let payload = vec![7; PAYLOAD];
    let mut wire = seal(&client, &[&payload], false);
    assert_eq!(wire.len(), SLOT);
    assert_eq!(FRAME + PAYLOAD, 16384);
    assert_eq!(open(&mut Opener::default(), &server, &mut wire), Ok((SLOT, payload)));
}

#[test]
fn a_header_that_no_record_of_ours_has_is_refused_at_once() {
    let (_, server) = both();
    let open = |mut header: [u8; 5]| Opener::default().open(&server.open, &mut header);
    for refused in [[22, 3, 3, 1, 0], [23, 3, 1, 1, 0], [23, 3, 3, 0, 25], [23, 3, 3, 0x40, 0x12], [23, 3, 3, 255, 255]]
    {
        assert_eq!(open(refused), Err(RecordError::Header(0)), "{refused:?}");
    }
    for possible in [[23, 3, 3, 0, 26], [23, 3, 3, 0x40, 0x11]] {
        assert_eq!(open(possible), Ok(None), "{possible:?}");
    }
}

#[test]
fn nothing_follows_the_end() {
    let (client, server) = both();
    let mut wire = seal(&client, &[b"all"], true);
    let mut opener = Opener::default();
    assert_eq!(open(&mut opener, &server, &mut wire).unwrap().1, b"all");
    assert!(opener.ended());
    assert_eq!(opener.open(&server.open, &mut [23]), Err(RecordError::AfterEnd(2)));
}

#[test]
fn an_end_opens_only_what_the_other_end_sealed() {
    let (client, server) = both();
    let wire = seal(&client, &[b"there"], false);
    assert_eq!(open(&mut Opener::default(), &client, &mut wire.clone()), Err(RecordError::Sealed(0)));
    let mut twice = [wire.clone(), wire].concat();
    assert_eq!(open(&mut Opener::default(), &server, &mut twice), Err(RecordError::Sealed(1)));
}

#[test]
fn what_opens_and_is_no_data_frame_is_refused() {
    let (client, server) = both();
    // Each an inner plaintext with one thing wrong: length, type, flags, stream, inner type, no frame at all.
    let wrong: [&[u8]; 6] = [
        b"\0\0\x02\0\0\0\0\0\x01a\x17",
        b"\0\0\x01\x01\0\0\0\0\x01a\x17",
        b"\0\0\x01\0\x08\0\0\0\x01a\x17",
        b"\0\0\x01\0\0\0\0\0\x03a\x17",
        b"\0\0\x01\0\0\0\0\0\x01a\x16",
        b"ten bytes.",
    ];
    for inner in wrong {
        let length = u8::try_from(inner.len() + TAG).unwrap();
        let header = [23, 3, 3, 0, length];
        let mut sealed = inner.to_vec();
        client.seal.key.seal_in_place_append_tag(client.seal.nonce(0), Aad::from(header), &mut sealed).unwrap();
        let mut wire = [&header[..], &sealed].concat();
        assert_eq!(Opener::default().open(&server.open, &mut wire), Err(RecordError::Frame(0)), "{inner:?}");
    }
}

#[test]
fn what_does_not_fit_is_not_sealed() {
    let (client, _) = both();
    let mut buffer = vec![0; SLOT];
    assert_eq!(Sealer::default().seal(&client.seal, &mut buffer, PAYLOAD + 1), Err(RecordError::Seal(1)));
    assert_eq!(Sealer::default().seal(&client.seal, &mut buffer[1..], 1), Err(RecordError::Seal(0)));
    let mut last = Sealer { next: u64::MAX };
    assert_eq!(last.seal(&client.seal, &mut buffer, 1), Err(RecordError::Seal(u64::MAX)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_opened_is_what_was_sealed_however_it_is_cut(
        chunks in prop::collection::vec((0..3 * PAYLOAD, any::<u8>()), 1..5),
        pieces in prop::collection::vec(1..2 * SLOT, 1..9),
    ) {
        let (client, server) = both();
        let sent: Vec<Vec<u8>> = chunks
            .into_iter()
            .map(|(length, first)| (0..=length).map(|at| first.wrapping_add((at % 251) as u8)).collect())
            .collect();
        let wire = seal(&client, &sent.iter().map(Vec::as_slice).collect::<Vec<_>>(), true);
        let (mut opener, mut held, mut come) = (Opener::default(), Vec::new(), Vec::new());
        let mut rest = wire.as_slice();
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            held.extend_from_slice(now);
            let (opened, bytes) = open(&mut opener, &server, &mut held)?;
            come.extend(bytes);
            held.drain(..opened);
            prop_assert!(held.len() < SLOT);
            rest = later;
            if rest.is_empty() {
                break;
            }
            prop_assert!(!opener.ended());
        }
        prop_assert!(opener.ended() && held.is_empty());
        prop_assert_eq!(come, sent.concat());
    }

    #[test]
    fn a_changed_bit_never_opens(payload in prop::collection::vec(any::<u8>(), 1..200), place: prop::sample::Index, bit in 0..8) {
        let (client, server) = both();
        let mut wire = seal(&client, &[&payload], false);
        let place = place.index(wire.len());
        wire[place] ^= 1_u8 << bit;
        // A length that has become greater only waits for more.
        let opened = Opener::default().open(&server.open, &mut wire);
        prop_assert!(matches!(opened, Err(RecordError::Header(0) | RecordError::Sealed(0)) | Ok(None)), "{:?}", opened);
        prop_assert!(opened != Ok(None) || place == 3 || place == 4);
    }

    #[test]
    fn no_bytes_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..100), header: bool) {
        let (_, server) = both();
        if let (true, Some(first)) = (header, bytes.first_chunk_mut()) {
            *first = [23, 3, 3, 0];
        }
        let opened = Opener::default().open(&server.open, &mut bytes);
        prop_assert!(!matches!(opened, Ok(Some(_))), "{:?}", opened);
        prop_assert!(payloads(&bytes).map(|(record, _)| record).sum::<usize>() <= bytes.len());
    }
}
