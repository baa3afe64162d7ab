//! What the two ends may say, and when: bytes in, requests and answers out. No I/O; the connections drive it, and so
//! do the tests that feed it with garbage.

use prost::Message as _;

use super::{MAX_MESSAGE_BYTES, PodInfo, Request, ZdsError};
use crate::proto::istio::workload::zds as wire;
use wire::workload_request::Payload;
use wire::workload_response::Payload as Answer;

pub use crate::packets::Packet;

fn without_fds(packet: &Packet) -> Result<&[u8], ZdsError> {
    if packet.truncated {
        return Err(protocol("a truncated packet"));
    }
    if !packet.fds.is_empty() {
        return Err(protocol("a descriptor with a message that has none"));
    }
    Ok(&packet.bytes)
}

/// Tunnel side: reads requests and checks their order.
#[derive(Debug, Default)]
pub struct Tunnel {
    snapshot_ended: bool,
    outstanding: bool,
}

impl Tunnel {
    /// Before a request may be read: none is outstanding.
    pub fn idle(&self) -> Result<(), ZdsError> {
        match self.outstanding {
            true => Err(protocol("the request before is not answered")),
            false => Ok(()),
        }
    }

    /// Reads a request. [`ZdsError::Protocol`]: this peer is of no use any more.
    pub fn request(&mut self, mut packet: Packet) -> Result<Request, ZdsError> {
        self.idle()?;
        let fd = packet.fds.pop();
        let bytes = without_fds(&packet)?;
        let message = wire::WorkloadRequest::decode(bytes).map_err(|error| protocol(&error.to_string()))?;
        let request = match (message.payload, fd) {
            (None, _) => return Err(protocol("a request that is not known")),
            (Some(Payload::Add(add)), Some(netns)) => {
                let info = add.workload_info.ok_or_else(|| protocol("add without workload_info"))?;
                let info =
                    PodInfo { name: info.name, namespace: info.namespace, service_account: info.service_account };
                Request::Add { uid: uid(add.uid)?, info, netns }
            }
            (Some(Payload::Add(_)), None) => return Err(protocol("add without a descriptor")),
            (Some(_), Some(_)) => return Err(protocol("a descriptor with a message that has none")),
            (Some(Payload::Keep(_)), None) if self.snapshot_ended => return Err(protocol("keep after the snapshot")),
            (Some(Payload::Keep(keep)), None) => Request::Keep { uid: uid(keep.uid)? },
            (Some(Payload::Del(del)), None) => Request::Del { uid: uid(del.uid)? },
            (Some(Payload::SnapshotSent(_)), None) if self.snapshot_ended => {
                return Err(protocol("a second end of the snapshot"));
            }
            (Some(Payload::SnapshotSent(_)), None) => {
                self.snapshot_ended = true;
                Request::SnapshotSent
            }
        };
        self.outstanding = true;
        Ok(request)
    }

    /// The message that answers the outstanding request; reasons are cut to what fits.
    pub fn answer(&mut self, result: Result<(), String>) -> Result<Vec<u8>, ZdsError> {
        if !self.outstanding {
            return Err(protocol("an answer to no request"));
        }
        self.outstanding = false;
        let error = match result {
            Ok(()) => String::new(),
            // Empty would mean done.
            Err(why) if why.is_empty() => "failed".to_owned(),
            Err(why) => shorten(why),
        };
        encode(&wire::WorkloadResponse { payload: Some(Answer::Ack(wire::Ack { error })) })
    }
}

/// The first message of a tunnel.
pub fn hello() -> Result<Vec<u8>, ZdsError> {
    encode(&wire::ZdsHello { version: wire::Version::V1.into() })
}

/// Agent side: reads the first message of a tunnel.
pub fn read_hello(packet: &Packet) -> Result<(), ZdsError> {
    let hello = wire::ZdsHello::decode(without_fds(packet)?).map_err(|error| protocol(&error.to_string()))?;
    match wire::Version::try_from(hello.version) {
        Ok(wire::Version::V1) => Ok(()),
        _ => Err(protocol(&format!("version {}: 1 is accepted", hello.version))),
    }
}

/// Hands a pod over; its namespace travels beside the message.
pub fn add(uid: &str, info: &PodInfo) -> Result<Vec<u8>, ZdsError> {
    let info = wire::WorkloadInfo {
        name: info.name.clone(),
        namespace: info.namespace.clone(),
        service_account: info.service_account.clone(),
    };
    request(Payload::Add(wire::AddWorkload { uid: uid.to_owned(), workload_info: Some(info) }))
}

/// Names a pod whose namespace is not at hand.
pub fn keep(uid: &str) -> Result<Vec<u8>, ZdsError> {
    request(Payload::Keep(wire::KeepWorkload { uid: uid.to_owned() }))
}

/// Takes a pod away.
pub fn del(uid: &str) -> Result<Vec<u8>, ZdsError> {
    request(Payload::Del(wire::DelWorkload { uid: uid.to_owned() }))
}

/// Ends the snapshot.
pub fn snapshot_sent() -> Result<Vec<u8>, ZdsError> {
    request(Payload::SnapshotSent(wire::SnapshotSent {}))
}

/// Agent side: reads the answer to a request. Every error but [`ZdsError::Refused`] ends the connection.
pub fn read_answer(packet: &Packet) -> Result<(), ZdsError> {
    let answer = wire::WorkloadResponse::decode(without_fds(packet)?).map_err(|error| protocol(&error.to_string()))?;
    match answer.payload {
        Some(Answer::Ack(ack)) if ack.error.is_empty() => Ok(()),
        Some(Answer::Ack(ack)) => Err(ZdsError::Refused(ack.error)),
        None => Err(protocol("an answer that is not known")),
    }
}

fn request(payload: Payload) -> Result<Vec<u8>, ZdsError> {
    encode(&wire::WorkloadRequest { payload: Some(payload) })
}

fn encode(message: &impl prost::Message) -> Result<Vec<u8>, ZdsError> {
    let bytes = message.encode_to_vec();
    match bytes.len() {
        ..=MAX_MESSAGE_BYTES => Ok(bytes),
        bytes => Err(ZdsError::TooLong { bytes }),
    }
}

fn uid(text: String) -> Result<String, ZdsError> {
    match text.is_empty() {
        true => Err(protocol("an empty uid")),
        false => Ok(text),
    }
}

/// Room for the message around it.
fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES - 16));
    text
}

pub(super) fn protocol(what: &str) -> ZdsError {
    ZdsError::Protocol(what.to_owned())
}
