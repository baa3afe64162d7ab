//! What decides about requests, and what it is attached to: a Service, Gateway or GatewayClass that changes costs the
//! policies that are attached to it, and a policy what it is attached to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use stillmesh_core::model::access::{Access, AccessKey, AccessKind, PathNormalization, RequestSettings};
use stillmesh_core::model::telemetry::TelemetrySettings;
use stillmesh_core::model::{Identity, PolicyKey, Str};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::gateway::binding::{self, Binding, Named, Target};
use stillmesh_k8s::gateway::{class, generate};
use stillmesh_k8s::istio::AuthorizationPolicy;
use stillmesh_k8s::mesh_config;
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::translate::{self, Mesh, Target as Attached, Targets};
use stillmesh_k8s::unusable::LastGood;
use stillmesh_k8s::{Kind, ObjectKey};

use super::made::Before;
use super::waypoints::Asker;
use super::world::{Name, World, wanted_by};
use super::{About, Builder, Dirty, Made, Verdict, publish};

/// Something that is attached to something.
pub(super) type Object = (AccessKind, Name);

/// What is attached to what, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct Accesses {
    attached: HashMap<Attached, BTreeSet<Object>>,
    targets: HashMap<Object, Vec<Attached>>,
    published: HashMap<AccessKey, Arc<Access>>,
}

impl Accesses {
    /// What is attached to something.
    pub fn attached_to(&self, target: &Attached) -> impl Iterator<Item = &Object> {
        self.attached.get(target).into_iter().flatten()
    }

    /// What something is attached to.
    pub fn targets_of(&self, object: &Object) -> &[Attached] {
        self.targets.get(object).map(Vec::as_slice).unwrap_or_default()
    }

    /// A policy came, changed or went: what it was attached to, and what it is.
    fn replace(&mut self, object: &Object, targets: Vec<Attached>) -> BTreeSet<Attached> {
        let old = self.targets.remove(object).unwrap_or_default();
        for target in &old {
            if let Some(policies) = self.attached.get_mut(target) {
                policies.remove(object);
                if policies.is_empty() {
                    self.attached.remove(target);
                }
            }
        }
        for target in &targets {
            self.attached.entry(target.clone()).or_default().insert(object.clone());
        }
        let concerned = old.into_iter().chain(targets.iter().cloned()).collect();
        if !targets.is_empty() {
            self.targets.insert(object.clone(), targets);
        }
        concerned
    }

    /// Takes what was made of something; what changes is told.
    fn publish(&mut self, key: AccessKey, new: Option<Access>, set: &mut Vec<Change>, removed: &mut Vec<Change>) {
        publish(&mut self.published, key, new, Change::Access, Change::AccessRemoved, set, removed);
    }

    /// All that is published.
    pub fn published(&self) -> impl Iterator<Item = &Arc<Access>> {
        self.published.values()
    }
}

impl Dirty {
    /// What is attached to something that changed is built again.
    pub(super) fn attached(&mut self, objects: impl IntoIterator<Item = Object>) {
        for (kind, name) in objects {
            match kind {
                AccessKind::AuthorizationPolicy => drop(self.policies.insert(name)),
                AccessKind::RequestAuthentication => drop(self.authentications.insert(name)),
                AccessKind::Telemetry => drop(self.telemetry.insert(name)),
                AccessKind::MeshConfig | AccessKind::TelemetrySettings => {}
            }
        }
    }
}

