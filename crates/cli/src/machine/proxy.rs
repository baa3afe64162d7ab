//! Service addresses, by nftables in each node's namespace: a new connection to a service goes to one of its ready
//! endpoints, drawn at random; a pod that reaches itself that way is masqueraded, so that the answer takes the way back; a
//! service address without an endpoint or port is refused at once.
//!
//! [`plan`] is pure: it turns the difference between two sets of services into one transaction, so a service
//! that did not change is not touched. Open connections keep their endpoint: only opening packets are translated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use stillmesh_netlink::nft::{
    self, Batch, Chain, DataType, Element, Expr, Family, Field, Hook, Key, Kind, NatTarget, Reject, Rule, Set, Table,
    Verdict, any_of, eq, in_cidr, in_set, jump, masquerade, reject_tcp_reset,
};

/// A port of a service address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The service's address.
    pub address: IpAddr,
    /// TCP or UDP, by its number.
    pub protocol: u8,
    /// The service's port.
    pub port: u16,
}

/// Where connections to each service port go: the ready endpoints, of the address's family.
pub type Services = BTreeMap<Frontend, BTreeSet<SocketAddr>>;

const TABLE: &str = "stillmesh-services";
/// Name of the chain that looks services up.
const LOOKUP: &str = "services";

/// The table with no service in it.
pub fn base() -> Table {
    let nat = |name: &str, hook, priority| Chain::base(name, Kind::Nat, hook, priority);
    let filter = |name: &str, hook| Chain::base(name, Kind::Filter, hook, 0).rule(Rule::new([jump("refuse")]));
    let mut lookup = Chain::new(LOOKUP);
    let mut refuse = Chain::new("refuse");
    for (family, networks) in [(IpFamily::V4, "10.96.0.0/16"), (IpFamily::V6, "fd00:96::/112")] {
        lookup = lookup.rule(Rule::new([
            family.is(),
            Expr::VerdictMap {
                key: Key::Fields(vec![family.destination(), Field::L4Proto, Field::ThDport]),
                map: family.services().to_owned(),
            },
        ]));
        if let Ok(network) = networks.parse::<IpNet>() {
            let services = in_cidr(family.destination(), network);
            refuse = refuse
                .rule(Rule::new([services.clone(), eq(Field::L4Proto, nft::TCP), reject_tcp_reset()]))
                .rule(Rule::new([services, Expr::Reject(Reject::PortUnreachable)]));
        }
    }
    let mut hairpin = nat("postrouting", Hook::Postrouting, 100);
    for family in [IpFamily::V4, IpFamily::V6] {
        hairpin = hairpin.rule(Rule::new([
            any_of(Field::CtStatus, Field::DNAT),
            in_set([family.source(), family.destination()], family.hairpin()),
            masquerade(),
        ]));
    }
    Table::new(Family::Inet, TABLE)
        .set(IpFamily::V4.services_set())
        .set(IpFamily::V6.services_set())
        .set(IpFamily::V4.hairpin_set())
        .set(IpFamily::V6.hairpin_set())
        .chain(lookup)
        .chain(refuse)
        .chain(nat("prerouting", Hook::Prerouting, -100).rule(Rule::new([jump(LOOKUP)])))
        .chain(nat("output", Hook::Output, -100).rule(Rule::new([jump(LOOKUP)])))
        .chain(hairpin)
        .chain(filter("forward", Hook::Forward))
        .chain(filter("local", Hook::Output))
}

/// What leads from one set of services to another, as one transaction; empty where nothing changed.
pub fn plan(from: &Services, to: &Services) -> Batch {
    let mut batch = Batch::new();
    let (old_pods, new_pods) = (addresses(from), addresses(to));
    for family in [IpFamily::V4, IpFamily::V6] {
        let elements = |pods: BTreeSet<&IpAddr>| -> Vec<Element> {
            let same = pods.into_iter().filter(|address| family.holds(**address));
            same.map(|address| Element::key([(*address).into(), (*address).into()])).collect()
        };
        let set = family.hairpin_set();
        batch.delete_elements(Family::Inet, TABLE, &set, elements(old_pods.difference(&new_pods).collect()));
        batch.add_elements(Family::Inet, TABLE, &set, elements(new_pods.difference(&old_pods).collect()));
    }
    for (frontend, endpoints) in from {
        if to.get(frontend) != Some(endpoints) && !endpoints.is_empty() {
            remove(&mut batch, frontend);
        }
    }
    for (frontend, endpoints) in to {
        if from.get(frontend) != Some(endpoints) && !endpoints.is_empty() {
            add(&mut batch, frontend, endpoints);
        }
    }
    batch
}

fn add(batch: &mut Batch, frontend: &Frontend, endpoints: &BTreeSet<SocketAddr>) {
    let name = chain_name(frontend);
    let family = IpFamily::of(frontend.address);
    let set = Set::endpoints(format!("{name}-to"), endpoints.iter().copied());
    batch.add_set(Family::Inet, TABLE, &set);
    let target = NatTarget::Map {
        key: Key::Random { modulus: u32::try_from(endpoints.len()).unwrap_or(u32::MAX) },
        map: set.name,
        ipv6: family == IpFamily::V6,
    };
    let rule = Rule::new([family.is(), eq(Field::L4Proto, frontend.protocol), Expr::Dnat(target)]);
    batch.add_chain(Family::Inet, TABLE, &Chain::new(name.clone()).rule(rule));
    let element = element(frontend, Verdict::Goto(name));
    batch.add_elements(Family::Inet, TABLE, &family.services_set(), vec![element]);
}

