//! Objects to resources, incrementally: one changed object is joined with what it concerns and nothing else, and only
//! resources that come out different are sent.
//!
//! The state is the objects ([`World`]), what was built from them, and what is dirty in between. Building everything
//! anew gives the same as following the changes; a test compares.

mod findings;
mod running;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service as KubeService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use stillmesh_core::model::{Policy, PolicyKey, PortMapping, Service, ServiceKey, Str, Workload, WorkloadUid};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, StatusCondition};
use stillmesh_k8s::labels;
use stillmesh_k8s::mesh_config::{self, MeshConfig};
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::translate::{self, Attached, Level, Mesh};
use stillmesh_k8s::{Kind, Object, ObjectKey, Position};
use stillmesh_objects as objects;

pub use running::Running;
use world::{Name, World, ends};

/// A condition to be written into an object's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whose.
    pub object: ObjectKey,
    /// What is said; `None` when the object is gone and nothing is to be written any more.
    pub condition: Option<Condition>,
    /// The generation that it is about.
    pub generation: Option<i64>,
    /// The conditions that the object has.
    pub existing: Vec<StatusCondition>,
}

/// What came of a batch of changes.
#[derive(Debug, Default)]
pub struct Built {
    /// Resources that changed: policies before the workloads that name them, removals last.
    pub changes: Vec<Change>,
    /// What policies' statuses should say.
    pub verdicts: Vec<Verdict>,
}

/// Follows the objects and builds resources from them.
#[derive(Debug)]
pub struct Builder {
    /// As configured, before ConfigMap `istio` is read.
    base: Mesh,
    mesh: Mesh,
    mesh_config: MeshConfig,
    /// Fixed once nodes have been served: identities do not change their trust domain at run time.
    trust_domain_fixed: bool,
    world: World,
    dirty: Dirty,
    running: Arc<Running>,
    places: HashMap<ObjectKey, Position>,
    workloads: HashMap<Name, Arc<Workload>>,
    slice_workloads: HashMap<Name, BTreeMap<WorkloadUid, Arc<Workload>>>,
    services: HashMap<Name, Arc<Service>>,
    policies: HashMap<PolicyKey, Arc<Policy>>,
}

/// What must be built again.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<Name>,
    services: BTreeSet<Name>,
    slices: BTreeSet<Name>,
    policies: BTreeSet<Name>,
    peers: BTreeSet<Name>,
    mesh: bool,
}

impl Builder {
    /// Nothing known yet.
    pub fn new(base: Mesh) -> Self {
        Self {
            mesh: base.clone(),
            base,
            mesh_config: MeshConfig::default(),
            trust_domain_fixed: false,
            world: World::default(),
            dirty: Dirty::default(),
            running: Arc::default(),
            places: HashMap::new(),
            workloads: HashMap::new(),
            slice_workloads: HashMap::new(),
            services: HashMap::new(),
            policies: HashMap::new(),
        }
    }

    /// What holds for the whole mesh now.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// From now on the trust domain stays as it is: certificates are issued in it.
    pub fn fix_trust_domain(&mut self) {
        self.trust_domain_fixed = true;
    }

    /// Who runs where; follows this builder.
    pub fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Takes in changes of objects and builds what they concern.
    pub fn apply(&mut self, update: &objects::Update) -> Built {
        for (key, at) in &update.moved {
            if self.places.contains_key(key) {
                self.places.insert(key.clone(), at.clone());
            }
        }
        for change in &update.changes {
            match change {
                objects::Change::Set(placed) => {
                    let key = placed.object.key();
                    if located(key.kind) {
                        self.places.insert(key.clone(), findings::origin(placed));
                    }
                    self.take(&key, Some(&placed.object));
                }
                objects::Change::Removed(key) => {
                    self.places.remove(key);
                    self.take(key, None);
                }
            }
        }
        self.build()
    }

