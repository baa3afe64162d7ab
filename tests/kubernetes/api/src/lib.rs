//! What tests against a real API server need: rights as in the deployed manifest, controllers in this process that
//! have them, and nodes that authenticate with tokens of pods.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on has failed"
)]

mod controller;
mod node;

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use stillmesh_cluster::Cluster;
use stillmesh_runtime::Tasks;
use tokio::sync::{Mutex, MutexGuard};

pub use controller::Controller;
pub use node::{Node, csr, said};

/// Long enough for any machine; a test that reaches it has failed.
pub const LIMIT: Duration = Duration::from_secs(60);

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const DEFINITIONS: [&str; 4] = ["gatewayclasses", "gateways", "httproutes", "referencegrants"];

/// One test at a time: every controller writes into all namespaces.
static ONE: Mutex<()> = Mutex::const_new(());

/// A namespace with everything that the chart would make there, apart from the programs.
pub struct World {
    pub admin: Cluster,
    pub namespace: String,
    pub tasks: Tasks,
    server: String,
    authority: String,
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub async fn new() -> Self {
        let turn = ONE.lock().await;
        if std::env::vars().any(|(key, _)| key == "API_LOG") {
            let _ = stillmesh_runtime::telemetry::init("test");
        }
        let file = std::env::vars().find(|(key, _)| key == "KUBECONFIG").map(|(_, value)| PathBuf::from(value));
        let file = file.expect("KUBECONFIG names an API server: tests/kubernetes/api/run starts one");
        let read = Kubeconfig::read_from(&file).unwrap();
        let cluster = read.clusters[0].cluster.clone().unwrap();
        let world = Self {
            admin: Cluster::from_kubeconfig(Some(file), None).await.unwrap(),
            namespace: format!("api-{:08x}", rand::random::<u32>()),
            tasks: Tasks::new("test"),
            server: cluster.server.unwrap(),
            authority: cluster.certificate_authority_data.unwrap(),
            folder: tempfile::tempdir().unwrap(),
            _turn: turn,
        };
        world.install().await;
        world
    }

    pub fn client(&self) -> Client {
        self.admin.client()
    }

