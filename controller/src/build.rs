//! Objects to resources, incrementally: one changed object is joined with what it concerns and nothing else, and only
//! resources that come out different are sent.
//!
//! The state is the objects, what was built from them, and what is dirty in between. Building everything
//! anew gives the same as following the changes; a test compares.

mod accesses;
mod destinations;
mod enrolments;
mod findings;
mod join;
mod labelled;
mod made;
mod quarantine;
mod routes;
mod running;
mod steering;
mod waypoints;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service as KubeService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use stillmesh_core::model::access::AccessKind;
use stillmesh_core::model::{Policy, PolicyKey, Service, Str, Workload, WorkloadUid};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::Named;
use stillmesh_k8s::gateway::condition::Said;
use stillmesh_k8s::gateway::http_route::RouteParentStatus;
use stillmesh_k8s::gateway::{Gateway, class, generate};
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, StatusCondition};
use stillmesh_k8s::labels;
use stillmesh_k8s::mesh_config::{self, MeshConfig};
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::translate::{self, Level, Mesh};
use stillmesh_k8s::unusable::LastGood;
use stillmesh_k8s::{Kind, Object, ObjectKey, Position, Unusable};
use stillmesh_objects as objects;

pub use enrolments::{Agent, Enrolments, Member, Members, OutBy};
pub use findings::origin;
pub use made::{About, Made};
pub use running::{Place, Proxy, Role, Running, Unnamed};
pub use steering::Steered;
use steering::Steering;
use world::{Name, World, ends};

/// A condition to be written into an object's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whose.
    pub object: ObjectKey,
    /// What is said; `None` when the object is gone and nothing is to be written any more.
    pub condition: Option<Condition>,
    /// What is said no more: the type of a condition that the object has.
    pub retracted: Option<&'static str>,
    /// The generation that it is about.
    pub generation: Option<i64>,
    /// The version of the object that was read.
    pub version: Option<String>,
    /// The conditions that the object has.
    pub existing: Vec<StatusCondition>,
    /// What is said to a route's parents.
    pub parents: Option<Parents>,
    /// There is no such object any more.
    pub gone: bool,
    /// What is to be written of an order.
    pub steered: Option<Steered>,
}

impl Verdict {
    /// Says nothing yet of an object, which has this metadata (`None`: it is gone) and these conditions.
    fn new(object: ObjectKey, metadata: Option<&ObjectMeta>, existing: Vec<StatusCondition>) -> Self {
        Self {
            object,
            condition: None,
            retracted: None,
            generation: metadata.and_then(|metadata| metadata.generation),
            version: metadata.and_then(|metadata| metadata.resource_version.clone()),
            existing,
            parents: None,
            gone: metadata.is_none(),
            steered: None,
        }
    }
}

/// What is to be written into a route's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Parents {
    /// What is said to each of its parents that is a Service or a waypoint of ours.
    pub said: Vec<Said>,
    /// What is there.
    pub existing: Vec<RouteParentStatus>,
}

/// What came of a batch of changes.
#[derive(Debug, Default)]
pub struct Built {
    /// Resources that changed: policies before the workloads that name them, removals last.
    pub changes: Vec<Change>,
    /// What statuses of policies, services and routes should say.
    pub verdicts: Vec<Verdict>,
    /// What was made of the objects that were looked at again.
    pub made: Vec<Made>,
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
    enrolments: Arc<Enrolments>,
    /// The initial objects have been taken in.
    is_complete: bool,
    places: HashMap<ObjectKey, Position>,
    /// Policies whose newest version cannot be read. What stands for them, or their last good version, is among the
    /// objects.
    unusable: HashMap<ObjectKey, (Unusable, LastGood)>,
    workloads: HashMap<Name, Arc<Workload>>,
    slice_workloads: HashMap<Name, BTreeMap<WorkloadUid, Arc<Workload>>>,
    services: HashMap<Name, Arc<Service>>,
    policies: HashMap<PolicyKey, Arc<Policy>>,
    steering: Steering,
}

