//! One record: sealed and opened in the caller's buffer, without I/O and without a copy. RFC 8446 section 5.
//!
//! ```text
//! 23 3 3 length(2)  |  content  type(1)  zeros  |  tag(16)
//! outer header, 5   |  sealed: 1 to 2^14+1 bytes |
//! authenticated     |
//! ```
//!
//! | what | rule | alert where it is broken | RFC 8446 |
//! | --- | --- | --- | --- |
//! | outer type | 23. A change_cipher_spec is of the handshake, which is over | unexpected_message | 5, 5.2 |
//! | outer version | 3 3 | decode_error | 5.2 |
//! | outer length | at most 2^14 + 256 | record_overflow | 5.2 |
//! | sealed length | at most 2^14 + 1, padding included; so an outer length above 2^14 + 17 is refused at once | record_overflow | 5.4 |
//! | tag | fits key, number and header; a record without room for one has none | bad_record_mac | 5.2 |
//! | padding | zeros behind the type; a record of nothing but zeros has no type | unexpected_message | 5.4 |
//! | type | alert 21, handshake 22, application data 23 | unexpected_message | 5 |
//! | content | may be empty in application data only | unexpected_message | 5.4 |
//! | number | from 0 in each generation of keys, up to 2^64 - 2; never wraps | internal_error | 5.3 |
//! | records under one key | sealing: a KeyUpdate is due after 2^23, application data ends at 2^24 ([`Limits`]); opening: the peer is asked for one after 3 * 2^22 | – | 5.5 |
//!
//! What is sealed is never padded. A record's header alone says how much of it is missing, so nobody has to buffer more
//! than [`MAX_RECORD`]. What did not open is left in an undefined state: a connection ends with the first error.

use std::ops::Range;

use aws_lc_rs::aead::Aad;
use aws_lc_rs::error::Unspecified;
use rustls::AlertDescription;

use crate::keys::{Protection, Suite, TrafficSecret};

/// Bytes of a record before its content.
pub const HEADER: usize = 5;
/// Bytes of a record behind its content, when there is no padding: type and tag.
pub const TRAILER: usize = 1 + TAG;
/// Most bytes of content in a record.
pub const MAX_CONTENT: usize = 1 << 14;
/// A record of full length.
pub const MAX_RECORD: usize = HEADER + MAX_CONTENT + TRAILER;

const TAG: usize = 16;
const OUTER: [u8; 3] = [ContentType::ApplicationData as u8, 3, 3];

/// What a record holds (RFC 8446 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// An alert, exactly one.
    Alert = 21,
    /// Handshake messages, or parts of them.
    Handshake = 22,
    /// Bytes of the application.
    ApplicationData = 23,
}

impl ContentType {
    fn of(byte: u8) -> Option<Self> {
        [Self::ApplicationData, Self::Handshake, Self::Alert].into_iter().find(|known| *known as u8 == byte)
    }
}

/// How many records one key protects. RFC 8446 section 5.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records sealed after which a KeyUpdate is due.
    pub update: u64,
    /// Records opened after which the peer, which should have sent one by itself, is asked for a KeyUpdate.
    pub ask: u64,
    /// Records sealed after which application data is refused.
    pub refuse: u64,
}

impl Limits {
    /// Half, three quarters and the whole of the suite's confidentiality limit.
    pub const fn of(suite: Suite) -> Self {
        let whole = suite.confidentiality_limit();
        Self { update: whole / 2, ask: whole / 4 * 3, refuse: whole }
    }
}

/// Why bytes are not the next record. Records are named by their number in this generation of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is of another type, and not sealed.
    #[error("record {0} begins as an unprotected one of type {1}")]
    Type(u64, u8),
    /// It has another version.
    #[error("record {0} does not have the version that all have")]
    Version(u64),
    /// More than a record may hold.
    #[error("record {0} is longer than TLS allows")]
    TooLong(u64),
    /// Changed on the way, out of order, or sealed by somebody else.
    #[error("record {0} does not open")]
    Sealed(u64),
    /// It opens, and holds nothing but zeros.
    #[error("record {0} has no content type")]
    NoType(u64),
    /// It opens, and holds something that is no part of TLS 1.3.
    #[error("record {0} holds content of the unknown type {1}")]
    InnerType(u64, u8),
    /// An alert or handshake record without content.
    #[error("record {0} is an alert or a handshake message without content")]
    Empty(u64),
    /// The last number was used.
    #[error("the numbers of records are used up")]
    Exhausted,
}

impl RecordError {
    /// What the peer is to be told.
    pub fn alert(self) -> AlertDescription {
        match self {
            Self::Type(..) | Self::NoType(_) | Self::InnerType(..) | Self::Empty(_) => {
                AlertDescription::UnexpectedMessage
            }
            Self::Version(_) => AlertDescription::DecodeError,
            Self::TooLong(_) => AlertDescription::RecordOverflow,
            Self::Sealed(_) => AlertDescription::BadRecordMac,
            Self::Exhausted => AlertDescription::InternalError,
        }
    }
}

/// Why content cannot become a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// More than a record holds.
    #[error("{0} bytes of content are more than the 16384 that a record holds")]
    TooLong(usize),
    /// An alert or handshake record would be empty.
    #[error("a record without content can only be application data")]
    Empty,
    /// Not enough room in the buffer for header, content, type and tag.
    #[error("the buffer of {0} bytes has no room for the record")]
    Room(usize),
    /// A KeyUpdate has to be sent first, as the peer asks for it or the key is used up.
    #[error("a KeyUpdate has to be sealed before more application data")]
    KeyUpdateDue,
    /// This direction has ended: by close_notify or a fatal alert of either side.
    #[error("nothing more can be sent: this direction has ended")]
    Ended,
    /// Numbers are used up, or the library refuses.
    #[error("the record cannot be sealed")]
    Internal,
}

