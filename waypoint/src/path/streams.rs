//! A client's streams of HTTP/2, each of them a task of its own: one on which nothing passes for too long is reset, however
//! lively its connection is. So a client that gives a stream no window does not hold what is behind it for ever.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::rt::Executor;
use stillmesh_runtime::tasks::Tasks;

use super::Received;
use super::pace::unchanged;

tokio::task_local! {
    /// Of the stream whose task this is.
    static OWN: Arc<Progress>;
}

/// What passes of one request.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of its body; counted by who reads it.
    received: OnceLock<Arc<Received>>,
    /// Pieces of its response that were taken.
    taken: AtomicU64,
    is_cut: AtomicBool,
}

impl Progress {
    /// That of the stream whose task this is.
    pub fn of_stream() -> Option<Arc<Self>> {
        OWN.try_with(Arc::clone).ok()
    }

    /// Bytes of its body are counted here.
    pub fn receives(&self, received: &Arc<Received>) {
        self.received.get_or_init(|| received.clone());
    }

    /// A piece of its response was taken.
    pub fn taken(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it was ended because nothing passed.
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    fn count(&self) -> (u64, u64) {
        let received = self.received.get().map_or(0, |received| received.bytes());
        (received, self.taken.load(Ordering::Relaxed))
    }

    /// Waits until nothing has passed for as long as `limit`, and less than twice that.
    async fn stuck(&self, limit: Duration) {
        unchanged(limit, || Some(self.count())).await;
    }
}

/// Runs a client's streams, each in a task that has an owner.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Owns them.
    pub tasks: Tasks,
    /// How long nothing may pass on one.
    pub idle: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (progress, idle) = (Arc::<Progress>::default(), self.idle);
        let watched = progress.clone();
        self.tasks.spawn(
            "http2",
            OWN.scope(progress, async move {
                let stuck = async {
                    watched.stuck(idle).await;
                    watched.is_cut.store(true, Ordering::Relaxed);
                };
                tokio::select! {
                    () = stream => {}
                    // Dropped, the stream is reset, whether or not its client gives it window.
                    () = stuck => {}
                }
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_on_which_nothing_passes_is_stuck_and_one_on_which_something_does_is_not() {
        let (progress, limit) = (Arc::new(Progress::default()), Duration::from_secs(10));
        let received = Arc::new(Received::default());
        progress.receives(&received);
        let lively = async {
            for turn in 0..20u64 {
                sleep(limit / 2).await;
                if turn % 2 == 0 {
                    received.see(b"x");
                } else {
                    progress.taken();
                }
            }
        };
        assert!(timeout(limit * 9, futures::future::join(progress.stuck(limit), lively)).await.is_err());
        let began = Instant::now();
        progress.stuck(limit).await;
        assert_eq!(began.elapsed(), limit);
        assert!(Progress::of_stream().is_none(), "this task is no stream's");
    }
}
