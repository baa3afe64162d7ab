//! Bytes of netlink messages and attributes: written, and read without ever trusting a length.

/// Alignment of messages and attributes.
const ALIGN: usize = 4;
/// Size of a message's header.
pub(crate) const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The type's bits of an attribute's type; the others are flags.
const TYPE_MASK: u16 = 0x3fff;

/// Message flag: this is a request.
pub(crate) const REQUEST: u16 = 0x01;
/// Message flag: answer even when all is well.
pub(crate) const ACK: u16 = 0x04;
/// Message flags: list all.
pub(crate) const DUMP: u16 = 0x300;
/// Message flag: replace what is there.
pub(crate) const REPLACE: u16 = 0x100;
/// Message flag: fail if it is there.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Message flag: make it.
pub(crate) const CREATE: u16 = 0x400;
/// Message flag: at the end.
pub(crate) const APPEND: u16 = 0x800;

/// A message being written. Integers are in the host's byte order unless a method says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    overflow: bool,
}

impl Message {
    /// A message of a type, with flags and the protocol's own header.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 4, &kind.to_ne_bytes());
        put(&mut bytes, 6, &flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes, overflow: false }
    }

    /// Attributes alone, to be put into a message with [`Message::append`].
    pub(crate) fn fragment() -> Self {
        Self { bytes: Vec::new(), overflow: false }
    }

    /// The bytes so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished message; `None` when something in it was too long for its length field.
    pub(crate) fn finish(mut self, sequence: u32) -> Option<Vec<u8>> {
        let length = u32::try_from(self.bytes.len()).ok().filter(|_| !self.overflow)?;
        put(&mut self.bytes, 0, &length.to_ne_bytes());
        put(&mut self.bytes, 8, &sequence.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        Some(self.bytes)
    }

    /// Sets further message flags.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        if let Some(Ok(old)) = self.bytes.get(6..8).map(<[u8; 2]>::try_from) {
            put(&mut self.bytes, 6, &(u16::from_ne_bytes(old) | flags).to_ne_bytes());
        }
    }

    /// An attribute.
    pub(crate) fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let length = u16::try_from(payload.len() + ATTRIBUTE_HEADER).unwrap_or_else(|_| {
            self.overflow = true;
            0
        });
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    /// An attribute with one byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// An attribute with a number.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute with a number in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute with a number in network byte order.
    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute with a text and its terminating NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        // A NUL inside would silently shorten the text.
        self.overflow |= value.bytes().any(|byte| byte == 0);
        self.attribute(kind, &bytes);
    }

    /// An attribute that contains attributes.
    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        write(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => put(&mut self.bytes, start, &length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    /// What is in a fragment.
    pub(crate) fn append(&mut self, fragment: &Self) {
        self.bytes.extend_from_slice(&fragment.bytes);
        self.overflow |= fragment.overflow;
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(value);
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages in a datagram, up to the first that is cut off.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message =
            Received { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, payload };
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in some bytes, up to the first that is cut off. Flags in the type are taken off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let payload = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The first attribute of a type.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// A text up to its first NUL.
pub(crate) fn text(payload: &[u8]) -> String {
    let bytes = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Two bytes at a place.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}

/// Four bytes at a place.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

/// Some bytes at a place.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A number that is all of an attribute.
pub(crate) fn be32(payload: &[u8]) -> Option<u32> {
    array_at(payload, 0).map(u32::from_be_bytes)
}

/// A number that is all of an attribute.
pub(crate) fn be64(payload: &[u8]) -> Option<u64> {
    array_at(payload, 0).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(7, REQUEST, &[1, 2, 3, 4]);
        message.text(1, "name");
        message.nested(2, |nest| {
            nest.be32(5, 0x0102_0304);
            nest.u8(6, 9);
        });
        let bytes = message.finish(42).unwrap();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (7, REQUEST, 42));
        let attributes = message.payload.get(4..).unwrap();
        assert_eq!(find(attributes, 1).map(text).as_deref(), Some("name"));
        assert_eq!(find(find(attributes, 2).unwrap(), 5).and_then(be32), Some(0x0102_0304));
        assert_eq!(find(find(attributes, 2).unwrap(), 6), Some(&[9][..]));
    }

    #[test]
    fn what_is_too_long_or_has_a_nul_inside_is_not_sent() {
        let mut message = Message::new(7, 0, &[]);
        message.attribute(1, &vec![0; 70_000]);
        assert_eq!(message.finish(1), None);
        let mut message = Message::new(7, 0, &[]);
        message.text(1, "a\0b");
        assert_eq!(message.finish(1), None);
    }

    proptest! {
        #[test]
        fn garbage_ends_the_reading_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes).map(|message| attributes(message.payload).count()).sum::<usize>();
            let _ = attributes(&bytes).count();
        }
    }
}
