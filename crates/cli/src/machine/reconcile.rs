//! The machine's one loop: from what is written and what runs to what is published, routed, started and ended.
//!
//! It is level-triggered: each pass looks at everything and does what is missing. Within a pass the order matters: what
//! is published and where services lead comes before any pod is told to end, so that no new connection goes to it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stillmesh_k8s::gateway::overlay::Overlay;
use stillmesh_k8s::gateway::{Gateway, GatewayClass, class, condition};
use stillmesh_k8s::steering::Order;
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Finding, Kind, Object, ObjectKey, Placed, Severity};
use stillmesh_objects::{Change, Update};

use super::admit::{Admitted, Template, admit};
use super::deploy::{self, Existing, Load};
use super::foreign::ForeignTunnel;
use super::ipam::{PodPool, ServicePool};
use super::pods::plan::{self, Origin, PodPlan};
use super::pods::worker::{self, Assignment, Handle, node_ips, now};
use super::proxy::{self, Services};
use super::publish::{Publisher, is_published};
use super::report::Reporter;
use super::services::{self, Backend, SERVICE_NAME};
use super::state::Machine;
use super::system;
use super::waypoints::{self, Tokens};

/// Annotation with the place where an object was written; the controller names it in what it has to say.
const SOURCE: &str = "stillmesh.io/source";

/// Everything that the loop knows. Owned by one task.
pub struct Reconciler {
    machine: Arc<Machine>,
    publisher: Publisher,
    reporter: Reporter,
    system: Vec<(Pod, PodPlan)>,
    written: BTreeMap<ObjectKey, Placed>,
    /// Of these, orders that came by a command.
    ordered: BTreeSet<ObjectKey>,
    /// The newest admissible version of each.
    good: BTreeMap<ObjectKey, Placed>,
    /// The overlays that waypoints run with.
    overlays: BTreeMap<ObjectKey, Vec<Overlay>>,
    found: Arc<[Finding]>,
    /// What the controller has to say, as text, by severity.
    told: Vec<(Severity, String)>,
    complete: bool,
    pods: BTreeMap<ObjectKey, Entry>,
    pools: Vec<PodPool>,
    addresses: ServicePool,
    /// What leads where, by node: one node may be behind the others after a failure.
    routed: Vec<Services>,
    /// What keeps objects from running.
    troubles: BTreeSet<String>,
    /// What the controller says in statuses.
    statuses: BTreeMap<ObjectKey, Value>,
    /// What statuses of Gateways and their classes say.
    gateways: BTreeMap<ObjectKey, Object>,
    /// By which waypoints are known.
    tokens: Tokens,
    born: BTreeMap<ObjectKey, Birth>,
    made: u64,
}

/// A pod that runs, or did.
struct Entry {
    handle: Handle,
    /// What it was made from, to see when that changes.
    template: Value,
    owner: Option<Owner>,
    made: u64,
    born: Time,
    /// Set by the node agent.
    annotations: BTreeMap<String, String>,
    /// Since when it is to end.
    ending: Option<Time>,
}

/// The Deployment that a pod belongs to.
struct Owner {
    deployment: ObjectKey,
    hash: String,
}

/// When an object came, and how often its content has changed since.
struct Birth {
    uid: String,
    at: Time,
    generation: i64,
    content: u64,
}

/// How a machine is, for `status`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Name of the mesh.
    pub name: String,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// Pods of users that are to run.
    pub pods: usize,
    /// Those that are ready, or have done their work.
    pub ready: usize,
    /// Those that are in the mesh.
    pub captured: usize,
    /// The mesh's own pods.
    pub system_pods: usize,
    /// Those that are ready.
    pub system_ready: usize,
    /// Whether the manifests have been read and everything that they ask for is there.
    pub settled: bool,
    /// Pods that are not ready, and why.
    pub waiting: Vec<String>,
    /// Objects that are refused, or not as they are written now.
    pub refused: usize,
    /// Errors and warnings about manifests.
    pub findings: Vec<String>,
}

