//! What a run found: medians with their ranges, as a table and as JSON.

use serde::Serialize;

/// The median of some measurements, with the smallest and the largest.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        Some(Self { median, low: *sorted.first()?, high: *sorted.last()? })
    }
}

/// One quantity, raw and through the mesh.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) raw: Option<Spread>,
    pub(super) mesh: Spread,
    /// Mesh over raw, paired within each round.
    pub(super) ratio: Option<Spread>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) optimized: bool,
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// For people.
    pub(super) fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
        table.set_header(["", "raw TCP", "through the mesh", "mesh ÷ raw", "range of the ratio"]);
        for row in &self.rows {
            let number = |spread: Spread| format!("{} {}", digits(spread.median), row.unit);
            table.add_row([
                row.what.clone(),
                row.raw.map(number).unwrap_or_default(),
                number(row.mesh),
                row.ratio.map(|ratio| digits(ratio.median)).unwrap_or_default(),
                row.ratio.map(|ratio| format!("{} – {}", digits(ratio.low), digits(ratio.high))).unwrap_or_default(),
            ]);
        }
        let build = if self.optimized { "" } else { "\nThis is an unoptimized build: use `cargo run --release`." };
        format!(
            "{table}\nMedians of {} rounds of {} s, raw and mesh alternating; {} CPUs shared by client, server and both node \
             tunnels, Linux {}.{build}",
            self.rounds, self.seconds, self.cpus, self.kernel
        )
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_extremes() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.0, 3.0));
        assert!(Spread::of(&[]).is_none());
    }
}