    fn take(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let name: Name = (key.namespace.clone(), key.name.clone());
        macro_rules! content {
            ($kind:ident) => {
                match object {
                    Some(Object::$kind(object)) => Some(object.clone()),
                    _ => None,
                }
            };
        }
        match key.kind {
            Kind::Pod => {
                let pod = content!(Pod);
                let old = self.world.replace_pod(&name, pod.clone());
                self.running.replace(&name, old.as_deref(), pod.as_deref());
                self.dirty.pods.insert(name);
            }
            Kind::Service => self.take_service(name, content!(Service)),
            Kind::EndpointSlice => self.take_slice(name, content!(EndpointSlice)),
            Kind::AuthorizationPolicy => self.take_policy(name, content!(AuthorizationPolicy)),
            Kind::PeerAuthentication => self.take_peer(name, content!(PeerAuthentication)),
            Kind::Namespace => {
                let namespace = key.name.clone();
                match content!(Namespace) {
                    Some(one) => self.world.namespaces.insert(namespace.clone(), one),
                    None => self.world.namespaces.remove(&namespace),
                };
                self.dirty.services.extend(self.world.services.names_of(&namespace));
            }
            Kind::Node => {
                self.dirty.pods.extend(self.world.pods_on(&key.name).cloned());
                match content!(Node) {
                    Some(one) => self.world.nodes.insert(key.name.clone(), one),
                    None => self.world.nodes.remove(&key.name),
                };
            }
            Kind::ConfigMap if key.namespace == self.base.root_namespace && *key.name == *mesh_config::CONFIG_MAP => {
                self.world.mesh_config = content!(ConfigMap);
                self.dirty.mesh = true;
            }
            Kind::ConfigMap | Kind::ServiceAccount | Kind::Secret | Kind::Deployment => {}
        }
    }

    fn take_service(&mut self, name: Name, service: Option<Arc<KubeService>>) {
        let old = self.world.services.replace(&name, service.clone());
        for service in old.iter().chain(&service) {
            let served = self.world.pods.of(&name.0).filter(|(_, pod)| translate::pod_serves(service, pod));
            self.dirty.pods.extend(served.map(|(pod, _)| (name.0.clone(), pod.clone())));
        }
        for slice in self.world.slices_of_service(&name) {
            self.dirty.slices.insert(slice.clone());
            self.dirty.pods.extend(self.world.slices.get(slice).into_iter().flat_map(|one| ends(slice, one).1));
        }
        self.dirty.services.insert(name);
    }

    fn take_slice(&mut self, name: Name, slice: Option<Arc<EndpointSlice>>) {
        let old = self.world.replace_slice(&name, slice.clone());
        for slice in old.iter().chain(&slice) {
            self.dirty.pods.extend(ends(&name, slice).1);
        }
        self.dirty.slices.insert(name);
    }

    fn take_policy(&mut self, name: Name, policy: Option<Arc<AuthorizationPolicy>>) {
        let old = self.world.policies.replace(&name, policy.clone());
        for policy in old.iter().chain(&policy) {
            if let Some(selector) = &policy.spec.selector {
                self.touch_pods(&name.0, &selector.match_labels);
            }
        }
        self.dirty.policies.insert(name);
    }

    fn take_peer(&mut self, name: Name, peer: Option<Arc<PeerAuthentication>>) {
        let old = self.world.peers.replace(&name, peer.clone());
        for peer in old.iter().chain(&peer) {
            match translate::level(peer, &self.mesh) {
                Level::Mesh => {
                    self.dirty.pods.extend(self.world.pods.all().map(|(pod, _)| pod));
                    self.dirty.peers.extend(self.world.peers.all().map(|(peer, _)| peer));
                }
                Level::Namespace => {
                    self.dirty.pods.extend(self.world.pods.names_of(&name.0));
                    self.dirty.peers.extend(self.world.peers.names_of(&name.0));
                }
                Level::Workload => {
                    let none = labels::Labels::new();
                    let wanted = peer.spec.selector.as_ref().map_or(&none, |selector| &selector.match_labels);
                    self.touch_pods(&name.0, wanted);
                }
                Level::Nothing => {}
            }
        }
        self.dirty.peers.insert(name);
    }

