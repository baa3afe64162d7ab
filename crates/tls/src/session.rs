//! A connection after its handshake: both directions, and all that is not application data. Without I/O.
//!
//! | what comes | what is done | alert where it is wrong | RFC 8446 |
//! | --- | --- | --- | --- |
//! | application data | a range of the caller's buffer. Not between parts of a handshake message | unexpected_message | 5.1 |
//! | KeyUpdate | the next record is opened with the next keys; so it has to end its record | unexpected_message | 4.6.3, 5.1 |
//! | … of another length, value | – | decode_error, illegal_parameter | 4.6.3 |
//! | … update_requested | one KeyUpdate is due, however often it is asked for; no application data before it | – | 4.6.3 |
//! | NewSessionTicket | passed over, not read: 14 to 131337 bytes; in any parts; to clients only | decode_error, unexpected_message | 4.6.1 |
//! | CertificateRequest, any other handshake message | none was offered: refused by its first byte | unexpected_message | 4.6.2 |
//! | alert close_notify | the peer's direction has ended; what comes behind it is not looked at; ours stays open | – | 6.1 |
//! | alert user_canceled | nothing | – | 6.1 |
//! | any other alert, whatever its level | both directions have ended | none is sent | 6.2 |
//! | an alert of another length than 2 | – | decode_error | 5.1 |
//! | records without application data in a row | at most 32: empty ones, and all of the above | unexpected_message | – |
//! | end of the stream without close_notify | [`SessionError::Truncated`] | none is sent | 6.1 |
//!
//! What has to be sent because of all that is a KeyUpdate and an alert at most: [`Session::due`] says that there is
//! something, [`Session::seal_due`] seals it. The peer learns of an error of its own in the same way. The caller sends
//! records in the order in which they were sealed; then a KeyUpdate of ours, sealed with the last key of one generation,
//! comes before the first record of the next.
//!
//! State: per direction a secret, a number and whether it is open; the first bytes of a handshake message (at most 4) and
//! how much of a ticket is to be passed over; what is due. That is all of a connection, and [`Exported`] is the same.

use std::io;
use std::ops::Range;

use aws_lc_rs::error::Unspecified;
use rustls::AlertDescription;

use crate::keys::TrafficSecret;
use crate::record::{ContentType, Limits, Opener, Record, RecordError, SealError, Sealer};
use message::{Event, Message};

mod export;
mod message;

pub use export::{Exported, ImportError};
pub use message::MessageError;

/// Records without application data that may come in a row.
pub const MAX_WITHOUT_DATA: u8 = 32;
/// Room that [`Session::seal_due`] needs, bytes: a KeyUpdate (5) and an alert (2), each with header, type and tag.
pub const MAX_DUE: usize = 5 + 2 + 2 * (crate::record::HEADER + crate::record::TRAILER);

/// Which side of the handshake this was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sent the ClientHello.
    Client,
    /// Answered it.
    Server,
}

/// What a KeyUpdate asks of its receiver (RFC 8446 section 4.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KeyUpdateRequest {
    /// Nothing.
    NotRequested = 0,
    /// A KeyUpdate of its own.
    Requested = 1,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A part of the record is missing; nothing was changed.
    Incomplete,
    /// Application data.
    Data {
        /// How many bytes the record takes.
        length: usize,
        /// Where the data is. Not empty.
        data: Range<usize>,
    },
    /// Nothing for the application. Look whether something is [due](Session::due).
    Other {
        /// How many bytes the record takes.
        length: usize,
    },
    /// The peer has ended its direction with close_notify; what else there is does not count.
    Closed,
}

/// Why a session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A record is wrong.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What a record holds is wrong.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The peer keeps us busy.
    #[error("more than {MAX_WITHOUT_DATA} records without application data came in a row")]
    WithoutData,
    /// The peer ended the connection. As the first record of a client's session: it does not accept the client.
    #[error("the peer ended the connection with the alert {0:?}")]
    Alert(AlertDescription),
    /// The stream ended without close_notify: something may be missing.
    #[error("the connection ended without close_notify: what came may not be all")]
    Truncated,
    /// There was an error before.
    #[error("the session has failed before")]
    Failed,
    /// The library refuses.
    #[error("keys cannot be made")]
    Internal,
}

