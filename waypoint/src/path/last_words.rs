//! A client's stream under an HTTP/1.1 server: when the server gives up on what the client sends, its answer still arrives;
//! and a head that began comes whole within its time, or the stream ends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Rewound;
use super::pace::Pace;

/// The stream. Dropped as it is, it is reset; after [`Clean::set`] it is ended instead.
#[derive(Debug)]
pub struct LastWords<IO: AsyncRead + AsyncWrite + Unpin> {
    stream: Rewound<IO>,
    clean: Clean,
    pace: Arc<Pace>,
    /// How long a head may take.
    limit: Duration,
    /// A head that has begun: after how many requests, and when it is too late.
    head: Option<(u64, Pin<Box<Sleep>>)>,
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

impl<IO: AsyncRead + AsyncWrite + Unpin> LastWords<IO> {
    /// Over a stream.
    pub fn new(stream: Rewound<IO>, pace: Arc<Pace>, limit: Duration) -> (Self, Clean) {
        let clean = Clean::default();
        (Self { stream, clean: clean.clone(), pace, limit, head: None }, clean)
    }

    /// Reads a piece, which will be read again; false: there is no more.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.stream.poll_more(cx)
    }

    /// This was read, and will be read again.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.stream.put_back(bytes);
    }

    /// What is read between requests is a head.
    fn began(&mut self) {
        if self.pace.is_busy() {
            return;
        }
        self.pace.server().began_head();
        let begun = self.pace.begun();
        if self.head.as_ref().is_none_or(|(before, _)| *before != begun) {
            self.head = Some((begun, Box::pin(sleep(self.limit))));
        }
    }

    /// Ends when a head takes too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.head {
            Some((before, late)) if *before == self.pace.begun() && !self.pace.is_busy() => late.as_mut().poll(cx),
            _ => {
                self.head = None;
                Poll::Pending
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Drop for LastWords<IO> {
    fn drop(&mut self) {
        if self.clean.0.load(Ordering::Relaxed) {
            // What there is no room for is lost with the stream, which is then reset.
            let _ = self.stream.shutdown().now_or_never();
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for LastWords<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    self.began();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_late(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LastWords<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.pace.server().sends(true);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pace.server().sends(true);
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.pace.server().sends(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
