use std::time::Duration;

use super::super::load::Measured;
use super::*;
use crate::differential::chance::Chance;

/// A machine as one finds it: it becomes slower and faster over many rounds, some requests take much longer than others, and some turns
/// are hit by something that many of their requests wait for.
struct Machine(Chance);

impl Machine {
    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.0.below(1 << 30) as f64 + 0.5) / f64::from(1 << 30)
    }

    /// One with records, which make everything so many times as long, and one without, in turns.
    fn rounds(&mut self, count: usize, cost: f64) -> Vec<[Measured; 2]> {
        (0..count).map(|round| self.round(1.0 + 0.3 * (round as f64 / 40.0).sin(), cost)).collect()
    }

    fn round(&mut self, drift: f64, cost: f64) -> [Measured; 2] {
        let mut round: [Measured; 2] = Default::default();
        for first in [self.0.below(2), self.0.below(2)] {
            for side in [first, 1 - first, 1 - first, first] {
                let slower = drift * if side == 0 { cost } else { 1.0 };
                let is_hit = self.0.hits(3);
                let requests = 40 + self.0.below(20);
                let one = |machine: &mut Self| {
                    let tail = if machine.0.hits(10) { 1.5 * machine.part().powf(-0.1) } else { 1.0 };
                    let waits = if is_hit { machine.part() * 3000.0 } else { 0.0 };
                    let latency = 300.0 * slower * (0.8 + 0.4 * machine.part()) * tail + waits;
                    Duration::from_secs_f64(latency / 1e6)
                };
                let latencies: Vec<_> = (0..requests).map(|_| one(self)).collect();
                let hit = if is_hit { 1.3 } else { 1.0 };
                let seconds = requests as f64 / 3000.0 * slower * hit * (0.95 + 0.1 * self.part());
                round[side].add(Measured { requests, seconds, latencies });
            }
        }
        round
    }
}

fn figure(worse: Worse, rounds: impl Iterator<Item = [f64; 2]>) -> Figure {
    Figure::new(Named { what: "x", unit: "y", worse }, rounds)
}

/// Throughput, median and 99th percentile.
fn figures(rounds: &[[Measured; 2]]) -> [Figure; 3] {
    let of = |of: fn(&Measured) -> f64| rounds.iter().map(move |round| round.each_ref().map(of));
    [
        figure(Worse::Smaller, of(|side| side.requests as f64 / side.seconds)),
        figure(Worse::Greater, of(|side| side.percentile(50.0))),
        figure(Worse::Greater, of(|side| side.percentile(99.0))),
    ]
}

#[test]
fn the_interval_is_that_of_the_signed_rank_test() {
    // The 1775th of 5050 averages from either end.
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
    let [low, high] = interval(&hundred, SAME);
    near(low, 42.5);
    near(high, 58.5);
    near(average(&hundred, averages(100).div_ceil(2)), 50.5);
    assert_eq!(interval(&hundred[..5], SURE), [f64::NEG_INFINITY, f64::INFINITY]);
    assert!(interval(&[], SURE).iter().all(|end| end.is_infinite()) && average(&[], 1).is_nan());
}

#[test]
fn averages_have_the_rank_that_they_have_when_they_are_sorted() {
    let mut machine = Machine(Chance::new(5));
    let mut values: Vec<f64> = (0..40).map(|_| (machine.part() * 9.0).floor()).collect();
    values.sort_by(f64::total_cmp);
    let mut all: Vec<f64> = (0..40)
        .flat_map(|at| values[at..].iter().map(|other| f64::midpoint(values[at], *other)).collect::<Vec<_>>())
        .collect();
    all.sort_by(f64::total_cmp);
    assert_eq!(all.len(), averages(40));
    for (rank, expected) in (1..).zip(&all) {
        assert!((average(&values, rank) - expected).abs() < 1e-9, "{rank}");
    }
}

#[test]
fn intervals_have_the_true_ratio_in_them_as_often_as_they_say() {
    const RUNS: usize = 40;
    for cost in [1.0, 1.02] {
        let mut machine = Machine(Chance::new(7));
        let (mut right, mut none) = ([0; 3], 0);
        for _ in 0..RUNS {
            let figures = figures(&machine.rounds(60, cost));
            for ((right, figure), truth) in right.iter_mut().zip(&figures).zip([1.0 / cost, cost, cost]) {
                let [low, high] = figure.interval();
                *right += usize::from(low <= truth && truth <= high);
            }
            none += figures.iter().filter(|figure| figure.is_none()).count();
        }
        // 95 of 100, but for what chance does to so few.
        assert!(right.iter().all(|right| right * 100 >= RUNS * 85), "{right:?}");
        // 99 of 100 are none where there is none.
        assert!(cost > 1.0 || none * 100 >= 3 * RUNS * 95, "{none}");
    }
}

#[test]
fn what_costs_two_percent_is_told_to_be_above_and_what_costs_a_fifth_of_one_below() {
    for (cost, expected) in [(1.02, Verdict::Broken), (1.002, Verdict::Holds)] {
        let rounds = Machine(Chance::new(3)).rounds(3000, cost);
        for figure in &figures(&rounds) {
            assert_eq!(figure.verdict(), expected, "{cost}: {:?}", figure.interval());
        }
    }
}

#[test]
fn what_is_better_holds_and_what_is_near_the_limit_is_not_told() {
    let around =
        |middle: f64, spread: f64| (-50..=50).map(move |step| [middle + spread * f64::from(step) / 1000.0, 1.0]);
    for (middle, spread, worse, expected) in [
        (1.001, 0.1, Worse::Greater, Verdict::Holds),
        (0.95, 0.1, Worse::Greater, Verdict::Holds),
        (1.02, 0.1, Worse::Greater, Verdict::Broken),
        (1.02, 0.1, Worse::Smaller, Verdict::Holds),
        (0.98, 0.1, Worse::Smaller, Verdict::Broken),
        (1.009, 1.0, Worse::Greater, Verdict::Unknown),
        (0.995, 1.0, Worse::Smaller, Verdict::Unknown),
    ] {
        let figure = figure(worse, around(middle, spread));
        assert_eq!(figure.verdict(), expected, "{middle} {spread} {worse:?} {:?}", figure.interval());
    }
    assert!(figure(Worse::Greater, around(1.0, 1.0)).is_none() && !figure(Worse::Greater, around(1.03, 1.0)).is_none());
    let none = figure(Worse::Greater, std::iter::empty());
    assert_eq!((none.verdict(), none.rounds_for(0.01), none.is_none()), (Verdict::Unknown, None, true));
}

#[test]
fn rounds_that_are_needed_grow_with_the_square_of_how_exact_it_is_to_be() {
    let [throughput, ..] = figures(&Machine(Chance::new(1)).rounds(200, 1.0));
    let [low, high] = throughput.interval().map(f64::ln);
    let away = (high - low) / 2.0;
    assert_eq!(throughput.rounds_for(away * 1.0001), Some(200));
    assert_eq!(throughput.rounds_for(away * 0.50001), Some(800));
}
