//! The messages as bytes. No I/O: the connections drive it, and so do the tests that feed it with garbage.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use prost::Message as _;

use super::{Ask, Kind, Place, SuccessionError};
use crate::packets::{MOST_BYTES, MOST_FDS, Packet};

/// What is spoken here. A predecessor that does not know a version refuses its hello.
pub const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(uint32, tag = "1")]
    Hello(u32),
    #[prost(message, tag = "2")]
    Take(Take),
    #[prost(string, tag = "3")]
    Serving(String),
    #[prost(string, tag = "4")]
    Forget(String),
    #[prost(message, tag = "5")]
    Ready(()),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Take {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(uint64, tag = "2")]
    inode: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    /// Empty: done.
    #[prost(string, tag = "1")]
    error: String,
    /// In the order of the descriptors.
    #[prost(message, repeated, tag = "2")]
    sockets: Vec<Socket>,
    /// Always set: an empty packet would look like the connection's end.
    #[prost(bool, tag = "3")]
    answered: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Socket {
    /// 1: TCP listener, 2: UDP.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    ip: Vec<u8>,
    #[prost(uint32, tag = "3")]
    port: u32,
}

/// A question's bytes.
pub fn write_ask(ask: &Ask) -> Result<Vec<u8>, SuccessionError> {
    let what = match ask {
        Ask::Hello { version } => What::Hello(*version),
        Ask::Take { uid, inode } => What::Take(Take { uid: uid.clone(), inode: *inode }),
        Ask::Serving { uid } => What::Serving(uid.clone()),
        Ask::Forget { uid } => What::Forget(uid.clone()),
        Ask::Ready => What::Ready(()),
    };
    encode(&Question { what: Some(what) })
}

/// Reads a question.
pub fn read_ask(packet: &Packet) -> Result<Ask, SuccessionError> {
    if packet.truncated || !packet.fds.is_empty() {
        return Err(bad("a question that is too long, or with descriptors"));
    }
    let question = Question::decode(packet.bytes.as_slice()).map_err(|error| bad(&error.to_string()))?;
    let uid = |uid: String| if uid.is_empty() { Err(bad("an empty uid")) } else { Ok(uid) };
    match question.what.ok_or_else(|| bad("a question that is not known"))? {
        What::Hello(VERSION) => Ok(Ask::Hello { version: VERSION }),
        What::Hello(version) => Err(bad(&format!("version {version}: {VERSION} is accepted"))),
        What::Take(take) => Ok(Ask::Take { uid: uid(take.uid)?, inode: take.inode }),
        What::Serving(served) => Ok(Ask::Serving { uid: uid(served)? }),
        What::Forget(forgotten) => Ok(Ask::Forget { uid: uid(forgotten)? }),
        What::Ready(()) => Ok(Ask::Ready),
    }
}

/// An answer's bytes; reasons are cut to what fits.
pub fn write_answer(answer: Result<Vec<Place>, String>) -> Result<Vec<u8>, SuccessionError> {
    let message = match answer {
        Ok(places) if places.len() > MOST_FDS => return Err(bad("too many sockets")),
        Ok(places) => Answer { error: String::new(), sockets: places.iter().map(socket).collect(), answered: true },
        Err(mut error) => {
            error.truncate(error.floor_char_boundary(MOST_BYTES - 16));
            // Empty would mean done.
            let error = if error.is_empty() { "failed".to_owned() } else { error };
            Answer { error, sockets: Vec::new(), answered: true }
        }
    };
    encode(&message)
}

/// Reads an answer. [`SuccessionError::Refused`] leaves the connection of use.
pub fn read_answer(packet: Packet) -> Result<Vec<(Place, OwnedFd)>, SuccessionError> {
    if packet.truncated {
        return Err(bad("an answer that is too long"));
    }
    let answer = Answer::decode(packet.bytes.as_slice()).map_err(|error| bad(&error.to_string()))?;
    if answer.sockets.len() != packet.fds.len() {
        return Err(bad("not one descriptor for each socket"));
    }
    if !answer.answered {
        return Err(bad("an answer that is not known"));
    }
    if !answer.error.is_empty() {
        return Err(SuccessionError::Refused(answer.error));
    }
    answer.sockets.iter().map(place).zip(packet.fds).map(|(place, fd)| Ok((place?, fd))).collect()
}

fn socket(place: &Place) -> Socket {
    let ip = match place.address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let kind = match place.kind {
        Kind::Tcp => 1,
        Kind::Udp => 2,
    };
    Socket { kind, ip, port: place.address.port().into() }
}

fn place(socket: &Socket) -> Result<Place, SuccessionError> {
    let kind = match socket.kind {
        1 => Kind::Tcp,
        2 => Kind::Udp,
        other => return Err(bad(&format!("a socket of kind {other}"))),
    };
    let v4 = <[u8; 4]>::try_from(socket.ip.as_slice()).map(IpAddr::from);
    let ip = v4.or_else(|_| <[u8; 16]>::try_from(socket.ip.as_slice()).map(IpAddr::from));
    let ip = ip.map_err(|_| bad("an address that is neither 4 nor 16 bytes"))?;
    let port = u16::try_from(socket.port).map_err(|_| bad("a port above 65535"))?;
    Ok(Place { kind, address: SocketAddr::new(ip, port) })
}

fn encode(message: &impl prost::Message) -> Result<Vec<u8>, SuccessionError> {
    let bytes = message.encode_to_vec();
    if bytes.len() <= MOST_BYTES { Ok(bytes) } else { Err(bad("a message that is too long")) }
}

fn bad(what: &str) -> SuccessionError {
    SuccessionError::Protocol(what.to_owned())
}
