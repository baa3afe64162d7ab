//! Orders as they hold: which of them is about a pod. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::{BypassSpec, QuarantineSpec, SteeringStatus};
use crate::duration;
use crate::labels::{self, Labels};
use crate::object::{DEFAULT_NAMESPACE, Kind, Object, ObjectKey};

/// How long an order lasts that does not say it.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(30 * 60);
/// The longest that an order may last by itself.
pub const LONGEST: Duration = Duration::from_secs(168 * 3600);
/// How long an order that has ended is kept, so that one can see what it was.
pub const KEPT: Duration = Duration::from_secs(3600);

/// An order in the form that is judged by.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Which object it is.
    pub key: ObjectKey,
    /// The object's UID.
    pub uid: String,
    /// The object's generation.
    pub generation: Option<i64>,
    /// The object's version.
    pub version: Option<String>,
    /// Since when it holds; the API server's clock.
    pub since: Option<Timestamp>,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub requested_by: String,
    /// Who has ended it.
    pub ended_by: Option<String>,
    /// Its user has ended it.
    pub ended: bool,
    /// What keeps it from being carried out.
    pub problem: Option<String>,
    /// What its status says now.
    pub status: SteeringStatus,
    /// Whether its object is going.
    deleted: bool,
    whom: Whom,
}

/// Whom an order is about.
#[derive(Clone, Debug, PartialEq)]
enum Whom {
    Mesh,
    Namespace,
    Pods { names: Vec<String>, labels: Option<Labels> },
}

impl Order {
    /// The order that an object is, in a mesh that itself runs in `system`; `None` for other kinds.
    pub fn of(object: &Object, system: &str) -> Option<Self> {
        match object {
            Object::Bypass(one) => Some(Self::new(Kind::Bypass, &one.metadata, &one.spec, one.status.as_ref(), system)),
            Object::Quarantine(one) => {
                // The same but for the whole mesh, which cannot be cut off.
                let QuarantineSpec { pods, selector, duration, reason, requested_by, ended, ended_by } =
                    one.spec.clone();
                let spec = BypassSpec { pods, selector, mesh: false, duration, reason, requested_by, ended, ended_by };
                Some(Self::new(Kind::Quarantine, &one.metadata, &spec, one.status.as_ref(), system))
            }
            _ => None,
        }
    }

    fn new(
        kind: Kind,
        metadata: &ObjectMeta,
        spec: &BypassSpec,
        status: Option<&SteeringStatus>,
        system: &str,
    ) -> Self {
        let wanted = spec.selector.as_ref().map(|one| &one.match_labels).filter(|labels| !labels.is_empty());
        let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let since = metadata.creation_timestamp.as_ref().map(|time| time.0);
        let length = match spec.duration.as_deref().map(|text| (text, duration::istio(text))) {
            None => Ok(DEFAULT_DURATION),
            Some((_, Ok(length))) if !length.is_zero() && length <= LONGEST => Ok(length),
            Some((text, Ok(_))) => {
                Err(format!("duration {text:?} is not within a second and {} hours", LONGEST.as_secs() / 3600))
            }
            Some((_, Err(problem))) => Err(format!("duration: {problem}")),
        };
        let problem = match (&length, spec) {
            (Err(problem), _) => Some(problem.clone()),
            (_, one) if one.reason.trim().is_empty() => Some("it says no reason".to_owned()),
            (_, one) if one.mesh && namespace != system => {
                Some(format!("an order for the whole mesh is one of namespace {system}, where the mesh itself runs"))
            }
            (_, one) if one.mesh && (!one.pods.is_empty() || wanted.is_some()) => {
                Some("it means the whole mesh and single pods at once".to_owned())
            }
            _ => None,
        };
        let until = length.ok().zip(since).and_then(|(length, since)| since.checked_add(length).ok());
        Self {
            key: ObjectKey::new(kind, namespace, metadata.name.as_deref().unwrap_or_default()),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation,
            version: metadata.resource_version.clone(),
            since,
            until,
            reason: spec.reason.clone(),
            requested_by: spec.requested_by.clone(),
            ended_by: spec.ended_by.clone(),
            ended: spec.ended,
            problem,
            status: status.cloned().unwrap_or_default(),
            deleted: metadata.deletion_timestamp.is_some(),
            whom: match (spec.mesh, spec.pods.as_slice(), wanted) {
                (true, ..) => Whom::Mesh,
                (false, [], None) => Whom::Namespace,
                (false, names, labels) => Whom::Pods { names: names.to_vec(), labels: labels.cloned() },
            },
        }
    }

