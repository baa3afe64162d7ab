//! The tables of a snapshot and how an object enters and leaves each of them.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::accesses::Accesses;
use super::destinations::Destinations;
use super::routes::Routes;
use super::shards::Shards;
use super::sorted::{Few, Sorted};
use crate::model::{
    NetworkAddress, NetworkCidr, NetworkMode, Policy, PolicyKey, Scope, Service, ServiceKey, Str, Workload, WorkloadUid,
};

/// Everything known, by every key that is asked for. Cloning costs a reference count per table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tables {
    pub(super) workloads: Shards<WorkloadUid, Arc<Workload>>,
    pub(super) by_address: Shards<NetworkAddress, Few<Arc<Workload>>>,
    /// By [`pod_hash`]; whoever looks here compares the names.
    pub(super) by_pod: Shards<u64, Few<Arc<Workload>>>,
    /// The workloads that name a service.
    pub(super) members: Shards<ServiceKey, Sorted<Arc<Workload>>>,
    /// The workloads that name a policy.
    pub(super) named_by: Shards<PolicyKey, Sorted<WorkloadUid>>,

    pub(super) services: Shards<ServiceKey, Arc<Service>>,
    pub(super) by_vip: Shards<NetworkAddress, Few<Arc<Service>>>,
    pub(super) by_cidr: Shards<NetworkCidr, Few<Arc<Service>>>,
    /// How many ranges there are of each length, to look only for lengths that occur: `(is IPv6, length)`.
    pub(super) cidr_lengths: Arc<BTreeMap<(bool, u8), usize>>,
    pub(super) by_hostname: Shards<Str, Few<Arc<Service>>>,

    pub(super) policies: Shards<PolicyKey, Arc<Policy>>,
    pub(super) global: Sorted<Arc<Policy>>,
    pub(super) by_namespace: Shards<Str, Sorted<Arc<Policy>>>,

    pub(super) routes: Routes,

    pub(super) accesses: Accesses,

    pub(super) destinations: Destinations,
}

/// Hash of a pod's namespace and name: cheaper to keep 10,000 times than the names.
pub(super) fn pod_hash(namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, name).hash(&mut hasher);
    hasher.finish()
}

impl Tables {
    pub(super) fn put_workload(&mut self, new: &Arc<Workload>) {
        if let Some(old) = self.workloads.insert(new.uid.clone(), new.clone()) {
            self.unlink_workload(&old, Some(new));
        }
        self.by_pod.update(&pod_hash(&new.namespace, &new.name), |few| few.insert(new.clone()), Few::is_empty);
        if new.network_mode == NetworkMode::Standard {
            for address in new.network_addresses() {
                self.by_address.update(&address, |few| few.insert(new.clone()), Few::is_empty);
            }
        }
        for (service, _) in &new.services {
            self.members.update(service, |set| set.insert(new.clone()), Sorted::is_empty);
        }
        for policy in &new.authorization_policies {
            self.named_by.update(policy, |set| set.insert(new.uid.clone()), Sorted::is_empty);
        }
    }

    pub(super) fn remove_workload(&mut self, uid: &WorkloadUid) {
        if let Some(old) = self.workloads.remove(uid) {
            self.unlink_workload(&old, None);
        }
    }

    /// Takes `old` out of the indexes, but for the keys under which `new` is about to replace it.
    fn unlink_workload(&mut self, old: &Workload, new: Option<&Workload>) {
        let same_pod = |new: &Workload| new.namespace == old.namespace && new.name == old.name;
        if !new.is_some_and(same_pod) {
            self.by_pod.update(&pod_hash(&old.namespace, &old.name), |few| few.remove(&old.uid), Few::is_empty);
        }
        if old.network_mode == NetworkMode::Standard {
            for address in old.network_addresses() {
                let stays = |new: &Workload| {
                    new.network_mode == NetworkMode::Standard
                        && new.network == old.network
                        && new.addresses.contains(&address.address)
                };
                if !new.is_some_and(stays) {
                    self.by_address.update(&address, |few| few.remove(&old.uid), Few::is_empty);
                }
            }
        }
        for (service, _) in &old.services {
            if !new.is_some_and(|new| new.services.iter().any(|(key, _)| key == service)) {
                self.members.update(service, |set| set.remove(&old.uid), Sorted::is_empty);
            }
        }
        for policy in &old.authorization_policies {
            if !new.is_some_and(|new| new.authorization_policies.contains(policy)) {
                self.named_by.update(policy, |set| set.remove(&old.uid), Sorted::is_empty);
            }
        }
    }

