//! Records shaped as TLS 1.3's, each holding one HTTP/2 DATA frame: sealed and opened in place, without I/O.
//!
//! ```text
//! 23 3 3 length(2)  |  length(3) 0 flags 0 0 0 1  payload  23  |  tag(16)
//! record header     |  frame header               inner type   |
//! authenticated     |  sealed
//! ```
//!
//! RFC 8446 sections 5.2 and 5.3 (record, nonce), RFC 9113 sections 4.1 and 6.1 (frame). Records count from 0 in each
//! direction, so one that is changed, missing, repeated or out of order does not open. The last of a direction has the
//! flag END_STREAM. The keys are those below, for all connections: there is no handshake and no KeyUpdate.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;

use crate::Role;

/// Most bytes of payload in a record: with the frame's header, the 16 KiB that TLS allows.
pub const PAYLOAD: usize = (1 << 14) - FRAME;
/// A record of full length.
pub const SLOT: usize = PREFIX + PAYLOAD + 1 + TAG;
/// What is before the payload.
pub const PREFIX: usize = HEADER + FRAME;

const HEADER: usize = 5;
const FRAME: usize = 9;
const TAG: usize = 16;
const APPLICATION_DATA: u8 = 23;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;

/// Why bytes are not the next record, or cannot become it. Records are named by their number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another type, version or length.
    #[error("record {0} does not begin as application data of TLS 1.2 or 1.3 does")]
    Header(u64),
    /// Changed on the way, or not sealed by the other end of this tunnel.
    #[error("record {0} does not open")]
    Sealed(u64),
    /// It opens, and holds something else.
    #[error("record {0} is not one DATA frame of stream 1")]
    Frame(u64),
    /// Something follows END_STREAM.
    #[error("record {0} comes after the end of its stream")]
    AfterEnd(u64),
    /// More payload than the slots hold, no number left, or the library refuses.
    #[error("record {0} cannot be sealed")]
    Seal(u64),
}

/// The key and first nonce of one direction.
#[derive(Debug)]
pub struct Key {
    key: LessSafeKey,
    nonce: [u8; 12],
}

/// The keys of one end.
#[derive(Debug)]
pub struct Keys {
    /// For what goes into the tunnel.
    pub seal: Key,
    /// For what comes out of it.
    pub open: Key,
}

impl Keys {
    /// The keys of this end, the other's turned round. They are no secret.
    pub fn of(role: Role) -> Result<Self, Unspecified> {
        let key = |byte| {
            let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[byte; 16])?);
            Ok::<_, Unspecified>(Key { key, nonce: [byte; 12] })
        };
        let (to_server, to_client) = (key(0x5e)?, key(0xc1)?);
        Ok(match role {
            Role::Client => Self { seal: to_server, open: to_client },
            Role::Server => Self { seal: to_client, open: to_server },
        })
    }
}

