//! A connection alone with bytes (`wire`), two against each other (`model`), and what floods do (`floods`).

mod floods;
mod model;
mod wire;

use http::{HeaderMap, StatusCode};

use super::*;
use crate::frame::{flag, kind, put};
use crate::{Event, Room, hpack};

/// All events of some bytes, as owned values: pieces of DATA as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Data(u32, Vec<u8>),
    Other(Event<'static>),
}

fn feed(connection: &mut Connection, mut bytes: &[u8]) -> Result<Vec<Told>, ConnectionError> {
    let mut all = Vec::new();
    while let Some(event) = connection.receive(&mut bytes)? {
        all.push(match event {
            Event::Data { stream, bytes } => Told::Data(stream, bytes.to_vec()),
            Event::Request { stream, request } => Told::Other(Event::Request { stream, request }),
            Event::Response { stream, status, headers } => Told::Other(Event::Response { stream, status, headers }),
            Event::End { stream } => Told::Other(Event::End { stream }),
            Event::Reset { stream, reason } => Told::Other(Event::Reset { stream, reason }),
            Event::Failed { stream, reason, why } => Told::Other(Event::Failed { stream, reason, why }),
            Event::StreamRoom { stream } => Told::Other(Event::StreamRoom { stream }),
            Event::ConnectionRoom => Told::Other(Event::ConnectionRoom),
            Event::Pong { payload } => Told::Other(Event::Pong { payload }),
            Event::GoAway { last_stream, reason, debug } => Told::Other(Event::GoAway { last_stream, reason, debug }),
            Event::NotProcessed { stream } => Told::Other(Event::NotProcessed { stream }),
            Event::Settings => Told::Other(Event::Settings),
            Event::SettingsAcknowledged => Told::Other(Event::SettingsAcknowledged),
        });
    }
    assert!(bytes.is_empty());
    Ok(all)
}

fn output(connection: &mut Connection) -> Vec<u8> {
    let bytes = connection.output().to_vec();
    connection.output_taken(bytes.len());
    assert!(!connection.has_output());
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, flags, stream, payload);
    bytes
}

fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::put_field(&mut block, name, value.as_bytes(), false));
    block
}

const CONNECT: &[(&str, &str)] = &[(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

/// A HEADERS frame that is complete.
fn connect(stream: u32, end: bool) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | u8::from(end), stream, &fields(CONNECT))
}

/// A server that is past the exchange of SETTINGS.
fn server(config: Config) -> Connection {
    let mut server = Connection::server(config);
    let start = [&PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[]), &frame(kind::SETTINGS, flag::ACK, 0, &[])].concat();
    let told = feed(&mut server, &start).unwrap();
    assert_eq!(told, [Told::Other(Event::Settings), Told::Other(Event::SettingsAcknowledged)]);
    output(&mut server);
    server
}

/// A client likewise.
fn client(config: Config) -> Connection {
    let mut client = Connection::client(config);
    let start = [frame(kind::SETTINGS, 0, 0, &[]), frame(kind::SETTINGS, flag::ACK, 0, &[])].concat();
    assert_eq!(feed(&mut client, &start).unwrap().len(), 2);
    output(&mut client);
    client
}

/// The frames in some bytes.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let head = frame::Head::parse(*head);
        let (payload, rest) = rest.split_at(head.length as usize);
        all.push((head.kind, head.flags, head.stream, payload.to_vec()));
        bytes = rest;
    }
    all
}

/// The reason of the GOAWAY that bytes lead to.
fn ends(connection: &mut Connection, bytes: &[u8]) -> Option<Reason> {
    let error = feed(connection, bytes).err()?;
    let last = frames(connection.output()).pop().unwrap();
    assert_eq!((last.0, &last.3[4..8]), (kind::GOAWAY, &error.reason.0.to_be_bytes()[..]));
    assert!(connection.is_done() && connection.export().is_err());
    Some(error.reason)
}

/// The reason of the RST_STREAM that bytes lead to.
fn resets(connection: &mut Connection, bytes: &[u8], stream: u32) -> Option<Reason> {
    feed(connection, bytes).unwrap();
    let sent = frames(&output(connection));
    let reset = sent.into_iter().find(|(kind, _, of, _)| *kind == kind::RST_STREAM && *of == stream)?;
    Some(Reason(u32::from_be_bytes(reset.3.try_into().ok()?)))
}
