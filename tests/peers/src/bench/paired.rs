//! Ratios of two that were measured in turns: their middle, and where the true one is for all that is known.

use serde_json::{Value, json};

use super::median;

/// How sure intervals are: of five figures all are right in 95 of 100 runs. Two-sided, in standard deviations of the normal distribution.
const DEVIATIONS: f64 = 2.576;

/// What a ratio may be away from 1 until recording costs too much.
pub const PROMISED: f64 = 0.01;

/// Which way a figure is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worse {
    /// As requests a second.
    Smaller,
    /// As latency.
    Greater,
}

/// What was measured of two, round by round.
#[derive(Debug)]
pub struct Figure {
    /// What it is.
    pub what: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// Which way it is worse.
    pub worse: Worse,
    /// Of each round: with records and without.
    pub rounds: Vec<[f64; 2]>,
}

/// Whether the cost is below the promised one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval says so.
    Holds,
    /// The whole interval says that it is not.
    Broken,
    /// The interval has both in it.
    Unknown,
}

impl Verdict {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "below 1 %",
            Self::Broken => "above 1 %",
            Self::Unknown => "cannot be said",
        }
    }
}

impl Figure {
    /// The ratio of each round. Both were the same process: what luck it had is in both, and rounds are taken for independent of each other.
    fn ratios(&self) -> Vec<f64> {
        self.rounds.iter().map(|[with, without]| with / without).collect()
    }

    /// The middle of the rounds' ratios: the median of all averages of two (Hodges and Lehmann's estimator).
    pub fn ratio(&self) -> f64 {
        median(&averages(&self.ratios()))
    }

    /// Where the ratio is; everything where there are too few rounds to tell.
    pub fn interval(&self) -> [f64; 2] {
        interval(&self.ratios())
    }

    /// Whether the interval has 1 in it.
    pub fn is_none(&self) -> bool {
        let [low, high] = self.interval();
        low <= 1.0 && 1.0 <= high
    }

    /// Whether recording costs less than it may.
    pub fn verdict(&self) -> Verdict {
        let [low, high] = self.interval();
        let (best, worst) = match self.worse {
            Worse::Smaller => (1.0 - high, 1.0 - low),
            Worse::Greater => (low - 1.0, high - 1.0),
        };
        match () {
            () if worst < PROMISED => Verdict::Holds,
            () if best > PROMISED => Verdict::Broken,
            () => Verdict::Unknown,
        }
    }

    /// Medians, ratio and interval.
    pub fn json(&self) -> Value {
        let of = |index: usize| median(&self.rounds.iter().map(|values| values[index]).collect::<Vec<_>>());
        json!({
            "what": self.what, "unit": self.unit, "with": of(0), "without": of(1), "ratio": self.ratio(),
            "interval": self.interval(), "verdict": self.verdict().as_str(), "rounds": self.rounds,
        })
    }
}

/// Where the middle is that these were drawn around, as often above it as below: between two of their averages, by Wilcoxon's
/// signed-rank test. It asks little of how they are spread, and knows nearly as much as where they are spread normally.
fn interval(values: &[f64]) -> [f64; 2] {
    let count = values.len() as f64;
    let pairs = count * (count + 1.0);
    let below = (pairs / 4.0 - DEVIATIONS * (pairs * (2.0 * count + 1.0) / 24.0).sqrt()).floor();
    if below < 1.0 {
        return [f64::NEG_INFINITY, f64::INFINITY];
    }
    let mut sorted = averages(values);
    sorted.sort_by(f64::total_cmp);
    let low = below as usize - 1;
    [sorted[low], sorted[sorted.len() - 1 - low]]
}

/// Of each two, and of each with itself.
fn averages(values: &[f64]) -> Vec<f64> {
    let with = |at: usize| values[at..].iter().map(move |other| f64::midpoint(values[at], *other));
    (0..values.len()).flat_map(with).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(worse: Worse, ratios: impl Iterator<Item = f64>) -> Figure {
        Figure { what: "x", unit: "y", worse, rounds: ratios.map(|ratio| [ratio, 1.0]).collect() }
    }

    /// A hundred around a middle, as far as 5 % away.
    fn around(middle: f64) -> impl Iterator<Item = f64> {
        (-50..=50).map(move |step| middle + f64::from(step) / 1000.0)
    }

    #[test]
    fn the_interval_is_that_of_the_signed_rank_test() {
        // The 1775th of 5050 averages from either end.
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(interval(&hundred), [42.5, 58.5]);
        assert_eq!(median(&averages(&hundred)), 50.5);
        assert_eq!(interval(&hundred[..9]), [f64::NEG_INFINITY, f64::INFINITY]);
        assert!(interval(&[]).iter().all(|end| end.is_infinite()));
    }

    #[test]
    fn what_is_surely_below_holds_what_is_surely_above_is_broken_and_else_nothing_is_said() {
        for (middle, spread, worse, expected) in [
            (1.001, 0.1, Worse::Greater, Verdict::Holds),
            (0.95, 0.1, Worse::Greater, Verdict::Holds),
            (1.02, 0.1, Worse::Greater, Verdict::Broken),
            (1.02, 0.1, Worse::Smaller, Verdict::Holds),
            (0.98, 0.1, Worse::Smaller, Verdict::Broken),
            (1.009, 1.0, Worse::Greater, Verdict::Unknown),
            (0.995, 1.0, Worse::Smaller, Verdict::Unknown),
        ] {
            let figure = figure(worse, around(0.0).map(|step| middle + step * spread));
            assert_eq!(figure.verdict(), expected, "{middle} {spread} {worse:?} {:?}", figure.interval());
        }
        assert_eq!(figure(Worse::Greater, std::iter::empty()).verdict(), Verdict::Unknown);
    }

    #[test]
    fn nothing_between_two_that_are_the_same() {
        assert!(figure(Worse::Greater, around(1.0)).is_none() && !figure(Worse::Greater, around(1.03)).is_none());
    }
}
