//! Decoding of header blocks (RFC 7541 section 6).

use std::borrow::Cow;

use super::table::Table;
use super::{Error, huffman};

/// One direction's decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decoder {
    pub(crate) table: Table,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new() }
    }

    /// The peer has acknowledged a SETTINGS_HEADER_TABLE_SIZE of 0: there is no table from its next block on.
    pub(crate) fn forbid_table(&mut self) {
        self.table.forbid();
    }

    /// Gives each field of a whole block to `field`. Work and memory are bounded by the block's length, but for fields that
    /// are in a table already: they cost a byte each, and come without a copy.
    pub(crate) fn decode(&mut self, mut block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let input = &mut block;
        let mut updates = 0;
        while let Some((&first, rest)) = input.split_first() {
            *input = rest;
            if first & 0xe0 == 0x20 {
                // Section 4.2: only at the beginning, and at most the smallest and the last of several.
                updates += 1;
                if updates > 2 {
                    return Err(Error("a change of the table's size within a block"));
                }
                self.table.resize(integer(input, first, 5)?)?;
                continue;
            }
            updates = 2;
            if first & 0x80 != 0 {
                let (name, value) = self.table.at(integer(input, first, 7)?)?;
                field(name, value);
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(input, first, if indexed { 6 } else { 4 })?;
                let literal = if index == 0 { string(input)? } else { Cow::Borrowed(&[][..]) };
                let name = if index == 0 { &*literal } else { self.table.at(index)?.0 };
                let value = string(input)?;
                field(name, &value);
                if indexed {
                    let name = name.to_vec();
                    self.table.insert(&name, &value);
                }
            }
        }
        Ok(())
    }
}

/// The largest integer is less than 2^28 + 2^8: blocks and tables are shorter.
const LONGEST_INTEGER: u32 = 4;

/// Section 5.1.
fn integer(input: &mut &[u8], first: u8, prefix: u32) -> Result<usize, Error> {
    let largest = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & largest;
    if value < largest {
        return Ok(value);
    }
    for place in 0..LONGEST_INTEGER {
        let (&byte, rest) = input.split_first().ok_or(Error("an integer that is cut off"))?;
        *input = rest;
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error("an integer that is too long"))
}

/// Section 5.2.
fn string<'a>(input: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
    let (&first, rest) = input.split_first().ok_or(Error("a string that is cut off"))?;
    *input = rest;
    let length = integer(input, first, 7)?;
    let (bytes, rest) = input.split_at_checked(length).ok_or(Error("a string that is cut off"))?;
    *input = rest;
    if first & 0x80 == 0 {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut out = Vec::with_capacity(length * 8 / 5);
    huffman::decode(bytes, &mut out)?;
    Ok(Cow::Owned(out))
}