    /// The rights, the CRDs and the webhook's registration, as the deployed manifest has them.
    async fn install(&self) {
        for crd in ["authorizationpolicies", "peerauthentications"] {
            let text = std::fs::read_to_string(deploy(&format!("crds/{crd}.security.istio.io.yaml"))).unwrap();
            self.apply(serde_saphyr::from_str(&text).unwrap()).await;
        }
        let namespace = &self.namespace;
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await;
        let text = std::fs::read_to_string(deploy("stillmesh.yaml")).unwrap();
        let text = text
            .replace("stillmesh-system", namespace)
            .replace("stillmesh-leader-default", &format!("stillmesh-leader-{namespace}"))
            .replace("stillmesh-validator", &format!("stillmesh-validator-{namespace}"));
        let kinds = [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "ValidatingWebhookConfiguration",
        ];
        let mut applied = 0;
        for document in text.split("\n---\n") {
            let Ok(mut object) = serde_saphyr::from_str::<Value>(document) else { continue };
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let ours = name == "stillmesh-controller" || kind == "ValidatingWebhookConfiguration";
            if !ours || !kinds.contains(&kind.as_str()) {
                continue;
            }
            if kind.starts_with("ClusterRole") {
                object["metadata"]["name"] = format!("{name}-{namespace}").into();
            }
            if kind == "ClusterRoleBinding" {
                object["roleRef"]["name"] = format!("{name}-{namespace}").into();
            }
            if kind == "ValidatingWebhookConfiguration" {
                let values = json!([namespace]);
                object["webhooks"][0]["objectSelector"] =
                    json!({"matchExpressions": [{"key": "istio.io/rev", "operator": "In", "values": values}]});
            }
            self.apply(object).await;
            applied += 1;
        }
        assert_eq!(applied, 6, "the deployed manifest has one of each kind");
        for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
            self.until("the CRDs are served", || async { self.objects(kind).await.is_some() }).await;
        }
    }

    async fn objects(&self, kind: &str) -> Option<Api<DynamicObject>> {
        let gvk = GroupVersionKind::gvk("security.istio.io", "v1", kind);
        let (resource, _) = kube::discovery::pinned_kind(&self.client(), &gvk).await.ok()?;
        Some(Api::namespaced_with(self.client(), &self.namespace, &resource))
    }

    /// Applies an object on the server's side.
    pub async fn apply(&self, object: Value) {
        self.try_apply(object).await.unwrap();
    }

    pub async fn try_apply(&self, object: Value) -> Result<DynamicObject, kube::Error> {
        let version = object["apiVersion"].as_str().unwrap();
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let kind = object["kind"].as_str().unwrap();
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = match kind {
            "CustomResourceDefinition" => ApiResource::from_gvk(&gvk),
            _ => kube::discovery::pinned_kind(&self.client(), &gvk).await?.0,
        };
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        let name = object["metadata"]["name"].as_str().unwrap();
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&object)).await
    }

    /// The Gateway API's own definitions, as its users install them.
    pub async fn gateway_api(&self) {
        let folder = std::env::vars().find(|(key, _)| key == "GATEWAY_API").map(|(_, value)| PathBuf::from(value));
        let folder = folder.expect("GATEWAY_API names a folder of definitions: tests/kubernetes/api/run fetches one");
        for kind in DEFINITIONS {
            let text = std::fs::read_to_string(folder.join(format!("gateway.networking.k8s.io_{kind}.yaml"))).unwrap();
            self.apply(serde_saphyr::from_str(&text).unwrap()).await;
        }
        for kind in ["GatewayClass", "Gateway", "HTTPRoute"] {
            self.until("the Gateway API is served", || async { self.api(GATEWAY_API, kind).await.is_some() }).await;
        }
    }

    /// Takes the Gateway API away.
    pub async fn remove_gateway_api(&self) {
        for kind in DEFINITIONS {
            let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
            let api: Api<DynamicObject> = Api::all_with(self.client(), &ApiResource::from_gvk(&gvk));
            let name = format!("{kind}.gateway.networking.k8s.io");
            let _ = api.delete(&name, &DeleteParams::default()).await;
            self.until("it is gone", || async { api.get_opt(&name).await.unwrap().is_none() }).await;
        }
    }

    /// The objects of a kind, of this namespace where they are in one.
    async fn api(&self, version: &str, kind: &str) -> Option<Api<DynamicObject>> {
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = kube::discovery::pinned_kind(&self.client(), &gvk).await.ok()?;
        Some(match capabilities.scope {
            kube::discovery::Scope::Cluster => Api::all_with(self.client(), &resource),
            kube::discovery::Scope::Namespaced => Api::namespaced_with(self.client(), &self.namespace, &resource),
        })
    }

    /// An object, if it is there.
    pub async fn get(&self, version: &str, kind: &str, name: &str) -> Option<Value> {
        let found = self.api(version, kind).await?.get_opt(name).await.ok()??;
        serde_json::to_value(found).ok()
    }

    pub async fn delete(&self, version: &str, kind: &str, name: &str) {
        self.api(version, kind).await.unwrap().delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn patch_status(&self, version: &str, kind: &str, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let api = self.api(version, kind).await.unwrap();
        api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn policy(&self, name: &str, spec: Value) {
        self.try_policy(name, spec).await.unwrap();
    }

    pub async fn try_policy(&self, name: &str, spec: Value) -> Result<DynamicObject, kube::Error> {
        self.try_apply(self.policy_object(name, spec)).await
    }

    pub fn policy_object(&self, name: &str, spec: Value) -> Value {
        let metadata = json!({"name": name, "namespace": self.namespace});
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
    }

    pub async fn get_policy(&self, name: &str) -> Value {
        let api = self.objects("AuthorizationPolicy").await.unwrap();
        serde_json::to_value(api.get(name).await.unwrap()).unwrap()
    }

    pub async fn delete_policy(&self, name: &str) {
        let api = self.objects("AuthorizationPolicy").await.unwrap();
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// A pod that runs, as far as the API server knows.
    pub async fn pod(&self, name: &str, account: &str, node: &str, address: &str) -> Pod {
        let metadata = json!({"name": account, "namespace": self.namespace});
        self.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})).await;
        let api: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": account}},
            "spec": {
                "serviceAccountName": account, "nodeName": node, "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "localhost/none", "imagePullPolicy": "Never"}],
            },
        }));
        api.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status =
            json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap()
    }

    pub async fn delete_pod(&self, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.client(), &self.namespace);
        api.delete(name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    }

    /// A token of a service account, bound to a pod where one is given.
    pub async fn token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let spec = TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            bound_object_ref: bound,
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.client(), &self.namespace);
        api.create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap()
            .status
            .unwrap()
            .token
            .unwrap()
    }

    /// Access with the rights of the controller's account, by a server's address that may be a proxy's.
    pub async fn access(&self, server: Option<&str>) -> Cluster {
        let token = self.token("stillmesh-controller", "https://kubernetes.default.svc", None).await;
        let file = self.folder.path().join(format!("{:08x}", rand::random::<u32>()));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": server.unwrap_or(&self.server), "certificate-authority-data": self.authority,
            }}],
            "users": [{"name": "c", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": self.namespace}}],
        });
        std::fs::write(&file, text.to_string()).unwrap();
        Cluster::from_kubeconfig(Some(file), None).await.unwrap()
    }

    /// Where the API server is: host and port.
    pub fn address(&self) -> String {
        self.server.trim_start_matches("https://").trim_end_matches('/').to_owned()
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client(), &self.namespace)
    }

    pub fn maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client(), namespace)
    }

    /// The roots that a namespace has; empty where it has none.
    pub async fn roots_in(&self, namespace: &str) -> String {
        let map = self.maps(namespace).get_opt("istio-ca-root-cert").await.unwrap();
        map.and_then(|map| map.data?.remove("root-cert.pem")).unwrap_or_default()
    }

    /// Waits until something holds.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let waiting = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("never: {what}");
        }
    }

    /// Takes away what is not in the namespace, and the namespace.
    pub async fn end(self) {
        let namespace = &self.namespace;
        let parameters = DeleteParams::default();
        let name = format!("stillmesh-controller-{namespace}");
        let client = self.client();
        use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
        use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
        let _ = Api::<ClusterRoleBinding>::all(client.clone()).delete(&name, &parameters).await;
        let _ = Api::<ClusterRole>::all(client.clone()).delete(&name, &parameters).await;
        let hook = format!("stillmesh-validator-{namespace}");
        let _ = Api::<ValidatingWebhookConfiguration>::all(client.clone()).delete(&hook, &parameters).await;
        let _ = Api::<Namespace>::all(client).delete(namespace, &parameters).await;
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

fn deploy(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../deploy").join(path)
}