    /// Whether it is carried out.
    pub fn is_in_force(&self) -> bool {
        self.problem.is_none() && !self.is_over()
    }

    /// Whether it is over, as far as its object says.
    pub fn is_over(&self) -> bool {
        self.ended || self.deleted || self.status.phase == "Ended"
    }

    /// Whether it is about every pod of its namespace, or of the mesh.
    pub fn is_whole(&self) -> bool {
        !matches!(self.whom, Whom::Pods { .. })
    }

    /// Whether it is about pods of every namespace.
    pub fn is_of_mesh(&self) -> bool {
        self.whom == Whom::Mesh
    }

    /// Whether a pod is meant; who is in the mesh at all is another question.
    pub fn means(&self, namespace: &str, name: &str, pod_labels: &Labels) -> bool {
        match &self.whom {
            Whom::Mesh => true,
            Whom::Namespace => *self.key.namespace == *namespace,
            Whom::Pods { names, labels } => {
                *self.key.namespace == *namespace
                    && (names.iter().any(|one| one == name)
                        || labels.as_ref().is_some_and(|wanted| labels::match_all(wanted, pod_labels)))
            }
        }
    }

    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.key.namespace, self.key.name)
    }
}

/// All orders, by what they can be about.
#[derive(Debug, Default)]
pub struct Orders {
    of: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<Order>>>,
    of_mesh: BTreeMap<(Arc<str>, Arc<str>), Arc<Order>>,
}

impl Orders {
    /// Takes in what an order is now; `None` where it is gone. Returns what it was.
    pub fn replace(&mut self, key: &ObjectKey, order: Option<Order>) -> Option<Arc<Order>> {
        let name = (key.namespace.clone(), key.name.clone());
        let mut before = self.of_mesh.remove(&name);
        if let Some(all) = self.of.get_mut(&key.namespace) {
            before = all.remove(&key.name).or(before);
            if all.is_empty() {
                self.of.remove(&key.namespace);
            }
        }
        if let Some(order) = order.map(Arc::new) {
            if order.is_of_mesh() {
                self.of_mesh.insert(name, order);
            } else {
                self.of.entry(name.0).or_default().insert(name.1, order);
            }
        }
        before
    }

    /// An order.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Order>> {
        let in_namespace = self.of.get(&key.namespace).and_then(|all| all.get(&key.name));
        in_namespace.or_else(|| self.of_mesh.get(&(key.namespace.clone(), key.name.clone())))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Order>> {
        self.of.values().flat_map(BTreeMap::values).chain(self.of_mesh.values())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty() && self.of_mesh.is_empty()
    }

