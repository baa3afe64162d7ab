//! What a CONNECT says of itself, and what a request says of its trace.

use http::{HeaderMap, HeaderName, HeaderValue};
use stillmesh_core::attrs::Authority;
use stillmesh_hbone::headers::{
    BAGGAGE, ConnectHeaders, FORWARDED, FORWARDED_NETWORK, LONGEST, TRACEPARENT, authority_text, parse_authority,
};
use stillmesh_otlp::{Context, Headers};

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

/// Lines of headers. Whoever is next reads the same trace, by whichever of them.
pub(crate) fn trace(input: &[u8]) -> bool {
    const NAMES: [&str; 7] =
        ["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"];
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, rest) = line.split_at(colon);
        let known = NAMES.into_iter().find(|known| known.as_bytes() == name);
        if let (Some(name), Ok(value)) = (known, HeaderValue::from_bytes(rest.get(1..).unwrap_or_default())) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let mut is_part = false;
    for own in [Headers::W3c, Headers::B3] {
        let context = Context::of(&headers, own, 7, 9, || true);
        assert!(context.trace != 0 && context.span == 9);
        is_part |= context.parent != 0;
        let mut written = headers.clone();
        context.write(&mut written, own);
        for reader in [Headers::W3c, Headers::B3] {
            let next = Context::of(&written, reader, 8, 10, || !context.is_sampled);
            assert_eq!((next.trace, next.parent, next.is_sampled), (context.trace, 9, context.is_sampled));
        }
        assert!(NAMES.iter().all(|name| *name == "tracestate" || written.get_all(*name).iter().count() <= 1));
    }
    is_part
}