    /// Marks the pods that a policy of this namespace selects.
    fn touch_pods(&mut self, namespace: &Str, wanted: &labels::Labels) {
        let selects = |pod: &Pod| labels::match_all(wanted, labels::of(&pod.metadata.labels));
        if *namespace == self.mesh.root_namespace {
            let pods = self.world.pods.all().filter(|(_, pod)| selects(pod)).map(|(name, _)| name);
            self.dirty.pods.extend(pods);
        } else {
            let pods = self.world.pods.of(namespace).filter(|(_, pod)| selects(pod));
            self.dirty.pods.extend(pods.map(|(name, _)| (namespace.clone(), name.clone())));
        }
    }

    fn build(&mut self) -> Built {
        self.build_mesh();
        let dirty = std::mem::take(&mut self.dirty);
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        let mut verdicts = Vec::new();
        self.build_policies(&dirty, &mut set, &mut removed, &mut verdicts);
        let mut gone = Vec::new();
        for name in &dirty.services {
            self.build_service(name, &mut set, &mut gone);
        }
        let mut ended = Vec::new();
        let mut strict = HashMap::new();
        for name in &dirty.slices {
            self.build_slice(name, &mut set, &mut ended);
        }
        for name in &dirty.pods {
            self.build_pod(name, &mut strict, &mut set, &mut ended);
        }
        // Nobody is left without a policy or a service that something still names.
        let changes = set.into_iter().chain(ended).chain(gone).chain(removed).collect();
        Built { changes, verdicts }
    }

    fn build_mesh(&mut self) {
        if !std::mem::take(&mut self.dirty.mesh) {
            return;
        }
        let key = ObjectKey::new(Kind::ConfigMap, &self.base.root_namespace, mesh_config::CONFIG_MAP);
        let nowhere = Position::file("");
        let at = self.places.get(&key).unwrap_or(&nowhere);
        self.mesh_config = self.world.mesh_config.as_deref().map(|map| mesh_config::read(map, at)).unwrap_or_default();
        let mut mesh = self.base.clone();
        if let Some(root) = &self.mesh_config.root_namespace {
            mesh.root_namespace = root.clone();
        }
        if let Some(domain) = &self.mesh_config.trust_domain {
            mesh.trust_domain = domain.clone();
        }
        if self.trust_domain_fixed {
            if mesh.trust_domain != self.mesh.trust_domain {
                self.mesh_config.findings.push(findings::needs_restart(&key, at));
            }
            mesh.trust_domain = self.mesh.trust_domain.clone();
        }
        if mesh != self.mesh {
            self.mesh = mesh;
            self.dirty.pods.extend(self.world.pods.all().map(|(name, _)| name));
            self.dirty.services.extend(self.world.services.all().map(|(name, _)| name));
            self.dirty.slices.extend(self.world.slices.all().map(|(name, _)| name));
            self.dirty.policies.extend(self.world.policies.all().map(|(name, _)| name));
            self.dirty.peers.extend(self.world.peers.all().map(|(name, _)| name));
        }
    }

    fn build_policies(
        &mut self,
        dirty: &Dirty,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
        verdicts: &mut Vec<Verdict>,
    ) {
        for name in &dirty.policies {
            let (namespace, own) = name;
            let written = self.world.policies.get(name);
            let answer = written.map(|written| translate::authorization(written, &self.mesh));
            verdicts.push(Verdict {
                object: ObjectKey::new(Kind::AuthorizationPolicy, namespace, own),
                condition: answer.as_ref().and_then(|answer| answer.condition.clone()),
                generation: written.and_then(|written| written.metadata.generation),
                existing: written
                    .and_then(|written| written.status.as_ref())
                    .map(|status| status.conditions.clone())
                    .unwrap_or_default(),
            });
            let policy = answer.and_then(|answer| answer.policy);
            self.publish_policy(PolicyKey::new(namespace.clone(), own.clone()), policy, set, removed);
        }
        for name in &dirty.peers {
            let strict = self.parent_is_strict(&name.0);
            let policy = self.world.peers.get(name).and_then(|peer| translate::port_policy(peer, strict, &self.mesh));
            let key = translate::port_policy_key(&name.0, &name.1);
            self.publish_policy(key, policy, set, removed);
        }
        if !dirty.peers.is_empty() {
            let key = translate::static_strict_key(&self.mesh);
            let others: Vec<PolicyKey> =
                self.policies.keys().filter(|one| one.name == key.name && **one != key).cloned().collect();
            for other in others {
                self.publish_policy(other, None, set, removed);
            }
            let policy = (!self.world.peers.is_empty()).then(|| translate::static_strict_policy(&self.mesh));
            self.publish_policy(key, policy, set, removed);
        }
    }

