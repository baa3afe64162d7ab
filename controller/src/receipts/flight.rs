//! How long generations took to be in force, in buckets.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::build::Role;

/// Generations of which durations are kept; older ones are forgotten.
pub(super) const MOST: usize = 4096;

/// Upper bounds of the buckets, in milliseconds: a fifth more each, to beyond a day.
const BOUNDS: [u32; 64] = bounds();

const fn bounds() -> [u32; 64] {
    let mut all = [1; 64];
    let mut at = 1;
    while at < all.len() {
        let before = all[at - 1];
        let more = before / 5;
        all[at] = before + if more > 1 { more } else { 1 };
        at += 1;
    }
    all
}

/// Generations that some object belongs to.
#[derive(Debug, Default)]
pub(super) struct Flights(BTreeMap<u64, Flight>);

#[derive(Debug, Default)]
struct Flight {
    /// When its objects arrived; `None` where they were there before this process.
    arrived: Option<Instant>,
    objects: usize,
    tunnels: Durations,
    waypoints: Durations,
}

/// Durations of one generation.
#[derive(Clone, Debug)]
pub(super) struct Durations {
    counts: [u32; 64],
    longest: u32,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: [0; 64], longest: 0 }
    }
}

/// How long something took to be in force, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Took {
    /// Of how many clients it is known.
    pub of: u32,
    /// Half of them were not slower. It may be said a fifth too high, as the next may.
    pub p50_ms: u32,
    /// Of a hundred, 99 were not slower.
    pub p99_ms: u32,
    /// The slowest.
    pub max_ms: u32,
}

impl Took {
    /// With what another replica's clients took: the slower one counts.
    pub fn and(self, other: Self) -> Self {
        Self {
            of: self.of + other.of,
            p50_ms: self.p50_ms.max(other.p50_ms),
            p99_ms: self.p99_ms.max(other.p99_ms),
            max_ms: self.max_ms.max(other.max_ms),
        }
    }
}

impl Flights {
    /// An object belongs to this generation now.
    pub fn enter(&mut self, generation: u64, arrived: Option<Instant>) {
        let flight = self.0.entry(generation).or_insert_with(|| Flight { arrived, ..Flight::default() });
        flight.objects += 1;
        if self.0.len() > MOST {
            self.0.pop_first();
        }
    }

    /// An object belongs to this generation no more.
    pub fn leave(&mut self, generation: u64) {
        if let Some(flight) = self.0.get_mut(&generation) {
            flight.objects = flight.objects.saturating_sub(1);
            if flight.objects == 0 {
                self.0.remove(&generation);
            }
        }
    }

    /// A client that is there since `since` has these generations in force.
    pub fn landed(&mut self, generations: Range<u64>, role: &Role, since: Instant, now: Instant) {
        if generations.is_empty() {
            return;
        }
        for flight in self.0.range_mut(generations).map(|(_, flight)| flight) {
            let Some(arrived) = flight.arrived.filter(|arrived| since <= *arrived) else { continue };
            let durations = match role {
                Role::Tunnel => &mut flight.tunnels,
                Role::Waypoint(_) => &mut flight.waypoints,
            };
            let took = now.saturating_duration_since(arrived).as_millis();
            durations.add(u32::try_from(took).unwrap_or(u32::MAX));
        }
    }

    /// How long a generation took for those who carry it out.
    pub fn took(&self, generation: u64, tunnels: bool, waypoints: bool) -> Option<Took> {
        let flight = self.0.get(&generation)?;
        let mut all = Durations::default();
        for (_, one) in
            [(tunnels, &flight.tunnels), (waypoints, &flight.waypoints)].iter().filter(|(wanted, _)| *wanted)
        {
            all.merge(one);
        }
        all.took()
    }
}

impl Durations {
    pub fn add(&mut self, took: u32) {
        let at = BOUNDS.iter().take_while(|bound| **bound < took).count().min(BOUNDS.len() - 1);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.longest = self.longest.max(took);
    }

    fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.longest = self.longest.max(other.longest);
    }

    pub fn took(&self) -> Option<Took> {
        let of: u32 = self.counts.iter().sum();
        let quantile = |percent: u64| {
            let wanted = (u64::from(of) * percent).div_ceil(100);
            let mut below = 0;
            let bound = self.counts.iter().zip(BOUNDS).find_map(|(count, bound)| {
                below += u64::from(*count);
                (below >= wanted).then_some(bound)
            });
            bound.unwrap_or(self.longest).min(self.longest)
        };
        (of > 0).then(|| Took { of, p50_ms: quantile(50), p99_ms: quantile(99), max_ms: self.longest })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quantiles_are_at_most_a_fifth_too_high_and_never_beyond_the_slowest() {
        let mut durations = Durations::default();
        assert_eq!(durations.took(), None);
        (1..=1000).for_each(|took| durations.add(took));
        let Some(took) = durations.took() else { panic!("something was added") };
        assert_eq!((took.of, took.max_ms), (1000, 1000));
        assert!((500..=600).contains(&took.p50_ms) && (990..=1000).contains(&took.p99_ms), "{took:?}");
        durations.add(u32::MAX);
        assert_eq!(durations.took().map(|took| took.max_ms), Some(u32::MAX));
    }

    #[test]
    fn only_who_was_there_when_it_came_says_how_long_it_took() {
        let (mut flights, begin) = (Flights::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        flights.enter(1, None);
        flights.enter(2, Some(at(100)));
        flights.landed(1..3, &Role::Tunnel, at(0), at(140));
        flights.landed(1..3, &Role::Tunnel, at(120), at(150));
        assert_eq!(flights.took(1, true, true), None, "it was there before");
        let took = flights.took(2, true, true);
        assert_eq!(took.map(|took| (took.of, took.p99_ms)), Some((1, 40)));
        assert_eq!(flights.took(2, false, true), None);
        flights.enter(2, None);
        flights.leave(2);
        assert_eq!(flights.took(2, true, true), took, "another object belongs to it");
        flights.leave(2);
        assert_eq!(flights.took(2, true, true), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut flights = Flights::default();
        (0..2 * MOST as u64).for_each(|generation| flights.enter(generation, Some(Instant::now())));
        assert_eq!(flights.0.len(), MOST);
    }
}
