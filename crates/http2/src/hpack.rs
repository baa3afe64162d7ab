//! Header compression (RFC 7541).
//!
//! What we send uses the static table and literals without indexing, never Huffman: our heads are few and short, and a
//! peer needs no table for us. Our first block tells it so (a size update to 0, section 4.2). Values marked as sensitive are
//! sent as never to be indexed. What we receive is decoded in full, for as long as the peer uses a table.

mod decode;
mod fixed;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use decode::Decoder;
pub(crate) use table::{OVERHEAD, Table};

/// Why a block cannot be decoded: the connection's compression is lost (RFC 7541 sections 2.3.3, 4.2, 5.1, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error(pub(crate) &'static str);

/// Appends an integer with a prefix of `prefix` bits; `pattern` is the rest of the first byte (RFC 7541 section 5.1).
fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let largest = (1_usize << prefix) - 1;
    let low = |value: usize| value.to_le_bytes()[0];
    if value < largest {
        return out.push(pattern | low(value));
    }
    out.push(pattern | low(largest));
    let mut rest = value - largest;
    while rest >= 128 {
        out.push(low(rest) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    put_integer(out, 0, 7, string.len());
    out.extend_from_slice(string);
}

/// Appends a field without indexing; with `sensitive`, never to be indexed.
pub(crate) fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8], sensitive: bool) {
    if let Some(index) = fixed::find(name, value) {
        return put_integer(out, 0x80, 7, index);
    }
    let pattern = if sensitive { 0x10 } else { 0 };
    match fixed::find_name(name) {
        Some(index) => put_integer(out, pattern, 4, index),
        None => {
            out.push(pattern);
            put_string(out, name.as_bytes());
        }
    }
    put_string(out, value);
}

/// Appends what says that no table is used.
pub(crate) fn put_no_table(out: &mut Vec<u8>) {
    put_integer(out, 0x20, 5, 0);
}
