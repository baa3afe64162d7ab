//! One run: every scenario of every system in turn, in a mesh of its own.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;

use super::crowd::Crowd;
use super::load::Measured;
use super::place::{Client, Place, Stage};
use super::policies::{self, Pushed};
use super::process::{Cpu, Process, Usage};
use super::report::{Point, Report};
use super::scenario::{ALL, Beside, Gives, Kind, Scenario, calls, values};
use super::systems::{System, Wire};
use super::watch::Watch;
use super::{Bench, memory, wire};

/// How often a measurement that others disturbed is repeated.
const ATTEMPTS: u32 = 3;

/// One measurement of a load.
struct Sample {
    measured: Measured,
    /// CPU seconds of the proxies meanwhile; `None` where there are none.
    cpu: Option<f64>,
    /// The share of the machine that others had, 0 to 1.
    foreign: f64,
    /// System calls of the proxies, where they were counted.
    calls: Option<u64>,
    /// Quantities beside those of the load.
    more: Vec<(&'static str, f64)>,
}

pub(super) fn run(bench: &Bench, systems: &[System]) -> anyhow::Result<Report> {
    crate::driver::clear_away_when_interrupted()?;
    crate::output::note("… the systems start");
    let mut stage = Stage::set(systems)?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut points = Vec::new();
    let compares = |scenario: &&Scenario| scenario.name == "fresh" || matches!(scenario.kind, Kind::Idle { .. });
    let is_fresh_asked = bench.scenarios.is_empty() || bench.scenarios.iter().any(compares);
    let fresh = if is_fresh_asked { memory::fresh(&stage, &mut points)? } else { memory::Fresh::new() };
    // What is wrong with this is wrong with everything after it.
    let wires = wire::check_all(&stage)?;
    let with_tunnels = |place: &&Place| place.in_mesh && place.wire == Wire::Encrypted;
    let chosen = |scenario: &&Scenario| bench.scenarios.is_empty() || bench.scenarios.iter().any(|one| one == scenario);
    let possible = |scenario: &&Scenario| match scenario.beside {
        Beside::Nothing => true,
        Beside::Crowd => bench.pods > 0,
        Beside::Workloads => bench.workloads > 0,
        Beside::Policies => bench.policies > 0,
    };
    let (mut crowd, mut is_filled, mut has_policies) = (None, false, false);
    for scenario in ALL.iter().filter(chosen).filter(possible) {
        match (scenario.beside, crowd.take()) {
            (Beside::Crowd, None) => crowd = Some(Crowd::gather(&stage, bench.pods, &mut points)?),
            (Beside::Crowd, gathered) => crowd = gathered,
            (_, Some(gathered)) => gathered.leave(&stage)?,
            (_, None) => {}
        }
        let with_many = matches!(scenario.beside, Beside::Workloads | Beside::Policies);
        if with_many && !is_filled && bench.workloads > 0 {
            memory::fill(&stage, bench.workloads)?;
            is_filled = true;
        }
        if scenario.beside == Beside::Policies && !has_policies {
            policies::load(&stage, bench.policies, &mut points)?;
            has_policies = true;
        }
        match scenario.kind {
            Kind::Once => {}
            Kind::Push => {
                let in_turns = Turns { bench, stage: &stage, scenario, gives: Gives::Pushed };
                in_turns.measure(with_tunnels, &mut points, |place, watch| {
                    let watching = watch.begin(&place.proxies)?;
                    let (usage, started) = (Usage::now()?, Instant::now());
                    let Pushed { measured, more } = policies::push(place, bench.seconds)?;
                    let foreign = Usage::now()?.foreign_since(usage, started.elapsed().as_secs_f64(), cpus);
                    let calls = watching.end()?;
                    Ok(Sample { measured, cpu: None, foreign, calls, more })
                })?;
            }
            Kind::Cold { at_a_time } => {
                let in_turns = Turns { bench, stage: &stage, scenario, gives: Gives::Rate };
                in_turns.measure(with_tunnels, &mut points, |place, watch| {
                    let others = crowd.as_ref().map_or(String::new(), |crowd| crowd.far(place).join(","));
                    place.in_new_pod("cold", at_a_time, &["--others", &others], |client| {
                        sample(place, client, cpus, watch)
                    })
                })?;
            }
            Kind::Load { shape, connections, gives } => {
                let in_turns = Turns { bench, stage: &stage, scenario, gives };
                in_turns.measure(
                    |_| true,
                    &mut points,
                    |place, watch| sample(place, place.client(shape, connections, bench.seconds)?, cpus, watch),
                )?;
            }
            Kind::Idle { connections } => memory::idle(&stage, scenario, connections, &fresh, &mut points)?,
            Kind::Scale => {
                memory::scale(&stage, bench.workloads, &mut points)?;
                stage.find_again()?;
            }
        }
    }
    stage.down()?;
    if !bench.scenarios.is_empty() {
        points.retain(|point| bench.scenarios.iter().any(|scenario| scenario.name == point.scenario));
    }
    Ok(Report {
        rounds: bench.rounds,
        seconds: bench.seconds,
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus,
        optimized: !cfg!(debug_assertions),
        foreign_percent: bench.foreign,
        systems: stage.places.iter().map(|place| place.name.clone()).collect(),
        given: stage.places.iter().filter(|place| place.given).map(|place| place.name.clone()).collect(),
        wires,
        points,
        verdicts: Vec::new(),
    })
}

/// A scenario that is measured in every round.
struct Turns<'a> {
    bench: &'a Bench,
    stage: &'a Stage,
    scenario: &'a Scenario,
    gives: Gives,
}

