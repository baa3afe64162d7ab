//! What the controller is told at its start: environment and flags, checked once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stillmesh_core::model::{Str, TrustDomain};
use stillmesh_k8s::translate::Mesh;
use stillmesh_runtime::env::{Problems, Reader};

/// Every key: name, default, meaning. `--objects-dir X` is the same as `OBJECTS_DIR=X`.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("OBJECTS_DIR", "", "directory of manifests to read and follow; required"),
    (
        "OBJECTS_SETTLE",
        "0s",
        "how long a manifest may be half-written; 0 where the only writer renames whole files into place",
    ),
    ("CA_DIR", "", "directory that keeps the CA: ca-key.pem, ca-cert.pem, root-cert.pem; required"),
    ("JOIN_TOKENS", "", "file of join tokens, a JSON map of SHA-256 (hex) of a token to its node; required"),
    ("LISTEN", "0.0.0.0:15012", "address of xDS and CA, gRPC over TLS"),
    ("MONITORING", "0.0.0.0:15014", "address of /metrics, /ready and /debug, HTTP"),
    ("API_SOCKET", "", "unix socket that takes status conditions; none are written without it"),
    ("ROOT_NAMESPACE", "istio-system", "namespace whose policies hold for the whole mesh, and of ConfigMap istio"),
    ("SYSTEM_NAMESPACE", "istio-system", "namespace that the mesh itself runs in"),
    ("CLUSTER_ID", "Kubernetes", "name of this cluster"),
    ("CLUSTER_DOMAIN", "cluster.local", "domain of services"),
    ("TRUST_DOMAIN", "cluster.local", "trust domain of identities, unless ConfigMap istio says otherwise"),
    ("NETWORK", "", "network that pods are on"),
    ("SERVING_NAMES", "", "further DNS names and IP addresses of the serving certificate, separated by commas"),
    ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel", "accounts that may ask for their pods' certificates"),
    ("DEFAULT_WORKLOAD_CERT_TTL", "24h", "life of a certificate when none is asked for"),
    ("AMBIENT_ENABLE_STATUS", "true", "whether status conditions are written"),
    ("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", "false", "whether policies in dry run are sent to nodes"),
];

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of manifests.
    pub objects_dir: PathBuf,
    /// How long a manifest may be half-written.
    pub objects_settle: Duration,
    /// Directory of the CA.
    pub ca_dir: PathBuf,
    /// File of join tokens.
    pub join_tokens: PathBuf,
    /// Address of xDS and CA.
    pub listen: SocketAddr,
    /// Address of metrics and debug.
    pub monitoring: SocketAddr,
    /// Where status conditions are written to.
    pub api_socket: Option<PathBuf>,
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
        let default = |key: &str| KEYS.iter().find(|row| row.0 == key).map_or("", |row| row.1).to_owned();
        let text = |reader: &Reader, key: &str| reader.string(key).unwrap_or_else(|| default(key));
        let address = "an address and port, for example 0.0.0.0:15012";
        let mut socket = |key: &str| {
            let fallback = default(key).parse().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
            reader.parse_or(key, fallback, address)
        };
        let (listen, monitoring) = (socket("LISTEN"), socket("MONITORING"));
        let objects_dir = reader.required("OBJECTS_DIR", "a directory").into();
        let ca_dir = reader.required("CA_DIR", "a directory").into();
        let join_tokens = reader.required("JOIN_TOKENS", "a file").into();
        let trust_domain = reader
            .parse_with("TRUST_DOMAIN", "1 to 255 of a-z, 0-9, '.', '-', '_'", |text| TrustDomain::new(text).ok());
        let accounts = reader.string("CA_TRUSTED_NODE_ACCOUNTS").unwrap_or_else(|| default("CA_TRUSTED_NODE_ACCOUNTS"));
        let mut trusted_node_accounts = Vec::new();
        for account in accounts.split(',').map(str::trim).filter(|account| !account.is_empty()) {
            match account.split_once('/') {
                Some((namespace, name)) => trusted_node_accounts.push((namespace.into(), name.into())),
                None => reader.problem("CA_TRUSTED_NODE_ACCOUNTS", "a list of namespace/account, separated by commas"),
            }
        }
        let status = reader.flag("AMBIENT_ENABLE_STATUS", true);
        let config = Self {
            objects_dir,
            objects_settle: reader.duration("OBJECTS_SETTLE", Duration::ZERO),
            ca_dir,
            join_tokens,
            listen,
            monitoring,
            api_socket: reader.string("API_SOCKET").filter(|_| status).map(PathBuf::from),
            mesh: Mesh {
                cluster: text(&reader, "CLUSTER_ID").into(),
                network: text(&reader, "NETWORK").into(),
                domain: text(&reader, "CLUSTER_DOMAIN").into(),
                trust_domain: trust_domain.unwrap_or_default(),
                root_namespace: text(&reader, "ROOT_NAMESPACE").into(),
                dry_run: reader.flag("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", false),
            },
            system_namespace: text(&reader, "SYSTEM_NAMESPACE").into(),
            serving_names: text(&reader, "SERVING_NAMES")
                .split(',')
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect(),
            trusted_node_accounts,
            default_ttl: reader.duration("DEFAULT_WORKLOAD_CERT_TTL", Duration::from_secs(24 * 60 * 60)),
        };
        reader.finish()?;
        Ok(config)
    }

    /// All names of the serving certificate (contract 6.4).
    pub fn certificate_names(&self) -> Vec<String> {
        let (namespace, domain) = (&self.system_namespace, &self.mesh.domain);
        let mut names: Vec<String> = ["istiod", "istiod-remote", "istio-pilot"]
            .iter()
            .flat_map(|name| [format!("{name}.{namespace}.svc"), format!("{name}.{namespace}.svc.{domain}")])
            .collect();
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.extend(self.serving_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// Lays flags over the environment. Returns those that mean nothing, with what is accepted.
fn overlay(
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
        assert_eq!(config.api_socket, None);
        assert!(config.certificate_names().contains(&"istiod.istio-system.svc".to_owned()));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let bad =
            [("LISTEN", "here"), ("TRUST_DOMAIN", "A B"), ("CA_TRUSTED_NODE_ACCOUNTS", "ztunnel"), ("CA_DIR", "/c")];
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