    fn publish_policy(
        &mut self,
        key: PolicyKey,
        policy: Option<Policy>,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) {
        match policy {
            Some(policy) if self.policies.get(&key).is_none_or(|old| **old != policy) => {
                let policy = Arc::new(policy);
                self.policies.insert(key, Arc::clone(&policy));
                set.push(Change::Policy(policy));
            }
            Some(_) => {}
            None => {
                if self.policies.remove(&key).is_some() {
                    removed.push(Change::PolicyRemoved(key));
                }
            }
        }
    }

    fn build_service(&mut self, name: &Name, set: &mut Vec<Change>, gone: &mut Vec<Change>) {
        let namespace: Option<&Namespace> = self.world.namespaces.get(&name.0).map(|one| &**one);
        let service =
            self.world.services.get(name).and_then(|service| translate::service(service, namespace, &self.mesh));
        match service {
            Some(service) if self.services.get(name).is_none_or(|old| **old != service) => {
                let service = Arc::new(service);
                self.services.insert(name.clone(), Arc::clone(&service));
                set.push(Change::Service(service));
            }
            Some(_) => {}
            None => {
                if let Some(old) = self.services.remove(name) {
                    gone.push(Change::ServiceRemoved(old.key.clone()));
                }
            }
        }
    }

    fn build_slice(&mut self, name: &Name, set: &mut Vec<Change>, ended: &mut Vec<Change>) {
        let mut found = BTreeMap::new();
        if let Some(slice) = self.world.slices.get(name)
            && let Some(service) = self.service_of_slice(name, slice)
        {
            let services = vec![service];
            for (endpoint, addresses) in translate::slice_endpoints(slice).others {
                if let Some(one) = translate::slice_workload(slice, endpoint, addresses, services.clone(), &self.mesh) {
                    found.insert(one.uid.clone(), Arc::new(one));
                }
            }
        }
        let before = self.slice_workloads.remove(name).unwrap_or_default();
        let changed = found.iter().filter(|(uid, one)| before.get(*uid) != Some(*one));
        set.extend(changed.map(|(_, one)| Change::Workload(Arc::clone(one))));
        ended.extend(before.into_keys().filter(|uid| !found.contains_key(uid)).map(Change::WorkloadRemoved));
        if !found.is_empty() {
            self.slice_workloads.insert(name.clone(), found);
        }
    }

    /// The service whose endpoints a slice lists, where they are not picked by a selector.
    fn service_of_slice(&self, name: &Name, slice: &EndpointSlice) -> Option<(ServiceKey, Vec<PortMapping>)> {
        let service_name: Name = (name.0.clone(), translate::slice_service(slice)?.into());
        let service = self.world.services.get(&service_name)?;
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName")
            || spec.selector.as_ref().is_some_and(|labels| !labels.is_empty())
        {
            return None;
        }
        let key = translate::service_key(&service_name.0, &service_name.1, &self.mesh);
        Some((key, translate::slice_ports(service, slice)))
    }