impl Builder {
    /// A policy's targets are what they are: whoever is concerned is built again.
    pub(super) fn attach(&mut self, kind: AccessKind, name: &Name) {
        let targets = match kind {
            AccessKind::AuthorizationPolicy => {
                self.world.policies.get(name).map(|policy| translate::policy_targets(policy, &self.mesh))
            }
            AccessKind::RequestAuthentication => {
                let written = self.world.authentications.get(name);
                written.map(|written| translate::authentication_targets(written, &self.mesh))
            }
            AccessKind::Telemetry => {
                self.world.telemetry.get(name).map(|written| translate::telemetry_targets(written, &self.mesh))
            }
            AccessKind::MeshConfig | AccessKind::TelemetrySettings => None,
        };
        let targets = targets.into_iter().flatten().filter_map(Result::ok).collect();
        let concerned = self.world.accesses.replace(&(kind, name.clone()), targets);
        // What decides nothing is enforced by nobody: it binds nothing.
        for target in concerned.into_iter().filter(|_| kind != AccessKind::Telemetry) {
            match target {
                Attached::Service(named) => drop(self.dirty.services.insert((named.namespace, named.name))),
                Attached::Gateway(named) => self.touch_bound(&named),
                Attached::Class(class) => {
                    for (named, _) in self.world.waypoints.of_class(&class) {
                        self.touch_bound(&named);
                    }
                }
            }
        }
    }

    /// Everything that asks for a Gateway is built again.
    pub(super) fn touch_bound(&mut self, named: &Named) {
        for asker in self.world.waypoints.asking(named) {
            match asker {
                Asker::Service(name) => drop(self.dirty.services.insert(name.clone())),
                Asker::Pod(name) => drop(self.dirty.pods.insert(name.clone())),
                Asker::Namespace(namespace) => {
                    self.dirty.services.extend(self.world.services.names_of(namespace));
                    self.dirty.pods.extend(self.world.pods.names_of(namespace));
                }
            }
        }
    }

    /// The policies that are attached to a Gateway of this class are built again.
    pub(super) fn touch_attached(&mut self, named: &Named, class: &str) {
        for target in [Attached::Gateway(named.clone()), Attached::Class(class.into())] {
            let attached: Vec<Object> = self.world.accesses.attached_to(&target).cloned().collect();
            self.dirty.attached(attached);
        }
    }

    /// What of the services' ports depends on a pod.
    pub(super) fn touch_guarding(&mut self, namespace: &Str, pod: &Pod) {
        let services =
            self.world.services_for(namespace, pod).filter(|(_, service)| translate::has_named_ports(service));
        let names: Vec<Name> = services.map(|(service, _)| (namespace.clone(), service.clone())).collect();
        for service in names {
            let key = translate::waypoint_only_key(&translate::service_key(&service.0, &service.1, &self.mesh));
            if self.policies.contains_key(&key) {
                self.dirty.services.insert(service);
            }
        }
    }

    /// What is odd about a policy for waypoints; `None` where nothing is.
    pub(super) fn oddity(&self, written: &AuthorizationPolicy) -> Option<Condition> {
        let known = Known { world: &self.world, mesh: &self.mesh };
        let condition = translate::request_authorization(written, &known, &self.mesh)?.condition;
        (condition.reason != "Accepted").then_some(condition)
    }

    /// What waypoints are told of a policy, and what its status says of that.
    pub(super) fn build_access(
        &mut self,
        name: &Name,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) -> Option<Condition> {
        let known = Known { world: &self.world, mesh: &self.mesh };
        let written = self.world.policies.get(name);
        let answer = written.and_then(|written| translate::request_authorization(written, &known, &self.mesh));
        let key =
            AccessKey { kind: AccessKind::AuthorizationPolicy, key: PolicyKey::new(name.0.clone(), name.1.clone()) };
        let condition = answer.as_ref().map(|answer| answer.condition.clone());
        let policy = answer.map(|answer| {
            let mut policy = answer.policy;
            let object = ObjectKey::new(Kind::AuthorizationPolicy, &name.0, &name.1);
            if let Some((unusable, LastGood::None)) = self.unusable.get(&object) {
                policy.unreadable = Some(unusable.why.as_str().into());
            }
            Access::Policy(policy)
        });
        self.world.accesses.publish(key, policy, set, removed);
        condition
    }

