//! Moves bytes until both sides have ended, or somebody ends the connection from outside.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use stillmesh_hbone::Stream;
use stillmesh_hbone::copy::{self, CopyError, Tunnelling};
use stillmesh_runtime::drain::{Immediate, Mode, Watch};
use tokio::net::TcpStream;

use crate::path::PathError;
use crate::record::{Live, Record};
use crate::tunnel::Upstream;

/// A connection whose both ends are open, and its record. It keeps `K` for as long as it lives.
///
/// As a future it carries bytes until both directions have ended, each by itself, or until somebody ends it from outside. Most of what
/// a tunnel needs of memory for each idle connection hangs on it: that is why it is one value, and no tree of futures.
pub struct Carried<K> {
    sides: Sides,
    /// Becomes its line in the log; none once it is written.
    record: Option<Record>,
    /// Tells of a drain that waits for nobody.
    drained: Immediate,
    /// Tells of any drain.
    watch: Watch,
    _keeps: K,
}

/// What carries the bytes.
enum Sides {
    /// Between the application's socket and the mesh.
    Tunnel(Arc<TcpStream>, Stream, Tunnelling),
    /// In another way, which ends by itself when somebody ends the connection from outside.
    Other(Pin<Box<dyn Future<Output = Result<(), PathError>> + Send>>),
}

impl<K> Carried<K> {
    /// Between a socket and what was opened for it, until it is over or a drain is immediate.
    pub fn new(socket: TcpStream, upstream: Upstream, record: Record, watch: Watch, keeps: K) -> Self {
        let (live, drain) = (record.live().clone(), watch.clone());
        let sides = match upstream {
            Upstream::Hbone(stream) => Sides::Tunnel(Arc::new(socket), stream, Tunnelling::default()),
            Upstream::Tcp(upstream) => Sides::Other(Box::pin(sockets([socket, upstream], live, drain))),
            Upstream::Direct(arrived) => {
                Sides::Other(Box::pin(async move { arrived.carry(socket, &live, &drain).await }))
            }
        };
        Self { sides, record: Some(record), drained: watch.to_immediate(), watch, _keeps: keeps }
    }

    fn poll_carry(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PathError>> {
        let Some(record) = &self.record else { return Poll::Ready(Ok(())) };
        match &mut self.sides {
            Sides::Tunnel(socket, stream, copying) => {
                // First, so that nothing passes after it, and that what broke by it is not taken for what ended it.
                if let Poll::Ready(outcome) = record.live().cut.poll(cx) {
                    return Poll::Ready(Err(PathError::Cut { outcome }));
                }
                if Pin::new(&mut self.drained).poll(cx).is_ready() {
                    return Poll::Ready(Err(PathError::Drained));
                }
                let copied = copying.poll(cx, socket, stream, record.counters());
                copied.map(|copied| copied.map_err(|source| broken(source, &self.watch)))
            }
            Sides::Other(carrying) => carrying.as_mut().poll(cx),
        }
    }

    fn end(&mut self, carried: Result<(), PathError>) {
        let Some(record) = self.record.take() else { return };
        match carried {
            Ok(()) => record.complete(),
            Err(error) => {
                if let Sides::Tunnel(socket, stream, _) = &mut self.sides {
                    // What broke must not look like an end to either side (RFC 9113 section 8.5). A socket that is gone already
                    // cannot be told.
                    let _ = socket.set_zero_linger();
                    stream.reset();
                }
                record.fail(&error);
            }
        }
    }
}

impl<K: Unpin> Future for Carried<K> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.poll_carry(cx).map(|carried| this.end(carried))
    }
}

/// Carries between two sockets.
async fn sockets(sides: [TcpStream; 2], live: Arc<Live>, watch: Watch) -> Result<(), PathError> {
    let [mut first, mut second] = sides;
    let ended = tokio::select! {
        biased;
        outcome = live.cut.wait() => Err(PathError::Cut { outcome }),
        () = watch.immediate() => Err(PathError::Drained),
        copied = copy::sockets(&mut first, &mut second, live.counters()) => copied.map_err(|source| broken(source, &watch)),
    };
    if ended.is_err() {
        // As through a tunnel: what broke must not look like an end to either side.
        let _ = (first.set_zero_linger(), second.set_zero_linger());
    }
    ended
}

/// Why a connection broke: its tunnel's end at a drain's deadline may be noticed before the drain itself.
fn broken(source: CopyError, watch: &Watch) -> PathError {
    match watch.started() {
        Some(signal) if signal.mode == Mode::Immediate || signal.left().is_zero() => PathError::Drained,
        _ => PathError::Copy { source },
    }
}
