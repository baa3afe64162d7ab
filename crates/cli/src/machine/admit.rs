//! Admission: which of the objects that a user wrote this machine runs, with what it has to say about them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, PodSpec, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_k8s::gateway::Gateway;
use stillmesh_k8s::gateway::generate::{self, Generated, Unmade};
use stillmesh_k8s::gateway::overlay::{self, Overlay};
use stillmesh_k8s::{Finding, Kind, Object, ObjectKey, Placed, Position, Severity};

use super::ipam::ServicePool;
use super::pods::plan::{self, Origin, PodPlan, Remark};
use super::services;
use super::state::Objects;
use super::system;
use super::waypoints;

/// A Deployment with the plan of its pods.
#[derive(Clone, Debug)]
pub struct Template {
    /// The object.
    pub deployment: Arc<k8s_openapi::api::apps::v1::Deployment>,
    /// What its pods run; their host names are their own.
    pub plan: PodPlan,
}

/// What a set of written objects comes to.
#[derive(Debug, Default)]
pub struct Admitted {
    /// Every admitted object but pods, with what the machine adds (addresses, accounts, namespaces).
    pub objects: Objects,
    /// Pods to run.
    pub pods: BTreeMap<ObjectKey, (Pod, PodPlan)>,
    /// Deployments to run.
    pub deployments: BTreeMap<ObjectKey, Template>,
    /// Namespaces and accounts of waypoints.
    pub waypoints: Vec<(String, String)>,
    /// The overlays of waypoints: the newest admissible ones of each Gateway.
    pub overlays: BTreeMap<ObjectKey, Vec<Overlay>>,
    /// Gateways whose overlays are refused, and why.
    pub refused: BTreeMap<ObjectKey, String>,
    /// The written objects that these are: the newest admissible version of each.
    pub good: BTreeMap<ObjectKey, Placed>,
    /// What is to be said.
    pub findings: Vec<Finding>,
}

/// Admits the objects. A refused edit leaves the object as it was admitted before (`good`), as the API server would; a
/// refused overlay leaves a waypoint as it was (`overlays`), as the controller would.
pub fn admit(
    written: &BTreeMap<ObjectKey, Placed>,
    good: &BTreeMap<ObjectKey, Placed>,
    overlays: &BTreeMap<ObjectKey, Vec<Overlay>>,
    pool: &mut ServicePool,
    nodes: &[String],
    ipv6: bool,
) -> anyhow::Result<Admitted> {
    let mut all = Admitted::default();
    for name in system::NAMESPACES {
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        all.insert(namespace.into());
    }
    for service in system::services()? {
        all.service(service, None, pool, ipv6);
    }
    for class in waypoints::classes().filter(|class| !written.contains_key(&class.key())) {
        all.insert(class);
    }
    let of = |namespaces: bool| written.iter().filter(move |(key, _)| (key.kind == Kind::Namespace) == namespaces);
    for (key, placed) in of(true).chain(of(false)) {
        if key.kind.namespaced() {
            let namespace = placed.object.namespace().to_owned();
            if !all.objects.contains_key(&ObjectKey::new(Kind::Namespace, "", &namespace)) {
                let message = format!("namespace {namespace:?} is not there");
                // What ran in it has ended with it, so this is no refused edit.
                all.say(placed, Severity::Error, "metadata.namespace", message, "add a Namespace of this name");
                continue;
            }
        }
        let made = key.kind != Kind::Namespace && key.kind != Kind::GatewayClass;
        if all.objects.contains_key(key) && made || system::is_pod(key, nodes) {
            all.say(placed, Severity::Error, "metadata.name", "the mesh itself has an object of this name".into(), "");
            continue;
        }
        if all.one(placed, pool, nodes, ipv6) {
            all.good.insert(key.clone(), placed.clone());
        } else if let Some(before) = good.get(key) {
            // What is to be said of it has been.
            let said = all.findings.len();
            if all.one(before, pool, nodes, ipv6) {
                all.good.insert(key.clone(), before.clone());
            }
            all.findings.truncate(said);
        }
    }
    all.run_waypoints(overlays, pool, ipv6);
    // Services that are gone give their addresses back.
    for key in pool.taken_by() {
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        if !all.objects.contains_key(&ObjectKey::new(Kind::Service, namespace, name)) {
            pool.give_back(&key);
        }
    }
    all.accounts();
    Ok(all)
}

