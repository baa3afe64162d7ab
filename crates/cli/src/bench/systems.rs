//! What is compared: raw TCP and the mesh, and systems that are given as files.
//!
//! A system is a namespace with a pod `client` and a pod `server`. Whatever else runs in that namespace is its proxies; where
//! the namespace is in the mesh, the node tunnels are, too; those may be of another make. docs/bench.md says how such a file is written.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::fill::fill;
use crate::machine::foreign::ForeignTunnel;

/// Annotation of the client's pod: whom it dials, when not the server's pod itself.
const TARGET: &str = "stillmesh.io/bench-target";
/// Annotation of the client's pod: `clear` where nothing is encrypted between the nodes.
const WIRE: &str = "stillmesh.io/bench-wire";
/// Port of the server.
pub(super) const PORT: u16 = 7000;
/// Stands for the address of the server's pod.
const SERVER: &str = "SERVER";
/// Our own, which others are compared with.
pub(super) const OURS: &str = "mesh";
/// No proxies at all.
pub(super) const RAW: &str = "raw";

/// What is on the wire between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// The application's bytes.
    Clear,
    /// Nothing that can be read.
    Encrypted,
    /// Nothing at all: both ends are on one node.
    None,
}

/// A system as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct System {
    /// Its name, which is that of its namespace.
    pub(super) name: String,
    /// Its namespace is in the mesh.
    pub(super) in_mesh: bool,
    /// What its client dials, when not the server's pod.
    target: Option<String>,
    /// What is on the wire.
    pub(super) wire: Wire,
    /// It came as a file, and others are compared with it.
    pub(super) given: bool,
    /// The file of the node tunnel that it is about; it has a mesh to itself.
    pub(super) tunnel: Option<PathBuf>,
    /// Its objects that need nothing to be known.
    pub(super) objects: String,
    /// Those in which the server's address stands.
    late: String,
}

/// Raw TCP and the mesh, each across two nodes and on one, and those of the files. Errors: a file cannot be read, is no
/// system, or has the name of another.
pub(super) fn all(files: &[PathBuf], env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<System>> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    let value = &|name: &str| if name == "STILLMESH" { Some(exe.clone()) } else { env(name) };
    let built_in = [
        (RAW, "{}", "node2"),
        (OURS, AMBIENT, "node2"),
        ("raw-one-node", "{}", "node1"),
        ("mesh-one-node", AMBIENT, "node1"),
        ("direct-one-node", DIRECT, "node1"),
    ];
    let mut systems = Vec::new();
    for (name, labels, node) in built_in {
        systems.push(System::read(&manifest(name, labels, node), value)?);
    }
    for file in files {
        let named = || format!("system {}", file.display());
        let of_file = if file.extension().is_some_and(|extension| extension == "toml") {
            with_tunnel(file, value).with_context(named)?
        } else {
            let text = std::fs::read_to_string(file).with_context(named)?;
            vec![System { given: true, ..System::read(&text, value).with_context(named)? }]
        };
        for system in of_file {
            let name = &system.name;
            ensure!(systems.iter().all(|other| other.name != *name), "{}: there is a system {name} already", named());
            systems.push(system);
        }
    }
    Ok(systems)
}

