//! The plugin on its node: the binary where the container runtime looks for it, our entry in the runtime's CNI
//! configuration, both put right when somebody changes them.
//!
//! The binary always comes before the entry and goes after it: a runtime that finds an entry without its binary starts
//! no pod at all. Nothing of others is changed but the one list that our entry is in.

pub mod conflist;
pub mod files;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillmesh_core::diagnose::{Diagnose, Fault};

use conflist::{Conflist, PLUGIN};
pub use watch::keep;

/// Name of the list that is all ours, before any usual one in order.
pub const OWN_CONFLIST: &str = "02-stillmesh-cni.conflist";
/// Ending of a single configuration that became a list, kept to be put back.
const KEPT: &str = "stillmesh-kept";
/// Larger files are no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the plugin is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Directory of CNI plugins.
    pub bin_dir: PathBuf,
    /// Directory of CNI configuration.
    pub conf_dir: PathBuf,
    /// Whether to write a list of our own instead of adding to the first one.
    pub own_conflist: bool,
}

/// Our entry in the list of plugins: all that the plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its log level.
    pub log_level: String,
    /// Directory of the agent's socket.
    pub run_dir: PathBuf,
    /// Directory with what is known and believed.
    pub state_dir: PathBuf,
    /// Namespaces whose pods are never captured.
    pub exclude_namespaces: BTreeSet<String>,
    /// Where the mesh itself runs.
    pub pod_namespace: String,
}

impl Entry {
    /// The entry as JSON; names that Istio's entry has, too, are Istio's.
    pub fn json(&self) -> Value {
        json!({
            "type": PLUGIN,
            "name": PLUGIN,
            "plugin_log_level": self.log_level,
            "cni_agent_run_dir": self.run_dir,
            "state_dir": self.state_dir,
            "exclude_namespaces": self.exclude_namespaces,
            "pod_namespace": self.pod_namespace,
        })
    }
}

/// What keeps the plugin from being installed. Looked at again whenever the directories change.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no configuration yet.
    #[error("there is no valid CNI configuration in {0} yet: the primary CNI is not installed")]
    NoConfiguration(PathBuf),
    /// A file or directory cannot be used.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Diagnose for InstallError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoConfiguration(_) => "CNI030",
            Self::File { .. } => "CNI031",
        }
    }
    fn fault(&self) -> Fault {
        Fault::Config
    }
    fn remedy(&self) -> &'static str {
        match self {
            Self::NoConfiguration(_) => "install the primary CNI, or set CNI_CONF_DIR to where the runtime reads",
            Self::File { .. } => "check that the directories are mounted into the agent's pod and can be written",
        }
    }
}

/// What had to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Whether the binary was put in place.
    pub binary: bool,
    /// The file that our entry was put into, if it was not there.
    pub entry: Option<PathBuf>,
}

/// What is to be in place.
#[derive(Clone, Debug)]
pub struct Installer {
    /// Where.
    pub places: Places,
    /// The program that the binary is a copy of.
    pub program: PathBuf,
    /// Our entry.
    pub entry: Entry,
    /// The binary as it was when it was last found right: it is read only when it looks different.
    right: Option<Stamp>,
}

/// What changes with a file: inode, size, and time of the last change of either content or mode.
type Stamp = (u64, u64, i64, i64);

impl Installer {
    /// Nothing is looked at yet.
    pub fn new(places: Places, program: PathBuf, entry: Entry) -> Self {
        Self { places, program, entry, right: None }
    }

    /// Puts binary and entry in place where they are not. Blocks for the time of copying the binary.
    pub fn install(&mut self) -> Result<Installed, InstallError> {
        let binary = self.binary()?;
        let places = &self.places;
        let (path, list) = first(places)?;
        let entry =
            if places.own_conflist { own(places, list, &self.entry)? } else { join(places, &path, list, &self.entry)? };
        Ok(Installed { binary, entry })
    }

    fn binary(&mut self) -> Result<bool, InstallError> {
        let path = self.places.bin_dir.join(PLUGIN);
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
        };
        let now = stamp(&path);
        if now.is_some() && now == self.right {
            return Ok(false);
        }
        let runs = |path: &Path| fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o111 == 0o111);
        let copied = !(runs(&path) && files::same(&self.program, &path).unwrap_or(false));
        if copied {
            files::copy(&self.program, &path, files::PROGRAM).map_err(failed("install", &path))?;
        }
        self.right = stamp(&path);
        Ok(copied)
    }
}

