//! The parts of a state, written and read.

use crate::connection::frames::INFORMATIONAL;
use crate::connection::receive::{CONTINUATIONS, Reading};
use crate::connection::{ANSWERS, Block, Connection, Leaving, Peer};
use crate::error::ImportError;
use crate::frame::{Head, LARGEST, LARGEST_MAX_FRAME, SMALLEST_MAX_FRAME, kind};
use crate::hpack::{Decoder, Table};
use crate::streams::{REMEMBERED, Stream, Streams};
use crate::window::Window;

/// Flags of a stream.
mod is {
    pub const RECEIVING: u8 = 1;
    pub const SENDING: u8 = 2;
    pub const ANSWERED: u8 = 4;
    pub const WAITING: u8 = 8;
    pub const DUE: u8 = 16;
    pub const BOUND: u8 = 32;
}

/// An error where something is not right.
pub(super) fn check(right: bool, what: &'static str) -> Result<(), ImportError> {
    if right { Ok(()) } else { Err(ImportError::Value(what)) }
}

/// Writes the parts.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn numbers(&mut self, values: &[u32]) {
        values.iter().for_each(|value| self.number(*value));
    }

    pub(super) fn signed(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Of something that is bounded to far less.
    pub(super) fn length(&mut self, value: usize) {
        self.number(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.length(value.len());
        self.0.extend_from_slice(value);
    }

    pub(super) fn optional(&mut self, value: Option<u32>) {
        self.byte(u8::from(value.is_some()));
        self.numbers(value.as_slice());
    }

    pub(super) fn window(&mut self, window: &Window) {
        self.number(window.size);
        self.signed(window.credit);
        self.number(window.unread);
        self.signed(window.owed);
    }

    pub(super) fn reading(&mut self, reading: Reading) {
        match reading {
            Reading::Preface => self.byte(0),
            Reading::Head => self.byte(1),
            Reading::Payload(head) => {
                self.byte(2);
                self.0.extend_from_slice(&head.bytes());
            }
            Reading::Padding { stream, left, end } => {
                self.byte(3);
                self.numbers(&[stream, left]);
                self.byte(u8::from(end));
            }
            Reading::Data { stream, left, padding, end } => {
                self.byte(4);
                self.numbers(&[stream, left, padding]);
                self.byte(u8::from(end));
            }
            Reading::Skip(left) => {
                self.byte(5);
                self.number(left);
            }
        }
    }

    pub(super) fn stream(&mut self, stream: &Stream) {
        self.number(stream.id);
        self.signed(stream.send_window);
        self.window(&stream.window);
        let flags = [
            (stream.receives, is::RECEIVING),
            (stream.sends, is::SENDING),
            (stream.answered, is::ANSWERED),
            (stream.waits, is::WAITING),
            (stream.due, is::DUE),
            (stream.content.is_some(), is::BOUND),
        ];
        self.byte(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
        self.byte(stream.informational);
        if let Some(content) = stream.content {
            self.0.extend_from_slice(&content.to_be_bytes());
        }
    }
}

/// Reads the parts, and checks each.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn chunk<const N: usize>(&mut self) -> Result<[u8; N], ImportError> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(ImportError::Short)?;
        self.0 = rest;
        Ok(*chunk)
    }

    pub(super) fn byte(&mut self) -> Result<u8, ImportError> {
        self.chunk().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, ImportError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ImportError::Value("a yes or no that is neither")),
        }
    }

    pub(super) fn number(&mut self) -> Result<u32, ImportError> {
        self.chunk().map(u32::from_be_bytes)
    }

    pub(super) fn signed(&mut self) -> Result<i32, ImportError> {
        self.chunk().map(i32::from_be_bytes)
    }

    pub(super) fn at_most(&mut self, most: u32) -> Result<u32, ImportError> {
        let number = self.number()?;
        check(number <= most, "a number that is too large")?;
        Ok(number)
    }

    pub(super) fn narrow<T: TryFrom<u32>>(&mut self, most: u32) -> Result<T, ImportError> {
        T::try_from(self.at_most(most)?).map_err(|_| ImportError::Value("a number that is too large"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ImportError> {
        let length = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(ImportError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn optional(&mut self, most: u32) -> Result<Option<u32>, ImportError> {
        if self.flag()? { self.at_most(most).map(Some) } else { Ok(None) }
    }

    /// As many as are said to follow.
    pub(super) fn many<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, ImportError>,
    ) -> Result<Vec<T>, ImportError> {
        let count = self.number()?;
        // Not reserved: that many may not be there.
        (0..count).map(|_| one(self)).collect()
    }

    pub(super) fn window(&mut self) -> Result<Window, ImportError> {
        let window = Window {
            size: self.at_most(LARGEST)?,
            credit: self.signed()?,
            unread: self.at_most(LARGEST)?,
            owed: self.signed()?,
        };
        let sum = i64::from(window.credit) + i64::from(window.unread) + i64::from(window.owed);
        check(sum <= i64::from(window.size), "more credit than its window has")?;
        Ok(window)
    }

    pub(super) fn reading(&mut self, max_frame: u32) -> Result<Reading, ImportError> {
        Ok(match self.byte()? {
            0 => Reading::Preface,
            1 => Reading::Head,
            2 => {
                let head = Head::parse(self.chunk()?);
                let known = head.kind <= kind::CONTINUATION && !matches!(head.kind, kind::DATA | kind::PUSH_PROMISE);
                check(known && head.length <= max_frame && head.check().is_ok(), "a frame that cannot be")?;
                Reading::Payload(head)
            }
            3 => Reading::Padding { stream: self.at_most(LARGEST)?, left: self.at_most(max_frame)?, end: self.flag()? },
            4 => Reading::Data {
                stream: self.at_most(LARGEST)?,
                left: self.at_most(max_frame)?,
                padding: self.at_most(255)?,
                end: self.flag()?,
            },
            5 => Reading::Skip(self.at_most(max_frame)?),
            _ => return Err(ImportError::Value("a state of reading")),
        })
    }

    pub(super) fn block(&mut self, max_header_list: u32) -> Result<Option<Block>, ImportError> {
        let end_stream = match self.byte()? {
            0 => return Ok(None),
            1 => false,
            2 => true,
            _ => return Err(ImportError::Value("a yes or no that is neither")),
        };
        let stream = self.at_most(LARGEST)?;
        let frames = self.byte()?;
        let bytes = self.bytes()?.to_vec();
        let right = frames <= CONTINUATIONS && bytes.len() <= max_header_list as usize + 261;
        check(right, "a header block that is too large")?;
        Ok(Some(Block { stream, end_stream, frames, bytes }))
    }

    pub(super) fn decoder(&mut self) -> Result<Decoder, ImportError> {
        let (forbidden, max) = (self.flag()?, self.number()? as usize);
        let entries = self.many(|from| Ok((from.bytes()?.into(), from.bytes()?.into())))?;
        let table = Table::restore(max, forbidden, entries.into());
        Ok(Decoder { table: table.ok_or(ImportError::Value("a table that is too large"))? })
    }

    pub(super) fn peer(&mut self) -> Result<Peer, ImportError> {
        let peer = Peer {
            initial_window: self.at_most(LARGEST)?,
            max_frame: self.at_most(LARGEST_MAX_FRAME)?,
            max_streams: self.number()?,
            max_header_list: self.number()?,
            early_data: self.number()?,
        };
        check(peer.max_frame >= SMALLEST_MAX_FRAME, "a SETTINGS_MAX_FRAME_SIZE that cannot be")?;
        Ok(peer)
    }

    pub(super) fn stream(&mut self) -> Result<Stream, ImportError> {
        let (id, send_window, window) = (self.at_most(LARGEST)?, self.signed()?, self.window()?);
        let (flags, informational) = (self.byte()?, self.byte()?);
        let has = |flag| flags & flag != 0;
        check(flags < 64 && (has(is::RECEIVING) || has(is::SENDING)), "the state of a stream")?;
        check(informational <= INFORMATIONAL, "a number that is too large")?;
        Ok(Stream {
            id,
            send_window,
            window,
            content: if has(is::BOUND) { Some(self.chunk().map(u64::from_be_bytes)?) } else { None },
            receives: has(is::RECEIVING),
            sends: has(is::SENDING),
            answered: has(is::ANSWERED),
            waits: has(is::WAITING),
            due: has(is::DUE),
            informational,
        })
    }

    /// From the streams on.
    pub(super) fn rest(&mut self, mut connection: Connection) -> Result<Connection, ImportError> {
        let open = self.many(Self::stream)?;
        connection.due = self.many(Self::number)?;
        let reset = self.many(Self::number)?;
        let (forgotten, last, accepted) = (self.number()?, self.at_most(LARGEST)?, self.number()?);
        let ids = || open.iter().map(|stream| stream.id);
        check(
            open.is_sorted_by(|a, b| a.id < b.id) && ids().all(|id| id % 2 == 1 && id <= last),
            "a stream's identifier",
        )?;
        let known = reset.len() <= REMEMBERED && reset.iter().all(|id| *id <= last) && forgotten <= last;
        check(known && accepted <= last, "a stream's identifier")?;
        check(last == 0 || last % 2 == 1, "a stream's identifier")?;
        let due: Vec<u32> = open.iter().filter(|stream| stream.due).map(|stream| stream.id).collect();
        let mut listed = connection.due.clone();
        listed.sort_unstable();
        check(due == listed, "streams that have credit to tell")?;
        connection.streams = Streams::restore(open, reset.into(), forgotten);
        (connection.last, connection.accepted) = (last, accepted);
        connection.leaving = match self.byte()? {
            0 => Leaving::No,
            1 => Leaving::Announced,
            2 => Leaving::Last(self.at_most(LARGEST)?),
            _ => return Err(ImportError::Value("a state of leaving")),
        };
        connection.peer_last = self.optional(LARGEST)?;
        connection.output = self.bytes()?.to_vec();
        connection.answers = self.narrow(u32::try_from(ANSWERS).unwrap_or(u32::MAX))?;
        connection.block_sent = self.flag()?;
        connection.pings = self.number()?;
        Ok(connection)
    }
}