impl Reconciler {
    /// A loop over a machine without pods.
    pub(crate) fn new(
        machine: Arc<Machine>,
        reporter: Reporter,
        secret_ttl: &str,
        ztunnel: Option<&ForeignTunnel>,
    ) -> anyhow::Result<Self> {
        let mut system = Vec::new();
        for pod in system::pods(&machine.nodes, secret_ttl, ztunnel)? {
            let plan = plan::plan(&pod, "spec", Origin::System)
                .map_err(|remarks| anyhow::anyhow!("a pod of the machine's own cannot be planned: {remarks:?}"))?;
            system.push((pod, plan));
        }
        Ok(Self {
            pools: machine.nodes.iter().map(|node| PodPool::new(node.index)).collect(),
            machine,
            publisher: Publisher::new(&system::objects_dir())?,
            reporter,
            system,
            written: BTreeMap::new(),
            ordered: BTreeSet::new(),
            good: BTreeMap::new(),
            overlays: BTreeMap::new(),
            found: Arc::default(),
            told: Vec::new(),
            complete: false,
            pods: BTreeMap::new(),
            addresses: ServicePool::default(),
            routed: Vec::new(),
            troubles: BTreeSet::new(),
            statuses: BTreeMap::new(),
            gateways: BTreeMap::new(),
            tokens: Tokens::default(),
            born: BTreeMap::new(),
            made: 0,
        })
    }

    /// Takes over what changed in the manifests.
    pub fn take(&mut self, update: Update) {
        self.complete |= update.complete;
        for change in update.changes {
            match change {
                Change::Set(placed) => drop(self.written.insert(placed.object.key(), placed)),
                Change::Removed(key) => {
                    self.written.remove(&key);
                    // With a namespace goes what is in it; files are their writers' own business.
                    let in_it = |order: &&ObjectKey| key.kind == Kind::Namespace && order.namespace == key.name;
                    let orders: Vec<ObjectKey> = self.ordered.iter().filter(in_it).cloned().collect();
                    orders.iter().for_each(|order| self.forget_order(order));
                }
            }
        }
        for (key, at) in update.moved {
            if let Some(placed) = self.written.get_mut(&key) {
                placed.at = at;
            }
        }
        if let Some(findings) = update.findings {
            self.found = findings;
        }
    }

    /// Takes over what the controller has to say about the objects together.
    pub fn tell(&mut self, findings: &[Value]) {
        self.told.clear();
        for finding in findings {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            let file = finding["at"]["file"].as_str().unwrap_or_default();
            if is_published(file) {
                continue;
            }
            let place = match (finding["at"]["line"].as_u64(), finding["at"]["column"].as_u64()) {
                (Some(line @ 1..), Some(column)) => format!("{file}:{line}:{column}"),
                _ => file.to_owned(),
            };
            let parts = [place, text("object"), text("path"), text("message")];
            let mut line = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
            if !text("hint").is_empty() {
                line.push_str("; ");
                line.push_str(&text("hint"));
            }
            let error = finding["severity"] == "error";
            self.told.push((if error { Severity::Error } else { Severity::Warning }, line));
        }
    }