impl SessionError {
    /// What the peer is to be told, if anything. [`Session::seal_due`] seals it.
    pub fn alert(self) -> Option<AlertDescription> {
        match self {
            Self::Record(error) => Some(error.alert()),
            Self::Message(error) => Some(error.alert()),
            Self::WithoutData => Some(AlertDescription::UnexpectedMessage),
            Self::Internal => Some(AlertDescription::InternalError),
            Self::Alert(_) | Self::Truncated | Self::Failed => None,
        }
    }
}

impl From<Unspecified> for SessionError {
    fn from(_: Unspecified) -> Self {
        Self::Internal
    }
}

/// As rustls' own streams tell it: a peer's alert is a [`rustls::Error`] inside.
impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Alert(alert) => Self::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert)),
            SessionError::Truncated => Self::new(io::ErrorKind::UnexpectedEof, error),
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Session {
    role: Role,
    sealer: Sealer,
    opener: Opener,
    state: State,
}

/// All but secrets, numbers and role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// Whether an alert was sealed, or a fatal one came.
    sent_last: bool,
    receiving: Receiving,
    message: Message,
    without_data: u8,
    /// Whether the peer was asked for a KeyUpdate since its last one, because its key is used up.
    asked: bool,
    due_update: Option<KeyUpdateRequest>,
    due_alert: Option<AlertDescription>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Open,
    Closed,
    Failed,
}

impl State {
    const NEW: Self = Self {
        sent_last: false,
        receiving: Receiving::Open,
        message: Message::NONE,
        without_data: 0,
        asked: false,
        due_update: None,
        due_alert: None,
    };
}

impl Session {
    /// A session with the secrets of its handshake; `sealed` records were sent with this side's already. Each pair of
    /// secrets makes one session of each role and no other: see [`Sealer::new`].
    pub fn new(role: Role, client: TrafficSecret, server: TrafficSecret, sealed: u64) -> Result<Self, Unspecified> {
        let limits = Limits::of(client.suite());
        Self::with_limits(role, client, server, sealed, limits)
    }

    /// As [`new`](Self::new), with other limits.
    pub fn with_limits(
        role: Role,
        client: TrafficSecret,
        server: TrafficSecret,
        sealed: u64,
        limits: Limits,
    ) -> Result<Self, Unspecified> {
        let (own, peers) = match role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        Ok(Self {
            role,
            sealer: Sealer::new(own, sealed, limits)?,
            opener: Opener::new(peers, 0, limits)?,
            state: State::NEW,
        })
    }

    /// Seals `length` bytes of application data that lie in `slot` where [`Sealer::seal`] wants them. Returns how long the record is.
    ///
    /// Errors: [`SealError::KeyUpdateDue`] until [`seal_due`](Self::seal_due) was called; [`SealError::Ended`] after an alert.
    pub fn seal(&mut self, slot: &mut [u8], length: usize) -> Result<usize, SealError> {
        self.may_seal()?;
        self.sealer.seal(slot, ContentType::ApplicationData, length)
    }

    fn may_seal(&self) -> Result<(), SealError> {
        if self.state.sent_last || self.state.due_alert.is_some() {
            return Err(SealError::Ended);
        }
        if self.state.due_update.is_some() { Err(SealError::KeyUpdateDue) } else { Ok(()) }
    }

    /// Opens the record that `bytes` begin with, where it lies.
    ///
    /// Errors end the session: what the peer is to be told is [due](Self::due), all later calls fail.
    pub fn open(&mut self, bytes: &mut [u8]) -> Result<Received, SessionError> {
        match self.state.receiving {
            Receiving::Open => {}
            Receiving::Closed => return Ok(Received::Closed),
            Receiving::Failed => return Err(SessionError::Failed),
        }
        self.receive(bytes).inspect_err(|error| self.fail(*error))
    }

    /// The stream has ended. Error: without close_notify, or after an error.
    pub fn end_of_stream(&mut self) -> Result<(), SessionError> {
        match self.state.receiving {
            Receiving::Closed => Ok(()),
            Receiving::Failed => Err(SessionError::Failed),
            Receiving::Open => {
                self.fail(SessionError::Truncated);
                Err(SessionError::Truncated)
            }
        }
    }

    /// Has the next [`seal_due`](Self::seal_due) update this direction's keys; the peer may be asked for the same. A KeyUpdate that is due already does for both.
    pub fn update_keys(&mut self, request: KeyUpdateRequest) {
        // What is due already, an answer for example, does for it.
        self.state.due_update.get_or_insert(request);
    }

