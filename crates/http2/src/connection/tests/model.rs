//! Two connections in memory do random things in random pieces, with small windows. A model counts every byte and all
//! credit; whoever has to wait goes on only when told. In the end everything has arrived, or was reset.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// One direction of a stream, as its sender and its receiver see it.
#[derive(Default, Debug)]
struct Half {
    sent: u32,
    received: u32,
    ended: bool,
    end_received: bool,
}

#[derive(Debug)]
struct End {
    connection: Connection,
    /// What the other end will receive.
    wire: VecDeque<u8>,
    /// By stream: what this end sends.
    halves: BTreeMap<u32, Half>,
    /// By stream: what this end holds.
    unread: BTreeMap<u32, u32>,
    answered: Vec<u32>,
    over: Vec<u32>,
    waits: Vec<u32>,
    waits_for_connection: bool,
    pongs: u32,
    pings: u32,
    leaving: bool,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            wire: VecDeque::new(),
            halves: BTreeMap::new(),
            unread: BTreeMap::new(),
            answered: Vec::new(),
            over: Vec::new(),
            waits: Vec::new(),
            waits_for_connection: false,
            pongs: 0,
            pings: 0,
            leaving: false,
        }
    }

    fn flush(&mut self) {
        let bytes = output(&mut self.connection);
        self.wire.extend(bytes);
    }

    fn may_write(&self, stream: u32) -> bool {
        self.answered.contains(&stream) && self.halves.get(&stream).is_some_and(|half| !half.ended)
    }

    /// Sends some bytes of a stream. Whether anything happened.
    fn write(&mut self, stream: u32, bytes: u32, end: bool) -> bool {
        if !self.may_write(stream) || self.waits.contains(&stream) || self.waits_for_connection {
            return false;
        }
        let length = match self.connection.room(stream) {
            Room::Bytes(room) => room.min(bytes),
            Room::Stream => {
                self.waits.push(stream);
                return false;
            }
            Room::Connection => {
                self.waits_for_connection = true;
                return false;
            }
            Room::Never => panic!("stream {stream} takes nothing"),
        };
        self.flush();
        let head = self.connection.data(stream, length, end).unwrap();
        let half = self.halves.get_mut(&stream).unwrap();
        self.wire.extend(head);
        self.wire.extend((half.sent..half.sent + length).map(|place| content(stream, place)));
        half.sent += length;
        half.ended = end;
        true
    }

    /// Gives back what it holds of a stream, or some of it.
    fn release(&mut self, stream: u32, bytes: u32) -> bool {
        let Some(unread) = self.unread.get_mut(&stream) else { return false };
        let bytes = bytes.min(*unread);
        *unread -= bytes;
        self.connection.release(stream, bytes);
        bytes > 0
    }

    fn over(&mut self, stream: u32) {
        self.release(stream, u32::MAX);
        self.halves.remove(&stream);
        self.over.push(stream);
        self.waits.retain(|waiting| *waiting != stream);
    }
}

fn content(stream: u32, place: u32) -> u8 {
    (stream.wrapping_mul(31).wrapping_add(place) % 251) as u8
}

struct Pair {
    ends: [End; 2],
}

impl Pair {
    fn new(client: Config, server: Config) -> Self {
        Self { ends: [End::new(Connection::client(client)), End::new(Connection::server(server))] }
    }

    /// Moves up to this many bytes towards an end.
    fn deliver(&mut self, to: usize, bytes: usize) -> bool {
        self.ends[1 - to].flush();
        let wire = &mut self.ends[1 - to].wire;
        let bytes: Vec<u8> = wire.drain(..bytes.min(wire.len())).collect();
        for told in feed(&mut self.ends[to].connection, &bytes).unwrap() {
            self.told(to, told);
        }
        !bytes.is_empty()
    }

    fn told(&mut self, to: usize, told: Told) {
        let [ref mut end, ref mut other] = self.ends;
        let (end, other) = if to == 0 { (end, other) } else { (other, end) };
        let event = match told {
            Told::Data(stream, bytes) => {
                // A reset sender forgets what it sent; what is on the way may still come.
                let Some(half) = other.halves.get_mut(&stream) else {
                    return end.connection.release(stream, bytes.len() as u32);
                };
                for byte in &bytes {
                    assert_eq!(*byte, content(stream, half.received), "stream {stream} at {}", half.received);
                    half.received += 1;
                }
                *end.unread.entry(stream).or_default() += bytes.len() as u32;
                return;
            }
            Told::Other(event) => event,
        };
        match event {
            Event::Request { stream, request } => {
                assert_eq!(request.authority, Some(format!("host:{stream}")));
                end.halves.insert(stream, Half::default());
            }
            Event::Response { stream, status, .. } => {
                assert_eq!(status, StatusCode::OK);
                end.answered.push(stream);
            }
            Event::End { stream } => {
                if let Some(half) = other.halves.get_mut(&stream) {
                    assert!(half.ended && half.sent == half.received);
                    half.end_received = true;
                }
            }
            Event::Reset { stream, reason } => {
                // A client does not know the server's limit at first.
                assert!(reason == Reason::CANCEL || (to == 0 && reason == Reason::REFUSED_STREAM), "{reason}");
                end.over(stream);
            }
            Event::StreamRoom { stream } => {
                assert!(end.waits.contains(&stream), "nobody asked");
                end.waits.retain(|waiting| *waiting != stream);
            }
            Event::ConnectionRoom => assert!(std::mem::take(&mut end.waits_for_connection), "nobody asked"),
            Event::Pong { payload } => {
                end.pongs += 1;
                assert_eq!(payload, u64::from(end.pongs).to_be_bytes());
            }
            Event::NotProcessed { stream } => {
                end.over(stream);
            }
            Event::GoAway { reason, .. } => assert_eq!(reason, Reason::NO_ERROR),
            Event::Settings | Event::SettingsAcknowledged => {}
            other => panic!("{other:?}"),
        }
    }

