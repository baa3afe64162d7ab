//! HTTP/2 (RFC 9113) for CONNECT streams (section 8.5), as either end: a state machine without I/O, clock, locks or tasks. One
//! thread owns a [`Connection`] and the buffers around it.
//!
//! # How it is driven
//!
//! ```text
//!             plaintext, in any split                         plaintext, in the order it was handed out
//!  peer ──▶ receive(&mut input) ──▶ Event …            output() ──┐
//!                │    DATA as it lies in the input               ├──▶ peer
//!                └──▶ release(stream, bytes)    room(), data() ──┘  9 bytes of head, then the caller's bytes
//! ```
//!
//! - [`Connection::receive`] takes bytes until there is something to tell. DATA is told piece by piece as it comes, never collected
//!   or copied; heads, header blocks and control frames that arrive in pieces are, within bounds.
//! - The caller writes [`Connection::output`] whenever there is some, and always before a DATA frame.
//! - DATA is not buffered here: [`Connection::room`] says how much may go, [`Connection::data`] takes the credit and gives the frame's
//!   head. Who got no room is told when there is ([`Event::StreamRoom`], [`Event::ConnectionRoom`]); nobody else is.
//! - Credit goes back only for what the caller says it has passed on ([`Connection::release`]); padding and what nobody reads goes back
//!   by itself. A WINDOW_UPDATE is sent once as much is owed as the peer may still send, and at least half of the window or 16 KiB.
//!   While it is not sent, the peer may send, or something is unread: no stream waits for ever, whatever windows change.
//! - One stream's window is changed by giving or withholding credit ([`Connection::set_stream_window`]), all of them by SETTINGS
//!   ([`Connection::set_initial_window`]). Readers that do not read stop their neighbours unless the connection's window grows by what they
//!   hold: [`Connection::set_connection_window`] with [`Connection::unread`] on top.
//! - Time is the caller's: how long SETTINGS may stay unacknowledged ([`Event::SettingsAcknowledged`]), a PING
//!   unanswered ([`Event::Pong`]), a graceful end unfinished ([`Connection::is_done`]). [`Connection::elapsed`] tells that time passes.
//! - [`Connection::export`] is the whole state as bytes, at any moment, also within a frame or a header block; [`Connection::import`]
//!   goes on from there in another process.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use http::{HeaderMap, StatusCode};
//! use stillmesh_http2::{Config, Connection, Event, Room};
//!
//! let (mut client, mut server) = (Connection::client(Config::client()), Connection::server(Config::server()));
//! let stream = client.connect("10.0.0.1:80", &HeaderMap::new())?;
//!
//! let wire = client.output().to_vec();
//! client.output_taken(wire.len());
//! let mut input = &wire[..];
//! while let Some(event) = server.receive(&mut input)? {
//!     if let Event::Request { stream, .. } = event {
//!         server.respond(stream, StatusCode::OK, &HeaderMap::new(), false)?;
//!     }
//! }
//!
//! let mut wire = server.output().to_vec();
//! server.output_taken(wire.len());
//! if let Room::Bytes(2..) = server.room(stream) {
//!     wire.extend(server.data(stream, 2, true)?);
//!     wire.extend(b"hi");
//! }
//! let (mut input, mut got) = (&wire[..], Vec::new());
//! while let Some(event) = client.receive(&mut input)? {
//!     if let Event::Data { stream, bytes } = event {
//!         got.extend_from_slice(bytes);
//!         client.release(stream, bytes.len() as u32);
//!     }
//! }
//! assert_eq!(got, b"hi");
//! # Ok(())
//! # }
//! ```
//!
//! # What of the RFCs
//!
//! | | |
//! | --- | --- |
//! | frames (9113 section 6) | all types; unknown ones are passed over; PRIORITY is ignored, but for a stream that depends on itself (7540 section 5.3.1: PROTOCOL_ERROR); PUSH_PROMISE is an error, a client sends SETTINGS_ENABLE_PUSH 0 |
//! | requests (8.3, 8.5) | a client sends CONNECT only; a server is told of every well-formed request, so that others are answered 400 |
//! | malformed (8.1.1, 8.2) | the stream is reset: pseudo-headers missing, twice, after others or not allowed; names not in lower case; values with control characters or space around them; headers of HTTP/1.1's connections; a body that is not as long as its content-length (not for CONNECT) |
//! | responses (8.1) | informational ones are passed over; trailers end a stream and are checked, but not told |
//! | closed streams (5.1) | frames for a stream that we reset are ignored; WINDOW_UPDATE and RST_STREAM are ignored on every closed stream; DATA and HEADERS are STREAM_CLOSED |
//! | GOAWAY (6.8) | sent in two steps by a server, with a PING between; received, streams that the peer has not looked at are told ([`Event::NotProcessed`]) |
//! | header compression (7541) | what we send uses no table and no Huffman; a peer may use a table until it has acknowledged SETTINGS_HEADER_TABLE_SIZE 0 |
//!
//! # Bounds
//!
//! What a peer may make us hold or do. Beyond a bound the connection ends with ENHANCE_YOUR_CALM, unless it says otherwise.
//!
//! | what | bound |
//! | --- | --- |
//! | streams at a time | [`Config::max_streams`]; REFUSED_STREAM. 48 bytes each |
//! | DATA that is not read | the windows; FLOW_CONTROL_ERROR, of the stream or of the connection |
//! | a frame | [`Config::max_frame`]; FRAME_SIZE_ERROR |
//! | a header block, compressed | [`Config::max_header_list`] and 261 bytes of padding and priority |
//! | a header list | [`Config::max_header_list`], counted as section 6.5.2 does; the stream is reset, PROTOCOL_ERROR |
//! | CONTINUATION frames of a block (CVE-2024-27316) | 16 |
//! | the compression's table | 4096 bytes until our SETTINGS are acknowledged, 0 from then on; COMPRESSION_ERROR |
//! | settings in a frame | 64 |
//! | answers that are not taken from the output: PING, SETTINGS, RST_STREAM (CVE-2019-9512, 9514, 9515) | 16 KiB |
//! | WINDOW_UPDATEs that are not taken from the output | none is added beyond 16 KiB |
//! | our own heads in the output | 256 KiB; [`SendError::OutputFull`] |
//! | resets of ours that are not taken from the output | 256 KiB more |
//! | requests reset before they were answered (CVE-2023-44487), streams that the peer broke or opened beyond the limit (CVE-2025-8671) | 1000; 1 comes back with each stream that ends well, 100 with each second of [`Connection::elapsed`] |
//! | frames in a row that bring nothing: empty or only padded DATA, unknown types, PRIORITY, what is for closed streams (CVE-2019-9518) | 10000 |
//! | informational responses to a request | 8; the stream is reset, PROTOCOL_ERROR |
//! | streams that we reset, remembered | 128; older ones are ignored without a look |
//! | text of a GOAWAY | [`DEBUG`] bytes |
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod connection;
mod error;
mod event;
mod frame;
mod head;
mod hpack;
mod reason;
mod streams;
mod window;

pub use connection::{Config, Connection, Role};
pub use error::{ConnectionError, ExportError, ImportError, SendError};
pub use event::{Event, Request, Room};
pub use frame::HEAD;
pub use reason::Reason;

/// The identifier of a setting that is not in the registry: what a server takes of a CONNECT's DATA before it has answered, bytes.
/// It keeps that until its answer is 200, and throws it away with any other; so does one that says nothing of it, perhaps, or it ends
/// the connection. From the range that RFC 7540 section 11.3 leaves to experiments; RFC 9113 section 6.5.2: who does not know it
/// ignores it.
pub const EARLY_DATA: u16 = 0xfed0;

/// What is kept of what a GOAWAY says for people, bytes.
pub const DEBUG: u32 = 64;