    fn build_pod(
        &mut self,
        name: &Name,
        strict: &mut HashMap<Str, bool>,
        set: &mut Vec<Change>,
        ended: &mut Vec<Change>,
    ) {
        let workload = self.world.pods.get(name).and_then(|pod| {
            let node = world::node_of(pod).and_then(|node| self.world.nodes.get(node));
            let strict = *strict.entry(name.0.clone()).or_insert_with(|| self.parent_is_strict(&name.0));
            let attached =
                Attached { services: self.services_of(name, pod), policies: self.policies_of(name, pod, strict) };
            translate::workload(pod, node.map(|node| &**node), attached, &self.mesh)
        });
        match workload {
            Some(workload) if self.workloads.get(name).is_none_or(|old| **old != workload) => {
                let workload = Arc::new(workload);
                self.workloads.insert(name.clone(), Arc::clone(&workload));
                set.push(Change::Workload(workload));
            }
            Some(_) => {}
            None => {
                if let Some(old) = self.workloads.remove(name) {
                    ended.push(Change::WorkloadRemoved(old.uid.clone()));
                }
            }
        }
    }

    fn services_of(&self, name: &Name, pod: &Pod) -> Vec<(ServiceKey, Vec<PortMapping>)> {
        let picked = self.world.services.of(&name.0).filter(|(_, service)| translate::pod_serves(service, pod)).map(
            |(service_name, service)| {
                let key = translate::service_key(&name.0, service_name, &self.mesh);
                (key, translate::endpoint_ports(service, pod))
            },
        );
        let listed = self
            .world
            .slices_of_pod(name)
            .filter_map(|slice| self.service_of_slice(slice, self.world.slices.get(slice)?));
        let mut services: BTreeMap<ServiceKey, Vec<PortMapping>> = BTreeMap::new();
        for (key, ports) in picked.chain(listed) {
            // Slices of one service may each list a part of its ports.
            let merged = services.entry(key).or_default();
            merged.extend(ports);
            merged.sort_by_key(|port| port.service_port);
            merged.dedup_by_key(|port| port.service_port);
        }
        services.into_iter().collect()
    }

    fn policies_of(&self, name: &Name, pod: &Pod, strict: bool) -> Vec<PolicyKey> {
        let pod_labels = labels::of(&pod.metadata.labels);
        let root = &self.mesh.root_namespace;
        let elsewhere = (name.0 != *root).then_some(root);
        let mut policies: Vec<PolicyKey> = [&name.0]
            .into_iter()
            .chain(elsewhere)
            .flat_map(|namespace| self.world.policies.of(namespace).map(move |(own, policy)| (namespace, own, policy)))
            .filter(|(_, _, policy)| {
                policy.spec.selector.as_ref().is_some_and(|one| labels::match_all(&one.match_labels, pod_labels))
            })
            .map(|(namespace, own, _)| PolicyKey::new(namespace.clone(), own.clone()))
            .filter(|key| self.policies.contains_key(key))
            .collect();
        let peers = self.world.peers.of(&name.0).map(|(_, peer)| &**peer);
        let selecting = peers.filter(|peer| translate::level(peer, &self.mesh) == Level::Workload);
        policies.extend(translate::attached_policy(pod_labels, strict, selecting, &self.mesh));
        policies.sort();
        policies
    }

    fn parent_is_strict(&self, namespace: &Str) -> bool {
        let of_level = |namespace: &Str, level: Level| {
            let peers = self.world.peers.of(namespace).map(|(_, peer)| &**peer);
            translate::oldest(peers.filter(|peer| translate::level(peer, &self.mesh) == level))
        };
        let mesh = of_level(&self.mesh.root_namespace, Level::Mesh);
        translate::parent_is_strict(mesh, of_level(namespace, Level::Namespace))
    }

    /// Everything that is published, in no order: for tests and dumps.
    pub fn published(&self) -> impl Iterator<Item = Change> {
        let slices = self.slice_workloads.values().flat_map(BTreeMap::values);
        let policies = self.policies.values().map(|one| Change::Policy(Arc::clone(one)));
        let services = self.services.values().map(|one| Change::Service(Arc::clone(one)));
        let workloads = self.workloads.values().chain(slices).map(|one| Change::Workload(Arc::clone(one)));
        policies.chain(services).chain(workloads)
    }
}

/// Kinds whose place is told in findings.
fn located(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::ConfigMap | Kind::Service | Kind::Namespace
    )
}

#[cfg(test)]
mod tests;
