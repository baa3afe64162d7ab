//! Buffers of the thread, lent to a connection while bytes are under way in them; and reads and writes that do not wait.

use std::io;

use crate::connection::{Broken, Side};
use crate::record::SLOT;

/// Records of full length that a buffer has room for.
pub const SLOTS: usize = 6;

/// Buffers kept for whoever comes next; more than these are freed when they come back.
const KEPT: usize = 16;

/// The thread's buffers. Those lent are bounded by the connections: one per direction, and only where the next hop
/// takes less than comes, or a record has come in part.
#[derive(Debug, Default)]
pub struct Buffers(Vec<Box<[u8]>>);

impl Buffers {
    /// A buffer for [`SLOTS`] records, with anything in it: the one that came back last, which is warm.
    pub fn lend(&mut self) -> Box<[u8]> {
        self.0.pop().unwrap_or_else(|| vec![0; SLOTS * SLOT].into_boxed_slice())
    }

    /// Takes a buffer back that nothing is under way in.
    pub fn take_back(&mut self, buffer: Box<[u8]>) {
        if self.0.len() < KEPT {
            self.0.push(buffer);
        }
    }
}

/// Reads or writes once, on this side. `None`: it would have to wait.
pub fn at_once(side: Side, mut operation: impl FnMut() -> io::Result<usize>) -> Result<Option<usize>, Broken> {
    loop {
        match operation() {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Socket(side, error)),
        }
    }
}