impl Admitted {
    fn insert(&mut self, object: Object) {
        self.objects.insert(object.key(), object);
    }

    /// Admits one object; false where it is refused, with the reason among the findings.
    fn one(&mut self, placed: &Placed, pool: &mut ServicePool, nodes: &[String], ipv6: bool) -> bool {
        let mut object = placed.object.clone();
        if object.kind().namespaced() {
            object.metadata_mut().namespace = Some(placed.object.namespace().to_owned());
        }
        match object {
            Object::Node(_) => {
                let hint = "choose their number with --nodes; labels and addresses are given";
                self.say(placed, Severity::Error, "kind", "nodes are made by `up`, not by manifests".into(), hint);
                return false;
            }
            Object::Service(service) => {
                return self.service(Arc::unwrap_or_clone(service), Some(placed), pool, ipv6);
            }
            Object::Pod(pod) => {
                let spec = pod.spec.clone().unwrap_or_default();
                let Some(plan) = self.plan(&pod, &spec, "spec", placed, nodes) else { return false };
                self.pods.insert(placed.object.key(), (Arc::unwrap_or_clone(pod), plan));
            }
            Object::Deployment(deployment) => {
                let template = &deployment.spec.template;
                let pod = Pod {
                    metadata: ObjectMeta { name: deployment.metadata.name.clone(), ..ObjectMeta::default() },
                    spec: template.spec.clone(),
                    status: None,
                };
                let spec = template.spec.clone().unwrap_or_default();
                let Some(plan) = self.plan(&pod, &spec, "spec.template.spec", placed, nodes) else { return false };
                self.insert(Object::Deployment(deployment.clone()));
                self.deployments.insert(placed.object.key(), Template { deployment, plan });
            }
            Object::HorizontalPodAutoscaler(_) | Object::PodDisruptionBudget(_) => {
                self.say(placed, Severity::Warning, "kind", "without effect here".to_owned(), "");
                self.insert(object);
            }
            Object::NetworkPolicy(_) => {
                let told = "it filters nothing on one machine: whom it selects is connected by a tunnel, that is all";
                self.say(placed, Severity::Warning, "kind", told.to_owned(), "");
                self.insert(object);
            }
            other => self.insert(other),
        }
        true
    }

    fn plan(&mut self, pod: &Pod, spec: &PodSpec, prefix: &str, placed: &Placed, nodes: &[String]) -> Option<PodPlan> {
        let ignored = plan::ignored(spec, prefix);
        if !ignored.is_empty() {
            let message = format!("without effect here: {}", ignored.join(", "));
            self.say(placed, Severity::Warning, "", message, "");
        }
        match plan::plan(pod, prefix, Origin::User) {
            Ok(plan) => {
                if let Some(node) = plan.node.as_ref().filter(|node| !nodes.contains(node)) {
                    let message = format!("there is no node {node:?}");
                    let hint = format!("the nodes are {}", nodes.join(", "));
                    self.say(placed, Severity::Error, &format!("{prefix}.nodeName"), message, &hint);
                    return None;
                }
                if !is_name(&plan.service_account) {
                    let message = format!("{:?} cannot be a name", plan.service_account);
                    let hint = "accepted are up to 253 of a-z, 0-9, '-' and '.', a letter or digit at both ends";
                    self.say(placed, Severity::Error, &format!("{prefix}.serviceAccountName"), message, hint);
                    return None;
                }
                Some(plan)
            }
            Err(remarks) => {
                for Remark { path, message, hint } in remarks {
                    self.say(placed, Severity::Error, &path, message, &hint);
                }
                None
            }
        }
    }

