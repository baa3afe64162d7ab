//! The socket to the kernel: requests, lists, and what the kernel says about a refusal.
#![expect(unsafe_code, reason = "libc has no safe way to set a socket option that nix does not know")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::Error;
use crate::wire::{self, ACK, DUMP, HEADER, Message, REQUEST, Received};

/// How long the kernel may take for any one answer.
const DEADLINE: TimeVal = TimeVal::new(10, 0);
/// Room for one datagram; the kernel makes lists in pieces of at most 32 KiB.
const BUFFER: usize = 256 * 1024;
/// How often a list is asked for anew because it changed while it was read.
const TRIES: usize = 8;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Message flag: the list changed while it was made.
const INTERRUPTED: u16 = 0x10;
/// Flags of an error: the request is not repeated in full; attributes follow.
const CAPPED: u16 = 0x100;
const WITH_ATTRIBUTES: u16 = 0x200;
const EXPLANATION: u16 = 1;

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What the kernel said about one message.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) sequence: u32,
    pub(crate) outcome: Result<(), (io::Error, Option<String>)>,
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let failed = |error: nix::Error| Error::Socket { action: "open a socket".to_owned(), source: error.into() };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &DEADLINE).map_err(failed)?;
        setsockopt(&fd, sockopt::SendTimeout, &DEADLINE).map_err(failed)?;
        // Explanations are a help; an old kernel without them is fine.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            let size = size_of_val(&on) as libc::socklen_t;
            // SAFETY: `on` lives over the call and `size` is its size; the descriptor is open.
            unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), size) };
        }
        Ok(Self { fd, sequence: 1, buffer: vec![0; BUFFER] })
    }

    /// Room for requests of this size, as far as the kernel grants it.
    pub(crate) fn reserve(&self, bytes: usize) {
        let with_overhead = bytes.saturating_add(4096);
        if setsockopt(&self.fd, sockopt::SndBufForce, &with_overhead).is_err() {
            // The ordinary option is capped; the send says whether that was enough.
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &with_overhead);
        }
    }

    /// A sequence number that no earlier request had.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&self, bytes: &[u8], action: &str) -> Result<(), Error> {
        match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Socket { action: action.to_owned(), source: error.into() }),
        }
    }

    /// Receives one datagram and shows its messages until one yields a value.
    fn receive<T>(&mut self, action: &str, mut see: impl FnMut(Received<'_>) -> Option<T>) -> Result<Option<T>, Error> {
        let failed = |source: io::Error| Error::Socket { action: format!("receive the answer to: {action}"), source };
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => break length,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(failed(io::ErrorKind::TimedOut.into())),
                Err(error) => return Err(failed(error.into())),
            }
        };
        let datagram = self.buffer.get(..length).ok_or_else(|| Error::Answer { action: action.to_owned() })?;
        Ok(wire::messages(datagram).find_map(&mut see))
    }

    /// Waits for what the kernel says about any message sent.
    pub(crate) fn verdict(&mut self, action: &str) -> Result<Verdict, Error> {
        loop {
            if let Some(verdict) = self.receive(action, verdict_of)? {
                return Ok(verdict);
            }
        }
    }

    /// Sends a request and waits until it is done.
    pub(crate) fn request(&mut self, mut message: Message, action: &str) -> Result<(), Error> {
        message.add_flags(REQUEST | ACK);
        let sequence = self.start(message, action)?;
        loop {
            let verdict = self.verdict(action)?;
            if verdict.sequence == sequence {
                return verdict.into_result(action);
            }
        }
    }

    /// Sends a request that has an answer and reads it.
    pub(crate) fn ask<T>(
        &mut self,
        mut message: Message,
        action: &str,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<T, Error> {
        message.add_flags(REQUEST);
        let sequence = self.start(message, action)?;
        loop {
            let answer = self.receive(action, |message| {
                if message.sequence != sequence {
                    return None;
                }
                match verdict_of(message) {
                    Some(verdict) => Some(Err(verdict)),
                    None => Some(Ok(read(message.kind, message.payload))),
                }
            })?;
            match answer {
                Some(Ok(Some(value))) => return Ok(value),
                Some(Ok(None)) => return Err(Error::Answer { action: action.to_owned() }),
                Some(Err(verdict)) => {
                    verdict.into_result(action)?;
                    return Err(Error::Answer { action: action.to_owned() });
                }
                None => {}
            }
        }
    }

    /// Asks for a list and reads all of it. One that changed meanwhile is asked for again.
    pub(crate) fn list<T>(
        &mut self,
        message: &Message,
        action: &str,
        read: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..TRIES {
            let mut message = message.clone();
            message.add_flags(REQUEST | DUMP);
            let sequence = self.start(message, action)?;
            let (mut found, mut interrupted) = (Vec::new(), false);
            let end = loop {
                let end = self.receive(action, |message| {
                    if message.sequence != sequence {
                        return None;
                    }
                    interrupted |= message.flags & INTERRUPTED != 0;
                    let end = end_of_list(message);
                    if end.is_none() {
                        found.extend(read(message.kind, message.payload));
                    }
                    end
                })?;
                if let Some(end) = end {
                    break end;
                }
            };
            end.into_result(action)?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::Socket { action: action.to_owned(), source: io::ErrorKind::Interrupted.into() })
    }

    fn start(&mut self, message: Message, action: &str) -> Result<u32, Error> {
        let sequence = self.next_sequence();
        let invalid = || Error::Invalid { action: action.to_owned(), problem: "a value in it is too long".to_owned() };
        let bytes = message.finish(sequence).ok_or_else(invalid)?;
        self.send(&bytes, action)?;
        Ok(sequence)
    }
}

impl Verdict {
    pub(crate) fn into_result(self, action: &str) -> Result<(), Error> {
        self.outcome.map_err(|(source, explanation)| Error::Refused { action: action.to_owned(), explanation, source })
    }
}

fn verdict_of(message: Received<'_>) -> Option<Verdict> {
    (message.kind == ERROR).then(|| outcome_of(message))
}

/// The end of a list: the word that it is done (with an error number, usually 0), or an error.
fn end_of_list(message: Received<'_>) -> Option<Verdict> {
    matches!(message.kind, ERROR | DONE).then(|| outcome_of(message))
}

fn outcome_of(message: Received<'_>) -> Verdict {
    let sequence = message.sequence;
    let errno = wire::u32_at(message.payload, 0).map_or(0, |number| number.cast_signed().wrapping_neg());
    if errno == 0 {
        return Verdict { sequence, outcome: Ok(()) };
    }
    let mut explanation = None;
    if message.flags & WITH_ATTRIBUTES != 0 {
        // After the error number: the request's header, and the request itself if it is not capped.
        let request = match (message.kind, message.flags & CAPPED) {
            (DONE, _) => 0,
            (_, 0) => {
                wire::u32_at(message.payload, 4).and_then(|length| usize::try_from(length).ok()).unwrap_or(HEADER)
            }
            _ => HEADER,
        };
        let attributes = message.payload.get(4 + request.next_multiple_of(4)..).unwrap_or_default();
        explanation = wire::find(attributes, EXPLANATION).map(wire::text);
    }
    Verdict { sequence, outcome: Err((io::Error::from_raw_os_error(errno), explanation)) }
}
