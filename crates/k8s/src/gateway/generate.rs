//! What runs a waypoint: the objects that are made from its Gateway (contract 7.2). Pure; whoever applies them adds
//! nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::binding::{MANAGED, MANAGERS, service_name};
use super::overlay::{self, Overlay};
use super::{Gateway, HBONE};
use crate::labels::{self, Labels};
use crate::object::{DEFAULT_NAMESPACE, Kind, Object};
use crate::translate::Mesh;

/// Label with the Gateway's name, on everything that is made for it; pods are selected by it.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label with its class.
pub const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Annotation of a Gateway with the account that it runs as, where that is one of the user's.
pub const ACCOUNT: &str = "gateway.istio.io/service-account";
/// Annotation of a Gateway with the type of its Service.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// The container that is the waypoint.
pub(super) const CONTAINER: &str = "istio-proxy";
/// What the mesh's own tokens are for.
const AUDIENCE: &str = "istio-ca";
const TOKENS: &str = "/var/run/secrets/tokens";
const TOKEN: &str = "istio-token";
const ROOTS: &str = "/var/run/secrets/istio";
/// As whom waypoints run.
const USER: i64 = 1337;
const STATS_PORT: u16 = 15020;
const READY_PORT: u16 = 15021;
/// How long requests may go on in a waypoint that ends.
const GRACE_SECONDS: i64 = 30;

/// What holds for all waypoints of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's own image.
    pub image: String,
    /// When it is pulled; as Kubernetes does where empty.
    pub pull_policy: String,
    /// Secrets to pull it with, in the waypoint's namespace.
    pub pull_secrets: Vec<String>,
    /// Where configuration comes from, `https://host:port`.
    pub xds_address: String,
    /// Where certificates come from.
    pub ca_address: String,
    /// Life of certificates that is asked for; as the waypoint does where empty.
    pub secret_ttl: String,
    /// What is logged.
    pub log_level: String,
    /// How.
    pub log_format: String,
}

/// The objects that run a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its account; `None` where it runs as one of the user's.
    pub account: Option<ServiceAccount>,
    /// Its pods.
    pub deployment: Deployment,
    /// What others reach it by.
    pub service: Service,
    /// How many pods there are, where an overlay asks for one.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// How many pods stay when nodes are emptied, where an overlay asks for one.
    pub budget: Option<PodDisruptionBudget>,
}

/// Kinds that a waypoint has only where an overlay asks for them.
pub const ASKED_FOR: [Kind; 2] = [Kind::HorizontalPodAutoscaler, Kind::PodDisruptionBudget];

impl Generated {
    /// All of them, in the order in which they are made.
    pub fn objects(self) -> impl Iterator<Item = Object> {
        let first = [self.account.map(Object::from), Some(self.service.into()), Some(self.deployment.into())];
        let asked = [self.autoscaler.map(Object::from), self.budget.map(Object::from)];
        first.into_iter().chain(asked).flatten()
    }
}

/// Why the objects of a waypoint cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmade {
    /// For an overlay.
    Parameters(String),
    /// For the Gateway's own content.
    Gateway(String),
}

/// The account that a waypoint runs as.
pub fn account_name(gateway: &Gateway) -> &str {
    let users = labels::of(&gateway.metadata.annotations).get(ACCOUNT).filter(|name| !name.is_empty());
    users.map_or_else(|| service_name(gateway), String::as_str)
}

/// Makes the objects of a waypoint, with what overlays want different. Fails where the Gateway's content does not fit into
/// one, or an overlay's, saying why.
pub fn generate(
    gateway: &Gateway,
    settings: &Settings,
    mesh: &Mesh,
    overlays: &[Overlay],
) -> Result<Generated, Unmade> {
    generate_for(gateway, settings, mesh, overlays, |_| {})
}

/// [`generate`] for a place that is not an ordinary cluster: `fit` changes the Deployment before overlays are laid over it.
pub fn generate_for(
    gateway: &Gateway,
    settings: &Settings,
    mesh: &Mesh,
    overlays: &[Overlay],
    fit: impl FnOnce(&mut Deployment),
) -> Result<Generated, Unmade> {
    let of = Of { gateway, settings, mesh, overlays };
    let account = match account_name(gateway) == service_name(gateway) {
        true => Some(of.made(Kind::ServiceAccount, of.account())?),
        false => {
            let why = "the Gateway runs as an account of its user's, which is left as it is";
            overlay::without(Kind::ServiceAccount, overlays, why).map_err(Unmade::Parameters)?;
            None
        }
    };
    let bad = |error: serde_json::Error| Unmade::Gateway(error.to_string());
    let mut deployment: Deployment = serde_json::from_value(of.deployment()).map_err(bad)?;
    fit(&mut deployment);
    deployment = of.made(Kind::Deployment, serde_json::to_value(deployment).map_err(bad)?)?;
    let autoscaler: Option<HorizontalPodAutoscaler> =
        of.made_if_asked(Kind::HorizontalPodAutoscaler, || of.autoscaler())?;
    if autoscaler.is_some() {
        // It alone says how many.
        deployment.spec.replicas = None;
    }
    Ok(Generated {
        account,
        deployment,
        service: of.made(Kind::Service, of.service())?,
        autoscaler,
        budget: of.made_if_asked(Kind::PodDisruptionBudget, || of.budget())?,
    })
}

