//! Standard output, in one place: whole lines, and a closed pipe ends the process quietly.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Writes a line to standard output. Where the reader is gone the process ends, as other commands do.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(141);
    }
}

/// Writes a line to standard error; nobody reading it is no reason to stop.
pub(crate) fn note(text: &str) {
    // The result is of no use: there is nowhere else to say it.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The exit code of a command that answers a question by it: an error is told, and is 2, since nothing can be said.
pub(crate) fn answered(code: anyhow::Result<ExitCode>) -> ExitCode {
    code.unwrap_or_else(|error| {
        note(&format!("stillmesh: {error:#}"));
        ExitCode::from(2)
    })
}

/// Columns as wide as their widest cell, as `kubectl` prints them.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How a fact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mark {
    /// As it should be.
    Good,
    /// It works, and somebody should look at it.
    Doubt,
    /// It does not work.
    Bad,
}

/// Marks as they are printed: in colour where somebody looks at a terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    colour: bool,
}

impl Marks {
    /// For standard output.
    pub(crate) fn out() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// For standard error.
    pub(crate) fn err() -> Self {
        Self { colour: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Without colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colour: false }
    }

    /// A mark.
    pub(crate) fn show(self, mark: Mark) -> &'static str {
        match (mark, self.colour) {
            (Mark::Good, false) => "✔",
            (Mark::Doubt, false) => "!",
            (Mark::Bad, false) => "✘",
            (Mark::Good, true) => "\u{1b}[32m✔\u{1b}[0m",
            (Mark::Doubt, true) => "\u{1b}[33m!\u{1b}[0m",
            (Mark::Bad, true) => "\u{1b}[31m✘\u{1b}[0m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(aligned(&rows), "A      B\nlong   x");
    }
}
