//! Addresses: which are of the underlay, of nodes, pods and services. Pure.
//!
//! A pod that comes back under its name gets the address it had, if that is free; all others get the one that was free
//! the longest, so that a new pod does not at once inherit connections meant for a dead one. Services have the same
//! address in every run: it is drawn from their name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address of the cluster DNS.
pub const DNS_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Address of the controller's service.
pub const CONTROLLER_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 15);
/// The pods' gateway on every node.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 gateway on every node.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Bits of the node's share of pod addresses.
pub const POD_PREFIX4: u8 = 24;
/// Bits of the node's share of IPv6 pod addresses.
pub const POD_PREFIX6: u8 = 64;

/// A node's address on the underlay. Nodes count from 1.
pub fn node4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10u8.saturating_add(node))
}

/// A node's IPv6 address on the underlay.
pub fn node6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 10 + u16::from(node))
}

/// First address of a node's share of pod addresses.
pub fn pods4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 0)
}

/// First address of a node's share of IPv6 pod addresses.
pub fn pods6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, 0)
}

/// IPv4 and IPv6 address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodAddresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

/// The addresses of a node's pods: at most 250.
#[derive(Debug)]
pub struct PodPool {
    node: u8,
    free: VecDeque<u8>,
    last: BTreeMap<String, u8>,
}

impl PodPool {
    /// All free.
    pub fn new(node: u8) -> Self {
        Self { node, free: (2..=251).collect(), last: BTreeMap::new() }
    }

    /// Takes an address for the pod of this name. `None` when all are taken.
    pub fn take(&mut self, pod: &str) -> Option<PodAddresses> {
        let before = self.last.get(pod).and_then(|host| self.free.iter().position(|free| free == host));
        // An address last used under another name is kept for that name while there are others.
        let remembered: BTreeSet<u8> = self.last.values().copied().collect();
        let place = before.or_else(|| self.free.iter().position(|host| !remembered.contains(host))).unwrap_or(0);
        let host = self.free.remove(place)?;
        self.last.retain(|name, last| *last != host || name == pod);
        self.last.insert(pod.to_owned(), host);
        Some(self.addresses(host))
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Gives one back.
    pub fn give_back(&mut self, addresses: PodAddresses) {
        let host = addresses.v4.octets()[3];
        if !self.free.contains(&host) && self.addresses(host) == addresses {
            self.free.push_back(host);
        }
    }

    fn addresses(&self, host: u8) -> PodAddresses {
        let v4 = Ipv4Addr::new(10, 244, self.node, host);
        let [a, b, c, d, e, f, g, _] = pods6(self.node).segments();
        PodAddresses { v4, v6: Ipv6Addr::new(a, b, c, d, e, f, g, u16::from(host)) }
    }
}

/// The addresses of services.
#[derive(Debug, Default)]
pub struct ServicePool {
    taken: BTreeMap<u16, String>,
}

impl ServicePool {
    /// The addresses of a service, the same at every call. `wanted` is `spec.clusterIP`; the error says why it cannot be
    /// had.
    pub fn take(&mut self, service: &str, wanted: Option<&str>) -> Result<(Ipv4Addr, Ipv6Addr), String> {
        if let Some(text) = wanted {
            let host = host_of(text).ok_or_else(|| {
                format!("{text:?} cannot be given; accepted are addresses of 10.96.0.0/16 from 10.96.0.1 on, or none")
            })?;
            match self.taken.get(&host) {
                Some(owner) if owner != service => return Err(format!("{text} is taken by Service {owner}")),
                _ => {}
            }
            self.taken.retain(|other, owner| owner != service || *other == host);
            self.taken.insert(host, service.to_owned());
            return Ok(addresses(host));
        }
        if let Some((host, _)) = self.taken.iter().find(|(_, owner)| *owner == service) {
            return Ok(addresses(*host));
        }
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(service.as_bytes());
        let start = u16::try_from(hasher.finish() % 0xff00).unwrap_or(0);
        // The first 256 are for those who ask for one.
        let host = (0..0xff00u16)
            .map(|step| 0x100 + (start.wrapping_add(step) % 0xfe00))
            .find(|host| !self.taken.contains_key(host) && host.to_be_bytes()[1] != 0)
            .ok_or("all service addresses are taken")?;
        self.taken.insert(host, service.to_owned());
        Ok(addresses(host))
    }

    /// The services that have addresses.
    pub fn taken_by(&self) -> Vec<String> {
        self.taken.values().cloned().collect()
    }

    /// Gives back what a service had.
    pub fn give_back(&mut self, service: &str) {
        self.taken.retain(|_, owner| owner != service);
    }
}

fn addresses(host: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [high, low] = host.to_be_bytes();
    (Ipv4Addr::new(10, 96, high, low), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host))
}

fn host_of(text: &str) -> Option<u16> {
    match text.parse().ok()? {
        IpAddr::V4(address) => match address.octets() {
            [10, 96, high, low] => Some(u16::from_be_bytes([high, low])).filter(|host| *host != 0),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_comes_back_gets_the_address_it_had() {
        let mut pool = PodPool::new(3);
        let first = pool.take("shop/a").unwrap();
        assert_eq!(first.v4, Ipv4Addr::new(10, 244, 3, 2));
        assert_eq!(first.v6, "fd00:244:3::2".parse::<Ipv6Addr>().unwrap());
        pool.give_back(first);
        assert_ne!(pool.take("shop/b").unwrap(), first);
        assert_eq!(pool.take("shop/a").unwrap(), first);
    }

    #[test]
    fn no_address_is_given_twice_and_all_come_back() {
        let mut pool = PodPool::new(1);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take(&format!("x/{}", rand::random::<u64>()))).collect();
        assert_eq!(taken.len(), 250);
        assert_eq!(taken.iter().map(|pod| pod.v4).collect::<BTreeSet<_>>().len(), 250);
        taken.iter().for_each(|pod| pool.give_back(*pod));
        assert_eq!(std::iter::from_fn(|| pool.take(&format!("y/{}", rand::random::<u64>()))).count(), 250);
    }

    #[test]
    fn a_service_has_the_same_address_in_every_run_and_none_twice() {
        let mut pool = ServicePool::default();
        let one = pool.take("shop/page", None).unwrap();
        assert_eq!(pool.take("shop/page", None).unwrap(), one);
        assert_eq!(ServicePool::default().take("shop/page", None).unwrap(), one);
        let all: BTreeSet<_> = (0..2000).map(|number| pool.take(&format!("s/{number}"), None).unwrap().0).collect();
        assert_eq!(all.len(), 2000);
        assert!(!all.contains(&one.0));
    }

    #[test]
    fn an_address_that_was_asked_for_is_given_or_refused_with_the_reason() {
        let mut pool = ServicePool::default();
        assert_eq!(pool.take("a/b", Some("10.96.0.10")).unwrap().0, DNS_VIP);
        assert_eq!(pool.take("a/c", Some("10.96.0.10")).unwrap_err(), "10.96.0.10 is taken by Service a/b");
        assert!(pool.take("a/c", Some("192.168.1.1")).unwrap_err().contains("10.96.0.0/16"));
        assert!(pool.take("a/c", Some("10.96.0.0")).is_err());
    }
}