    pub(super) fn put_service(&mut self, new: &Arc<Service>) {
        self.remove_service(&new.key);
        self.services.insert(new.key.clone(), new.clone());
        self.by_hostname.update(&new.key.hostname, |few| few.insert(new.clone()), Few::is_empty);
        for vip in &new.vips {
            self.by_vip.update(vip, |few| few.insert(new.clone()), Few::is_empty);
        }
        for range in ranges(new) {
            *Arc::make_mut(&mut self.cidr_lengths).entry(length(&range)).or_default() += 1;
            self.by_cidr.update(&range, |few| few.insert(new.clone()), Few::is_empty);
        }
    }

    pub(super) fn remove_service(&mut self, key: &ServiceKey) {
        let Some(old) = self.services.remove(key) else { return };
        self.by_hostname.update(&key.hostname, |few| few.remove(key), Few::is_empty);
        for vip in &old.vips {
            self.by_vip.update(vip, |few| few.remove(key), Few::is_empty);
        }
        for range in ranges(&old) {
            let lengths = Arc::make_mut(&mut self.cidr_lengths);
            if let Some(count) = lengths.get_mut(&length(&range)) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&length(&range));
                }
            }
            self.by_cidr.update(&range, |few| few.remove(key), Few::is_empty);
        }
    }

    pub(super) fn put_policy(&mut self, new: &Arc<Policy>) {
        self.remove_policy(&new.key);
        self.policies.insert(new.key.clone(), new.clone());
        match new.scope {
            Scope::Global => self.global.insert(new.clone()),
            Scope::Namespace => {
                self.by_namespace.update(&new.key.namespace, |set| set.insert(new.clone()), Sorted::is_empty);
            }
            Scope::WorkloadSelector => (),
        }
    }

    pub(super) fn remove_policy(&mut self, key: &PolicyKey) {
        let Some(old) = self.policies.remove(key) else { return };
        match old.scope {
            Scope::Global => self.global.remove(key),
            Scope::Namespace => {
                self.by_namespace.update(&key.namespace, |set| set.remove(key), Sorted::is_empty);
            }
            Scope::WorkloadSelector => (),
        }
    }

    /// Services with a range that holds `address`, and the range's length.
    pub(super) fn services_around(&self, network: &Str, address: IpAddr) -> impl Iterator<Item = (u8, &Arc<Service>)> {
        self.cidr_lengths
            .keys()
            .filter(move |(v6, _)| *v6 == address.is_ipv6())
            .filter_map(move |(_, length)| {
                let cidr = IpNet::new(address, *length).ok()?.trunc();
                self.by_cidr.get(&NetworkCidr { network: network.clone(), cidr }).map(|few| (*length, few))
            })
            .flat_map(|(length, few)| few.iter().map(move |service| (length, service)))
    }
}

/// A service's ranges, each once and without host bits.
fn ranges(service: &Service) -> Vec<NetworkCidr> {
    let whole = |range: &NetworkCidr| NetworkCidr { network: range.network.clone(), cidr: range.cidr.trunc() };
    let mut ranges: Vec<_> = service.cidr_vips.iter().map(whole).collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

fn length(range: &NetworkCidr) -> (bool, u8) {
    (range.cidr.addr().is_ipv6(), range.cidr.prefix_len())
}
