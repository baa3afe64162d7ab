//! `stillmesh analyze`: what is wrong with manifests, or with the objects of a mesh that runs. Nothing is decided here: objects are
//! built into what nodes are told by the controller's own builder ([`crate::offline`]), statuses and findings are what the mesh
//! would say, and what would be refused is asked of core. Each finding has a stable code ([`code`]), level, object and place.

mod code;
pub(crate) mod message;
mod policies;
mod read;
mod routing;
mod told;
mod tunnels;
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use stillmesh_k8s::translate::Mesh;

use crate::cluster::args::{Report, WhichMesh, duration, namespace_name};
use crate::offline::{self, settings::Settings};
use crate::output::{line, note};
use crate::why::place::Place;
use code::Level;
use message::{Message, Suppress};
use read::Input;
use world::World;

/// What analysis of Istio ends with where it found something.
const FOUND: u8 = 79;

/// `stillmesh analyze`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 nothing at or above the failure threshold, 79 something is, 1 it cannot be analyzed, 2 the \
    command line is wrong.\n\nExamples:\n  \
    stillmesh analyze manifests -R\n  \
    stillmesh analyze stricter.yaml -k                           # as if applied to the mesh that runs\n  \
    stillmesh analyze -A --failure-threshold Warning\n  \
    stillmesh analyze manifests -S 'IST0127=AuthorizationPolicy shop/*' -o json"
)]
pub(crate) struct Analyze {
    /// Manifests: files, or directories of files that end in .yaml, .yml or .json; none: what runs
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Every namespace
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Tell only what is about this namespace; `default` where what runs is analyzed, all of them where files are
    #[arg(long, short, value_parser = namespace_name)]
    namespace: Option<String>,
    /// Directories within directories too
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Together with what runs: the mesh on this machine, else the cluster. With files it is off unless asked for
    #[arg(long, short = 'k', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    use_kube: Option<bool>,
    /// Do not tell this code for this object, for example 'IST0127=AuthorizationPolicy shop/*'; may be repeated
    #[arg(long, short = 'S', value_name = "CODE=RESOURCE")]
    suppress: Vec<Suppress>,
    /// The level from which on the exit code says so
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Error)]
    failure_threshold: Level,
    /// The level from which on it is told
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Info)]
    output_threshold: Level,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Form::Log)]
    output: Form,
    /// List the codes and end
    #[arg(long, short = 'L')]
    list_analyzers: bool,
    /// Pass over documents that are no YAML or of kinds without effect here
    #[arg(long)]
    ignore_unknown: bool,
    /// How long reading may take
    #[arg(long, value_parser = duration, default_value = "30s", value_name = "DURATION")]
    timeout: Duration,
    /// Taken as Istio's command takes it; there is one answer for all revisions
    #[arg(long, hide = true, value_name = "REVISION")]
    revision: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Which mesh runs.
    #[command(flatten)]
    which: WhichMesh,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A line each
    Log,
    /// JSON, an array
    Json,
    /// YAML, an array
    Yaml,
}

/// Carries it out.
pub(crate) async fn run(args: &Analyze) -> ExitCode {
    if args.list_analyzers {
        line(&code::listed());
        return ExitCode::SUCCESS;
    }
    let answered = match tokio::time::timeout(args.timeout, answer(args)).await {
        Ok(answered) => answered,
        Err(_) => Err(anyhow::anyhow!("not everything could be read within {:?} (--timeout)", args.timeout)),
    };
    match answered {
        Ok(code) => code,
        Err(error) => {
            note(&format!("stillmesh: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The objects that are meant, and what holds for their mesh.
async fn read(args: &Analyze) -> anyhow::Result<(Input, Mesh)> {
    let is_live = args.use_kube.unwrap_or(args.paths.is_empty());
    if args.paths.is_empty() && !is_live {
        bail!("without what runs (--use-kube=false) files are needed");
    }
    let mut input = Input::default();
    let mut mesh = args.settings.of_files();
    if is_live {
        let place = Place::find(&args.which).await?;
        let assumed;
        (mesh, assumed) = args.settings.of(&place).await;
        input.notes.extend(assumed);
        input.written = offline::live(&place, &args.which.access, &mesh).await?;
        input.others(&place).await;
        input.running = Some(input.written.objects.clone());
    }
    input.files(&args.paths, args.recursive, args.ignore_unknown);
    Ok((input, mesh))
}

async fn answer(args: &Analyze) -> anyhow::Result<ExitCode> {
    let (input, mesh) = read(args).await?;
    let (messages, notes) = analyze(input, mesh)?;
    let namespace = match (&args.namespace, args.all_namespaces, args.paths.is_empty()) {
        (Some(namespace), _, _) => Some(namespace.as_str()),
        (None, false, true) => Some("default"),
        (None, _, _) => None,
    };
    let is_meant = |one: &&Message| {
        one.level() <= args.output_threshold
            && namespace.is_none_or(|only| one.is_of(only))
            && !args.suppress.iter().any(|suppress| suppress.covers(one))
    };
    let told: Vec<&Message> = messages.iter().filter(is_meant).collect();
    print(args, &told, namespace)?;
    notes.iter().for_each(|text| note(&format!("note: {text}")));
    let fails = told.iter().any(|one| one.level() <= args.failure_threshold);
    Ok(if fails { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// Everything that is to be said of the objects, the worst first, and what was assumed.
fn analyze(input: Input, mesh: Mesh) -> anyhow::Result<(Vec<Message>, Vec<String>)> {
    let mut messages: BTreeSet<Message> = input.messages.iter().cloned().collect();
    let world = World::new(input, mesh)?;
    messages.extend(told::said(&world));
    messages.extend(policies::said(&world));
    messages.extend(routing::said(&world));
    messages.extend(tunnels::said(&world));
    messages.retain(|one| !world.is_suppressed(one));
    Ok((messages.into_iter().collect(), world.notes()))
}

fn print(args: &Analyze, told: &[&Message], namespace: Option<&str>) -> anyhow::Result<()> {
    match args.output {
        Form::Json => line(&Report::Json.of(&told)?),
        Form::Yaml => line(&Report::Yaml.of(&told)?),
        Form::Log if told.is_empty() => {
            let what = match (namespace, args.paths.as_slice()) {
                (Some(namespace), _) => format!("namespace: {namespace}"),
                (None, []) => "all namespaces".to_owned(),
                (None, paths) => paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
            };
            line(&format!("✔ No validation issues found when analyzing {what}."));
        }
        Form::Log => told.iter().for_each(|one| line(&one.to_string())),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
