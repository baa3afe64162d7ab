//! The agent's settings, read once from the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use stillmesh_k8s::select::Enrolment;
use stillmesh_runtime::env::{Problems, Reader};

use crate::rules::plan::Dns;

/// Every key: name, default, meaning.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("NODE_NAME", "", "whose pods are captured; required"),
    ("OBJECTS_DIR", "", "directory with the cluster's objects; required"),
    ("NETNS_DIR", "", "directory with the namespaces of running pods, one file per pod UID; required"),
    ("ZDS_SOCKET", "/var/run/ztunnel/ztunnel.sock", "where tunnels connect"),
    ("PLUGIN_SOCKET", "/var/run/istio-cni/pluginevent.sock", "where the plugin connects"),
    ("API_SOCKET", "", "where annotations are written to; without it none are"),
    ("STATE_DIR", "", "directory with what is believed of enrolled pods; required"),
    ("METRICS_ADDRESS", "", "address and port of /metrics, /healthz, /readyz; without it there are none"),
    ("SYSTEM_NAMESPACE", "istio-system", "where the mesh itself runs"),
    ("EXCLUDE_NAMESPACES", "kube-system", "namespaces whose pods are never captured, separated by commas"),
    ("AMBIENT_DNS_CAPTURE", "true", "whether DNS of captured pods goes through the tunnel, where the pod does not say"),
];

/// Everything that the agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Directory with the cluster's objects.
    pub objects_dir: PathBuf,
    /// Directory with the namespaces of running pods.
    pub netns_dir: PathBuf,
    /// Socket for tunnels.
    pub zds_socket: PathBuf,
    /// Socket for the plugin.
    pub plugin_socket: PathBuf,
    /// Socket of the API server's stand-in, for annotations.
    pub api_socket: Option<PathBuf>,
    /// Directory with what is believed of enrolled pods.
    pub state_dir: PathBuf,
    /// Where metrics and health are served.
    pub metrics_address: Option<SocketAddr>,
    /// Who is captured.
    pub enrolment: Enrolment,
    /// What becomes of DNS where the pod does not say.
    pub dns: Dns,
}

impl Config {
    /// Reads the settings; all problems are reported together.
    pub fn from_env(mut reader: Reader) -> Result<Self, Problems> {
        let node = reader.required("NODE_NAME", "the node's name");
        let objects_dir = PathBuf::from(reader.required("OBJECTS_DIR", "a directory with the cluster's objects"));
        let netns_dir = PathBuf::from(reader.required("NETNS_DIR", "a directory with namespaces by pod UID"));
        let state_dir = PathBuf::from(reader.required("STATE_DIR", "a directory that the agent may write to"));
        let path = |key: &str, default: &str| PathBuf::from(reader.string(key).unwrap_or_else(|| default.to_owned()));
        let zds_socket = path("ZDS_SOCKET", "/var/run/ztunnel/ztunnel.sock");
        let plugin_socket = path("PLUGIN_SOCKET", "/var/run/istio-cni/pluginevent.sock");
        let api_socket = reader.string("API_SOCKET").map(PathBuf::from);
        let metrics_address = reader.parse("METRICS_ADDRESS", "an address and a port, such as 127.0.0.1:15014");
        let mut enrolment = Enrolment::default();
        if let Some(namespace) = reader.string("SYSTEM_NAMESPACE") {
            enrolment.system_namespace = namespace;
        }
        if let Some(list) = reader.string("EXCLUDE_NAMESPACES") {
            enrolment.excluded_namespaces =
                list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        }
        let dns = if reader.flag("AMBIENT_DNS_CAPTURE", true) { Dns::Captured } else { Dns::Direct };
        reader.finish()?;
        Ok(Self {
            node,
            objects_dir,
            netns_dir,
            zds_socket,
            plugin_socket,
            api_socket,
            state_dir,
            metrics_address,
            enrolment,
            dns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_setting_is_named() {
        let problems = Config::from_env(Reader::from_values([("METRICS_ADDRESS", "15014")])).unwrap_err();
        let keys: Vec<_> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["NODE_NAME", "OBJECTS_DIR", "NETNS_DIR", "STATE_DIR", "METRICS_ADDRESS"]);
    }

    #[test]
    fn defaults_are_those_of_a_node() {
        let values = [("NODE_NAME", "n1"), ("OBJECTS_DIR", "/o"), ("NETNS_DIR", "/n"), ("STATE_DIR", "/s")];
        let config = Config::from_env(Reader::from_values(values)).unwrap();
        assert_eq!(config.zds_socket, PathBuf::from("/var/run/ztunnel/ztunnel.sock"));
        assert!(config.enrolment.excluded_namespaces.contains("kube-system"));
        assert_eq!((config.dns, config.api_socket), (Dns::Captured, None));
    }
}
