//! What is analyzed: manifests, and what runs. What cannot be read is a finding, never a stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize as _;
use serde_json::Value;
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::parse::{self, Foreign};
use stillmesh_k8s::{Object, ObjectKey, Placed, Position};

use super::code;
use super::message::Message;
use crate::offline::{FILE_BYTES, Written, take_text};
use crate::why::place::Place;

/// Files of all directories together.
const MOST_FILES: usize = 10_000;
/// Kinds that make pods of a template, besides Deployments.
const TEMPLATES: [&str; 5] = ["StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];
/// Groups of a mesh's own kinds.
const MESH_GROUPS: [&str; 3] = ["istio.io", "gateway.networking.k8s.io", "stillmesh.io"];
/// Findings about documents that are no objects of kinds known here.
const UNKNOWN: [&str; 4] = ["MAN001", "MAN002", "MAN003", "MAN004"];

/// What is analyzed.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) written: Written,
    /// What was found while reading.
    pub(super) messages: Vec<Message>,
    /// The objects of what runs, where that is among it: then what is not there is not there.
    pub(super) running: Option<BTreeMap<ObjectKey, Placed>>,
    /// Whether there may be ServiceAccounts that are not among the objects.
    pub(super) are_accounts_unknown: bool,
    /// What could not be read.
    pub(super) notes: Vec<String>,
}

impl Input {
    /// What runs besides what the controller follows: ServiceAccounts. What cannot be read is noted.
    pub(super) async fn others(&mut self, place: &Place) {
        match place.list("ServiceAccount", "", "").await {
            Ok(listed) => listed.iter().for_each(|one| take_text(&mut self.written, "(live)", &one.to_string())),
            Err(error) => {
                self.are_accounts_unknown = true;
                self.notes.push(format!("ServiceAccounts cannot be read, and clients are not looked up: {error:#}"));
            }
        }
    }

    /// Manifests in files and directories.
    pub(super) fn files(&mut self, paths: &[PathBuf], recursive: bool, ignore_unknown: bool) {
        for path in paths {
            let mut files = BTreeSet::new();
            match std::fs::metadata(path) {
                Ok(about) if about.is_dir() => self.listed(path, recursive, &mut files),
                Ok(_) => drop(files.insert(path.clone())),
                Err(error) => self.unreadable(path, &error.to_string()),
            }
            files.iter().for_each(|file| self.file(file, ignore_unknown));
        }
    }

    /// The manifests of a directory. Hidden files are passed over.
    fn listed(&mut self, directory: &Path, recursive: bool, files: &mut BTreeSet<PathBuf>) {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(directory, &error.to_string()),
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            let is_manifest =
                path.extension().and_then(|end| end.to_str()).is_some_and(|end| ["yaml", "yml", "json"].contains(&end));
            // A link to a directory is not followed: it may lead back.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match (is_hidden, is_directory) {
                (true, _) => {}
                (false, true) if recursive => self.listed(&path, recursive, files),
                (false, false) if is_manifest && files.len() < MOST_FILES => drop(files.insert(path)),
                (false, false) if is_manifest => {
                    return self.unreadable(&path, &format!("there are more than {MOST_FILES} files"));
                }
                (false, _) => {}
            }
        }
    }

    fn file(&mut self, path: &Path, ignore_unknown: bool) {
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        if size > FILE_BYTES {
            return self.unreadable(path, &format!("it is larger than {FILE_BYTES} bytes"));
        }
        match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => self.text(&path.display().to_string(), &text, ignore_unknown),
            Ok(Err(_)) => self.unreadable(path, "it is no text in UTF-8"),
            Err(error) => self.unreadable(path, &error.to_string()),
        }
    }

    /// Manifests in a text; `file` names places.
    pub(super) fn text(&mut self, file: &str, text: &str, ignore_unknown: bool) {
        take_text(&mut self.written, file, text);
        // Kinds that are not read are looked at below.
        let is_told = |code: &str| code != "MAN003" && !(ignore_unknown && UNKNOWN.contains(&code));
        self.written.findings.retain(|finding| is_told(finding.code));
        for one in parse::foreign(file, text) {
            self.foreign(one, ignore_unknown);
        }
    }

    fn foreign(&mut self, one: Foreign, ignore_unknown: bool) {
        let Foreign { value, at, meant } = one;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name, version) =
            (text(&value["kind"]), text(&value["metadata"]["name"]), text(&value["apiVersion"]));
        let namespace = match text(&value["metadata"]["namespace"]) {
            empty if empty.is_empty() => DEFAULT_NAMESPACE.to_owned(),
            namespace => namespace,
        };
        let title = format!("{kind} {namespace}/{name}");
        let mut say = |code, message: String| self.messages.push(Message::titled(code, &title, at.clone(), message));
        if let Some(meant) = meant {
            if !ignore_unknown {
                say(code::INVALID, format!("unknown kind {kind:?}; is {meant} meant?"));
            }
            return;
        }
        let group = version.split('/').next().unwrap_or_default();
        if MESH_GROUPS.iter().any(|one| group == *one || group.ends_with(&format!(".{one}"))) {
            if !ignore_unknown {
                say(code::UNSUPPORTED, format!("kind {kind} ({version}) is not read by this mesh: it has no effect"));
            }
        } else if TEMPLATES.contains(&kind.as_str()) {
            let template = match kind.as_str() {
                "CronJob" => &value["spec"]["jobTemplate"]["spec"]["template"],
                _ => &value["spec"]["template"],
            };
            match Pod::deserialize(template) {
                Ok(pod) => self.written.add([Placed { object: pod_of(pod, &kind, &namespace, &name), at }]),
                Err(error) => say(code::INVALID, format!("its pod template: {error}")),
            }
        }
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        let at = Position::file(path.display().to_string());
        self.messages.push(Message::titled(code::INVALID, "", at, format!("cannot be read: {why}")));
    }
}

/// The pod that stands for all that a template makes.
fn pod_of(mut pod: Pod, kind: &str, namespace: &str, name: &str) -> Object {
    let owner = OwnerReference { kind: kind.to_owned(), name: name.to_owned(), ..OwnerReference::default() };
    pod.metadata = ObjectMeta {
        name: Some(format!("{name}-0")),
        namespace: Some(namespace.to_owned()),
        owner_references: Some(vec![OwnerReference { controller: Some(true), ..owner }]),
        ..pod.metadata
    };
    pod.into()
}
