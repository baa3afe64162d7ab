//! The systems as they run in the benchmark's mesh: whom their clients dial, and which processes are their proxies.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::load::Measured;
use super::process::{Process, in_namespaces};
use super::scenario::RATE;
use super::systems::{OURS, System, Wire};
use crate::driver::{Files, Mesh, until};

/// Namespace of the node tunnels.
const SYSTEM_NAMESPACE: &str = "istio-system";

/// The mesh in which all systems run, and one for each make of node tunnels that is not ours.
pub(super) struct Stage {
    /// The systems, in the order of reports. Before the folders: the meshes end first.
    pub(super) places: Vec<Place>,
    /// The meshes, by the system across two nodes that their tunnels carry.
    pub(super) meshes: Vec<(String, Arc<Mesh>)>,
    _files: Vec<Files>,
}

/// A system that runs.
pub(super) struct Place {
    /// Its name.
    pub(super) name: String,
    /// What is on the wire between the nodes.
    pub(super) wire: Wire,
    /// It came as a file.
    pub(super) given: bool,
    /// Its namespace is in the mesh.
    pub(super) in_mesh: bool,
    /// Where it runs.
    pub(super) mesh: Arc<Mesh>,
    /// The processes of its proxies.
    pub(super) proxies: Vec<Process>,
    target: String,
}

impl Stage {
    /// Starts them all, and sees each serve. Errors: no mesh can run here, a system does not come up.
    pub(super) fn set(systems: &[System]) -> anyhow::Result<Self> {
        let mut stage = Self { places: Vec::new(), meshes: Vec::new(), _files: Vec::new() };
        let own: Vec<&System> = systems.iter().filter(|system| system.tunnel.is_none()).collect();
        stage.set_in_a_mesh(OURS, &own, &[])?;
        // A tunnel's systems follow each other.
        let foreign: Vec<&System> = systems.iter().filter(|system| system.tunnel.is_some()).collect();
        for of_one in foreign.chunk_by(|one, other| one.tunnel == other.tunnel) {
            if let Some((first, tunnel)) = of_one.first().and_then(|one| Some((one, one.tunnel.as_deref()?))) {
                let options = ["--ztunnel", &tunnel.to_string_lossy()];
                stage
                    .set_in_a_mesh(&first.name, of_one, &options)
                    .with_context(|| format!("mesh of {}", first.name))?;
            }
        }
        Ok(stage)
    }

    fn set_in_a_mesh(&mut self, carried: &str, systems: &[&System], options: &[&str]) -> anyhow::Result<()> {
        let manifests: Vec<_> =
            systems.iter().map(|system| (format!("{}.yaml", system.name), system.objects.as_str())).collect();
        let named: Vec<_> = manifests.iter().map(|(name, objects)| (name.as_str(), *objects)).collect();
        let files = Files::temporary(&named)?;
        let name = format!("bench-{:08x}", rand::random::<u32>());
        let mesh = Arc::new(Mesh::start(&name, files.path(), options)?);
        self.meshes.push((carried.to_owned(), Arc::clone(&mesh)));
        self._files.push(files);
        mesh.ready()?;
        let mut targets = Vec::new();
        for system in systems {
            let server = until(|| address(&mesh, &system.name))?;
            if let Some(objects) = system.late(&server)? {
                mesh.apply(&format!("{}-late.yaml", system.name), &objects)?;
            }
            targets.push(system.target(&server));
        }
        for (system, target) in systems.iter().zip(targets) {
            until(|| is_up(&mesh, system))?;
            let mut place = Place {
                name: system.name.clone(),
                wire: system.wire,
                given: system.given,
                in_mesh: system.in_mesh,
                mesh: Arc::clone(&mesh),
                proxies: Vec::new(),
                target,
            };
            // Proxies may listen a little later than their containers run.
            until(|| place.client("closed", 1, 0.0)?.measure().map(drop))
                .with_context(|| format!("{} does not serve", place.name))?;
            place.proxies = place.find_proxies()?;
            self.places.push(place);
        }
        Ok(())
    }

