//! What a peer's frames lead to: RFC 9113's rules, one by one.

use super::*;
use crate::{Request, SendError};

const PROTOCOL: Option<Reason> = Some(Reason::PROTOCOL_ERROR);
const CLOSED: Option<Reason> = Some(Reason::STREAM_CLOSED);
const FLOW: Option<Reason> = Some(Reason::FLOW_CONTROL_ERROR);

fn request(told: &[Told]) -> (u32, Request) {
    match told {
        [Told::Other(Event::Request { stream, request }), ..] => (*stream, request.clone()),
        other => panic!("{other:?}"),
    }
}

/// A server with a tunnel on stream 1.
fn tunnel() -> Connection {
    let mut server_ = server(Config::server());
    feed(&mut server_, &connect(1, false)).unwrap();
    server_.respond(1, StatusCode::OK, &HeaderMap::new(), false).unwrap();
    assert_eq!(frames(&output(&mut server_)), [(kind::HEADERS, flag::END_HEADERS, 1, vec![0x20, 0x88])]);
    server_
}

fn other(event: Event<'static>) -> Told {
    Told::Other(event)
}

#[test]
fn both_ends_begin_as_they_must() {
    let mut client_ = Connection::client(Config::client());
    let first = output(&mut client_);
    let (preface, rest) = first.split_first_chunk::<24>().unwrap();
    assert_eq!(preface, PREFACE);
    let of_client = frames(rest);
    assert_eq!((of_client[0].0, of_client[0].1, of_client[0].2), (kind::SETTINGS, 0, 0));
    let settings: Vec<_> = frame::settings(&of_client[0].3).collect();
    assert_eq!(settings, [(1, 0), (4, 256 << 10), (5, 1 << 20), (6, 16 << 10), (2, 0)]);
    assert_eq!(of_client[1], (kind::WINDOW_UPDATE, 0, 0, ((16_u32 << 20) - 65_535).to_be_bytes().to_vec()));

    let mut server_ = Connection::server(Config::server());
    assert!(!server_.is_greeted());
    assert_eq!(feed(&mut server_, &first).unwrap(), [other(Event::Settings)]);
    assert!(server_.is_greeted());
    let answer = output(&mut server_);
    let of_server = frames(&answer);
    let settings: Vec<_> = frame::settings(&of_server[0].3).collect();
    assert_eq!(settings, [(1, 0), (4, 256 << 10), (5, 1 << 20), (6, 64 << 10), (3, 200)]);
    assert_eq!(of_server[1], (kind::SETTINGS, flag::ACK, 0, vec![]));
    assert_eq!(feed(&mut client_, &answer).unwrap(), [other(Event::Settings), other(Event::SettingsAcknowledged)]);
    assert_eq!(client_.peer.max_streams, 200);
}

#[test]
fn a_server_says_what_it_takes_before_it_answers() {
    let mut server_ = Connection::server(Config { early_data: 5, ..Config::server() });
    let settings: Vec<_> = frame::settings(&frames(&output(&mut server_))[0].3).collect();
    assert_eq!(settings.last(), Some(&(crate::EARLY_DATA, 5)));
    let said = frame(kind::SETTINGS, 0, 0, &[&crate::EARLY_DATA.to_be_bytes()[..], &[0, 0, 0, 5]].concat());
    let mut client_ = client(Config { early_data: 7, ..Config::client() });
    assert_eq!(client_.early_data(), 0, "a peer that says nothing of it");
    feed(&mut client_, &said).unwrap();
    assert_eq!(client_.early_data(), 5);
    assert_eq!(Connection::import(&client_.export().unwrap()).unwrap().early_data(), 5);
    // A client that says so is not sent anything before it asks.
    feed(&mut server_, &[&PREFACE[..], &said].concat()).unwrap();
    assert_eq!(server_.early_data(), 0);

    // It comes before the answer, and is credited whatever the answer is.
    let told = feed(&mut server_, &[connect(1, false), frame(kind::DATA, 0, 1, b"early")].concat()).unwrap();
    assert_eq!(told[1..], [Told::Data(1, b"early".to_vec())]);
    assert_eq!(server_.room(1), Room::Never);
    server_.respond(1, StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), true).unwrap();
    server_.reset(1, Reason::NO_ERROR);
    server_.release(1, 5);
    assert_eq!(server_.unread(), 0);
    assert_eq!(feed(&mut server_, &frame(kind::DATA, 0, 1, b"more")).unwrap(), []);
}

