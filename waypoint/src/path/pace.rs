//! How a client's HTTP connection gets on: whether requests are under way, whether anything passes, and whether it is to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::Bytes;
use super::keep_alive::Server;
use super::streams::Progress;

/// Waits until what `look` shows has been the same for as long as `limit`, and less than twice that. While it shows nothing,
/// nothing is waited for.
pub async fn unchanged<T: PartialEq>(limit: Duration, look: impl Fn() -> Option<T>) {
    loop {
        let before = look();
        sleep(limit).await;
        if before.is_some() && before == look() {
            return;
        }
    }
}

/// Of one connection.
#[derive(Debug)]
pub struct Pace {
    passed: Arc<Bytes>,
    begun: AtomicU64,
    under_way: AtomicU64,
    is_cut: AtomicBool,
    is_leaving: AtomicBool,
    server: Server,
}

impl Pace {
    /// Of a connection whose bytes are counted here.
    pub fn new(passed: Arc<Bytes>) -> Arc<Self> {
        let (begun, under_way) = (AtomicU64::new(0), AtomicU64::new(0));
        let (is_cut, is_leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { passed, begun, under_way, is_cut, is_leaving, server: Server::default() })
    }

    /// A request begins; it ends when what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.server.took_head();
        UnderWay { pace: self.clone(), progress: Progress::of_stream() }
    }

    /// Requests that have begun so far.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether requests are under way.
    pub fn is_busy(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// What its server shows of itself; HTTP/1.1.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The connection is to end with its next answer.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Nothing has passed for too long: what is under way ends for that reason.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Whether it ended for that reason.
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Waits until no request has been under way for as long as `limit`, and less than twice that.
    pub async fn idle(&self, limit: Duration) {
        unchanged(limit, || (!self.is_busy()).then(|| self.begun())).await;
    }

    /// Waits until requests are under way and no byte has passed for as long as `limit`, and less than twice that.
    pub async fn stalled(&self, limit: Duration) {
        unchanged(limit, || self.is_busy().then(|| (self.passed.received(), self.passed.sent(), self.begun()))).await;
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct UnderWay {
    pace: Arc<Pace>,
    /// Of a stream of HTTP/2.
    progress: Option<Arc<Progress>>,
}

impl UnderWay {
    /// Whether its connection, or its stream, was ended because nothing passed.
    pub fn is_cut(&self) -> bool {
        self.pace.is_cut() || self.progress().is_some_and(Progress::is_cut)
    }

    /// What of it passes, if it is a stream of HTTP/2.
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pace.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_is_without_requests_and_stalled_is_with_one_and_without_bytes() {
        let pace = Pace::new(Arc::default());
        let limit = Duration::from_secs(10);
        let busy = pace.begin();
        let began = Instant::now();
        pace.stalled(limit).await;
        assert_eq!(began.elapsed(), limit);
        tokio::time::timeout(limit * 10, pace.idle(limit)).await.unwrap_err();
        drop(busy);
        let began = Instant::now();
        pace.idle(limit).await;
        assert_eq!(began.elapsed(), limit);
        tokio::time::timeout(limit * 10, pace.stalled(limit)).await.unwrap_err();
    }
}
