//! What the controller is told at its start: environment and flags, checked once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stillmesh_core::model::{Str, TrustDomain};
use stillmesh_identity::issuer::{DEFAULT_TTL, MAX_TTL, ROOT_LIFE};
use stillmesh_identity::rotation::Times;
use stillmesh_k8s::gateway::generate::Settings;
use stillmesh_k8s::translate::Mesh;
use stillmesh_runtime::env::{Problems, Reader};

/// Every key: name, default, meaning. `--objects-dir X` is the same as `OBJECTS_DIR=X`.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("OBJECTS_DIR", "", "directory of manifests to read and follow; without it the Kubernetes API is followed"),
    (
        "OBJECTS_SETTLE",
        "0s",
        "how long a manifest may be half-written; 0 where the only writer renames whole files into place",
    ),
    ("CA_DIR", "", "directory that keeps the CA: ca-key.pem, ca-cert.pem, root-cert.pem; required with OBJECTS_DIR"),
    (
        "JOIN_TOKENS",
        "",
        "file of join tokens, a JSON map of SHA-256 (hex) of a token to its node; required with OBJECTS_DIR",
    ),
    ("LISTEN", "0.0.0.0:15012", "address of xDS and CA, gRPC over TLS"),
    ("MONITORING", "0.0.0.0:15014", "address of /metrics, /ready and, for the pod itself, /debug, HTTP"),
    ("API_SOCKET", "", "unix socket that takes status conditions; none are written without it"),
    ("ROOT_NAMESPACE", "istio-system", "namespace whose policies hold for the whole mesh, and of ConfigMap istio"),
    ("SYSTEM_NAMESPACE", "istio-system", "namespace that the mesh itself runs in; in a cluster POD_NAMESPACE"),
    ("POD_NAMESPACE", "", "namespace of this pod: its Lease and its Secrets are there"),
    ("POD_NAME", "", "name of this pod, as it is told in the Lease"),
    ("REVISION", "default", "revision of this control plane"),
    ("WEBHOOK_LISTEN", "0.0.0.0:15017", "address of the validating webhook, HTTPS; in a cluster only"),
    ("TOKEN_AUDIENCES", "istio-ca", "audiences of the tokens that nodes show, separated by commas; in a cluster only"),
    ("CLUSTER_ID", "Kubernetes", "name of this cluster"),
    ("CLUSTER_DOMAIN", "cluster.local", "domain of services"),
    ("TRUST_DOMAIN", "cluster.local", "trust domain of identities, unless ConfigMap istio says otherwise"),
    ("NETWORK", "", "network that pods are on"),
    ("SERVING_NAMES", "", "further DNS names and IP addresses of the serving certificate, separated by commas"),
    (
        "CA_TRUSTED_NODE_ACCOUNTS",
        "",
        "accounts of node tunnels, which get configuration and certificates of their node's pods; absent: ztunnel in \
         the mesh's namespace",
    ),
    ("DEFAULT_WORKLOAD_CERT_TTL", "24h", "life of a certificate when none is asked for"),
    ("MAX_WORKLOAD_CERT_TTL", "2160h", "longest life of a certificate that may be asked for"),
    ("CA_ROOT_TTL", "87600h", "life of a root; it is replaced within the last fifth of it; in a cluster only"),
    (
        "CA_ROOT_ANNOUNCE",
        "",
        "how long a new root is distributed before it signs; absent: DEFAULT_WORKLOAD_CERT_TTL, at least 24h; in a cluster only",
    ),
    (
        "CA_ROOT_RETAIN",
        "",
        "how long a former root is distributed; absent: MAX_WORKLOAD_CERT_TTL and an hour; in a cluster only",
    ),
    ("WAYPOINT_IMAGE", "", "image of waypoints, the mesh's own; in a cluster only"),
    ("WAYPOINT_PULL_POLICY", "", "when it is pulled; absent: as Kubernetes does"),
    ("WAYPOINT_PULL_SECRETS", "", "Secrets to pull it with, in a waypoint's namespace, separated by commas"),
    (
        "WAYPOINT_CONTROL_PLANE",
        "",
        "where waypoints get configuration and certificates; absent: https://stillmesh-controller of the mesh's namespace",
    ),
    ("AMBIENT_ENABLE_STATUS", "true", "whether status conditions are written"),
    ("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", "false", "whether policies in dry run are sent to nodes"),
];

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from, and with them everything that is kept.
    pub home: Home,
    /// Address of xDS and CA.
    pub listen: SocketAddr,
    /// Address of metrics and debug.
    pub monitoring: SocketAddr,
    /// What holds for the whole mesh, before ConfigMap `istio` is read.
    pub mesh: Mesh,
    /// The namespace that the mesh itself runs in.
    pub system_namespace: Str,
    /// Names of the serving certificate besides those of the address.
    pub serving_names: Vec<String>,
    /// Accounts that may ask for their pods' certificates: namespace and name.
    pub trusted_node_accounts: Vec<(Str, Str)>,
    /// Life of a certificate when none is asked for.
    pub default_ttl: Duration,
    /// The longest life of a certificate.
    pub max_ttl: Duration,
    /// The revision of this control plane.
    pub revision: Str,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Home {
    /// A directory of manifests: the mesh of one machine.
    Directory(Directory),
    /// The Kubernetes API.
    Cluster(InCluster),
}

