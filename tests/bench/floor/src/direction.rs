//! One direction of a connection: what is read is made ready and written, and nothing more is read until it is.

use std::net::Shutdown;

use mio::event::Event;
use mio::net::TcpStream;

use crate::buffers::Buffers;
use crate::connection::{Broken, Side};
use crate::record::Key;

/// Reads before others have their turn.
const ROUNDS: usize = 16;

/// What a direction does with bytes: [`crate::outgoing`] or [`crate::incoming`].
pub trait Half: Default {
    /// Where it writes.
    const TO: Side;

    /// Whether something is ready that the socket it writes to has not taken.
    fn is_behind(&self) -> bool;

    /// Reads once, and makes ready what has come. Only when nothing is ready any more.
    fn fill(&mut self, from: &TcpStream, key: &Key, buffers: &mut Buffers) -> Result<Filled, Broken>;

    /// Writes what is ready. False: a part is left.
    fn flush(&mut self, to: &TcpStream, buffers: &mut Buffers) -> Result<bool, Broken>;
}

/// What a read has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Nothing yet.
    Nothing,
    /// Less than there was room for.
    Part,
    /// As much as there was room for.
    Full,
    /// The end, perhaps behind bytes.
    End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// All has come, not all is written.
    Ending,
    /// The next hop was told that no more comes.
    Ended,
}

/// A direction and how far it is.
#[derive(Debug, Default)]
pub struct Direction<H> {
    half: H,
    stage: Stage,
    /// Whether something may be done without waiting.
    moves: bool,
    /// Whether its source is known to bring no more than what has come. No further event tells that, so it is read to
    /// its end even where a read brings less than it could.
    source_ends: bool,
}

impl<H: Half> Direction<H> {
    /// Notes an event of the socket it reads.
    pub fn notice_source(&mut self, event: &Event) {
        self.source_ends |= event.is_read_closed();
        self.moves |= event.is_readable() || event.is_read_closed();
    }

    /// Notes an event of the socket it writes.
    pub fn notice_target(&mut self, event: &Event) {
        self.moves |= event.is_writable() && self.half.is_behind();
    }

    /// Whether there is more to do, which no event will tell.
    pub fn moves(&self) -> bool {
        self.moves
    }

    /// Whether it is over, and the next hop was told so.
    pub fn ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Does what can be done without waiting, unless that is very much.
    pub fn pump(&mut self, from: &TcpStream, to: &TcpStream, key: &Key, buffers: &mut Buffers) -> Result<(), Broken> {
        let mut drained = false;
        for _ in 0..if self.moves { ROUNDS } else { 0 } {
            let flushed = self.half.flush(to, buffers)?;
            if flushed && self.stage == Stage::Ending {
                to.shutdown(Shutdown::Write).map_err(|error| Broken::Socket(H::TO, error))?;
                self.stage = Stage::Ended;
            }
            if !flushed || drained || self.stage == Stage::Ended {
                self.moves = false;
                break;
            }
            match self.half.fill(from, key, buffers)? {
                Filled::Nothing => drained = true,
                Filled::Part => drained = !self.source_ends,
                Filled::Full => {}
                Filled::End => self.stage = Stage::Ending,
            }
        }
        Ok(())
    }
}
