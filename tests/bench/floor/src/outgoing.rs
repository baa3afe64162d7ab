//! Plain bytes into the tunnel: read to where they are sealed, sealed there, written from there.

use std::io::{self, IoSliceMut, Read as _, Write as _};

use mio::net::TcpStream;

use crate::buffers::{Buffers, at_once};
use crate::connection::{Broken, Side};
use crate::direction::{Filled, Half};
use crate::record::{Key, PAYLOAD, Sealer, places};

/// Records sealed at a time, and sent in one write.
const AT_ONCE: usize = 4;

/// The sealing half, and records that the tunnel has not taken yet.
#[derive(Debug, Default)]
pub struct Outgoing {
    sealer: Sealer,
    unsent: Option<Unsent>,
}

#[derive(Debug)]
struct Unsent {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Half for Outgoing {
    const TO: Side = Side::Tunnel;

    fn is_behind(&self) -> bool {
        self.unsent.is_some()
    }

    fn fill(&mut self, plain: &TcpStream, key: &Key, buffers: &mut Buffers) -> Result<Filled, Broken> {
        let mut buffer = buffers.lend();
        let Some(length) = at_once(Side::Plain, || read(plain, &mut buffer))? else {
            buffers.take_back(buffer);
            return Ok(Filled::Nothing);
        };
        let to = self.sealer.seal(key, &mut buffer, length)?;
        self.unsent = Some(Unsent { buffer, from: 0, to });
        Ok(match length {
            0 => Filled::End,
            length if length < AT_ONCE * PAYLOAD => Filled::Part,
            _ => Filled::Full,
        })
    }

    fn flush(&mut self, mut tunnel: &TcpStream, buffers: &mut Buffers) -> Result<bool, Broken> {
        let Some(mut unsent) = self.unsent.take() else { return Ok(true) };
        while let Some(rest) = unsent.buffer.get(unsent.from..unsent.to).filter(|rest| !rest.is_empty()) {
            let Some(written) = at_once(Side::Tunnel, || tunnel.write(rest))? else {
                self.unsent = Some(unsent);
                return Ok(false);
            };
            unsent.from += written;
        }
        buffers.take_back(unsent.buffer);
        Ok(true)
    }
}

fn read(mut plain: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut places = places(buffer);
    let mut slices: [_; AT_ONCE] = std::array::from_fn(|_| IoSliceMut::new(places.next().unwrap_or_default()));
    plain.read_vectored(&mut slices)
}