/// A mesh on a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Directory of manifests.
    pub objects: PathBuf,
    /// How long a manifest may be half-written.
    pub settle: Duration,
    /// Directory of the CA.
    pub ca: PathBuf,
    /// File of join tokens.
    pub join_tokens: PathBuf,
    /// Where status conditions are written to.
    pub api_socket: Option<PathBuf>,
}

/// A mesh in a cluster.
#[derive(Clone, Debug)]
pub struct InCluster {
    /// Name of this pod.
    pub pod: String,
    /// Address of the webhook.
    pub webhook: SocketAddr,
    /// Audiences of nodes' tokens.
    pub audiences: Vec<String>,
    /// The phases of the CA's roots.
    pub times: Times,
    /// Whether status conditions are written.
    pub status: bool,
    /// What holds for all waypoints.
    pub waypoints: Box<Settings>,
}

impl Config {
    /// Reads environment and flags (`--key value` or `--key=value`). All problems are reported together.
    pub fn from_process(arguments: impl IntoIterator<Item = String>) -> Result<Self, Problems> {
        let mut values = Reader::process().prefixed("");
        let unknown = overlay(&mut values, arguments);
        let mut reader = Reader::from_values(values);
        for (flag, accepted) in &unknown {
            reader.problem(flag, accepted);
        }
        Self::read(reader)
    }

