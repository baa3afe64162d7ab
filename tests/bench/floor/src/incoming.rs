//! Records out of the tunnel: read many at a time, opened where they lie, their payloads written from there.

use std::io::{self, IoSlice, Read as _, Write as _};

use mio::net::TcpStream;

use crate::buffers::{Buffers, at_once};
use crate::connection::{Broken, Side};
use crate::direction::{Filled, Half};
use crate::record::{Key, Opener, RecordError, payloads};

/// Payloads written at a time.
const SLICES: usize = 64;

/// The opening half, and what has come.
#[derive(Debug, Default)]
pub struct Incoming {
    opener: Opener,
    held: Option<Held>,
}

/// Opened records whose payloads the plain side has not taken yet, and behind them the beginning of one that is
/// incomplete.
#[derive(Debug)]
struct Held {
    buffer: Box<[u8]>,
    /// Where the first record lies that is not written whole.
    at: usize,
    /// Bytes of its payload that are written.
    written: usize,
    /// How far records are opened.
    opened: usize,
    /// How far bytes have come.
    end: usize,
}

impl Half for Incoming {
    const TO: Side = Side::Plain;

    fn is_behind(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.at < held.opened)
    }

    fn fill(&mut self, mut tunnel: &TcpStream, key: &Key, buffers: &mut Buffers) -> Result<Filled, Broken> {
        let mut held = self.held.take().unwrap_or_else(|| Held::new(buffers.lend()));
        let room = held.room();
        let most = room.len();
        let Some(length) = at_once(Side::Tunnel, || tunnel.read(room))? else {
            self.keep(held, buffers);
            return Ok(Filled::Nothing);
        };
        if length == 0 {
            return Err(Broken::CutOff);
        }
        held.end += length;
        held.open(&mut self.opener, key)?;
        self.held = Some(held);
        Ok(match length {
            _ if self.opener.ended() => Filled::End,
            length if length < most => Filled::Part,
            _ => Filled::Full,
        })
    }

    fn flush(&mut self, plain: &TcpStream, buffers: &mut Buffers) -> Result<bool, Broken> {
        let Some(mut held) = self.held.take() else { return Ok(true) };
        held.advance(0);
        while held.at < held.opened {
            let Some(written) = at_once(Side::Plain, || held.write(plain))? else {
                self.held = Some(held);
                return Ok(false);
            };
            held.advance(written);
        }
        held.move_to_front();
        self.keep(held, buffers);
        Ok(true)
    }
}

impl Incoming {
    /// Keeps the buffer only for what is in it.
    fn keep(&mut self, held: Held, buffers: &mut Buffers) {
        if held.end > 0 {
            self.held = Some(held);
        } else {
            buffers.take_back(held.buffer);
        }
    }
}

impl Held {
    fn new(buffer: Box<[u8]>) -> Self {
        Self { buffer, at: 0, written: 0, opened: 0, end: 0 }
    }

    /// Where more is read to. Never empty: what is not opened is less than one record.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    fn open(&mut self, opener: &mut Opener, key: &Key) -> Result<(), RecordError> {
        while let Some(record) = opener.open(key, self.buffer.get_mut(self.opened..self.end).unwrap_or_default())? {
            self.opened += record;
        }
        Ok(())
    }

    /// The opened records from the first on that is not written whole.
    fn unwritten(&self) -> impl Iterator<Item = (usize, &[u8])> {
        payloads(self.buffer.get(self.at..self.opened).unwrap_or_default())
    }

    fn write(&self, mut plain: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut filled, mut written) = (0, self.written);
        for (slice, (_, payload)) in slices.iter_mut().zip(self.unwritten()) {
            *slice = IoSlice::new(payload.get(written..).unwrap_or_default());
            written = 0;
            filled += 1;
        }
        plain.write_vectored(slices.get(..filled).unwrap_or_default())
    }

    /// Passes over what was written, and over records without payload: one that is left has bytes to write.
    fn advance(&mut self, bytes: usize) {
        let (mut at, mut written) = (self.at, self.written + bytes);
        for (record, payload) in self.unwritten() {
            if written < payload.len() {
                break;
            }
            written -= payload.len();
            at += record;
        }
        (self.at, self.written) = (at, written);
    }

    /// Moves the beginning of an incomplete record to where there is room for its end.
    fn move_to_front(&mut self) {
        if self.opened > 0 {
            self.buffer.copy_within(self.opened..self.end, 0);
            (self.at, self.opened, self.end) = (0, 0, self.end - self.opened);
        }
    }
}
