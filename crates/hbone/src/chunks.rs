//! Received bytes that wait for their reader: large pieces as they came, small ones put together.
//!
//! A peer may send a thousand frames of one byte each; what waits here costs about as much memory as it has bytes.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces below this size are copied into their neighbour while a reader is behind, bytes.
const SMALL: usize = 2 << 10;

/// Room made at once for small pieces, bytes.
const BLOCK: usize = 8 << 10;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    pieces: VecDeque<Bytes>,
    /// Small pieces put together; behind all others.
    tail: BytesMut,
    bytes: usize,
}

impl Chunks {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.bytes += piece.len();
        if self.bytes == piece.len() && self.tail.is_empty() {
            // Nothing waits: the usual case, and without a copy.
            self.pieces.push_back(piece);
            return;
        }
        if piece.len() >= SMALL {
            self.close_tail();
            self.pieces.push_back(piece);
            return;
        }
        if self.tail.len() + piece.len() > BLOCK {
            self.close_tail();
        }
        if self.tail.is_empty() {
            self.tail.reserve(BLOCK);
        }
        self.tail.extend_from_slice(&piece);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first bytes that lie together.
    pub(crate) fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&self.tail, |piece| piece)
    }

    /// Points `slices` at the first bytes; says how many slices there are.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self.pieces.iter().map(Bytes::as_ref).chain(std::iter::once(self.tail.as_ref()));
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(all.filter(|piece| !piece.is_empty())) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Drops the first bytes; says how many there were.
    pub(crate) fn advance(&mut self, count: usize) -> usize {
        let dropped = count.min(self.bytes);
        let mut count = dropped;
        self.bytes -= count;
        while count > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                self.tail.advance(count.min(self.tail.len()));
                break;
            };
            if piece.len() > count {
                piece.advance(count);
                break;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        if self.bytes == 0 {
            // An idle stream holds no buffer.
            *self = Self::default();
        }
        dropped
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            pieces in proptest::collection::vec((0..5000_usize, 0..6000_usize), 0..40),
        ) {
            let (mut chunks, mut sent, mut taken) = (Chunks::default(), Vec::new(), Vec::new());
            for (number, (length, take)) in pieces.iter().enumerate() {
                let piece: Vec<u8> = (0..*length).map(|place| (place + number) as u8).collect();
                sent.extend_from_slice(&piece);
                chunks.push(piece.into());
                let mut slices = [IoSlice::new(&[]); 4];
                let count = chunks.slices(&mut slices);
                let seen: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                let take = (*take).min(seen.len());
                taken.extend_from_slice(&seen[..take]);
                prop_assert!(chunks.is_empty() || seen.starts_with(chunks.front()));
                chunks.advance(take);
                prop_assert_eq!(chunks.bytes, sent.len() - taken.len());
            }
            while !chunks.is_empty() {
                taken.extend_from_slice(chunks.front());
                chunks.advance(chunks.front().len());
            }
            prop_assert_eq!(sent, taken);
        }
    }

    #[test]
    fn thousands_of_tiny_pieces_lie_in_a_few_blocks() {
        let mut chunks = Chunks::default();
        for _ in 0..10_000 {
            chunks.push(Bytes::from_static(b"0123456789abcdef"));
        }
        assert_eq!(chunks.bytes, 160_000);
        assert!(chunks.pieces.len() <= 21, "{}", chunks.pieces.len());
    }
}