struct Of<'a> {
    gateway: &'a Gateway,
    settings: &'a Settings,
    mesh: &'a Mesh,
    overlays: &'a [Overlay],
}

impl Of<'_> {
    fn made<K: DeserializeOwned>(&self, kind: Kind, base: Value) -> Result<K, Unmade> {
        let value = match self.overlays.iter().any(|overlay| overlay.has(kind)) {
            true => overlay::lay(kind, base, self.overlays).map_err(Unmade::Parameters)?,
            false => base,
        };
        serde_json::from_value(value).map_err(|error| Unmade::Gateway(error.to_string()))
    }

    fn made_if_asked<K: DeserializeOwned>(
        &self,
        kind: Kind,
        base: impl FnOnce() -> Value,
    ) -> Result<Option<K>, Unmade> {
        let asked = self.overlays.iter().any(|overlay| overlay.has(kind));
        if asked { self.made(kind, base()).map(Some) } else { Ok(None) }
    }

    fn autoscaler(&self) -> Value {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": service_name(self.gateway)});
        json!({"metadata": self.metadata(self.annotations()), "spec": {"scaleTargetRef": target}})
    }

    fn budget(&self) -> Value {
        let selector = json!({"matchLabels": self.selector()});
        json!({"metadata": self.metadata(self.annotations()), "spec": {"selector": selector}})
    }

    fn account(&self) -> Value {
        json!({"metadata": self.metadata(self.annotations()), "automountServiceAccountToken": false})
    }

    fn deployment(&self) -> Value {
        let selector = json!({"matchLabels": self.selector()});
        let mut labels = self.labels();
        let name = service_name(self.gateway);
        let fixed = [
            ("sidecar.istio.io/inject", "false"),
            (crate::select::DATAPLANE_MODE, "none"),
            ("service.istio.io/canonical-name", name),
            ("service.istio.io/canonical-revision", "latest"),
            ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
            ("topology.istio.io/network", &self.mesh.network),
        ];
        labels.extend(fixed.into_iter().filter(|(_, value)| !value.is_empty()).map(owned));
        let mut annotations = self.annotations();
        let port = STATS_PORT.to_string();
        let scrape = [("scrape", "true"), ("port", port.as_str()), ("path", "/stats/prometheus")];
        annotations.extend(scrape.map(|(key, value)| (format!("prometheus.io/{key}"), value.to_owned())));
        json!({
            "metadata": self.metadata(self.annotations()),
            "spec": {
                "selector": selector,
                "revisionHistoryLimit": 3,
                // The new one is ready before an old one is told to end.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": self.pod()},
            },
        })
    }

    fn pod(&self) -> Value {
        let spread = |key: &str| {
            let mine = json!({"matchLabels": self.selector()});
            json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": mine})
        };
        let secrets: Vec<Value> = self.settings.pull_secrets.iter().map(|name| json!({"name": name})).collect();
        let mut spec = json!({
            "serviceAccountName": account_name(self.gateway),
            // It never speaks to the Kubernetes API; what it proves itself with is the token below.
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self.container()],
            "volumes": [
                {"name": TOKEN, "projected": {"sources": [{
                    "serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": 43_200, "path": TOKEN},
                }]}},
                {"name": "istio-ca", "projected": {"sources": [
                    {"configMap": {"name": "istio-ca-root-cert"}},
                    // There once something has been revoked.
                    {"configMap": {"name": "istio-ca-crl", "optional": true}},
                ]}},
            ],
        });
        if !secrets.is_empty() {
            spec["imagePullSecrets"] = secrets.into();
        }
        spec
    }

    fn container(&self) -> Value {
        let mut container = json!({
            "name": CONTAINER,
            "image": self.settings.image,
            "args": ["proxy", "waypoint"],
            "env": self.environment(),
            "ports": [
                {"name": "hbone", "containerPort": super::HBONE_PORT, "protocol": "TCP"},
                {"name": "metrics", "containerPort": STATS_PORT, "protocol": "TCP"},
                {"name": "status-port", "containerPort": READY_PORT, "protocol": "TCP"},
            ],
            "readinessProbe": {
                "httpGet": {"path": "/healthz/ready", "port": READY_PORT},
                "periodSeconds": 2,
                "timeoutSeconds": 2,
                "failureThreshold": 3,
            },
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
            "securityContext": {
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": TOKEN, "mountPath": TOKENS, "readOnly": true},
                {"name": "istio-ca", "mountPath": ROOTS, "readOnly": true},
            ],
        });
        if !self.settings.pull_policy.is_empty() {
            container["imagePullPolicy"] = self.settings.pull_policy.as_str().into();
        }
        container
    }

    /// As ztunnel's: fields of the pod, then values; an empty one is none.
    fn environment(&self) -> Vec<Value> {
        let fields = [
            ("INSTANCE_IP", "status.podIP"),
            ("NODE_NAME", "spec.nodeName"),
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ];
        let values = [
            ("AUTH_TOKEN", format!("{TOKENS}/{TOKEN}")),
            ("CA_ADDRESS", self.settings.ca_address.clone()),
            ("CA_ROOT_CA", format!("{ROOTS}/root-cert.pem")),
            ("CLUSTER_DOMAIN", self.mesh.domain.to_string()),
            ("CRL_PATH", format!("{ROOTS}/ca-crl.pem")),
            ("ISTIO_META_CLUSTER_ID", self.mesh.cluster.to_string()),
            ("LOG_FORMAT", self.settings.log_format.clone()),
            ("NETWORK", self.mesh.network.to_string()),
            ("RUST_LOG", self.settings.log_level.clone()),
            ("SECRET_TTL", self.settings.secret_ttl.clone()),
            ("TERMINATION_GRACE_PERIOD_SECONDS", GRACE_SECONDS.to_string()),
            ("TRUST_DOMAIN", self.mesh.trust_domain.to_string()),
            ("XDS_ADDRESS", self.settings.xds_address.clone()),
            ("XDS_ROOT_CA", format!("{ROOTS}/root-cert.pem")),
        ];
        let field = |(name, path)| {
            let field = json!({"apiVersion": "v1", "fieldPath": path});
            json!({"name": name, "valueFrom": {"fieldRef": field}})
        };
        let values = values.into_iter().filter(|(_, value)| !value.is_empty());
        fields.into_iter().map(field).chain(values.map(|(name, value)| json!({"name": name, "value": value}))).collect()
    }

    fn service(&self) -> Value {
        let mut annotations = self.annotations();
        annotations
            .entry("networking.istio.io/traffic-distribution".to_owned())
            .or_insert_with(|| "PreferClose".to_owned());
        let written = labels::of(&self.gateway.metadata.annotations);
        let type_ = written.get(SERVICE_TYPE).map_or("ClusterIP", String::as_str);
        let mut ports = vec![json!({"name": "status-port", "port": READY_PORT, "protocol": "TCP"})];
        let mut taken = vec![READY_PORT];
        for listener in self.gateway.spec.listeners.iter().filter(|one| one.protocol == HBONE) {
            if !taken.contains(&listener.port) {
                taken.push(listener.port);
                let name = &listener.name;
                ports.push(json!({"name": name, "port": listener.port, "protocol": "TCP", "appProtocol": "hbone"}));
            }
        }
        json!({
            "metadata": self.metadata(annotations),
            "spec": {
                "type": type_,
                "ipFamilyPolicy": "PreferDualStack",
                "selector": self.selector(),
                "ports": ports,
            },
        })
    }

    fn selector(&self) -> Labels {
        [owned((GATEWAY_NAME, self.name()))].into()
    }

    fn name(&self) -> &str {
        self.gateway.metadata.name.as_deref().unwrap_or_default()
    }

    fn metadata(&self, annotations: Labels) -> Value {
        let written = &self.gateway.metadata;
        let owner = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "name": self.name(),
            "uid": written.uid.as_deref().unwrap_or_default(),
        });
        json!({
            "name": service_name(self.gateway),
            "namespace": written.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
            "labels": self.labels(),
            "annotations": annotations,
            "ownerReferences": [owner],
        })
    }

    /// What the Gateway's user wants on its objects, and what they are found by.
    fn labels(&self) -> Labels {
        let mut labels = match &self.gateway.spec.infrastructure {
            Some(infrastructure) => copied(&infrastructure.labels),
            None => copied(labels::of(&self.gateway.metadata.labels)),
        };
        let manager = MANAGERS.first().copied().unwrap_or_default();
        let class = self.gateway.spec.gateway_class_name.as_str();
        labels.extend([(GATEWAY_NAME, self.name()), (CLASS_NAME, class), (MANAGED, manager)].map(owned));
        labels
    }

    fn annotations(&self) -> Labels {
        match &self.gateway.spec.infrastructure {
            Some(infrastructure) => copied(&infrastructure.annotations),
            None => copied(labels::of(&self.gateway.metadata.annotations)),
        }
    }
}

/// What is not for the Gateway itself.
fn copied(written: &Labels) -> BTreeMap<String, String> {
    const ITS_OWN: [&str; 4] =
        ["gateway.networking.k8s.io/", "gateway.istio.io/", "kubectl.kubernetes.io/", "stillmesh.io/"];
    let own = |key: &str| ITS_OWN.iter().any(|prefix| key.starts_with(prefix));
    written.iter().filter(|(key, _)| !own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests;
