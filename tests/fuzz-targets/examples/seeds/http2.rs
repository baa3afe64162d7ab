//! Seeds of the HTTP/2 targets.

use http::HeaderMap;
use stillmesh_http2::{Config, Connection, Reason};

/// A frame: type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, _, high, low] = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Each with its target and its name.
pub(crate) fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    // :method CONNECT, :authority, and a header.
    let connect = b"\x02\x07CONNECT\x01\x0b10.0.0.1:80\0\x07baggage\x03a=b";
    let (first, rest) = connect.split_at(12);
    // :method GET, :scheme http, :path /, :authority by Huffman.
    let get = b"\x82\x86\x84\x01\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let go_away = [0, 0, 0, 1, 0, 0, 0, 0xb, b'c', b'a', b'l', b'm'];
    let settings = [0, 4, 0, 0, 0, 100, 0, 5, 0, 0, 0x50, 0, 0, 1, 0, 0, 0, 0];
    let control = [
        frame(4, 0, 0, &settings),
        frame(6, 0, 0, b"ping1234"),
        frame(8, 0, 0, &[0, 0, 1, 0]),
        frame(8, 0, 1, &[0, 0, 1, 0]),
        frame(2, 0, 1, &[0, 0, 0, 3, 9]),
        frame(0x42, 7, 1, b"unknown"),
    ];
    let control = control.concat();
    let open = [frame(1, 0, 1, first), frame(9, 4, 1, rest)].concat();
    let body = [frame(0, 0, 1, b"hello"), frame(0, 8, 1, b"\x03hello...")].concat();
    let (ended, trailers) = (frame(0, 1, 1, b""), frame(1, 5, 1, b"\0\x01a\x01b"));
    let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
    let response = [frame(1, 4, 1, b"\x08\x03103"), frame(1, 4, 1, b"\x88\0\x07baggage\x03a=b")].concat();

    let mut server = Connection::server(Config::server());
    let fresh = server.export().expect("a state");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // A table, a header block and a frame that are not complete.
    let indexed = [&connect[..], b"\x40\x01a\x01b"].concat();
    let begun = [&preface[..], &frame(1, 4, 1, &indexed), &body, &frame(1, 0, 3, first), &[0, 0, 9, 9]].concat();
    let mut input = &begun[..];
    while server.receive(&mut input).expect("a connection").is_some() {}
    server.reset(1, Reason::CANCEL);
    let in_a_block = server.export().expect("a state");
    let mut client = Connection::client(Config::client());
    client.connect("10.0.0.1:80", &HeaderMap::new()).expect("a stream");
    let mut short = in_a_block.clone();
    short.truncate(60);

    vec![
        ("http2-server", "ok-tunnel", [&open[..], &body, &control, &ended].concat()),
        ("http2-server", "ok-trailers", [&open[..], &body, &trailers].concat()),
        ("http2-server", "ok-reset-and-get", [&open[..], &reset, &frame(1, 5, 3, get)].concat()),
        ("http2-server", "ok-go-away", [&open[..], &frame(7, 0, 0, &go_away)].concat()),
        ("http2-server", "bad-interrupted-block", [frame(1, 0, 1, first), control.clone()].concat()),
        ("http2-server", "bad-data-on-idle-stream", body.clone()),
        ("http2-server", "bad-compression", frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff")),
        ("http2-client", "ok-tunnel", [&response[..], &body, &control, &ended].concat()),
        ("http2-client", "ok-reset", [&control[..], &reset].concat()),
        ("http2-client", "ok-go-away", [&response[..], &frame(7, 0, 0, &go_away)].concat()),
        ("http2-client", "bad-push", frame(5, 4, 1, &[0, 0, 0, 2])),
        ("http2-client", "bad-stream", frame(1, 4, 9, b"\x88")),
        ("http2-state", "ok-fresh", fresh),
        ("http2-state", "ok-in-a-block", in_a_block),
        ("http2-state", "ok-client", client.export().expect("a state")),
        ("http2-state", "bad-cut", short),
    ]
}
