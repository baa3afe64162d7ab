//! HTTP/2 as either end, and the state that one process hands to another.

use http::{HeaderMap, StatusCode};
use stillmesh_http2::{Config, Connection, Event};

/// What a client sends before anything else: preface, SETTINGS, and that ours are acknowledged. A server sends the same
/// without the preface.
const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

/// No output is larger: heads, answers and the rest that is in it, bytes.
const LARGEST: usize = 300 << 10;

/// Frames as a client sends them, after its SETTINGS.
pub(crate) fn server(input: &[u8]) -> bool {
    let mut server = Connection::server(Config::server());
    run(&mut server, START, usize::MAX);
    same_in_pieces(&server, input)
}

/// Frames as a server sends them, after its SETTINGS, to a client with three streams.
pub(crate) fn client(input: &[u8]) -> bool {
    let mut client = Connection::client(Config::client());
    run(&mut client, START.get(24..).expect("SETTINGS"), usize::MAX);
    for _ in 0..3 {
        client.connect("10.0.0.1:80", &HeaderMap::new()).expect("a stream");
    }
    same_in_pieces(&client, input)
}

/// A state as another process sends it. What is taken can go on with anything.
pub(crate) fn state(input: &[u8]) -> bool {
    let Ok(connection) = Connection::import(input) else { return false };
    let connection = moved(&connection);
    for stream in 0..8 {
        let mut connection = moved(&connection);
        connection.release(stream, 100);
        connection.set_stream_window(stream, 70_000);
        connection.set_initial_window(1 << 20);
        let _ = connection.connect("10.0.0.1:80", &HeaderMap::new());
        let _ = connection.respond(stream, StatusCode::OK, &HeaderMap::new(), false);
        connection.output();
        connection.output_taken(usize::MAX);
        let _ = connection.room(stream);
        let _ = connection.data(stream, 1, true);
        connection.reset(stream, stillmesh_http2::Reason::CANCEL);
        connection.go_away();
        connection.go_away_now();
        run(&mut connection, START, 1);
    }
    // The end of any header block, then some of everything.
    run(&mut moved(&connection), &[&[0, 0, 0, 9, 4, 0, 0, 0, 1], START].concat(), usize::MAX);
    true
}

/// The same connection in another process.
fn moved(connection: &Connection) -> Connection {
    let state = connection.export().expect("a state");
    let moved = Connection::import(&state).expect("a state that was exported");
    assert_eq!(moved.export(), Ok(state));
    moved
}

/// What comes in one piece and what comes in small ones to a connection that moves all the time is the same.
fn same_in_pieces(connection: &Connection, input: &[u8]) -> bool {
    let (whole, is_well) = run(&mut moved(connection), input, usize::MAX);
    assert_eq!(run(&mut moved(connection), input, 3), (whole.clone(), is_well));
    is_well && !whole.is_empty()
}

/// All that is told, in words, and whether the connection goes on.
fn run(connection: &mut Connection, input: &[u8], most: usize) -> (Vec<String>, bool) {
    let mut told = Vec::new();
    for mut piece in input.chunks(most) {
        loop {
            match connection.receive(&mut piece) {
                Ok(Some(event)) => tell(connection, event, &mut told),
                Ok(None) => break,
                Err(error) => {
                    assert!(connection.is_done() && connection.output().len() < LARGEST);
                    told.push(error.to_string());
                    return (told, false);
                }
            }
        }
        assert!(piece.is_empty() && connection.streams() <= 200);
        if most < input.len() {
            *connection = moved(connection);
        }
    }
    assert!(connection.output().len() < LARGEST);
    (told, true)
}

fn tell(connection: &mut Connection, event: Event<'_>, told: &mut Vec<String>) {
    match event {
        Event::Data { stream, bytes } => {
            assert!(!bytes.is_empty());
            // Pieces of one frame or of several are the same to a reader.
            let name = format!("{stream}: ");
            if told.last().is_none_or(|last| !last.starts_with(&name)) {
                told.push(name);
            }
            let text = bytes.iter().map(|byte| format!("{byte:02x}"));
            told.last_mut().expect("a text").extend(text);
            connection.release(stream, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Event::Request { stream, ref request } => {
            let status = if request.method == "CONNECT" { StatusCode::OK } else { StatusCode::BAD_REQUEST };
            told.push(format!("{event:?}"));
            // It may have been reset by what follows in the same piece.
            let _ = connection.respond(stream, status, &HeaderMap::new(), status != StatusCode::OK);
        }
        event => told.push(format!("{event:?}")),
    }
}