    /// What waypoints are told of a RequestAuthentication, and what its status says.
    pub(super) fn build_authentication(
        &mut self,
        name: &Name,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) -> (Verdict, Made) {
        let before = Before::new(set, removed);
        let known = Known { world: &self.world, mesh: &self.mesh };
        let written = self.world.authentications.get(name).cloned();
        let written = written.as_deref();
        let answer = written.and_then(|written| translate::request_authentication(written, &known, &self.mesh));
        let (access, condition) = answer.map(|(model, condition)| (Access::Authentication(model), condition)).unzip();
        let object = ObjectKey::new(Kind::RequestAuthentication, &name.0, &name.1);
        let metadata = written.map(|written| &written.metadata);
        let status = written.and_then(|written| written.status.as_ref());
        let existing = status.map(|status| status.conditions.clone()).unwrap_or_default();
        let verdict = self
            .unreadable(&object)
            .unwrap_or_else(|| Verdict { condition, ..Verdict::new(object, metadata, existing) });
        let key =
            AccessKey { kind: AccessKind::RequestAuthentication, key: PolicyKey::new(name.0.clone(), name.1.clone()) };
        let about = access.is_some().then(|| About {
            nodes: true,
            waypoints: self.carriers(AccessKind::RequestAuthentication, name),
            refused: self.is_unusable(Kind::RequestAuthentication, name),
        });
        self.world.accesses.publish(key, access, set, removed);
        let object = verdict.object.clone();
        let mut made = Made::new(object, metadata, before.since(set, removed), about);
        made.generation = verdict.generation;
        (verdict, made)
    }

    /// What waypoints are told of a Telemetry, and what its status says.
    pub(super) fn build_telemetry(&mut self, name: &Name, set: &mut Vec<Change>, removed: &mut Vec<Change>) -> Verdict {
        let known = Known { world: &self.world, mesh: &self.mesh };
        let written = self.world.telemetry.get(name);
        let none = TelemetrySettings::new(PolicyKey::new("", ""));
        let providers = mesh_config::providers(self.mesh_config.telemetry.as_ref().unwrap_or(&none));
        let made = written.map(|written| translate::telemetry(written, &known, &providers, &self.mesh));
        let (model, condition) = made.unzip();
        let metadata = written.map(|written| &written.metadata);
        let status = written.and_then(|written| written.status.as_ref());
        let existing = status.map(|status| status.conditions.clone()).unwrap_or_default();
        let object = ObjectKey::new(Kind::Telemetry, &name.0, &name.1);
        let verdict = Verdict { condition, ..Verdict::new(object, metadata, existing) };
        let key = AccessKey { kind: AccessKind::Telemetry, key: PolicyKey::new(name.0.clone(), name.1.clone()) };
        self.world.accesses.publish(key, model.flatten().map(Access::Telemetry), set, removed);
        verdict
    }

    /// What holds for all requests.
    pub(super) fn build_settings(&mut self, set: &mut Vec<Change>, removed: &mut Vec<Change>) {
        let key = PolicyKey::new(self.mesh.root_namespace.clone(), mesh_config::CONFIG_MAP);
        let settings = RequestSettings {
            key: key.clone(),
            normalization: self.mesh_config.path_normalization,
            gateways: Vec::new(),
        };
        let known = self.world.accesses.published.keys();
        let known = known.filter(|one| matches!(one.kind, AccessKind::MeshConfig | AccessKind::TelemetrySettings));
        let others: Vec<AccessKey> = known.filter(|one| one.key != key).cloned().collect();
        for other in others {
            self.world.accesses.publish(other, None, set, removed);
        }
        // What every waypoint does unless it is told otherwise needs no telling.
        let is_plain = settings.normalization == PathNormalization::default() && settings.gateways.is_empty();
        let settings = (!is_plain).then_some(Access::Settings(settings));
        let own = |kind| AccessKey { kind, key: key.clone() };
        self.world.accesses.publish(own(AccessKind::MeshConfig), settings, set, removed);
        let told = self.mesh_config.telemetry.clone();
        let told = told.map(|told| Access::TelemetrySettings(TelemetrySettings { key: key.clone(), ..told }));
        self.world.accesses.publish(own(AccessKind::TelemetrySettings), told, set, removed);
    }

