//! The window at the agent's start in which pods of the mesh run uncaptured: from the start until the last of them is
//! under the guard. Measured, logged, and a metric.

use std::collections::HashSet;
use std::sync::Arc;

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
    open: HashSet<String>,
    pods: usize,
    begun: bool,
}

impl Window {
    /// Starts now, with no pods.
    pub fn new(metrics: Metrics) -> Self {
        let state = State { start: Instant::now(), open: HashSet::new(), pods: 0, begun: false };
        Self { state: Arc::new(Mutex::new(state)), metrics }
    }

    /// A pod is found running that is to be captured, and nothing says that it is.
    pub fn expect(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.open.insert(uid.to_owned()) {
            state.pods += 1;
        }
    }

    /// All such pods have been named.
    pub fn begin(&self) {
        self.state.lock().begun = true;
        self.look();
    }

    /// A pod is behind the guard, captured already, or no longer to be.
    pub fn closed(&self, uid: &str) {
        if self.state.lock().open.remove(uid) {
            self.look();
        }
    }

    fn look(&self) {
        let state = self.state.lock();
        if !state.begun || !state.open.is_empty() {
            return;
        }
        let window = state.start.elapsed();
        self.metrics.start_window.set(window.as_secs_f64());
        if state.pods > 0 {
            tracing::info!(pods = state.pods, ?window, "pods that ran uncaptured are under the guard");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ends_with_the_last_pod() {
        let metrics = Metrics::default();
        let window = Window::new(metrics.clone());
        window.expect("a");
        window.expect("b");
        window.closed("c");
        window.closed("a");
        window.begin();
        assert_eq!(metrics.start_window.get().to_bits(), 0f64.to_bits());
        window.closed("b");
        assert!(metrics.start_window.get() > 0.0);
    }
}
