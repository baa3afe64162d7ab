//! `stillmesh install` and `stillmesh upgrade`: the chart's objects, applied in order, each step waited for.
//!
//! Everything is applied on the server's side under one field manager, so that a second run changes only what differs,
//! and a run that was interrupted is finished by the next one.

pub(crate) mod apply;
pub(crate) mod bundle;
pub(crate) mod options;
mod plan;
mod wait;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::Value;

use super::access::reach;
use super::args::{Access, Report};
use super::foreign::{self, Parts};
use super::objects::{Objects, Resource};
use super::progress::{Channel, Teller, took};
use super::value::{name, namespace};
use crate::output::{Mark, line};
use apply::{Applied, Change, How};
use bundle::{Bundle, Group, title};
use options::Setting;
use plan::Installed;

pub(crate) use plan::{MADE, own_kinds, own_labels};

/// How many objects are read at a time.
const AT_ONCE: usize = 8;

/// `stillmesh install` and `stillmesh upgrade`.
#[derive(Debug, Args)]
#[command(after_long_help = options::help())]
pub(crate) struct Install {
    /// Manifest rendered from the chart, instead of the one that this command brings along
    #[arg(long, short, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// Sets a value of the chart; --help lists those that this command knows
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = options::setting)]
    settings: Vec<Setting>,
    /// Forget what was set before; otherwise it is kept
    #[arg(long)]
    reset_values: bool,
    /// Revision of the controller, to run beside another control plane
    #[arg(long, short, value_name = "NAME", value_parser = super::args::namespace_name)]
    revision: Option<String>,
    /// Only ask the server what would change
    #[arg(long)]
    dry_run: bool,
    /// Take over fields that somebody else has set; go back to an older version
    #[arg(long)]
    force: bool,
    /// Wait until everything is ready
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: Option<bool>,
    /// How long to wait at most
    #[arg(long, visible_alias = "readiness-timeout", default_value = "5m", value_parser = super::args::duration)]
    timeout: Duration,
    /// Accepted for scripts; nothing is asked
    #[arg(long, short = 'y', hide = true)]
    skip_confirmation: bool,
    /// Print a report; what happens is then said on standard error
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    /// Cluster.
    #[command(flatten)]
    access: Access,
    /// Namespace for the mesh itself
    #[arg(
        long = "mesh-namespace",
        short = 'i',
        visible_short_alias = 'n',
        visible_aliases = ["namespace", "istioNamespace"],
        value_name = "NAMESPACE",
        default_value = super::args::MESH_NAMESPACE,
        value_parser = super::args::namespace_name,
        help_heading = "Cluster"
    )]
    mesh_namespace: String,
}

/// `stillmesh manifest`.
#[derive(Debug, Args)]
pub(crate) struct Manifest {
    /// Print this manifest instead, in the same order and form: for comparing what Helm renders
    #[arg(long, value_name = "FILE", conflicts_with = "settings")]
    normalize: Option<PathBuf>,
    /// Sets a value of the chart
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = options::setting)]
    settings: Vec<Setting>,
    /// Namespace for the mesh itself
    #[arg(
        long = "mesh-namespace",
        short = 'i',
        visible_short_alias = 'n',
        value_name = "NAMESPACE",
        default_value = super::args::MESH_NAMESPACE,
        value_parser = super::args::namespace_name
    )]
    mesh_namespace: String,
}

/// Whether something is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing, or the same version.
    Install,
    /// The same version or a neighbour of it.
    Upgrade,
}

/// What was done, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    cluster: String,
    namespace: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_version: Option<String>,
    dry_run: bool,
    objects: Vec<Applied>,
    waited: bool,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Prints the objects that `install` would apply.