    /// Reads given values.
    pub fn read(mut reader: Reader) -> Result<Self, Problems> {
        let address = "an address and port, for example 0.0.0.0:15012";
        let mut socket = |key: &str| {
            let fallback = default(key).parse().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
            reader.parse_or(key, fallback, address)
        };
        let (listen, monitoring, webhook) = (socket("LISTEN"), socket("MONITORING"), socket("WEBHOOK_LISTEN"));
        let status = reader.flag("AMBIENT_ENABLE_STATUS", true);
        let default_ttl = reader.duration("DEFAULT_WORKLOAD_CERT_TTL", DEFAULT_TTL);
        let max_ttl = reader.duration("MAX_WORKLOAD_CERT_TTL", MAX_TTL).min(MAX_TTL);
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
        };
        let system_namespace: Str = match (reader.string("OBJECTS_DIR"), reader.string("POD_NAMESPACE")) {
            (None, Some(own)) => own.into(),
            _ => text(&reader, "SYSTEM_NAMESPACE").into(),
        };
        let control_plane = reader
            .string("WAYPOINT_CONTROL_PLANE")
            .unwrap_or_else(|| format!("https://stillmesh-controller.{system_namespace}.svc:15012"));
        let home = match reader.string("OBJECTS_DIR") {
            Some(objects) => Home::Directory(Directory {
                objects: objects.into(),
                settle: reader.duration("OBJECTS_SETTLE", Duration::ZERO),
                ca: reader.required("CA_DIR", "a directory").into(),
                join_tokens: reader.required("JOIN_TOKENS", "a file").into(),
                api_socket: reader.string("API_SOCKET").filter(|_| status).map(PathBuf::from),
            }),
            None => Home::Cluster(InCluster {
                pod: reader.string("POD_NAME").unwrap_or_else(|| "stillmesh-controller".to_owned()),
                webhook,
                audiences: list(&text(&reader, "TOKEN_AUDIENCES")),
                times: Times {
                    life: reader.duration("CA_ROOT_TTL", ROOT_LIFE),
                    // Nodes learn of it with their next certificates, for which they may ask a day.
                    announce: reader.duration("CA_ROOT_ANNOUNCE", default_ttl.max(DEFAULT_TTL)),
                    retain: reader.duration("CA_ROOT_RETAIN", max_ttl + Duration::from_secs(3600)),
                },
                status,
                waypoints: Box::new(Settings {
                    image: text(&reader, "WAYPOINT_IMAGE"),
                    pull_policy: text(&reader, "WAYPOINT_PULL_POLICY"),
                    pull_secrets: list(&text(&reader, "WAYPOINT_PULL_SECRETS")),
                    xds_address: control_plane.clone(),
                    ca_address: control_plane,
                    secret_ttl: reader.string("DEFAULT_WORKLOAD_CERT_TTL").unwrap_or_default(),
                    // As the controller's own.
                    log_level: reader.string("RUST_LOG").unwrap_or_default(),
                    log_format: reader.string("LOG_FORMAT").unwrap_or_default(),
                }),
            }),
        };
        let accounts =
            reader.string("CA_TRUSTED_NODE_ACCOUNTS").unwrap_or_else(|| format!("{system_namespace}/ztunnel"));
        let mut trusted_node_accounts = Vec::new();
        for account in list(&accounts) {
            match account.split_once('/') {
                Some((namespace, name)) => trusted_node_accounts.push((namespace.into(), name.into())),
                None => reader.problem("CA_TRUSTED_NODE_ACCOUNTS", "a list of namespace/account, separated by commas"),
            }
        }
        let config = Self {
            home,
            listen,
            monitoring,
            mesh: mesh(&mut reader),
            system_namespace,
            serving_names: list(&text(&reader, "SERVING_NAMES")),
            trusted_node_accounts,
            default_ttl,
            max_ttl,
            revision: text(&reader, "REVISION").into(),
        };
        reader.finish()?;
        Ok(config)
    }

    /// All names of the serving certificate (contract 6.4).
    pub fn certificate_names(&self) -> Vec<String> {
        let (namespace, domain) = (&self.system_namespace, &self.mesh.domain);
        let mut hosts = vec!["istiod.istio-system.svc".to_owned()];
        for name in ["stillmesh-controller", "istiod", "istiod-remote", "istio-pilot"] {
            hosts.push(format!("{name}.{namespace}.svc"));
        }
        for name in ["stillmesh-controller", "istiod"].iter().filter(|_| *self.revision != *"default") {
            hosts.push(format!("{name}-{}.{namespace}.svc", self.revision));
        }
        let mut names: Vec<String> = hosts.iter().flat_map(|host| [host.clone(), format!("{host}.{domain}")]).collect();
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.extend(self.serving_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// What holds for the whole mesh, before ConfigMap `istio` is read, as a controller with these values has it.
pub fn mesh(reader: &mut Reader) -> Mesh {
    let trust_domain =
        reader.parse_with("TRUST_DOMAIN", "1 to 255 of a-z, 0-9, '.', '-', '_'", |text| TrustDomain::new(text).ok());
    Mesh {
        cluster: text(reader, "CLUSTER_ID").into(),
        network: text(reader, "NETWORK").into(),
        domain: text(reader, "CLUSTER_DOMAIN").into(),
        trust_domain: trust_domain.unwrap_or_default(),
        root_namespace: text(reader, "ROOT_NAMESPACE").into(),
        dry_run: reader.flag("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", false),
        ..Mesh::default()
    }
}

/// A key's value, else its default.
fn text(reader: &Reader, key: &str) -> String {
    reader.string(key).unwrap_or_else(|| default(key).to_owned())
}

fn default(key: &str) -> &'static str {
    KEYS.iter().find(|row| row.0 == key).map_or("", |row| row.1)
}

/// What [`mesh`] reads.
pub const MESH_KEYS: [&str; 6] = [
    "TRUST_DOMAIN",
    "CLUSTER_ID",
    "NETWORK",
    "CLUSTER_DOMAIN",
    "ROOT_NAMESPACE",
    "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY",
];

/// Lays flags over the environment. Returns those that mean nothing, with what is accepted.
pub fn overlay(
    values: &mut BTreeMap<String, String>,
    arguments: impl IntoIterator<Item = String>,
) -> Vec<(String, &'static str)> {
    let mut unknown = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let key = flag.strip_prefix("--").map(|flag| flag.to_ascii_uppercase().replace('-', "_"));
        match key.filter(|key| KEYS.iter().any(|row| row.0 == key)) {
            None => unknown.push((flag, "a flag such as --objects-dir; see --help")),
            Some(key) => match value.or_else(|| arguments.next()) {
                Some(value) => {
                    values.insert(key, value);
                }
                None => unknown.push((flag, "a flag with a value")),
            },
        }
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] = [("OBJECTS_DIR", "/o"), ("CA_DIR", "/c"), ("JOIN_TOKENS", "/t")];

    #[test]
    fn defaults_are_istios() {
        let config = Config::read(Reader::from_values(REQUIRED)).unwrap();
        assert_eq!(config.mesh, Mesh::default());
        assert_eq!((config.listen.port(), config.monitoring.port()), (15012, 15014));
        assert_eq!(config.trusted_node_accounts, [("istio-system".into(), "ztunnel".into())]);
        assert!(matches!(&config.home, Home::Directory(Directory { api_socket: None, .. })));
        assert!(config.certificate_names().contains(&"istiod.istio-system.svc".to_owned()));
    }

    #[test]
    fn without_a_directory_the_cluster_is_home() {
        let values = [("POD_NAMESPACE", "mesh"), ("REVISION", "canary"), ("DEFAULT_WORKLOAD_CERT_TTL", "48h")];
        let config = Config::read(Reader::from_values(values)).unwrap();
        let Home::Cluster(home) = &config.home else { panic!("{config:?}") };
        assert_eq!(home.audiences, ["istio-ca"]);
        assert_eq!(home.times.announce, Duration::from_secs(48 * 3600));
        assert_eq!(home.times.retain, Duration::from_secs(2161 * 3600));
        assert_eq!(config.trusted_node_accounts, [("mesh".into(), "ztunnel".into())]);
        let names = config.certificate_names();
        for name in ["stillmesh-controller.mesh.svc", "istiod-canary.mesh.svc", "istiod.istio-system.svc"] {
            assert!(names.contains(&name.to_owned()), "{names:?}");
        }
    }

    #[test]
    fn all_problems_are_reported_together() {
        let bad = [
            ("LISTEN", "here"),
            ("TRUST_DOMAIN", "A B"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "ztunnel"),
            ("OBJECTS_DIR", "/o"),
        ];
        let problems = Config::read(Reader::from_values(bad)).unwrap_err();
        assert_eq!(problems.0.len(), 5, "{problems}");
    }

    #[test]
    fn flags_lie_over_the_environment_and_unknown_ones_are_told() {
        let mut values: BTreeMap<String, String> = [("OBJECTS_DIR".to_owned(), "/env".to_owned())].into();
        let flags = ["--objects-dir", "/flag", "--ca-dir=/ca", "--nope", "stray", "--listen"];
        let unknown = overlay(&mut values, flags.map(str::to_owned));
        assert_eq!(values["OBJECTS_DIR"], "/flag");
        assert_eq!(values["CA_DIR"], "/ca");
        assert_eq!(unknown.iter().map(|one| one.0.as_str()).collect::<Vec<_>>(), ["--nope", "stray", "--listen"]);
    }

    #[test]
    fn the_serving_certificate_names_the_address_that_is_listened_on() {
        let values =
            REQUIRED.into_iter().chain([("LISTEN", "172.30.0.11:15012"), ("SERVING_NAMES", "10.96.0.15, a.b")]);
        let names = Config::read(Reader::from_values(values)).unwrap().certificate_names();
        for name in ["172.30.0.11", "10.96.0.15", "a.b", "istiod.istio-system.svc.cluster.local"] {
            assert!(names.contains(&name.to_owned()), "{names:?}");
        }
    }
}
