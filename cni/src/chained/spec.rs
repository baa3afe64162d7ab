//! The Container Network Interface, versions 0.3.1 to 1.1.0: what the runtime says and wants to hear. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::plugin::{Address, EventAddress};

/// Versions that are spoken, oldest first. All of them write the previous result alike.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Spoken where the runtime does not say.
const NEWEST: &str = "1.1.0";

/// Why a call fails, by the numbers that the specification gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version is not spoken.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or cannot be used.
    InvalidEnvironment = 4,
    /// Something cannot be read or written.
    Io = 5,
    /// The configuration cannot be read.
    Decoding = 6,
    /// The configuration cannot be used.
    InvalidConfiguration = 7,
    /// It may work later.
    TryAgainLater = 11,
    /// The agent could not capture the pod.
    NotCaptured = 101,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub code: Code,
    /// In one line.
    pub message: String,
    /// What to do about it.
    pub details: String,
}

impl Failure {
    /// A failure with nothing to add.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// As the runtime reads it.
    pub fn json(&self, version: &str) -> Value {
        let mut error = json!({"cniVersion": version, "code": self.code as u32, "msg": self.message});
        if let (false, Value::Object(fields)) = (self.details.is_empty(), &mut error) {
            fields.insert("details".to_owned(), json!(self.details));
        }
        error
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod is about to start.
    Add,
    /// A pod has ended.
    Del,
    /// Whether a pod's network is as it should be.
    Check,
    /// Which pods there still are.
    Gc,
    /// Whether pods can be added.
    Status,
    /// Which versions are spoken.
    Version,
}

impl Command {
    /// By the value of `CNI_COMMAND`.
    pub fn of(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let message = format!("CNI_COMMAND {other:?} is not known");
                return Err(Failure::new(Code::InvalidEnvironment, message));
            }
        })
    }
}

/// What the runtime writes to standard input: our entry, completed.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Configuration {
    /// Version of the list.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// Directory of the agent's socket.
    #[serde(default)]
    pub cni_agent_run_dir: PathBuf,
    /// Directory with what is known and believed.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Namespaces whose pods are never captured.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// Where the mesh itself runs.
    #[serde(default)]
    pub pod_namespace: String,
    /// What the plugins before made.
    #[serde(rename = "prevResult", default)]
    pub previous: Option<Value>,
}

impl Configuration {
    /// Reads what the runtime wrote.
    pub fn read(input: &[u8]) -> Result<Self, Failure> {
        let read: Self = serde_json::from_slice(input)
            .map_err(|error| Failure::new(Code::Decoding, format!("the configuration cannot be read: {error}")))?;
        if read.version.is_empty() || VERSIONS.contains(&read.version.as_str()) {
            return Ok(read);
        }
        let message = format!("CNI version {} is not spoken, only {}", read.version, VERSIONS.join(", "));
        Err(Failure::new(Code::IncompatibleVersion, message))
    }

    /// The version to answer in.
    pub fn version(&self) -> &str {
        if self.version.is_empty() { NEWEST } else { &self.version }
    }

    /// What the plugins before made; without it this is no chain.
    pub fn previous(&self) -> Result<&Value, Failure> {
        self.previous.as_ref().filter(|previous| previous.is_object()).ok_or_else(|| {
            let message = "stillmesh-cni comes after the plugin that makes the pod's network: prevResult is missing";
            Failure::new(Code::InvalidConfiguration, message)
        })
    }
}

/// The answer to VERSION.
pub fn versions(asked: &str) -> Value {
    let version = if VERSIONS.contains(&asked) { asked } else { NEWEST };
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

/// The pod that a call is about, from `CNI_ARGS`; `None` where it is about no pod of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodArgs {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, which older runtimes do not tell.
    pub uid: Option<String>,
}

impl PodArgs {
    /// Reads `KEY=VALUE;KEY=VALUE`.
    pub fn read(text: &str) -> Option<Self> {
        let args: BTreeMap<&str, &str> = text.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let value = |key| args.get(key).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
        Some(Self { namespace: value("K8S_POD_NAMESPACE")?, name: value("K8S_POD_NAME")?, uid: value("K8S_POD_UID") })
    }
}

/// The addresses in a result; those that cannot be read are left out, since nothing depends on them.
pub fn addresses(result: &Value) -> Vec<EventAddress> {
    #[derive(Serialize, Deserialize)]
    struct Ip {
        address: IpNet,
        #[serde(default)]
        gateway: Option<String>,
        #[serde(default)]
        interface: Option<u32>,
    }
    let ips = result.get("ips").and_then(Value::as_array).map_or(&[] as &[Value], Vec::as_slice);
    let one = |ip: &Value| {
        let ip: Ip = serde_json::from_value(ip.clone()).ok()?;
        let gateway = ip.gateway.and_then(|gateway| gateway.parse().ok());
        Some(EventAddress::from(&Address { interface: ip.interface, address: ip.address, gateway }))
    };
    ips.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_by_the_runtimes_arguments() {
        let args =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a-1;K8S_POD_INFRA_CONTAINER_ID=1f;K8S_POD_UID=u";
        let pod = PodArgs::read(args).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()), ("shop", "a-1", Some("u")));
        assert_eq!(PodArgs::read("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a").unwrap().uid, None);
        for none in ["", "IgnoreUnknown=1", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=;K8S_POD_NAME=a"] {
            assert_eq!(PodArgs::read(none), None);
        }
    }

    #[test]
    fn addresses_take_the_form_that_the_agent_reads() {
        let result = json!({"ips": [
            {"version": "4", "address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 2},
            {"address": "fd00::7/64"}, {"address": "nonsense"},
        ]});
        let text = serde_json::to_string(&addresses(&result)).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"[{"Interface":2,"Address":{"IP":"10.244.1.7","Mask":"////AA=="},"Gateway":"10.244.1.1"},"#,
                r#"{"Interface":null,"Address":{"IP":"fd00::7","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":""}]"#
            )
        );
        assert!(addresses(&json!({})).is_empty());
    }

    #[test]
    fn a_failure_reads_as_the_specification_says() {
        let failure = Failure { code: Code::TryAgainLater, message: "m".into(), details: "d".into() };
        assert_eq!(failure.json("1.0.0"), json!({"cniVersion": "1.0.0", "code": 11, "msg": "m", "details": "d"}));
        assert_eq!(Failure::new(Code::Io, "m").json("0.3.1"), json!({"cniVersion": "0.3.1", "code": 5, "msg": "m"}));
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused() {
        assert_eq!(Configuration::read(br#"{"cniVersion": "1.0.0"}"#).unwrap().version(), "1.0.0");
        assert_eq!(Configuration::read(b"{}").unwrap().version(), "1.1.0");
        assert_eq!(Configuration::read(br#"{"cniVersion": "0.2.0"}"#).unwrap_err().code, Code::IncompatibleVersion);
        assert_eq!(Configuration::read(b"[").unwrap_err().code, Code::Decoding);
        assert_eq!(versions("0.4.0")["cniVersion"], "0.4.0");
        assert_eq!(versions("9")["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}
