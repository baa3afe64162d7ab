//! From dirty objects to changed resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use stillmesh_core::model::access::AccessKind;
use stillmesh_core::model::{Health, Policy, PolicyKey, PortMapping, Service, ServiceKey, Str};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::{self, Named, Target};
use stillmesh_k8s::istio::StatusCondition;
use stillmesh_k8s::mesh_config;
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::translate::{self, Attached, Level};
use stillmesh_k8s::{Kind, ObjectKey, Position, labels};

use super::made::Before;
use super::world::{self, Name};
use super::{About, Builder, Built, Dirty, Made, Verdict, findings, publish};

impl Builder {
    /// Builds what is dirty.
    pub(super) fn build(&mut self) -> Built {
        self.build_mesh();
        let mut dirty = std::mem::take(&mut self.dirty);
        self.steer(&mut dirty);
        // What is there from the beginning came before this process did.
        self.enrol(&dirty, self.is_complete.then(Instant::now));
        // What is said of a policy depends on what its Services are bound to.
        for (namespace, name) in dirty.services.clone() {
            let target = translate::Target::Service(Named { namespace, name });
            dirty.attached(self.world.accesses.attached_to(&target).cloned());
        }
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        let (mut verdicts, mut made) = (Vec::new(), Vec::new());
        if std::mem::take(&mut dirty.settings) {
            self.build_settings(&mut set, &mut removed);
        }
        for order in &dirty.quarantines {
            self.build_quarantine(order, &mut set, &mut removed);
        }
        self.build_policies(&dirty, &mut set, &mut removed, (&mut verdicts, &mut made));
        for name in &dirty.authentications {
            let (verdict, one) = self.build_authentication(name, &mut set, &mut removed);
            verdicts.push(verdict);
            made.push(one);
        }
        for name in &dirty.telemetry {
            verdicts.push(self.build_telemetry(name, &mut set, &mut removed));
        }
        for name in &dirty.services.clone() {
            self.build_guard(name, &mut dirty, &mut set, &mut removed);
        }
        let mut gone = Vec::new();
        for name in &dirty.services {
            let (verdict, one) = self.build_service(name, &mut set, &mut gone);
            verdicts.push(verdict);
            made.push(one);
        }
        let mut ended = Vec::new();
        let mut strict = HashMap::new();
        for name in &dirty.slices {
            self.build_slice(name, &mut set, &mut ended);
        }
        for name in &dirty.pods {
            self.build_pod(name, &mut strict, &mut set, &mut ended);
        }
        self.build_destinations(&dirty, &mut set, &mut ended, &mut verdicts, &mut made);
        self.build_routes(&dirty, &mut set, &mut ended, &mut verdicts, &mut made);
        verdicts.extend(dirty.orders.iter().map(|key| self.order_verdict(key)));
        // Nobody is left without a policy or a service that something still names.
        let changes = set.into_iter().chain(ended).chain(gone).chain(removed).collect();
        Built { changes, verdicts, made }
    }