#[test]
fn what_is_no_http2_is_told_at_the_first_wrong_byte() {
    let mut server_ = Connection::server(Config::server());
    assert_eq!(feed(&mut server_, b"PRI * HTTP/2.0\r\n"), Ok(vec![]));
    assert_eq!(ends(&mut server_, b"Host"), PROTOCOL);
    let mut server_ = Connection::server(Config::server());
    assert_eq!(ends(&mut server_, &[&PREFACE[..], &frame(kind::PING, 0, 0, &[0; 8])].concat()), PROTOCOL);
    let mut client_ = Connection::client(Config::client());
    output(&mut client_);
    assert_eq!(ends(&mut client_, &frame(kind::SETTINGS, flag::ACK, 0, &[])), PROTOCOL);
}

#[test]
fn a_tunnel_opens_carries_and_ends() {
    let mut server_ = server(Config::server());
    let told = feed(&mut server_, &connect(1, false)).unwrap();
    let (stream, request) = request(&told);
    assert_eq!((stream, request.method.as_str(), request.authority.as_deref()), (1, "CONNECT", Some("10.0.0.1:80")));
    assert_eq!(server_.room(1), Room::Never, "not answered");
    assert_eq!(server_.data(1, 1, false), Err(SendError::State(1)));
    server_.respond(1, StatusCode::OK, &HeaderMap::new(), false).unwrap();
    assert_eq!(server_.respond(1, StatusCode::OK, &HeaderMap::new(), false), Err(SendError::State(1)));
    assert_eq!(server_.data(1, 1, false), Err(SendError::OutputFirst));
    output(&mut server_);
    assert_eq!(server_.room(1), Room::Bytes(16_375));
    assert_eq!(server_.data(1, 5, false), Ok([0, 0, 5, 0, 0, 0, 0, 0, 1]));
    assert_eq!(server_.data(1, 0, true), Ok([0, 0, 0, 0, 1, 0, 0, 0, 1]));
    assert_eq!((server_.room(1), server_.streams()), (Room::Never, 1));
    // With padding, in one piece, and then the end.
    let told = feed(&mut server_, &frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x02hello\0\0")).unwrap();
    assert_eq!(told, [Told::Data(1, b"hello".to_vec()), other(Event::End { stream: 1 })]);
    assert_eq!((server_.streams(), server_.unread()), (0, 5));
    server_.release(1, 5);
    assert_eq!((server_.unread(), server_.window.owed), (0, 8));
}

#[test]
fn requests_that_are_no_connect_are_told_and_malformed_ones_are_not() {
    let head = |stream, list: &[(&str, &str)]| frame(kind::HEADERS, 5, stream, &fields(list));
    let mut server_ = server(Config::server());
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let told = feed(&mut server_, &head(1, &get)).unwrap();
    assert_eq!(request(&told).1.method, "GET");
    assert_eq!(told[1], other(Event::End { stream: 1 }));
    server_.respond(1, StatusCode::BAD_REQUEST, &HeaderMap::new(), true).unwrap();
    assert_eq!(server_.streams(), 0);
    assert_eq!(resets(&mut server_, &head(3, &get[..1]), 3), PROTOCOL);
    assert_eq!(resets(&mut server_, &head(5, &[CONNECT, &[(":path", "/")]].concat()), 5), PROTOCOL);
    // A body that is not what was said.
    let post =
        |stream, flags| frame(kind::HEADERS, flags, stream, &fields(&[&get[..], &[("content-length", "3")]].concat()));
    assert_eq!(resets(&mut server_, &post(7, 5), 7), PROTOCOL);
    feed(&mut server_, &post(9, 4)).unwrap();
    assert_eq!(resets(&mut server_, &frame(kind::DATA, 0, 9, b"four"), 9), PROTOCOL);
    feed(&mut server_, &post(11, 4)).unwrap();
    assert_eq!(resets(&mut server_, &frame(kind::DATA, 1, 11, b"2."), 11), PROTOCOL);
    feed(&mut server_, &post(13, 4)).unwrap();
    assert_eq!(feed(&mut server_, &frame(kind::DATA, 1, 13, b"3..")).unwrap().len(), 2);
    assert_eq!(server_.unread(), 2 + 3);
}

#[test]
fn frames_in_states_that_do_not_have_them() {
    let data = |stream| frame(kind::DATA, 0, stream, b"x");
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    let update = |stream, more: u32| frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    // Idle.
    for idle in
        [data(3), reset(3), update(3, 1), data(2), connect(2, false), frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])]
    {
        assert_eq!(ends(&mut tunnel(), &idle), PROTOCOL, "{idle:?}");
    }
    // Half-closed by the peer.
    for late in [data(1), connect(1, true)] {
        let mut server_ = tunnel();
        feed(&mut server_, &frame(kind::DATA, 1, 1, b"")).unwrap();
        assert_eq!(resets(&mut server_, &late, 1), CLOSED);
    }
    // Closed by both.
    for late in [data(1), connect(1, true)] {
        let mut server_ = tunnel();
        feed(&mut server_, &frame(kind::DATA, 1, 1, b"")).unwrap();
        server_.data(1, 0, true).unwrap();
        assert_eq!(
            feed(&mut server_, &[update(1, 1), reset(1), frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 9, 0])].concat()),
            Ok(vec![])
        );
        assert_eq!(ends(&mut server_, &late), CLOSED);
    }
    // Reset by the peer.
    let mut server_ = tunnel();
    feed(&mut server_, &reset(1)).unwrap();
    assert_eq!(ends(&mut server_, &data(1)), CLOSED);
    // Reset by us: what is on the way is ignored, and counted.
    let mut server_ = tunnel();
    feed(&mut server_, &frame(kind::DATA, 0, 1, b"12345")[..11]).unwrap();
    server_.reset(1, Reason::CANCEL);
    let late =
        [&b"345"[..], &data(1), &update(1, 1), &frame(kind::HEADERS, 5, 1, &fields(&[("a", "b")])), &reset(1)].concat();
    assert_eq!(feed(&mut server_, &late).unwrap(), []);
    assert_eq!((server_.unread(), server_.window.owed), (2, 4));
    server_.release(1, 2);
    assert_eq!((server_.unread(), server_.window.owed), (0, 6));
    // Headers in the middle, an end that is none.
    assert_eq!(resets(&mut tunnel(), &frame(kind::HEADERS, 4, 1, &fields(&[("a", "b")])), 1), PROTOCOL);
    let told = feed(&mut tunnel(), &frame(kind::HEADERS, 5, 1, &fields(&[("a", "b")]))).unwrap();
    assert_eq!(told, [other(Event::End { stream: 1 })]);
    // Within a header block.
    let mut server_ = tunnel();
    feed(&mut server_, &frame(kind::HEADERS, 0, 3, &fields(CONNECT))).unwrap();
    assert_eq!(ends(&mut server_, &frame(99, 0, 0, &[])), PROTOCOL);
    assert_eq!(ends(&mut tunnel(), &frame(kind::CONTINUATION, 4, 1, &[])), PROTOCOL);
}

