//! Moves bytes between two sockets by splice: what is read much of passes through a pipe, within the kernel, and is never copied here.
//!
//! A direction borrows a pipe while bytes flow and gives it back when its socket has no more, so that a connection that waits holds
//! none. What comes in small pieces is read as by [`super::sockets`], which costs less for them, and so is everything while no pipe is
//! to be had.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use stillmesh_runtime::sys::pipe::Pipe;
use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::TcpStream;

use super::{CopyError, Counters, Progress, Reader, SMALL, Side, WayError, count, gone_is_shut};
use crate::Memory;
use crate::memory::Holding;

/// What a pipe is made for, and how much is moved at once at most, bytes.
const BULK: usize = 256 << 10;

/// After how much others of the same thread get their turn, bytes.
const TURN: usize = 1 << 20;

/// Pipes that are kept while nobody needs them.
const IDLE: usize = 4;

/// Pipes to borrow. Clones share them.
#[derive(Clone, Debug)]
pub struct Pipes(Arc<Mutex<Stock>>);

#[derive(Debug)]
struct Stock {
    idle: Vec<Pipe>,
    lent: usize,
    most: usize,
}

/// A pipe, until it is dropped.
#[derive(Debug)]
struct Lent {
    /// `None` only while it is dropped.
    pipe: Option<Pipe>,
    owner: Pipes,
}

impl Pipes {
    /// At most so many are lent at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Stock { idle: Vec::new(), lent: 0, most })))
    }

    /// How many are lent now.
    pub fn lent(&self) -> usize {
        self.0.lock().lent
    }

    /// An empty one; `None` where all are lent or the kernel gives none.
    fn lend(&self) -> Option<Lent> {
        let mut stock = self.0.lock();
        if stock.lent >= stock.most {
            return None;
        }
        let pipe = stock.idle.pop().or_else(|| Pipe::new(BULK).ok())?;
        stock.lent += 1;
        Some(Lent { pipe: Some(pipe), owner: self.clone() })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut stock = self.owner.0.lock();
        stock.lent = stock.lent.saturating_sub(1);
        // What is left in one belongs to a connection that broke: nobody else may get it.
        if let Some(pipe) = self.pipe.take().filter(|pipe| pipe.held() == 0 && stock.idle.len() < IDLE) {
            stock.idle.push(pipe);
        }
    }
}

/// Moves bytes between two sockets. On an error the caller breaks both.
pub async fn spliced(
    first: &mut TcpStream,
    second: &mut TcpStream,
    counters: &Counters,
    pipes: &Pipes,
) -> Result<(), CopyError> {
    let memory = Memory::of_process();
    let way = || OneWay::new(memory.holding(), pipes.clone());
    let (mut forward, mut backward) = (way(), way());
    poll_fn(|cx| {
        let there = forward.poll(cx, first, second, &counters.forward).map_err(|error| error.of(Side::First))?;
        let back = backward.poll(cx, second, first, &counters.backward).map_err(|error| error.of(Side::Second))?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction.
struct OneWay {
    reader: Reader,
    pipes: Pipes,
    pipe: Option<Lent>,
    ended: bool,
    shut: bool,
}

impl OneWay {
    fn new(holding: Holding, pipes: Pipes) -> Self {
        Self { reader: Reader::new(holding), pipes, pipe: None, ended: false, shut: false }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        counter: &AtomicU64,
    ) -> Progress<WayError> {
        let progress = self.turn(cx, from, to, counter);
        if self.in_pipe() == 0 {
            self.pipe = None;
        }
        self.reader.count();
        progress
    }

    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        counter: &AtomicU64,
    ) -> Progress<WayError> {
        let mut moved = 0;
        loop {
            let waiting = &mut self.reader.buffer;
            if !waiting.is_empty() {
                let Poll::Ready(written) = Pin::new(&mut *to).poll_write(cx, waiting).map_err(WayError::Writing)?
                else {
                    return Ok(Poll::Pending);
                };
                if written == 0 {
                    return Err(WayError::Writing(io::ErrorKind::WriteZero.into()));
                }
                waiting.advance(written);
                continue;
            }
            if self.in_pipe() > 0 {
                let Poll::Ready(()) = self.empty(cx, to).map_err(WayError::Writing)? else {
                    return Ok(Poll::Pending);
                };
                continue;
            }
            if self.ended {
                if !self.shut {
                    self.shut =
                        gone_is_shut(Pin::new(&mut *to).poll_shutdown(cx)).map_err(WayError::Writing)?.is_ready();
                }
                return Ok(if self.shut { Poll::Ready(()) } else { Poll::Pending });
            }
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            match self.read(cx, from).map_err(WayError::Reading)? {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(0) => {
                    self.ended = true;
                    self.reader.buffer = BytesMut::new();
                }
                Poll::Ready(length) => {
                    moved += length;
                    count(counter, length);
                }
            }
        }
    }

    /// Reads once, into a pipe where much is to be read and one is to be had; 0 is the end.
    fn read(&mut self, cx: &mut Context<'_>, from: &mut TcpStream) -> Poll<io::Result<usize>> {
        if self.reader.busy && self.pipe.is_none() {
            self.pipe = self.pipes.lend();
        }
        let pipe = self.pipe.as_mut().and_then(|lent| lent.pipe.as_mut());
        let Some(pipe) = pipe.filter(|_| self.reader.busy) else { return self.reader.poll(cx, from) };
        if from.poll_read_ready(cx)?.is_pending() {
            self.reader.busy = false;
            return Poll::Pending;
        }
        match from.try_io(Interest::READABLE, || pipe.fill(&*from, BULK)) {
            Ok(length) => {
                self.reader.busy = length >= SMALL;
                Poll::Ready(Ok(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.reader.busy = false;
                self.reader.poll(cx, from)
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Moves on what is in the pipe, or some of it.
    fn empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        let Some(pipe) = self.pipe.as_mut().and_then(|lent| lent.pipe.as_mut()) else { return Poll::Ready(Ok(())) };
        while pipe.held() > 0 {
            if to.poll_write_ready(cx)?.is_pending() {
                return Poll::Pending;
            }
            match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn in_pipe(&self) -> usize {
        self.pipe.as_ref().and_then(|lent| lent.pipe.as_ref()).map_or(0, Pipe::held)
    }
}

#[cfg(test)]
mod tests;