    fn reset(&mut self, at: usize, stream: u32) {
        let end = &mut self.ends[at];
        if end.halves.contains_key(&stream) {
            end.connection.reset(stream, Reason::CANCEL);
            end.over(stream);
        }
    }

    fn streams(&self, at: usize) -> Vec<u32> {
        self.ends[at].halves.keys().copied().collect()
    }

    fn act(&mut self, action: Action) {
        let Action { what, at, which, amount } = action;
        let at = usize::from(at);
        let streams = self.streams(at);
        let stream = streams.get(usize::from(which) % streams.len().max(1)).copied().unwrap_or(0);
        let amount_bytes = u32::from(amount);
        let end = &mut self.ends[at];
        match what {
            0 if at == 0 && end.connection.may_open().is_ok() => {
                let next = end.connection.next();
                let opened = end.connection.connect(&format!("host:{next}"), &HeaderMap::new()).unwrap();
                assert_eq!(opened, next);
                end.halves.insert(opened, Half::default());
            }
            0 | 1 if at == 1 && end.halves.contains_key(&stream) && !end.answered.contains(&stream) => {
                end.connection.respond(stream, StatusCode::OK, &HeaderMap::new(), false).unwrap();
                end.answered.push(stream);
            }
            2..=5 => drop(end.write(stream, amount_bytes % 5000, false)),
            6 => drop(end.write(stream, amount_bytes % 100, true)),
            7..=10 => drop(self.deliver(at, usize::from(amount) % 9000)),
            11 => drop(self.deliver(at, usize::from(amount) % 12)),
            12..=14 => drop(end.release(stream, amount_bytes)),
            15 => end.connection.set_stream_window(stream, amount_bytes % 6000),
            16 => end.connection.set_connection_window(1000 + amount_bytes % 9000),
            17 => drop(end.connection.set_initial_window(amount_bytes % 6000)),
            18 if which < 40 => self.reset(at, stream),
            19 => {
                end.pings += 1;
                end.connection.ping(u64::from(end.pings).to_be_bytes());
            }
            20 => {
                let state = end.connection.export().unwrap();
                end.connection = Connection::import(&state).unwrap();
                assert_eq!(end.connection.export().unwrap(), state);
            }
            21 if which < 5 && amount < 5000 => {
                end.leaving = true;
                end.connection.go_away();
            }
            _ => {}
        }
        self.check();
    }

    /// What holds whatever happens.
    fn check(&self) {
        for (at, end) in self.ends.iter().enumerate() {
            assert_eq!(end.connection.unread(), end.unread.values().sum::<u32>(), "{at}");
            for stream in end.connection.streams.iter() {
                let window = &stream.window;
                let sum = i64::from(window.credit) + i64::from(window.unread) + i64::from(window.owed);
                assert!(sum <= i64::from(window.size), "credit from nothing: {stream:?}");
                assert!(stream.due || !window.is_due() || !stream.receives, "credit that is not told: {stream:?}");
            }
        }
    }

