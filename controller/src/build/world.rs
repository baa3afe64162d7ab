//! The objects that matter, with the indexes that say which others a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::Str;
use stillmesh_core::model::access::AccessKind;
use stillmesh_k8s::gateway::GatewayClass;
use stillmesh_k8s::gateway::binding::canary::{self, Canary};
use stillmesh_k8s::gateway::binding::{self, Binding, Named, Target, Why};
use stillmesh_k8s::istio::telemetry::Telemetry;
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use stillmesh_k8s::labels::{self, Labels};
use stillmesh_k8s::object::DEFAULT_NAMESPACE;
use stillmesh_k8s::same_node;
use stillmesh_k8s::translate::{self, Mesh, Target as Attached};

use super::accesses::Accesses;
use super::destinations::Destinations;
use super::labelled::{Asking, Having};
use super::routes::Routes;
use super::waypoints::{Asker, Waypoints};

/// Namespace and name.
pub(super) type Name = (Str, Str);

/// Objects of one kind by namespace and name.
#[derive(Debug)]
pub(super) struct Grouped<T>(HashMap<Str, BTreeMap<Str, Arc<T>>>);

impl<T> Default for Grouped<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Grouped<T> {
    pub fn get(&self, name: &Name) -> Option<&Arc<T>> {
        self.0.get(&name.0)?.get(&name.1)
    }

    /// Puts an object in place, or takes it away. Returns what was there.
    pub fn replace(&mut self, name: &Name, object: Option<Arc<T>>) -> Option<Arc<T>> {
        match object {
            Some(object) => self.0.entry(name.0.clone()).or_default().insert(name.1.clone(), object),
            None => {
                let group = self.0.get_mut(&name.0)?;
                let old = group.remove(&name.1);
                if group.is_empty() {
                    self.0.remove(&name.0);
                }
                old
            }
        }
    }

    /// The objects of a namespace.
    pub fn of(&self, namespace: &str) -> impl Iterator<Item = (&Str, &Arc<T>)> {
        self.0.get(namespace).into_iter().flatten()
    }

    /// The names of a namespace's objects.
    pub fn names_of<'a>(&'a self, namespace: &'a Str) -> impl Iterator<Item = Name> + 'a {
        self.of(namespace).map(|(name, _)| (namespace.clone(), name.clone()))
    }

