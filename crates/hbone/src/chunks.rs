//! Received bytes that wait for their reader.
//!
//! A peer may send a thousand frames of one byte each; what waits here costs about as much memory as it has bytes.

use std::collections::VecDeque;
use std::io::IoSlice;

/// The largest block that is made for more to come, bytes.
const BLOCK: usize = 32 << 10;

/// A queue of bytes. Most streams have none waiting: then it is one word.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    waiting: Option<Box<Waiting>>,
}

/// Bytes in blocks: each as large as all that waits when it is made.
#[derive(Debug, Default)]
struct Waiting {
    blocks: VecDeque<Vec<u8>>,
    /// Of the first block, taken already.
    taken: usize,
    bytes: usize,
}

impl Chunks {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        if !piece.is_empty() {
            self.waiting.get_or_insert_default().push(piece);
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_none()
    }

    /// The first bytes that lie together.
    pub(crate) fn front(&self) -> &[u8] {
        self.waiting.as_deref().map(Waiting::front).unwrap_or_default()
    }

    /// Points `slices` at the first bytes; says how many slices there are.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.waiting.iter().flat_map(|waiting| waiting.pieces());
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Drops the first bytes; says how many there were.
    pub(crate) fn advance(&mut self, count: usize) -> usize {
        let Some(waiting) = &mut self.waiting else { return 0 };
        let dropped = count.min(waiting.bytes);
        if dropped == waiting.bytes {
            // An idle stream holds no buffer.
            self.waiting = None;
        } else {
            waiting.advance(dropped);
        }
        dropped
    }
}

impl Waiting {
    fn push(&mut self, mut piece: &[u8]) {
        if let Some(last) = self.blocks.back_mut() {
            let (now, later) = piece.split_at(piece.len().min(last.capacity() - last.len()));
            last.extend_from_slice(now);
            self.bytes += now.len();
            piece = later;
        }
        if !piece.is_empty() {
            let mut block = Vec::with_capacity(piece.len().max(self.bytes.min(BLOCK)));
            block.extend_from_slice(piece);
            self.blocks.push_back(block);
            self.bytes += piece.len();
        }
    }

    fn front(&self) -> &[u8] {
        self.blocks.front().and_then(|block| block.get(self.taken..)).unwrap_or_default()
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let others = self.blocks.iter().skip(1).map(Vec::as_slice);
        std::iter::once(self.front()).chain(others).filter(|piece| !piece.is_empty())
    }

    /// Fewer than there are.
    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(left) = self.blocks.front().map(|block| block.len() - self.taken).filter(|left| *left <= count) {
            count -= left;
            self.taken = 0;
            self.blocks.pop_front();
        }
        self.taken += count;
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
                chunks.push(&piece);
                let mut slices = [IoSlice::new(&[]); 4];
                let count = chunks.slices(&mut slices);
                let seen: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                let take = (*take).min(seen.len());
                taken.extend_from_slice(&seen[..take]);
                prop_assert!(chunks.is_empty() || seen.starts_with(chunks.front()));
                chunks.advance(take);
                prop_assert_eq!(chunks.waiting.as_ref().map_or(0, |waiting| waiting.bytes), sent.len() - taken.len());
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
            chunks.push(b"0123456789abcdef");
        }
        let waiting = chunks.waiting.unwrap();
        assert_eq!(waiting.bytes, 160_000);
        let capacity: usize = waiting.blocks.iter().map(Vec::capacity).sum();
        assert!(waiting.blocks.len() <= 21 && capacity < 200_000, "{} {capacity}", waiting.blocks.len());
    }
}
