//! Peers that make work: each bound of the crate's table.

use super::*;
use crate::SendError;

const CALM: Option<Reason> = Some(Reason::ENHANCE_YOUR_CALM);

#[test]
fn answers_that_nobody_reads_are_not_collected() {
    let ping = frame(kind::PING, 0, 0, &[7; 8]);
    let mut server_ = server(Config::server());
    for _ in 0..ANSWERS / 17 {
        feed(&mut server_, &ping).unwrap();
    }
    assert_eq!(ends(&mut server_, &ping), CALM);
    assert!(server_.output().len() < ANSWERS + 100);

    let mut server_ = server(Config::server());
    assert_eq!(ends(&mut server_, &frame(kind::SETTINGS, 0, 0, &[]).repeat(10_000)), CALM);

    // Who reads may ask for ever.
    let mut server_ = server(Config::server());
    for _ in 0..100_000 {
        feed(&mut server_, &ping).unwrap();
        output(&mut server_);
    }
}

#[test]
fn requests_that_are_taken_back_at_once_are_not_taken_for_ever() {
    let mut server_ = server(Config::server());
    let rapid = |stream| [connect(stream, false), frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
    let mut stream = 1;
    for _ in 0..PATIENCE {
        assert_eq!(feed(&mut server_, &rapid(stream)).unwrap().len(), 2);
        stream += 2;
    }
    server_.elapsed(1);
    for _ in 0..PATIENCE_PER_SECOND {
        feed(&mut server_, &rapid(stream)).unwrap();
        stream += 2;
    }
    assert_eq!(ends(&mut server_, &rapid(stream)), CALM);
}

#[test]
fn a_reset_after_the_answer_is_a_tunnel_that_broke_and_costs_nothing() {
    let mut server_ = server(Config::server());
    for stream in (1..10 * PATIENCE).step_by(2) {
        feed(&mut server_, &connect(stream, false)).unwrap();
        server_.respond(stream, StatusCode::OK, &HeaderMap::new(), false).unwrap();
        output(&mut server_);
        let told = feed(&mut server_, &frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])).unwrap();
        assert_eq!(told, [Told::Other(Event::Reset { stream, reason: Reason::CANCEL })]);
    }
}

#[test]
fn streams_that_the_peer_breaks_are_counted_as_well() {
    let mut server_ = server(Config::server());
    for stream in (1..=2 * PATIENCE).step_by(2) {
        let broken = [connect(stream, false), frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])].concat();
        assert_eq!(resets(&mut server_, &broken, stream), Some(Reason::PROTOCOL_ERROR));
    }
    assert_eq!(ends(&mut server_, &frame(kind::HEADERS, 4, 2 * PATIENCE + 1, &[])), CALM);
}

#[test]
fn header_blocks_are_bounded_in_bytes_and_frames() {
    let mut server_ = server(Config::server());
    let start = frame(kind::HEADERS, 0, 1, &fields(CONNECT));
    feed(&mut server_, &start).unwrap();
    assert_eq!(ends(&mut server_, &frame(kind::CONTINUATION, 0, 1, &[]).repeat(17)), CALM);

    let mut server_ = server(Config { max_header_list: 1000, ..Config::server() });
    feed(&mut server_, &start).unwrap();
    let more = frame(kind::CONTINUATION, 0, 1, &[0; 700]);
    feed(&mut server_, &more).unwrap();
    assert_eq!(ends(&mut server_, &more), CALM, "before it is there");
    assert!(server_.partial.capacity() + server_.block.map_or(0, |block| block.bytes.capacity()) == 0);
}

#[test]
fn a_list_that_is_too_large_costs_its_stream() {
    // Small on the wire: one field of the table, again and again.
    let mut server_ = Connection::server(Config { max_header_list: 10_000, ..Config::server() });
    feed(&mut server_, &[&PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[])].concat()).unwrap();
    let mut block = fields(CONNECT);
    block.extend_from_slice(b"\x40\x01a\x7f\xff\x0c");
    block.extend_from_slice(&[b'x'; 0x7f + 0x7f + (0x0c << 7)]);
    block.extend_from_slice(&[0xbe; 5000]);
    assert_eq!(
        resets(&mut server_, &frame(kind::HEADERS, flag::END_HEADERS, 1, &block), 1),
        Some(Reason::PROTOCOL_ERROR)
    );
    // The table is as the peer thinks it is.
    let again = [&fields(CONNECT)[..], &[0xbe]].concat();
    let told = feed(&mut server_, &frame(kind::HEADERS, flag::END_HEADERS, 3, &again)).unwrap();
    let [Told::Other(Event::Request { request, .. })] = &told[..] else { panic!("{told:?}") };
    assert!(request.headers["a"].len() > 1000);
}

