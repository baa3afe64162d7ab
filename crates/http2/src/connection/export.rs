//! A connection's state as bytes, so that another process can go on with it, and back. Numbers are big-endian. What is read
//! is checked as strictly as what comes from a peer: whatever the bytes, nothing panics later.

mod bytes;

use bytes::{Reader, Writer, check};

use super::receive::{EMPTY_FRAMES, Reading};
use super::{Config, Connection, Leaving, PATIENCE, Peer, Role};
use crate::error::{ExportError, ImportError};
use crate::frame::{HEAD, LARGEST, PREFACE};

/// Changes with the format.
const VERSION: u8 = 2;

impl Connection {
    /// The whole state. What was received and not given to [`Connection::receive`] yet, and what was taken of [`Connection::output`] and
    /// not written yet, is the caller's.
    pub fn export(&self) -> Result<Vec<u8>, ExportError> {
        if self.failed.is_some() {
            return Err(ExportError::Over);
        }
        if !self.told.is_empty() {
            return Err(ExportError::Events);
        }
        let mut out = Writer(Vec::with_capacity(256 + self.streams.len() * 48));
        out.byte(VERSION);
        out.byte(u8::from(self.role == Role::Server));
        let Config { initial_window, connection_window, max_frame, max_streams, max_header_list, max_data, early_data } =
            self.config;
        out.numbers(&[initial_window, connection_window, max_frame, max_streams, max_header_list]);
        out.numbers(&[max_data, early_data]);
        out.reading(self.reading);
        out.bytes(&self.partial);
        match &self.block {
            None => out.byte(0),
            Some(block) => {
                out.byte(1 + u8::from(block.end_stream));
                out.number(block.stream);
                out.byte(block.frames);
                out.bytes(&block.bytes);
            }
        }
        let table = &self.decoder.table;
        out.byte(u8::from(table.is_forbidden()));
        out.length(table.max());
        out.length(table.entries().len());
        for (name, value) in table.entries() {
            out.bytes(name);
            out.bytes(value);
        }
        out.numbers(&[self.empty_frames.into(), self.patience]);
        let Peer { initial_window, max_frame, max_streams, max_header_list, early_data } = self.peer;
        out.numbers(&[initial_window, max_frame, max_streams, max_header_list, early_data]);
        out.byte(u8::from(self.greeted));
        out.number(self.initial_window);
        out.optional(self.unacknowledged);
        out.window(&self.window);
        out.signed(self.send_window);
        out.byte(u8::from(self.waits));
        out.length(self.streams.len());
        self.streams.iter().for_each(|stream| out.stream(stream));
        out.length(self.due.len());
        out.numbers(&self.due);
        out.length(self.streams.reset().len());
        self.streams.reset().for_each(|id| out.number(id));
        out.numbers(&[self.streams.forgotten(), self.last, self.accepted]);
        match self.leaving {
            Leaving::No => out.byte(0),
            Leaving::Announced => out.byte(1),
            Leaving::Last(last) => {
                out.byte(2);
                out.number(last);
            }
        }
        out.optional(self.peer_last);
        out.bytes(self.output.get(self.taken..).unwrap_or_default());
        out.length(self.answers);
        out.byte(u8::from(self.block_sent));
        out.number(self.pings);
        Ok(out.0)
    }

    /// A connection that goes on where another was exported.
    pub fn import(bytes: &[u8]) -> Result<Self, ImportError> {
        let mut from = Reader(bytes);
        let version = from.byte()?;
        if version != VERSION {
            return Err(ImportError::Version(version));
        }
        let role = if from.flag()? { Role::Server } else { Role::Client };
        let config = Config {
            initial_window: from.number()?,
            connection_window: from.number()?,
            max_frame: from.number()?,
            max_streams: from.number()?,
            max_header_list: from.number()?,
            max_data: from.number()?,
            early_data: from.number()?,
        };
        check(config == config.checked(), "a configuration out of bounds")?;
        let reading = from.reading(config.max_frame)?;
        let partial = from.bytes()?.to_vec();
        check_partial(role, reading, &partial)?;
        let connection = Self {
            reading,
            partial,
            block: from.block(config.max_header_list)?,
            decoder: from.decoder()?,
            empty_frames: from.narrow(EMPTY_FRAMES.into())?,
            patience: from.at_most(PATIENCE)?,
            peer: from.peer()?,
            greeted: from.flag()?,
            initial_window: from.at_most(LARGEST)?,
            unacknowledged: from.optional(LARGEST)?,
            window: from.window()?,
            send_window: from.signed()?,
            waits: from.flag()?,
            ..Self::new(role, config)
        };
        let connection = from.rest(connection)?;
        if from.0.is_empty() { Ok(connection) } else { Err(ImportError::Long) }
    }
}

/// Whether `partial` may be what came of what is being read.
fn check_partial(role: Role, reading: Reading, partial: &[u8]) -> Result<(), ImportError> {
    let right = match reading {
        Reading::Preface => role == Role::Server && partial.len() < PREFACE.len() && PREFACE.starts_with(partial),
        Reading::Head => partial.len() < HEAD,
        Reading::Payload(head) => partial.len() < head.length.max(1) as usize,
        _ => partial.is_empty(),
    };
    check(right, "what came of a frame")
}
