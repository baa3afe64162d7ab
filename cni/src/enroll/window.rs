//! The window at the agent's start in which pods of the mesh run uncaptured: from the start until the last of them is
//! under the guard. Measured, logged, and a metric.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// The pods that are still open. Clones share it.
#[derive(Clone, Debug)]
pub struct Window {
    state: Arc<Mutex<State>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    start: Instant,
    /// Pods of which it is not known yet.
    open: HashSet<String>,
    /// Pods that ran uncaptured and are under the guard, and when the last of them was.
    guarded: usize,
    window: Duration,
}

impl Window {
    /// Starts now, with no pods.
    pub fn new(metrics: Metrics) -> Self {
        let state = State { start: Instant::now(), open: HashSet::new(), guarded: 0, window: Duration::ZERO };
        Self { state: Arc::new(Mutex::new(state)), metrics }
    }

    /// These pods were found running and are to be captured; whether they are is not known.
    pub fn expect(&self, uids: HashSet<String>) {
        self.state.lock().open = uids;
    }

    /// A pod is captured already, or no longer to be.
    pub fn closed(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.open.remove(uid) {
            self.look(&state);
        }
    }

    /// A pod is under the guard now, and was not when it was found.
    pub fn guarded(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.open.remove(uid) {
            state.guarded += 1;
            state.window = state.start.elapsed();
            self.look(&state);
        }
    }

    fn look(&self, state: &State) {
        if !state.open.is_empty() || state.guarded == 0 {
            return;
        }
        self.metrics.start_window.set(state.window.as_secs_f64());
        tracing::info!(pods = state.guarded, window = ?state.window, "pods that ran uncaptured are under the guard");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expecting(uids: &[&str]) -> (Window, Metrics) {
        let metrics = Metrics::default();
        let window = Window::new(metrics.clone());
        window.expect(uids.iter().map(|uid| (*uid).to_owned()).collect());
        (window, metrics)
    }

    #[test]
    fn the_window_ends_with_the_last_pod() {
        let (window, metrics) = expecting(&["a", "b", "c"]);
        window.guarded("a");
        window.guarded("x");
        window.closed("c");
        assert_eq!(metrics.start_window.get().to_bits(), 0f64.to_bits());
        window.guarded("b");
        assert!(metrics.start_window.get() > 0.0);
    }

    #[test]
    fn pods_that_are_captured_already_leave_no_window() {
        let (window, metrics) = expecting(&["a"]);
        window.closed("a");
        window.guarded("a");
        assert_eq!(metrics.start_window.get().to_bits(), 0f64.to_bits());
    }
}