    pub fn all(&self) -> impl Iterator<Item = (Name, &Arc<T>)> {
        self.0
            .iter()
            .flat_map(|(namespace, group)| group.iter().map(|(name, one)| ((namespace.clone(), name.clone()), one)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything that resources are built from.
#[derive(Debug, Default)]
pub(super) struct World {
    pub namespaces: HashMap<Str, Arc<Namespace>>,
    pub nodes: HashMap<Str, Arc<Node>>,
    /// ConfigMap `istio` of the root namespace.
    pub mesh_config: Option<Arc<ConfigMap>>,
    pub pods: Grouped<Pod>,
    pub services: Grouped<Service>,
    pub slices: Grouped<EndpointSlice>,
    pub network_policies: Grouped<NetworkPolicy>,
    pub policies: Grouped<AuthorizationPolicy>,
    pub peers: Grouped<PeerAuthentication>,
    pub authentications: Grouped<RequestAuthentication>,
    pub telemetry: Grouped<Telemetry>,
    pub classes: HashMap<Str, Arc<GatewayClass>>,
    pub waypoints: Waypoints,
    pub routes: Routes,
    pub accesses: Accesses,
    pub destinations: Destinations,
    pods_having: Having,
    services_asking: Asking,
    policies_asking: Asking,
    peers_asking: Asking,
    pods_on: HashMap<Str, BTreeSet<Name>>,
    slices_of_service: HashMap<Name, BTreeSet<Name>>,
    slices_of_pod: HashMap<Name, BTreeSet<Name>>,
}

impl World {
    /// Which waypoint something is bound to.
    pub fn bound(&self, target: Target, metadata: &ObjectMeta, mesh: &Mesh) -> Binding {
        let name = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let namespace = self.namespaces.get(name).map(|one| &**one);
        let binding = binding::bind(target, metadata, namespace, |named| self.waypoints.get(named), mesh);
        let Binding::Unbound { waypoint, why: Why::FallsBack } = &binding else { return binding };
        let service = (target == Target::Service)
            .then(|| Named { namespace: name.into(), name: metadata.name.as_deref().unwrap_or_default().into() });
        match self.is_guarded(service, waypoint) {
            true => {
                let found = self.waypoints.get(waypoint);
                binding.held(found, mesh)
            }
            false => binding,
        }
    }

    /// What becomes of the canary of a service that is bound like this.
    pub fn canary(&self, metadata: &ObjectMeta, primary: &Binding, mesh: &Mesh) -> Canary {
        let name = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let namespace = self.namespaces.get(name).map(|one| &**one);
        canary::canary(metadata, namespace, primary, |named| self.waypoints.get(named), mesh)
    }

    /// Whether a waypoint enforces policies on what it carries for a service, or for a workload.
    pub fn is_guarded(&self, service: Option<Named>, waypoint: &Named) -> bool {
        let class = self.waypoints.gateway(waypoint).map(|gateway| gateway.spec.gateway_class_name.as_str());
        let of_service = service.map(Attached::Service);
        let targets = of_service.into_iter().chain([Attached::Gateway(waypoint.clone())]);
        targets.chain(class.map(|class| Attached::Class(class.into()))).any(|one| {
            self.accesses.attached_to(&one).any(|(kind, name)| match kind {
                AccessKind::AuthorizationPolicy => self.policies.get(name).is_some_and(|one| translate::guards(one)),
                AccessKind::RequestAuthentication => self.authentications.get(name).is_some(),
                AccessKind::MeshConfig | AccessKind::Telemetry | AccessKind::TelemetrySettings => false,
            })
        })
    }

    pub fn replace_namespace(&mut self, name: &Str, namespace: Option<Arc<Namespace>>) -> Option<Arc<Namespace>> {
        let metadata = namespace.as_deref().map(|namespace| &namespace.metadata);
        self.waypoints.ask(Asker::Namespace(name.clone()), name, metadata);
        match namespace {
            Some(namespace) => self.namespaces.insert(name.clone(), namespace),
            None => self.namespaces.remove(name),
        }
    }

    pub fn replace_pod(&mut self, name: &Name, pod: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        if let Some(node) = pod.as_deref().and_then(node_of) {
            self.pods_on.entry(node.into()).or_default().insert(name.clone());
        }
        let node = pod.as_deref().and_then(node_of).map(Str::from);
        let old = self.pods.replace(name, pod.clone());
        self.waypoints.ask(Asker::Pod(name.clone()), &name.0, pod.as_deref().map(|pod| &pod.metadata));
        let labels = |pod: &Option<Arc<Pod>>| pod.as_deref().map(|pod| labels::of(&pod.metadata.labels).clone());
        self.pods_having.replace(name, labels(&old).as_ref(), labels(&pod).as_ref());
        if let Some(before) = old.as_deref().and_then(node_of)
            && node.as_deref() != Some(before)
        {
            take(&mut self.pods_on, before, name);
        }
        old
    }

    pub fn replace_service(&mut self, name: &Name, service: Option<Arc<Service>>) -> Option<Arc<Service>> {
        let old = self.services.replace(name, service.clone());
        self.services_asking.replace(name, wanted_by(old.as_deref()), wanted_by(service.as_deref()));
        let metadata = service.as_deref().map(|service| &service.metadata);
        self.waypoints.ask(Asker::Service(name.clone()), &name.0, metadata);
        old
    }

    pub fn replace_policy(
        &mut self,
        name: &Name,
        policy: Option<Arc<AuthorizationPolicy>>,
    ) -> Option<Arc<AuthorizationPolicy>> {
        let old = self.policies.replace(name, policy.clone());
        let wanted = |policy: Option<&AuthorizationPolicy>| {
            policy.and_then(|policy| policy.spec.selector.as_ref()).map(|selector| selector.match_labels.clone())
        };
        let (before, after) = (wanted(old.as_deref()), wanted(policy.as_deref()));
        self.policies_asking.replace(name, before.as_ref(), after.as_ref());
        old
    }

    pub fn replace_peer(
        &mut self,
        name: &Name,
        peer: Option<Arc<PeerAuthentication>>,
    ) -> Option<Arc<PeerAuthentication>> {
        let old = self.peers.replace(name, peer.clone());
        let wanted = |peer: Option<&PeerAuthentication>| {
            peer.and_then(|peer| peer.spec.selector.as_ref()).map(|selector| selector.match_labels.clone())
        };
        let (before, after) = (wanted(old.as_deref()), wanted(peer.as_deref()));
        self.peers_asking.replace(name, before.as_ref(), after.as_ref());
        old
    }

    /// The pods of a namespace that have these labels; nothing wanted is everything.
    pub fn pods_with<'a>(&'a self, namespace: &'a Str, wanted: &'a Labels) -> impl Iterator<Item = Name> + 'a {
        let candidates = self.pods_having.candidates(namespace, wanted);
        let all = candidates.is_none().then(|| self.pods.names_of(namespace));
        let some = candidates.into_iter().flatten().map(|name| (namespace.clone(), name.clone()));
        let has = |name: &Name| {
            self.pods.get(name).is_some_and(|pod| labels::match_all(wanted, labels::of(&pod.metadata.labels)))
        };
        some.chain(all.into_iter().flatten()).filter(has)
    }

    /// The pods that a NetworkPolicy of their namespace is about.
    pub fn pods_filtered_by<'a>(
        &'a self,
        namespace: &'a Str,
        policy: &'a NetworkPolicy,
    ) -> impl Iterator<Item = Name> + 'a {
        let filtered = self.pods.of(namespace).filter(|(_, pod)| same_node::is_filtered(policy, pod));
        filtered.map(|(name, _)| (namespace.clone(), name.clone()))
    }

