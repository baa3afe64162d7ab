//! What can be typed after the commands for clusters. Nothing here acts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use stillmesh_runtime::env::Reader;

/// Where the mesh itself runs, unless told otherwise.
pub(crate) const MESH_NAMESPACE: &str = "stillmesh-system";

/// Which cluster.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct Access {
    /// Kubeconfig file; `KUBECONFIG` or `~/.kube/config` when absent
    #[arg(long, short = 'c', value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one when absent
    #[arg(long)]
    pub(crate) context: Option<String>,
}

impl Access {
    /// Whether a cluster is meant for certain.
    pub(crate) fn chosen(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }
}

/// Which mesh: one on this machine, or a cluster's.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WhichMesh {
    /// The mesh of this name that runs on this machine (`stillmesh up`), instead of a cluster
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"], value_name = "MESH")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) access: Access,
}

impl WhichMesh {
    /// Whether it is said at all.
    pub(crate) fn chosen(&self) -> bool {
        self.name.is_some() || self.access.chosen()
    }
}

/// The namespace of the mesh itself.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct MeshNamespace {
    /// Namespace that the mesh itself runs in
    #[arg(
        long = "mesh-namespace",
        short = 'i',
        visible_alias = "istioNamespace",
        value_name = "NAMESPACE",
        default_value = MESH_NAMESPACE,
        value_parser = namespace_name
    )]
    pub(crate) mesh_namespace: String,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table
    #[value(alias = "short")]
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// How reports are printed that are not tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Report {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl Format {
    /// The report, where no table is wanted.
    pub(crate) fn report(self) -> Option<Report> {
        match self {
            Self::Table => None,
            Self::Json => Some(Report::Json),
            Self::Yaml => Some(Report::Yaml),
        }
    }
}

impl Report {
    /// The text of something, without a line break at its end.
    pub(crate) fn of(self, what: &impl Serialize) -> anyhow::Result<String> {
        Ok(match self {
            Self::Json => serde_json::to_string_pretty(what)?,
            Self::Yaml => serde_saphyr::to_string(what)?.trim_end().to_owned(),
        })
    }
}

/// A namespace is a DNS label; it stands in paths of requests.
pub(crate) fn namespace_name(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
    {
        Ok(text.to_owned())
    } else {
        Err("names of namespaces are up to 63 lower case letters, digits and inner hyphens".to_owned())
    }
}

/// A duration, as everywhere in the mesh.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut reader = Reader::from_values([("DURATION", text)]);
    let length = reader.duration("DURATION", Duration::ZERO);
    if reader.finish().is_ok() && !length.is_zero() {
        Ok(length)
    } else {
        Err("a duration is accepted, such as 30s, 5m or 1m30s".to_owned())
    }
}
