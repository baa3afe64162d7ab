//! `stillmesh proxy-config`: what a waypoint knows and does, from its admin port (contract 9.5 and 10). Names and columns are
//! istioctl's where they mean something without Envoy; [`tables`] decides what is printed where.

mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

use crate::cluster::args::{Format, WhichMesh, namespace_name};
use crate::cluster::value::{label, list, name, namespace, text};
use crate::cluster::zc::{logging_path, print};
use crate::output::{aligned, line, note};
use crate::proxy_status::Wanted;
use crate::why::place::{Place, Proxy};
use stillmesh_k8s::gateway::generate::GATEWAY_NAME;
use tables::{Filter, Part};

/// `stillmesh proxy-config`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0; 1 on any error; rootca-compare: 1 when the roots differ.")]
pub(crate) struct ProxyConfig {
    #[command(subcommand)]
    what: What,
}

/// What to show.
#[derive(Debug, Subcommand)]
enum What {
    /// Everything that follows, section by section
    All(Asked),
    /// Ports of services that something is sent to, and subsets of them
    #[command(visible_alias = "clusters", alias = "c")]
    Cluster(Asked),
    /// What it listens for: the tunnels, and in them the services that are bound to it
    #[command(visible_alias = "listeners", alias = "l")]
    Listener(Asked),
    /// What becomes of requests and connections, rule by rule
    #[command(visible_alias = "routes", alias = "r")]
    Route(Asked),
    /// Endpoints, with their health, and which are left out for a while
    #[command(visible_aliases = ["endpoints", "eds"], alias = "ep")]
    Endpoint(Asked),
    /// Policies about requests and connections that are attached to what it carries
    #[command(visible_alias = "policies", aliases = ["p", "pol"])]
    Policy(Asked),
    /// Its certificates
    #[command(visible_alias = "secrets", alias = "s")]
    Secret(Asked),
    /// What it runs with
    #[command(visible_alias = "bootstraps", alias = "b")]
    Bootstrap(Asked),
    /// Extensions: an Envoy has them, a waypoint of this mesh has none
    Ecds(Asked),
    /// Whether two waypoints trust the same roots
    RootcaCompare {
        /// One of them
        #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]")]
        one: String,
        /// The other
        #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]")]
        other: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show or set what it logs
    Log {
        /// The waypoint
        #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]")]
        proxy: String,
        /// Level to set: `info`, or `module=level,...`; shows the current one when absent
        #[arg(long, conflicts_with = "reset")]
        level: Option<String>,
        /// Set the level back to what it is at the start
        #[arg(long, short)]
        reset: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

/// Whose, and what of it.
#[derive(Debug, Args)]
struct Asked {
    /// The waypoint: a pod of it, or gateway/NAME or deployment/NAME for the first of its pods that runs
    #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]", required_unless_present = "file", conflicts_with = "file")]
    proxy: Option<String>,
    /// Read a dump (`/config_dump`) from this file; `-` is standard input
    #[arg(long, short, value_name = "DUMP.JSON", conflicts_with_all = ["kubeconfig", "context", "name"])]
    file: Option<PathBuf>,
    /// Only what is about the service of this name, in full or its first labels
    #[arg(long, value_name = "HOST")]
    fqdn: Option<String>,
    /// Only what is about this port
    #[arg(long)]
    port: Option<u16>,
    /// How to print; `short` is `table`
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    reach: Reach,
}

/// Where.
#[derive(Debug, Args)]
struct Reach {
    /// Namespace of the waypoint, where its name carries none
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    /// Its admin port
    #[arg(long, default_value_t = 15000, value_parser = clap::value_parser!(u16).range(1..))]
    proxy_admin_port: u16,
    #[command(flatten)]
    which: WhichMesh,
}

/// Carries it out.
pub(crate) async fn run(args: &ProxyConfig) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::All(asked) => all(asked).await,
        What::Cluster(asked) => one(asked, Part::Clusters).await,
        What::Listener(asked) => one(asked, Part::Listeners).await,
        What::Route(asked) => one(asked, Part::Routes).await,
        What::Endpoint(asked) => one(asked, Part::Endpoints).await,
        What::Policy(asked) => one(asked, Part::Policies).await,
        What::Secret(asked) => one(asked, Part::Secrets).await,
        What::Bootstrap(asked) => {
            let dump = dump(asked).await?;
            let format = if asked.output == Format::Table { Format::Json } else { asked.output };
            line(&print(&dump["config"], format)?);
            Ok(ExitCode::SUCCESS)
        }
        What::Ecds(_) => bail!(
            "a waypoint of this mesh has no extensions (ECDS is Envoy's); what it does with requests is shown by `stillmesh \
             proxy-config route` and `stillmesh proxy-config policy`"
        ),
        What::RootcaCompare { one, other, reach } => compare(one, other, reach).await,
        What::Log { proxy, level, reset, reach } => {
            let path = logging_path(level.as_deref(), *reset)?;
            let (shown, proxy) = find(proxy, reach).await?;
            let said = proxy.send(reach.proxy_admin_port, Method::POST, &path).await?;
            line(&format!("{shown}: {}", String::from_utf8_lossy(&said).trim()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn one(asked: &Asked, part: Part) -> anyhow::Result<ExitCode> {
    let dump = dump(asked).await?;
    let section = part.section(&dump, &filter(asked));
    match asked.output {
        Format::Table if section.rows.len() <= 1 => note(&format!("no {} found", part.noun())),
        Format::Table => line(&aligned(&section.rows)),
        format => line(&print(&Value::from(section.items), format)?),
    }
    Ok(ExitCode::SUCCESS)
}

async fn all(asked: &Asked) -> anyhow::Result<ExitCode> {
    let dump = dump(asked).await?;
    if asked.output != Format::Table {
        line(&print(&dump, asked.output)?);
        return Ok(ExitCode::SUCCESS);
    }
    let filter = filter(asked);
    let section = |part: &Part| {
        format!("------ {} ------\n{}", part.noun().to_uppercase(), aligned(&part.section(&dump, &filter).rows))
    };
    line(&Part::ALL.iter().map(section).collect::<Vec<_>>().join("\n\n"));
    Ok(ExitCode::SUCCESS)
}

fn filter(asked: &Asked) -> Filter {
    Filter { host: asked.fqdn.clone(), port: asked.port }
}

/// The dump that is meant.
async fn dump(asked: &Asked) -> anyhow::Result<Value> {
    if let Some(file) = &asked.file {
        let mut text = Vec::new();
        if file.as_os_str() == "-" {
            std::io::stdin().lock().read_to_end(&mut text).context("standard input")?;
        } else {
            text = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
        }
        return parsed(&text).with_context(|| format!("{}", file.display()));
    }
    Ok(fetched(asked.proxy.as_deref().unwrap_or_default(), &asked.reach).await?.1)
}

/// The dump of a waypoint that runs, with how it is called.
async fn fetched(asked: &str, reach: &Reach) -> anyhow::Result<(String, Value)> {
    let (shown, proxy) = find(asked, reach).await?;
    let dump = parsed(&proxy.page(reach.proxy_admin_port, "/config_dump").await?).context(shown.clone())?;
    Ok((shown, dump))
}

/// Reads a dump. Errors: it is none of a waypoint of this mesh.
fn parsed(text: &[u8]) -> anyhow::Result<Value> {
    let dump: Value = serde_json::from_slice(text).context("this is not the JSON of a /config_dump")?;
    ensure!(dump.get("configs").is_none(), "this is the dump of an Envoy: `istioctl proxy-config` reads it");
    ensure!(dump.get("workloadState").is_none(), "this is the dump of a node tunnel: `stillmesh zc` reads it");
    ensure!(
        ["bound", "clusters", "routes"].iter().all(|key| dump.get(key).is_some()),
        "this is no dump of a waypoint of this version: it has not all of bound, clusters, routes"
    );
    Ok(dump)
}

/// A waypoint's pod, with how it is called.
async fn find(asked: &str, reach: &Reach) -> anyhow::Result<(String, Proxy)> {
    let wanted = Wanted::parse(asked, Some(&reach.namespace))?;
    let place = Place::find(&reach.which).await?;
    let full = |pod: &Value| format!("{}.{}", name(pod), namespace(pod));
    let waypoints = place.waypoints().await?;
    let mut meant: Vec<&Value> = waypoints.iter().filter(|pod| pod["status"]["phase"] == "Running").collect();
    let there: Vec<String> = meant.iter().map(|pod| full(pod)).collect();
    meant.retain(|pod| {
        let gateway = label(pod, GATEWAY_NAME).map(|name| format!("{name}.{}", namespace(pod)));
        wanted.means(&full(pod)) || (wanted.is_owner() && gateway.is_some_and(|gateway| wanted.means(&gateway)))
    });
    let Some(pod) = meant.first() else {
        let tunnels = place.list("Pod", "", "app=ztunnel").await?;
        ensure!(
            !tunnels.iter().any(|pod| wanted.means(&full(pod))),
            "{asked} is a node tunnel: `stillmesh zc all {asked}` shows what it knows"
        );
        let others = if there.is_empty() {
            "no waypoint runs; `stillmesh waypoint status -A` says more".to_owned()
        } else {
            format!("there are {}", there.join(", "))
        };
        let at = if asked.contains('.') { String::new() } else { format!(" (namespace {})", reach.namespace) };
        bail!("no pod of a waypoint is meant by {asked:?}{at}; {others}");
    };
    if meant.len() > 1 {
        note(&format!("as {} knows it, one of {} pods", full(pod), meant.len()));
    }
    let proxy = place.proxy(pod).context("manifests have no waypoint that runs")?;
    Ok((full(pod), proxy))
}

async fn compare(one: &str, other: &str, reach: &Reach) -> anyhow::Result<ExitCode> {
    let mut trusted = Vec::new();
    for asked in [one, other] {
        let (shown, dump) = fetched(asked, reach).await?;
        trusted.push((shown, roots(&dump)));
    }
    let [(one, its), (other, others)] = trusted.as_slice() else { bail!("two waypoints are compared") };
    if its == others {
        line(&format!("{one} and {other} trust the same roots: {}", joined(its)));
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!("{one} and {other} do not trust the same roots"));
    line(&format!("{one}: {}", joined(its)));
    line(&format!("{other}: {}", joined(others)));
    Ok(ExitCode::FAILURE)
}

/// Serial numbers of the roots that a waypoint trusts.
fn roots(dump: &Value) -> BTreeSet<String> {
    let roots = list(&dump["certificates"]).flat_map(|entry| list(&entry["rootCerts"]));
    roots.map(|root| text(&root["serialNumber"]).to_owned()).collect()
}

fn joined(roots: &BTreeSet<String>) -> String {
    if roots.is_empty() { "none".to_owned() } else { roots.iter().cloned().collect::<Vec<_>>().join(", ") }
}
