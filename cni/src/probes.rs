//! Tells the node's tunnel which connections are the kubelet's probes: those to a probe port of the pod that a process
//! of the node, and none of a pod, has open.
//!
//! Agent and kubelet share the node's network namespace. A pod's connection that leaves under the node's address has
//! no socket there; one of a pod on the host network has, and its process is in a pod's cgroup. Nothing is kept
//! between questions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use stillmesh_api::probes::{self, Question, Said, Verdict};
use stillmesh_netlink::sock_diag::{self, State};
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::{Backoff, Tasks};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use crate::intake::Ask;

/// Questions at a time; one more is closed unanswered.
const MAX_QUESTIONS: usize = 64;
/// How long the owner of a socket is looked for.
const LOOK: Duration = Duration::from_millis(300);

/// The probe ports of the node's pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// By UID.
    ports: Arc<Mutex<BTreeMap<String, BTreeSet<u16>>>>,
}

impl Probes {
    /// All that is known.
    pub fn known(&self) -> BTreeMap<String, BTreeSet<u16>> {
        self.ports.lock().clone()
    }

    /// Takes what an agent before knew.
    pub fn restore(&self, ports: BTreeMap<String, BTreeSet<u16>>) {
        *self.ports.lock() = ports;
    }

    /// Forgets all pods but those with these UIDs.
    pub fn keep_only(&self, uids: &BTreeSet<String>) {
        self.ports.lock().retain(|uid, _| uids.contains(uid));
    }

    /// Takes a pod's probe ports.
    pub fn learn(&self, pod: &Pod) {
        let Some(uid) = &pod.metadata.uid else { return };
        let ports = ports(pod);
        let mut all = self.ports.lock();
        if ports.is_empty() {
            all.remove(uid);
        } else {
            all.insert(uid.clone(), ports);
        }
    }

    /// Forgets a pod.
    pub fn forget(&self, pod: &Pod) {
        if let Some(uid) = &pod.metadata.uid {
            self.ports.lock().remove(uid);
        }
    }

    /// Answers questions until dropped, and passes on what tunnels say of pods. `host` is the node's network namespace,
    /// `proc` its processes.
    pub async fn serve(self, path: PathBuf, host: Netns, proc: PathBuf, asks: mpsc::Sender<Ask>) {
        let tasks = Tasks::new("probes");
        let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(5));
        let mut listener = loop {
            match probes::listen(&path) {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "probes cannot be told from other traffic");
                    sleep(backoff.next(1.0)).await;
                }
            }
        };
        backoff.reset();
        loop {
            let socket = match listener.accept().await {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a question");
                    sleep(backoff.next(1.0)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (probes, host, proc, asks) = (self.clone(), host.clone(), proc.clone(), asks.clone());
            tasks.spawn("question", async move {
                let _place = place;
                let answered = async {
                    let verdict = match probes::said(&socket).await? {
                        Said::Question(question) => probes.judge(question, host, proc).await,
                        // While there is no room nobody has heard, and the tunnel tells again.
                        // Pods that start come first; the tunnel tells again.
                        Said::Notice(_) if asks.capacity() * 2 < asks.max_capacity() => return Ok(()),
                        Said::Notice(notice) => match asks.try_send(Ask::CutOff(notice)) {
                            Ok(()) => Verdict::Other,
                            Err(_) => return Ok(()),
                        },
                    };
                    probes::answer(&socket, verdict).await
                };
                if let Err(error) = answered.await {
                    tracing::debug!(%error, "a question is not answered");
                }
            });
        }
    }

    async fn judge(&self, question: Question, host: Netns, proc: PathBuf) -> Verdict {
        let port = question.destination.port();
        if !self.ports.lock().get(&question.uid).is_some_and(|ports| ports.contains(&port)) {
            return Verdict::Other;
        }
        let (source, destination) = (question.source, question.destination);
        let look = move || look(source, destination, &host, &proc);
        let verdict = match tokio::task::spawn_blocking(look).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the node's sockets cannot be read");
                Verdict::Other
            }
            Err(_) => Verdict::Other,
        };
        tracing::debug!(%source, %destination, uid = question.uid, ?verdict, "probe?");
        verdict
    }
}

