//! Where objects come from: files, a mesh on this machine, a cluster's API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stillmesh_cluster::KubernetesSource;
use stillmesh_controller::{KINDS, watches};
use stillmesh_k8s::mesh_config::CONFIG_MAP;
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Finding, Kind, Severity, parse};
use stillmesh_objects::directory::Options;
use stillmesh_objects::{Change, DirectorySource, Source, Update};

use super::Written;
use crate::cluster::access::reach;
use crate::cluster::args::Access;
use crate::why::place::Place;

/// How long all objects together may take to come.
const DEADLINE: Duration = Duration::from_secs(60);
/// Largest single file, as for a directory.
pub(crate) const FILE_BYTES: u64 = 4 << 20;

/// Reads manifests: files, and directories as `up` reads them.
pub(crate) async fn from_files(paths: &[PathBuf]) -> anyhow::Result<Written> {
    let mut written = Written::default();
    for path in paths {
        let about = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
        if about.is_dir() {
            let source = DirectorySource::open(path, Options::atomic());
            let source = source.with_context(|| format!("{} cannot be read", path.display()))?;
            whole(source, &mut written).await.with_context(|| format!("reading {}", path.display()))?;
        } else {
            ensure!(about.len() <= FILE_BYTES, "{} is larger than {FILE_BYTES} bytes", path.display());
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            take_text(&mut written, &path.display().to_string(), &text);
        }
    }
    let errors = written.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    ensure!(
        !written.objects.is_empty() || errors > 0,
        "there are no manifests in {}: files that end in .yaml, .yml or .json are read",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    );
    Ok(written)
}

/// Reads the objects of a mesh that runs.
pub(crate) async fn live(place: &Place, access: &Access, mesh: &Mesh) -> anyhow::Result<Written> {
    let mut written = Written::default();
    match place {
        Place::Here { .. } => {
            for kind in KINDS {
                for object in place.list(kind.as_str(), "", "").await? {
                    take_text(&mut written, "(live)", &object.to_string());
                }
            }
            for object in place.list(Kind::ConfigMap.as_str(), &mesh.root_namespace, "").await? {
                if object["metadata"]["name"] == CONFIG_MAP {
                    take_text(&mut written, "(live)", &object.to_string());
                }
            }
        }
        Place::Cluster { .. } => {
            let reached = reach(access).await?;
            let source = KubernetesSource::open(&reached.cluster, watches(&mesh.root_namespace));
            whole(source, &mut written).await?;
        }
        Place::Objects(_) => bail!("these objects are no mesh that runs"),
    }
    Ok(written)
}

/// Takes in what a text holds.
pub(crate) fn take_text(written: &mut Written, file: &str, text: &str) {
    let found = parse::documents(file, text);
    written.add(found.objects);
    written.findings.extend(found.findings);
}

/// Everything that a source has now.
async fn whole(mut source: impl Source, written: &mut Written) -> anyhow::Result<()> {
    let reading = async {
        loop {
            let update = source.next().await.context("the objects cannot be read any more")?;
            let is_complete = update.complete;
            take(written, update);
            if is_complete {
                return anyhow::Ok(());
            }
        }
    };
    match tokio::time::timeout(DEADLINE, reading).await {
        Ok(read) => read,
        Err(_) => bail!("not all objects have come within {DEADLINE:?}"),
    }
}

fn take(written: &mut Written, update: Update) {
    for change in update.changes {
        match change {
            Change::Set(placed) => written.add([placed]),
            Change::Removed(key) => drop(written.objects.remove(&key)),
        }
    }
    written.unusable.extend(update.unusable);
    if let Some(findings) = update.findings {
        let new: Vec<Finding> = findings.iter().filter(|one| !written.findings.contains(one)).cloned().collect();
        written.findings.extend(new);
    }
}
