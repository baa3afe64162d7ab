//! The plugin's side of a pod's start: decides whether the pod is captured and, if so, asks the node agent and waits.
//!
//! Called between the pod's networking and its first container, by the CNI plugin or whoever plays it. A failure here
//! must fail the pod's start: it never runs uncaptured. [`Event`] is the body of `POST /cmdadd`, as Istio's agent and
//! plugin write and read it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, StatusCode};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde::{Deserialize, Serialize};
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::select::{Enrolment, NotEnrolled, why_not};
use stillmesh_runtime::admin::client::{Client, ClientError};

/// How long the agent may take, from connect to answer. Wall time.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

/// A pod whose namespace has its network and no process of the pod yet.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The agent's socket.
    pub socket: &'a Path,
    /// The pod.
    pub pod: &'a Pod,
    /// Its namespace; an unknown one counts as one without labels.
    pub namespace: Option<&'a Namespace>,
    /// The rules of enrolment.
    pub rules: &'a Enrolment,
    /// Path of its network namespace, as the agent can open it.
    pub netns: &'a Path,
    /// Its addresses.
    pub addresses: &'a [Address],
}

/// An address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface in the CNI result, if it is known.
    pub interface: Option<u32>,
    /// The address and its prefix.
    pub address: IpNet,
    /// The gateway.
    pub gateway: Option<IpAddr>,
}

/// What became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The pod is not to be captured.
    NotEnrolled(NotEnrolled),
    /// Its rules are in force and a tunnel has taken it.
    Captured,
}

/// Why a pod that is to be captured is not.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The agent cannot be asked.
    #[error("the node agent cannot be asked to capture pod {namespace}/{name}")]
    Agent {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// The agent could not capture it.
    #[error("the node agent did not capture pod {namespace}/{name}: {status}: {answer}")]
    Refused {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The agent's status.
        status: StatusCode,
        /// The agent's words.
        answer: String,
    },
    /// The request cannot be written down.
    #[error("the request to capture pod {namespace}/{name} cannot be written")]
    Encode {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Diagnose for AddError {
    fn code(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "CNI010",
            Self::Refused { .. } => "CNI011",
            Self::Encode { .. } => "CNI012",
        }
    }
    fn fault(&self) -> Fault {
        Fault::Internal
    }
    fn remedy(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "check that the node agent runs on this node",
            Self::Refused { .. } => "look at the node agent's log and whether this node's ztunnel is ready",
            Self::Encode { .. } => "report this: the pod's network namespace path is probably not UTF-8",
        }
    }
}

/// Captures the pod if it is to be, and returns when it is.
pub async fn add(request: &Request<'_>) -> Result<Added, AddError> {
    if let Some(reason) = why_not(request.pod, request.namespace, request.rules) {
        return Ok(Added::NotEnrolled(reason));
    }
    let metadata = &request.pod.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let namespace = metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let event = Event {
        netns: request.netns.to_owned(),
        pod_name: name.clone(),
        pod_namespace: namespace.clone(),
        ips: Some(request.addresses.iter().map(EventAddress::from).collect()),
        pod_uid: metadata.uid.clone(),
        agent_decides: false,
    };
    let body = match serde_json::to_vec(&event) {
        Ok(body) => body,
        Err(source) => return Err(AddError::Encode { namespace, name, source }),
    };
    let client = Client::unix(request.socket).deadline(DEADLINE).body_bytes(ANSWER_BYTES);
    match client.request(Method::POST, "/cmdadd", body).await {
        Ok(answer) if answer.status == StatusCode::OK => Ok(Added::Captured),
        Ok(answer) => {
            let text = answer.text().trim().to_owned();
            Err(AddError::Refused { namespace, name, status: answer.status, answer: text })
        }
        Err(source) => Err(AddError::Agent { namespace, name, source }),
    }
}

/// Body of `POST /cmdadd`, in the field names and forms of Go's encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Path of the pod's network namespace.
    #[serde(rename = "Netns")]
    pub netns: PathBuf,
    /// The pod's name.
    #[serde(rename = "PodName")]
    pub pod_name: String,
    /// The pod's namespace.
    #[serde(rename = "PodNamespace")]
    pub pod_namespace: String,
    /// Its addresses; Go writes `null` for none.
    #[serde(rename = "IPs", default)]
    pub ips: Option<Vec<EventAddress>>,
    /// The pod's UID where the runtime tells it: tells pods of one name apart. Ours; Istio's agent does not read it.
    #[serde(rename = "PodUID", default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Whether the agent is to decide. Otherwise the plugin has decided that the pod is to be captured. Ours, too.
    #[serde(rename = "AgentDecides", default, skip_serializing_if = "is_false")]
    pub agent_decides: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What the agent answers with 200 where it decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the pod is captured.
    pub captured: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An address in an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAddress {
    /// Index of the interface in the CNI result.
    #[serde(rename = "Interface", default)]
    pub interface: Option<u32>,
    /// The address with its mask.
    #[serde(rename = "Address")]
    pub address: EventNet,
    /// The gateway; empty for none.
    #[serde(rename = "Gateway", default)]
    pub gateway: Option<String>,
}

/// Go's `net.IPNet`: the address as text, the mask as base64 of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventNet {
    /// The address.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
    /// The mask.
    #[serde(rename = "Mask", default)]
    pub mask: Option<String>,
}

impl From<&Address> for EventAddress {
    fn from(address: &Address) -> Self {
        let mask = match address.address.netmask() {
            IpAddr::V4(mask) => BASE64_STANDARD.encode(mask.octets()),
            IpAddr::V6(mask) => BASE64_STANDARD.encode(mask.octets()),
        };
        Self {
            interface: address.interface,
            address: EventNet { ip: address.address.addr(), mask: Some(mask) },
            gateway: Some(address.gateway.map(|gateway| gateway.to_string()).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_names_and_forms_of_go() {
        let address = Address {
            interface: Some(0),
            address: "10.244.1.7/32".parse().unwrap(),
            gateway: Some("169.254.1.1".parse().unwrap()),
        };
        let event = Event {
            netns: "/run/netns/x".into(),
            pod_name: "a-1".into(),
            pod_namespace: "shop".into(),
            ips: Some(vec![EventAddress::from(&address)]),
            pod_uid: None,
            agent_decides: false,
        };
        let text = concat!(
            r#"{"Netns":"/run/netns/x","PodName":"a-1","PodNamespace":"shop","IPs":[{"Interface":0,"#,
            r#""Address":{"IP":"10.244.1.7","Mask":"/////w=="},"Gateway":"169.254.1.1"}]}"#,
        );
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
        assert_eq!(serde_json::from_str::<Event>(text).unwrap(), event);
    }

    #[test]
    fn what_go_writes_for_nothing_is_read() {
        let text = r#"{"Netns":"/n","PodName":"a","PodNamespace":"b","IPs":null}"#;
        assert_eq!(serde_json::from_str::<Event>(text).unwrap().ips, None);
        let text = concat!(
            r#"{"Netns":"/n","PodName":"a","PodNamespace":"b","#,
            r#""IPs":[{"Interface":null,"Address":{"IP":"fd00::1","Mask":null},"Gateway":""}]}"#
        );
        let event = serde_json::from_str::<Event>(text).unwrap();
        assert_eq!(event.ips.unwrap()[0].address.ip, "fd00::1".parse::<IpAddr>().unwrap());
    }
}
