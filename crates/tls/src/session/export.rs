//! A session as a value that another process can go on with.
//!
//! Its bytes, version 1, numbers most significant byte first:
//!
//! | bytes | what | accepted |
//! | --- | --- | --- |
//! | 1 | version | 1 |
//! | 2 | cipher suite (RFC 8446 B.4) | 0x1301, 0x1302 |
//! | 1 | role | 0 client, 1 server |
//! | 1 | sending | 0 open, 1 ended |
//! | 1 | receiving | 0 open, 1 closed, 2 failed |
//! | 1 | KeyUpdate due | 0 none, 1 not requested, 2 requested |
//! | 2 | alert due | 0 none, else 256 + its number |
//! | 1 | peer was asked for a KeyUpdate | 0, 1 |
//! | 1 | records without data in a row | 0 to 32 |
//! | 1 + 4 | handshake message that has begun: bytes that came, and those bytes, then zeros | what one can begin with |
//! | 4 | bytes of a ticket to come | 0 to 131337, only a client's, only without the above |
//! | 8 + 32 or 48 | sealing: number of the next record, secret | any |
//! | 8 + 32 or 48 | opening: the same | any |
//!
//! It belongs to whoever may read the connection's bytes: it is its key. One that is imported twice seals different
//! records with the same nonce, which gives their content and the key for forging away. So exporting takes the session, and
//! importing the value.

use rustls::{AlertDescription, CipherSuite};
use zeroize::Zeroizing;

use super::message::Message;
use super::{KeyUpdateRequest, MAX_WITHOUT_DATA, Receiving, Role, Session, State};
use crate::keys::{Suite, TrafficSecret};
use crate::record::{Limits, Opener, Sealer};

const VERSION: u8 = 1;
/// Bytes before the secrets.
const FIXED: usize = 20;
const MESSAGE: usize = 4;

/// All of a session. What was sealed and not sent, or received and not opened, is the caller's to hand over with it.
#[derive(Debug)]
pub struct Exported {
    role: Role,
    state: State,
    sealing: (TrafficSecret, u64),
    opening: (TrafficSecret, u64),
}