    /// Finds proxies again, of which some were started anew, and sees every system serve.
    pub(super) fn find_again(&mut self) -> anyhow::Result<()> {
        for place in &mut self.places {
            until(|| place.client("closed", 1, 0.0)?.measure().map(drop))
                .with_context(|| format!("{} does not serve any more", place.name))?;
            place.proxies = place.find_proxies()?;
        }
        Ok(())
    }

    /// Takes the meshes down.
    pub(super) fn down(&self) -> anyhow::Result<()> {
        self.meshes.iter().try_for_each(|(_, mesh)| mesh.down())
    }
}

impl Place {
    /// Starts a client of a system. Its connections are open when this returns.
    pub(super) fn client(&self, shape: &str, connections: u32, seconds: f64) -> anyhow::Result<Client> {
        self.client_with(shape, connections, seconds, &[])
    }

    /// Likewise, with further options.
    pub(super) fn client_with(
        &self,
        shape: &str,
        connections: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Client> {
        self.client_in("client", shape, connections, seconds, more)
    }

    /// Starts a client in a pod that is new, and waits for what it measured. The pod is gone when this returns.
    pub(super) fn in_new_pod<T>(
        &self,
        shape: &str,
        connections: u32,
        more: &[&str],
        measure: impl FnOnce(Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let name = format!("new-{:08x}", rand::random::<u32>());
        let file = format!("{name}.json");
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "nodeName": "node1", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "client", "command": ["sleep", "infinity"]}],
            },
        });
        let find = || -> anyhow::Result<Option<Value>> {
            Ok(self.mesh.pods(&self.name)?.into_iter().find(|pod| pod["metadata"]["name"] == *name))
        };
        self.mesh.apply(&file, &object.to_string())?;
        until(|| pod_is_up(&find()?.context("the new pod is not there yet")?, self.in_mesh))?;
        let measured = self.client_in(&name, shape, connections, 0.0, more).and_then(measure);
        self.mesh.delete(&file)?;
        until(|| {
            ensure!(find()?.is_none(), "the pod {name} does not end");
            Ok(())
        })?;
        measured
    }

    fn client_in(
        &self,
        pod: &str,
        shape: &str,
        connections: u32,
        seconds: f64,
        more: &[&str],
    ) -> anyhow::Result<Client> {
        let exe = self.mesh.exe();
        let (connections, seconds) = (connections.to_string(), seconds.to_string());
        let mut arguments = vec!["exec", "-n", &self.name, pod, "-c", "client", "--", &exe, "bench-load", "client"];
        arguments.extend(["--target", &self.target, "--shape", shape, "--connections", &connections]);
        let rate = RATE.to_string();
        arguments.extend(["--seconds", &seconds, "--rate", &rate]);
        arguments.extend(more);
        let mut command = self.mesh.command(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start a client")?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("the client's output")?;
        let mut client = Client { child, input, output: BufReader::new(output).lines() };
        client.line()?;
        Ok(client)
    }

    /// The proxies of a system: what runs in its pods beside client and server, and the tunnels of their nodes where the
    /// system is in the mesh.
    fn find_proxies(&self) -> anyhow::Result<Vec<Process>> {
        let pods = self.mesh.pods(&self.name)?;
        let in_pod = |name: &str, container: Option<&str>, kind: &str| {
            namespace(&self.mesh, [&self.name, name], container, kind)
        };
        let (mut networks, mut loads) = (BTreeSet::new(), BTreeSet::new());
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let is_end = name == "client" || name == "server";
            if is_end {
                loads.insert(in_pod(name, Some(name), "pid")?);
            }
            if !is_end || pod["spec"]["containers"].as_array().is_some_and(|all| all.len() > 1) {
                networks.insert(in_pod(name, None, "net")?);
            }
        }
        if self.in_mesh {
            let nodes: BTreeSet<_> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
            for node in nodes {
                networks.insert(namespace_of_tunnel(&self.mesh, node)?);
            }
        }
        let proxies = in_namespaces(&Process::family(self.mesh.pid())?, &networks, &loads);
        let expected = self.in_mesh || !networks.is_empty();
        ensure!(!expected || !proxies.is_empty(), "{}: its proxies are not found below this process", self.name);
        Ok(proxies)
    }
}