    /// Whether a pod may be connected without a tunnel on its node.
    pub fn is_direct(&self, namespace: &Str, pod: &Pod, mesh: &Mesh) -> bool {
        let is_filtered = || self.network_policies.of(namespace).any(|(_, policy)| same_node::is_filtered(policy, pod));
        let namespace = self.namespaces.get(namespace).map(|one| &**one);
        same_node::is_wanted(namespace, mesh.same_node) && !is_filtered()
    }

    /// The namespaces that have pods.
    pub fn namespaces_with_pods(&self) -> impl Iterator<Item = &Str> {
        self.pods.0.keys()
    }

    /// The services of a pod's namespace that may select it.
    pub fn services_for(&self, namespace: &Str, pod: &Pod) -> impl Iterator<Item = (&Str, &Arc<Service>)> {
        let names = self.services_asking.candidates(namespace, labels::of(&pod.metadata.labels));
        names.filter_map(|name| self.services.0.get(namespace)?.get_key_value(name))
    }

    /// The policies of a namespace whose selector may match a pod.
    pub fn policies_for(&self, namespace: &Str, pod: &Pod) -> impl Iterator<Item = (&Str, &Arc<AuthorizationPolicy>)> {
        let names = self.policies_asking.candidates(namespace, labels::of(&pod.metadata.labels));
        names.filter_map(|name| self.policies.0.get(namespace)?.get_key_value(name))
    }

    /// The PeerAuthentications of a pod's namespace whose selector may match it.
    pub fn peers_for(&self, namespace: &Str, pod: &Pod) -> impl Iterator<Item = &PeerAuthentication> {
        let names = self.peers_asking.candidates(namespace, labels::of(&pod.metadata.labels));
        names.filter_map(|name| self.peers.0.get(namespace)?.get(name).map(|peer| &**peer))
    }

    pub fn replace_slice(&mut self, name: &Name, slice: Option<Arc<EndpointSlice>>) -> Option<Arc<EndpointSlice>> {
        let old = self.slices.replace(name, slice.clone());
        for (service, pods) in old.iter().map(|old| ends(name, old)) {
            service.iter().for_each(|service| take(&mut self.slices_of_service, service, name));
            pods.iter().for_each(|pod| take(&mut self.slices_of_pod, pod, name));
        }
        for (service, pods) in slice.iter().map(|new| ends(name, new)) {
            if let Some(service) = service {
                self.slices_of_service.entry(service).or_default().insert(name.clone());
            }
            for pod in pods {
                self.slices_of_pod.entry(pod).or_default().insert(name.clone());
            }
        }
        old
    }

    /// The pods of a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Name> {
        self.pods_on.get(node).into_iter().flatten()
    }

    /// The slices that list the endpoints of a service.
    pub fn slices_of_service(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.slices_of_service.get(service).into_iter().flatten()
    }

    /// The slices that name a pod.
    pub fn slices_of_pod(&self, pod: &Name) -> impl Iterator<Item = &Name> {
        self.slices_of_pod.get(pod).into_iter().flatten()
    }
}

/// The service and the pods that a slice names.
pub(super) fn ends(name: &Name, slice: &EndpointSlice) -> (Option<Name>, Vec<Name>) {
    let here = |other: &str| (name.0.clone(), Str::from(other));
    let pods = translate::slice_endpoints(slice).pods.into_iter().map(here).collect();
    (translate::slice_service(slice).map(here), pods)
}

/// The labels of the pods that a service selects.
pub(super) fn wanted_by(service: Option<&Service>) -> Option<&Labels> {
    service?.spec.as_ref()?.selector.as_ref().filter(|wanted| !wanted.is_empty())
}

pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn take<K, Q>(index: &mut HashMap<K, BTreeSet<Name>>, key: &Q, name: &Name)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(set) = index.get_mut(key) {
        set.remove(name);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