/// Why bytes are no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Made by a version of this software that writes something else.
    #[error("the session is written in version {0}; version {VERSION} is known")]
    Version(u8),
    /// A suite that is not one of ours.
    #[error("the session has the unknown cipher suite {0:#06x}")]
    Suite(u16),
    /// More or less than it should be.
    #[error("the session has {found} bytes instead of {expected}")]
    Length {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A field holds what it cannot.
    #[error("the session's {0} cannot be what it is")]
    Field(&'static str),
    /// The library refuses.
    #[error("keys cannot be made")]
    Internal,
}

impl Session {
    /// Ends the session here, for it to go on elsewhere. Any time is right: nothing has to be finished first.
    pub fn export(self) -> Exported {
        Exported {
            role: self.role,
            state: self.state,
            sealing: self.sealer.into_parts(),
            opening: self.opener.into_parts(),
        }
    }

    /// Goes on with a session that has ended elsewhere.
    pub fn import(exported: Exported) -> Result<Self, ImportError> {
        let Exported { role, state, sealing, opening } = exported;
        let limits = Limits::of(sealing.0.suite());
        let sealer = Sealer::new(sealing.0, sealing.1, limits).map_err(|_| ImportError::Internal)?;
        let opener = Opener::new(opening.0, opening.1, limits).map_err(|_| ImportError::Internal)?;
        Ok(Self { role, sealer, opener, state })
    }
}

impl Exported {
    /// The value as bytes, wiped when they are dropped.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let State { sent_last, receiving, message, without_data, asked, due_update, due_alert } = &self.state;
        let suite = self.sealing.0.suite();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length(suite)));
        bytes.push(VERSION);
        bytes.extend(u16::from(suite.name()).to_be_bytes());
        bytes.push(u8::from(self.role == Role::Server));
        bytes.push(u8::from(*sent_last));
        bytes.push(match receiving {
            Receiving::Open => 0,
            Receiving::Closed => 1,
            Receiving::Failed => 2,
        });
        bytes.push(due_update.map_or(0, |request| 1 + request as u8));
        bytes.extend(due_alert.map_or(0, |alert| 256 + u16::from(u8::from(alert))).to_be_bytes());
        bytes.extend([u8::from(*asked), *without_data]);
        let (header, skip) = message.parts();
        let mut padded = [0; MESSAGE];
        padded.iter_mut().zip(header).for_each(|(place, byte)| *place = *byte);
        bytes.push(u8::try_from(header.len()).unwrap_or_default());
        bytes.extend(padded);
        bytes.extend(skip.to_be_bytes());
        for (secret, number) in [&self.sealing, &self.opening] {
            bytes.extend(number.to_be_bytes());
            bytes.extend(secret.bytes());
        }
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, and nothing else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImportError> {
        let whole = Err(ImportError::Length { found: bytes.len(), expected: length(Suite::Aes128GcmSha256) });
        let Some((&version, _)) = bytes.split_first() else { return whole };
        if version != VERSION {
            return Err(ImportError::Version(version));
        }
        let Some((fixed, secrets)) = bytes.split_first_chunk::<FIXED>() else { return whole };
        let &[_, s1, s0, role, sent, receiving, update, a1, a0, asked, without_data, have, h0, h1, h2, h3, skip @ ..] =
            fixed;

        let suite = u16::from_be_bytes([s1, s0]);
        let suite = Suite::of(CipherSuite::from(suite)).ok_or(ImportError::Suite(suite))?;
        let expected = length(suite);
        if bytes.len() != expected {
            return Err(ImportError::Length { found: bytes.len(), expected });
        }
        let role = if flag(role, "role")? { Role::Server } else { Role::Client };
        let state = State {
            sent_last: flag(sent, "sending state")?,
            receiving: match receiving {
                0 => Receiving::Open,
                1 => Receiving::Closed,
                2 => Receiving::Failed,
                _ => return Err(ImportError::Field("receiving state")),
            },
            message: message([h0, h1, h2, h3], have, u32::from_be_bytes(skip), role)
                .ok_or(ImportError::Field("handshake message"))?,
            without_data: (without_data <= MAX_WITHOUT_DATA)
                .then_some(without_data)
                .ok_or(ImportError::Field("count of records without data"))?,
            asked: flag(asked, "question for a KeyUpdate")?,
            due_update: match update {
                0 => None,
                1 => Some(KeyUpdateRequest::NotRequested),
                2 => Some(KeyUpdateRequest::Requested),
                _ => return Err(ImportError::Field("KeyUpdate")),
            },
            due_alert: match [a1, a0] {
                [0, 0] => None,
                [1, alert] => Some(AlertDescription::from(alert)),
                _ => return Err(ImportError::Field("alert")),
            },
        };
        let (sealing, opening) = secrets.split_at_checked(secrets.len() / 2).ok_or(ImportError::Field("secrets"))?;
        Ok(Self { role, state, sealing: direction(sealing, suite)?, opening: direction(opening, suite)? })
    }
}

/// How long a session with this suite is.
fn length(suite: Suite) -> usize {
    FIXED + 2 * (size_of::<u64>() + suite.secret_length())
}

fn flag(byte: u8, name: &'static str) -> Result<bool, ImportError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ImportError::Field(name)),
    }
}

fn message(padded: [u8; MESSAGE], have: u8, skip: u32, role: Role) -> Option<Message> {
    let (header, zeros) = padded.split_at_checked(usize::from(have))?;
    let message = Message::of(header, skip, role)?;
    zeros.iter().all(|byte| *byte == 0).then_some(message)
}

fn direction(bytes: &[u8], suite: Suite) -> Result<(TrafficSecret, u64), ImportError> {
    let (number, secret) = bytes.split_first_chunk().ok_or(ImportError::Field("secrets"))?;
    let secret = TrafficSecret::new(suite, Zeroizing::new(secret.to_vec())).ok_or(ImportError::Field("secrets"))?;
    Ok((secret, u64::from_be_bytes(*number)))
}
