//! The objects of `deploy/stillmesh.yaml`, and questions about them.

use std::path::Path;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use stillmesh_runtime::env::Reader;

/// `deploy/stillmesh.yaml`.
pub struct Manifest {
    /// In its order.
    pub objects: Vec<Value>,
}

impl Manifest {
    /// Reads it.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/stillmesh.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert_eq!(objects[0]["kind"], "Namespace", "the namespace comes before what is in it");
        Self { objects }
    }

    /// All of a kind.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// Deployments and DaemonSets.
    pub fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.of("DaemonSet").chain(self.of("Deployment"))
    }

    /// Their containers: one each, and no other.
    pub fn containers(&self) -> impl Iterator<Item = &Value> {
        self.workloads().map(|workload| {
            let pod = &workload["spec"]["template"]["spec"];
            assert_eq!((list(&pod["containers"]).len(), list(&pod["initContainers"]).len()), (1, 0));
            &pod["containers"][0]
        })
    }

    /// What a part finds in its environment. What comes from the pod is itself, but for addresses.
    pub fn environment(&self, part: &str) -> Reader {
        let container = self.containers().find(|container| container["args"][0] == part).unwrap();
        let values = list(&container["env"]).iter().map(|variable| {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("status.podIP") => "10.0.0.1",
                Some("metadata.namespace") => self.objects[0]["metadata"]["name"].as_str().unwrap(),
                Some("spec.serviceAccountName") => "ztunnel",
                Some(_) => "a-name",
                None => variable["value"].as_str().unwrap(),
            };
            (variable["name"].as_str().unwrap(), value)
        });
        Reader::from_values(values)
    }

    /// The value of a variable of a part.
    pub fn variable(&self, part: &str, name: &str) -> &str {
        let container = self.containers().find(|container| container["args"][0] == part).unwrap();
        let variable = list(&container["env"]).iter().find(|variable| variable["name"] == name);
        variable.unwrap_or_else(|| panic!("{part} is told {name}"))["value"].as_str().unwrap()
    }
}

/// A list, empty when it is not there.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// One text of each of a list's entries.
pub fn strings<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    list(value).iter().map(|entry| entry[key].as_str().unwrap()).collect()
}

/// A list of texts.
pub fn words(value: &Value) -> Vec<&str> {
    list(value).iter().map(|word| word.as_str().unwrap()).collect()
}

/// The pod templates that have all of these labels.
pub fn selected<'a>(labels: &Value, pods: &[&'a Value]) -> Vec<&'a Value> {
    let labels = labels.as_object().unwrap();
    let has = |pod: &Value| labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value);
    pods.iter().copied().filter(|pod| has(pod)).collect()
}

/// Properties of a schema that a document does not have.
pub fn undocumented(schema: &Value, document: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        match document.get(key) {
            Some(value) => missing.extend(undocumented(inner, value).into_iter().map(|path| format!(".{key}{path}"))),
            None => missing.push(format!(".{key}")),
        }
    }
    missing
}

/// Fields that the API does not have, or not with this type: what a typed reading does not give back.
pub fn unknown_fields(object: &Value) -> Vec<String> {
    macro_rules! through {
        ($($kind:ident)*) => {
            match object["kind"].as_str().unwrap() {
                $(stringify!($kind) => serde_json::from_value::<$kind>(object.clone()).and_then(serde_json::to_value),)*
                other => panic!("{other}: a kind that this test does not know yet"),
            }
        };
    }
    let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let typed = through! {
        Namespace Service ServiceAccount NetworkPolicy PodDisruptionBudget ClusterRole ClusterRoleBinding Role RoleBinding
        DaemonSet Deployment ValidatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
        CustomResourceDefinition
    };
    match typed {
        Ok(typed) => {
            let mut lost = Vec::new();
            compare(object, &typed, name, &mut lost);
            lost
        }
        Err(error) => vec![format!("{name}: {error}")],
    }
}

fn compare(written: &Value, read: &Value, at: String, lost: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                match read.get(key) {
                    Some(read) => compare(value, read, format!("{at}.{key}"), lost),
                    None => lost.push(format!("{at}.{key} is unknown to the API")),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (number, (written, read)) in written.iter().zip(read).enumerate() {
                compare(written, read, format!("{at}[{number}]"), lost);
            }
        }
        (written, read) if written != read && written.as_f64().is_none_or(|number| read.as_f64() != Some(number)) => {
            lost.push(format!("{at}: {written} is read as {read}"));
        }
        _ => {}
    }
}