#[test]
fn frames_that_bring_nothing_come_to_an_end() {
    for nothing in [
        frame(kind::DATA, 0, 1, &[]),
        frame(kind::DATA, flag::PADDED, 1, &[1, 0]),
        frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 0]),
        frame(99, 0, 0, &[1, 2, 3]),
        frame(kind::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1]),
        frame(kind::PING, flag::ACK, 0, &[0; 8]),
        frame(kind::GOAWAY, 0, 0, &[0; 8]),
    ] {
        let mut server_ = server(Config::server());
        feed(&mut server_, &[connect(1, false), connect(3, true)].concat()).unwrap();
        server_.respond(3, StatusCode::OK, &HeaderMap::new(), true).unwrap();
        for _ in 0..5000 {
            feed(&mut server_, &nothing).unwrap();
        }
        feed(&mut server_, &frame(kind::DATA, 0, 1, &[1])).unwrap();
        feed(&mut server_, &nothing.repeat(10_000)).unwrap();
        assert_eq!(ends(&mut server_, &nothing), CALM, "{nothing:?}");
    }
}

#[test]
fn too_many_settings_informational_responses_and_heads_are_refused() {
    let mut server_ = server(Config::server());
    assert_eq!(ends(&mut server_, &frame(kind::SETTINGS, 0, 0, &[0; 6 * 65])), CALM);

    let mut client_ = client(Config::client());
    let stream = client_.connect("a:1", &HeaderMap::new()).unwrap();
    output(&mut client_);
    let early = frame(kind::HEADERS, flag::END_HEADERS, stream, &fields(&[(":status", "103")]));
    assert_eq!(feed(&mut client_, &early.repeat(8)).unwrap(), []);
    assert_eq!(resets(&mut client_, &early, stream), Some(Reason::PROTOCOL_ERROR));

    let mut headers = HeaderMap::new();
    headers.insert("a", "x".repeat(5000).parse().unwrap());
    let mut client_ = client(Config::client());
    let opened = (0..100).map(|_| client_.connect("a:1", &headers)).take_while(Result::is_ok).count();
    assert_eq!(client_.may_open(), Err(SendError::OutputFull));
    assert!(opened * 5000 >= HEADS && client_.output().len() < HEADS + 6000);
    output(&mut client_);
    assert_eq!(client_.may_open(), Ok(()));
}

#[test]
fn credit_is_not_told_to_who_does_not_read_it() {
    let mut server_ = server(Config { initial_window: 10, connection_window: 10, ..Config::server() });
    feed(&mut server_, &connect(1, false)).unwrap();
    server_.respond(1, StatusCode::OK, &HeaderMap::new(), false).unwrap();
    server_.set_connection_window(1 << 20);
    for _ in 0..100_000 {
        // By more credit than it has read of.
        if feed(&mut server_, &frame(kind::DATA, 0, 1, &[1; 5])).is_err() {
            break;
        }
        server_.release(1, 5);
        server_.output();
    }
    assert!(server_.output().len() < ANSWERS + 100);
}

#[test]
fn requests_whose_refusals_nobody_reads_come_to_an_end() {
    let mut server_ = server(Config::server());
    for stream in (1..).step_by(2) {
        assert!(server_.output().len() < 2 * HEADS + 100);
        if feed(&mut server_, &connect(stream, false)).is_err() {
            break;
        }
        let _ = server_.respond(stream, StatusCode::BAD_REQUEST, &HeaderMap::new(), true);
        server_.reset(stream, Reason::NO_ERROR);
    }
    assert_eq!(server_.failure().map(|error| error.reason), CALM);
}
