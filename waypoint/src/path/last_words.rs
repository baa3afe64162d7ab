//! A client's stream under an HTTP/1.1 server: when the server gives up on what the client sends, its answer still arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use stillmesh_hbone::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::Rewound;

/// The stream. Dropped as it is, it is reset; after [`Clean::set`] it is ended instead.
#[derive(Debug)]
pub struct LastWords {
    stream: Rewound<Stream>,
    clean: Clean,
}

/// Says that everything was said.
#[derive(Clone, Debug, Default)]
pub struct Clean(Arc<AtomicBool>);

impl Clean {
    /// All that the server had to say is written.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl LastWords {
    /// Over a stream.
    pub fn new(stream: Rewound<Stream>) -> (Self, Clean) {
        let clean = Clean::default();
        (Self { stream, clean: clean.clone() }, clean)
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if self.clean.0.load(Ordering::Relaxed) {
            // What there is no room for is lost with the stream, which is then reset.
            let _ = self.stream.shutdown().now_or_never();
        }
    }
}

impl AsyncRead for LastWords {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for LastWords {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