fn remove(batch: &mut Batch, frontend: &Frontend) {
    let name = chain_name(frontend);
    let family = IpFamily::of(frontend.address);
    let element = element(frontend, Verdict::Goto(name.clone()));
    batch.delete_elements(Family::Inet, TABLE, &family.services_set(), vec![element]);
    batch.flush_chain(Family::Inet, TABLE, &name);
    batch.delete_chain(Family::Inet, TABLE, &name);
    batch.delete_set(Family::Inet, TABLE, &format!("{name}-to"));
}

fn element(frontend: &Frontend, verdict: Verdict) -> Element {
    Element::verdict([frontend.address.into(), frontend.protocol.into(), frontend.port.into()], verdict)
}

fn addresses(services: &Services) -> BTreeSet<IpAddr> {
    services.values().flatten().map(SocketAddr::ip).collect()
}

fn chain_name(frontend: &Frontend) -> String {
    let protocol = if frontend.protocol == nft::UDP { "udp" } else { "tcp" };
    let address = frontend.address.to_string().replace([':', '.'], "-");
    format!("{protocol}-{address}-{}", frontend.port)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn holds(self, address: IpAddr) -> bool {
        Self::of(address) == self
    }

    /// Matches packets of the family.
    fn is(self) -> Expr {
        eq(
            Field::NfProto,
            match self {
                Self::V4 => 2u8,
                Self::V6 => 10u8,
            },
        )
    }

    fn source(self) -> Field {
        match self {
            Self::V4 => Field::IpSaddr,
            Self::V6 => Field::Ip6Saddr,
        }
    }

    fn destination(self) -> Field {
        match self {
            Self::V4 => Field::IpDaddr,
            Self::V6 => Field::Ip6Daddr,
        }
    }

    fn data(self) -> DataType {
        match self {
            Self::V4 => DataType::Ipv4,
            Self::V6 => DataType::Ipv6,
        }
    }

    fn services(self) -> &'static str {
        match self {
            Self::V4 => "services4",
            Self::V6 => "services6",
        }
    }

    fn hairpin(self) -> &'static str {
        match self {
            Self::V4 => "itself4",
            Self::V6 => "itself6",
        }
    }

    fn services_set(self) -> Set {
        Set::verdicts(self.services(), [self.data(), DataType::Protocol, DataType::Port])
    }

    fn hairpin_set(self) -> Set {
        Set::of(self.hairpin(), [self.data(), self.data()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(list: &[(&str, u16, &[&str])]) -> Services {
        let one = |(address, port, endpoints): &(&str, u16, &[&str])| {
            let frontend = Frontend { address: address.parse().unwrap(), protocol: nft::TCP, port: *port };
            (frontend, endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect())
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn equal_services_need_no_transaction() {
        let some = services(&[("10.96.1.1", 80, &["10.244.1.2:8080"])]);
        assert!(plan(&some, &some).is_empty());
    }

    #[test]
    fn only_the_service_that_changed_is_in_the_transaction() {
        let before = services(&[("10.96.1.1", 80, &["10.244.1.2:8080"]), ("10.96.1.2", 80, &["10.244.1.3:80"])]);
        let after = services(&[
            ("10.96.1.1", 80, &["10.244.1.2:8080", "10.244.2.2:8080"]),
            ("10.96.1.2", 80, &["10.244.1.3:80"]),
        ]);
        let text = format!("{:?}", plan(&before, &after));
        assert!(text.contains("tcp-10-96-1-1-80"));
        assert!(!text.contains("tcp-10-96-1-2-80"), "{text}");
    }

    #[test]
    fn a_service_without_endpoints_has_no_chain_and_is_refused_by_the_base() {
        let empty = services(&[("10.96.1.1", 80, &[])]);
        assert!(plan(&Services::new(), &empty).is_empty());
        let refuse = base().chains.into_iter().find(|chain| chain.name == "refuse").unwrap();
        assert_eq!(refuse.rules.len(), 4);
    }

    #[test]
    fn going_there_and_back_mentions_every_part_once_each_way() {
        let some =
            services(&[("10.96.1.1", 80, &["10.244.1.2:8080"]), ("fd00:96::101", 80, &["[fd00:244:1::2]:8080"])]);
        let there = format!("{:?}", plan(&Services::new(), &some));
        let back = format!("{:?}", plan(&some, &Services::new()));
        for name in ["tcp-10-96-1-1-80", "tcp-fd00-96--101-80"] {
            assert!(there.contains(&format!("name: \"{name}\"")), "{there}");
            assert!(back.contains(&format!("DeleteChain {{ chain: \"{name}\"")), "{back}");
        }
    }
}
