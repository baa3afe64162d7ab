//! The Gateways that services and workloads may be bound to, and who asks for which of them: a Gateway that changes
//! costs those that ask for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::Str;
use stillmesh_k8s::gateway::binding::{self, Ask, Named, Waypoint, canary};
use stillmesh_k8s::gateway::{Gateway, GatewayClass};
use stillmesh_k8s::labels;

use super::world::Name;

/// Whose label asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Asker {
    /// For everything in it that does not ask itself.
    Namespace(Str),
    Service(Name),
    Pod(Name),
}

/// The Gateways, and who asks.
#[derive(Debug, Default)]
pub(super) struct Waypoints {
    gateways: HashMap<Named, (Arc<Gateway>, Waypoint)>,
    asking: HashMap<Named, BTreeSet<Asker>>,
    asked: HashMap<Asker, BTreeSet<Named>>,
}

impl Waypoints {
    /// A Gateway as far as binding is concerned.
    pub fn get(&self, named: &Named) -> Option<&Waypoint> {
        self.gateways.get(named).map(|(_, waypoint)| waypoint)
    }

    /// A Gateway as it is written.
    pub fn gateway(&self, named: &Named) -> Option<&Arc<Gateway>> {
        self.gateways.get(named).map(|(gateway, _)| gateway)
    }

    /// A Gateway came, changed or went. Says whether that matters to who is bound to it.
    pub fn replace(&mut self, named: &Named, gateway: Option<Arc<Gateway>>, class: Option<&GatewayClass>) -> bool {
        let waypoint = gateway.as_deref().map(|gateway| Waypoint::read(gateway, class));
        let same = self.gateways.get(named).map(|(_, waypoint)| waypoint) == waypoint.as_ref();
        match gateway.zip(waypoint) {
            Some(both) => drop(self.gateways.insert(named.clone(), both)),
            None => drop(self.gateways.remove(named)),
        }
        !same
    }

    /// The Gateways of a class.
    pub fn of_class(&self, class: &str) -> Vec<(Named, Arc<Gateway>)> {
        let of_class = |gateway: &Gateway| gateway.spec.gateway_class_name == class;
        let all = self.gateways.iter().filter(|(_, (gateway, _))| of_class(gateway));
        all.map(|(named, (gateway, _))| (named.clone(), Arc::clone(gateway))).collect()
    }

    /// An object, or a namespace, has come, changed or gone; `namespace` is its own, or itself.
    pub fn ask(&mut self, asker: Asker, namespace: &str, metadata: Option<&ObjectMeta>) {
        let now: BTreeSet<Named> = metadata.map_or_else(BTreeSet::new, |metadata| {
            let own = labels::of(&metadata.labels);
            let waypoint = match binding::asked(own, namespace) {
                Ask::Waypoint(named) => Some(named),
                Ask::Nothing | Ask::None => None,
            };
            waypoint.into_iter().chain(canary::asked(own, namespace)).collect()
        });
        if self.asked.get(&asker).map_or(now.is_empty(), |before| *before == now) {
            return;
        }
        for before in self.asked.remove(&asker).into_iter().flatten() {
            if let Some(askers) = self.asking.get_mut(&before) {
                askers.remove(&asker);
                if askers.is_empty() {
                    self.asking.remove(&before);
                }
            }
        }
        for named in &now {
            self.asking.entry(named.clone()).or_default().insert(asker.clone());
        }
        if !now.is_empty() {
            self.asked.insert(asker, now);
        }
    }

    /// Who asks for a Gateway.
    pub fn asking(&self, named: &Named) -> impl Iterator<Item = &Asker> {
        self.asking.get(named).into_iter().flatten()
    }
}