#[test]
fn windows_bind_the_peer() {
    let config = Config { initial_window: 70_000, connection_window: 140_000, ..Config::server() };
    let mut server_ = server(config);
    feed(&mut server_, &[connect(1, false), connect(3, false)].concat()).unwrap();
    feed(&mut server_, &frame(kind::DATA, 0, 1, &[0; 70_000])).unwrap();
    assert_eq!(resets(&mut server_, &frame(kind::DATA, 0, 1, &[0]), 1), FLOW);
    feed(&mut server_, &frame(kind::DATA, 0, 3, &[0; 69_999])).unwrap();
    assert_eq!(ends(&mut server_, &frame(kind::DATA, 0, 3, &[0])), FLOW);
}

#[test]
fn windows_bind_us() {
    let update = |stream, more: u32| frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    let settings = |window: u32| frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
    let mut server_ = tunnel();
    for _ in 0..4 {
        assert_eq!(server_.room(1), Room::Bytes(16_375));
        server_.data(1, 16_375, false).unwrap();
    }
    assert_eq!(server_.room(1), Room::Bytes(35));
    assert_eq!(server_.data(1, 36, false), Err(SendError::NoRoom));
    server_.data(1, 35, false).unwrap();
    assert_eq!(server_.room(1), Room::Stream);
    assert_eq!(feed(&mut server_, &update(1, 10)).unwrap(), [other(Event::StreamRoom { stream: 1 })]);
    assert_eq!(feed(&mut server_, &update(1, 10)).unwrap(), [], "nobody waits");
    assert_eq!(server_.room(1), Room::Connection);
    assert_eq!(feed(&mut server_, &update(0, 15)).unwrap(), [other(Event::ConnectionRoom)]);
    assert_eq!(server_.room(1), Room::Bytes(15));
    server_.data(1, 15, false).unwrap();
    feed(&mut server_, &update(0, 100)).unwrap();
    // A smaller window makes it negative.
    feed(&mut server_, &settings(65_500)).unwrap();
    assert_eq!(server_.room(1), Room::Stream);
    assert_eq!(feed(&mut server_, &update(1, 30)).unwrap(), []);
    assert_eq!(
        feed(&mut server_, &settings(65_505)).unwrap(),
        [other(Event::StreamRoom { stream: 1 }), other(Event::Settings)]
    );
    assert_eq!(server_.room(1), Room::Bytes(5));
    // What cannot be.
    assert_eq!(resets(&mut server_, &update(1, 0), 1), PROTOCOL);
    assert_eq!(ends(&mut tunnel(), &update(0, 0)), PROTOCOL);
    assert_eq!(resets(&mut tunnel(), &update(1, LARGEST), 1), FLOW);
    assert_eq!(ends(&mut tunnel(), &update(0, LARGEST)), FLOW);
    assert_eq!(ends(&mut tunnel(), &settings(LARGEST + 1)), FLOW);
    let mut server_ = tunnel();
    feed(&mut server_, &update(1, LARGEST - 65_535)).unwrap();
    assert_eq!(ends(&mut server_, &settings(65_536)), FLOW);
}

