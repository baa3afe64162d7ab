//! Cuts an input into the pieces that a peer would send one after the other.

/// The pieces of an input: a byte that says how it is sent, its length (16 bits, little-endian), its bytes. A length
/// beyond the end means the rest.
pub(crate) struct Pieces<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Pieces<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let ([how, low, high], rest) = self.0.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        self.0 = rest;
        Some((*how, piece))
    }
}
