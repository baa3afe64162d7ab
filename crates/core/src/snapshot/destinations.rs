//! DestinationRules joined by service: which of them a waypoint goes by, and what each port and subset comes to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use super::shards::Shards;
use crate::model::destination::{DestinationRule, Traffic, TrafficPolicy};
use crate::model::{PolicyKey, ServiceKey, Str, WorkloadUid};

/// All DestinationRules. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Destinations {
    by_key: Shards<PolicyKey, Arc<DestinationRule>>,
    by_service: Shards<ServiceKey, Arc<ServiceRules>>,
}

/// What a DestinationRule means for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// For all endpoints.
    ports: Ports,
    subsets: HashMap<Str, SubsetOf>,
}

#[derive(Clone, Debug, PartialEq)]
struct SubsetOf {
    members: Arc<HashSet<WorkloadUid>>,
    ports: Ports,
}

/// What holds for a port, and for those without something of their own.
#[derive(Clone, Debug, PartialEq)]
struct Ports {
    all: Arc<TrafficPolicy>,
    single: HashMap<u16, Arc<TrafficPolicy>>,
}

/// What holds for a port of a service, or of a subset of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Treatment {
    /// The policy.
    pub policy: Arc<TrafficPolicy>,
    /// The endpoints; `None`: all of the service.
    pub members: Option<Arc<HashSet<WorkloadUid>>>,
}

impl Default for Treatment {
    /// Nothing is said.
    fn default() -> Self {
        static NOTHING: LazyLock<Arc<TrafficPolicy>> = LazyLock::new(Arc::default);
        Self { policy: NOTHING.clone(), members: None }
    }
}

impl Destination {
    /// What holds for a port; `None`: there is no such subset.
    pub fn treatment(&self, port: u16, subset: Option<&str>) -> Option<Treatment> {
        let (ports, members) = match subset {
            None => (&self.ports, None),
            Some(name) => {
                let subset = self.subsets.get(name)?;
                (&subset.ports, Some(subset.members.clone()))
            }
        };
        Some(Treatment { policy: ports.single.get(&port).unwrap_or(&ports.all).clone(), members })
    }

    /// Names of its subsets, in no order.
    pub fn subsets(&self) -> impl Iterator<Item = &Str> {
        self.subsets.keys()
    }

    /// `rules` are those of one namespace, of one exactness, the oldest first.
    fn new(rules: &[&DestinationRule]) -> Self {
        let nothing = Traffic::default();
        let traffic = rules.iter().map(|rule| &rule.traffic).find(|traffic| **traffic != nothing).unwrap_or(&nothing);
        let ports = Ports::new(None, traffic);
        let mut subsets = HashMap::new();
        for subset in rules.iter().flat_map(|rule| &rule.subsets) {
            subsets.entry(subset.name.clone()).or_insert_with(|| SubsetOf {
                members: Arc::new(subset.members.iter().cloned().collect()),
                ports: Ports::new(Some(&ports), &subset.traffic),
            });
        }
        Self { ports, subsets }
    }
}

impl Ports {
    /// Part by part, what is said here comes before what is said `under` it; what is said of one port, as a whole.
    fn new(under: Option<&Self>, traffic: &Traffic) -> Self {
        let said = |under: &TrafficPolicy| Arc::new(under.overridden(&traffic.policy));
        let mut single: HashMap<u16, Arc<TrafficPolicy>> =
            under.into_iter().flat_map(|under| &under.single).map(|(port, policy)| (*port, said(policy))).collect();
        single.extend(traffic.ports.iter().map(|(port, policy)| (*port, Arc::new(policy.clone()))));
        let nothing = Arc::default();
        Self { all: said(under.map_or(&nothing, |under| &under.all)), single }
    }
}

/// The rules of one service.
#[derive(Clone, Debug, PartialEq)]
struct ServiceRules {
    rules: BTreeMap<PolicyKey, Arc<DestinationRule>>,
    by_namespace: HashMap<Str, Destination>,
    mesh_wide: Option<Destination>,
}

