//! The promised figures (`tests/bench/budgets.toml`), and whether a run keeps them.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::report::{Point, Spread, by_round, digits, paired};
use super::scenario::{named, quantity_named};
use super::systems::OURS;

/// A file of budgets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Budgets {
    #[serde(default)]
    budget: Vec<Budget>,
    #[serde(default)]
    elsewhere: Vec<Elsewhere>,
}

/// One promise.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Budget {
    scenario: String,
    quantity: String,
    #[serde(default = "ours")]
    ours: String,
    /// Whom it is compared with; a figure by itself without.
    yardstick: Option<String>,
    comparison: Comparison,
    value: f64,
}

/// A promise that this benchmark does not measure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    what: String,
    /// Which command measures it; none does yet without.
    by: Option<String>,
}

fn ours() -> String {
    OURS.to_owned()
}

/// What is compared with the value: the median over rounds of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Comparison {
    /// Ours ÷ yardstick, not less.
    RatioAtLeast,
    /// Ours ÷ yardstick, not more.
    RatioAtMost,
    /// Ours − yardstick, not more.
    DifferenceAtMost,
    /// Ours, not more.
    AtMost,
}

/// What a run says of a promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    what: String,
    /// What was measured; nothing where it was not.
    measured: Option<Spread>,
    result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Kept,
    Broken,
    /// What it is about was not measured in this run.
    Unchecked,
    /// It is another benchmark's.
    Elsewhere,
}

impl Budgets {
    /// Reads a file. Errors: it cannot be read, or names a scenario or quantity that there is not.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let named = || format!("budgets {}", path.display());
        Self::parse(&std::fs::read_to_string(path).with_context(named)?).with_context(named)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let budgets: Self = toml::from_str(text)?;
        for budget in &budgets.budget {
            let what = budget.what();
            named(&budget.scenario)
                .map_err(|hint| anyhow::anyhow!("{what}: no scenario {}; {hint}", budget.scenario))?;
            ensure!(quantity_named(&budget.quantity).is_some(), "{what}: no quantity {}", budget.quantity);
            let alone = budget.comparison == Comparison::AtMost;
            ensure!(alone || budget.yardstick.is_some(), "{what}: this comparison needs a yardstick");
            ensure!(!alone || budget.yardstick.is_none(), "{what}: this comparison has no yardstick");
        }
        ensure!(!budgets.budget.is_empty(), "no [[budget]] is in it");
        Ok(budgets)
    }

    /// What a run says of each.
    pub(super) fn verdicts(&self, points: &[Point]) -> Vec<Verdict> {
        let elsewhere = self.elsewhere.iter().map(|one| Verdict {
            what: match &one.by {
                Some(command) => format!("{}: measured by {command}", one.what),
                None => format!("{}: not measured yet", one.what),
            },
            measured: None,
            result: Outcome::Elsewhere,
        });
        self.budget.iter().map(|budget| budget.verdict(points)).chain(elsewhere).collect()
    }
}

impl Budget {
    fn what(&self) -> String {
        let Self { scenario, quantity, ours, value, .. } = self;
        let other = self.yardstick.as_deref().unwrap_or_default();
        let (sides, bound) = match self.comparison {
            Comparison::RatioAtLeast => (format!("{ours} ÷ {other}"), "≥"),
            Comparison::RatioAtMost => (format!("{ours} ÷ {other}"), "≤"),
            Comparison::DifferenceAtMost => (format!("{ours} − {other}"), "≤"),
            Comparison::AtMost => (ours.clone(), "≤"),
        };
        format!("{scenario} {quantity}, {sides} {bound} {value}")
    }

    fn verdict(&self, points: &[Point]) -> Verdict {
        let pairs = |with: &dyn Fn((f64, f64)) -> f64| {
            let systems = [self.ours.as_str(), self.yardstick.as_deref().unwrap_or_default()];
            paired(points, &self.scenario, &self.quantity, systems).into_iter().map(with).collect::<Vec<_>>()
        };
        let values = match self.comparison {
            Comparison::RatioAtLeast | Comparison::RatioAtMost => pairs(&|(ours, other)| ours / other),
            Comparison::DifferenceAtMost => pairs(&|(ours, other)| ours - other),
            Comparison::AtMost => by_round(points, &self.scenario, &self.quantity, &self.ours).into_values().collect(),
        };
        let measured = Spread::of(&values).filter(|spread| spread.median.is_finite());
        let keeps = |spread: Spread| match self.comparison {
            Comparison::RatioAtLeast => spread.median >= self.value,
            _ => spread.median <= self.value,
        };
        let result = match measured {
            None => Outcome::Unchecked,
            Some(spread) if keeps(spread) => Outcome::Kept,
            Some(_) => Outcome::Broken,
        };
        Verdict { what: self.what(), measured, result }
    }
}