    /// The policy by which a service's endpoints take connections from its waypoint alone, where that enforces something.
    pub(super) fn build_guard(
        &mut self,
        name: &Name,
        dirty: &mut Dirty,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
    ) {
        let key = translate::service_key(&name.0, &name.1, &self.mesh);
        let policy = self.world.services.get(name).and_then(|service| {
            let binding = self.world.bound(Target::Service, &service.metadata, &self.mesh);
            let canary = self.world.canary(&service.metadata, &binding, &self.mesh);
            let Binding::Bound { waypoint, .. } = binding else { return None };
            let named = Named { namespace: name.0.clone(), name: name.1.clone() };
            let waypoints = || std::iter::once(&waypoint).chain(canary.bound());
            if !waypoints().any(|one| self.world.is_guarded(Some(named.clone()), one)) {
                return None;
            }
            let identities: Option<Vec<Identity>> = waypoints().map(|one| self.identity_of(one)).collect();
            let mut identities = identities?;
            identities.dedup();
            let pods = wanted_by(Some(service)).map(|wanted| self.world.pods_with(&name.0, wanted));
            let pods = pods.into_iter().flatten().filter_map(|pod| self.world.pods.get(&pod));
            let pods = pods.filter(|_| translate::has_named_ports(service)).map(|pod| &**pod);
            translate::waypoint_only(&key, service, pods, &identities)
        });
        let key = translate::waypoint_only_key(&key);
        if policy.is_some() != self.policies.contains_key(&key) {
            let service = self.world.services.get(name);
            if let Some(wanted) = wanted_by(service.map(|service| &**service)) {
                dirty.pods.extend(self.world.pods_with(&name.0, wanted));
            }
            for slice in self.world.slices_of_service(name) {
                let pods = self.world.slices.get(slice).into_iter().flat_map(|one| super::ends(slice, one).1);
                dirty.pods.extend(pods);
            }
        }
        self.publish_policy(key, policy, set, removed);
    }

    /// Whom a waypoint of ours runs as.
    fn identity_of(&self, waypoint: &Named) -> Option<Identity> {
        let gateway = self.world.waypoints.gateway(waypoint)?;
        let account = generate::account_name(gateway);
        Some(Identity::new(self.mesh.trust_domain.clone(), waypoint.namespace.clone(), account))
    }
}

/// What targets are found by.
struct Known<'a> {
    world: &'a World,
    mesh: &'a Mesh,
}

impl Known<'_> {
    fn is_ours(&self, class: &str) -> bool {
        class::is_waypoint(class, self.world.classes.get(class).map(|class| &**class))
    }
}

impl Targets for Known<'_> {
    fn service(&self, named: &Named) -> Option<Binding> {
        let service = self.world.services.get(&(named.namespace.clone(), named.name.clone()))?;
        Some(self.world.bound(Target::Service, &service.metadata, self.mesh))
    }

    fn gateway(&self, named: &Named) -> Option<Str> {
        let gateway = self.world.waypoints.gateway(named)?;
        self.is_ours(&gateway.spec.gateway_class_name).then(|| binding::service_name(gateway).into())
    }

    fn class(&self, name: &str) -> Option<Vec<(Named, Str)>> {
        if !self.is_ours(name) {
            return None;
        }
        let mut gateways: Vec<(Named, Str)> = self
            .world
            .waypoints
            .of_class(name)
            .into_iter()
            .map(|(named, gateway)| (named, binding::service_name(&gateway).into()))
            .collect();
        gateways.sort();
        Some(gateways)
    }
}
