//! Looks after one connection: asks whether the peer is there, measures round trips for its windows, and says when it
//! has to drain.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use h2::{Ping, PingPong};
use stillmesh_identity::TlsError;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Limits;
use crate::link::Link;

/// What a connection's task is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Time to look around; the peer is there.
    Present,
    /// The peer did not answer in time.
    Lost,
    /// Tell the peer this stream window.
    Window(u32),
    /// Give the connection this window.
    Connection(u32),
}

/// The PINGs of a connection.
pub(crate) struct Pulse {
    pings: Option<PingPong>,
    link: Arc<Link>,
    every: Duration,
    patience: Duration,
    /// The next PING, or the end of patience with the last one.
    timer: Pin<Box<Sleep>>,
    on_its_way: Option<Purpose>,
    /// PINGs to be sent until the peer has acknowledged a smaller window.
    until_settled: u8,
    /// The window that was last asked for; not asked again before the next PING's answer.
    asked: Option<u32>,
    /// No measurement before.
    measure_from: Instant,
    /// How long the next one waits if the last one changed nothing.
    pause: Duration,
}

/// The first pause after a measurement that changed nothing; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Alive,
    Measure,
}

impl Pulse {
    /// `pings` is the connection's; without it only the time passes.
    pub(crate) fn new(pings: Option<PingPong>, link: Arc<Link>, limits: &Limits) -> Self {
        let (every, patience) = (limits.ping_every, limits.ping_patience);
        let timer = Box::pin(sleep_until(Instant::now() + every));
        Self {
            pings,
            link,
            every,
            patience,
            timer,
            on_its_way: None,
            until_settled: 0,
            asked: None,
            measure_from: Instant::now(),
            pause: SHORTEST_PAUSE,
        }
    }

    /// Waits for something to do. Cancel-safe.
    pub(crate) async fn beat(&mut self) -> Beat {
        poll_fn(|cx| self.poll_beat(cx)).await
    }

    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        self.link.waker.register(cx.waker());
        if let Some(window) = self.link.other_connection_window() {
            return Poll::Ready(Beat::Connection(window));
        }
        if let Some(window) = self.link.smaller().filter(|window| self.asked != Some(*window)) {
            self.asked = Some(window);
            return Poll::Ready(Beat::Window(window));
        }
        if self.link.has_shrunk() {
            // The library may send the first PING ahead of the SETTINGS. A peer that answers PINGs before SETTINGS is met by the
            // PINGs that follow in time.
            self.until_settled = 2 + u8::from(self.on_its_way.is_some());
        }
        loop {
            if let (Some(purpose), Some(pings)) = (self.on_its_way, &mut self.pings) {
                match pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => return Poll::Ready(self.answered(purpose)),
                    // The connection's own future says why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            } else if self.until_settled > 0 && self.pings.is_some() {
                if !self.send(Purpose::Alive) {
                    return Poll::Pending;
                }
                continue;
            } else if self.link.measurement_wanted() && self.measure_from <= Instant::now() {
                if !self.send(Purpose::Measure) {
                    return Poll::Pending;
                }
                continue;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.on_its_way.is_some() {
                return Poll::Ready(Beat::Lost);
            }
            if self.pings.is_none() {
                self.wait(self.every);
                return Poll::Ready(Beat::Present);
            }
            if !self.send(Purpose::Alive) {
                return Poll::Pending;
            }
        }
    }

    fn answered(&mut self, purpose: Purpose) -> Beat {
        self.on_its_way = None;
        self.asked = None;
        self.wait(self.every);
        self.until_settled = self.until_settled.saturating_sub(1);
        match purpose {
            Purpose::Alive => {
                self.link.tell_credit();
                Beat::Present
            }
            Purpose::Measure => match self.link.round_ends() {
                Some(window) => {
                    self.pause = SHORTEST_PAUSE;
                    Beat::Window(window)
                }
                None => {
                    self.measure_from = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    Beat::Present
                }
            },
        }
    }

    fn send(&mut self, purpose: Purpose) -> bool {
        let sent = self.pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok());
        if sent {
            self.on_its_way = Some(purpose);
            self.wait(self.patience);
            if purpose == Purpose::Measure {
                self.link.round_begins();
            }
        }
        sent
    }

    fn wait(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time);
    }
}

/// The part of a certificate's remaining life after which its connections drain.
const DRAIN_AFTER: f64 = 0.75;

/// No certificate lives longer in the eyes of a timer.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When a connection made with these certificates stops to take new streams: before the first of them expires. Streams that
/// are open go on. An error when one has expired.
pub(crate) fn drain_at(expiries: impl IntoIterator<Item = SystemTime>, now: SystemTime) -> Result<Instant, TlsError> {
    let left = expiries.into_iter().map(|expiry| expiry.duration_since(now).unwrap_or_default());
    let left = left.min().unwrap_or(LONGEST).min(LONGEST);
    if left.is_zero() {
        return Err(TlsError::Expired);
    }
    Ok(Instant::now() + left.mul_f64(DRAIN_AFTER))
}