/// For people, a line each.
pub(super) fn told(verdicts: &[Verdict]) -> String {
    let line = |verdict: &Verdict| {
        let word = match verdict.result {
            Outcome::Kept => "kept     ",
            Outcome::Broken => "BROKEN   ",
            Outcome::Unchecked => "unchecked",
            Outcome::Elsewhere => "elsewhere",
        };
        let measured = verdict.measured.map_or(String::new(), |spread| {
            format!(": {} ({} – {})", digits(spread.median), digits(spread.low), digits(spread.high))
        });
        format!("{word}  {}{measured}\n", verdict.what)
    };
    let count = |result| verdicts.iter().filter(|verdict| verdict.result == result).count();
    format!(
        "{}{} kept, {} broken, {} unchecked",
        verdicts.iter().map(line).collect::<String>(),
        count(Outcome::Kept),
        count(Outcome::Broken),
        count(Outcome::Unchecked)
    )
}

/// Exit code: 1 where a promise is broken, 2 where one of this benchmark could not be checked, else 0.
pub(super) fn exit_code(verdicts: &[Verdict]) -> u8 {
    let any = |result| verdicts.iter().any(|verdict| verdict.result == result);
    if any(Outcome::Broken) {
        1
    } else if any(Outcome::Unchecked) {
        2
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::sampled;
    use super::*;

    fn budget(comparison: &str, value: f64) -> String {
        let yardstick = if comparison == "at-most" { "" } else { "yardstick = \"floor\"\n" };
        format!(
            "[[budget]]\nscenario = \"bulk-1\"\nquantity = \"gbit-per-s\"\n{yardstick}comparison = \"{comparison}\"\nvalue = {value}\n"
        )
    }

    fn judged(comparison: &str, value: f64) -> Outcome {
        let points = sampled("gbit-per-s", &[4.0, 5.0, 6.0], &[5.0, 5.0, 5.0]);
        Budgets::parse(&budget(comparison, value)).unwrap().verdicts(&points)[0].result
    }

    #[test]
    fn the_median_over_rounds_is_compared() {
        assert_eq!(judged("ratio-at-least", 1.0), Outcome::Kept);
        assert_eq!(judged("ratio-at-least", 1.01), Outcome::Broken);
        assert_eq!(judged("ratio-at-most", 0.99), Outcome::Broken);
        assert_eq!(judged("difference-at-most", 0.0), Outcome::Kept);
        assert_eq!(judged("difference-at-most", -0.1), Outcome::Broken);
        assert_eq!(judged("at-most", 5.0), Outcome::Kept);
        assert_eq!(judged("at-most", 4.9), Outcome::Broken);
    }

    #[test]
    fn the_exit_code_says_whether_all_are_kept() {
        let points = sampled("gbit-per-s", &[4.0], &[5.0]);
        let code = |text: &str| exit_code(&Budgets::parse(text).unwrap().verdicts(&points));
        assert_eq!(code(&budget("ratio-at-least", 0.8)), 0);
        assert_eq!(code(&(budget("ratio-at-least", 0.8) + &budget("ratio-at-least", 0.9))), 1);
    }

    #[test]
    fn what_did_not_run_is_unchecked_and_not_kept() {
        let text = budget("ratio-at-least", 0.5).replace("floor", "envoy") + "[[elsewhere]]\nwhat = \"waypoints\"\n";
        let verdicts = Budgets::parse(&text).unwrap().verdicts(&sampled("gbit-per-s", &[4.0], &[5.0]));
        let results: Vec<_> = verdicts.iter().map(|verdict| verdict.result).collect();
        assert_eq!(results, [Outcome::Unchecked, Outcome::Elsewhere]);
        assert_eq!(exit_code(&verdicts), 2);
        let told = told(&verdicts);
        assert!(
            told.contains("waypoints: not measured yet") && told.ends_with("0 kept, 0 broken, 1 unchecked"),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_asks_for_what_there_is_not_is_refused() {
        let refusal = |text: String| format!("{:#}", Budgets::parse(&text).unwrap_err());
        let good = budget("ratio-at-least", 1.0);
        assert!(refusal(good.replace("bulk-1", "bulk-2")).contains("no scenario bulk-2; there are: fresh"));
        assert!(refusal(good.replace("gbit-per-s", "speed")).contains("no quantity speed"));
        assert!(refusal(good.replace("yardstick = \"floor\"\n", "")).contains("needs a yardstick"));
        assert!(refusal(good.replace("ratio-at-least", "about")).contains("about"));
        assert!(refusal(good.replace("value", "valeu")).contains("valeu"));
        assert!(refusal(String::new()).contains("no [[budget]]"));
    }

    #[test]
    fn the_promises_of_this_repository_can_be_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/bench/budgets.toml");
        Budgets::read(&path).unwrap();
    }
}
