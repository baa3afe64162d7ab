//! `stillmesh zc`: what a node tunnel knows, from its admin port (contract 9.5 and 10).
//!
//! A tunnel is found in a cluster, in a mesh on this machine, or its dump is read from a file. What is printed where
//! is decided in [`tables`]; a real ztunnel's dump reads the same way.

mod certificates;
mod dump;
mod source;
mod tables;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use super::args::{Access, Format, MeshNamespace, Report, namespace_name};
use crate::output::{aligned, line, note};
pub(crate) use certificates::entry_facts;
use dump::Dump;
use source::Tunnel;
use tables::Filter;
pub(crate) use tables::{heads, or_none};

/// `stillmesh zc`.
#[derive(Debug, Args)]
pub(crate) struct Zc {
    #[command(subcommand)]
    what: What,
}

/// What to show.
#[derive(Debug, Subcommand)]
enum What {
    /// Workloads that the tunnel knows
    #[command(visible_alias = "workloads", alias = "w")]
    Workload {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        filter: WorkloadFilter,
    },
    /// Services that the tunnel knows
    #[command(visible_alias = "services", aliases = ["svc", "s"])]
    Service {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
        /// Only services of this namespace
        #[arg(long, value_name = "NAMESPACE")]
        service_namespace: Option<String>,
    },
    /// Policies that the tunnel knows
    #[command(visible_alias = "policies", aliases = ["p", "pol"])]
    Policy {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
        /// Only policies of this namespace
        #[arg(long, value_name = "NAMESPACE")]
        policy_namespace: Option<String>,
    },
    /// Certificates that the tunnel holds for its pods
    #[command(visible_alias = "certificates", aliases = ["certs", "cert"])]
    Certificate {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
    },
    /// Connections that are open through the tunnel
    #[command(visible_alias = "connection", alias = "conn")]
    Connections {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
        /// Only connections of pods of this namespace
        #[arg(long, value_name = "NAMESPACE")]
        workload_namespace: Option<String>,
        /// Only connections in this direction
        #[arg(long, value_enum)]
        direction: Option<Direction>,
        /// Addresses instead of names
        #[arg(long)]
        raw: bool,
    },
    /// All of it
    All {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: Output,
        /// A heading over each section
        #[arg(long)]
        with_headers: bool,
    },
    /// Show or set what the tunnel logs
    Log {
        #[command(flatten)]
        from: From,
        /// Level to set: `info`, or `module=level,...`; shows the current one when absent
        #[arg(long, conflicts_with = "reset")]
        level: Option<String>,
        /// Set the level back to what it is at the start
        #[arg(long, short)]
        reset: bool,
    },
}

/// Whose state.
#[derive(Debug, Args)]
struct From {
    /// The tunnel's pod, as `[TYPE/]name[.namespace]`; without it and --node, the first one that is ready
    #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]", conflicts_with_all = ["node", "file"])]
    pod: Option<String>,
    /// The tunnel of this node
    #[arg(long, conflicts_with = "file")]
    node: Option<String>,
    /// Read a dump (`/config_dump`) from this file; `-` is standard input
    #[arg(long, short, value_name = "DUMP.JSON", conflicts_with_all = ["kubeconfig", "context", "name"])]
    file: Option<PathBuf>,
    /// Namespace of the tunnel's pod, where its name carries none; the mesh's own when absent
    #[arg(long, short, value_parser = namespace_name)]
    namespace: Option<String>,
    /// The mesh of this name that runs on this machine (`stillmesh up`), instead of a cluster
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"], value_name = "MESH")]
    name: Option<String>,
    /// The tunnel's admin port
    #[arg(long, default_value_t = 15000, value_parser = clap::value_parser!(u16).range(1..))]
    proxy_admin_port: u16,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    mesh: MeshNamespace,
}

#[derive(Debug, Args)]
struct Output {
    /// How to print; `short` is `table`
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Default, Args)]
struct WorkloadFilter {
    /// Only workloads of this namespace
    #[arg(long, value_name = "NAMESPACE")]
    workload_namespace: Option<String>,
    /// Only workloads on this node
    #[arg(long, value_name = "NODE")]
    workload_node: Option<String>,
    /// Only the workload with this address
    #[arg(long)]
    address: Option<std::net::IpAddr>,
}

/// A connection's direction, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Connections to the pod.
    Inbound,
    /// Connections of the pod.
    Outbound,
}

