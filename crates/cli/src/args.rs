//! What can be typed after `stillmesh`. Nothing here acts.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use stillmesh_runtime::env::Reader;

use crate::analyze::Analyze;
use crate::bench::Bench;
use crate::bench::load::Load;
use crate::bug_report::BugReport;
use crate::capture::Capture;
use crate::cluster::args::{Access, MeshNamespace};
use crate::cluster::check::Check;
use crate::cluster::install::{Install, Manifest};
use crate::cluster::uninstall::Uninstall;
use crate::cluster::version::Version;
use crate::cluster::waypoint::Waypoint;
use crate::cluster::zc::Zc;
use crate::demo::Demo;
use crate::flows::Flows;
use crate::policy::Policy;
use crate::proxy_config::ProxyConfig;
use crate::proxy_status::ProxyStatus;
use crate::shop::Shop;
use crate::simulate::Simulate;
use crate::steer::{Bypass, Quarantine};
use crate::top::Top;
use crate::why::Why;
use crate::why::tap::Tap;

/// A service mesh without sidecars.
#[derive(Debug, Parser)]
#[command(name = "stillmesh", version, about, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the main job on this machine, step by step; every line is a check
    Demo(Demo),
    /// Run the Kubernetes manifests in a directory as a mesh on this machine, and follow their edits
    Up(Up),
    /// Stop a running mesh; nothing of it is left
    Down(Target),
    /// Say how a mesh is: the one that runs on this machine, else the one in the cluster
    Status(Status),
    /// Show pods, services, policies, nodes, deployments, ...
    Get(Get),
    /// Run a command in a container of a pod
    Exec(Exec),
    /// Show what a container printed
    Logs(Logs),
    /// Watch the link of a node: what an eavesdropper between the nodes would see
    Capture(CaptureNode),
    /// Put the mesh into a Kubernetes cluster, and wait until it is ready
    Install(Install),
    /// Take the mesh in a Kubernetes cluster to this version, part by part
    Upgrade(Install),
    /// Take the mesh out of a Kubernetes cluster: pods leave first, then everything of it goes
    Uninstall(Uninstall),
    /// Check a Kubernetes cluster and the mesh in it: facts, causes, what to do
    Check(Check),
    /// Show versions: of this command, the control plane, the node tunnels and waypoints
    Version(Version),
    /// Print the objects that `install` would apply
    Manifest(Manifest),
    /// Show what a node tunnel knows: workloads, services, policies, certificates, connections
    #[command(visible_alias = "ztunnel-config")]
    Zc(Zc),
    /// Show what a waypoint knows and does: listeners, routes, clusters, endpoints, policies, certificates
    #[command(visible_alias = "pc")]
    ProxyConfig(ProxyConfig),
    /// Show which proxies are connected to which controller, and whether they have taken what they were sent
    #[command(visible_alias = "ps")]
    ProxyStatus(ProxyStatus),
    /// Put what is needed to understand a mesh into one archive, without its secrets
    BugReport(BugReport),
    /// Say what became of a connection or request, hop by hop, and why: by the names of both ends, or by its id
    Why(Why),
    /// Take a namespace, pods or the whole mesh out of the mesh for a while: their traffic goes as if there were none
    Bypass(Bypass),
    /// Cut a namespace or pods off from everybody for a while: open connections are closed, new ones refused both ways
    Quarantine(Quarantine),
    /// Show connections and requests as they end, and why they were refused
    Tap(Tap),
    /// Show who is asked how often, how well and how fast, right now
    Top(Top),
    /// Say what is wrong with manifests, or with the objects of the mesh that runs, before somebody finds out
    Analyze(Analyze),
    /// Say what would become of a connection or request, hop by hop, by manifests or by the mesh that runs, without sending it
    Simulate(Simulate),
    /// Show who spoke to whom within a day, added up hour by hour by tunnels and waypoints
    Flows(Flows),
    /// What a change of objects means for who may reach whom
    #[command(subcommand)]
    Policy(Policy),
    /// Waypoints of a cluster: HTTP routing and L7 authorization for a namespace
    #[command(subcommand)]
    Waypoint(Waypoint),
    /// Print what a shell completes this command by: `source <(stillmesh completion bash)`
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Measure the mesh on this machine against raw TCP
    Bench(Bench),
    /// Try every operation that a mesh on this machine needs, and say what to change where one is refused
    Precheck(Precheck),
    /// The node tunnel (configured by environment variables)
    Ztunnel,
    /// A proxy, as Istio's workloads start it: the node tunnel, or a waypoint (configured by environment variables)
    #[command(hide = true)]
    Proxy {
        #[arg(value_enum)]
        kind: ProxyKind,
    },
    /// The controller: configuration and certificates for every node (configured by environment variables)
    Controller {
        /// Flags that stand for environment variables; `-- --help` lists them
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// The node agent: puts pods into the mesh (configured by environment variables)
    Agent,
    /// The cluster DNS of a mesh on this machine (configured by environment variables)
    ClusterDns,
    /// A HTTP and TCP server that answers with its own name, what it was sent, and by whom
    Echo(Echo),
    /// Small real services to try things out with
    Shop(Shop),
    /// The two ends of the benchmark's traffic
    #[command(hide = true, subcommand)]
    BenchLoad(Load),
    /// Internal steps; each is run by the one before it
    #[command(name = "internal", hide = true, subcommand)]
    Internal(Internal),
}

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyKind {
    /// The node tunnel.
    Ztunnel,
    /// A waypoint.
    Waypoint,
}

