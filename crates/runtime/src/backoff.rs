//! How long to wait before trying again. Pure: the caller passes the jitter and does the waiting.

use std::time::Duration;

/// Doubling delays between a first and a largest one, with jitter.
///
/// ```
/// # use std::time::Duration;
/// # use stillmesh_runtime::Backoff;
/// let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(15));
/// assert_eq!(backoff.next(1.0), Duration::from_millis(10));
/// assert_eq!(backoff.next(0.0), Duration::from_millis(10)); // 20 ms less half of it
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    current: Duration,
    tries: u32,
}

impl Backoff {
    /// The first delay and the largest one. A `max` below `first` counts as `first`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        let max = max.max(first);
        Self { first, max, current: first, tries: 0 }
    }

    /// The next delay: between half of the nominal one (`jitter` 0.0) and all of it (`jitter` 1.0).
    ///
    /// `jitter` is clamped into 0..=1; not-a-number counts as 1.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let jitter = if jitter.is_nan() { 1.0 } else { jitter.clamp(0.0, 1.0) };
        let nominal = self.current;
        self.current = self.current.saturating_mul(2).min(self.max);
        self.tries = self.tries.saturating_add(1);
        nominal.mul_f64(0.5 + jitter / 2.0)
    }

    /// How many delays were handed out since the last success.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// After a success: the next delay is the first one again.
    pub fn reset(&mut self) {
        self.current = self.first;
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_largest_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        let delays: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35]);
        assert_eq!(backoff.tries(), 4);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 10);
    }

    #[test]
    fn jitter_takes_away_at_most_half_whatever_it_is() {
        for jitter in [-1.0, 0.0, 0.3, 1.0, 7.0, f64::NAN, f64::INFINITY] {
            let delay = Backoff::new(Duration::from_millis(100), Duration::from_secs(1)).next(jitter);
            assert!((50..=100).contains(&delay.as_millis()), "{jitter}: {delay:?}");
        }
    }
}
