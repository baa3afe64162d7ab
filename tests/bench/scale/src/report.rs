//! What was measured, beside what is promised.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// The most that it may be.
    pub at_most: Option<f64>,
}

/// All of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub figures: Vec<Figure>,
}

impl Report {
    pub fn add(&mut self, what: &str, value: f64, unit: &'static str, at_most: Option<f64>) {
        eprintln!("  {what}: {value:.1} {unit}");
        self.figures.push(Figure { what: what.to_owned(), value, unit, at_most });
    }

    /// Median, 99th percentile and worst of some times.
    pub fn times(&mut self, what: &str, mut times: Vec<Duration>, p99_at_most: Option<f64>) {
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        let (median, p99, worst) = (at(0.5), at(0.99), at(1.0));
        self.add(&format!("{what}, median"), median, "ms", None);
        self.add(&format!("{what}, p99"), p99, "ms", p99_at_most);
        self.add(&format!("{what}, worst of {}", times.len()), worst, "ms", None);
    }

    pub fn table(&self) -> String {
        let width = self.figures.iter().map(|figure| figure.what.len()).max().unwrap_or(0);
        let mut table = String::new();
        for Figure { what, value, unit, at_most } in &self.figures {
            let target = at_most.map(|most| format!("(at most {most})")).unwrap_or_default();
            let _ = writeln!(table, "{what:width$}  {value:>10.1} {unit:<8} {target}");
        }
        table
    }

    /// Figures over what is promised.
    pub fn missed(&self) -> Vec<String> {
        let over = |figure: &&Figure| figure.at_most.is_some_and(|most| figure.value.is_nan() || figure.value > most);
        self.figures
            .iter()
            .filter(over)
            .map(|figure| format!("{}: {:.1} {}", figure.what, figure.value, figure.unit))
            .collect()
    }
}