/// Which running mesh.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Name of the mesh, as given to `up`
    #[arg(long, default_value = "default", value_parser = mesh_name)]
    pub(crate) name: String,
}

/// `stillmesh up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    /// Directory of Kubernetes manifests (YAML or JSON, nested folders allowed)
    pub(crate) dir: PathBuf,
    /// Number of nodes, 1 to 32
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) nodes: u8,
    /// Name of this mesh; several may run side by side
    #[arg(long, default_value = "default", value_parser = mesh_name)]
    pub(crate) name: String,
    /// Life of the pods' certificates, for example 20s or 24h; they are renewed at half of it
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) secret_ttl: String,
    /// Run the node tunnel that this file names in place of ours; docs/bench.md says how it is written
    #[arg(long, value_name = "FILE")]
    pub(crate) ztunnel: Option<PathBuf>,
    /// Print errors only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// `stillmesh status`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0, or 1 when something is wrong.")]
pub(crate) struct Status {
    /// Name of a mesh on this machine, as given to `up`; the one named default, if one runs here
    #[arg(long, value_parser = mesh_name, conflicts_with_all = ["kubeconfig", "context"])]
    pub(crate) name: Option<String>,
    /// Wait this many seconds, at most, until every pod is ready; fail if they are not, or manifests have errors
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["kubeconfig", "context"])]
    pub(crate) wait: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Of a cluster: which.
    #[command(flatten)]
    pub(crate) access: Access,
    /// Of a cluster: where the mesh is.
    #[command(flatten)]
    pub(crate) mesh: MeshNamespace,
}

impl Status {
    /// The mesh on this machine that is meant.
    pub(crate) fn target(&self) -> Target {
        Target { name: self.name.clone().unwrap_or_else(|| "default".to_owned()) }
    }
}

/// How objects are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// The objects as JSON, a `List` unless one is named
    Json,
    /// A table with more columns
    Wide,
}

/// What `get` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shown {
    /// Pods
    #[value(name = "pods", aliases = ["pod", "po"])]
    Pods,
    /// Services
    #[value(name = "services", aliases = ["service", "svc"])]
    Services,
    /// AuthorizationPolicies, PeerAuthentications, RequestAuthentications and Telemetries
    #[value(
        name = "policies",
        aliases = ["policy", "authorizationpolicies", "peerauthentications", "requestauthentications", "telemetries"]
    )]
    Policies,
    /// What waypoints route by: HTTPRoutes, GRPCRoutes, TLSRoutes, TCPRoutes, VirtualServices and DestinationRules
    #[value(
        name = "routes",
        aliases = ["route", "httproutes", "grpcroutes", "tlsroutes", "tcproutes", "virtualservices", "destinationrules"]
    )]
    Routes,
    /// Gateways: waypoints
    #[value(name = "gateways", aliases = ["gateway", "gtw", "waypoints", "waypoint"])]
    Gateways,
    /// Nodes
    #[value(name = "nodes", aliases = ["node", "no"])]
    Nodes,
    /// Deployments
    #[value(name = "deployments", aliases = ["deployment", "deploy"])]
    Deployments,
    /// Namespaces
    #[value(name = "namespaces", aliases = ["namespace", "ns"])]
    Namespaces,
    /// EndpointSlices
    #[value(name = "endpointslices", aliases = ["endpoints", "endpointslice", "ep"])]
    EndpointSlices,
}

/// `stillmesh get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What to show
    pub(crate) kind: Shown,
    /// Only the object of this name
    pub(crate) object: Option<String>,
    /// Namespace
    #[arg(long, short, default_value = "default", conflicts_with = "all_namespaces", value_parser = object_name)]
    pub(crate) namespace: String,
    /// Every namespace
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
    /// How to print
    #[arg(long, short, value_enum)]
    pub(crate) output: Option<Output>,
    /// Which mesh.
    #[command(flatten)]
    pub(crate) target: Target,
}

