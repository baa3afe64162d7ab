//! Counts the messages of a gRPC body as it passes. Pure; nothing of it is kept.

/// How many messages have begun and ended in the pieces that were seen so far (gRPC over HTTP/2: one byte that says whether it is
/// compressed, four of its length, then the message).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    count: u64,
    /// Bytes of a prefix that have come.
    prefix: u8,
    length: u32,
    /// Bytes of the message that have not.
    left: u32,
}

/// Bytes before a message.
const PREFIX: u8 = 5;

impl Messages {
    /// A piece of the body.
    pub fn see(&mut self, mut piece: &[u8]) {
        loop {
            if self.prefix == PREFIX {
                let here = u32::try_from(piece.len()).unwrap_or(u32::MAX).min(self.left);
                piece = piece.get(here as usize..).unwrap_or_default();
                self.left -= here;
                if self.left > 0 {
                    return;
                }
                self.count += 1;
                self.prefix = 0;
            }
            let Some((byte, rest)) = piece.split_first() else { return };
            self.length = if self.prefix == 0 { 0 } else { self.length << 8 | u32::from(*byte) };
            self.prefix += 1;
            self.left = self.length;
            piece = rest;
        }
    }

    /// Whole messages.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 1, 4, 70_000, 0] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(vec![7; length as usize]);
        }
        for size in [1, 2, 3, 5, 6, 4096, body.len()] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|piece| messages.see(piece));
            assert_eq!(messages.count(), 5, "pieces of {size}");
        }
    }

    #[test]
    fn a_message_that_is_cut_off_does_not_count() {
        let mut messages = Messages::default();
        messages.see(&[0, 0, 0, 0, 2, 1]);
        assert_eq!(messages.count(), 0);
        messages.see(&[1, 0, 255, 255, 255, 255, 1, 1]);
        assert_eq!(messages.count(), 1);
    }
}
