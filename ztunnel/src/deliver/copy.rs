//! Moves bytes until both sides have ended, or somebody ends the connection from outside.

use std::future::Future;
use std::sync::Arc;

use stillmesh_hbone::Stream;
use stillmesh_hbone::copy::{self, CopyError};
use stillmesh_runtime::drain::Watch;
use tokio::net::TcpStream;

use crate::path::PathError;
use crate::record::{Bytes, Live};

/// Carries bytes between a socket and a tunnel, with half-close each way. Ends early when the connection is cut or the
/// drain's time is over.
pub async fn tunnel(
    socket: TcpStream,
    mut stream: Stream,
    bytes: &Bytes,
    live: &Live,
    watch: &Watch,
) -> Result<(), PathError> {
    let mut socket = Arc::new(socket);
    let carried = bounded(copy::tunnel(&mut socket, &mut stream, &bytes.counters), live, watch).await;
    if carried.is_err() {
        // What broke must not look like an end to the application (RFC 9113 section 8.5). A socket that is gone
        // already cannot be told.
        let _ = socket.set_zero_linger();
    }
    carried
}

/// Carries bytes between two sockets likewise.
pub async fn sockets(
    mut client: TcpStream,
    mut server: TcpStream,
    bytes: &Bytes,
    live: &Live,
    watch: &Watch,
) -> Result<(), PathError> {
    bounded(copy::sockets(&mut client, &mut server, &bytes.counters), live, watch).await
}

async fn bounded(
    copying: impl Future<Output = Result<(), CopyError>>,
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