/// What must be built again.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<Name>,
    services: BTreeSet<Name>,
    slices: BTreeSet<Name>,
    policies: BTreeSet<Name>,
    peers: BTreeSet<Name>,
    authentications: BTreeSet<Name>,
    telemetry: BTreeSet<Name>,
    routes: BTreeSet<ObjectKey>,
    destinations: BTreeSet<Name>,
    orders: BTreeSet<ObjectKey>,
    /// Quarantines that cut off other pods, or the same ones at other addresses.
    quarantines: BTreeSet<ObjectKey>,
    mesh: bool,
    /// What holds for all requests.
    settings: bool,
}

/// Takes what was made of something into what is published; what changes is told, in the words for what is there and what
/// is gone.
fn publish<K: Eq + Hash, T: PartialEq>(
    published: &mut HashMap<K, Arc<T>>,
    key: K,
    new: Option<T>,
    is: fn(Arc<T>) -> Change,
    is_gone: fn(K) -> Change,
    set: &mut Vec<Change>,
    removed: &mut Vec<Change>,
) {
    match new {
        Some(new) if published.get(&key).is_none_or(|old| **old != new) => {
            let new = Arc::new(new);
            published.insert(key, Arc::clone(&new));
            set.push(is(new));
        }
        Some(_) => {}
        None => {
            if published.remove(&key).is_some() {
                removed.push(is_gone(key));
            }
        }
    }
}

impl Builder {
    /// Nothing known yet.
    pub fn new(base: Mesh) -> Self {
        Self {
            mesh: base.clone(),
            steering: Steering::of(&base.root_namespace),
            base,
            mesh_config: MeshConfig::default(),
            trust_domain_fixed: false,
            world: World::default(),
            dirty: Dirty { settings: true, ..Dirty::default() },
            running: Arc::default(),
            enrolments: Arc::default(),
            is_complete: false,
            places: HashMap::new(),
            unusable: HashMap::new(),
            workloads: HashMap::new(),
            slice_workloads: HashMap::new(),
            services: HashMap::new(),
            policies: HashMap::new(),
        }
    }

