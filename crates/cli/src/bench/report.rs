//! What a run found: samples, medians with their ranges, ratios paired within a round; as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::budgets::Verdict;
use super::scenario::{ALL, QUANTITIES};
use super::systems::{OURS, RAW};
use super::wire::Seen;

/// One measurement of one system.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    /// Which scenario.
    pub(super) scenario: &'static str,
    /// Which system.
    pub(super) system: String,
    /// In which round.
    pub(super) round: u32,
    /// How many measurements it took until others left the machine alone.
    pub(super) attempts: u32,
    /// How much of the machine others had.
    pub(super) foreign_percent: f64,
    /// It was too much.
    pub(super) disturbed: bool,
    /// Quantities by name.
    pub(super) values: BTreeMap<&'static str, f64>,
}

/// The median of some measurements, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest.
    pub(super) low: f64,
    /// The largest.
    pub(super) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), low, high })
    }
}

/// Values of a quantity: those of a system by round.
pub(super) fn by_round(points: &[Point], scenario: &str, quantity: &str, system: &str) -> BTreeMap<u32, f64> {
    let those = points.iter().filter(|point| point.scenario == scenario && point.system == system);
    those.filter_map(|point| Some((point.round, *point.values.get(quantity)?))).collect()
}

/// Ours and another's, of each round that has both.
pub(super) fn paired(points: &[Point], scenario: &str, quantity: &str, [ours, other]: [&str; 2]) -> Vec<(f64, f64)> {
    let other = by_round(points, scenario, quantity, other);
    let ours = by_round(points, scenario, quantity, ours);
    ours.into_iter().filter_map(|(round, ours)| Some((ours, *other.get(&round)?))).collect()
}

/// One quantity of one scenario.
#[derive(Clone, Debug, Serialize)]
struct Row {
    scenario: &'static str,
    quantity: &'static str,
    unit: &'static str,
    /// By system.
    values: BTreeMap<String, Spread>,
    /// The mesh's divided by each other system's, paired within each round.
    ratios: BTreeMap<String, Spread>,
}

/// Everything.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) optimized: bool,
    /// More than this was too much for others to have.
    pub(super) foreign_percent: f64,
    /// In the order of columns.
    pub(super) systems: Vec<String>,
    /// Those that came as files.
    pub(super) given: Vec<String>,
    pub(super) wires: BTreeMap<String, Seen>,
    pub(super) points: Vec<Point>,
    pub(super) verdicts: Vec<Verdict>,
}

