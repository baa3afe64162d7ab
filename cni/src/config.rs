//! The agent's settings, read once from the environment.
//!
//! Two places to run: on a node of a cluster (the Kubernetes API, the kubelet and a container runtime around it), or in
//! the one-machine mesh, which is told apart by `OBJECTS_DIR`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stillmesh_k8s::select::Enrolment;
use stillmesh_runtime::env::{Problems, Reader};

use crate::install::Places;
use crate::rules::plan::Dns;

/// Every key: name, default, meaning.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("NODE_NAME", "", "whose pods are captured; required"),
    ("POD_NAMESPACE", "", "the agent's own namespace; required in a cluster"),
    ("STATE_DIR", "", "directory with what is believed of enrolled pods, the same path as on the node; required"),
    ("OBJECTS_DIR", "", "directory with the cluster's objects; without it, the Kubernetes API is asked"),
    ("NETNS_DIR", "", "directory with the namespaces of running pods, one file per pod UID; required with OBJECTS_DIR"),
    ("API_SOCKET", "", "where annotations are written to; only with OBJECTS_DIR, and without it none are"),
    ("PROC_DIR", "/host/proc", "the node's /proc, where the namespaces of running pods are found"),
    ("CNI_BIN_DIR", "/host/opt/cni/bin", "where the plugin is put for the container runtime"),
    ("CNI_CONF_DIR", "/host/etc/cni/net.d", "where the plugin is added to the runtime's CNI configuration"),
    (
        "CNI_OWN_CONFLIST",
        "false",
        "whether a first-sorting conflist is written instead of adding to that of the primary CNI",
    ),
    ("CNI_PROBE_SNAT", "false", "whether the node's own connections to captured pods get the address of probes"),
    ("CNI_LOG_LEVEL", "info", "log level of the plugin"),
    ("CNI_BESIDE_ISTIO", "false", "whether the agent starts although istio-cni is active on the node"),
    ("DAEMONSET_NAME", "stillmesh-cni", "the agent's own DaemonSet: gone when the agent ends, everything is taken out"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "10", "how long the agent has to end, as the pod says"),
    ("ZDS_SOCKET", "/var/run/ztunnel/ztunnel.sock", "where tunnels connect"),
    (
        "PLUGIN_SOCKET",
        "",
        "where the plugin connects, the same path as on the node; /var/run/stillmesh-cni/pluginevent.sock",
    ),
    ("METRICS_ADDRESS", "", "address and port of /metrics, /healthz, /readyz; without it there are none"),
    ("HEALTH_ADDRESS", "", "a second address and port of /healthz and /readyz, where metrics are not for everybody"),
    ("SYSTEM_NAMESPACE", "", "where the mesh itself runs; POD_NAMESPACE, or istio-system with OBJECTS_DIR"),
    ("EXCLUDE_NAMESPACES", "kube-system", "namespaces whose pods are never captured, separated by commas"),
    ("AMBIENT_DNS_CAPTURE", "true", "whether DNS of captured pods goes through the tunnel, where the pod does not say"),
];

/// Everything that the agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// What is around the agent.
    pub around: Around,
    /// Socket for tunnels.
    pub zds_socket: PathBuf,
    /// Socket for the plugin.
    pub plugin_socket: PathBuf,
    /// Directory with what is believed of enrolled pods.
    pub state_dir: PathBuf,
    /// Where metrics and health are served.
    pub metrics_address: Option<SocketAddr>,
    /// Where health is served, too.
    pub health_address: Option<SocketAddr>,
    /// Who is captured.
    pub enrolment: Enrolment,
    /// What becomes of DNS where the pod does not say.
    pub dns: Dns,
    /// How long the agent may take to end.
    pub grace: Duration,
}

/// What is around the agent.
#[derive(Clone, Debug)]
pub enum Around {
    /// The one-machine mesh.
    Machine(Machine),
    /// A node of a cluster.
    Node(Node),
}

/// The one-machine mesh: objects and namespaces are found in directories.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Directory with the cluster's objects.
    pub objects_dir: PathBuf,
    /// Directory with the namespaces of running pods.
    pub netns_dir: PathBuf,
    /// Socket of the API server's stand-in, for annotations.
    pub api_socket: Option<PathBuf>,
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's `/proc`.
    pub proc_dir: PathBuf,
    /// Where the plugin is installed.
    pub places: Places,
    /// Log level of the plugin.
    pub plugin_log_level: String,
    /// Whether to start although istio-cni is active on the node.
    pub beside_istio: bool,
    /// Whether the node's own connections to captured pods get the address of probes (for a ztunnel of Istio's).
    pub probe_snat: bool,
    /// The agent's own namespace.
    pub namespace: String,
    /// The agent's own DaemonSet.
    pub daemonset: String,
}

/// Name of the plugin's socket in its directory, which is what the plugin is told.
pub const PLUGIN_SOCKET: &str = "pluginevent.sock";

/// Of the time that the pod has to end, what is left to the kubelet.
const MARGIN: Duration = Duration::from_secs(2);