/// Carries it out.
pub(crate) async fn run(args: &Zc) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Log { from, level, reset } => return log(from, level.as_deref(), *reset).await,
        What::Certificate { from, output } => return per_node(from, output.output, Filter::Certificates).await,
        What::Connections { from, output, workload_namespace, direction, raw } => {
            let filter =
                Filter::Connections { namespace: workload_namespace.clone(), direction: *direction, names: !raw };
            return per_node(from, output.output, filter).await;
        }
        _ => {}
    }
    match &args.what {
        What::Workload { from, output, filter } => {
            let filter = Filter::Workloads {
                namespace: filter.workload_namespace.clone(),
                node: filter.workload_node.clone(),
                address: filter.address,
            };
            one(from, output.output, &filter).await
        }
        What::Service { from, output, service_namespace } => {
            one(from, output.output, &Filter::Services { namespace: service_namespace.clone() }).await
        }
        What::Policy { from, output, policy_namespace } => {
            one(from, output.output, &Filter::Policies { namespace: policy_namespace.clone() }).await
        }
        What::All { from, output, with_headers } => {
            let dump = Dump::read(&source::first(from).await?).await?;
            line(&all(&dump, output.output, *with_headers)?);
            Ok(ExitCode::SUCCESS)
        }
        What::Log { .. } | What::Certificate { .. } | What::Connections { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// What every tunnel knows alike: one of them is asked.
async fn one(from: &From, format: Format, filter: &Filter) -> anyhow::Result<ExitCode> {
    let dump = Dump::read(&source::first(from).await?).await?;
    let section = filter.section(&dump);
    match format {
        Format::Table if section.rows.len() == 1 => note(&format!("no {} found", filter.noun())),
        Format::Table => line(&aligned(&section.rows)),
        format => line(&print(&Value::from(section.items), format)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// What each tunnel has for itself: where none is chosen all are asked, and a column says whose.
async fn per_node(from: &From, format: Format, filter: Filter) -> anyhow::Result<ExitCode> {
    let tunnels = source::every(from).await?;
    let several = tunnels.len() > 1;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut items = serde_json::Map::new();
    let mut failed = false;
    for tunnel in &tunnels {
        let dump = match Dump::read(tunnel).await {
            Ok(dump) => dump,
            Err(error) if several => {
                failed = true;
                note(&format!("{tunnel}: {error:#}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let section = filter.section(&dump);
        for (place, mut row) in section.rows.into_iter().enumerate() {
            if several {
                row.insert(0, if place == 0 { "TUNNEL OF".to_owned() } else { tunnel.node().to_owned() });
            }
            if place > 0 || rows.is_empty() {
                rows.push(row);
            }
        }
        items.insert(tunnel.node().to_owned(), Value::from(section.items));
    }
    match format {
        Format::Table if rows.len() <= 1 => note(&format!("no {} found", filter.noun())),
        Format::Table => line(&aligned(&rows)),
        format if several => line(&print(&Value::Object(items), format)?),
        format => line(&print(&items.into_iter().next().map(|(_, items)| items).unwrap_or_default(), format)?),
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn all(dump: &Dump, format: Format, headings: bool) -> anyhow::Result<String> {
    if format != Format::Table {
        return print(&dump.whole, format);
    }
    let section = |filter: &Filter| {
        let table = aligned(&filter.section(dump).rows);
        if headings { format!("------ {} INFO ------\n{table}", filter.heading()) } else { table }
    };
    Ok(Filter::everything().iter().map(section).collect::<Vec<_>>().join("\n\n"))
}

/// A value as JSON or YAML.
pub(crate) fn print(value: &Value, format: Format) -> anyhow::Result<String> {
    format.report().unwrap_or(Report::Json).of(value)
}

/// Certificates of a dump, and their table.
pub(crate) fn certificates_of(dump: &Value) -> (Vec<Value>, Vec<Vec<String>>) {
    let section = Filter::Certificates.section(&Dump { whole: dump.clone() });
    (section.items, section.rows)
}

/// What proxies log by.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The page that shows or sets what a proxy logs.
pub(crate) fn logging_path(level: Option<&str>, reset: bool) -> anyhow::Result<String> {
    Ok(match level {
        _ if reset => "/logging?reset".to_owned(),
        None => "/logging".to_owned(),
        Some(level) => {
            let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:.".contains(&byte);
            // A word alone that is no level would be taken for a module, and silence all others.
            let is_good = |part: &str| {
                let (module, level) = part.split_once('=').unwrap_or(("all", part));
                !module.is_empty() && module.bytes().all(harmless) && LEVELS.contains(&level.to_lowercase().as_str())
            };
            anyhow::ensure!(
                level.split(',').all(is_good),
                "--level {level:?}: a level ({}) or module=level,... is accepted",
                LEVELS.join(", ")
            );
            if level.contains('=') { format!("/logging?{level}") } else { format!("/logging?level={level}") }
        }
    })
}

async fn log(from: &From, level: Option<&str>, reset: bool) -> anyhow::Result<ExitCode> {
    let path = logging_path(level, reset)?;
    let tunnels: Vec<Tunnel> =
        if level.is_none() && !reset { source::every(from).await? } else { vec![source::first(from).await?] };
    for tunnel in tunnels {
        let said = tunnel.ask(Method::POST, &path).await?;
        line(&format!("{tunnel}: {}", String::from_utf8_lossy(&said).trim()));
    }
    Ok(ExitCode::SUCCESS)
}