    fn build_mesh(&mut self) {
        if !std::mem::take(&mut self.dirty.mesh) {
            return;
        }
        self.dirty.settings = true;
        let key = ObjectKey::new(Kind::ConfigMap, &self.base.root_namespace, mesh_config::CONFIG_MAP);
        let nowhere = Position::file("");
        let at = self.places.get(&key).unwrap_or(&nowhere);
        self.mesh_config = self.world.mesh_config.as_deref().map(|map| mesh_config::read(map, at)).unwrap_or_default();
        // Which providers there are decides what of a Telemetry holds.
        self.dirty.telemetry.extend(self.world.telemetry.all().map(|(name, _)| name));
        let mut mesh = self.base.clone();
        mesh.same_node = self.mesh_config.same_node;
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
            let policies: Vec<Name> = self.world.policies.all().map(|(name, _)| name).collect();
            // Whose root namespace it is decides what may be attached to what.
            policies.iter().for_each(|name| self.attach(AccessKind::AuthorizationPolicy, name));
            let authentications: Vec<Name> = self.world.authentications.all().map(|(name, _)| name).collect();
            authentications.iter().for_each(|name| self.attach(AccessKind::RequestAuthentication, name));
            self.dirty.authentications.extend(authentications);
            let telemetry: Vec<Name> = self.dirty.telemetry.iter().cloned().collect();
            telemetry.iter().for_each(|name| self.attach(AccessKind::Telemetry, name));
            self.dirty.policies.extend(policies);
            self.dirty.peers.extend(self.world.peers.all().map(|(name, _)| name));
            self.dirty.routes.extend(self.world.routes.keys().cloned());
            self.dirty.destinations.extend(self.world.destinations.names().cloned());
        }
    }

    fn build_policies(
        &mut self,
        dirty: &Dirty,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
        (verdicts, made): (&mut Vec<Verdict>, &mut Vec<Made>),
    ) {
        for name in &dirty.policies {
            let before = Before::new(set, removed);
            let (namespace, own) = name;
            let written = self.world.policies.get(name);
            let answer = written.map(|written| translate::authorization(written, &self.mesh));
            let of_nodes = answer.as_ref().and_then(|answer| answer.condition.clone());
            let policy = answer.and_then(|answer| answer.policy);
            let of_waypoints = self.build_access(name, set, removed);
            let attached = of_waypoints.is_some();
            let verdict = self.verdict(name, of_nodes.or(of_waypoints));
            let about = (policy.is_some() || attached).then(|| About {
                nodes: true,
                waypoints: self.carriers(AccessKind::AuthorizationPolicy, name),
                refused: self.is_unusable(Kind::AuthorizationPolicy, name),
            });
            self.publish_policy(PolicyKey::new(namespace.clone(), own.clone()), policy, set, removed);
            let metadata = self.world.policies.get(name).map(|written| &written.metadata);
            let mut one = Made::new(verdict.object.clone(), metadata, before.since(set, removed), about);
            one.generation = verdict.generation;
            made.push(one);
            verdicts.push(verdict);
        }
        let mut strict = HashMap::new();
        for name in &dirty.peers {
            let before = Before::new(set, removed);
            let strict = *strict.entry(name.0.clone()).or_insert_with(|| self.parent_is_strict(&name.0));
            let policy = self
                .world
                .peers
                .get(name)
                .and_then(|peer| translate::port_policy(peer, strict, &self.mesh, self.steering.clear()));
            let key = translate::port_policy_key(&name.0, &name.1);
            self.publish_policy(key, policy, set, removed);
            let object = ObjectKey::new(Kind::PeerAuthentication, &name.0, &name.1);
            let written = self.world.peers.get(name);
            let metadata = written.map(|written| &written.metadata);
            let acts = written.is_some_and(|written| translate::level(written, &self.mesh) != Level::Nothing);
            let about = acts.then(|| About { nodes: true, ..About::default() });
            made.push(Made::new(object.clone(), metadata, before.since(set, removed), about));
            let status = written.and_then(|written| written.status.as_ref());
            let existing = status.map(|status| status.conditions.clone()).unwrap_or_default();
            verdicts.push(Verdict::new(object, metadata, existing));
        }
        if !dirty.peers.is_empty() {
            let key = translate::static_strict_key(&self.mesh);
            let others: Vec<PolicyKey> =
                self.policies.keys().filter(|one| one.name == key.name && **one != key).cloned().collect();
            for other in others {
                self.publish_policy(other, None, set, removed);
            }
            let policy = (!self.world.peers.is_empty())
                .then(|| translate::static_strict_policy(&self.mesh, self.steering.clear()));
            self.publish_policy(key, policy, set, removed);
        }
    }

    /// What the status of an object should say whose newest version cannot be read; `None` for others.
    pub(super) fn unreadable(&self, object: &ObjectKey) -> Option<Verdict> {
        let (unusable, last_good) = self.unusable.get(object)?;
        let condition = Some(unusable.condition(*last_good));
        let verdict = Verdict::new(object.clone(), Some(&unusable.metadata), unusable.conditions.clone());
        Some(Verdict { condition, ..verdict })
    }

    /// What a policy's status should say.
    fn verdict(&self, name: &Name, condition: Option<Condition>) -> Verdict {
        let object = ObjectKey::new(Kind::AuthorizationPolicy, &name.0, &name.1);
        if let Some(verdict) = self.unreadable(&object) {
            return verdict;
        }
        let written = self.world.policies.get(name);
        let status = written.and_then(|written| written.status.as_ref());
        let existing = status.map(|status| status.conditions.clone()).unwrap_or_default();
        Verdict { condition, ..Verdict::new(object, written.map(|written| &written.metadata), existing) }
    }

    pub(super) fn publish_policy(
        &mut self,
        key: PolicyKey,
        policy: Option<Policy>,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) {
        publish(&mut self.policies, key, policy, Change::Policy, Change::PolicyRemoved, set, removed);
    }

    fn build_service(&mut self, name: &Name, set: &mut Vec<Change>, gone: &mut Vec<Change>) -> (Verdict, Made) {
        let before = Before::new(set, gone);
        let namespace: Option<&Namespace> = self.world.namespaces.get(&name.0).map(|one| &**one);
        let mut said = None;
        let service = self.world.services.get(name).and_then(|written| {
            let binding = self.world.bound(Target::Service, &written.metadata, &self.mesh);
            let canary = self.world.canary(&written.metadata, &binding, &self.mesh);
            said = canary.condition(&binding);
            let waypoint = binding.destination();
            let weighted = waypoint.as_ref().map(|waypoint| canary.weighted(waypoint)).unwrap_or_default();
            translate::service(written, namespace, waypoint, &self.mesh)
                .map(|service| Service { weighted_waypoints: weighted, ..service })
        });
        let said = said.filter(|_| service.is_some());
        // Only whose binding is told has a receipt of it.
        let about = said.is_some().then(|| About { nodes: true, ..About::default() });
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
        let verdict = self.service_verdict(name, said);
        let metadata = self.world.services.get(name).map(|written| &written.metadata);
        let mut made = Made::new(verdict.object.clone(), metadata, before.since(set, gone), about);
        made.generation = None;
        (verdict, made)
    }

    /// What a service's status should say.
    fn service_verdict(&self, name: &Name, condition: Option<Condition>) -> Verdict {
        let written = self.world.services.get(name);
        let conditions = written.and_then(|written| written.status.as_ref()?.conditions.as_ref());
        let object = ObjectKey::new(Kind::Service, &name.0, &name.1);
        let existing = conditions.into_iter().flatten().map(StatusCondition::from).collect();
        let verdict = Verdict::new(object, written.map(|written| &written.metadata), existing);
        // Services have no generation.
        Verdict { retracted: condition.is_none().then_some(binding::BOUND), condition, generation: None, ..verdict }
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
            let services = self.services_of(name, pod);
            let attached = Attached {
                policies: self.policies_of(name, pod, &services, strict),
                services,
                waypoint: self.world.bound(Target::Workload, &pod.metadata, &self.mesh).destination(),
                direct: self.world.is_direct(&name.0, pod, &self.mesh),
            };
            let mut workload = translate::workload(pod, node.map(|node| &**node), attached, &self.mesh)?;
            if self.is_cut_off(name) {
                // Others serve meanwhile; so it is for tunnels that know no quarantines, too.
                workload.health = Health::Unhealthy;
            }
            Some(workload)
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
        let picked =
            self.world.services_for(&name.0, pod).filter(|(_, service)| translate::pod_serves(service, pod)).map(
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

    fn policies_of(
        &self,
        name: &Name,
        pod: &Pod,
        services: &[(ServiceKey, Vec<PortMapping>)],
        strict: bool,
    ) -> Vec<PolicyKey> {
        let pod_labels = labels::of(&pod.metadata.labels);
        let root = &self.mesh.root_namespace;
        let elsewhere = (name.0 != *root).then_some(root);
        let mut policies: Vec<PolicyKey> = [&name.0]
            .into_iter()
            .chain(elsewhere)
            .flat_map(|namespace| {
                self.world.policies_for(namespace, pod).map(move |(own, policy)| (namespace, own, policy))
            })
            .filter(|(_, _, policy)| {
                policy.spec.selector.as_ref().is_some_and(|one| labels::match_all(&one.match_labels, pod_labels))
            })
            .map(|(namespace, own, _)| PolicyKey::new(namespace.clone(), own.clone()))
            .filter(|key| self.policies.contains_key(key))
            .collect();
        let peers = self.world.peers_for(&name.0, pod);
        let selecting = peers.filter(|peer| translate::level(peer, &self.mesh) == Level::Workload);
        policies.extend(translate::attached_policy(pod_labels, strict, selecting, &self.mesh));
        let guards = services.iter().map(|(service, _)| translate::waypoint_only_key(service));
        policies.extend(guards.filter(|key| self.policies.contains_key(key)));
        policies.extend(self.quarantines_of(name));
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
}
