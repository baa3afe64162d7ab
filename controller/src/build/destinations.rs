//! DestinationRules, and what they are about: a Service, or a pod behind it, that changes costs the rules that name it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use stillmesh_core::model::destination::DestinationRule as Model;
use stillmesh_core::model::{PolicyKey, Str, WorkloadUid};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::istio::destination_rule::DestinationRule;
use stillmesh_k8s::labels::{self, Labels};
use stillmesh_k8s::translate::{self, Endpoints, Mesh};
use stillmesh_k8s::{Kind, ObjectKey};

use super::made::Before;
use super::routes::{Known, service_name};
use super::world::{Name, ends, wanted_by};
use super::{About, Builder, Dirty, Made, Verdict, publish};

/// The rules, and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    written: BTreeMap<Name, Arc<DestinationRule>>,
    /// The rules that name a Service.
    naming: HashMap<Name, BTreeSet<Name>>,
    /// Those that may mean Services which they do not name.
    wild: BTreeSet<Name>,
    published: HashMap<PolicyKey, Arc<Model>>,
}

impl Destinations {
    /// A rule came, changed or went.
    pub fn replace(&mut self, name: &Name, rule: Option<Arc<DestinationRule>>, mesh: &Mesh) {
        let named = |rule: &DestinationRule| translate::destination_rule_names(rule, mesh);
        let (new, is_wild) = rule.as_deref().map(named).unwrap_or_default();
        match is_wild {
            true => self.wild.insert(name.clone()),
            false => self.wild.remove(name),
        };
        let old = match rule {
            Some(rule) => self.written.insert(name.clone(), rule),
            None => self.written.remove(name),
        };
        if let Some(service) = old.and_then(|old| named(&old).0)
            && let Some(rules) = self.naming.get_mut(&service)
        {
            rules.remove(name);
            if rules.is_empty() {
                self.naming.remove(&service);
            }
        }
        if let Some(service) = new {
            self.naming.entry(service).or_default().insert(name.clone());
        }
    }

    /// The rules that may be about a Service.
    fn about(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.naming.get(service).into_iter().flatten().chain(&self.wild)
    }

    /// All rules.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.written.keys()
    }

    /// All that is published.
    pub fn published(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.published.values()
    }
}

impl Builder {
    /// The rules about a Service are built again.
    pub(super) fn touch_destinations(&mut self, service: &Name) {
        self.dirty.destinations.extend(self.world.destinations.about(service).cloned());
    }

    /// The rules about Services that select a pod are built again.
    pub(super) fn touch_subsets(&mut self, namespace: &Str, pod: &Pod) {
        if self.world.destinations.written.is_empty() {
            return;
        }
        let name: Name = (namespace.clone(), pod.metadata.name.as_deref().unwrap_or_default().into());
        let selecting =
            self.world.services_for(namespace, pod).map(|(service, _)| (namespace.clone(), service.clone()));
        let listing = self.world.slices_of_pod(&name).filter_map(|slice| ends(slice, self.world.slices.get(slice)?).0);
        for service in selecting.chain(listing).collect::<Vec<Name>>() {
            self.touch_destinations(&service);
        }
    }

    /// Builds the rules that are concerned, and says what their statuses should say.
    pub(super) fn build_destinations(
        &mut self,
        dirty: &Dirty,
        set: &mut Vec<Change>,
        removed: &mut Vec<Change>,
        verdicts: &mut Vec<Verdict>,
        made: &mut Vec<Made>,
    ) {
        let destinations = &self.world.destinations;
        let about = dirty.services.iter().flat_map(|service| destinations.about(service));
        let all: BTreeSet<Name> = dirty.destinations.iter().chain(about).cloned().collect();
        for name in all {
            let (verdict, one) = self.build_destination(&name, set, removed);
            verdicts.push(verdict);
            made.push(one);
        }
    }

    fn build_destination(&mut self, name: &Name, set: &mut Vec<Change>, removed: &mut Vec<Change>) -> (Verdict, Made) {
        let before = Before::new(set, removed);
        let written = self.world.destinations.written.get(name).cloned();
        let known = Known { world: &self.world, mesh: &self.mesh };
        let mut made = written.as_deref().map(|written| translate::destination_rule(written, &known, &self.mesh));
        let key = PolicyKey::new(name.0.clone(), name.1.clone());
        let refused = made.as_ref().is_some_and(|made| made.refused);
        let published = &mut self.world.destinations.published;
        match &mut made {
            Some(made) if made.refused && published.contains_key(&key) => made.stays_as_it_was(),
            made => {
                let rule = made.as_mut().and_then(|made| made.rule.take());
                publish(published, key.clone(), rule, Change::Destination, Change::DestinationRemoved, set, removed);
            }
        }
        let metadata = written.as_ref().map(|written| &written.metadata);
        let status = written.as_ref().and_then(|written| written.status.as_ref());
        let object = ObjectKey::new(Kind::DestinationRule, &name.0, &name.1);
        let existing = status.map(|status| status.conditions.clone()).unwrap_or_default();
        let published = self.world.destinations.published.get(&key);
        let about = (published.is_some() || refused).then(|| {
            let services = published.into_iter().flat_map(|rule| &rule.services);
            let waypoints = services.flat_map(|service| self.waypoints_of(&service_name(service))).collect();
            About { nodes: false, waypoints, refused }
        });
        let told = Made::new(object.clone(), metadata, before.since(set, removed), about);
        let condition = made.map(|made| made.condition);
        (Verdict { condition, ..Verdict::new(object, metadata, existing) }, told)
    }
}

impl Endpoints for Known<'_> {
    fn endpoints(&self, namespace: &str, name: &str, wanted: &Labels) -> Vec<WorkloadUid> {
        let service: Name = (namespace.into(), name.into());
        let selector = wanted_by(self.world.services.get(&service).map(|service| &**service));
        let selected = selector.into_iter().flat_map(|selector| self.world.pods_with(&service.0, selector));
        let listed = self
            .world
            .slices_of_service(&service)
            .flat_map(|slice| self.world.slices.get(slice).into_iter().flat_map(|one| ends(slice, one).1));
        let pods: BTreeSet<Name> = selected.chain(listed).collect();
        let has = |name: &&Name| {
            let pod = self.world.pods.get(name);
            pod.is_some_and(|pod| labels::match_all(wanted, labels::of(&pod.metadata.labels)))
        };
        pods.iter().filter(has).map(|(namespace, pod)| translate::workload_uid(namespace, pod, self.mesh)).collect()
    }
}