/// The tunnel of a node.
pub(super) fn tunnel(mesh: &Mesh, node: &str) -> anyhow::Result<Process> {
    let network = namespace_of_tunnel(mesh, node)?;
    let found = in_namespaces(&Process::family(mesh.pid())?, &[network].into(), &BTreeSet::new());
    match found.as_slice() {
        [one] => Ok(*one),
        others => bail!("{} processes are the tunnel of {node}", others.len()),
    }
}

fn namespace_of_tunnel(mesh: &Mesh, node: &str) -> anyhow::Result<String> {
    namespace(mesh, [SYSTEM_NAMESPACE, &format!("ztunnel-{node}")], None, "net")
}

/// A namespace of a container's processes, as the kernel names it.
fn namespace(mesh: &Mesh, [namespace, pod]: [&str; 2], container: Option<&str>, kind: &str) -> anyhow::Result<String> {
    let link = format!("/proc/self/ns/{kind}");
    let mut arguments = vec!["exec", "-n", namespace, pod];
    arguments.extend(container.into_iter().flat_map(|container| ["-c", container]));
    arguments.extend(["--", "readlink", &link]);
    Ok(mesh.must(&arguments)?.trim().to_owned())
}

/// A client that runs in a pod. Dropping it ends it.
pub(super) struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Has it begin, and end when it has measured.
    pub(super) fn measure(mut self) -> anyhow::Result<Measured> {
        let measured = self.go()?;
        self.end()?;
        Ok(measured)
    }

    /// Has it begin, and waits for what it measured. Its connections stay open.
    pub(super) fn go(&mut self) -> anyhow::Result<Measured> {
        self.begin()?;
        self.finish()
    }

    /// Has it begin.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        self.input.as_mut().context("the client was ended")?.write_all(b"\n").context("the client is gone")
    }

    /// Waits for what it measured. Its connections stay open.
    pub(super) fn finish(&mut self) -> anyhow::Result<Measured> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the client said {line:?}"))
    }

    /// Has it close its connections, and waits for its end.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        ensure!(self.child.wait()?.success(), "the client failed: {}", self.complaint());
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        match self.output.next() {
            Some(line) => Ok(line?),
            None => bail!("{}", self.complaint()),
        }
    }

    fn complaint(&mut self) -> String {
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        said.trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The program in the pod ends with the command that started it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address of a system's server.
fn address(mesh: &Mesh, namespace: &str) -> anyhow::Result<String> {
    let pods = mesh.pods(namespace)?;
    let server = pods.iter().find(|pod| pod["metadata"]["name"] == "server").context("the pod server is not there")?;
    Ok(server["status"]["podIP"].as_str().with_context(|| format!("{namespace}/server has no address"))?.to_owned())
}

/// Whether a system's pods are ready, and captured where they are to be.
fn is_up(mesh: &Mesh, system: &System) -> anyhow::Result<()> {
    let pods = mesh.pods(&system.name)?;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    for end in ["client", "server"] {
        ensure!(pods.iter().any(|pod| name(pod) == end), "{}/{end} is not there", system.name);
    }
    pods.iter().try_for_each(|pod| pod_is_up(pod, system.in_mesh))
}

/// Whether a pod is ready, and captured where it is to be. The error says what is missing.
pub(super) fn pod_is_up(pod: &Value, in_mesh: bool) -> anyhow::Result<()> {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let name = || format!("{}/{}", text("namespace"), text("name"));
    let conditions = pod["status"]["conditions"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    if ready.is_none_or(|ready| ready["status"] != "True") {
        let why = ready.and_then(|ready| ready["message"].as_str()).unwrap_or_default();
        bail!("{} is not ready: {why}", name());
    }
    let captured = pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled";
    ensure!(captured || !in_mesh, "{} is not captured", name());
    Ok(())
}