impl Turns<'_> {
    /// Measures each of some systems in each round.
    fn measure(
        &self,
        is_meant: impl Fn(&&Place) -> bool,
        points: &mut Vec<Point>,
        sample: impl Fn(&Place, &Watch) -> anyhow::Result<Sample>,
    ) -> anyhow::Result<()> {
        let Self { bench, stage, scenario, gives } = *self;
        let places: Vec<&Place> = stage.places.iter().filter(is_meant).collect();
        for round in 0..bench.rounds {
            crate::output::note(&format!("… {}, round {} of {}", scenario.what, round + 1, bench.rounds));
            // Another one is first in each round, and every other round goes backwards, so that a drift of the machine
            // favours nobody.
            let first = round as usize % places.len().max(1);
            let mut order: Vec<&Place> = places.iter().copied().cycle().skip(first).take(places.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for place in order {
                let (sample, attempts) = repeat(bench.foreign / 100.0, || sample(place, &Watch::Not))
                    .with_context(|| format!("{}, {}", scenario.what, place.name))?;
                points.push(Point {
                    scenario: scenario.name,
                    system: place.name.clone(),
                    round,
                    attempts,
                    foreign_percent: sample.foreign * 100.0,
                    disturbed: sample.foreign * 100.0 > bench.foreign,
                    values: values(gives, &sample.measured, sample.cpu).into_iter().chain(sample.more).collect(),
                });
            }
        }
        for place in places.iter().copied().filter(|place| !place.proxies.is_empty()) {
            let failed = || format!("{}, {}", scenario.what, place.name);
            if bench.calls && matches!(gives, Gives::Bytes | Gives::Rate) {
                crate::output::note(&format!("… {}, system calls of {}", scenario.what, place.name));
                let sample = sample(place, &Watch::Calls).with_context(failed)?;
                let values = sample.calls.and_then(|count| calls(gives, &sample.measured, count));
                points.push(once(scenario.name, &place.name, values.into_iter().collect()));
            }
            if let Some(folder) = &bench.profile {
                crate::output::note(&format!("… {}, profile of {}", scenario.what, place.name));
                let name = format!("{}-{}", scenario.name, place.name);
                sample(place, &Watch::Profile(folder.clone(), name)).with_context(failed)?;
            }
        }
        Ok(())
    }
}

/// Measures again, a few times, while others have too much of the machine. The sample that was disturbed least, and how many
/// it took.
fn repeat(most: f64, mut measure: impl FnMut() -> anyhow::Result<Sample>) -> anyhow::Result<(Sample, u32)> {
    let mut best = measure()?;
    let mut attempts = 1;
    while best.foreign > most && attempts < ATTEMPTS {
        let again = measure()?;
        attempts += 1;
        if again.foreign < best.foreign {
            best = again;
        }
    }
    Ok((best, attempts))
}

/// Has a client measure, whose connections are open.
fn sample(place: &Place, mut client: Client, cpus: usize, watch: &Watch) -> anyhow::Result<Sample> {
    let watching = watch.begin(&place.proxies)?;
    let (usage, before, started) = (Usage::now()?, cpu(&place.proxies)?, Instant::now());
    let measured = client.go()?;
    let (after, elapsed) = (cpu(&place.proxies)?, started.elapsed().as_secs_f64());
    let spent = after.iter().zip(&before).map(|(after, before)| after.since(*before)).sum();
    let foreign = Usage::now()?.foreign_since(usage, elapsed, cpus);
    let calls = watching.end()?;
    client.end()?;
    Ok(Sample { measured, cpu: (!place.proxies.is_empty()).then_some(spent), foreign, calls, more: Vec::new() })
}

fn cpu(proxies: &[Process]) -> anyhow::Result<Vec<Cpu>> {
    proxies.iter().map(|proxy| proxy.cpu()).collect()
}

/// A point of what is measured once.
pub(super) fn once(scenario: &'static str, system: &str, values: BTreeMap<&'static str, f64>) -> Point {
    Point { scenario, system: system.to_owned(), round: 0, attempts: 1, foreign_percent: 0.0, disturbed: false, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(shares: &[f64]) -> (f64, u32) {
        let mut shares = shares.iter();
        let measure = || {
            let foreign = *shares.next().context("one more than it was to take")?;
            Ok(Sample { measured: Measured::default(), cpu: None, foreign, calls: None, more: Vec::new() })
        };
        let (sample, attempts) = repeat(0.05, measure).unwrap();
        (sample.foreign, attempts)
    }

    #[test]
    fn a_disturbed_sample_is_repeated_a_few_times_and_the_calmest_counts() {
        assert_eq!(measured(&[0.01]), (0.01, 1));
        assert_eq!(measured(&[0.3, 0.02]), (0.02, 2));
        assert_eq!(measured(&[0.3, 0.1, 0.2]), (0.1, 3));
    }
}