/// Whether the node itself has the connection. Blocks for [`LOOK`] at most.
fn look(source: SocketAddr, destination: SocketAddr, host: &Netns, proc: &Path) -> io::Result<Verdict> {
    let found = host.run_blocking(|| sock_diag::find_tcp(source, destination))?;
    let Some(socket) = found.map_err(io::Error::other)? else { return Ok(Verdict::Other) };
    match socket.state {
        State::Established | State::SynSent | State::CloseWait if socket.inode != 0 => {}
        State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait | State::LastAck => {
            return Ok(Verdict::Closed);
        }
        _ => return Ok(Verdict::Other),
    }
    Ok(match owner(proc, socket.inode) {
        Owner::Node | Owner::Hidden => Verdict::Probe,
        Owner::Pod | Owner::Nobody => Verdict::Other,
    })
}

/// Whose process has a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The node's own.
    Node,
    /// A pod's.
    Pod,
    /// No process that can be seen, and all can be.
    Nobody,
    /// Some processes cannot be seen.
    Hidden,
}

fn owner(proc: &Path, inode: u32) -> Owner {
    let end = Instant::now() + LOOK;
    let wanted = format!("socket:[{inode}]");
    let Ok(entries) = fs::read_dir(proc) else { return Owner::Hidden };
    let mut processes: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())))
        .map(|entry| entry.path())
        .collect();
    // Most questions are about the kubelet's.
    processes
        .sort_by_key(|process| fs::read_to_string(process.join("comm")).map_or(true, |comm| comm.trim() != "kubelet"));
    let mut is_hidden = false;
    for process in processes {
        if Instant::now() > end {
            return Owner::Nobody;
        }
        match has(&process, &wanted) {
            Ok(true) => {
                let cgroups = fs::read_to_string(process.join("cgroup"));
                return match cgroups {
                    Ok(cgroups) if cgroups.lines().any(is_pods) => Owner::Pod,
                    Ok(_) => Owner::Node,
                    Err(_) => Owner::Nobody,
                };
            }
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_hidden = true,
            // It has ended meanwhile.
            Err(_) => {}
        }
    }
    if is_hidden { Owner::Hidden } else { Owner::Nobody }
}

