//! Moves bytes until both sides have ended, or somebody ends the connection from outside.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use stillmesh_hbone::Stream;
use stillmesh_hbone::copy::{self, CopyError};
use stillmesh_runtime::drain::Watch;
use tokio::net::TcpStream;

use crate::path::PathError;
use crate::path::direct::Arrived;
use crate::record::{Live, Record};
use crate::tunnel::Upstream;

/// A connection whose both ends are open, and its record. It keeps `K` for as long as it lives.
pub struct Carried<K> {
    /// Between what it is carried.
    pub sides: Sides,
    /// Becomes its line in the log.
    pub record: Record,
    /// Ended by others.
    pub live: Arc<Live>,
    /// Tells of a drain.
    pub watch: Watch,
    /// Given back at its end.
    pub keeps: K,
}

/// The first side and the second ([`crate::record::First`]).
pub enum Sides {
    /// The application's socket, and the mesh.
    Tunnel(Arc<TcpStream>, Stream),
    /// Two sockets.
    Sockets(Box<[TcpStream; 2]>),
    /// The application's socket, and what is open in another pod of this node.
    Direct(TcpStream, Box<Arrived>),
}

impl Sides {
    /// A socket and what was opened for it.
    pub fn of(socket: TcpStream, upstream: Upstream) -> Self {
        match upstream {
            Upstream::Tcp(upstream) => Self::Sockets(Box::new([socket, upstream])),
            Upstream::Hbone(stream) => Self::Tunnel(Arc::new(socket), stream),
            Upstream::Direct(arrived) => Self::Direct(socket, arrived),
        }
    }
}

impl<K> Carried<K> {
    /// Carries bytes until both directions have ended, each by itself, or until somebody ends it from outside.
    ///
    /// In a box from its making on: whoever takes it by value and waits keeps a place for it besides.
    pub async fn run(mut self: Box<Self>) {
        let counters = &self.record.bytes().counters;
        let carried = match &mut self.sides {
            Sides::Tunnel(socket, stream) => {
                let copying = pin!(copy::tunnel(socket, stream, counters));
                bounded(copying, &self.live, &self.watch).await
            }
            Sides::Sockets(sides) => {
                let [first, second] = &mut **sides;
                // Boxed: a tunnel needs less.
                let mut copying = Box::pin(copy::sockets(first, second, counters));
                bounded(copying.as_mut(), &self.live, &self.watch).await
            }
            Sides::Direct(socket, arrived) => Box::pin(arrived.carry(socket, &self.live, &self.watch)).await,
        };
        match carried {
            Ok(()) => self.record.complete(),
            Err(error) => {
                if let Sides::Tunnel(socket, stream) = &mut self.sides {
                    // What broke must not look like an end to either side (RFC 9113 section 8.5). A socket that is gone already
                    // cannot be told.
                    let _ = socket.set_zero_linger();
                    stream.reset();
                }
                self.record.fail(&error);
            }
        }
    }
}

async fn bounded(
    copying: Pin<&mut impl Future<Output = Result<(), CopyError>>>,
    live: &Live,
    watch: &Watch,
) -> Result<(), PathError> {
    tokio::select! {
        copied = copying => copied.map_err(|source| match watch.started() {
            // The tunnel's own end at the drain's deadline may be noticed first.
            Some(signal) if signal.left().is_zero() => PathError::Drained,
            _ => PathError::Copy { source },
        }),
        outcome = live.cut.wait() => Err(PathError::Cut { outcome }),
        _ = watch.immediate() => Err(PathError::Drained),
    }
}