impl From<Unspecified> for SealError {
    fn from(_: Unspecified) -> Self {
        Self::Internal
    }
}

/// One direction's sealing end.
#[derive(Debug)]
pub struct Sealer {
    protection: Protection,
    limits: Limits,
}

impl Sealer {
    /// A sealer whose next record has this number. Two that have the same secret and number give their secrets away:
    /// there must never be both.
    pub fn new(secret: TrafficSecret, number: u64, limits: Limits) -> Result<Self, Unspecified> {
        Ok(Self { protection: Protection::new(secret, number)?, limits })
    }

    /// Seals `length` bytes that lie at [`HEADER`] of `slot`, with [`TRAILER`] bytes of room behind them. Returns how long
    /// the record is; it begins where `slot` does. On an error nothing is sealed; what lies there may have changed.
    pub fn seal(&mut self, slot: &mut [u8], kind: ContentType, length: usize) -> Result<usize, SealError> {
        if length > MAX_CONTENT {
            return Err(SealError::TooLong(length));
        }
        if kind != ContentType::ApplicationData && length == 0 {
            return Err(SealError::Empty);
        }
        if kind == ContentType::ApplicationData && self.protection.number >= self.limits.refuse {
            return Err(SealError::KeyUpdateDue);
        }
        let room = SealError::Room(slot.len());
        let (header, rest) = slot.split_first_chunk_mut::<HEADER>().ok_or(room)?;
        let (inner, rest) = rest.split_at_mut_checked(length + 1).ok_or(room)?;
        let tag = rest.first_chunk_mut::<TAG>().ok_or(room)?;

        let [high, low] = u16::try_from(length + TRAILER).map_err(|_| SealError::TooLong(length))?.to_be_bytes();
        let [kind_outer, major, minor] = OUTER;
        *header = [kind_outer, major, minor, high, low];
        *inner.last_mut().ok_or(room)? = kind as u8;

        let (nonce, after) = self.protection.nonce().ok_or(SealError::Internal)?;
        let sealed = self.protection.aead.seal_in_place_separate_tag(nonce, Aad::from(*header), inner)?;
        tag.copy_from_slice(sealed.as_ref());
        self.protection.number = after;
        Ok(HEADER + length + TRAILER)
    }

    /// Whether the key has protected as many records as a key should.
    pub fn update_due(&self) -> bool {
        self.protection.number >= self.limits.update
    }

    /// Goes on with the next generation of keys: right after a KeyUpdate was sealed.
    pub fn update(&mut self) -> Result<(), Unspecified> {
        self.protection.update()
    }

    /// The secret, and the number of the next record.
    pub(crate) fn into_parts(self) -> (TrafficSecret, u64) {
        (self.protection.secret, self.protection.number)
    }
}

/// A record that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How many bytes it takes, from the beginning.
    pub length: usize,
    /// What it holds.
    pub kind: ContentType,
    /// Where that is.
    pub content: Range<usize>,
}

/// One direction's opening end.
#[derive(Debug)]
pub struct Opener {
    protection: Protection,
    limits: Limits,
}

impl Opener {
    /// An opener whose next record has this number.
    pub fn new(secret: TrafficSecret, number: u64, limits: Limits) -> Result<Self, Unspecified> {
        Ok(Self { protection: Protection::new(secret, number)?, limits })
    }

    /// Opens the record that `bytes` begin with, where it lies. `None`: a part of it is missing, and nothing was changed.
    pub fn open(&mut self, bytes: &mut [u8]) -> Result<Option<Record>, RecordError> {
        let number = self.protection.number;
        let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER>() else { return Ok(None) };
        let &mut [kind, major, minor, high, low] = header;
        let [kind_outer, version @ ..] = OUTER;
        if kind != kind_outer {
            return Err(RecordError::Type(number, kind));
        }
        if [major, minor] != version {
            return Err(RecordError::Version(number));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_CONTENT + TRAILER {
            return Err(RecordError::TooLong(number));
        }
        let Some(sealed) = rest.get_mut(..length) else { return Ok(None) };

        let (inner, tag) = sealed.split_last_chunk_mut::<TAG>().ok_or(RecordError::Sealed(number))?;
        let (nonce, after) = self.protection.nonce().ok_or(RecordError::Exhausted)?;
        // Not `open_in_place`, which moves what it has opened to the beginning, where it is already.
        self.protection
            .aead
            .open_in_place_separate_tag(nonce, Aad::from(*header), tag, inner)
            .map_err(|Unspecified| RecordError::Sealed(number))?;
        self.protection.number = after;

        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::NoType(number))?;
        let inner_type = inner.get(end).copied().unwrap_or_default();
        let kind = ContentType::of(inner_type).ok_or(RecordError::InnerType(number, inner_type))?;
        if end == 0 && kind != ContentType::ApplicationData {
            return Err(RecordError::Empty(number));
        }
        Ok(Some(Record { length: HEADER + length, kind, content: HEADER..HEADER + end }))
    }

    /// Whether the peer should have updated its key by now.
    pub fn update_overdue(&self) -> bool {
        self.protection.number >= self.limits.ask
    }

    /// Goes on with the next generation of keys: right after a KeyUpdate was opened.
    pub fn update(&mut self) -> Result<(), Unspecified> {
        self.protection.update()
    }

    /// The secret, and the number of the next record.
    pub(crate) fn into_parts(self) -> (TrafficSecret, u64) {
        (self.protection.secret, self.protection.number)
    }
}

#[cfg(test)]
mod tests;
