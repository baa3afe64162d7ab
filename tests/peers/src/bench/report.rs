//! What was found of the waypoint and Envoy: a table, JSON, and whether promised figures (`budgets.toml`) are kept.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::median;

/// All that was found.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    /// Of the waypoint and of Envoy, round by round.
    of: [Vec<f64>; 2],
}

impl Row {
    /// Of each round that has both.
    fn ratios(&self) -> Vec<f64> {
        let [ours, others] = &self.of;
        ours.iter().zip(others).filter(|(_, other)| **other > 0.0).map(|(ours, other)| ours / other).collect()
    }
}

impl Report {
    /// Adds a line: what was measured of the waypoint and of Envoy, round by round.
    pub fn row(&mut self, what: impl Into<String>, unit: &'static str, of: [Vec<f64>; 2]) {
        self.rows.push(Row { what: what.into(), unit, of });
    }

    /// For people: medians, and the median of the ratios round by round.
    pub fn text(&self) -> String {
        let mut text = format!("{:<52} {:>7} {:>12} {:>12} {:>7}\n", "", "", "waypoint", "Envoy", "ratio");
        for row in &self.rows {
            let [ours, other] = row.of.each_ref().map(|of| median(of));
            let (what, unit, ratio) = (&row.what, row.unit, median(&row.ratios()));
            text += &format!("{what:<52} {unit:>7} {ours:>12.2} {other:>12.2} {ratio:>7.3}\n");
        }
        text
    }

    /// For programs: the same, and the rounds.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            let [ours, other] = &row.of;
            json!({
                "what": row.what, "unit": row.unit, "waypoint": median(ours), "Envoy": median(other),
                "ratio": median(&row.ratios()), "rounds": {"waypoint": ours, "Envoy": other},
            })
        };
        self.rows.iter().map(row).collect()
    }
}

/// A file of promised figures.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    budget: Vec<Budget>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// What a line of the report is called.
    row: String,
    of: Of,
    most: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Of {
    Ratio,
    Waypoint,
}

impl Budgets {
    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let named = || format!("budgets {}", path.display());
        toml::from_str(&std::fs::read_to_string(path).with_context(named)?).with_context(named)
    }

    /// Says of each whether it is kept. Errors: one is broken, or was not measured.
    pub fn check(&self, report: &Report) -> anyhow::Result<()> {
        let mut broken = Vec::new();
        for Budget { row, of, most } in &self.budget {
            let found = report.rows.iter().find(|found| found.what == *row);
            let values = found.map(|found| match of {
                Of::Ratio => found.ratios(),
                Of::Waypoint => found.of[0].clone(),
            });
            let values = values.unwrap_or_default();
            let measured = median(&values);
            let is_kept = measured <= *most;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let word = if is_kept { "kept  " } else { "BROKEN" };
            let what = if *of == Of::Ratio { format!("{row}, ÷ Envoy's") } else { row.clone() };
            println!("{word}  {what} ≤ {most}: {measured:.3} ({low:.3} – {high:.3})");
            if !is_kept {
                broken.push(what);
            }
        }
        ensure!(broken.is_empty(), "not kept: {}", broken.join("; "));
        println!("VERDICT: every promised figure is kept");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ours: f64) -> Report {
        let mut report = Report::default();
        report.row("cost", "µs", [vec![ours, 1.0, ours], vec![4.0, 4.0, 4.0]]);
        report
    }

    fn budgets(text: &str) -> Budgets {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_promise_is_about_the_median_of_ratios_or_of_our_own_figure() {
        let ratio = budgets("[[budget]]\nrow = \"cost\"\nof = \"ratio\"\nmost = 0.5");
        ratio.check(&report(2.0)).unwrap();
        assert!(ratio.check(&report(2.1)).unwrap_err().to_string().contains("cost, ÷ Envoy's"));
        let own = budgets("[[budget]]\nrow = \"cost\"\nof = \"waypoint\"\nmost = 2.5");
        own.check(&report(2.1)).unwrap();
        own.check(&report(3.0)).unwrap_err();
        budgets("[[budget]]\nrow = \"costs\"\nof = \"waypoint\"\nmost = 9.0").check(&report(1.0)).unwrap_err();
    }

    #[test]
    fn the_promised_figures_can_be_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.toml");
        assert!(!Budgets::read(&path).unwrap().budget.is_empty());
    }
}