    /// As [`Builder::new`], for manifests as their users wrote them: pods that name no account run as `default`.
    pub fn from_manifests(base: Mesh) -> Self {
        Self { running: Arc::new(Running::new(Unnamed::Default)), ..Self::new(base) }
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

    /// Who is in the mesh by labels; follows this builder.
    pub fn enrolments(&self) -> Arc<Enrolments> {
        Arc::clone(&self.enrolments)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many VirtualServices there are.
    pub fn virtual_service_count(&self) -> usize {
        self.world.routes.virtual_services()
    }

    /// The policies as they were written, for `/debug/configz`.
    pub fn configs(&self) -> Value {
        let policies = self.world.policies.all().filter_map(|(_, one)| serde_json::to_value(&**one).ok());
        let peers = self.world.peers.all().filter_map(|(_, one)| serde_json::to_value(&**one).ok());
        Value::Array(policies.chain(peers).collect())
    }

    /// The services as they are published, for `/debug/registryz`.
    pub fn registry(&self) -> Value {
        let service = |service: &Arc<Service>| {
            let addresses: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
            json!({
                "name": &*service.name,
                "namespace": &*service.key.namespace,
                "hostname": &*service.key.hostname,
                "addresses": addresses,
                "ports": service.ports.iter().map(|port| (port.mapping.service_port, port.mapping.target_port)).collect::<Vec<_>>(),
            })
        };
        Value::Array(self.services.values().map(service).collect())
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
        for unusable in &update.unusable {
            self.take_unusable(unusable);
        }
        let built = self.build();
        self.is_complete |= update.complete;
        built
    }

    /// A policy that cannot be read keeps its last good version; without one it refuses what it would be about.
    fn take_unusable(&mut self, unusable: &Unusable) {
        let key = unusable.key();
        let name: Name = (key.namespace.clone(), key.name.clone());
        let is_authentication = key.kind == Kind::RequestAuthentication;
        let good = match self.unusable.get(&key) {
            Some((_, before)) => *before == LastGood::Kept,
            None if is_authentication => self.world.authentications.get(&name).is_some(),
            None => self.world.policies.get(&name).is_some(),
        };
        match good {
            true if is_authentication => drop(self.dirty.authentications.insert(name)),
            true => drop(self.dirty.policies.insert(name)),
            false => self.take(&key, Some(&unusable.stand_in())),
        }
        self.unusable.insert(key, (unusable.clone(), if good { LastGood::Kept } else { LastGood::None }));
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
                self.running.replace(&name, pod.as_deref());
                self.enrol_agent(&name, old.as_deref(), pod.as_deref());
                old.iter().chain(&pod).for_each(|pod| {
                    self.touch_guarding(&name.0, pod);
                    self.touch_subsets(&name.0, pod);
                });
                self.dirty.pods.insert(name);
            }
            Kind::Service => self.take_service(name, content!(Service)),
            Kind::EndpointSlice => self.take_slice(name, content!(EndpointSlice)),
            Kind::NetworkPolicy => {
                let new = content!(NetworkPolicy);
                let old = self.world.network_policies.replace(&name, new.clone());
                for policy in old.iter().chain(&new) {
                    self.dirty.pods.extend(self.world.pods_filtered_by(&name.0, policy));
                }
            }
            Kind::AuthorizationPolicy => {
                self.unusable.remove(key);
                self.take_policy(name, content!(AuthorizationPolicy));
            }
            Kind::PeerAuthentication => self.take_peer(name, content!(PeerAuthentication)),
            Kind::RequestAuthentication => {
                self.unusable.remove(key);
                self.world.authentications.replace(&name, content!(RequestAuthentication));
                self.attach(AccessKind::RequestAuthentication, &name);
                self.dirty.authentications.insert(name);
            }
            Kind::Telemetry => {
                self.world.telemetry.replace(&name, content!(Telemetry));
                self.attach(AccessKind::Telemetry, &name);
                self.dirty.telemetry.insert(name);
            }
            Kind::Namespace => {
                let (namespace, new) = (key.name.clone(), content!(Namespace));
                let its_labels =
                    |one: &Option<Arc<Namespace>>| one.as_ref().and_then(|one| one.metadata.labels.clone());
                let after = its_labels(&new);
                self.enrol_namespace(&namespace, new.as_deref());
                let old = self.world.replace_namespace(&namespace, new);
                self.dirty.services.extend(self.world.services.names_of(&namespace));
                if its_labels(&old) != after {
                    self.dirty.pods.extend(self.world.pods.names_of(&namespace));
                }
            }
            Kind::Node => {
                self.dirty.pods.extend(self.world.pods_on(&key.name).cloned());
                match content!(Node) {
                    Some(one) => {
                        self.running.replace_node(&key.name, Some(&one));
                        self.world.nodes.insert(key.name.clone(), one)
                    }
                    None => {
                        self.running.replace_node(&key.name, None);
                        self.world.nodes.remove(&key.name)
                    }
                };
            }
            Kind::ConfigMap if key.namespace == self.base.root_namespace && *key.name == *mesh_config::CONFIG_MAP => {
                self.world.mesh_config = content!(ConfigMap);
                self.dirty.mesh = true;
            }
            Kind::GatewayClass => {
                match content!(GatewayClass) {
                    Some(one) => drop(self.world.classes.insert(key.name.clone(), one)),
                    None => drop(self.world.classes.remove(&key.name)),
                }
                for (named, gateway) in self.world.waypoints.of_class(&key.name) {
                    self.take_gateway(&named, Some(gateway));
                }
            }
            Kind::Gateway => {
                let named = Named { namespace: key.namespace.clone(), name: key.name.clone() };
                self.take_gateway(&named, content!(Gateway));
            }
            Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::VirtualService => {
                self.world.routes.replace(key, object.cloned(), &self.mesh);
                self.dirty.routes.insert(key.clone());
            }
            Kind::DestinationRule => {
                self.world.destinations.replace(&name, content!(DestinationRule), &self.mesh);
                self.dirty.destinations.insert(name);
            }
            Kind::ReferenceGrant => {
                let concerned = self.world.routes.replace_grant(&name, content!(ReferenceGrant));
                self.dirty.routes.extend(concerned);
            }
            Kind::Bypass | Kind::Quarantine => self.take_order(key, object),
            Kind::ConfigMap
            | Kind::ServiceAccount
            | Kind::Secret
            | Kind::Deployment
            | Kind::HorizontalPodAutoscaler
            | Kind::PodDisruptionBudget => {}
        }
    }