impl Report {
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for scenario in &ALL {
            for quantity in &QUANTITIES {
                let spread = |system: &String| {
                    let values: Vec<f64> =
                        by_round(&self.points, scenario.name, quantity.name, system).into_values().collect();
                    Some((system.clone(), Spread::of(&values)?))
                };
                let values: BTreeMap<_, _> = self.systems.iter().filter_map(spread).collect();
                if values.is_empty() {
                    continue;
                }
                let ratio = |system: &String| {
                    let pairs = paired(&self.points, scenario.name, quantity.name, [OURS, system]);
                    let ratios: Vec<f64> =
                        pairs.iter().filter(|(_, other)| *other > 0.0).map(|(ours, other)| ours / other).collect();
                    Some((system.clone(), Spread::of(&ratios)?))
                };
                let others = self.systems.iter().filter(|system| *system != OURS);
                let ratios = others.filter_map(ratio).collect();
                rows.push(Row {
                    scenario: scenario.name,
                    quantity: quantity.name,
                    unit: quantity.unit,
                    values,
                    ratios,
                });
            }
        }
        rows
    }

    /// For programs: rows, and every sample.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "rounds": self.rounds, "seconds": self.seconds, "kernel": self.kernel, "cpus": self.cpus,
            "optimized": self.optimized, "foreign_percent": self.foreign_percent, "systems": self.systems,
            "wire": self.wires, "rows": self.rows(), "samples": self.points, "budgets": self.verdicts,
        })
    }

    /// For people; it is Markdown as well.
    pub(super) fn table(&self) -> String {
        let compared: Vec<&str> =
            if self.given.is_empty() { vec![RAW] } else { self.given.iter().map(String::as_str).collect() };
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        let mut header = vec![String::new(), "unit".to_owned()];
        header.extend(self.systems.iter().cloned());
        header.extend(compared.iter().map(|other| format!("{OURS} ÷ {other}")));
        table.set_header(header);
        for row in self.rows() {
            let Some(quantity) = super::scenario::quantity_named(row.quantity).filter(|quantity| quantity.in_table)
            else {
                continue;
            };
            let separator = if quantity.what.is_empty() { "" } else { ": " };
            let what = ALL.iter().find(|scenario| scenario.name == row.scenario).map_or("", |scenario| scenario.what);
            let mut cells = vec![format!("{what}{separator}{}", quantity.what), row.unit.to_owned()];
            let mark = |system: &str| if self.is_disturbed(row.scenario, system) { " \\*" } else { "" };
            let value = |system: &String| match row.values.get(system) {
                Some(spread) => format!("{}{}", digits(spread.median), mark(system)),
                None => String::new(),
            };
            cells.extend(self.systems.iter().map(value));
            let ratio = |other: &&str| match row.ratios.get(*other) {
                Some(spread) if spread.low < spread.high => {
                    format!("{} ({} – {})", digits(spread.median), digits(spread.low), digits(spread.high))
                }
                Some(spread) => digits(spread.median),
                None => String::new(),
            };
            cells.extend(compared.iter().map(ratio));
            table.add_row(cells);
        }
        format!("{table}\n\n{}", self.notes())
    }

    fn is_disturbed(&self, scenario: &str, system: &str) -> bool {
        self.points.iter().any(|point| point.disturbed && point.scenario == scenario && point.system == system)
    }

    fn notes(&self) -> String {
        let mut notes = format!(
            "Medians of {} rounds of {} s, systems in turns; ratios paired within rounds, with their range. {} CPUs shared by \
             clients, servers and proxies, Linux {}.",
            self.rounds, self.seconds, self.cpus, self.kernel
        );
        let disturbed = self.points.iter().filter(|point| point.disturbed).count();
        if disturbed > 0 {
            notes += &format!(
                "\n\\* {disturbed} of {} samples are disturbed: others had more than {} % of the machine, each time.",
                self.points.len(),
                self.foreign_percent
            );
        }
        if !self.optimized {
            notes += "\nThis is an unoptimized build: use `cargo run --release`, or tests/bench/run.";
        }
        notes
    }
}

/// Three significant digits.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Points of two systems, `mesh` and `floor`, of scenario `bulk-1`, for tests.
#[cfg(test)]
pub(super) fn sampled(quantity: &'static str, ours: &[f64], floor: &[f64]) -> Vec<Point> {
    let of = |system: &str, values: &[f64]| {
        let point = |(round, value): (usize, &f64)| Point {
            round: u32::try_from(round).unwrap(),
            ..super::run::once("bulk-1", system, [(quantity, *value)].into())
        };
        values.iter().enumerate().map(point).collect::<Vec<_>>()
    };
    [of("mesh", ours), of("floor", floor)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_extremes() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Spread::of(&[]).is_none());
    }

    #[test]
    fn ratios_are_those_of_each_round() {
        // The machine got twice as fast after the first round: the ratio of medians would not be 0.5.
        let points = sampled("gbit-per-s", &[1.0, 2.0, 2.0], &[2.0, 4.0, 4.0]);
        let report = Report {
            rounds: 3,
            seconds: 1.0,
            kernel: "6".to_owned(),
            cpus: 2,
            optimized: true,
            foreign_percent: 5.0,
            systems: vec!["mesh".to_owned(), "floor".to_owned()],
            given: vec!["floor".to_owned()],
            wires: BTreeMap::new(),
            points,
            verdicts: Vec::new(),
        };
        let rows = report.rows();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ratios["floor"], Spread { median: 0.5, low: 0.5, high: 0.5 });
        let table = report.table();
        assert!(table.contains("bulk, 1 stream"), "{table}");
        assert!(table.contains("mesh ÷ floor"), "{table}");
        assert!(!table.contains("disturbed"), "{table}");
    }

    #[test]
    fn what_was_disturbed_is_marked() {
        let mut points = sampled("gbit-per-s", &[1.0], &[2.0]);
        points[0].disturbed = true;
        let report = Report {
            rounds: 1,
            seconds: 1.0,
            kernel: String::new(),
            cpus: 2,
            optimized: true,
            foreign_percent: 5.0,
            systems: vec!["mesh".to_owned(), "floor".to_owned()],
            given: Vec::new(),
            wires: BTreeMap::new(),
            points,
            verdicts: Vec::new(),
        };
        let table = report.table();
        assert!(table.contains("1.00 \\*") && table.contains("1 of 2 samples are disturbed"), "{table}");
        assert!(!table.contains("2.00 \\*"), "{table}");
    }
}
