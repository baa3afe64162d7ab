//! The mesh's own pods and objects: what an installation puts into a cluster.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, Service};
use serde_json::{Value, json};
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_runtime::env::Reader;

use super::bootstrap::ROOT;
use super::foreign::ForeignTunnel;
use super::ipam::{CONTROLLER_VIP, DNS_VIP};
use super::network::Node;
use super::pods::worker::{node_home, node_ips};

/// Where the mesh runs.
pub const NAMESPACE: &str = "istio-system";

/// Name of the controller's pod.
pub const CONTROLLER: &str = "stillmesh-controller";
/// Name of the cluster DNS's pod, in `kube-system`.
const DNS: &str = "dns";
/// Names of agents' pods begin so, and end with their node's.
const AGENT: &str = "istio-cni-node-";
/// Names of node tunnels' pods begin so.
const TUNNEL: &str = "ztunnel-";

/// Metrics and health of the controller, and of agents on their nodes.
pub(crate) const MONITORING: u16 = 15014;

/// Namespaces that are always there.
pub const NAMESPACES: [&str; 3] = ["default", "kube-system", NAMESPACE];

/// Directory of the cluster's objects.
pub fn objects_dir() -> std::path::PathBuf {
    Path::new(ROOT).join("objects")
}

/// The services of the controller and of the cluster DNS.
pub fn services() -> anyhow::Result<Vec<Service>> {
    let service = |namespace: &str, name: &str, selector: &str, ip: String, ports: Value| {
        let (key, value) = selector.split_once('=').unwrap_or((selector, ""));
        read(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": ip, "selector": {key: value}, "ports": ports}}))
    };
    let dns = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]);
    let controller = json!([{"name": "https-dns", "port": 15012}, {"name": "http-monitoring", "port": MONITORING}]);
    Ok(vec![
        service("kube-system", "kube-dns", "k8s-app=kube-dns", DNS_VIP.to_string(), dns)?,
        service(NAMESPACE, "istiod", "app=istiod", CONTROLLER_VIP.to_string(), controller)?,
    ])
}

/// A node as an object.
pub fn node(node: &Node) -> anyhow::Result<Object> {
    let mut addresses: Vec<Value> =
        node_ips(node).into_iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    let object: k8s_openapi::api::core::v1::Node = read(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    }))?;
    Ok(object.into())
}

/// Whether a name is that of one of the mesh's own pods.
pub fn is_pod(key: &ObjectKey, nodes: &[String]) -> bool {
    let of_node = |prefix: &str| key.name.strip_prefix(prefix).is_some_and(|node| nodes.iter().any(|one| one == node));
    key.kind == Kind::Pod
        && match &*key.namespace {
            NAMESPACE => &*key.name == CONTROLLER || of_node(TUNNEL) || of_node(AGENT),
            "kube-system" => &*key.name == DNS,
            _ => false,
        }
}

/// The mesh's own pods. `ztunnel` is the node tunnel when it is not ours.
pub(crate) fn pods(nodes: &[Node], secret_ttl: &str, ztunnel: Option<&ForeignTunnel>) -> anyhow::Result<Vec<Pod>> {
    let first = nodes.first().context("a machine has at least one node")?;
    let objects = objects_dir().display().to_string();
    let under = |path: &str| format!("{ROOT}/{path}");
    let mut pods = vec![
        pod(&SystemPod {
            namespace: NAMESPACE,
            name: CONTROLLER,
            account: "istiod",
            labels: json!({"app": "istiod", "istio": "pilot"}),
            node: &first.name,
            host_network: false,
            part: "controller",
            env: &[
                ("OBJECTS_DIR", objects.clone()),
                ("CA_DIR", under("ca")),
                ("JOIN_TOKENS", under("join-tokens.json")),
                ("API_SOCKET", under("api.sock")),
                ("SERVING_NAMES", CONTROLLER_VIP.to_string()),
            ],
            metrics: Some(MONITORING),
            ready: json!({"httpGet": {"path": "/ready", "port": MONITORING}}),
        })?,
        pod(&SystemPod {
            namespace: "kube-system",
            name: DNS,
            account: "coredns",
            labels: json!({"k8s-app": "kube-dns"}),
            node: &first.name,
            host_network: false,
            part: "cluster-dns",
            env: &[("OBJECTS_DIR", objects.clone())],
            metrics: None,
            ready: json!({"tcpSocket": {"port": 53}}),
        })?,
    ];
    for node in nodes {
        let home = node_home(node);
        let file = |name: &str| home.join(name).display().to_string();
        let control = format!("https://{CONTROLLER_VIP}:15012");
        pods.push(pod(&SystemPod {
            namespace: NAMESPACE,
            name: &format!("{AGENT}{}", node.name),
            account: "istio-cni",
            labels: json!({"k8s-app": "istio-cni-node"}),
            node: &node.name,
            host_network: true,
            part: "agent",
            env: &[
                ("NODE_NAME", node.name.clone()),
                ("OBJECTS_DIR", objects.clone()),
                ("NETNS_DIR", under("netns")),
                ("ZDS_SOCKET", file("ztunnel.sock")),
                ("PLUGIN_SOCKET", file("pluginevent.sock")),
                ("API_SOCKET", under("api.sock")),
                ("STATE_DIR", file("agent")),
                ("METRICS_ADDRESS", format!("0.0.0.0:{MONITORING}")),
            ],
            metrics: Some(MONITORING),
            ready: json!({"exec": {"command": ["test", "-S", file("pluginevent.sock")]}}),
        })?);
        let mut tunnel = pod(&SystemPod {
            namespace: NAMESPACE,
            name: &format!("{TUNNEL}{}", node.name),
            account: "ztunnel",
            labels: json!({"app": "ztunnel"}),
            node: &node.name,
            host_network: false,
            part: "ztunnel",
            env: &[
                ("NODE_NAME", node.name.clone()),
                ("POD_NAME", format!("{TUNNEL}{}", node.name)),
                ("INPOD_UDS", file("ztunnel.sock")),
                ("XDS_ADDRESS", control),
                ("XDS_ROOT_CA", under("ca/root-cert.pem")),
                ("AUTH_TOKEN", file("token")),
                ("SECRET_TTL", secret_ttl.to_owned()),
                ("TERMINATION_GRACE_PERIOD_SECONDS", "5".to_owned()),
                ("IPV6_ENABLED", node.ipv6.to_string()),
            ],
            metrics: Some(15020),
            ready: json!({"httpGet": {"path": "/healthz/ready", "port": 15021}}),
        })?;
        if let Some(foreign) = ztunnel {
            replace(&mut tunnel, foreign);
        }
        pods.push(tunnel);
    }
    Ok(pods)
}