    fn service(&mut self, mut service: Service, placed: Option<&Placed>, pool: &mut ServicePool, ipv6: bool) -> bool {
        match (services::allocate(&mut service, pool, ipv6), placed) {
            (Ok(()), _) => {}
            (Err((path, message)), Some(placed)) => {
                self.say(placed, Severity::Error, &path, message, "");
                return false;
            }
            (Err(_), None) => return false,
        }
        if let (Some(spec), Some(placed)) = (&service.spec, placed) {
            let mut without = Vec::new();
            if let Some(kind @ ("NodePort" | "LoadBalancer" | "ExternalName")) = spec.type_.as_deref() {
                without.push(format!("spec.type {kind}"));
            }
            for (name, set) in [
                ("spec.sessionAffinity", spec.session_affinity.as_deref().is_some_and(|mode| mode != "None")),
                ("spec.externalIPs", spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty())),
                (
                    "spec.internalTrafficPolicy",
                    spec.internal_traffic_policy.as_deref().is_some_and(|mode| mode != "Cluster"),
                ),
            ] {
                if set {
                    without.push(name.to_owned());
                }
            }
            if !without.is_empty() {
                let message = format!("without effect here: {}", without.join(", "));
                self.say(placed, Severity::Warning, "", message, "");
            }
        }
        self.insert(service.into());
        true
    }

    /// Whether this Gateway is a waypoint that runs here.
    pub fn runs_waypoint(&self, gateway: &Gateway) -> bool {
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        let account = generate::account_name(gateway);
        self.waypoints.iter().any(|one| one.0 == namespace && one.1 == account)
    }

    /// What runs the waypoints among the Gateways.
    fn run_waypoints(&mut self, before: &BTreeMap<ObjectKey, Vec<Overlay>>, pool: &mut ServicePool, ipv6: bool) {
        let gateways = self.objects.values().filter_map(|object| match object {
            Object::Gateway(gateway) => Some(Arc::clone(gateway)),
            _ => None,
        });
        let gateways: Vec<_> = gateways.collect();
        for gateway in gateways {
            let class = ObjectKey::new(Kind::GatewayClass, "", &gateway.spec.gateway_class_name);
            let class = match self.objects.get(&class) {
                Some(Object::GatewayClass(class)) => Some(Arc::clone(class)),
                _ => None,
            };
            let key = Object::Gateway(Arc::clone(&gateway)).key();
            let Some(placed) = self.good.get(&key).cloned() else { continue };
            let objects = |overlays: &[Overlay]| waypoints::objects(&gateway, class.as_deref(), overlays, ipv6);
            let read = self.overlays_of(&gateway);
            let tried = read.and_then(|overlays| match objects(&overlays) {
                Some(Err(Unmade::Parameters(problem))) => Err(problem),
                made => Ok((overlays, made)),
            });
            let (overlays, made) = match tried {
                Ok(tried) => tried,
                Err(_) if !waypoints::is_waypoint(&gateway, class.as_deref()) => continue,
                Err(problem) => {
                    let path = "spec.infrastructure.parametersRef";
                    self.say(
                        &placed,
                        Severity::Error,
                        path,
                        problem.clone(),
                        "until it is right, what runs stays as it is",
                    );
                    self.refused.insert(key.clone(), problem);
                    let Some(overlays) = before.get(&key) else { continue };
                    (overlays.clone(), objects(overlays))
                }
            };
            let Some(made) = made else { continue };
            self.overlays.insert(key, overlays);
            if let Ok(made) = &made {
                let ignored = waypoints::ignored(made);
                if !ignored.is_empty() {
                    let message = format!("its overlay is without effect here in: {}", ignored.join(", "));
                    self.say(&placed, Severity::Warning, "spec.infrastructure.parametersRef", message, "");
                }
            }
            let made = made.map_err(|unmade| match unmade {
                Unmade::Parameters(problem) | Unmade::Gateway(problem) => problem,
            });
            if let Err(message) = made.and_then(|made| self.run_waypoint(&gateway, made, pool, ipv6)) {
                self.say(&placed, Severity::Error, "metadata.name", message, "give the Gateway another name");
            }
        }
    }

    /// What a Gateway's objects are to have different.
    fn overlays_of(&self, gateway: &Gateway) -> Result<Vec<Overlay>, String> {
        let map = |object: &'_ Object| match object {
            Object::ConfigMap(map) => Some(Arc::clone(map)),
            _ => None,
        };
        let own = overlay::named(gateway)?.and_then(|key| self.objects.get(&key).and_then(map));
        let system = |object: &&Object| object.namespace() == system::NAMESPACE;
        let defaults: Vec<_> = self.objects.values().filter(system).filter_map(map).collect();
        overlay::of(gateway, own.as_deref(), defaults.iter().map(|map| &**map))
    }

    fn run_waypoint(
        &mut self,
        gateway: &Gateway,
        made: Generated,
        pool: &mut ServicePool,
        ipv6: bool,
    ) -> Result<(), String> {
        for kind in [Kind::Service, Kind::Deployment] {
            let key = waypoints::key_of(kind, gateway);
            if self.objects.contains_key(&key) {
                return Err(format!("{key} is written already, and the waypoint needs one of this name"));
            }
        }
        let template = &made.deployment.spec.template;
        let pod = Pod { metadata: made.deployment.metadata.clone(), spec: template.spec.clone(), status: None };
        let plan = plan::plan(&pod, "spec.template.spec", Origin::System).map_err(|remarks| format!("{remarks:?}"))?;
        if !self.service(made.service, None, pool, ipv6) {
            return Err("there is no address for its Service".to_owned());
        }
        if let Some(account) = made.account.map(Object::from)
            && !self.objects.contains_key(&account.key())
        {
            self.insert(account);
        }
        let namespace = made.deployment.metadata.namespace.clone().unwrap_or_default();
        self.waypoints.push((namespace, plan.service_account.clone()));
        let deployment = Arc::new(made.deployment);
        let object = Object::Deployment(Arc::clone(&deployment));
        self.deployments.insert(object.key(), Template { deployment, plan });
        self.insert(object);
        Ok(())
    }

    /// Every namespace has its account `default`; one that pods name and nobody wrote is made as well.
    fn accounts(&mut self) {
        let mut wanted: BTreeSet<(String, String)> = self
            .objects
            .keys()
            .filter(|key| key.kind == Kind::Namespace)
            .map(|key| (key.name.to_string(), "default".to_owned()))
            .collect();
        let of = |key: &ObjectKey, plan: &PodPlan| (key.namespace.to_string(), plan.service_account.clone());
        wanted.extend(self.pods.iter().map(|(key, (_, plan))| of(key, plan)));
        wanted.extend(self.deployments.iter().map(|(key, one)| of(key, &one.plan)));
        for (namespace, name) in wanted {
            let key = ObjectKey::new(Kind::ServiceAccount, &namespace, &name);
            if !self.objects.contains_key(&key) {
                let account = ServiceAccount {
                    metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
                    ..ServiceAccount::default()
                };
                self.insert(account.into());
            }
        }
    }

    fn say(&mut self, placed: &Placed, severity: Severity, path: &str, message: String, hint: &str) {
        self.findings.push(finding(&placed.at, severity, &placed.object.key(), path, message, hint));
    }
}