pub(crate) fn manifest(args: &Manifest) -> anyhow::Result<ExitCode> {
    let bundle = match &args.normalize {
        Some(file) => read(file)?,
        None => {
            let mut bundle = Bundle::own()?;
            options::adapt(&mut bundle, &args.mesh_namespace, &args.settings)?;
            bundle
        }
    };
    for object in &bundle.objects {
        line(&format!("---\n{}", serde_saphyr::to_string(object)?.trim_end()));
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<Bundle> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    Bundle::parse(&file.display().to_string(), &text)
}

/// Carries it out.
pub(crate) async fn run(args: &Install, mode: Mode) -> anyhow::Result<ExitCode> {
    let channel = if args.output.is_some() { Channel::Err } else { Channel::Out };
    let mut work = Work::prepare(args, mode, Teller::new(channel)).await?;
    let result = work.carry_out().await;
    if let Some(format) = args.output {
        work.done.complete = result.is_ok();
        work.done.problem = result.as_ref().err().map(|error| format!("{error:#}"));
        line(&format.of(&work.done)?);
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// An installation on its way.
struct Work<'a> {
    args: &'a Install,
    mode: Mode,
    objects: Objects,
    bundle: Bundle,
    /// Objects of the bundle as they are now.
    before: BTreeMap<String, Value>,
    installed: Option<Installed>,
    /// Objects that an earlier version or other settings needed.
    surplus: Vec<Value>,
    teller: Teller,
    done: Done,
    deadline: Instant,
}

impl<'a> Work<'a> {
    /// Reads everything and refuses what must not be, before anything is changed.
    async fn prepare(args: &'a Install, mode: Mode, teller: Teller) -> anyhow::Result<Self> {
        let mut bundle = match &args.filename {
            None => Bundle::own()?,
            Some(file) => read(file)?,
        };
        let reached = reach(&args.access).await?;
        let objects = Objects::new(reached.client());
        let namespace = args.mesh_namespace.as_str();
        let mut settings = args.settings.clone();
        if let Some(revision) = &args.revision {
            settings.push(options::setting(&format!("revision={revision}")).map_err(anyhow::Error::msg)?);
        }
        let revision = options::value(&settings, "revision").unwrap_or("default").to_owned();
        let installed = plan::installed(&objects, namespace, &revision).await?;
        let ours = reached.url().to_owned();
        match (mode, &installed) {
            (Mode::Install, Some(there)) if there.version != bundle.version => bail!(
                "version {} is installed in namespace {namespace}; `stillmesh upgrade` takes it to {}",
                there.version,
                bundle.version
            ),
            (Mode::Upgrade, None) => {
                bail!(
                    "nothing to upgrade: no Stillmesh is installed in namespace {namespace} of {ours}; `stillmesh install` does that"
                )
            }
            (Mode::Upgrade, Some(there)) => plan::may_follow(&there.version, &bundle.version, args.force)?,
            (Mode::Install, _) => {}
        }
        if let Some(there) = &installed
            && !args.reset_values
        {
            let kept = options::keep(&there.settings, &settings, there.version == bundle.version);
            if !kept.is_empty() {
                teller.say(&format!("  kept from before: {} (--reset-values forgets it)", options::words(&kept)));
            }
            settings = kept.into_iter().chain(settings).collect();
        }
        options::adapt(&mut bundle, namespace, &settings)?;
        options::remember(&mut bundle, &settings);
        plan::refuse_without_operator(&objects, &bundle).await?;
        let before: BTreeMap<String, Value> = futures::stream::iter(bundle.objects.clone())
            .map(|object| {
                let objects = objects.clone();
                async move {
                    let (namespace, name) = place(&object);
                    let found = objects.get(&Resource::of(&object), &namespace, &name).await?;
                    Ok::<_, anyhow::Error>((title(&object), found))
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|(title, found)| async move { Ok(found.map(|object| (title, object))) })
            .try_collect()
            .await?;
        plan::refuse_helm(&before, &apply::living(&objects, before.values()).await?)?;
        let has = |group: Group| bundle.group(group).next().is_some();
        let parts = Parts {
            revision: revision != "default",
            agent: has(Group::Agent),
            tunnel: has(Group::Tunnel),
            controller: has(Group::Controller),
        };
        let refusals = foreign::refusals(&foreign::look(&objects).await?, parts);
        if !refusals.is_empty() {
            bail!("not beside another mesh:\n  {}", refusals.join("\n  "));
        }
        plan::refuse_second(&objects, namespace, parts).await?;
        plan::mark_namespace(&mut bundle, &before);
        let surplus = plan::surplus(&objects, &bundle, namespace).await?;
        let done = Done {
            cluster: ours,
            namespace: namespace.to_owned(),
            version: bundle.version.clone(),
            from_version: installed.as_ref().map(|there| there.version.clone()),
            dry_run: args.dry_run,
            objects: Vec::new(),
            waited: args.wait.unwrap_or(true) && !args.dry_run,
            complete: false,
            problem: None,
        };
        let deadline = Instant::now() + args.timeout;
        Ok(Self { args, mode, objects, bundle, before, installed, surplus, teller, done, deadline })
    }

    async fn carry_out(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let what = match (&self.installed, self.mode) {
            (Some(there), Mode::Upgrade) if there.version != self.bundle.version => {
                format!("Stillmesh {} -> {}", there.version, self.bundle.version)
            }
            _ => format!("Stillmesh {}", self.bundle.version),
        };
        let dry = if self.args.dry_run { ", only asking what would change" } else { "" };
        self.teller.say(&format!("{what} into namespace {} of {}{dry}", self.done.namespace, self.done.cluster));
        let groups = self.bundle.groups();
        for group in &groups {
            self.apply_group(*group).await?;
            if !self.done.waited {
                continue;
            }
            match group {
                Group::Definitions => self.wait_definitions().await?,
                Group::Controller => self.wait_rollout(Group::Controller).await?,
                Group::Webhook => self.wait_webhook().await?,
                // On an upgrade one after the other; at first both start together.
                Group::Agent if self.mode == Mode::Upgrade => self.wait_rollout(Group::Agent).await?,
                Group::Tunnel => {
                    if self.mode == Mode::Install && groups.contains(&Group::Agent) {
                        self.wait_rollout(Group::Agent).await?;
                    }
                    self.wait_rollout(Group::Tunnel).await?;
                }
                Group::Agent if !groups.contains(&Group::Tunnel) => self.wait_rollout(Group::Agent).await?,
                _ => {}
            }
        }
        self.remove_surplus().await?;
        let count = |change: Change| self.done.objects.iter().filter(|one| one.change == change).count();
        let summary = [Change::Created, Change::Changed, Change::Removed, Change::Unchanged]
            .map(|change| format!("{} {}", count(change), change.word()))
            .join(", ");
        if self.args.dry_run {
            self.teller.say(&format!("  would be: {summary}; nothing has been changed"));
        } else {
            let word = if self.mode == Mode::Install { "Installation" } else { "Upgrade" };
            let ready = if self.done.waited { "complete" } else { "applied, not waited for (`stillmesh check`)" };
            self.teller.fact(Mark::Good, &format!("{word} {ready}: {summary} ({})", took(began)));
        }
        Ok(())
    }

    async fn apply_group(&mut self, group: Group) -> anyhow::Result<()> {
        let how = How {
            dry_run: self.args.dry_run,
            force: self.args.force,
            namespace_absent: !self.before.keys().any(|title| title.starts_with("Namespace ")),
        };
        let mut changes: BTreeMap<&'static str, usize> = BTreeMap::new();
        for object in self.bundle.group(group) {
            let applied = apply::apply(&self.objects, object, how).await?;
            *changes.entry(applied.change.word()).or_default() += 1;
            if self.args.dry_run {
                self.teller.say(&format!("  {:<9} {}", applied.change.word(), title(object)));
            }
            self.done.objects.push(applied);
        }
        if !self.args.dry_run {
            let words: Vec<String> = changes.iter().map(|(word, count)| format!("{count} {word}")).collect();
            self.teller.fact(Mark::Good, &format!("{}: {}", group.title(), words.join(", ")));
        }
        Ok(())
    }

    async fn remove_surplus(&mut self) -> anyhow::Result<()> {
        for object in std::mem::take(&mut self.surplus) {
            self.objects.delete(&object, self.args.dry_run).await?;
            self.teller.say(&format!("  {:<9} {}", Change::Removed.word(), title(&object)));
            self.done.objects.push(Applied::new(&object, Change::Removed));
        }
        Ok(())
    }
}

/// Namespace and name of an object, for its place at the server.
fn place(object: &Value) -> (String, String) {
    (namespace(object).to_owned(), name(object).to_owned())
}