impl Key {
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.nonce;
        for (byte, count) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// One direction's sealing end.
#[derive(Debug, Default)]
pub struct Sealer {
    next: u64,
}

impl Sealer {
    /// Seals `length` bytes that lie where [`places`] says, in as many records as they fill; none at all is the end of
    /// the stream, which is a record too. Returns how long the records are: they are at the buffer's beginning.
    pub fn seal(&mut self, key: &Key, buffer: &mut [u8], length: usize) -> Result<usize, RecordError> {
        let flags = if length == 0 { END_STREAM } else { 0 };
        let (mut sealed, mut left) = (0, length);
        for slot in buffer.chunks_exact_mut(SLOT) {
            let payload = left.min(PAYLOAD);
            sealed += seal_one(key, self.next, slot, payload, flags).ok_or(RecordError::Seal(self.next))?;
            self.next = self.next.checked_add(1).ok_or(RecordError::Seal(self.next))?;
            left -= payload;
            if left == 0 {
                return Ok(sealed);
            }
        }
        Err(RecordError::Seal(self.next))
    }
}

fn seal_one(key: &Key, number: u64, slot: &mut [u8], payload: usize, flags: u8) -> Option<usize> {
    let sealed = FRAME + payload + 1;
    let (header, rest) = slot.split_first_chunk_mut::<HEADER>()?;
    let (inner, rest) = rest.split_at_mut_checked(sealed)?;
    let tag = rest.first_chunk_mut::<TAG>()?;

    let [high, low] = u16::try_from(sealed + TAG).ok()?.to_be_bytes();
    *header = [APPLICATION_DATA, 3, 3, high, low];
    let [high, low] = u16::try_from(payload).ok()?.to_be_bytes();
    *inner.first_chunk_mut::<FRAME>()? = [0, high, low, DATA, flags, 0, 0, 0, 1];
    *inner.last_mut()? = APPLICATION_DATA;

    let nonce = key.nonce(number);
    tag.copy_from_slice(key.key.seal_in_place_separate_tag(nonce, Aad::from(*header), inner).ok()?.as_ref());
    Some(HEADER + sealed + TAG)
}

/// Where payload is read to, in order, for [`Sealer::seal`] to find it: as many records as the buffer has room for.
pub fn places(buffer: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    buffer.chunks_exact_mut(SLOT).filter_map(|slot| slot.get_mut(PREFIX..PREFIX + PAYLOAD))
}

/// One direction's opening end.
#[derive(Debug, Default)]
pub struct Opener {
    next: u64,
    ended: bool,
}

impl Opener {
    /// Opens the record that `bytes` begin with, where it lies; [`payloads`] finds what was in it. Returns how long it
    /// is, or `None` while a part of it is missing. Never asks for more than [`SLOT`] bytes.
    pub fn open(&mut self, key: &Key, bytes: &mut [u8]) -> Result<Option<usize>, RecordError> {
        let number = self.next;
        if self.ended && !bytes.is_empty() {
            return Err(RecordError::AfterEnd(number));
        }
        let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER>() else { return Ok(None) };
        let length = sealed_length(*header).ok_or(RecordError::Header(number))?;
        let Some(sealed) = rest.get_mut(..length) else { return Ok(None) };

        let (inner, tag) = sealed.split_last_chunk_mut::<TAG>().ok_or(RecordError::Header(number))?;
        // Not `open_in_place`, which moves what it has opened to the beginning, where it is already.
        key.key
            .open_in_place_separate_tag(key.nonce(number), Aad::from(*header), tag, inner)
            .map_err(|Unspecified| RecordError::Sealed(number))?;
        self.ended = ends(inner).ok_or(RecordError::Frame(number))?;
        self.next = number.checked_add(1).ok_or(RecordError::Sealed(number))?;
        Ok(Some(HEADER + length))
    }

    /// Whether the stream's last record was opened.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// What was in opened records that lie one after another, each with the length of its record.
pub fn payloads(mut opened: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    std::iter::from_fn(move || {
        let record = HEADER + sealed_length(*opened.first_chunk()?)?;
        let (first, rest) = opened.split_at_checked(record)?;
        opened = rest;
        Some((record, first.get(PREFIX..record - TAG - 1)?))
    })
}

/// The length of what follows a header, when it is one of ours.
fn sealed_length(header: [u8; HEADER]) -> Option<usize> {
    let [APPLICATION_DATA, 3, 3, high, low] = header else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    (FRAME + 1 + TAG..=SLOT - HEADER).contains(&length).then_some(length)
}

/// Whether a frame is its stream's last. `None`: it is no DATA frame that fills its record.
fn ends(inner: &[u8]) -> Option<bool> {
    let (&[0, high, low, DATA, flags, 0, 0, 0, 1], rest) = inner.split_first_chunk::<FRAME>()? else { return None };
    let (&inner_type, payload) = rest.split_last()?;
    let whole = payload.len() == usize::from(u16::from_be_bytes([high, low]));
    (whole && inner_type == APPLICATION_DATA && flags & !END_STREAM == 0).then_some(flags == END_STREAM)
}

#[cfg(test)]
mod tests;