/// Has a node tunnel's pod run another command. It is told what ours is, and what ours takes from that by default.
fn replace(tunnel: &mut Pod, foreign: &ForeignTunnel) {
    let Some(container) = tunnel.spec.as_mut().and_then(|spec| spec.containers.first_mut()) else { return };
    let env = container.env.get_or_insert_default();
    let told = |env: &[EnvVar], name: &str| env.iter().find(|one| one.name == name).and_then(|one| one.value.clone());
    for (name, same_as) in [("CA_ADDRESS", "XDS_ADDRESS"), ("CA_ROOT_CA", "XDS_ROOT_CA")] {
        env.push(EnvVar { name: name.to_owned(), value: told(env, same_as), value_from: None });
    }
    for (name, path) in [
        ("POD_NAMESPACE", "metadata.namespace"),
        ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("INSTANCE_IP", "status.podIP"),
    ] {
        let field_ref = Some(ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() });
        let value_from = Some(EnvVarSource { field_ref, ..EnvVarSource::default() });
        env.push(EnvVar { name: name.to_owned(), value: None, value_from });
    }
    let own = foreign.env.iter();
    env.extend(own.map(|(name, value)| EnvVar { name: name.clone(), value: Some(value.clone()), value_from: None }));
    (container.image, container.args) = (None, None);
    container.command = Some(foreign.command.clone());
}

struct SystemPod<'a> {
    namespace: &'a str,
    name: &'a str,
    account: &'a str,
    labels: Value,
    node: &'a str,
    host_network: bool,
    part: &'a str,
    env: &'a [(&'a str, String)],
    /// Where its metrics are.
    metrics: Option<u16>,
    ready: Value,
}

fn pod(pod: &SystemPod<'_>) -> anyhow::Result<Pod> {
    let mut env: Vec<Value> = pod.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    // What whoever started the machine asks of logs, and of tunnels' spans.
    let of_host = Reader::process();
    let hops: &[&str] = if pod.part == "ztunnel" { &["HOP_SPANS_COLLECTOR", "HOP_SPANS_PERCENT"] } else { &[] };
    for name in ["RUST_LOG", "LOG_FORMAT", "RUST_BACKTRACE"].iter().chain(hops).copied() {
        if let Some(value) = of_host.string(name) {
            env.push(json!({"name": name, "value": value}));
        }
    }
    let mut ready = pod.ready.clone();
    if let Some(ready) = ready.as_object_mut() {
        ready.insert("periodSeconds".to_owned(), 1.into());
        ready.insert("timeoutSeconds".to_owned(), 5.into());
    }
    read(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "labels": pod.labels, "annotations": annotations(pod.metrics),
        },
        "spec": {
            "serviceAccountName": pod.account,
            "nodeName": pod.node,
            "hostNetwork": pod.host_network,
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": pod.part,
                "image": super::pods::plan::SYSTEM_IMAGE,
                "args": [pod.part],
                "env": env,
                "readinessProbe": ready,
            }],
        },
    }))
}

/// By which Prometheus finds a pod's metrics, as in a cluster.
fn annotations(port: Option<u16>) -> Value {
    match port {
        Some(port) => json!({
            "prometheus.io/scrape": "true", "prometheus.io/port": port.to_string(), "prometheus.io/path": "/metrics",
        }),
        None => json!({}),
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    serde_json::from_value(value).context("an object of the machine's own")
}
