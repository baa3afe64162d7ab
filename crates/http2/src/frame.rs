//! Frames (RFC 9113 sections 4 and 6): their heads, and what the small ones carry.
//!
//! Reserved bits are ignored on receipt and sent as 0. A payload's length is checked before anything of it is kept.

use crate::Reason;
use crate::error::Fault;

/// A frame's head, bytes.
pub const HEAD: usize = 9;

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest payload that every peer takes, bytes (RFC 9113 section 6.5.2).
pub const SMALLEST_MAX_FRAME: u32 = 1 << 14;

/// The largest payload that there is, bytes.
pub const LARGEST_MAX_FRAME: u32 = (1 << 24) - 1;

/// The largest window (RFC 9113 section 6.9.1) and the largest stream identifier.
pub const LARGEST: u32 = (1 << 31) - 1;

/// The windows that everybody begins with, bytes (RFC 9113 sections 6.5.2 and 6.9.2).
pub const DEFAULT_WINDOW: u32 = 65_535;

/// Types of frames.
pub(crate) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113 section 6.5.2).
pub(crate) mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the payload, bytes; 24 bits.
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD]) -> Self {
        let [high, middle, low, kind, flags, a, b, c, d] = bytes;
        Self {
            length: u32::from_be_bytes([0, high, middle, low]),
            kind,
            flags,
            stream: u32::from_be_bytes([a, b, c, d]) & LARGEST,
        }
    }

    pub(crate) fn bytes(self) -> [u8; HEAD] {
        let [_, high, middle, low] = self.length.to_be_bytes();
        let [a, b, c, d] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, a, b, c, d]
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether the payload of a control frame may have this length, and whether it belongs where it says.
    pub(crate) fn check(self) -> Result<(), Fault> {
        let of_connection = matches!(self.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        let of_either = self.kind == kind::WINDOW_UPDATE || self.kind > kind::CONTINUATION;
        if !of_either && of_connection != (self.stream == 0) {
            return Err(Fault::protocol("a frame on a stream where its type does not belong"));
        }
        let right = match self.kind {
            kind::PRIORITY => self.length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => self.length == 4,
            kind::SETTINGS if self.has(flag::ACK) => self.length == 0,
            kind::SETTINGS => self.length.is_multiple_of(6),
            kind::PING => self.length == 8,
            kind::GOAWAY => self.length >= 8,
            _ => true,
        };
        if right { Ok(()) } else { Err(Fault::size("a frame of a length that its type does not have")) }
    }
}

/// Appends a frame.
pub(crate) fn put(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(LARGEST_MAX_FRAME);
    output.extend_from_slice(&Head { length, kind, flags, stream }.bytes());
    output.extend_from_slice(payload);
}

/// Appends SETTINGS.
pub(crate) fn put_settings(output: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(settings.len() * 6);
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    put(output, kind::SETTINGS, 0, 0, &payload);
}

/// Appends GOAWAY.
pub(crate) fn put_go_away(output: &mut Vec<u8>, last_stream: u32, reason: Reason) {
    let (last, reason) = (last_stream.to_be_bytes(), reason.0.to_be_bytes());
    put(output, kind::GOAWAY, 0, 0, &[last, reason].concat());
}

/// Appends a header block as one HEADERS and as many CONTINUATIONs as a peer with this SETTINGS_MAX_FRAME_SIZE needs.
pub(crate) fn put_block(output: &mut Vec<u8>, stream: u32, end_stream: bool, max_frame: u32, block: &[u8]) {
    let mut pieces = block.chunks(max_frame as usize).peekable();
    let mut of = (kind::HEADERS, if end_stream { flag::END_STREAM } else { 0 });
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        put(output, of.0, of.1 | last, stream, piece);
        of = (kind::CONTINUATION, 0);
    }
}

/// A 32 bit number at the front of a payload, without its reserved bit.
pub(crate) fn number(payload: &[u8]) -> Result<u32, Fault> {
    let (bytes, _) = payload.split_first_chunk().ok_or(Fault::size("a frame that is too short"))?;
    Ok(u32::from_be_bytes(*bytes))
}

