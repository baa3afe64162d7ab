//! What was decided about a request, as it is written down.

use stillmesh_core::explain::Reason;
use stillmesh_core::model::PolicyKey;

/// What was decided.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Whether it passes.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// What a client that was refused is told, and the log is searched for.
    pub id: Option<String>,
    /// Dry-run policies that would have decided otherwise.
    pub dry_run: Vec<Reason>,
    /// Audit policies that matched, and by which rule.
    pub audited: Vec<(PolicyKey, usize)>,
    /// What would have had to differ, where somebody asked to be told (target `authorization` at level debug).
    pub misses: Vec<String>,
}

impl Judged {
    /// The reason in words, where something was refused.
    pub fn why(&self) -> Option<String> {
        (!self.allowed).then(|| self.reason.to_string())
    }

    /// Dry-run policies that would have decided otherwise, in words.
    pub fn dry_run(&self) -> Option<String> {
        listed(self.dry_run.iter().map(ToString::to_string))
    }

    /// Audit policies that matched.
    pub fn audited(&self) -> Option<String> {
        listed(self.audited.iter().map(|(policy, rule)| format!("{policy} rule {rule}")))
    }

    /// What would have had to differ.
    pub fn misses(&self) -> Option<String> {
        listed(self.misses.iter().cloned())
    }
}

fn listed(texts: impl Iterator<Item = String>) -> Option<String> {
    let all: Vec<String> = texts.collect();
    (!all.is_empty()).then(|| all.join("; "))
}
