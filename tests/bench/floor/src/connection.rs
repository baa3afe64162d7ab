//! One connection: a plain socket, a tunnel socket, and a direction each way.

use std::fmt;
use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use crate::buffers::Buffers;
use crate::direction::Direction;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::record::{Keys, RecordError};

/// A connection's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one with the bytes as they are.
    Plain,
    /// The one with the records.
    Tunnel,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain side",
            Self::Tunnel => "tunnel",
        })
    }
}

/// Where a turn has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To where an event must come first.
    Waits,
    /// To the turn's end: there is more, and no event will tell.
    Again,
    /// To the end.
    Ended,
}

/// Why a connection broke off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A socket failed, or could not be connected.
    #[error("{0}: {1}")]
    Socket(Side, io::Error),
    /// What came is no record of the other end.
    #[error("tunnel: {0}")]
    Record(#[from] RecordError),
    /// The tunnel ended, and its stream had not.
    #[error("tunnel: closed without END_STREAM")]
    CutOff,
}

/// One connection. Dropped, its sockets are closed; after [`Connection::reset`], with a reset.
#[derive(Debug)]
pub struct Connection {
    plain: TcpStream,
    tunnel: TcpStream,
    outgoing: Direction<Outgoing>,
    incoming: Direction<Incoming>,
    /// The side that is still being connected. Nothing moves until it is.
    dialling: Option<Side>,
    /// Whether it is among those that go on without an event.
    pub queued: bool,
}

impl Connection {
    /// Two sockets that do not block, one of them being connected to `side`.
    pub fn new(accepted: TcpStream, dialled: TcpStream, side: Side) -> Self {
        let (plain, tunnel) = match side {
            Side::Plain => (dialled, accepted),
            Side::Tunnel => (accepted, dialled),
        };
        let (outgoing, incoming) = Default::default();
        Self { plain, tunnel, outgoing, incoming, dialling: Some(side), queued: false }
    }

    /// Has epoll tell of both sockets: of the plain one by `token`, of the tunnel's by the next.
    pub fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut self.plain, Token(token), both)?;
        registry.register(&mut self.tunnel, Token(token + 1), both)
    }

    /// Notes what an event says: only what it can move is tried.
    pub fn notice(&mut self, side: Side, event: &Event) -> Result<(), Broken> {
        let socket = match side {
            Side::Plain => {
                self.outgoing.notice_source(event);
                self.incoming.notice_target(event);
                &self.plain
            }
            Side::Tunnel => {
                self.incoming.notice_source(event);
                self.outgoing.notice_target(event);
                &self.tunnel
            }
        };
        if event.is_error() {
            let why = socket.take_error().ok().flatten().unwrap_or(io::ErrorKind::ConnectionReset.into());
            return Err(Broken::Socket(side, why));
        }
        if event.is_writable() && self.dialling == Some(side) {
            self.dialling = None;
        }
        Ok(())
    }

    /// Does what can be done without waiting, each way.
    pub fn turn(&mut self, keys: &Keys, buffers: &mut Buffers) -> Result<Progress, Broken> {
        if self.dialling.is_some() {
            return Ok(Progress::Waits);
        }
        let Self { plain, tunnel, outgoing, incoming, .. } = self;
        outgoing.pump(plain, tunnel, &keys.seal, buffers)?;
        incoming.pump(tunnel, plain, &keys.open, buffers)?;
        Ok(if outgoing.ended() && incoming.ended() {
            Progress::Ended
        } else if outgoing.moves() || incoming.moves() {
            Progress::Again
        } else {
            Progress::Waits
        })
    }

    /// Makes the end of this connection a reset on both sides: nobody takes what came for all there was.
    pub fn reset(&self) {
        for socket in [&self.plain, &self.tunnel] {
            reset(socket);
        }
    }
}

/// Makes the end of a socket a reset. One that is not connected has nobody to tell.
pub fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
