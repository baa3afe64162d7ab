//! A part of the shared mesh that belongs to one test: a namespace with its objects, gone when the test is over.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use serde_json::Value;

use crate::support::{Mesh, shared, text, wait};

/// A namespace of the shared mesh, outside the data plane unless its objects say otherwise.
pub struct Scene {
    pub mesh: Arc<Mesh>,
    pub name: &'static str,
}

impl Scene {
    /// Adds a namespace with these objects. `NS` in them stands for its name, `DIR` for a folder that its pods and the
    /// test share.
    pub fn new(name: &'static str, objects: &str) -> Self {
        let scene = Self { mesh: shared(), name };
        fs::create_dir_all(scene.dir()).expect("a folder");
        scene.set(objects);
        scene
    }

    /// Makes these the objects of the namespace.
    pub fn set(&self, objects: &str) {
        let dir = self.dir();
        let objects = objects.replace("NS", self.name).replace("DIR", dir.to_str().expect("a path"));
        self.mesh.apply(&format!("{}.yaml", self.name), &(crate::mesh::namespace(self.name, false) + &objects));
    }

    /// The folder that the test and its pods share.
    pub fn dir(&self) -> PathBuf {
        self.mesh.dir.path().join(self.name)
    }

    /// What a file of that folder holds.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(name)).unwrap_or_default()
    }

    /// Makes an empty file in that folder, for a program that looks for it.
    pub fn flag(&self, name: &str) {
        fs::write(self.dir().join(name), "").expect("the file can be written");
    }

    /// Removes it.
    pub fn unflag(&self, name: &str) {
        fs::remove_file(self.dir().join(name)).expect("the file is there");
    }

    pub fn pods(&self) -> Vec<Value> {
        self.mesh.get("pods", self.name)
    }

    pub fn pod(&self, name: &str) -> Value {
        self.mesh.pod(self.name, name).unwrap_or_default()
    }

    /// The line of `get pods` of a pod.
    pub fn line(&self, pod: &str) -> String {
        let table = text(&self.mesh.command(&["get", "pods", "-n", self.name]));
        table.lines().find(|line| line.starts_with(&format!("{pod} "))).unwrap_or_default().to_owned()
    }

    /// Waits until the line of a pod has a word.
    pub fn wait_word(&self, pod: &str, word: &str) {
        wait(&format!("{pod} shows {word}, not {:?}", self.line(pod)), || {
            self.line(pod).split_whitespace().any(|one| one == word)
        });
    }

    pub fn is_ready(&self, pod: &str) -> bool {
        is_ready(&self.pod(pod))
    }

    pub fn wait_ready(&self, pod: &str) {
        wait(&format!("{pod} is ready: {}", self.line(pod)), || self.is_ready(pod));
    }

    /// How often a pod's container, by its place, was started again.
    pub fn restarts(&self, pod: &str, index: usize) -> u64 {
        self.pod(pod)["status"]["containerStatuses"][index]["restartCount"].as_u64().unwrap_or_default()
    }

    pub fn uid(&self, pod: &str) -> String {
        self.pod(pod)["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// Runs a shell command in a pod.
    pub fn sh(&self, pod: &str, command: &str) -> Output {
        self.mesh.exec(self.name, pod, &["sh", "-c", command])
    }

    /// What a shell command in a pod prints; it must succeed.
    pub fn said(&self, pod: &str, command: &str) -> String {
        let output = self.sh(pod, command);
        assert!(output.status.success(), "{command}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn logs(&self, pod: &str, container: &str) -> String {
        let output = self.mesh.command(&["logs", "-n", self.name, pod, "-c", container]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Deletes the file with everything in it and waits until its pods are gone.
    pub fn remove(&self) {
        self.mesh.delete(&format!("{}.yaml", self.name));
        wait("every pod is gone", || self.pods().is_empty());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let file = format!("{}.yaml", self.name);
        if self.mesh.dir.path().join("manifests").join(&file).exists() {
            self.mesh.delete(&file);
        }
    }
}

/// Whether a pod takes traffic.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// A pod with one container `main` that runs a shell command. `more` goes into its spec, `container` into the container.
pub fn pod(name: &str, more: &str, command: &str, container: &str) -> String {
    let command = serde_json::to_string(command).expect("JSON");
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: NS, labels: {{app: {label}}}}}
spec:
  terminationGracePeriodSeconds: 2
  {more}
  containers:
  - name: main
    command: [sh, -c, {command}]
    {container}
",
        label = name.get(..63).unwrap_or(name).trim_end_matches('-'),
    )
}

/// Ends at once when it is told to.
pub const SLEEP: &str = "exec sleep infinity";
