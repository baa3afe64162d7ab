//! `stillmesh policy`: what a change of objects means. `diff` simulates every edge of the mesh under both ([`edges`]) and tells those
//! whose verdict changes, with what decided before and after.

mod edges;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cluster::args::{Format, WhichMesh};
use crate::offline::{self, Known, settings::Settings};
use crate::output::{aligned, answered, line, note};
use crate::why::place::Place;
use edges::{Judged, Verdict};

/// Edges that are compared where nothing else is said.
const MOST_EDGES: usize = 20_000;

/// `stillmesh policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Tell which connections and requests two sets of objects decide otherwise about
    Diff(Diff),
}

/// `stillmesh policy diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when no verdict changes, 1 when some do, 2 when it cannot be said: edges were left out, or objects cannot be read.\n\n\
    An edge is a client identity (and one client in clear text from outside), a service's or workload's port, and, where a \
    waypoint is on the way, a request for each method and path that policies name. Requests carry no token and no headers.\n\n\
    Examples:\n  \
    stillmesh policy diff manifests manifests.new\n  \
    stillmesh policy diff --live stricter.yaml"
)]
pub(crate) struct Diff {
    /// Manifests, files or directories: OLD and NEW. With --live only NEW: its objects are applied over those of the mesh
    #[arg(value_name = "OLD NEW", required = true, num_args = 1..=2)]
    paths: Vec<PathBuf>,
    /// OLD is the mesh that runs on this machine, else the cluster
    #[arg(long)]
    live: bool,
    /// How many edges are compared at most
    #[arg(long, default_value_t = MOST_EDGES, value_name = "NUMBER")]
    limit: usize,
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    which: WhichMesh,
}

/// One edge whose verdict is another one.
#[derive(Debug, Serialize)]
struct Change {
    source: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    old: Judged,
    new: Judged,
}

/// The whole comparison.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Compared {
    /// Edges that were compared.
    compared: usize,
    /// Edges of either that the other has not: their client or destination is not there.
    only_old: usize,
    only_new: usize,
    /// Edges beyond the bound, which nobody looked at.
    left_out: usize,
    /// Edges that were let pass and would be refused, in part or whole; and the other way.
    newly_refused: usize,
    newly_allowed: usize,
    changes: Vec<Change>,
    notes: Vec<String>,
}

/// Carries it out: 0 where nothing changes, 1 where something does, 2 where it cannot be said.
pub(crate) async fn run(policy: &Policy) -> ExitCode {
    let Policy::Diff(args) = policy;
    answered(diff(args).await)
}

async fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let (old, new) = both(args).await?;
    let compared = compare(&old, &new, args.limit);
    match args.output.report() {
        Some(report) => line(&report.of(&compared)?),
        None => print(&compared, args.limit),
    }
    Ok(match (compared.changes.is_empty(), compared.left_out) {
        (false, _) => ExitCode::FAILURE,
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(2),
    })
}

/// Both meshes.
async fn both(args: &Diff) -> anyhow::Result<(Known, Known)> {
    if args.live {
        let [path] = args.paths.as_slice() else { anyhow::bail!("with --live, NEW alone is given") };
        let place = Place::find(&args.which).await?;
        let (mesh, assumed) = args.settings.of(&place).await;
        let old = offline::live(&place, &args.which.access, &mesh).await?;
        let applied = offline::from_files(std::slice::from_ref(path)).await?;
        let mut new = old.clone();
        new.objects.extend(applied.objects);
        new.findings.extend(applied.findings);
        let (new, notes) = new.complete(&mesh)?;
        return Ok((
            offline::known(old, mesh.clone(), assumed.into_iter().collect())?,
            offline::known(new, mesh, notes)?,
        ));
    }
    ensure!(!args.which.chosen(), "--name, --kubeconfig and --context say which mesh --live means");
    let [old, new] = args.paths.as_slice() else { anyhow::bail!("OLD and NEW are given, or --live and NEW") };
    ensure!(old != new, "OLD and NEW are the same");
    let mesh = args.settings.of_files();
    let (old, notes) = offline::from_files(std::slice::from_ref(old)).await?.complete(&mesh)?;
    let old = offline::known(old, mesh.clone(), notes)?;
    let (new, notes) = offline::from_files(std::slice::from_ref(new)).await?.complete(&mesh)?;
    Ok((old, offline::known(new, mesh, notes)?))
}

fn compare(old: &Known, new: &Known, limit: usize) -> Compared {
    let (before, after) = (edges::World::new(old), edges::World::new(new));
    let requests = edges::requests(&before, &after);
    let mut compared = Compared::default();
    let all = edges::all(&before, &after);
    for (client, to) in &all {
        let ends = (before.ends(client, to), after.ends(client, to));
        let (Some(was), Some(is)) = ends else {
            compared.only_old += usize::from(ends.0.is_some());
            compared.only_new += usize::from(ends.1.is_some());
            continue;
        };
        for request in requests.of(to) {
            if compared.compared >= limit {
                compared.left_out += 1;
                continue;
            }
            compared.compared += 1;
            let (was, is) = (before.judge(&was, request.as_ref()), after.judge(&is, request.as_ref()));
            if was.verdict == is.verdict {
                continue;
            }
            match is.verdict > was.verdict {
                true => compared.newly_refused += 1,
                false => compared.newly_allowed += 1,
            }
            let request = request.as_ref().map(|request| format!("{} {}", request.method, request.target));
            compared.changes.push(Change {
                source: client.clone(),
                destination: to.to_string(),
                request,
                old: was,
                new: is,
            });
        }
    }
    let said =
        |known: &Known, which: &str| known.notes.iter().map(|note| format!("{which}: {note}")).collect::<Vec<_>>();
    compared.notes = said(old, "OLD").into_iter().chain(said(new, "NEW")).collect();
    compared
}

fn print(compared: &Compared, limit: usize) {
    if !compared.changes.is_empty() {
        let mut rows = vec![["FROM", "TO", "REQUEST", "OLD", "NEW"].map(str::to_owned).to_vec()];
        rows.extend(compared.changes.iter().map(|change| {
            let request = change.request.clone().unwrap_or_else(|| "-".to_owned());
            vec![
                change.source.clone(),
                change.destination.clone(),
                request,
                change.old.to_string(),
                change.new.to_string(),
            ]
        }));
        line(&aligned(&rows));
    }
    let Compared { compared: edges, newly_refused, newly_allowed, only_old, only_new, left_out, .. } = compared;
    line(&format!(
        "{edges} edges compared: {} change, {newly_refused} to refused, {newly_allowed} to allowed; \
         {only_old} are in OLD alone, {only_new} in NEW alone",
        compared.changes.len()
    ));
    if *left_out > 0 {
        line(&format!("{left_out} more edges were not compared: the bound is {limit} (--limit)"));
    }
    compared.notes.iter().for_each(|text| note(&format!("note: {text}")));
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Mixed => "refused in part",
            Verdict::Refused => "refused",
        };
        write!(f, "{verdict} ({})", if self.because.is_empty() { &self.reason } else { &self.because })
    }
}

#[cfg(test)]
mod tests;
