//! Ratios of two that were measured in turns: their middle, and where the true one is for all that is known.
//!
//! A round has turns of both beside each other and gives one ratio of each figure: what slowed both is not in it. A round that
//! something hit on one side only is one odd ratio among many: the middle moves little. What makes all rounds a little slower, or one in two, moves
//! it all the same. The ratio of the 99th percentiles of all requests together was two to ten times less exact on a busy machine: that is of the
//! worst moments only. Rounds are taken for independent of each other, which the lot sees to that orders their turns.

use serde_json::{Value, json};

use super::median;

/// How sure an interval is, two-sided, in standard deviations of the normal distribution: it is right in 95 of 100 runs. Who says that
/// several are below a limit, each being surely below, is wrong no more often than with one.
const SURE: f64 = 1.96;
/// How far from 1 no ratio is of two that are the same: of five none is in 95 of 100 runs.
const SAME: f64 = 2.576;
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

/// What a figure is called.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What it is.
    pub what: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// Which way it is worse.
    pub worse: Worse,
}

/// What was measured of two, round by round.
#[derive(Debug)]
pub struct Figure {
    /// What it is called.
    pub named: Named,
    /// Of each round: with records and without.
    rounds: Vec<[f64; 2]>,
    /// The rounds' ratios, their logarithms, ascending: twice as much is as far from 1 as half as much.
    logarithms: Vec<f64>,
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
    /// Of rounds: with records and without.
    pub fn new(named: Named, rounds: impl Iterator<Item = [f64; 2]>) -> Self {
        let rounds: Vec<_> = rounds.collect();
        let mut logarithms: Vec<f64> = rounds.iter().map(|[with, without]| (with / without).ln()).collect();
        logarithms.sort_by(f64::total_cmp);
        Self { named, rounds, logarithms }
    }

    /// What it is with records and without: medians of the rounds.
    pub fn of(&self) -> [f64; 2] {
        [0, 1].map(|side| median(&self.rounds.iter().map(|round| round[side]).collect::<Vec<_>>()))
    }

    /// The middle of the rounds' ratios: the median of all averages of two (Hodges and Lehmann's estimator).
    pub fn ratio(&self) -> f64 {
        average(&self.logarithms, averages(self.logarithms.len()).div_ceil(2)).exp()
    }

    /// Where the ratio is; everything where there are too few rounds to tell.
    pub fn interval(&self) -> [f64; 2] {
        interval(&self.logarithms, SURE).map(f64::exp)
    }

    /// How many rounds make an interval that goes as far as `away` to either side. `None`: too few are known to say so.
    pub fn rounds_for(&self, away: f64) -> Option<usize> {
        let [low, high] = interval(&self.logarithms, SURE);
        let times = ((high - low) / 2.0 / away).powi(2);
        times.is_finite().then(|| (self.rounds.len() as f64 * times).ceil() as usize)
    }

    /// Whether it may well be that both are the same.
    pub fn is_none(&self) -> bool {
        let [low, high] = interval(&self.logarithms, SAME);
        low <= 0.0 && 0.0 <= high
    }

    /// Whether recording costs less than it may.
    pub fn verdict(&self) -> Verdict {
        let [low, high] = self.interval();
        let (best, worst) = match self.named.worse {
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
        let ([with, without], Named { what, unit, .. }) = (self.of(), self.named);
        json!({
            "what": what, "unit": unit, "with": with, "without": without, "ratio": self.ratio(),
            "interval": self.interval(), "verdict": self.verdict().as_str(), "rounds": self.rounds.len(),
        })
    }
}

/// Where the middle is that these were drawn around, as often above it as below: between two of their averages, by Wilcoxon's
/// signed-rank test. It asks little of how they are spread, and knows nearly as much as where they are spread normally. `values` ascend.
fn interval(values: &[f64], deviations: f64) -> [f64; 2] {
    let count = values.len() as f64;
    let pairs = count * (count + 1.0);
    let below = (pairs / 4.0 - deviations * (pairs * (2.0 * count + 1.0) / 24.0).sqrt()).floor();
    if below < 1.0 {
        return [f64::NEG_INFINITY, f64::INFINITY];
    }
    let low = below as usize;
    [low, averages(values.len()) + 1 - low].map(|rank| average(values, rank))
}

/// How many averages there are of each two of so many, and of each with itself.
fn averages(count: usize) -> usize {
    count * (count + 1) / 2
}

/// The one of these averages that has this rank, from 1 on, among them. They are counted, and not kept: thousands of rounds have millions. `values`
/// ascend.
fn average(values: &[f64], rank: usize) -> f64 {
    let (Some(&first), Some(&last)) = (values.first(), values.last()) else { return f64::NAN };
    let (mut low, mut high) = (first, last);
    // As often as halves it down to what two numbers differ in.
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        // As one goes up, fewer go with it.
        let mut others = values.len();
        let mut most = 0;
        for (at, value) in values.iter().enumerate() {
            while others > at && f64::midpoint(*value, values[others - 1]) > middle {
                others -= 1;
            }
            if others <= at {
                break;
            }
            most += others - at;
        }
        if most >= rank {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests;
