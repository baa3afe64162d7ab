//! A stream whose first bytes were read already and are read again, and which counts what passes.

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What has passed so far, seen from the client's side of the server.
#[derive(Debug, Default)]
pub struct Bytes {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Bytes {
    pub(super) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// From the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// To the client.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A stream and what was read of it.
#[derive(Debug)]
pub struct Rewound<IO> {
    io: IO,
    seen: BytesMut,
    bytes: Arc<Bytes>,
}

impl<IO> Rewound<IO> {
    /// A stream of which nothing was read.
    pub fn new(io: IO) -> Self {
        Self { io, seen: BytesMut::new(), bytes: Arc::default() }
    }

    /// What was read and will be read again.
    pub fn seen(&self) -> &[u8] {
        &self.seen
    }

    /// The stream itself.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// These bytes were read, and will be read again after those before.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.seen.extend_from_slice(bytes);
    }

    /// These bytes were read by way of this, and will be read again before all others. They count once.
    pub fn put_back(&mut self, bytes: &[u8]) {
        let rest = mem::replace(&mut self.seen, bytes.into());
        self.seen.extend_from_slice(&rest);
        self.bytes.received.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
    }

    /// What passes.
    pub fn bytes(&self) -> Arc<Bytes> {
        self.bytes.clone()
    }

    fn sent(&self, sent: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(length) = &sent {
            self.bytes.sent.fetch_add(*length as u64, Ordering::Relaxed);
        }
        Poll::Ready(sent)
    }
}

impl<IO: AsyncRead + Unpin> Rewound<IO> {
    /// Reads a piece, which is kept; false: there is no more. Who waits so holds no buffer.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
        self.keep(piece.filled());
        Poll::Ready(Ok(!piece.filled().is_empty()))
    }
}

/// What is read ahead at once, bytes: on the stack.
const PIECE: usize = 2 << 10;

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.seen.is_empty() {
            ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        } else {
            let length = self.seen.len().min(buffer.remaining());
            buffer.put_slice(self.seen.get(..length).unwrap_or_default());
            self.seen.advance(length);
            if self.seen.is_empty() {
                self.seen = BytesMut::new();
            }
        }
        let length = buffer.filled().len().saturating_sub(before);
        self.bytes.add_received(length);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        self.sent(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices));
        self.sent(sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_was_seen_comes_first_and_all_is_counted() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Rewound::new(near);
        near.keep(b"GET ");
        near.keep(b"/");
        far.write_all(b" HTTP").await.unwrap();
        near.write_all(b"200").await.unwrap();
        drop(far);
        let mut text = String::new();
        near.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "GET / HTTP");
        assert_eq!((near.bytes().received(), near.bytes().sent()), (10, 3));
    }

    #[tokio::test]
    async fn what_is_put_back_comes_before_what_was_seen_and_counts_once() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Rewound::new(near);
        far.write_all(b"GET / HTTP").await.unwrap();
        assert!(poll_fn(|cx| near.poll_more(cx)).await.unwrap());
        let mut begin = [0; 6];
        near.read_exact(&mut begin).await.unwrap();
        near.put_back(b"/ ");
        far.write_all(b"/1.1").await.unwrap();
        drop(far);
        let mut text = String::new();
        near.read_to_string(&mut text).await.unwrap();
        assert_eq!((&begin, text.as_str()), (b"GET / ", "/ HTTP/1.1"));
        assert_eq!(near.bytes().received(), 14);
        assert!(!poll_fn(|cx| near.poll_more(cx)).await.unwrap(), "there is no more");
    }
}