#[test]
fn settings_that_cannot_be() {
    let setting = |name: u8, value: u32| frame(kind::SETTINGS, 0, 0, &[&[0, name][..], &value.to_be_bytes()].concat());
    for wrong in [setting(2, 2), setting(5, 16_383), setting(5, 1 << 24)] {
        assert_eq!(ends(&mut tunnel(), &wrong), PROTOCOL);
    }
    assert_eq!(ends(&mut client(Config::client()), &setting(2, 1)), PROTOCOL);
    assert_eq!(feed(&mut tunnel(), &setting(99, 7)).unwrap().len(), 1);
    assert_eq!(ends(&mut tunnel(), &frame(kind::SETTINGS, flag::ACK, 0, &[])), PROTOCOL);
}

#[test]
fn a_server_goes_away_in_two_steps() {
    let mut server_ = tunnel();
    server_.go_away();
    let sent = frames(&output(&mut server_));
    assert_eq!(sent[0].3, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!((sent[1].0, sent[1].1), (kind::PING, 0));
    // On its way before the peer knew.
    request(&feed(&mut server_, &connect(3, true)).unwrap());
    assert_eq!(feed(&mut server_, &frame(kind::PING, flag::ACK, 0, &sent[1].3)).unwrap(), []);
    assert_eq!(frames(&output(&mut server_)), [(kind::GOAWAY, 0, 0, vec![0, 0, 0, 3, 0, 0, 0, 0])]);
    // After it knew.
    let late = [connect(5, false), frame(kind::DATA, 1, 5, b"x"), connect(7, true)].concat();
    assert_eq!(feed(&mut server_, &late).unwrap(), []);
    assert!(!server_.is_done());
    server_.reset(1, Reason::CANCEL);
    server_.respond(3, StatusCode::OK, &HeaderMap::new(), true).unwrap();
    assert!(server_.is_done());
}

#[test]
fn streams_that_a_peer_going_away_did_not_look_at_may_be_tried_elsewhere() {
    let mut client_ = client(Config::client());
    for stream in [1, 3, 5] {
        assert_eq!(client_.connect("a:1", &HeaderMap::new()), Ok(stream));
    }
    let go_away = frame(kind::GOAWAY, 0, 0, &[&[0, 0, 0, 1, 0, 0, 0, 0xb][..], b"too much\n"].concat());
    assert_eq!(
        feed(&mut client_, &go_away).unwrap(),
        [
            other(Event::GoAway { last_stream: 1, reason: Reason::ENHANCE_YOUR_CALM, debug: "too much ".into() }),
            other(Event::NotProcessed { stream: 3 }),
            other(Event::NotProcessed { stream: 5 }),
        ]
    );
    assert_eq!(client_.connect("a:1", &HeaderMap::new()), Err(SendError::GoingAway));
    client_.reset(1, Reason::CANCEL);
    assert!(client_.is_done());
}

#[test]
fn a_client_takes_the_response_and_nothing_before_it() {
    let head = |status, flags| frame(kind::HEADERS, flags, 1, &fields(&[(":status", status), ("a", "b")]));
    let open = || {
        let mut client_ = client(Config::client());
        client_.connect("a:1", &HeaderMap::new()).unwrap();
        output(&mut client_);
        client_
    };
    let mut client_ = open();
    assert_eq!(client_.room(1), Room::Bytes(16_375), "before the answer, who dares");
    let told = feed(&mut client_, &[head("103", 4), head("200", 4), frame(kind::DATA, 0, 1, b"x")].concat()).unwrap();
    assert!(
        matches!(&told[0], Told::Other(Event::Response { stream: 1, status: StatusCode::OK, headers }) if headers["a"] == "b")
    );
    assert_eq!(told[1..], [Told::Data(1, b"x".to_vec())]);
    for wrong in [
        head("101", 4),
        head("103", 5),
        frame(kind::DATA, 0, 1, b"x"),
        frame(kind::HEADERS, 4, 1, &fields(&[("a", "b")])),
    ] {
        let mut client_ = open();
        let told = feed(&mut client_, &wrong).unwrap();
        assert!(
            matches!(told[..], [Told::Other(Event::Failed { stream: 1, reason: Reason::PROTOCOL_ERROR, .. })]),
            "{told:?}"
        );
    }
    assert_eq!(ends(&mut open(), &frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])), PROTOCOL);
    assert_eq!(ends(&mut open(), &frame(kind::HEADERS, 4, 2, &fields(&[(":status", "200")]))), PROTOCOL);
    assert_eq!(feed(&mut open(), &head("403", 5)).unwrap()[1], other(Event::End { stream: 1 }));
}