    /// The orders that mean a pod, over or not; those for the whole mesh come last.
    pub fn about<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Arc<Order>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let own = self.of.get(namespace).into_iter().flat_map(BTreeMap::values);
        own.chain(self.of_mesh.values())
            .filter(move |order| order.means(namespace, name, labels::of(&pod.metadata.labels)))
    }

    /// The first order in force that means a pod.
    pub fn in_force<'a>(&'a self, pod: &'a Pod) -> Option<&'a Arc<Order>> {
        self.about(pod).find(|order| order.is_in_force())
    }

    /// Whether any pod of a namespace may be meant by an order in force.
    pub fn any_in(&self, namespace: &str) -> bool {
        let own = self.of.get(namespace).into_iter().flat_map(BTreeMap::values);
        own.chain(self.of_mesh.values()).any(|order| order.is_in_force())
    }

    /// Whether every pod of a namespace is meant by an order in force.
    pub fn is_whole(&self, namespace: &str) -> bool {
        let own = self.of.get(namespace).into_iter().flat_map(BTreeMap::values);
        own.chain(self.of_mesh.values()).any(|order| order.is_whole() && order.is_in_force())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn order(namespace: &str, spec: &str) -> Order {
        let text = format!(
            "apiVersion: stillmesh.io/v1alpha1\nkind: Bypass\nmetadata: {{name: x, namespace: {namespace}, uid: u, \
             creationTimestamp: \"2026-01-01T00:00:00Z\"}}\nspec: {spec}\n"
        );
        let mut found = parse::documents("t", &text);
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        Order::of(&found.objects.remove(0).object, "mesh-system").unwrap()
    }

    fn until(order: &Order) -> Option<String> {
        order.until.map(|time| time.to_string())
    }

    #[test]
    fn a_bypass_ends_by_itself() {
        assert_eq!(until(&order("shop", "{reason: r}")).as_deref(), Some("2026-01-01T00:30:00Z"));
        assert_eq!(until(&order("shop", "{reason: r, duration: 1h30m}")).as_deref(), Some("2026-01-01T01:30:00Z"));
    }

    #[test]
    fn what_cannot_be_carried_out_as_written_is_not_in_force() {
        for (spec, says) in [
            ("{reason: ' '}", "no reason"),
            ("{reason: r, duration: soon}", "not a duration"),
            ("{reason: r, duration: 0s}", "within"),
            ("{reason: r, duration: 169h}", "within"),
            ("{reason: r, mesh: true}", "mesh-system"),
        ] {
            let order = order("shop", spec);
            assert!(order.problem.as_deref().unwrap_or_default().contains(says), "{spec}: {:?}", order.problem);
            assert!(!order.is_in_force(), "{spec}");
        }
        let both = order("mesh-system", "{reason: r, mesh: true, pods: [a]}");
        assert!(!both.is_in_force());
        assert!(order("mesh-system", "{reason: r, mesh: true}").is_in_force());
    }

    #[test]
    fn whom_an_order_means() {
        let none = Labels::new();
        let web: Labels = [("app".to_owned(), "web".to_owned())].into();
        let whole = order("shop", "{reason: r}");
        assert!(whole.means("shop", "a", &none) && !whole.means("other", "a", &none));
        let some = order("shop", "{reason: r, pods: [a], selector: {matchLabels: {app: web}}}");
        assert!(some.means("shop", "a", &none) && some.means("shop", "b", &web));
        assert!(!some.means("shop", "b", &none) && !some.means("other", "a", &web));
        assert!(order("mesh-system", "{reason: r, mesh: true}").means("any", "z", &none));
    }

    #[test]
    fn it_is_over_when_its_object_says_so() {
        let active = order("shop", "{reason: r}");
        assert!(active.is_in_force());
        assert!(order("shop", "{reason: r, ended: true}").is_over());
        let by_leader =
            Order { status: SteeringStatus { phase: "Ended".into(), ..SteeringStatus::default() }, ..active };
        assert!(by_leader.is_over() && !by_leader.is_in_force());
    }

    #[test]
    fn a_quarantine_is_an_order_of_its_own_kind_and_never_for_the_whole_mesh() {
        let text = "apiVersion: stillmesh.io/v1alpha1\nkind: Quarantine\nmetadata: {name: q, namespace: shop}\nspec: ";
        let found = parse::documents("t", &format!("{text}{{reason: r, pods: [a]}}\n"));
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        let order = Order::of(&found.objects[0].object, "mesh-system").unwrap();
        assert_eq!(order.key.to_string(), "Quarantine shop/q");
        assert!(order.means("shop", "a", &Labels::new()) && !order.means("shop", "b", &Labels::new()));
        let mesh = parse::documents("t", &format!("{text}{{reason: r, mesh: true}}\n"));
        assert!(!mesh.findings.is_empty(), "what cannot be read is not taken for a namespace's");
    }

    #[test]
    fn orders_are_found_by_pod_and_forgotten() {
        let mut orders = Orders::default();
        let (of_shop, of_mesh) = (order("shop", "{reason: r}"), order("mesh-system", "{reason: r, mesh: true}"));
        orders.replace(&of_shop.key.clone(), Some(of_shop.clone()));
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("shop".into());
        assert!(orders.in_force(&pod).is_some() && orders.is_whole("shop") && !orders.is_whole("other"));
        pod.metadata.namespace = Some("other".into());
        assert!(orders.in_force(&pod).is_none());
        orders.replace(&of_mesh.key.clone(), Some(of_mesh.clone()));
        assert!(orders.in_force(&pod).is_some() && orders.is_whole("other"));
        assert!(orders.replace(&of_mesh.key, None).is_some() && orders.replace(&of_shop.key, None).is_some());
        assert!(orders.is_empty());
    }
}
