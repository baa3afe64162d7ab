//! The Huffman code of strings (RFC 7541 section 5.2 and appendix B). It is canonical: the lengths of the codes tell all.

use super::Error;

/// Symbols: all bytes, and the end of a string.
const SYMBOLS: usize = 257;

const END: u16 = 256;

const LONGEST: usize = 30;

/// Lengths of the codes, bits.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length follow each other.
#[derive(Clone, Copy)]
struct Row {
    /// Its first code.
    first: u32,
    /// One more than its last code, at the left of 32 bits.
    limit: u64,
    /// Where its symbols begin in [`Code::symbols`].
    place: usize,
}

struct Code {
    /// By length.
    rows: [Row; LONGEST + 1],
    /// By code.
    symbols: [u16; SYMBOLS],
}

static CODE: Code = code();

#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "done while it is compiled")]
const fn code() -> Code {
    let mut all = Code { rows: [Row { first: 0, limit: 0, place: 0 }; LONGEST + 1], symbols: [0; SYMBOLS] };
    let (mut next, mut place, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        all.rows[length].first = next;
        all.rows[length].place = place;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                all.symbols[place] = symbol as u16;
                place += 1;
                next += 1;
            }
            symbol += 1;
        }
        all.rows[length].limit = (next as u64) << (32 - length);
        length += 1;
    }
    all
}

/// The symbol that 32 bits begin with, and the length of its code.
fn symbol(bits: u32) -> Option<(u16, usize)> {
    let found = CODE.rows.iter().enumerate().skip(5).find(|(_, row)| u64::from(bits) < row.limit);
    let (length, row) = found?;
    let code = bits >> (32 - length);
    CODE.symbols.get(row.place + (code - row.first) as usize).map(|symbol| (*symbol, length))
}

/// Appends what `bytes` stand for: at most 8/5 of their number.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    // The last `have` bits are those that were not used yet; others are above them.
    let (mut bits, mut have) = (0_u64, 0_usize);
    for byte in bytes {
        bits = bits << 8 | u64::from(*byte);
        have += 8;
        while have >= 5 {
            let front = if have <= 32 { bits << (32 - have) } else { bits >> (have - 32) } & 0xffff_ffff;
            let (symbol, length) = u32::try_from(front).ok().and_then(symbol).ok_or(Error("no Huffman code"))?;
            if length > have {
                break;
            }
            if symbol == END {
                return Err(Error("the Huffman code of the end within a string"));
            }
            out.push(symbol.to_le_bytes()[0]);
            have -= length;
        }
    }
    let padding = (1 << have) - 1;
    if have > 7 || bits & padding != padding { Err(Error("Huffman padding that is none")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_appendix() {
        let code = |wanted: u16| {
            let place = CODE.symbols.iter().position(|symbol| *symbol == wanted).unwrap();
            let row = CODE.rows.iter().rev().find(|row| row.place <= place && row.limit > 0).unwrap();
            row.first + (place - row.place) as u32
        };
        // Appendix B, some of each length.
        for (symbol, expected) in [
            (b'0', 0x0),
            (b't', 0x9),
            (b' ', 0x14),
            (b'u', 0x2d),
            (b':', 0x5c),
            (b'z', 0x7b),
            (b'&', 0xf8),
            (b'Z', 0xfd),
            (b'!', 0x3f8),
            (b'|', 0x7fc),
            (b'#', 0xffa),
            (b'~', 0x1ffd),
            (b'}', 0x3ffd),
            (b'<', 0x7ffc),
            (b'{', 0x7ffe),
            (b'\\', 0x7fff0),
            (128, 0xfffe6),
            (0, 0x1ff8),
            (1, 0x7fffd8),
            (9, 0xffffea),
            (207, 0x1ffffed),
            (192, 0x3ffffe0),
            (255, 0x3ffffee),
            (203, 0x7ffffde),
            (2, 0xfffffe2),
            (249, 0xffffffe),
            (10, 0x3ffffffc),
            (22, 0x3ffffffe),
        ] {
            assert_eq!(code(u16::from(symbol)), expected, "{symbol}");
        }
        assert_eq!(code(END), 0x3fff_ffff);
    }

    #[test]
    fn padding_is_the_shortest_and_all_ones() {
        let decoded = |bytes: &[u8]| {
            let mut out = Vec::new();
            decode(bytes, &mut out).map(|()| out)
        };
        assert_eq!(decoded(b"").unwrap(), b"");
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert!(decoded(&[0b0000_0110]).is_err(), "a zero in it");
        assert!(decoded(&[0b0000_0111, 0xff]).is_err(), "a byte too long");
        assert!(decoded(&[0xff; 4]).is_err(), "the end");
        assert!(decoded(&[0xff]).is_err());
    }
}
