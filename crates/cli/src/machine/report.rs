//! What `up` prints while it runs: each change of a pod once, each finding when it appears and when it is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use stillmesh_k8s::{ObjectKey, Severity};

use super::pods::status::{Phase, PodRecordStatus};
use super::reconcile::Summary;
use crate::output;

/// Prints what has changed since it last looked.
#[derive(Debug)]
pub struct Reporter {
    name: String,
    quiet: bool,
    began: Instant,
    findings: BTreeSet<(Severity, String)>,
    pods: BTreeMap<ObjectKey, String>,
    settled: bool,
    failure: Option<String>,
}

impl Reporter {
    /// Nothing said yet.
    pub fn new(name: &str, quiet: bool) -> Self {
        Self {
            name: name.to_owned(),
            quiet,
            began: Instant::now(),
            findings: BTreeSet::new(),
            pods: BTreeMap::new(),
            settled: false,
            failure: None,
        }
    }

    /// Name of the mesh.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The findings that hold.
    pub fn shown(&self) -> Vec<String> {
        self.findings.iter().map(|(severity, text)| format!("{}: {text}", word(*severity))).collect()
    }

    /// How many of them are errors.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|(severity, _)| *severity == Severity::Error).count()
    }

    /// Findings that hold now.
    pub fn findings(&mut self, now: BTreeSet<(Severity, String)>) {
        for (severity, text) in now.difference(&self.findings) {
            if !self.quiet || *severity == Severity::Error {
                output::note(&format!("{}: {text}", word(*severity)));
            }
        }
        for (_, text) in self.findings.difference(&now) {
            self.say(&format!("no longer: {text}"));
        }
        self.findings = now;
    }

    /// Why the machine could not do what the manifests ask for, if so: said when it begins and when it is over.
    pub fn failure(&mut self, now: Option<String>) {
        match (&self.failure, &now) {
            (before, Some(now)) if before.as_ref() != Some(now) => {
                output::note(&format!("error: {now}; it is tried again"));
            }
            (Some(_), None) => self.say("the manifests are followed again"),
            _ => {}
        }
        self.failure = now;
    }

    /// How a pod is now.
    pub fn pod(&mut self, key: &ObjectKey, system: bool, ending: bool, status: &PodRecordStatus, place: &str) {
        let text = match status.phase {
            _ if ending => "is ending".to_owned(),
            Phase::Succeeded => "has done its work".to_owned(),
            _ if status.ready.0 => format!("is ready on {place}"),
            _ => status.why(),
        };
        let before = self.pods.get(key);
        if before == Some(&text) {
            return;
        }
        // What starts is said once, when it is ready or in trouble; the mesh's own parts only in trouble.
        let starting = !ending && !status.ready.0 && !status.in_trouble();
        let worth = !starting && (!system || status.in_trouble());
        if worth {
            self.say(&format!("{key} {text}"));
        }
        self.pods.insert(key.clone(), text);
    }

    /// Forgets pods that are gone.
    pub fn gone(&mut self, there: &BTreeSet<ObjectKey>) {
        let gone: Vec<ObjectKey> = self.pods.keys().filter(|key| !there.contains(key)).cloned().collect();
        for key in gone {
            self.say(&format!("{key} is gone"));
            self.pods.remove(&key);
        }
    }

    /// Says once that everything is there.
    pub fn settled(&mut self, summary: &Summary) {
        if summary.settled && !self.settled {
            self.settled = true;
            let but =
                if summary.refused == 0 { String::new() } else { format!(" ({} errors, see above)", summary.refused) };
            self.say(&format!(
                "mesh {:?} is ready{but}: {} pods on {} nodes, after {:.1} s. Edit the manifests and it follows; Ctrl-C ends it.",
                self.name,
                summary.pods,
                summary.nodes.len(),
                self.began.elapsed().as_secs_f64()
            ));
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            output::note(text);
        }
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}
