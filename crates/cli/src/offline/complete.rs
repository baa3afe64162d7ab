//! What a cluster would add to manifests: namespaces, addresses, the pods of Deployments and waypoints, endpoints. Pure. Of each
//! Deployment one pod stands for all: they have the same labels and account, and so are decided about alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use stillmesh_k8s::gateway::{Gateway, condition};
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::select::{self, Enrolment};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, Object, ObjectKey, labels};

use crate::machine::ipam::ServicePool;
use crate::machine::services::{self, Backend, SERVICE_NAME};
use crate::machine::{deploy, system, waypoints};

/// The node that pods are taken to be on which name none.
const NODE: &str = "node1";

/// Objects with what was added.
#[derive(Debug, Default)]
pub(super) struct Completed {
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    /// What was assumed.
    pub(super) notes: Vec<String>,
}

/// Completes objects. Fails where there are more pods than addresses for them (60,000).
pub(super) fn complete(written: impl IntoIterator<Item = Object>, mesh: &Mesh) -> anyhow::Result<Completed> {
    let mut all = Completed::default();
    for mut object in written {
        if object.kind().namespaced() {
            object.metadata_mut().namespace = Some(object.namespace().to_owned());
        }
        all.objects.insert(object.key(), object);
    }
    all.namespaces();
    for class in waypoints::classes() {
        all.objects.entry(class.key()).or_insert(class);
    }
    let mut pool = ServicePool::default();
    all.services(&mut pool);
    all.waypoints(&mut pool, mesh);
    all.pods()?;
    all.endpoints();
    Ok(all)
}

impl Completed {
    fn each<T>(&self, of: impl Fn(&Object) -> Option<T>) -> Vec<T> {
        self.objects.values().filter_map(of).collect()
    }

    fn namespaces(&mut self) {
        let named: BTreeSet<String> =
            self.each(|one| one.kind().namespaced().then(|| one.namespace().to_owned())).into_iter().collect();
        let mut missing = Vec::new();
        for name in named.into_iter().chain(system::NAMESPACES.map(str::to_owned)) {
            let key = ObjectKey::new(Kind::Namespace, "", &name);
            if self.objects.contains_key(&key) {
                continue;
            }
            if !system::NAMESPACES.contains(&name.as_str()) {
                missing.push(name.clone());
            }
            let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
            self.objects.insert(key, Namespace { metadata, ..Namespace::default() }.into());
        }
        if !missing.is_empty() {
            let names = missing.join(", ");
            self.notes
                .push(format!("no Namespace is written for {names}: taken as one without labels, outside the mesh"));
        }
    }

    fn services(&mut self, pool: &mut ServicePool) {
        let services = self.each(|one| match one {
            Object::Service(service) => Some((**service).clone()),
            _ => None,
        });
        for service in services {
            self.service(service, pool);
        }
    }

    /// A Service with its addresses; one that names an address itself keeps it.
    fn service(&mut self, mut service: Service, pool: &mut ServicePool) {
        let written = service.clone();
        if services::allocate(&mut service, pool, true).is_err() {
            service = written;
            let spec = service.spec.get_or_insert_default();
            if spec.cluster_ips.is_none() {
                spec.cluster_ips = spec.cluster_ip.clone().map(|ip| vec![ip]);
            }
        }
        let object = Object::from(service);
        self.objects.insert(object.key(), object);
    }

    /// What runs the Gateways that are waypoints.
    fn waypoints(&mut self, pool: &mut ServicePool, mesh: &Mesh) {
        let gateways = self.each(|one| match one {
            Object::Gateway(gateway) => Some(Arc::clone(gateway)),
            _ => None,
        });
        for gateway in gateways {
            let class = ObjectKey::new(Kind::GatewayClass, "", &gateway.spec.gateway_class_name);
            let class = match self.objects.get(&class) {
                Some(Object::GatewayClass(class)) => Some(Arc::clone(class)),
                _ => None,
            };
            let Some(Ok(made)) = waypoints::objects(&gateway, class.as_deref(), &[], true) else { continue };
            let deployment = Object::from(made.deployment.clone());
            self.objects.entry(deployment.key()).or_insert(deployment);
            let service = Object::from(made.service.clone()).key();
            if !self.objects.contains_key(&service) {
                self.service(made.service, pool);
            }
            self.programmed(&gateway, &service, mesh);
        }
    }

    /// A Gateway whose waypoint is ready.
    fn programmed(&mut self, gateway: &Gateway, service: &ObjectKey, mesh: &Mesh) {
        let progress = waypoints::progress(self.objects.get(service), 1);
        let mut gateway = gateway.clone();
        if let Some(status) = condition::gateway_status(&gateway, &progress, mesh, "1970-01-01T00:00:00Z") {
            gateway.status = Some(status);
        }
        let object = Object::from(gateway);
        self.objects.insert(object.key(), object);
    }