    /// Lets everything end by itself.
    fn finish(&mut self) {
        for end in &mut self.ends {
            // Windows may have become nothing.
            end.connection.set_connection_window(2000);
            for stream in end.halves.keys().copied().collect::<Vec<_>>() {
                end.connection.set_stream_window(stream, 700);
            }
        }
        for round in 0.. {
            let mut moved = false;
            for at in [0, 1] {
                for stream in self.streams(at) {
                    if at == 1 && !self.ends[1].answered.contains(&stream) {
                        self.ends[1].connection.respond(stream, StatusCode::OK, &HeaderMap::new(), false).unwrap();
                        self.ends[1].answered.push(stream);
                        self.ends[1].connection.set_stream_window(stream, 700);
                        moved = true;
                    }
                    moved |= self.ends[at].write(stream, 333, round > 5);
                    moved |= self.ends[at].release(stream, u32::MAX);
                }
                moved |= self.deliver(at, 777);
            }
            self.check();
            if !moved {
                break;
            }
            assert!(round < 100_000, "no end");
        }
        for (at, end) in self.ends.iter().enumerate() {
            // A reset that met a stream which had ended meanwhile says nothing to anybody.
            let over = |stream| self.ends[1 - at].over.contains(stream);
            let mut halves = end.halves.iter();
            assert!(halves.all(|(stream, half)| half.end_received || over(stream)), "{at}: {:#?}", self.ends);
            assert_eq!(end.connection.streams(), 0, "{end:?}");
            assert_eq!(end.connection.unread(), 0);
            assert_eq!((end.pings, end.connection.pings), (end.pongs, 0));
            assert!(!end.leaving || end.connection.is_done());
            // What one end may send is what the other one lets it, and nothing was lost.
            let window = &self.ends[1 - at].connection.window;
            assert_eq!(end.connection.send_window, window.credit);
            assert_eq!(i64::from(window.credit) + i64::from(window.owed), i64::from(window.size));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Action {
    what: u8,
    at: u8,
    which: u8,
    amount: u16,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let one = (0..22_u8, 0..2_u8, any::<u8>(), any::<u16>());
    prop::collection::vec(one.prop_map(|(what, at, which, amount)| Action { what, at, which, amount }), 0..400)
}

fn config(seed: u16, server: bool) -> Config {
    let base = if server { Config::server() } else { Config::client() };
    Config {
        initial_window: u32::from(seed) % 3000,
        connection_window: 500 + u32::from(seed) % 4000,
        max_streams: 1 + u32::from(seed % 7),
        max_data: 1 + u32::from(seed) % 1500,
        ..base
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_whatever_happens(client: u16, server: u16, actions in actions()) {
        let mut pair = Pair::new(config(client, false), config(server, true));
        actions.into_iter().for_each(|action| pair.act(action));
        pair.finish();
    }

    #[test]
    fn any_split_of_the_input_is_the_same(client: u16, server: u16, actions in actions(), cuts in prop::collection::vec(1..200_usize, 1..40)) {
        // What a client said in some run, to a server that answers nothing of it by itself.
        let mut pair = Pair::new(config(client, false), Config { max_streams: 100, ..Config::server() });
        let mut said = Vec::new();
        for action in actions {
            // Only what a client does alone.
            if action.at == 0 && !(7..=14).contains(&action.what) {
                pair.act(action);
            }
            if action.what == 7 {
                pair.ends[0].flush();
                let wire: Vec<u8> = pair.ends[0].wire.iter().copied().collect();
                said.extend_from_slice(&wire);
                pair.deliver(1, usize::MAX);
                for stream in pair.streams(1) {
                    pair.act(Action { what: 1, at: 1, which: 0, amount: 0 });
                    pair.ends[1].release(stream, u32::MAX);
                }
                pair.deliver(0, usize::MAX);
            }
        }
        // Padding, trailers and a block in pieces besides, on a stream that is still free.
        let next = pair.ends[0].connection.next();
        let block = fields(CONNECT);
        let (first, rest) = block.split_at(5);
        pair.ends[0].flush();
        said.extend(&pair.ends[0].wire);
        said.extend(frame(kind::HEADERS, flag::PADDED, next, &[&[3], first, &[0; 3]].concat()));
        said.extend(frame(kind::CONTINUATION, 0, next, &[]));
        said.extend(frame(kind::CONTINUATION, flag::END_HEADERS, next, rest));
        said.extend(frame(kind::DATA, flag::PADDED, next, b"\x05hello.....world....."));
        said.extend(frame(99, 0xff, next, &[7; 50]));
        said.extend(frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, next, &fields(&[("a", "b")])));
        said.extend(frame(kind::GOAWAY, 0, 0, &[&[0; 8][..], &[b'x'; 100]].concat()));
        let config = Config { max_streams: 1000, initial_window: 1 << 20, ..Config::server() };
        let whole = joined(feed(&mut Connection::server(config), &said).unwrap());
        let (mut split, mut pieces) = (Connection::server(config), Vec::new());
        let mut bytes = &said[..];
        for cut in cuts.iter().cycle() {
            let (piece, rest) = bytes.split_at((*cut).min(bytes.len()));
            pieces.extend(feed(&mut split, piece).unwrap());
            split = Connection::import(&split.export().unwrap()).unwrap();
            bytes = rest;
            if bytes.is_empty() {
                break;
            }
        }
        prop_assert_eq!(joined(pieces), whole);
        let _ = server;
    }
}

/// Pieces of DATA that follow each other are one.
fn joined(told: Vec<Told>) -> Vec<Told> {
    let mut all: Vec<Told> = Vec::new();
    for one in told {
        match (all.last_mut(), one) {
            (Some(Told::Data(of, bytes)), Told::Data(stream, more)) if *of == stream => bytes.extend(more),
            (_, one) => all.push(one),
        }
    }
    all
}