/// Takes entry and binary out, whatever way they were put in.
pub fn remove(places: &Places) -> Result<(), InstallError> {
    let own = places.conf_dir.join(OWN_CONFLIST);
    files::remove(&own).map_err(failed("remove", &own))?;
    for path in configurations(&places.conf_dir)? {
        let Some(mut list) = read(&path).filter(Conflist::has_ours) else { continue };
        list.remove();
        let kept = kept(&path);
        if kept.exists() {
            // What was there before, unless the list has become something else since.
            let as_before = read(&kept).is_some_and(|before| before.text() == list.text());
            if as_before {
                let single = path.with_extension("conf");
                fs::rename(&kept, &single).map_err(failed("put back", &single))?;
                files::remove(&path).map_err(failed("remove", &path))?;
                continue;
            }
            files::remove(&kept).map_err(failed("remove", &kept))?;
        }
        write(&path, &list)?;
    }
    let binary = places.bin_dir.join(PLUGIN);
    files::remove(&binary).map_err(failed("remove", &binary))
}

/// The configuration, if any, in which Istio's plugin is active.
pub fn istio(places: &Places) -> Result<Option<PathBuf>, InstallError> {
    let active = |path: &PathBuf| read(path).is_some_and(|list| list.has_istio());
    Ok(configurations(&places.conf_dir)?.into_iter().find(active))
}

/// The first valid configuration in order that is not our own.
fn first(places: &Places) -> Result<(PathBuf, Conflist), InstallError> {
    let others = configurations(&places.conf_dir)?.into_iter().filter(|path| !path.ends_with(OWN_CONFLIST));
    let mut valid = others.filter_map(|path| read(&path).map(|list| (path, list)));
    valid.next().ok_or_else(|| InstallError::NoConfiguration(places.conf_dir.clone()))
}

/// Our entry joins the list; a single configuration becomes a list.
fn join(places: &Places, path: &Path, list: Conflist, entry: &Entry) -> Result<Option<PathBuf>, InstallError> {
    let joined = put(path, list, entry)?;
    // Left from a time with other settings; it goes last, so that there is no moment without our entry.
    let own = places.conf_dir.join(OWN_CONFLIST);
    files::remove(&own).map_err(failed("remove", &own))?;
    Ok(joined)
}

fn put(path: &Path, mut list: Conflist, entry: &Entry) -> Result<Option<PathBuf>, InstallError> {
    if !list.insert(entry) {
        return Ok(None);
    }
    if !list.single {
        write(path, &list)?;
        return Ok(Some(path.to_owned()));
    }
    let target = path.with_extension("conflist");
    write(&target, &list)?;
    // It sorts before the list, and would win.
    let kept = kept(&target);
    fs::rename(path, &kept).map_err(failed("put aside", path))?;
    Ok(Some(target))
}

/// A list of our own: what the first one has, and our entry.
fn own(places: &Places, mut list: Conflist, entry: &Entry) -> Result<Option<PathBuf>, InstallError> {
    list.insert(entry);
    let path = places.conf_dir.join(OWN_CONFLIST);
    let written = !fs::read_to_string(&path).is_ok_and(|text| text == list.text());
    if written {
        write(&path, &list)?;
    }
    let all = configurations(&places.conf_dir)?;
    for other in all.iter().filter(|path| !path.ends_with(OWN_CONFLIST)) {
        // Left from a time with other settings; it goes last, so that there is no moment without our entry.
        if let Some(mut list) = read(other).filter(Conflist::has_ours) {
            list.remove();
            write(other, &list)?;
        }
    }
    if let Some(before) = all.first().filter(|path| written && !path.ends_with(OWN_CONFLIST)) {
        tracing::warn!(before = %before.display(), "a CNI configuration sorts before {OWN_CONFLIST} and wins");
    }
    Ok(written.then_some(path))
}

/// Files that a runtime would look at, in its order.
fn configurations(conf_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(conf_dir).map_err(failed("list", conf_dir))? {
        let path = entry.map_err(failed("list", conf_dir))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conf" | "conflist" | "json")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A configuration that a runtime would take; others are none.
fn read(path: &Path) -> Option<Conflist> {
    let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_FILE_BYTES);
    let text = small.then(|| fs::read_to_string(path).ok()).flatten()?;
    match Conflist::read(&text) {
        Ok(list) => Some(list),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not a CNI configuration");
            None
        }
    }
}

fn write(path: &Path, list: &Conflist) -> Result<(), InstallError> {
    let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o777);
    files::replace(path, list.text().as_bytes(), mode).map_err(failed("write", path))
}

fn kept(path: &Path) -> PathBuf {
    path.with_extension(format!("conf.{KEPT}"))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { what, path, source }
}

#[cfg(test)]
mod tests;