    /// Sets and removes annotations of a pod. `None` where there is no such pod.
    pub fn annotate(&mut self, namespace: &str, name: &str, changes: BTreeMap<String, Option<String>>) -> Option<()> {
        let entry = self.pods.get_mut(&ObjectKey::new(Kind::Pod, namespace, name))?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(entry.annotations.insert(key, value)),
                None => drop(entry.annotations.remove(&key)),
            }
        }
        Some(())
    }

    /// Sets an object's status. `None` where there is no such object.
    pub fn set_status(&mut self, key: ObjectKey, status: Value) -> Option<()> {
        self.written.contains_key(&key).then(|| drop(self.statuses.insert(key, status)))
    }

    /// Takes in an order that nobody has written into a file.
    pub fn order(&mut self, placed: Placed) -> Result<(), String> {
        let key = placed.object.key();
        if self.written.contains_key(&key) {
            return Err(format!("there is a {key} already"));
        }
        if let Some(problem) = Order::of(&placed.object, system::NAMESPACE).and_then(|order| order.problem) {
            return Err(format!("{key}: {problem}"));
        }
        self.ordered.insert(key.clone());
        self.written.insert(key, placed);
        Ok(())
    }

    /// Ends an order before its time. The error says why not.
    pub fn end_order(&mut self, key: &ObjectKey, by: &str) -> Result<(), String> {
        let Some(placed) = self.written.get_mut(key) else { return Err(format!("there is no {key}")) };
        if !self.ordered.contains(key) {
            return Err(format!("{key} is written in {}: take it out there", placed.at.file));
        }
        let (ended, ended_by) = match &mut placed.object {
            Object::Bypass(order) => {
                let spec = &mut Arc::make_mut(order).spec;
                (&mut spec.ended, &mut spec.ended_by)
            }
            Object::Quarantine(order) => {
                let spec = &mut Arc::make_mut(order).spec;
                (&mut spec.ended, &mut spec.ended_by)
            }
            _ => return Err(format!("{key} is no order")),
        };
        (*ended, *ended_by) = (true, Some(by.to_owned()));
        Ok(())
    }

    /// Forgets an order that has ended. One that is written in a file stays.
    pub fn forget_order(&mut self, key: &ObjectKey) {
        if self.ordered.remove(key) {
            self.written.remove(key);
        }
    }

    /// The objects of a kind.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
        self.publisher.list(kind, namespace)
    }

    /// A pod that runs.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Handle> {
        Some(&self.pods.get(&ObjectKey::new(Kind::Pod, namespace, name))?.handle)
    }

    /// Where the controller answers, once it does.
    pub fn controller(&self) -> Option<std::net::IpAddr> {
        let handle = self.pod(system::NAMESPACE, system::CONTROLLER)?;
        let ready = handle.status.lock().ready.0;
        handle.pod.addresses.filter(|_| ready).map(|addresses| addresses.v4.into())
    }

    /// Tells every pod to end.
    pub fn end_all(&self) {
        for entry in self.pods.values() {
            entry.handle.stop.cancel();
        }
    }

    /// Whether nothing of any pod runs any more.
    pub fn all_gone(&self) -> bool {
        self.pods.values().all(|entry| *entry.handle.gone.borrow())
    }

    /// One pass. Whatever fails is said once; false asks for another pass after a while.
    pub async fn pass(&mut self) -> bool {
        let failure = self.try_pass().await.err().map(|error| format!("{error:#}"));
        let done = failure.is_none();
        self.reporter.failure(failure);
        done && self.troubles.is_empty()
    }

    async fn try_pass(&mut self) -> anyhow::Result<()> {
        if !self.complete {
            return Ok(());
        }
        let machine = Arc::clone(&self.machine);
        let nodes: Vec<String> = machine.nodes.iter().map(|node| node.name.clone()).collect();
        let ipv6 = machine.nodes.iter().all(|node| node.ipv6);
        let mut admitted = admit(&self.written, &self.good, &self.overlays, &mut self.addresses, &nodes, ipv6)?;
        self.good = std::mem::take(&mut admitted.good);
        self.overlays = std::mem::take(&mut admitted.overlays);
        let needed = self.tokens.keep(&admitted.waypoints)?;
        admitted.objects.extend(needed.into_iter().map(|object| (object.key(), object)));
        self.admitted(&admitted);
        self.troubles.clear();
        self.forget_gone();
        self.end_unwanted(&admitted);
        self.deploy(&mut admitted);
        self.start_missing(&mut admitted);
        let objects = self.objects(&admitted)?;
        self.publisher.publish(&objects)?;
        self.route(&objects).await?;
        for entry in self.pods.values().filter(|entry| entry.ending.is_some()) {
            entry.handle.stop.cancel();
        }
        self.report(&admitted);
        Ok(())
    }

    /// Hands the objects to the pods' tasks.
    fn admitted(&self, admitted: &Admitted) {
        if **self.machine.objects.load() != admitted.objects {
            self.machine.objects.store(Arc::new(admitted.objects.clone()));
            self.machine.admitted.notify_waiters();
        }
    }

    /// Removes pods that were told to end and have.
    fn forget_gone(&mut self) {
        let over = |entry: &Entry| entry.ending.is_some() && *entry.handle.gone.borrow();
        let gone: Vec<ObjectKey> = self.pods.iter().filter(|(_, one)| over(one)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            if let Some(entry) = self.pods.remove(&key)
                && let (Some(addresses), Some(pool)) =
                    (entry.handle.pod.addresses, self.pools.get_mut(entry.handle.pod.node))
            {
                pool.give_back(addresses);
            }
        }
    }

    /// Marks pods that are not wanted any more, or not as they are; follows edits of labels and annotations.
    fn end_unwanted(&mut self, admitted: &Admitted) {
        for (key, entry) in &mut self.pods {
            if entry.handle.pod.system || entry.ending.is_some() {
                continue;
            }
            let keep = match &entry.owner {
                None => match admitted.pods.get(key) {
                    Some((pod, _)) => {
                        let same = template(pod) == entry.template;
                        if same {
                            let mut object = (**entry.handle.pod.object.load()).clone();
                            object.metadata.labels.clone_from(&pod.metadata.labels);
                            object.metadata.annotations.clone_from(&pod.metadata.annotations);
                            entry.handle.pod.object.store(Arc::new(object));
                        }
                        same
                    }
                    None => false,
                },
                Some(owner) => admitted.deployments.contains_key(&owner.deployment),
            };
            if !keep {
                entry.ending = Some(now());
            }
        }
    }

    /// Makes and ends pods of Deployments.
    fn deploy(&mut self, admitted: &mut Admitted) {
        let deployments: Vec<(ObjectKey, Template)> =
            admitted.deployments.iter().map(|(key, one)| (key.clone(), one.clone())).collect();
        for (key, Template { deployment, plan }) in deployments {
            let desired = deploy::desired(&deployment);
            let of = |entry: &&Entry| {
                entry.ending.is_none() && entry.owner.as_ref().is_some_and(|owner| owner.deployment == key)
            };
            let existing: Vec<Existing> = self
                .pods
                .values()
                .filter(of)
                .map(|entry| Existing {
                    name: entry.handle.pod.name.clone(),
                    hash: entry.owner.as_ref().map(|owner| owner.hash.clone()).unwrap_or_default(),
                    ready: entry.handle.status.lock().ready.0,
                    made: entry.made,
                })
                .collect();
            let step = deploy::step(&desired, &existing);
            for name in step.end {
                if let Some(entry) = self.pods.get_mut(&ObjectKey::new(Kind::Pod, &key.namespace, &name)) {
                    entry.ending = Some(now());
                }
            }
            // A typing error in the number makes no millions of pods: there are only so many addresses.
            let free: usize = self.pools.iter().map(PodPool::free).sum();
            for _ in 0..usize::try_from(step.make).unwrap_or(usize::MAX).min(free.saturating_add(1)) {
                let name = format!("{}-{}-{}", key.name, desired.hash, deploy::letters(rand::random(), 5));
                let written = deployment.spec.template.metadata.clone().unwrap_or_default();
                let mut labels = written.labels.unwrap_or_default();
                labels.insert("pod-template-hash".to_owned(), desired.hash.clone());
                let pod = Pod {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(key.namespace.to_string()),
                        labels: Some(labels),
                        annotations: written.annotations,
                        owner_references: Some(vec![OwnerReference {
                            api_version: "apps/v1".to_owned(),
                            kind: "ReplicaSet".to_owned(),
                            name: format!("{}-{}", key.name, desired.hash),
                            uid: self.birth(&key, 0).uid.clone(),
                            controller: Some(true),
                            ..OwnerReference::default()
                        }]),
                        ..ObjectMeta::default()
                    },
                    spec: deployment.spec.template.spec.clone(),
                    status: None,
                };
                let hostname = pod.spec.as_ref().map_or(name.clone(), |spec| plan::hostname(spec, &name));
                let plan = PodPlan { hostname, ..plan.clone() };
                let owner = Owner { deployment: key.clone(), hash: desired.hash.clone() };
                self.make(ObjectKey::new(Kind::Pod, &key.namespace, &name), pod, plan, Some(owner), false);
            }
        }
    }

    fn start_missing(&mut self, admitted: &mut Admitted) {
        for (pod, plan) in self.system.clone() {
            let key = Object::from(pod.clone()).key();
            self.make(key, pod, plan, None, true);
        }
        for (key, (pod, plan)) in &admitted.pods {
            self.make(key.clone(), pod.clone(), plan.clone(), None, false);
        }
    }

    /// Makes a pod that is not there yet. One that cannot be made is tried again with the next pass.
    fn make(&mut self, key: ObjectKey, mut pod: Pod, plan: PodPlan, owner: Option<Owner>, system: bool) {
        if self.pods.contains_key(&key) {
            return;
        }
        let node = plan
            .node
            .as_ref()
            .and_then(|wanted| self.machine.nodes.iter().position(|node| node.name == *wanted))
            .unwrap_or_else(|| self.place(owner.as_ref()));
        let addresses = match self.pools.get_mut(node) {
            _ if plan.host_network => None,
            Some(pool) => match pool.take(&format!("{}/{}", key.namespace, key.name)) {
                Some(addresses) => Some(addresses),
                None => {
                    let what = owner.as_ref().map_or(&key, |owner| &owner.deployment);
                    self.troubles.insert(format!("{what}: all addresses of its node are taken; it is tried again"));
                    return;
                }
            },
            None => return,
        };
        let template = template(&pod);
        self.made += 1;
        let uid = new_uid();
        let born = now();
        pod.metadata.uid = Some(uid.clone());
        pod.metadata.creation_timestamp = Some(born.clone());
        pod.metadata.namespace = Some(key.namespace.to_string());
        if let (Some(spec), Some(node)) = (&mut pod.spec, self.machine.nodes.get(node)) {
            spec.node_name = Some(node.name.clone());
            spec.service_account_name = Some(plan.service_account.clone());
        }
        let assignment = Assignment {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            uid,
            node,
            addresses,
            plan,
            system,
            object: arc_swap::ArcSwap::from_pointee(pod),
        };
        match worker::start(&self.machine, assignment) {
            Ok(handle) => {
                let entry = Entry {
                    handle,
                    template,
                    owner,
                    made: self.made,
                    born,
                    annotations: BTreeMap::new(),
                    ending: None,
                };
                self.pods.insert(key, entry);
            }
            Err(error) => {
                let what = owner.as_ref().map_or(&key, |owner| &owner.deployment);
                self.troubles.insert(format!("{what}: {error}; it is tried again"));
                if let (Some(addresses), Some(pool)) = (addresses, self.pools.get_mut(node)) {
                    pool.give_back(addresses);
                }
            }
        }
    }

    fn place(&self, owner: Option<&Owner>) -> usize {
        let mut loads = vec![Load { same: 0, all: 0 }; self.machine.nodes.len()];
        for entry in self.pods.values().filter(|entry| !entry.handle.pod.system && entry.ending.is_none()) {
            if let Some(load) = loads.get_mut(entry.handle.pod.node) {
                load.all += 1;
                let deployment = |owner: &Owner| owner.deployment.clone();
                if owner.is_some() && entry.owner.as_ref().map(deployment) == owner.map(deployment) {
                    load.same += 1;
                }
            }
        }
        deploy::place(&loads)
    }

    /// Everything that is to be published.
    fn objects(&mut self, admitted: &Admitted) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
        let machine = Arc::clone(&self.machine);
        let mut objects = BTreeMap::new();
        for node in &machine.nodes {
            let object = system::node(node)?;
            objects.insert(object.key(), object);
        }
        for (key, object) in &admitted.objects {
            let object = self.dressed(key, object.clone(), admitted)?;
            objects.insert(key.clone(), object);
        }
        waypoints::own(&mut objects);
        let pods: Vec<(ObjectKey, Pod, Vec<String>, usize, bool, bool)> = self
            .pods
            .iter()
            .map(|(key, entry)| {
                let (pod, ips, ready) = self.pod_object(key, entry);
                (key.clone(), pod, ips, entry.handle.pod.node, ready, entry.ending.is_some())
            })
            .collect();
        let backends: Vec<Backend<'_>> = pods
            .iter()
            .map(|(_, pod, ips, node, ready, ending)| Backend {
                pod,
                ips,
                node: machine.nodes.get(*node).map_or("", |node| node.name.as_str()),
                ready: *ready,
                ending: *ending,
            })
            .collect();
        let mut made = Vec::new();
        for object in objects.values() {
            if let Object::Service(service) = object {
                made.extend(services::slices(service, &backends).into_iter().map(Object::from));
            }
        }
        objects.extend(made.into_iter().map(|slice| (slice.key(), slice)));
        objects.extend(pods.into_iter().map(|(key, pod, ..)| (key, Object::from(pod))));
        let known = |key: &ObjectKey| objects.contains_key(key) || self.written.contains_key(key);
        self.born.retain(|key, _| known(key));
        self.statuses.retain(|key, _| known(key));
        self.gateways.retain(|key, _| known(key));
        Ok(objects)
    }

    /// An object with what the API server adds to it.
    fn dressed(&mut self, key: &ObjectKey, object: Object, admitted: &Admitted) -> anyhow::Result<Object> {
        let mut content = serde_json::to_value(&object)?;
        if let Some(map) = content.as_object_mut() {
            map.remove("metadata");
            map.remove("status");
        }
        let mut hasher = std::hash::DefaultHasher::new();
        content.to_string().hash(&mut hasher);
        let birth = self.birth(key, hasher.finish());
        let (uid, at, generation) = (birth.uid.clone(), birth.at.clone(), birth.generation);
        let mut object = object;
        let metadata = object.metadata_mut();
        metadata.uid = Some(uid);
        metadata.creation_timestamp = Some(at);
        metadata.generation = Some(generation);
        if let Some(placed) = self.written.get(key) {
            let place = format!("{}:{}:{}", placed.at.file, placed.at.line, placed.at.column);
            metadata.annotations.get_or_insert_default().insert(SOURCE.to_owned(), place);
        }
        Ok(match object {
            Object::Gateway(gateway) => self.with_gateway_status(key, gateway, admitted),
            Object::GatewayClass(class) => self.with_class_status(key, class),
            other => self.with_status(key, other, admitted),
        })
    }

    /// A Gateway with its status; what was said of it before keeps its times.
    fn with_gateway_status(&mut self, key: &ObjectKey, mut gateway: Arc<Gateway>, admitted: &Admitted) -> Object {
        let deployment = waypoints::key_of(Kind::Deployment, &gateway);
        let runs = admitted.deployments.contains_key(&deployment) && admitted.runs_waypoint(&gateway);
        let refused = admitted.refused.get(key);
        if runs || refused.is_some() {
            let of = |entry: &&Entry| {
                entry.ending.is_none() && entry.owner.as_ref().is_some_and(|owner| owner.deployment == deployment)
            };
            let ready = self.pods.values().filter(of).filter(|one| one.handle.status.lock().ready.0).count();
            let service = admitted.objects.get(&waypoints::key_of(Kind::Service, &gateway)).filter(|_| runs);
            let mut progress = waypoints::progress(service, ready);
            progress.parameters = refused.cloned();
            let gateway = Arc::make_mut(&mut gateway);
            if let Some(Object::Gateway(before)) = self.gateways.get(key) {
                gateway.status.clone_from(&before.status);
            }
            if let Some(status) = condition::gateway_status(gateway, &progress, &Mesh::default(), &rfc3339()) {
                gateway.status = Some(status);
            }
        }
        self.gateways.insert(key.clone(), Object::Gateway(Arc::clone(&gateway)));
        Object::Gateway(gateway)
    }

    fn with_class_status(&mut self, key: &ObjectKey, mut class: Arc<GatewayClass>) -> Object {
        if class::is_waypoint(&key.name, Some(&class)) {
            let class = Arc::make_mut(&mut class);
            if let Some(Object::GatewayClass(before)) = self.gateways.get(key) {
                class.status.clone_from(&before.status);
            }
            if let Some(status) = condition::class_status(class, &rfc3339()) {
                class.status = Some(status);
            }
        }
        self.gateways.insert(key.clone(), Object::GatewayClass(Arc::clone(&class)));
        Object::GatewayClass(class)
    }

    fn with_status(&self, key: &ObjectKey, object: Object, admitted: &Admitted) -> Object {
        let status = self.statuses.get(key);
        macro_rules! with {
            ($kind:ident($object:ident)) => {{
                let mut object = $object;
                Arc::make_mut(&mut object).status = status.and_then(read);
                Object::$kind(object)
            }};
        }
        match object {
            Object::AuthorizationPolicy(one) => with!(AuthorizationPolicy(one)),
            Object::PeerAuthentication(one) => with!(PeerAuthentication(one)),
            Object::RequestAuthentication(one) => with!(RequestAuthentication(one)),
            Object::GrpcRoute(one) => with!(GrpcRoute(one)),
            Object::HttpRoute(one) => with!(HttpRoute(one)),
            Object::TlsRoute(one) => with!(TlsRoute(one)),
            Object::TcpRoute(one) => with!(TcpRoute(one)),
            Object::VirtualService(one) => with!(VirtualService(one)),
            Object::DestinationRule(one) => with!(DestinationRule(one)),
            Object::Telemetry(one) => with!(Telemetry(one)),
            Object::Bypass(one) => with!(Bypass(one)),
            Object::Quarantine(one) => with!(Quarantine(one)),
            Object::Service(mut service) => {
                if let Some(conditions) = status.and_then(|status| read(status.get("conditions")?)) {
                    Arc::make_mut(&mut service).status.get_or_insert_default().conditions = Some(conditions);
                }
                Object::Service(service)
            }
            Object::Deployment(mut deployment) if admitted.deployments.contains_key(key) => {
                let of = |entry: &&Entry| {
                    entry.ending.is_none() && entry.owner.as_ref().is_some_and(|owner| owner.deployment == *key)
                };
                let count = |number: usize| Some(i32::try_from(number).unwrap_or(i32::MAX));
                let all: Vec<_> = self.pods.values().filter(of).collect();
                let hash = deploy::template_hash(&deployment.spec.template);
                let status = Arc::make_mut(&mut deployment).status.get_or_insert_default();
                status.replicas = count(all.len());
                status.ready_replicas = count(all.iter().filter(|one| one.handle.status.lock().ready.0).count());
                status.available_replicas = status.ready_replicas;
                let current = |one: &&&Entry| one.owner.as_ref().is_some_and(|owner| owner.hash == hash);
                status.updated_replicas = count(all.iter().filter(current).count());
                Object::Deployment(deployment)
            }
            other => other,
        }
    }

    fn birth(&mut self, key: &ObjectKey, content: u64) -> &Birth {
        let birth =
            self.born.entry(key.clone()).or_insert_with(|| Birth { uid: new_uid(), at: now(), generation: 1, content });
        if birth.content != content && content != 0 {
            if birth.content != 0 {
                birth.generation += 1;
            }
            birth.content = content;
        }
        birth
    }

    /// A pod as published, with its addresses and whether it takes traffic.
    fn pod_object(&self, key: &ObjectKey, entry: &Entry) -> (Pod, Vec<String>, bool) {
        let handle = &entry.handle;
        let mut pod = (**handle.pod.object.load()).clone();
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.extend(entry.annotations.iter().map(|(key, value)| (key.clone(), value.clone())));
        if let Some(placed) = self.written.get(key) {
            let place = format!("{}:{}:{}", placed.at.file, placed.at.line, placed.at.column);
            annotations.insert(SOURCE.to_owned(), place);
        }
        pod.metadata.creation_timestamp = Some(entry.born.clone());
        pod.metadata.deletion_timestamp.clone_from(&entry.ending);
        let status = handle.status.lock();
        let node = self.machine.nodes.get(handle.pod.node);
        let ips = node.map(|node| handle.pod.ips(node)).unwrap_or_default();
        let host = node.map(node_ips).unwrap_or_default();
        pod.status = Some(status.write(&ips, &host));
        let shown = if status.networked { ips } else { Vec::new() };
        (pod, shown, status.ready.0)
    }

    /// Makes service addresses lead where the slices say, on every node.
    async fn route(&mut self, objects: &BTreeMap<ObjectKey, Object>) -> anyhow::Result<()> {
        let mut slices: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
        for object in objects.values() {
            if let Object::EndpointSlice(slice) = object
                && let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME))
            {
                slices.entry((object.namespace().to_owned(), service.clone())).or_default().push(slice);
            }
        }
        let all = objects.values().filter_map(|object| match object {
            Object::Service(service) => Some(&**service),
            _ => None,
        });
        let wanted = services::frontends(all, &slices);
        self.routed.resize(self.machine.nodes.len(), Services::new());
        for (node, routed) in self.machine.nodes.iter().zip(&mut self.routed) {
            if *routed == wanted {
                continue;
            }
            let batch = proxy::plan(routed, &wanted);
            if !batch.is_empty() {
                let applied = node.thread.run(move || stillmesh_netlink::nft::apply(&batch)).await?;
                applied.with_context(|| format!("writing the service addresses of {}", node.name))?;
            }
            routed.clone_from(&wanted);
        }
        Ok(())
    }

    fn report(&mut self, admitted: &Admitted) {
        let mut findings: BTreeSet<(Severity, String)> =
            self.found.iter().chain(&admitted.findings).map(|one| (one.severity, one.to_string())).collect();
        findings.extend(self.told.iter().cloned());
        findings.extend(self.troubles.iter().map(|trouble| (Severity::Error, trouble.clone())));
        self.reporter.findings(findings);
        for (key, entry) in &self.pods {
            let status = entry.handle.status.lock();
            let node = self.machine.nodes.get(entry.handle.pod.node);
            let ip = node.map(|node| entry.handle.pod.ips(node)).unwrap_or_default();
            let place =
                format!("{} {}", node.map_or("", |node| node.name.as_str()), ip.first().map_or("", String::as_str));
            self.reporter.pod(key, entry.handle.pod.system, entry.ending.is_some(), &status, &place);
        }
        let there: BTreeSet<ObjectKey> = self.pods.keys().cloned().collect();
        self.reporter.gone(&there);
        let summary = self.summary();
        self.reporter.settled(&summary);
    }

    /// How the machine is.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            name: self.reporter.name().to_owned(),
            nodes: self.machine.nodes.iter().map(|node| node.name.clone()).collect(),
            pods: 0,
            ready: 0,
            captured: 0,
            system_pods: 0,
            system_ready: 0,
            settled: self.complete,
            waiting: Vec::new(),
            refused: self.reporter.errors(),
            findings: self.reporter.shown(),
        };
        for (key, entry) in &self.pods {
            let status = entry.handle.status.lock();
            let ready = status.ready.0 || status.phase == super::pods::status::Phase::Succeeded;
            let (pods, readies) = if entry.handle.pod.system {
                (&mut summary.system_pods, &mut summary.system_ready)
            } else {
                (&mut summary.pods, &mut summary.ready)
            };
            *pods += 1;
            *readies += usize::from(ready && entry.ending.is_none());
            if entry.annotations.get("ambient.istio.io/redirection").is_some_and(|value| value == "enabled") {
                summary.captured += 1;
            }
            if entry.ending.is_some() {
                summary.waiting.push(format!("{}/{}: is ending", key.namespace, key.name));
            } else if !ready {
                summary.waiting.push(format!("{}/{}: {}", key.namespace, key.name, status.why()));
            }
        }
        summary.settled &= summary.waiting.is_empty() && self.troubles.is_empty();
        summary
    }
}

/// What a pod was made from: everything but what may be edited in place.
fn template(pod: &Pod) -> Value {
    serde_json::to_value(&pod.spec).unwrap_or_default()
}

/// Now, as conditions say it.
/// A part of what the controller has sent; `None` where it is not what it should be.
fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

fn rfc3339() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

fn new_uid() -> String {
    let [a, b, c, d, e] = [32, 16, 16, 16, 48].map(|bits: u32| rand::random::<u64>() >> (64 - bits));
    format!("{a:08x}-{b:04x}-4{:03x}-{:04x}-{e:012x}", c & 0xfff, d & 0x3fff | 0x8000)
}

/// How long pods may take to end when the machine does.
pub const LAST: Duration = Duration::from_secs(4);