/// A mesh whose node tunnels are of another make: across two nodes and on one, as ours.
fn with_tunnel(file: &Path, value: &impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<System>> {
    let name = ForeignTunnel::read(file)?.name;
    let tunnel = Some(std::path::absolute(file)?);
    let of = |name: &str, node: &str, given: bool| {
        anyhow::Ok(System { given, tunnel: tunnel.clone(), ..System::read(&manifest(name, AMBIENT, node), value)? })
    };
    Ok(vec![of(&name, "node2", true)?, of(&format!("{name}-one-node"), "node1", false)?])
}

const AMBIENT: &str = "{istio.io/dataplane-mode: ambient}";
/// In the mesh, and without a tunnel where both ends are on one node.
const DIRECT: &str = "{istio.io/dataplane-mode: ambient, stillmesh.io/same-node: direct}";

impl System {
    fn read(text: &str, value: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        // What is not known yet stays as it is written.
        let later = format!("${{{SERVER}}}");
        let text = fill(text, |name| if name == SERVER { Some(later.clone()) } else { value(name) })?;
        let mut documents = Vec::new();
        for document in split(&text) {
            let object: Value = serde_saphyr::from_str(&document).context("not YAML")?;
            if !object.is_null() {
                documents.push((object, document));
            }
        }
        let of_kind = |kind: &str| {
            documents.iter().map(|(object, _)| object).filter(|object| object["kind"] == *kind).collect::<Vec<_>>()
        };
        let name = match of_kind("Namespace").as_slice() {
            [one] => one["metadata"]["name"].as_str().context("its Namespace has no name")?.to_owned(),
            others => bail!("it needs one Namespace, and has {}", others.len()),
        };
        let pod = |pod: &str| {
            let pods = of_kind("Pod");
            let found = pods
                .into_iter()
                .find(|object| object["metadata"]["name"] == *pod && object["metadata"]["namespace"] == *name);
            found.with_context(|| format!("it needs a Pod {pod} in Namespace {name}"))
        };
        let (client, server) = (pod("client")?, pod("server")?);
        for (pod, name) in [(client, "client"), (server, "server")] {
            let containers = pod["spec"]["containers"].as_array().map_or(&[] as &[Value], Vec::as_slice);
            let is_there = containers.iter().any(|container| container["name"] == *name);
            ensure!(is_there, "Pod {name} needs a container {name}");
            ensure!(pod["spec"]["nodeName"].is_string(), "Pod {name} needs a nodeName: node1 or node2");
        }
        let annotation = |name: &str| client["metadata"]["annotations"][name].as_str();
        let wire = match annotation(WIRE) {
            _ if client["spec"]["nodeName"] == server["spec"]["nodeName"] => Wire::None,
            None => Wire::Encrypted,
            Some("clear") => Wire::Clear,
            Some(other) => bail!("annotation {WIRE}: {other:?} is not known; accepted is clear, or none"),
        };
        let target = annotation(TARGET).map(str::to_owned);
        let labels = &of_kind("Namespace").first().map_or(Value::Null, |one| one["metadata"]["labels"].clone());
        let in_mesh = labels["istio.io/dataplane-mode"] == "ambient";
        ensure!(
            !documents
                .iter()
                .any(|(object, document)| object["metadata"]["name"] == "server" && document.contains(&later)),
            "${{{SERVER}}} is the address of the pod server, and cannot stand in it"
        );
        let join = |late: bool| {
            let those = documents.iter().filter(|(_, document)| document.contains(&later) == late);
            those.map(|(_, document)| format!("---\n{document}\n")).collect::<String>()
        };
        Ok(Self { name, in_mesh, target, wire, given: false, tunnel: None, objects: join(false), late: join(true) })
    }

    /// The objects that had to wait for the server's address.
    pub(super) fn late(&self, server: &str) -> anyhow::Result<Option<String>> {
        if self.late.is_empty() {
            return Ok(None);
        }
        fill(&self.late, |name| (name == SERVER).then(|| server.to_owned())).map(Some)
    }

    /// What its client dials.
    pub(super) fn target(&self, server: &str) -> String {
        self.target.clone().unwrap_or_else(|| format!("{server}:{PORT}"))
    }
}

/// The documents of a YAML stream, as they are written.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

/// The client on node1, the server on a node.
fn manifest(name: &str, labels: &str, node: &str) -> String {
    let annotations = if name == RAW { format!("{{{WIRE}: clear}}") } else { "{}".to_owned() };
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {name}, labels: {labels}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: server, command: [\"${{STILLMESH}}\", bench-load, server]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {name}, annotations: {annotations}}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{{name: client, command: [sleep, infinity]}}]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<System> {
        System::read(text, |name| (name == "STILLMESH" || name == "PROXY").then(|| format!("/bin/{name}")))
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", read(text).unwrap_err())
    }

    #[test]
    fn the_built_in_ones_are_systems() {
        let systems = all(&[], |_| None).unwrap();
        let told: Vec<_> = systems.iter().map(|one| (one.name.as_str(), one.in_mesh, one.wire)).collect();
        let expected = [
            ("raw", false, Wire::Clear),
            ("mesh", true, Wire::Encrypted),
            ("raw-one-node", false, Wire::None),
            ("mesh-one-node", true, Wire::None),
            ("direct-one-node", true, Wire::None),
        ];
        assert_eq!(told, expected);
        assert_eq!(systems[0].target("10.0.0.1"), "10.0.0.1:7000");
    }

    #[test]
    fn the_servers_address_is_filled_in_when_it_is_known() {
        let text = manifest("floor", "{}", "node2").replace(
            "{name: client, command: [sleep, infinity]}",
            "{name: client, command: [sleep, infinity]}, {name: proxy, command: [\"${PROXY}\", \"${SERVER}:7443\"]}",
        );
        let text = text.replace("annotations: {}", "annotations: {stillmesh.io/bench-target: \"127.0.0.1:7001\"}");
        let system = read(&text).unwrap();
        assert_eq!(system.target("10.0.0.1"), "127.0.0.1:7001");
        assert!(!system.objects.contains("client"), "{}", system.objects);
        let late = system.late("10.0.0.1").unwrap().unwrap();
        assert!(late.contains("\"/bin/PROXY\", \"10.0.0.1:7443\""), "{late}");
    }

    #[test]
    fn what_is_no_system_is_refused_with_what_is_missing() {
        let good = manifest("floor", "{}", "node2");
        assert!(refusal("a: [").contains("not YAML"));
        assert!(refusal("").contains("it needs one Namespace, and has 0"));
        assert!(
            refusal(&good.replace("name: client, namespace", "name: other, namespace"))
                .contains("a Pod client in Namespace floor")
        );
        assert!(refusal(&good.replace("{name: server, command", "{name: web, command")).contains("a container server"));
        assert!(refusal(&good.replace("  nodeName: node1\n", "")).contains("needs a nodeName"));
        assert!(refusal(&good.replace("infinity", "${NOBODY}")).contains("no environment variable NOBODY"));
        assert!(refusal(&good.replace("infinity", "${NOBODY")).contains("and a closing brace"));
        let odd = good.replace("annotations: {}", "annotations: {stillmesh.io/bench-wire: odd}");
        assert!(refusal(&odd).contains("accepted is clear"));
    }
}
