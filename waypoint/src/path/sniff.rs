//! What a client speaks, by its first bytes. Pure.

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// HTTP/1.
    One,
    /// HTTP/2.
    Two,
    /// Something else.
    Other,
    /// Not enough of it yet.
    Unclear,
    /// The client ended without a byte.
    Gone,
}

/// A first line that is longer is taken for HTTP/1 if it began as one, so that its length is no way round; bytes.
pub const LONGEST_LINE: usize = 8 << 10;

/// Longest method, bytes.
const LONGEST_METHOD: usize = 32;

/// What HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Says what these first bytes are.
pub fn sniff(bytes: &[u8]) -> Seen {
    if bytes.starts_with(PREFACE) {
        return Seen::Two;
    }
    if PREFACE.starts_with(bytes) {
        return Seen::Unclear;
    }
    // One empty line before a request is to be borne (RFC 9112 section 2.2).
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    if b"\r\n".starts_with(bytes) {
        return Seen::Unclear;
    }
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        _ if method > LONGEST_METHOD => return Seen::Other,
        None => return Seen::Unclear,
        Some(b' ') if method > 0 => {}
        Some(_) => return Seen::Other,
    }
    let rest = bytes.get(method + 1..).unwrap_or_default();
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        // A target has no spaces and no control characters; after it comes the version.
        let target = rest.iter().take_while(|byte| **byte > b' ').count();
        let after = rest.get(target..).unwrap_or_default();
        let version: &[u8] = b" HTTP/1.x\r";
        let begins = after.iter().zip(version).all(|(byte, wanted)| byte == wanted || *wanted == b'x');
        return match begins && after.len() <= version.len() {
            false => Seen::Other,
            true if bytes.len() > LONGEST_LINE => Seen::One,
            true => Seen::Unclear,
        };
    };
    let line = rest.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_version = |version: &&[u8]| *version == b"HTTP/1.1" || *version == b"HTTP/1.0";
    let version = line.iter().rposition(|byte| *byte == b' ').and_then(|space| line.get(space + 1..));
    if version.as_ref().is_some_and(is_version) { Seen::One } else { Seen::Other }
}

/// A character of a method (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_http_at_every_length_and_only_when_complete() {
        for request in ["GET / HTTP/1.1\r\n", "POST /a?b=c HTTP/1.0\n", "\r\nM-SEARCH * HTTP/1.1\r\n"] {
            for length in 0..request.len() {
                assert_eq!(sniff(&request.as_bytes()[..length]), Seen::Unclear, "{:?}", &request[..length]);
            }
            assert_eq!(sniff(request.as_bytes()), Seen::One);
        }
    }

    #[test]
    fn the_preface_is_http2() {
        for length in 0..PREFACE.len() {
            assert_eq!(sniff(&PREFACE[..length]), Seen::Unclear);
        }
        assert_eq!(sniff(PREFACE), Seen::Two);
    }

    #[test]
    fn other_protocols_are_told_from_http_by_their_first_bytes() {
        for other in [
            b"\x16\x03\x01\x02\x00".as_slice(),
            b"EHLO mail\r\n",
            b"GET key\r\n",
            b"\x00\x00\x00\x08",
            b"*1\r\n",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"GET / HTTP/3\r\n",
            b"GET / and more",
            b" GET / HTTP/1.1\r\n",
            b"PRI * HTTP/1.1x\r\n",
        ] {
            assert_eq!(sniff(other), Seen::Other, "{other:?}");
        }
    }

    #[test]
    fn a_long_first_line_is_no_way_round() {
        let long = format!("GET /{}", "a".repeat(LONGEST_LINE));
        assert_eq!(sniff(long.as_bytes()), Seen::One);
        assert_eq!(sniff("A".repeat(LONGEST_METHOD + 1).as_bytes()), Seen::Other);
    }
}