/// Whether a text is a name as Kubernetes has them: a DNS subdomain.
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let outer = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    text.len() <= 253 && text.bytes().all(inner) && outer(bytes.first()) && outer(bytes.last())
}

/// A finding of the machine's own.
pub fn finding(at: &Position, severity: Severity, key: &ObjectKey, path: &str, message: String, hint: &str) -> Finding {
    Finding {
        at: at.clone(),
        severity,
        code: "UP001",
        object: key.to_string(),
        path: path.to_owned(),
        message,
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(text: &str) -> Admitted {
        again(&written(text), &BTreeMap::new())
    }

    fn written(text: &str) -> BTreeMap<ObjectKey, Placed> {
        let documents = stillmesh_k8s::parse::documents("a.yaml", text);
        assert_eq!(documents.findings, []);
        documents.objects.into_iter().map(|placed| (placed.object.key(), placed)).collect()
    }

    fn again(written: &BTreeMap<ObjectKey, Placed>, good: &BTreeMap<ObjectKey, Placed>) -> Admitted {
        admit(written, good, &BTreeMap::new(), &mut ServicePool::default(), &["node1".to_owned()], true).unwrap()
    }

    #[test]
    fn a_refused_edit_leaves_the_object_as_it_was() {
        let before = admitted(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, command: [x]}]}\n",
        );
        let edited = written(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccountName: ../x, containers: [{name: c, command: [x]}]}\n",
        );
        let after = again(&edited, &before.good);
        assert_eq!(after.findings.len(), 2, "{:?}", after.findings);
        assert_eq!((after.pods.len(), &after.good), (1, &before.good));
        assert!(after.objects.contains_key(&ObjectKey::new(Kind::Service, "default", "a")));
        assert!(again(&edited, &BTreeMap::new()).pods.is_empty());
        assert!(again(&BTreeMap::new(), &before.good).pods.is_empty());
    }

    #[test]
    fn the_meshs_own_names_are_taken() {
        let said = said(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: ztunnel-node1, namespace: istio-system}\nspec: {containers: [{name: c, command: [x]}]}\n",
        );
        assert!(said[0].contains("the mesh itself has an object of this name"), "{said:?}");
    }

    fn said(text: &str) -> Vec<String> {
        admitted(text).findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_object_in_a_namespace_that_is_not_there_is_refused_by_name() {
        let said = said(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: gone}\nspec: {containers: [{name: c, command: [x]}]}\n",
        );
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("a.yaml:1:1: Pod gone/a: metadata.namespace: namespace \"gone\" is not there"),
            "{said:?}"
        );
    }

    #[test]
    fn fields_without_effect_are_listed_once_and_the_pod_runs() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {priority: 3, containers: [{name: c, command: [x], tty: true}]}\n";
        let admitted = admitted(text);
        assert_eq!(admitted.pods.len(), 1);
        assert_eq!(admitted.findings.len(), 1);
        assert!(admitted.findings[0].message.contains("spec.containers[0].tty"), "{:?}", admitted.findings);
    }

    #[test]
    fn what_the_machine_cannot_run_is_refused_with_a_reason() {
        for (spec, words) in [
            ("{containers: [{name: c, image: nginx}]}", "images are not pulled"),
            ("{nodeName: node9, containers: [{name: c, command: [x]}]}", "no node \"node9\""),
            ("{securityContext: {fsGroup: 3}, containers: [{name: c, command: [x]}]}", "one user"),
        ] {
            let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}\n");
            let admitted = admitted(&text);
            assert!(admitted.pods.is_empty());
            assert!(admitted.good.is_empty());
            assert!(admitted.findings[0].message.contains(words), "{:?}", admitted.findings);
        }
    }

    const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w}\n\
        spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}], \
        infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: o}}}\n---\n\
        apiVersion: v1\nkind: ConfigMap\nmetadata: {name: o}\ndata: {deployment: 'OVERLAY'}\n";

    #[test]
    fn a_waypoints_overlay_is_carried_out_and_what_a_machine_does_not_have_is_named() {
        let overlay = "spec: {replicas: 2, template: {spec: {priorityClassName: p, containers: \
                       [{name: istio-proxy, env: [{name: A, value: b}], resources: {limits: {cpu: 1}}}]}}}";
        let text = WAYPOINT.replace("OVERLAY", overlay);
        let one = admitted(&text);
        let gateway = ObjectKey::new(Kind::Gateway, "default", "w");
        let key = ObjectKey::new(Kind::Deployment, "default", "w");
        assert_eq!(one.deployments[&key].deployment.spec.replicas, Some(2));
        let env = one.deployments[&key].plan.containers[0].written.env.clone().unwrap();
        assert!(env.iter().any(|one| one.name == "A" && one.value.as_deref() == Some("b")));
        assert_eq!(one.findings.len(), 1, "{:?}", one.findings);
        let said = &one.findings[0].message;
        assert!(
            said.ends_with(
                "spec.template.spec.containers[0].resources, deployment: spec.template.spec.priorityClassName"
            ),
            "{said}"
        );
        // A bad one leaves what runs; without anything that ran, nothing does.
        let bad = written(&WAYPOINT.replace("OVERLAY", "spec: {replica: 3}"));
        let pool = &mut ServicePool::default();
        let after = admit(&bad, &one.good, &one.overlays, pool, &["node1".to_owned()], true).unwrap();
        assert_eq!(after.deployments[&key].deployment.spec.replicas, Some(2));
        assert!(after.refused[&gateway].contains("spec.replica"), "{:?}", after.refused);
        let alone = again(&bad, &BTreeMap::new());
        assert!(alone.deployments.is_empty() && alone.refused.contains_key(&gateway));
        assert!(alone.findings.iter().any(|one| one.severity == Severity::Error));
    }

    #[test]
    fn what_scales_pods_in_a_cluster_is_without_effect_and_said_to_be() {
        let said = said(
            "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: a}\nspec: {minAvailable: 1}\n---\n\
             apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: a}\n\
             spec: {maxReplicas: 2, scaleTargetRef: {kind: Deployment, name: a}}\n",
        );
        assert!(said.len() == 2 && said.iter().all(|one| one.contains("without effect here")), "{said:?}");
    }

    #[test]
    fn accounts_and_system_objects_are_there_without_being_written() {
        let admitted = admitted("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        for key in [
            ObjectKey::new(Kind::ServiceAccount, "shop", "default"),
            ObjectKey::new(Kind::Namespace, "", "istio-system"),
            ObjectKey::new(Kind::Service, "kube-system", "kube-dns"),
        ] {
            assert!(admitted.objects.contains_key(&key), "{key}");
        }
    }
}