impl ServiceRules {
    fn new(rules: BTreeMap<PolicyKey, Arc<DestinationRule>>) -> Self {
        let mut namespaces: BTreeMap<&Str, Vec<&DestinationRule>> = BTreeMap::new();
        for rule in rules.values() {
            namespaces.entry(&rule.key.namespace).or_default().push(rule);
        }
        let (mut by_namespace, mut mesh_wide) = (HashMap::new(), None);
        for (namespace, mut rules) in namespaces {
            let exactness = rules.iter().map(|rule| rule.exactness).max();
            rules.retain(|rule| Some(rule.exactness) == exactness);
            rules.sort_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)));
            let joined = Destination::new(&rules);
            if rules.iter().any(|rule| rule.is_mesh_wide) {
                mesh_wide = Some(joined.clone());
            }
            by_namespace.insert(namespace.clone(), joined);
        }
        Self { rules, by_namespace, mesh_wide }
    }
}

impl Destinations {
    pub(super) fn get(&self, key: &PolicyKey) -> Option<&Arc<DestinationRule>> {
        self.by_key.get(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.by_key.values()
    }

    /// What a waypoint of `namespace` goes by: what its own namespace says, then the service's, then the mesh.
    pub(super) fn of(&self, service: &ServiceKey, namespace: &str) -> Option<&Destination> {
        let rules = self.by_service.get(service)?;
        let own = rules.by_namespace.get(namespace);
        own.or_else(|| rules.by_namespace.get(&service.namespace)).or(rules.mesh_wide.as_ref())
    }

    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = (PolicyKey, Option<Arc<DestinationRule>>)>) {
        let mut touched: BTreeMap<ServiceKey, BTreeSet<PolicyKey>> = BTreeMap::new();
        for (key, new) in changes {
            if self.by_key.get(&key) == new.as_ref() {
                continue;
            }
            let old = match new.clone() {
                Some(new) => self.by_key.insert(key.clone(), new),
                None => self.by_key.remove(&key),
            };
            for service in old.iter().chain(&new).flat_map(|rule| &rule.services) {
                touched.entry(service.clone()).or_default().insert(key.clone());
            }
        }
        for (service, keys) in touched {
            let mut rules = self.by_service.get(&service).map(|rules| rules.rules.clone()).unwrap_or_default();
            for key in keys {
                match self.by_key.get(&key).filter(|rule| rule.services.contains(&service)) {
                    Some(rule) => drop(rules.insert(key, rule.clone())),
                    None => drop(rules.remove(&key)),
                }
            }
            if rules.is_empty() {
                self.by_service.remove(&service);
            } else {
                self.by_service.insert(service, Arc::new(ServiceRules::new(rules)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{policy_key, service_key, uid};
    use crate::model::destination::{Balancing, ConnectionPool, Method, Subset};

    fn by(method: Method) -> TrafficPolicy {
        TrafficPolicy { balancing: Some(Balancing { method, ..Balancing::default() }), ..TrafficPolicy::default() }
    }

    fn at_most(connections: u32) -> TrafficPolicy {
        let limits = ConnectionPool { connections: Some(connections), ..ConnectionPool::default() };
        TrafficPolicy { limits: Some(limits), ..TrafficPolicy::default() }
    }

    fn rule(name: &str, policy: TrafficPolicy) -> DestinationRule {
        DestinationRule {
            key: policy_key(name),
            services: vec![service_key("shop/web")],
            exactness: DestinationRule::WHOLE,
            is_mesh_wide: false,
            created: 1,
            traffic: Traffic { policy, ports: Vec::new() },
            subsets: Vec::new(),
        }
    }

    fn subset(name: &str, member: &str, policy: TrafficPolicy) -> Subset {
        Subset { name: name.into(), members: vec![uid(member)], traffic: Traffic { policy, ports: Vec::new() } }
    }

    fn all(rules: Vec<DestinationRule>) -> Destinations {
        let mut destinations = Destinations::default();
        destinations.apply(rules.into_iter().map(|rule| (rule.key.clone(), Some(Arc::new(rule)))));
        destinations
    }

    fn found(destinations: &Destinations, namespace: &str, port: u16, subset: Option<&str>) -> Option<Treatment> {
        destinations.of(&service_key("shop/web"), namespace)?.treatment(port, subset)
    }

    #[test]
    fn the_waypoints_namespace_comes_before_the_services_and_the_mesh_is_last() {
        let mesh = DestinationRule { is_mesh_wide: true, ..rule("istio-system/all", by(Method::Random)) };
        let (own, edge) = (rule("shop/web", at_most(1)), rule("edge/web", at_most(2)));
        let destinations = all(vec![mesh.clone(), own, edge]);
        let policy = |namespace| found(&destinations, namespace, 80, None).map(|found| (*found.policy).clone());
        assert_eq!(policy("edge"), Some(at_most(2)));
        assert_eq!(policy("shop"), Some(at_most(1)));
        assert_eq!(policy("other"), Some(at_most(1)), "that of the service's namespace");
        assert_eq!(
            found(&all(vec![mesh]), "shop", 80, None).map(|found| (*found.policy).clone()),
            Some(by(Method::Random))
        );
        assert_eq!(found(&all(vec![rule("other/web", at_most(3))]), "shop", 80, None), None, "somebody else's");
    }

    #[test]
    fn a_whole_host_counts_before_a_wildcard_and_the_oldest_policy_with_everybodys_subsets() {
        let wild = DestinationRule { exactness: 10, created: 0, ..rule("shop/wild", at_most(9)) };
        let mut young = DestinationRule { created: 5, ..rule("shop/a", at_most(5)) };
        young.subsets = vec![subset("v1", "shop/new", TrafficPolicy::default()), subset("v2", "shop/b", at_most(7))];
        let mut old = DestinationRule { created: 2, ..rule("shop/b", at_most(2)) };
        old.subsets = vec![subset("v1", "shop/a", TrafficPolicy::default())];
        let destinations = all(vec![wild, young, old]);
        let find = |subset| found(&destinations, "shop", 80, subset);
        assert_eq!(find(None).map(|found| (*found.policy).clone()), Some(at_most(2)));
        let first = find(Some("v1")).unwrap();
        assert_eq!((*first.policy).clone(), at_most(2));
        assert!(first.members.unwrap().contains(&uid("shop/a")));
        assert_eq!((*find(Some("v2")).unwrap().policy).clone(), at_most(7));
        assert_eq!(find(Some("v3")), None);
    }

    #[test]
    fn a_subset_overrides_part_by_part_and_a_port_as_a_whole() {
        let mut rule = rule("shop/web", by(Method::Random).overridden(&at_most(1)));
        rule.traffic.ports = vec![(81, at_most(81))];
        let mut v1 = subset("v1", "shop/a", by(Method::RoundRobin));
        v1.traffic.ports = vec![(82, at_most(82))];
        rule.subsets = vec![v1];
        let destinations = all(vec![rule]);
        let policy = |port, subset| (*found(&destinations, "shop", port, subset).unwrap().policy).clone();
        assert_eq!(policy(80, None), by(Method::Random).overridden(&at_most(1)));
        assert_eq!(policy(81, None), at_most(81), "nothing of the policy for all ports");
        assert_eq!(policy(80, Some("v1")), by(Method::RoundRobin).overridden(&at_most(1)));
        assert_eq!(policy(81, Some("v1")), by(Method::RoundRobin).overridden(&at_most(81)));
        assert_eq!(policy(82, Some("v1")), at_most(82));
    }

    #[test]
    fn what_is_removed_is_gone_and_leaves_what_was_never_there() {
        let mut destinations = all(vec![rule("shop/web", at_most(1))]);
        destinations.apply([(policy_key("shop/web"), None)]);
        assert_eq!(destinations, Destinations::default());
        assert_eq!(found(&destinations, "shop", 80, None), None);
    }
}
