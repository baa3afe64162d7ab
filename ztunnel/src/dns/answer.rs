//! What a name means to a workload. Pure: the snapshot, the client and the question in, the answer out.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use stillmesh_core::model::{IpFamilies, Service, Workload};
use stillmesh_core::snapshot::Snapshot;

/// Which records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// What does not change from question to question.
#[derive(Clone, Debug)]
pub struct Zone {
    /// `svc.<cluster domain>`.
    service_domain: String,
    cluster_domain: String,
    ipv6: bool,
    /// Search domains of ztunnel's own resolver, which pods have too.
    search: Vec<String>,
    preferred_namespace: Option<String>,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is known.
    Known {
        /// The service found.
        service: Arc<Service>,
        /// The name that the addresses belong to, where it is not the name asked for: it was found by taking off a
        /// search domain.
        canonical: Option<String>,
        /// Its addresses of the family asked for, shuffled; may be none.
        addresses: Vec<IpAddr>,
    },
    /// Not a name of the mesh: to be passed on.
    Unknown,
}

/// Names with more labels are not looked up here: every label makes a further wildcard to try.
const MOST_LABELS: usize = 32;

/// Most addresses of one answer: more make no difference to a client and do not fit a packet.
const MOST_ADDRESSES: usize = 64;

impl Zone {
    /// A zone of a cluster.
    pub fn new(cluster_domain: &str, search: &[String], ipv6: bool) -> Self {
        let cluster_domain = normal(cluster_domain);
        Self {
            service_domain: format!("svc.{cluster_domain}"),
            cluster_domain,
            ipv6,
            search: search.iter().map(|domain| normal(domain)).filter(|domain| !domain.is_empty()).collect(),
            preferred_namespace: None,
        }
    }

    /// With a namespace whose services win after the client's own and the canonical ones.
    pub fn preferring(mut self, namespace: Option<String>) -> Self {
        self.preferred_namespace = namespace;
        self
    }

    /// What `name` means to `client`. `entropy` orders the addresses.
    pub fn answer(&self, snapshot: &Snapshot, client: &Workload, name: &str, family: Family, entropy: u64) -> Answer {
        let name = normal(name);
        if name.is_empty() || name.split('.').count() > MOST_LABELS {
            return Answer::Unknown;
        }
        for alias in self.aliases(&client.namespace, &name) {
            for candidate in wildcards(&alias.name) {
                let preferred = self.preferred_namespace.as_deref();
                let service = snapshot.service_named_preferring(&client.namespace, &candidate, preferred);
                let Some(service) = service else { continue };
                if self.is_answered(service) {
                    let addresses = self.addresses(snapshot, client, service, family, entropy);
                    let canonical = alias.stripped.then(|| alias.name.clone());
                    return Answer::Known { service: service.clone(), canonical, addresses };
                }
            }
        }
        Answer::Unknown
    }

    /// A service without addresses is a name only where it is a headless one of Kubernetes.
    fn is_answered(&self, service: &Service) -> bool {
        !service.vips.is_empty()
            || service.key.hostname.strip_suffix(&self.service_domain).is_some_and(|rest| rest.ends_with('.'))
    }

    fn addresses(
        &self,
        snapshot: &Snapshot,
        client: &Workload,
        service: &Service,
        family: Family,
        entropy: u64,
    ) -> Vec<IpAddr> {
        let served = match (family, service.ip_families) {
            (Family::V6, _) if !self.ipv6 => false,
            (Family::V6, IpFamilies::Ipv4Only) | (Family::V4, IpFamilies::Ipv6Only) => false,
            _ => true,
        };
        if !served {
            return Vec::new();
        }
        let mut addresses: Vec<IpAddr> = if service.vips.is_empty() {
            let endpoints = snapshot.endpoints(&service.key).filter(|endpoint| endpoint.network == client.network);
            endpoints.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect()
        } else {
            service.vips.iter().filter(|vip| vip.network == client.network).map(|vip| vip.address).collect()
        };
        addresses.retain(|address| family.has(address));
        shuffle(&mut addresses, entropy);
        addresses.truncate(MOST_ADDRESSES);
        addresses
    }

    /// The names to try, the most literal first.
    fn aliases(&self, namespace: &str, name: &str) -> Vec<Alias> {
        let mut aliases = Vec::new();
        let mut seen = HashSet::new();
        let mut add = |name: String, stripped: bool| {
            if seen.insert(name.clone()) {
                aliases.push(Alias { name, stripped });
            }
        };
        add(name.to_owned(), false);
        for full in self.full_names(namespace, name) {
            add(full, false);
        }
        let own =
            [format!("{namespace}.{}", self.service_domain), self.service_domain.clone(), self.cluster_domain.clone()];
        for domain in own.iter().chain(&self.search) {
            let Some(stripped) = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.')) else {
                continue;
            };
            add(stripped.to_owned(), true);
            for full in self.full_names(namespace, stripped) {
                add(full, true);
            }
        }
        aliases
    }

    /// The full names that a short one may stand for.
    fn full_names(&self, namespace: &str, name: &str) -> Vec<String> {
        let labels: Vec<&str> = name.split('.').collect();
        let domain = &self.service_domain;
        match labels.as_slice() {
            // service
            [_] => vec![format!("{name}.{namespace}.{domain}")],
            // service.namespace, pod.service
            [_, _] => vec![format!("{name}.{domain}"), format!("{name}.{namespace}.{domain}")],
            // service.namespace.svc, pod.service.namespace.svc
            [service, namespace, "svc"] => vec![format!("{service}.{namespace}.{domain}")],
            [pod, service, namespace, "svc"] => vec![format!("{pod}.{service}.{namespace}.{domain}")],
            // pod.service.namespace
            [_, _, _] => vec![format!("{name}.{domain}")],
            _ => Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Alias {
    name: String,
    stripped: bool,
}

/// Lower case, without the root's dot.
pub fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name itself, then `*.` before each of its parents.
fn wildcards(name: &str) -> impl Iterator<Item = String> + '_ {
    let parents = name.char_indices().filter(|(_, letter)| *letter == '.');
    let parents = parents.filter_map(move |(at, _)| name.get(at..)).map(|parent| format!("*{parent}"));
    std::iter::once(name.to_owned()).chain(parents)
}

/// Fisher-Yates by a small generator: order only, nothing secret.
fn shuffle(addresses: &mut [IpAddr], entropy: u64) {
    let mut state = entropy | 1;
    for last in (1..addresses.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (last as u64 + 1)).unwrap_or(0);
        addresses.swap(last, other);
    }
}

#[cfg(test)]
mod tests;