    fn take_gateway(&mut self, named: &Named, gateway: Option<Arc<Gateway>>) {
        let before = self.world.waypoints.gateway(named).cloned();
        for one in before.iter().chain(&gateway) {
            self.touch_attached(named, &one.spec.gateway_class_name);
        }
        let class = gateway.as_ref().and_then(|gateway| self.world.classes.get(&*gateway.spec.gateway_class_name));
        let class = class.map(|class| &**class);
        let ours = gateway.as_deref().filter(|one| class::is_waypoint(&one.spec.gateway_class_name, class));
        self.running.replace_waypoint(named, ours.map(generate::account_name));
        // What is said to it as a parent.
        let name = (named.namespace.clone(), named.name.clone());
        self.dirty.routes.extend(self.world.routes.naming(&name).cloned());
        if !self.world.waypoints.replace(named, gateway, class) {
            return;
        }
        self.touch_bound(named);
    }

    fn take_service(&mut self, name: Name, service: Option<Arc<KubeService>>) {
        let old = self.world.replace_service(&name, service.clone());
        for service in old.iter().chain(&service) {
            if let Some(wanted) = world::wanted_by(Some(service)) {
                self.dirty.pods.extend(self.world.pods_with(&name.0, wanted));
            }
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
            let (service, pods) = ends(&name, slice);
            service.iter().for_each(|service| self.touch_destinations(service));
            self.dirty.pods.extend(pods);
        }
        self.dirty.slices.insert(name);
    }

    fn take_policy(&mut self, name: Name, policy: Option<Arc<AuthorizationPolicy>>) {
        let old = self.world.replace_policy(&name, policy.clone());
        for policy in old.iter().chain(&policy) {
            if let Some(selector) = &policy.spec.selector {
                self.touch_pods(&name.0, &selector.match_labels);
            }
        }
        self.attach(AccessKind::AuthorizationPolicy, &name);
        self.dirty.policies.insert(name);
    }

    fn take_peer(&mut self, name: Name, peer: Option<Arc<PeerAuthentication>>) {
        let old = self.world.replace_peer(&name, peer.clone());
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
        if *namespace == self.mesh.root_namespace {
            let everywhere = self.world.namespaces_with_pods().flat_map(|one| self.world.pods_with(one, wanted));
            self.dirty.pods.extend(everywhere);
        } else {
            self.dirty.pods.extend(self.world.pods_with(namespace, wanted));
        }
    }

    /// Everything that is published, in no order: for tests and dumps.
    pub fn published(&self) -> impl Iterator<Item = Change> {
        let slices = self.slice_workloads.values().flat_map(BTreeMap::values);
        let policies = self.policies.values().map(|one| Change::Policy(Arc::clone(one)));
        let services = self.services.values().map(|one| Change::Service(Arc::clone(one)));
        let workloads = self.workloads.values().chain(slices).map(|one| Change::Workload(Arc::clone(one)));
        let routes = self.world.routes.published().map(|one| Change::Route(Arc::clone(one)));
        let accesses = self.world.accesses.published().map(|one| Change::Access(Arc::clone(one)));
        let destinations = self.world.destinations.published().map(|one| Change::Destination(Arc::clone(one)));
        policies.chain(services).chain(workloads).chain(routes).chain(accesses).chain(destinations)
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