    /// Ends this side's direction: the next [`seal_due`](Self::seal_due) seals close_notify. Nothing can be sealed any more.
    pub fn close_notify(&mut self) {
        if !self.state.sent_last && self.state.due_alert.is_none() {
            self.state.due_alert = Some(AlertDescription::CloseNotify);
        }
    }

    /// Whether something has to be sent. Cheap; to be asked before sealing, and after each call of [`open`](Self::open).
    pub fn due(&self) -> bool {
        !self.state.sent_last
            && (self.state.due_update.is_some() || self.state.due_alert.is_some() || self.sealer.update_due())
    }

    /// Seals what is due into `room`, which has [`MAX_DUE`] bytes. Returns how long it is: 0 when nothing is due.
    pub fn seal_due(&mut self, room: &mut [u8]) -> Result<usize, SealError> {
        if !self.due() {
            return Ok(0);
        }
        if room.len() < MAX_DUE {
            return Err(SealError::Room(room.len()));
        }
        let mut sealed = 0;
        let update = self.state.due_update.or(self.sealer.update_due().then_some(KeyUpdateRequest::NotRequested));
        if let Some(request) = update {
            sealed = self.seal_message(room, ContentType::Handshake, &message::key_update(request))?;
            self.sealer.update()?;
            self.state.due_update = None;
        }
        if let Some(alert) = self.state.due_alert {
            let (_, room) = room.split_at_mut_checked(sealed).ok_or(SealError::Internal)?;
            sealed += self.seal_message(room, ContentType::Alert, &message::alert(alert))?;
            self.state.due_alert = None;
            self.state.sent_last = true;
        }
        Ok(sealed)
    }

    fn seal_message(&mut self, room: &mut [u8], kind: ContentType, content: &[u8]) -> Result<usize, SealError> {
        let end = crate::record::HEADER + content.len();
        let place = room.get_mut(crate::record::HEADER..end).ok_or(SealError::Room(0))?;
        place.copy_from_slice(content);
        self.sealer.seal(room, kind, content.len())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<Received, SessionError> {
        let Some(Record { length, kind, content }) = self.opener.open(bytes)? else { return Ok(Received::Incomplete) };
        let inner = bytes.get(content.clone()).unwrap_or_default();
        match kind {
            ContentType::ApplicationData => {
                self.state.message.must_be_whole()?;
                if self.opener.update_overdue() && !self.state.asked {
                    self.update_keys(KeyUpdateRequest::Requested);
                    self.state.asked = self.state.due_update == Some(KeyUpdateRequest::Requested);
                }
                if !inner.is_empty() {
                    self.state.without_data = 0;
                    return Ok(Received::Data { length, data: content });
                }
            }
            ContentType::Handshake => self.handshake(inner)?,
            ContentType::Alert => match message::read_alert(inner)? {
                AlertDescription::CloseNotify => {
                    self.state.message.must_be_whole()?;
                    self.state.receiving = Receiving::Closed;
                    return Ok(Received::Closed);
                }
                AlertDescription::UserCanceled => self.state.message.must_be_whole()?,
                fatal => return Err(SessionError::Alert(fatal)),
            },
        }
        if self.state.without_data == MAX_WITHOUT_DATA {
            return Err(SessionError::WithoutData);
        }
        self.state.without_data += 1;
        Ok(Received::Other { length })
    }

    fn handshake(&mut self, content: &[u8]) -> Result<(), SessionError> {
        if let Some(Event::KeyUpdate(request)) = self.state.message.read(content, self.role)? {
            self.opener.update()?;
            self.state.asked = false;
            // Takes the place of a question of ours that was not sent yet: the peer's key is new.
            if request == KeyUpdateRequest::Requested {
                self.state.due_update = Some(KeyUpdateRequest::NotRequested);
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: SessionError) {
        self.state.receiving = Receiving::Failed;
        self.state.message = Message::NONE;
        self.state.due_update = None;
        // It takes the place of a close_notify that is due. After one that was sealed it is not sent: that was our last.
        self.state.due_alert = error.alert().or(self.state.due_alert);
        self.state.sent_last |= matches!(error, SessionError::Alert(_));
    }
}

#[cfg(test)]
mod tests;
