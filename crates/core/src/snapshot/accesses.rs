//! What decides about requests, by what it is attached to.

use std::sync::Arc;

use super::shards::Shards;
use super::sorted::{Keyed, Sorted};
use crate::model::access::{Access, AccessKey, Attachment, RequestAuthentication, RequestPolicy, RequestSettings};
use crate::model::telemetry::{Telemetry, TelemetrySettings};
use crate::model::{ServiceKey, Workload};

/// An object under its key, to be kept in order of it.
#[derive(Clone, Debug, PartialEq)]
struct Held(AccessKey, Arc<Access>);

impl Keyed for Held {
    type Key = AccessKey;
    fn key(&self) -> &AccessKey {
        &self.0
    }
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Accesses {
    by_key: Shards<AccessKey, Arc<Access>>,
    by_service: Shards<ServiceKey, Sorted<Held>>,
    /// What it is attached to cannot be read.
    everywhere: Sorted<Held>,
    /// What is attached to nothing: settings, and what is told of requests.
    settings: Sorted<Held>,
}

impl Accesses {
    pub(super) fn get(&self, key: &AccessKey) -> Option<&Arc<Access>> {
        self.by_key.get(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Access>> {
        self.by_key.values()
    }

    /// A version that cannot be read does not replace one that can: the last good one stays in force.
    pub(super) fn put(&mut self, new: &Arc<Access>) {
        let key = new.key();
        let old = self.by_key.get(&key);
        let keeps_last_good = new.unreadable().is_some() && old.is_some_and(|old| old.unreadable().is_none());
        if old == Some(new) || keeps_last_good {
            return;
        }
        self.remove(&key);
        let held = Held(key.clone(), new.clone());
        match new.attached() {
            Some(Attachment::To(services)) => {
                for service in services {
                    self.by_service.update(service, |set| set.insert(held.clone()), Sorted::is_empty);
                }
            }
            Some(Attachment::Everything) => self.everywhere.insert(held),
            None => self.settings.insert(held),
        }
        self.by_key.insert(key, new.clone());
    }

    pub(super) fn remove(&mut self, key: &AccessKey) {
        let Some(old) = self.by_key.remove(key) else { return };
        match old.attached() {
            Some(Attachment::To(services)) => {
                for service in services {
                    self.by_service.update(service, |set| set.remove(key), Sorted::is_empty);
                }
            }
            Some(Attachment::Everything) => self.everywhere.remove(key),
            None => self.settings.remove(key),
        }
    }

    pub(super) fn policies(&self, waypoint: &Workload, service: Option<&ServiceKey>) -> Vec<&RequestPolicy> {
        let mut found: Vec<&RequestPolicy> = self
            .attached(waypoint, service)
            .filter_map(|access| match access {
                Access::Policy(policy) => Some(policy),
                _ => None,
            })
            .collect();
        found.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        found.dedup_by(|one, other| one.key == other.key);
        found
    }

    pub(super) fn authentications(
        &self,
        waypoint: &Workload,
        service: Option<&ServiceKey>,
    ) -> Vec<&RequestAuthentication> {
        let mut found: Vec<&RequestAuthentication> = self
            .attached(waypoint, service)
            .filter_map(|access| match access {
                Access::Authentication(authentication) => Some(authentication),
                _ => None,
            })
            .collect();
        found.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        found.dedup_by(|one, other| one.key == other.key);
        found
    }

    pub(super) fn settings(&self) -> Option<&RequestSettings> {
        self.settings.iter().find_map(|Held(_, access)| match &**access {
            Access::Settings(settings) => Some(settings),
            _ => None,
        })
    }

    pub(super) fn telemetry(&self) -> impl Iterator<Item = &Telemetry> {
        self.settings.iter().filter_map(|Held(_, access)| match &**access {
            Access::Telemetry(telemetry) => Some(telemetry),
            _ => None,
        })
    }

    pub(super) fn telemetry_settings(&self) -> Option<&TelemetrySettings> {
        self.settings.iter().find_map(|Held(_, access)| match &**access {
            Access::TelemetrySettings(settings) => Some(settings),
            _ => None,
        })
    }

    /// What is attached to a service, to the waypoint's own services, or to everything. May come twice.
    fn attached<'a, 'q>(
        &'a self,
        waypoint: &'q Workload,
        service: Option<&'q ServiceKey>,
    ) -> impl Iterator<Item = &'a Access> + use<'a, 'q> {
        let own = waypoint.services.iter().map(|(key, _)| key);
        let of_services = service.into_iter().chain(own).filter_map(|key| self.by_service.get(key));
        let held = of_services.flat_map(Sorted::iter).chain(self.everywhere.iter());
        held.map(|Held(_, access)| &**access)
    }
}
