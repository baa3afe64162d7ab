//! For nodes whose ztunnel is Istio's: what the node itself opens to a captured pod comes from the address that the pod's
//! rules let pass, as under istio-cni (contract 2.2). Our own ztunnel knows probes by their sockets and needs none of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use stillmesh_netlink::Error;
use stillmesh_netlink::nft::{
    self, Batch, Chain, DataType, Element, Expr, Family, Field, Hook, Kind, Rule, Set, Table, eq, in_set, ne,
};

use crate::rules::plan::{PROBE_SOURCE, PROBE_SOURCE_V6};

/// The table in the node's own namespace.
pub const TABLE: &str = "stillmesh-probes";
/// Where source addresses are translated.
const SNAT_PRIORITY: i32 = 100;

/// The rules of this node, in the calling thread's namespace.
#[derive(Debug, Default)]
pub struct ProbeSource {
    held: Option<BTreeSet<IpAddr>>,
}

impl ProbeSource {
    /// Makes the rules be for these pods' addresses. Errors: the kernel refuses; they are as before, and tried again with
    /// the next call.
    pub fn keep(&mut self, pods: BTreeSet<IpAddr>) -> Result<(), Error> {
        if self.held.as_ref() == Some(&pods) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.replace_table(&table(&pods));
        nft::apply(&batch)?;
        self.held = Some(pods);
        Ok(())
    }

    /// Takes the rules out. None there is fine.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.held = None;
        let mut batch = Batch::new();
        batch.delete_table(Family::Inet, TABLE);
        nft::apply(&batch)
    }
}

fn table(pods: &BTreeSet<IpAddr>) -> Table {
    let mut table = Table::new(Family::Inet, TABLE);
    let mut rules = Vec::new();
    for (name, kind, destination, source) in [
        ("pods4", DataType::Ipv4, Field::IpDaddr, IpAddr::V4(PROBE_SOURCE)),
        ("pods6", DataType::Ipv6, Field::Ip6Daddr, IpAddr::V6(PROBE_SOURCE_V6)),
    ] {
        let ours = pods.iter().filter(|pod| pod.is_ipv4() == source.is_ipv4());
        let elements = ours.map(|pod| Element::key([(*pod).into()])).collect();
        table = table.set(Set { elements, ..Set::of(name, [kind]) });
        // What has no local socket has no owner: forwarded traffic of others.
        let of_node = ne(Field::SkUid, u32::MAX);
        rules.push(Rule::new([eq(Field::L4Proto, nft::TCP), in_set([destination], name), of_node, Expr::Snat(source)]));
    }
    table.chain(Chain::base("postrouting", Kind::Nat, Hook::Postrouting, SNAT_PRIORITY).rules(rules))
}
