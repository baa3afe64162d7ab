//! What a CONNECT says of itself.

use http::{HeaderMap, HeaderValue};
use stillmesh_core::attrs::Authority;
use stillmesh_hbone::headers::{
    BAGGAGE, ConnectHeaders, FORWARDED, FORWARDED_NETWORK, LONGEST, TRACEPARENT, authority_text, parse_authority,
};

/// Five lines: authority, baggage, forwarded, traceparent, network. Empty lines are absent headers.
pub(crate) fn connect(input: &[u8]) -> bool {
    let mut lines = input.split(|byte| *byte == b'\n');
    let authority = lines.next().and_then(|line| std::str::from_utf8(line).ok()).and_then(parse_authority);
    if let Some(authority) = &authority {
        assert_eq!(parse_authority(&authority_text(authority)).as_ref(), Some(authority));
        if let Authority::Name(name, _) = authority {
            assert!((1..=253).contains(&name.len()));
        }
    }
    let mut headers = HeaderMap::new();
    for (name, line) in [BAGGAGE, FORWARDED, TRACEPARENT, FORWARDED_NETWORK].into_iter().zip(lines) {
        if let Ok(value) = HeaderValue::from_bytes(line)
            && !line.is_empty()
        {
            headers.insert(name, value);
        }
    }
    let read = ConnectHeaders::read(&headers);
    let mut written = HeaderMap::new();
    read.write(&mut written);
    // Quotes and names are written out where a peer may leave them away.
    if written.values().all(|value| value.len() <= LONGEST) {
        assert_eq!(ConnectHeaders::read(&written), read);
    }
    authority.is_some()
}