#[test]
fn as_many_streams_as_both_want() {
    let mut server_ = server(Config { max_streams: 2, ..Config::server() });
    feed(&mut server_, &[connect(1, false), connect(3, false)].concat()).unwrap();
    assert_eq!(resets(&mut server_, &connect(5, false), 5), Some(Reason::REFUSED_STREAM));
    feed(&mut server_, &frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])).unwrap();
    request(&feed(&mut server_, &connect(7, false)).unwrap());

    let mut client_ = client(Config { max_streams: 5, ..Config::client() });
    feed(&mut client_, &frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1])).unwrap();
    client_.connect("a:1", &HeaderMap::new()).unwrap();
    assert_eq!(client_.connect("a:1", &HeaderMap::new()), Err(SendError::Full { limit: 1 }));
    client_.reset(1, Reason::CANCEL);
    assert_eq!(client_.connect("a:1", &HeaderMap::new()), Ok(3));
    client_.last = LARGEST;
    client_.reset(3, Reason::CANCEL);
    assert_eq!(client_.may_open(), Err(SendError::NoIdentifiers));
}

#[test]
fn a_slow_reader_does_not_stop_its_neighbours() {
    let mut server_ = server(Config { initial_window: 70_000, connection_window: 140_000, ..Config::server() });
    feed(&mut server_, &[connect(1, false), connect(3, false)].concat()).unwrap();
    feed(&mut server_, &frame(kind::DATA, 0, 1, &[0; 70_000])).unwrap();
    server_.set_connection_window(140_000 + server_.unread());
    for _ in 0..20 {
        output(&mut server_);
        feed(&mut server_, &frame(kind::DATA, 0, 3, &[0; 70_000])).unwrap();
        server_.release(3, 70_000);
    }
    assert_eq!(server_.unread(), 70_000);
}

#[test]
fn an_idle_connection_is_small() {
    // Apart from its streams, 48 bytes each, it has no memory of its own when nothing is on its way.
    assert!(size_of::<Connection>() <= 512, "{}", size_of::<Connection>());
    let server_ = server(Config::server());
    assert_eq!(server_.output.capacity() + server_.partial.capacity() + server_.decoder.table.entries().len(), 0);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut server_ = tunnel();
    feed(&mut server_, &frame(kind::HEADERS, 0, 3, &fields(CONNECT))).unwrap();
    let state = server_.export().unwrap();
    assert_eq!(Connection::import(&state).unwrap().export().unwrap(), state);
    for length in 0..state.len() {
        assert_eq!(Connection::import(&state[..length]).err(), Some(crate::ImportError::Short), "{length}");
    }
    assert_eq!(Connection::import(&[&state[..], &[0]].concat()).err(), Some(crate::ImportError::Long));
    assert_eq!(Connection::import(&[1]).err(), Some(crate::ImportError::Version(1)));
    server_.close(Reason::NO_ERROR, "enough");
    assert_eq!(server_.export().err(), Some(crate::ExportError::Over));
}