impl Config {
    /// Reads the settings; all problems are reported together.
    pub fn from_env(mut reader: Reader) -> Result<Self, Problems> {
        let node = reader.required("NODE_NAME", "the node's name");
        let path = |key: &str, default: &str| PathBuf::from(reader.string(key).unwrap_or_else(|| default.to_owned()));
        let zds_socket = path("ZDS_SOCKET", "/var/run/ztunnel/ztunnel.sock");
        let mut enrolment = Enrolment::default();
        if let Some(list) = reader.string("EXCLUDE_NAMESPACES") {
            enrolment.excluded_namespaces =
                list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        }
        let own = reader.string("SYSTEM_NAMESPACE");
        let (around, run_dir) = if reader.string("OBJECTS_DIR").is_some() {
            (Around::Machine(Machine::from_env(&mut reader)), "/var/run/istio-cni")
        } else {
            let around = Node::from_env(&mut reader);
            enrolment.system_namespace.clone_from(&around.namespace);
            (Around::Node(around), "/var/run/stillmesh-cni")
        };
        if let Some(namespace) = own {
            enrolment.system_namespace = namespace;
        }
        if let Around::Node(_) = around {
            // The mesh's own pods must start without it.
            enrolment.excluded_namespaces.insert(enrolment.system_namespace.clone());
        }
        let plugin_socket =
            reader.string("PLUGIN_SOCKET").map_or_else(|| PathBuf::from(run_dir).join(PLUGIN_SOCKET), PathBuf::from);
        if matches!(around, Around::Node(_)) && !plugin_socket.ends_with(PLUGIN_SOCKET) {
            reader.problem("PLUGIN_SOCKET", "a path that ends with pluginevent.sock");
        }
        let state_dir = PathBuf::from(reader.required("STATE_DIR", "a directory that the agent may write to"));
        let metrics_address = reader.parse("METRICS_ADDRESS", "an address and a port, such as 127.0.0.1:15014");
        let health_address = reader.parse("HEALTH_ADDRESS", "an address and a port, such as 127.0.0.1:8000");
        let dns = if reader.flag("AMBIENT_DNS_CAPTURE", true) { Dns::Captured } else { Dns::Direct };
        let whole = reader.seconds("TERMINATION_GRACE_PERIOD_SECONDS", Duration::from_secs(10));
        let grace = whole.saturating_sub(MARGIN).max(Duration::from_secs(1));
        reader.finish()?;
        Ok(Self {
            node,
            around,
            zds_socket,
            plugin_socket,
            state_dir,
            metrics_address,
            health_address,
            enrolment,
            dns,
            grace,
        })
    }
}

impl Machine {
    fn from_env(reader: &mut Reader) -> Self {
        Self {
            objects_dir: PathBuf::from(reader.required("OBJECTS_DIR", "a directory with the cluster's objects")),
            netns_dir: PathBuf::from(reader.required("NETNS_DIR", "a directory with namespaces by pod UID")),
            api_socket: reader.string("API_SOCKET").map(PathBuf::from),
        }
    }
}

impl Node {
    fn from_env(reader: &mut Reader) -> Self {
        let namespace = reader.required("POD_NAMESPACE", "the agent's own namespace, or OBJECTS_DIR on one machine");
        let text = |key: &str, default: &str| reader.string(key).unwrap_or_else(|| default.to_owned());
        let (proc_dir, daemonset) = (text("PROC_DIR", "/host/proc").into(), text("DAEMONSET_NAME", "stillmesh-cni"));
        let bin_dir = text("CNI_BIN_DIR", "/host/opt/cni/bin").into();
        let conf_dir = text("CNI_CONF_DIR", "/host/etc/cni/net.d").into();
        let plugin_log_level = text("CNI_LOG_LEVEL", "info");
        let own_conflist = reader.flag("CNI_OWN_CONFLIST", false);
        let beside_istio = reader.flag("CNI_BESIDE_ISTIO", false);
        let probe_snat = reader.flag("CNI_PROBE_SNAT", false);
        let places = Places { bin_dir, conf_dir, own_conflist };
        Self { proc_dir, places, plugin_log_level, beside_istio, probe_snat, namespace, daemonset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems<const N: usize>(values: [(&str, &str); N]) -> Vec<String> {
        let problems = Config::from_env(Reader::from_values(values)).unwrap_err();
        problems.0.into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn every_missing_setting_is_named() {
        assert_eq!(
            problems([("METRICS_ADDRESS", "15014"), ("PLUGIN_SOCKET", "/x/y")]),
            ["NODE_NAME", "POD_NAMESPACE", "PLUGIN_SOCKET", "STATE_DIR", "METRICS_ADDRESS"]
        );
        assert_eq!(problems([("OBJECTS_DIR", "/o"), ("NODE_NAME", "n1")]), ["NETNS_DIR", "STATE_DIR"]);
    }

    #[test]
    fn defaults_are_those_of_a_node() {
        let values = [("NODE_NAME", "n1"), ("POD_NAMESPACE", "stillmesh-system"), ("STATE_DIR", "/s")];
        let config = Config::from_env(Reader::from_values(values)).unwrap();
        assert_eq!(config.zds_socket, PathBuf::from("/var/run/ztunnel/ztunnel.sock"));
        assert_eq!(config.plugin_socket, PathBuf::from("/var/run/stillmesh-cni/pluginevent.sock"));
        let excluded: Vec<_> = config.enrolment.excluded_namespaces.iter().map(String::as_str).collect();
        assert_eq!(excluded, ["kube-system", "stillmesh-system"]);
        assert_eq!(config.grace, Duration::from_secs(8));
        let Around::Node(node) = config.around else { panic!("not a node") };
        assert_eq!(node.proc_dir, PathBuf::from("/host/proc"));
        assert!(!node.places.own_conflist);
    }

    #[test]
    fn a_directory_of_objects_means_one_machine() {
        let values = [("NODE_NAME", "n1"), ("OBJECTS_DIR", "/o"), ("NETNS_DIR", "/n"), ("STATE_DIR", "/s")];
        let config = Config::from_env(Reader::from_values(values)).unwrap();
        assert!(config.enrolment.excluded_namespaces.contains("kube-system"));
        assert_eq!(config.enrolment.system_namespace, "istio-system");
        assert!(matches!(config.around, Around::Machine(Machine { api_socket: None, .. })));
    }
}