/// `stillmesh exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Pod
    #[arg(value_parser = object_name)]
    pub(crate) pod: String,
    /// Container; the first one when absent
    #[arg(long, short, value_parser = object_name)]
    pub(crate) container: Option<String>,
    /// Namespace
    #[arg(long, short, default_value = "default", value_parser = object_name)]
    pub(crate) namespace: String,
    /// Which mesh.
    #[command(flatten)]
    pub(crate) target: Target,
    /// Command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) argv: Vec<String>,
}

/// `stillmesh logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Pod
    #[arg(value_parser = object_name)]
    pub(crate) pod: String,
    /// Container; the first one when absent
    #[arg(long, short, value_parser = object_name)]
    pub(crate) container: Option<String>,
    /// Namespace
    #[arg(long, short, default_value = "default", value_parser = object_name)]
    pub(crate) namespace: String,
    /// Go on printing as more is written
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Which mesh.
    #[command(flatten)]
    pub(crate) target: Target,
}

/// `stillmesh capture`.
#[derive(Debug, Args)]
pub(crate) struct CaptureNode {
    /// Node whose link to watch
    pub(crate) node: String,
    /// What to capture.
    #[command(flatten)]
    pub(crate) capture: Capture,
    /// Which mesh.
    #[command(flatten)]
    pub(crate) target: Target,
}

/// `stillmesh precheck`.
#[derive(Debug, Args)]
pub(crate) struct Precheck {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Steps that the command runs of itself. Their specifications are files in memory, written by the step before.
#[derive(Debug, Subcommand)]
pub(crate) enum Internal {
    /// Enters new namespaces, then runs `machine-init` as process 1 of them.
    Enter {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Process 1 of a machine.
    MachineInit {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// The runner of a machine.
    Runner {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Holds the namespaces of a pod.
    Sandbox {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Enters the namespaces of a pod and starts a container in it.
    Container {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Process 1 of a container.
    Init {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Becomes the program of a container.
    Run {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// Captures on a node's link.
    Capture {
        /// Descriptor of its specification.
        spec: RawFd,
        /// What it is for.
        label: String,
    },
    /// One part of the pre-check, in a child of its own.
    Probe {
        /// Which part.
        what: String,
    },
}

/// `stillmesh echo`.
#[derive(Debug, Clone, Args)]
pub struct Echo {
    /// Ports to listen on, HTTP and plain TCP on each
    #[arg(long = "port", short, value_delimiter = ',', default_value = "8080", env = "ECHO_PORTS")]
    pub ports: Vec<u16>,
    /// Ports that speak first: a greeting line is sent before anything is read
    #[arg(long = "server-first-port", value_delimiter = ',', env = "ECHO_SERVER_FIRST_PORTS")]
    pub server_first_ports: Vec<u16>,
    /// Name to answer with; the host name when absent
    #[arg(long, env = "ECHO_NAME")]
    pub name: Option<String>,
}

/// Names of objects stand in paths of requests.
fn object_name(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(inner) && !text.starts_with('.') {
        Ok(text.to_owned())
    } else {
        Err("names of objects are up to 253 lower case letters, digits, hyphens and dots".to_owned())
    }
}

/// A duration as the node tunnel reads it.
fn duration(text: &str) -> Result<String, String> {
    let mut reader = Reader::from_values([("DURATION", text)]);
    let length = reader.duration("DURATION", Duration::ZERO);
    if reader.finish().is_ok() && length >= Duration::from_secs(1) {
        Ok(text.to_owned())
    } else {
        Err("a duration of a second or more is accepted, such as 20s, 1m30s or 24h".to_owned())
    }
}

/// A name of a mesh is a DNS label, so that it can stand in socket and host names.
fn mesh_name(text: &str) -> Result<String, String> {
    let valid = !text.is_empty()
        && text.len() <= 40
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if valid {
        Ok(text.to_owned())
    } else {
        Err("at most 40 lower case letters, digits and inner hyphens are accepted".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_takes_everything_after_the_dashes() {
        let cli = Cli::try_parse_from(["stillmesh", "exec", "web", "-n", "shop", "--", "sh", "-c", "exit 3"]).unwrap();
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        assert_eq!((exec.pod.as_str(), exec.namespace.as_str()), ("web", "shop"));
        assert_eq!(exec.argv, ["sh", "-c", "exit 3"]);
    }

    #[test]
    fn a_name_that_cannot_be_a_label_is_refused_with_what_is_accepted() {
        let error = Cli::try_parse_from(["stillmesh", "up", ".", "--name", "A/b"]).unwrap_err().to_string();
        assert!(error.contains("lower case letters"), "{error}");
    }

    #[test]
    fn node_counts_out_of_range_are_refused() {
        for nodes in ["0", "33", "x"] {
            assert!(Cli::try_parse_from(["stillmesh", "up", ".", "--nodes", nodes]).is_err(), "{nodes}");
        }
    }
}
