//! Handshake messages and alerts after the handshake: read byte by byte as they come, so that nothing is kept of a
//! message but its header, and written. RFC 8446 sections 4, 4.6 and 6.

use rustls::AlertDescription;

use super::{KeyUpdateRequest, Role};

/// `msg_type`(1) and `length`(3).
const HEADER: usize = 4;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Lifetime (4), age_add (4), nonce (1 + 0), ticket (2 + 1), extensions (2 + 0).
const MIN_TICKET: u32 = 14;
/// The same at their longest: 4 + 4 + (1 + 255) + (2 + 65535) + (2 + 65534).
const MAX_TICKET: u32 = 131_337;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Why a message after the handshake is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Nothing that may come after a handshake, or not to this role.
    #[error("a handshake message of the type {0} came after the handshake")]
    Type(u8),
    /// A message has a length that it cannot have.
    #[error("a handshake message of the type {0} cannot have {1} bytes")]
    Length(u8, u32),
    /// Neither requested nor not.
    #[error("a KeyUpdate has the request {0}")]
    Request(u8),
    /// Something follows that was sealed with the old key.
    #[error("a KeyUpdate does not end its record")]
    NotLast,
    /// Another record came before a message was whole.
    #[error("a handshake message is interrupted by a record of another type")]
    Interrupted,
    /// An alert record has not two bytes.
    #[error("an alert has {0} bytes")]
    Alert(usize),
}

impl MessageError {
    /// What the peer is to be told.
    pub fn alert(self) -> AlertDescription {
        match self {
            Self::Type(_) | Self::NotLast | Self::Interrupted => AlertDescription::UnexpectedMessage,
            Self::Length(..) | Self::Alert(_) => AlertDescription::DecodeError,
            Self::Request(_) => AlertDescription::IllegalParameter,
        }
    }
}

/// What a message means to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    KeyUpdate(KeyUpdateRequest),
}

/// The message that has begun, if one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Bytes of its header that have come; all 4 only of a KeyUpdate, whose only byte is missing.
    header: [u8; HEADER],
    have: usize,
    /// Bytes of a ticket that are still to come.
    skip: u32,
}

impl Message {
    pub(super) const NONE: Self = Self { header: [0; HEADER], have: 0, skip: 0 };

    /// Restores a message from what [`parts`](Self::parts) said. `None`: no message can be like that.
    pub(super) fn of(header: &[u8], skip: u32, role: Role) -> Option<Self> {
        let mut message = Self::NONE;
        if skip > 0 {
            message.skip = skip;
            return (header.is_empty() && skip <= MAX_TICKET && role == Role::Client).then_some(message);
        }
        message.read(header, role).ok()?;
        (message.have == header.len() && message.skip == 0).then_some(message)
    }

    /// The bytes of the header that have come, and those to be passed over.
    pub(super) fn parts(&self) -> (&[u8], u32) {
        (self.header.get(..self.have).unwrap_or_default(), self.skip)
    }

    /// Nothing but handshake records may come within a message (RFC 8446 section 5.1).
    pub(super) fn must_be_whole(&self) -> Result<(), MessageError> {
        if *self == Self::NONE { Ok(()) } else { Err(MessageError::Interrupted) }
    }

    /// Reads what a handshake record holds. A KeyUpdate is the last of its record: there is one at most.
    pub(super) fn read(&mut self, mut content: &[u8], role: Role) -> Result<Option<Event>, MessageError> {
        loop {
            let skipped = content.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            content = content.get(skipped..).unwrap_or_default();
            let Some((&byte, rest)) = content.split_first() else { return Ok(None) };
            content = rest;
            if let Some(place) = self.header.get_mut(self.have) {
                *place = byte;
                self.have += 1;
                self.header_byte(role)?;
                continue;
            }
            *self = Self::NONE;
            let request = match byte {
                0 => KeyUpdateRequest::NotRequested,
                1 => KeyUpdateRequest::Requested,
                other => return Err(MessageError::Request(other)),
            };
            return if content.is_empty() { Ok(Some(Event::KeyUpdate(request))) } else { Err(MessageError::NotLast) };
        }
    }

    /// Judges the header as soon as it can be: the type by itself, then the length.
    fn header_byte(&mut self, role: Role) -> Result<(), MessageError> {
        let [kind, length @ ..] = self.header;
        let known = kind == KEY_UPDATE || (kind == NEW_SESSION_TICKET && role == Role::Client);
        if !known {
            return Err(MessageError::Type(kind));
        }
        if self.have < HEADER {
            return Ok(());
        }
        let [high, middle, low] = length;
        let length = u32::from_be_bytes([0, high, middle, low]);
        match kind {
            KEY_UPDATE if length == 1 => Ok(()),
            NEW_SESSION_TICKET if (MIN_TICKET..=MAX_TICKET).contains(&length) => {
                *self = Self { skip: length, ..Self::NONE };
                Ok(())
            }
            _ => Err(MessageError::Length(kind, length)),
        }
    }
}

/// A KeyUpdate as it is sent.
pub(super) fn key_update(request: KeyUpdateRequest) -> [u8; HEADER + 1] {
    [KEY_UPDATE, 0, 0, 1, request as u8]
}

/// An alert as it is sent. Its level means nothing any more (RFC 8446 section 6); it is the one that was usual.
pub(super) fn alert(alert: AlertDescription) -> [u8; 2] {
    [if alert == AlertDescription::CloseNotify { WARNING } else { FATAL }, u8::from(alert)]
}

/// What an alert record holds: one alert.
pub(super) fn read_alert(content: &[u8]) -> Result<AlertDescription, MessageError> {
    let &[_, description] = content else { return Err(MessageError::Alert(content.len())) };
    Ok(AlertDescription::from(description))
}