/// The settings of a payload.
pub(crate) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload
        .as_chunks::<6>()
        .0
        .iter()
        .map(|&[a, b, c, d, e, f]| (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
}

/// The field block fragment of a HEADERS frame: without padding, without priority.
pub(crate) fn fragment(head: Head, mut payload: &[u8]) -> Result<&[u8], Fault> {
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (length, rest) = payload.split_first().ok_or(Fault::size("padding without its length"))?;
        (padding, payload) = (usize::from(*length), rest);
    }
    if head.has(flag::PRIORITY) {
        depends(head.stream, payload)?;
        payload = payload.get(5..).ok_or(Fault::size("a priority that is cut off"))?;
    }
    let end = payload.len().checked_sub(padding).ok_or(Fault::protocol("more padding than there is frame"))?;
    Ok(payload.split_at(end).0)
}

/// Checks a priority. It is ignored otherwise (RFC 9113 section 5.3.2), but nothing depends on itself (RFC 7540 section 5.3.1).
pub(crate) fn depends(stream: u32, priority: &[u8]) -> Result<(), Fault> {
    let on = number(priority)? & LARGEST;
    if on == stream { Err(Fault::protocol("a stream that depends on itself")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_without_its_reserved_bit() {
        let head = Head { length: 0x01_02_03, kind: kind::DATA, flags: flag::END_STREAM, stream: 0x7fff_fffe };
        let mut bytes = head.bytes();
        assert_eq!(bytes, [1, 2, 3, 0, 1, 0x7f, 0xff, 0xff, 0xfe]);
        bytes[5] |= 0x80;
        assert_eq!(Head::parse(bytes), head);
    }

    #[test]
    fn lengths_and_streams_are_checked() {
        let fault = |kind, flags, stream, length| Head { length, kind, flags, stream }.check().err();
        let size = Some(Fault::size("a frame of a length that its type does not have"));
        let place = Some(Fault::protocol("a frame on a stream where its type does not belong"));
        for (kind, right, stream) in [
            (kind::PRIORITY, 5, 1),
            (kind::RST_STREAM, 4, 1),
            (kind::SETTINGS, 12, 0),
            (kind::PING, 8, 0),
            (kind::GOAWAY, 8, 0),
            (kind::WINDOW_UPDATE, 4, 0),
            (kind::WINDOW_UPDATE, 4, 1),
        ] {
            assert_eq!(fault(kind, 0, stream, right), None, "{kind}");
            assert_eq!(fault(kind, 0, stream, right - 1), size, "{kind}");
            if kind != kind::WINDOW_UPDATE {
                assert_eq!(fault(kind, 0, 1 - stream, right), place, "{kind}");
            }
        }
        assert_eq!(fault(kind::SETTINGS, flag::ACK, 0, 6), size);
        assert_eq!(fault(kind::GOAWAY, 0, 0, 99), None);
        assert_eq!(fault(99, 0xff, 7, 99), None, "unknown types are whatever they like");
        for kind in [kind::DATA, kind::HEADERS, kind::PUSH_PROMISE, kind::CONTINUATION] {
            assert_eq!(fault(kind, 0, 0, 1), place, "{kind}");
        }
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        let head = |flags| Head { length: 0, kind: kind::HEADERS, flags, stream: 5 };
        assert_eq!(fragment(head(0), b"block").unwrap(), b"block");
        assert_eq!(fragment(head(flag::PADDED), b"\x02block??").unwrap(), b"block");
        assert_eq!(fragment(head(flag::PADDED | flag::PRIORITY), b"\x01\0\0\0\x03\x10block?").unwrap(), b"block");
        assert_eq!(fragment(head(flag::PADDED), b"\x02??").unwrap(), b"");
        assert!(fragment(head(flag::PADDED), b"\x03??").is_err());
        assert!(fragment(head(flag::PADDED), b"").is_err());
        assert!(fragment(head(flag::PRIORITY), b"\0\0\0\x03").is_err());
        assert!(fragment(head(flag::PRIORITY), b"\x80\0\0\x05\x10block").is_err(), "on itself");
    }

    #[test]
    fn a_block_is_split_as_the_peer_wants_it() {
        let mut output = Vec::new();
        put_block(&mut output, 3, true, 4, b"123456789");
        assert_eq!(output, b"\0\0\x04\x01\x01\0\0\0\x031234\0\0\x04\x09\0\0\0\0\x035678\0\0\x01\x09\x04\0\0\0\x039");
    }
}
