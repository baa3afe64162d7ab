//! The wall clock, passed in so that tests decide what time it is.

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the time. Certificates live by wall time, timers by [`Instant`]; they meet here.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Wall time.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that advances with tokio's, also when that is paused: for tests.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: SystemTime,
    started: Instant,
}

impl TokioClock {
    /// A clock that shows the machine's time now. Needs a tokio runtime.
    pub fn new() -> Self {
        Self { wall: SystemTime::now(), started: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.wall + self.started.elapsed()
    }
}

/// Time from `now` until `then`, zero when it has passed.
pub(crate) fn until(then: SystemTime, now: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default()
}