fn has(process: &Path, wanted: &str) -> io::Result<bool> {
    for entry in fs::read_dir(process.join("fd"))? {
        // Descriptors come and go.
        let Ok(entry) = entry else { continue };
        if fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a line of `/proc/<pid>/cgroup` is a pod's. Seen from another cgroup namespace its start may be missing, so
/// what counts is a name with `pod` and a UID in it, as both drivers of the kubelet make it.
fn is_pods(line: &str) -> bool {
    let path = line.rsplit(':').next().unwrap_or_default();
    path.split('/').any(|name| {
        if name.starts_with("kubepods") {
            return true;
        }
        let uid = name.strip_prefix("pod").unwrap_or_default();
        uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'))
    })
}

/// The ports of a pod's `tcpSocket` probes, in order.
pub(crate) fn socket_ports(pod: &Pod) -> BTreeSet<u16> {
    let of_probe = |(container, probe): (&Container, &Probe)| number(&probe.tcp_socket.as_ref()?.port, container);
    containers(pod).flat_map(|one| probes(one).map(move |probe| (one, probe))).filter_map(of_probe).collect()
}

/// The TCP ports that the kubelet may dial in a pod: of probes and of lifecycle hooks.
fn ports(pod: &Pod) -> BTreeSet<u16> {
    containers(pod).flat_map(of_container).collect()
}

/// All containers, sidecars included.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

fn probes(container: &Container) -> impl Iterator<Item = &Probe> {
    [&container.liveness_probe, &container.readiness_probe, &container.startup_probe].into_iter().flatten()
}

fn of_container(container: &Container) -> Vec<u16> {
    let mut ports: Vec<u16> = probes(container).filter_map(|probe| of_probe(probe, container)).collect();
    let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    ports.extend(hooks.flatten().filter_map(|hook: &LifecycleHandler| {
        let http = hook.http_get.as_ref().map(|get| &get.port);
        number(http.or(hook.tcp_socket.as_ref().map(|tcp| &tcp.port))?, container)
    }));
    ports
}

fn of_probe(probe: &Probe, container: &Container) -> Option<u16> {
    if let Some(grpc) = &probe.grpc {
        return u16::try_from(grpc.port).ok();
    }
    let http = probe.http_get.as_ref().map(|get| &get.port);
    number(http.or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port))?, container)
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let named = |name: &String| {
        let ports = container.ports.iter().flatten();
        ports.filter(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port).next()
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => named(name).or_else(|| name.parse().ok()),
    };
    u16::try_from(number?).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn probe_ports_are_those_of_all_containers_by_number_and_by_name() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "page", "uid": "u" },
            "spec": {
                "containers": [
                    {
                        "name": "a",
                        "ports": [{ "name": "web", "containerPort": 8080 }, { "containerPort": 9090 }],
                        "readinessProbe": { "httpGet": { "port": "web" } },
                        "livenessProbe": { "tcpSocket": { "port": 8081 } },
                        "startupProbe": { "exec": { "command": ["true"] } },
                        "lifecycle": { "preStop": { "httpGet": { "port": 8082 } } },
                    },
                    { "name": "b", "livenessProbe": { "grpc": { "port": 8083 } }, "readinessProbe": { "httpGet": { "port": "no" } } },
                ],
                "initContainers": [{ "name": "c", "readinessProbe": { "httpGet": { "port": 8084 } } }],
            },
        }))
        .unwrap();
        assert_eq!(ports(&pod), BTreeSet::from([8080, 8081, 8082, 8083, 8084]));
        assert_eq!(socket_ports(&pod), BTreeSet::from([8081]));
        let probes = Probes::default();
        probes.learn(&pod);
        assert!(probes.ports.lock().contains_key("u"));
        // The next agent knows the port before it has heard of the pod.
        let next = Probes::default();
        next.restore(probes.known());
        assert!(next.ports.lock().contains_key("u"));
        next.keep_only(&BTreeSet::new());
        assert!(next.ports.lock().is_empty());
        probes.forget(&pod);
        assert!(probes.ports.lock().is_empty());
    }

    #[test]
    fn a_pods_cgroup_is_told_from_the_nodes() {
        for pods in [
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod4a1c6b52_97ef_4c51_8a1e_000000000000.slice/cri-containerd-aa.scope",
            "11:memory:/kubepods/besteffort/pod4a1c6b52-97ef-4c51-8a1e-000000000000/aa",
            "0::/../../pod4a1c6b52-97ef-4c51-8a1e-000000000000/aa",
        ] {
            assert!(is_pods(pods), "{pods}");
        }
        for nodes in [
            "0::/system.slice/kubelet.service",
            "0::/../../../../system.slice/kubelet.service",
            "3:cpu:/",
            "0::/podman",
        ] {
            assert!(!is_pods(nodes), "{nodes}");
        }
    }

    #[test]
    fn the_owner_of_a_socket_is_found() {
        use std::os::fd::AsRawFd as _;
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = link.to_str().unwrap().trim_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap();
        assert_ne!(owner(Path::new("/proc"), inode), Owner::Nobody);
        let pid = std::process::id();
        assert!(has(Path::new(&format!("/proc/{pid}")), &format!("socket:[{inode}]")).unwrap());
    }
}
