//! The objects: nodes that nobody is, pods that nobody runs, and services and policies over them.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stillmesh_k8s::istio::{self, AuthorizationPolicy};

use crate::Options;

/// Namespace of the controller and of the nodes' accounts.
pub const SYSTEM: &str = "scale-system";
/// Requests at a time.
const AT_ONCE: usize = 32;
const NAMESPACES: usize = 10;

/// The objects of a run.
#[derive(Clone)]
pub struct Crowd {
    pub client: Client,
    pub options: Options,
}

pub fn node_name(node: usize) -> String {
    format!("scale-{node:03}")
}

impl Crowd {
    pub fn new(client: Client, options: &Options) -> Self {
        Self { client, options: options.clone() }
    }

    /// Namespace and name of a service, and of the policy for its pods.
    pub fn service(&self, number: usize) -> (String, String) {
        (format!("scale-{}", number % NAMESPACES), format!("service-{number:04}"))
    }

    /// Makes whatever is not there.
    pub async fn make(&self) -> anyhow::Result<()> {
        self.definitions().await?;
        for namespace in (0..NAMESPACES).map(|number| format!("scale-{number}")).chain([SYSTEM.to_owned()]) {
            let labels = json!({"istio.io/dataplane-mode": "ambient"});
            self.create::<Namespace>(
                Api::all(self.client.clone()),
                json!({"metadata": {"name": namespace, "labels": labels}}),
            )
            .await?;
        }
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), SYSTEM);
        self.create(accounts, json!({"metadata": {"name": "ztunnel"}})).await?;
        self.each(self.options.nodes, |crowd, node| async move { crowd.node(node).await }).await.context("nodes")?;
        self.each(self.options.services, |crowd, number| async move { crowd.service_and_policy(number).await })
            .await
            .context("services and policies")?;
        let pods = Api::<Pod>::all(self.client.clone());
        let there = pods.list_metadata(&ListParams::default().labels("scale=pod")).await?.items.len();
        if there < self.options.pods {
            self.each(self.options.pods, |crowd, pod| async move { crowd.pod(pod, 0).await }).await.context("pods")?;
        }
        Ok(())
    }

    async fn definitions(&self) -> anyhow::Result<()> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        for definition in istio::crds() {
            let name = definition.metadata.name.clone().unwrap_or_default();
            if api.get_opt(&name).await?.is_none() {
                api.create(&PostParams::default(), &definition).await?;
            }
            for _ in 0..100 {
                let list =
                    Api::<AuthorizationPolicy>::all(self.client.clone()).list(&ListParams::default().limit(1)).await;
                if list.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Runs one job per number, some at a time.
    pub async fn each<F, R>(&self, count: usize, job: F) -> anyhow::Result<()>
    where
        F: Fn(Self, usize) -> R,
        R: Future<Output = anyhow::Result<()>>,
    {
        stream::iter((0..count).map(|number| Ok(job(self.clone(), number))))
            .try_buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn create<K>(&self, api: Api<K>, object: Value) -> anyhow::Result<()>
    where
        K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object)?;
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }

    fn namespaced<K: Resource<Scope = NamespaceResourceScope>>(&self, namespace: &str) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn node(&self, node: usize) -> anyhow::Result<()> {
        let name = node_name(node);
        let nodes = Api::<Node>::all(self.client.clone());
        self.create(
            nodes.clone(),
            json!({"metadata": {"name": name, "labels": {"scale": "node"}}, "spec": {"unschedulable": true}}),
        )
        .await?;
        let now = jiff::Timestamp::now().to_string();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Scale",
            "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await?;
        self.heartbeat(node).await?;
        let pod = json!({
            "metadata": {"name": format!("ztunnel-{node:03}"), "namespace": SYSTEM, "labels": {"app": "ztunnel"}},
            "spec": pod_spec(&name, "ztunnel"),
        });
        self.create(self.namespaced::<Pod>(SYSTEM), pod).await
    }

    /// What a kubelet does to stay alive.
    pub async fn heartbeat(&self, node: usize) -> anyhow::Result<()> {
        let name = node_name(node);
        let leases = self.namespaced::<Lease>("kube-node-lease");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": MicroTime(jiff::Timestamp::now())},
        });
        leases.patch(&name, &PatchParams::apply("scale").force(), &Patch::Apply(lease)).await?;
        Ok(())
    }

    async fn service_and_policy(&self, number: usize) -> anyhow::Result<()> {
        let (namespace, name) = self.service(number);
        let service = json!({"metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}});
        self.create(self.namespaced::<Service>(&namespace), service).await?;
        if number < self.options.policies {
            let policy = json!({"metadata": {"name": name}, "spec": self.policy_spec(&name, 8080)});
            self.create(self.namespaced::<AuthorizationPolicy>(&namespace), policy).await?;
        }
        Ok(())
    }

    fn policy_spec(&self, app: &str, port: u16) -> Value {
        json!({"selector": {"matchLabels": {"app": app}}, "action": "ALLOW",
            "rules": [{"from": [{"source": {"namespaces": ["scale-0", "scale-1"]}}],
                "to": [{"operation": {"ports": [port.to_string()]}}]}]})
    }

    /// Changes a policy, as `kubectl apply` of its edited file does.
    pub async fn change_policy(&self, number: usize, port: u16) -> anyhow::Result<()> {
        let (namespace, name) = self.service(number);
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name},
            "spec": self.policy_spec(&name, port)});
        let parameters = PatchParams::apply("scale").force();
        self.namespaced::<AuthorizationPolicy>(&namespace).patch(&name, &parameters, &Patch::Apply(policy)).await?;
        Ok(())
    }

    /// The name of a pod that has been replaced so many times, and its namespace.
    pub fn pod_name(&self, pod: usize, life: usize) -> (String, String) {
        let (namespace, service) = self.service(pod % self.options.services.max(1));
        (namespace, format!("{service}-{pod:05}-{life}"))
    }

    /// Starts a pod: it is there, then it has an address, is captured and ready.
    pub async fn pod(&self, pod: usize, life: usize) -> anyhow::Result<()> {
        let (namespace, name) = self.pod_name(pod, life);
        let app = self.service(pod % self.options.services.max(1)).1;
        let object = json!({
            "metadata": {"name": name, "labels": {"app": app, "scale": "pod", "version": "v1"},
                "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": pod_spec(&node_name(pod % self.options.nodes.max(1)), "default"),
        });
        let pods = self.namespaced::<Pod>(&namespace);
        self.create(pods.clone(), object).await?;
        let number = pod + life * self.options.pods;
        let ip = format!("100.{}.{}.{}", 64 + (number >> 16) % 64, (number >> 8) & 255, number & 255);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// Ends a pod at once.
    pub async fn end_pod(&self, pod: usize, life: usize) -> anyhow::Result<()> {
        let (namespace, name) = self.pod_name(pod, life);
        match self.namespaced::<Pod>(&namespace).delete(&name, &DeleteParams::default().grace_period(0)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }

    /// A token as the kubelet gives it to a node's tunnel.
    pub async fn token(&self, node: usize) -> anyhow::Result<String> {
        let name = format!("ztunnel-{node:03}");
        let pod = self.namespaced::<Pod>(SYSTEM).get(&name).await?;
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 43200,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.metadata.uid}}}))?;
        let accounts = self.namespaced::<ServiceAccount>(SYSTEM);
        let answer = accounts.create_token_request("ztunnel", &PostParams::default(), &request).await?;
        answer.status.context("no token")?.token.context("no token")
    }

    /// Takes everything away.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let now = DeleteParams::default().grace_period(0);
        for namespace in (0..NAMESPACES).map(|number| format!("scale-{number}")).chain([SYSTEM.to_owned()]) {
            self.namespaced::<Pod>(&namespace).delete_collection(&now, &ListParams::default()).await?;
            let _ = Api::<Namespace>::all(self.client.clone()).delete(&namespace, &DeleteParams::default()).await;
        }
        let chosen = ListParams::default().labels("scale=node");
        Api::<Node>::all(self.client.clone()).delete_collection(&now, &chosen).await?;
        Ok(())
    }

    /// Waits until every pod's service has its endpoints.
    pub async fn settle(&self) -> anyhow::Result<()> {
        use k8s_openapi::api::discovery::v1::EndpointSlice;
        for _ in 0..600 {
            let mut there = 0;
            let pages = stream::iter((0..NAMESPACES).map(|number| format!("scale-{number}")));
            let mut counts = pages
                .then(|namespace| async move {
                    self.namespaced::<EndpointSlice>(&namespace)
                        .list_metadata(&ListParams::default())
                        .await
                        .map(|list| list.items.len())
                })
                .boxed();
            while let Some(count) = counts.next().await {
                there += count?;
            }
            if there >= self.options.services {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::bail!("the cluster's own controllers have not made an EndpointSlice per service within 10 minutes")
    }
}

/// A pod that tolerates everything, so that nobody evicts it from a node without a kubelet.
fn pod_spec(node: &str, account: &str) -> Value {
    json!({"nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "c", "image": "localhost/none:1", "ports": [{"containerPort": 8080}]}]})
}