    fn pods(&mut self) -> anyhow::Result<()> {
        let written = self.each(|one| match one {
            Object::Pod(pod) => Some((**pod).clone()),
            _ => None,
        });
        let deployments = self.each(|one| match one {
            Object::Deployment(deployment) => Some(Arc::clone(deployment)),
            _ => None,
        });
        let is_there = |deployment: &Deployment| {
            let selector = &deployment.spec.selector;
            let is_of_a_deployment = |pod: &Pod| {
                pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "ReplicaSet")
                    && pod.metadata.namespace == deployment.metadata.namespace
            };
            written
                .iter()
                .any(|pod| is_of_a_deployment(pod) && labels::selects(selector, labels::of(&pod.metadata.labels)))
        };
        let missing = deployments.iter().filter(|one| deploy::desired(one).replicas > 0 && !is_there(one));
        let made: Vec<Pod> = missing.map(|deployment| pod_of(deployment)).collect();
        for (number, pod) in (2u16..).zip(written.into_iter().chain(made)) {
            let number = Some(number).filter(|number| *number < 60_000).context("there are more than 60,000 pods")?;
            let object = Object::from(self.running(pod, number));
            self.objects.insert(object.key(), object);
        }
        Ok(())
    }

    /// A pod as it is when it runs; what it says itself stays.
    fn running(&self, mut pod: Pod, number: u16) -> Pod {
        let name = pod.metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let namespace = match self.objects.get(&ObjectKey::new(Kind::Namespace, "", &name)) {
            Some(Object::Namespace(namespace)) => Some(Arc::clone(namespace)),
            _ => None,
        };
        let spec = pod.spec.get_or_insert_default();
        spec.node_name.get_or_insert_with(|| NODE.to_owned());
        let on_host = spec.host_network == Some(true);
        spec.service_account_name.get_or_insert_with(|| "default".to_owned());
        let status = pod.status.get_or_insert_default();
        if status.pod_ips.as_ref().is_none_or(Vec::is_empty) {
            status.pod_ips = Some(match (&status.pod_ip, on_host) {
                (Some(ip), _) => vec![PodIP { ip: ip.clone() }],
                (None, true) => vec![PodIP { ip: "172.30.0.11".to_owned() }],
                (None, false) => addresses(number).map(|ip| PodIP { ip }).to_vec(),
            });
            status.pod_ip = status.pod_ips.iter().flatten().next().map(|one| one.ip.clone());
        }
        if status.phase.is_none() {
            status.phase = Some("Running".to_owned());
            status.conditions = Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            }]);
        }
        if select::enrolled(&pod, namespace.as_deref(), &Enrolment::default()) {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.entry(select::REDIRECTION.to_owned()).or_insert_with(|| "enabled".to_owned());
        }
        pod
    }

    /// EndpointSlices of Services that select pods and have none.
    fn endpoints(&mut self) {
        let pods: Vec<(Arc<Pod>, Vec<String>)> = self.each(|one| match one {
            Object::Pod(pod) => Some((Arc::clone(pod), ips(pod))),
            _ => None,
        });
        let spec = PodSpec::default();
        let backends: Vec<Backend<'_>> = pods
            .iter()
            .map(|(pod, ips)| Backend {
                pod,
                ips,
                node: pod.spec.as_ref().unwrap_or(&spec).node_name.as_deref().unwrap_or_default(),
                ready: is_ready(pod),
                ending: pod.metadata.deletion_timestamp.is_some(),
            })
            .collect();
        let has_slices: BTreeSet<(String, String)> = self
            .each(|one| match one {
                Object::EndpointSlice(slice) => {
                    let service = labels::of(&slice.metadata.labels).get(SERVICE_NAME)?.clone();
                    Some((one.namespace().to_owned(), service))
                }
                _ => None,
            })
            .into_iter()
            .collect();
        let made = self.each(|one| match one {
            Object::Service(service) if !has_slices.contains(&(one.namespace().to_owned(), one.name().to_owned())) => {
                Some(services::slices(service, &backends))
            }
            _ => None,
        });
        for slice in made.into_iter().flatten().map(Object::from) {
            self.objects.insert(slice.key(), slice);
        }
    }
}

/// The pod that stands for all of a Deployment.
fn pod_of(deployment: &Deployment) -> Pod {
    let hash = deploy::template_hash(&deployment.spec.template);
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let written = deployment.spec.template.metadata.clone().unwrap_or_default();
    let mut labels = written.labels.unwrap_or_default();
    labels.insert("pod-template-hash".to_owned(), hash.clone());
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}-0")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: written.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                name: format!("{name}-{hash}"),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: deployment.spec.template.spec.clone(),
        status: None,
    }
}

fn addresses(number: u16) -> [String; 2] {
    let [high, low] = number.to_be_bytes();
    [Ipv4Addr::new(10, 244, high, low).to_string(), Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number).to_string()]
}

fn ips(pod: &Pod) -> Vec<String> {
    let all = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    all.into_iter().flatten().map(|one| one.ip.clone()).collect()
}

fn is_ready(pod: &Pod) -> bool {
    let status = PodStatus::default();
    let conditions = pod.status.as_ref().unwrap_or(&status).conditions.iter().flatten();
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}
