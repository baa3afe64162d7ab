//! The loop: one thread, one epoll instance, all connections.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::Context as _;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::sys::signalfd::SignalFd;
use slab::Slab;

use crate::Role;
use crate::buffers::Buffers;
use crate::connection::{Broken, Connection, Progress, Side, reset};
use crate::record::Keys;

const LISTENER: Token = Token(0);
const END: Token = Token(1);
/// Of each connection: two, from here on.
const FIRST: usize = 2;

/// Connections accepted before those that are there have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// How long the listener rests when the kernel refuses a connection, as where descriptors run out. Those that wait are
/// in its backlog, of a length that the kernel bounds.
const REST: Duration = Duration::from_millis(10);

/// All that the thread owns.
#[derive(Debug)]
pub struct Relay {
    poll: Poll,
    listener: TcpListener,
    _end: SignalFd,
    to: SocketAddr,
    dials: Side,
    keys: Keys,
    buffers: Buffers,
    // A bound on these is the one on descriptors.
    connections: Slab<Box<Connection>>,
    /// Those with more to do that no event will tell of. Each is here once.
    again: Vec<usize>,
    /// One that was accepted with the last descriptor.
    undialled: Option<TcpStream>,
    /// When to look for connections to accept though no event tells of them.
    accept_after: Option<Duration>,
    tally: Tally,
}

/// What became of the connections.
#[derive(Debug, Default)]
pub struct Tally {
    /// All that were accepted.
    pub accepted: u64,
    /// Those that did not end on both sides.
    pub broken: u64,
    /// Why the last of those did not.
    pub last_break: Option<Broken>,
}

impl Relay {
    /// A relay that carries what `listener` accepts to `to`, until one of the signals of `end` comes.
    pub fn new(mut listener: TcpListener, to: SocketAddr, role: Role, end: SignalFd) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&end.as_raw_fd()), END, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            _end: end,
            to,
            dials: match role {
                Role::Client => Side::Tunnel,
                Role::Server => Side::Plain,
            },
            keys: Keys::of(role).context("AES-128-GCM is not there")?,
            buffers: Buffers::default(),
            connections: Slab::new(),
            again: Vec::new(),
            undialled: None,
            accept_after: None,
            tally: Tally::default(),
        })
    }

    /// Carries until it is to end; connections that are open then are reset.
    pub fn run(mut self) -> io::Result<Tally> {
        let mut events = Events::with_capacity(256);
        let mut again = Vec::new();
        loop {
            let wait = if self.again.is_empty() { self.accept_after } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let mut accept = self.accept_after.take().is_some();
            std::mem::swap(&mut again, &mut self.again);
            for event in &events {
                match event.token() {
                    LISTENER => accept = true,
                    END => {
                        self.connections.iter().for_each(|(_, connection)| connection.reset());
                        return Ok(self.tally);
                    }
                    Token(token) => self.turn((token - FIRST) / 2, Some((side(token), event))),
                }
            }
            for key in again.drain(..) {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.queued = false;
                }
                self.turn(key, None);
            }
            // Last: the place of one that has ended is not another's while events may speak of it.
            if accept {
                self.accept_after = self.accept();
            }
        }
    }

    fn turn(&mut self, key: usize, news: Option<(Side, &Event)>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let noticed = news.map_or(Ok(()), |(side, event)| connection.notice(side, event));
        match noticed.and_then(|()| connection.turn(&self.keys, &mut self.buffers)) {
            Ok(Progress::Waits) => {}
            Ok(Progress::Again) => {
                if !std::mem::replace(&mut connection.queued, true) {
                    self.again.push(key);
                }
            }
            Ok(Progress::Ended) => drop(self.connections.remove(key)),
            Err(why) => {
                connection.reset();
                self.connections.remove(key);
                self.tally.broke(why);
            }
        }
    }

    /// Accepts what waits, and dials for each. Returns when to come back without being told.
    fn accept(&mut self) -> Option<Duration> {
        for _ in 0..ACCEPTED_AT_ONCE {
            let accepted = match self.undialled.take().map_or_else(|| self.listener.accept().map(|(new, _)| new), Ok) {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => return Some(REST),
                },
            };
            let dialled = TcpStream::connect(self.to);
            if dialled.as_ref().is_err_and(no_descriptor) {
                self.undialled = Some(accepted);
                return Some(REST);
            }
            self.tally.accepted += 1;
            if let Err(error) = self.add(accepted, dialled) {
                self.tally.broke(Broken::Socket(self.dials, error));
            }
        }
        Some(Duration::ZERO)
    }

    fn add(&mut self, accepted: TcpStream, dialled: io::Result<TcpStream>) -> io::Result<()> {
        let dialled = dialled.inspect_err(|_| reset(&accepted))?;
        for socket in [&accepted, &dialled] {
            socket.set_nodelay(true).inspect_err(|_| reset(&accepted))?;
        }
        let mut connection = Connection::new(accepted, dialled, self.dials);
        let place = self.connections.vacant_entry();
        connection.register(self.poll.registry(), FIRST + 2 * place.key()).inspect_err(|_| connection.reset())?;
        place.insert(Box::new(connection));
        Ok(())
    }
}

fn no_descriptor(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE].iter().any(|none| error.raw_os_error() == Some(*none as i32))
}

impl Tally {
    fn broke(&mut self, why: Broken) {
        self.broken += 1;
        self.last_break = Some(why);
    }
}

/// Whose events carry a token, as [`Connection::register`] gives them out.
fn side(token: usize) -> Side {
    if token.is_multiple_of(2) { Side::Plain } else { Side::Tunnel }
}
