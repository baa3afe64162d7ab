//! The networks of a machine: an underlay bridge, a network namespace per node, and a link from its node to each pod.
//!
//! Pods are routed point to point, without bridges: a pod sees its own address and a gateway, a node has one route per
//! pod of its own and one per other node. Neighbours are entered, never asked for, so nothing waits for resolution or for
//! duplicate address detection. IPv6 may be off; everything then runs with IPv4 alone.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use stillmesh_netlink::route::{AddressOptions, LinkChange, LinkKind, Neighbour, Route, Rtnl, Veth};
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};

use super::ipam::{self, PodAddresses};
use super::node_http::PROBE_SOURCE;

/// Hardware address of a node's end of every pod's link.
const GATEWAY_MAC: [u8; 6] = [0x02, 0xee, 0, 0, 0, 1];
/// Name of the underlay's bridge in the machine's own namespace.
const BRIDGE: &str = "underlay";

/// A node: a network namespace, and a thread that lives in it.
#[derive(Debug)]
pub struct Node {
    /// Its number, from 1.
    pub index: u8,
    /// Its name.
    pub name: String,
    /// Makes sockets and changes links in its namespace.
    pub thread: NetnsThread,
    /// Whether IPv6 is on.
    pub ipv6: bool,
}

/// Whether the kernel has IPv6 for new namespaces.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
        && std::fs::read_to_string("/sys/module/ipv6/parameters/disable").is_ok_and(|text| text.trim() == "0")
            | !Path::new("/sys/module/ipv6/parameters/disable").exists()
}

/// Makes the underlay and its nodes. Called in the machine's own namespace. Blocks.
pub fn build(count: u8, directory: &Path) -> anyhow::Result<Vec<Node>> {
    let ipv6 = has_ipv6();
    let mut rtnl = Rtnl::open()?;
    rtnl.set_loopback_up()?;
    rtnl.add_link(BRIDGE, LinkKind::Bridge).context("making the underlay bridge")?;
    let bridge = index(&mut rtnl, BRIDGE)?;
    rtnl.set_up(bridge)?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let name = format!("node{number}");
        let netns = Netns::create().with_context(|| format!("making the namespace of {name}"))?;
        let home = directory.join(&name);
        std::fs::create_dir_all(&home)?;
        netns.bind_to(&home.join("netns")).with_context(|| format!("keeping the namespace of {name}"))?;
        rtnl.add_veth(&Veth {
            name: &name,
            peer_name: "eth0",
            peer_netns: Some(std::os::fd::AsFd::as_fd(&netns)),
            mtu: None,
            mac: None,
            peer_mac: Some(node_mac(number)),
        })
        .with_context(|| format!("linking {name} to the underlay"))?;
        let port = index(&mut rtnl, &name)?;
        rtnl.change_link(port, &LinkChange { master: Some(bridge), up: Some(true), ..LinkChange::default() })?;
        netns.run_blocking(|| set_up_node(number, count, ipv6))?.with_context(|| format!("setting up {name}"))?;
        let thread = NetnsThread::spawn(name.clone(), netns)?;
        nodes.push(Node { index: number, name, thread, ipv6 });
    }
    Ok(nodes)
}

/// In the node's namespace.
fn set_up_node(number: u8, count: u8, ipv6: bool) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    rtnl.set_loopback_up()?;
    sysctl("net/ipv4/ip_forward", "1")?;
    // Packets of pods come and go by one link, but answers to a node's own address may come by another.
    sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    sysctl("net/ipv4/conf/default/rp_filter", "0")?;
    if ipv6 {
        quiet_ipv6();
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    let link = index(&mut rtnl, "eth0")?;
    rtnl.set_up(link)?;
    let families = |v4: IpAddr, v6: IpAddr| if ipv6 { vec![v4, v6] } else { vec![v4] };
    for address in families(ipam::node4(number).into(), ipam::node6(number).into()) {
        let net = IpNet::new(address, if address.is_ipv4() { 24 } else { 64 })?;
        rtnl.add_address(link, net, AddressOptions::default())?;
    }
    for other in (1..=count).filter(|other| *other != number) {
        let gateways = families(ipam::node4(other).into(), ipam::node6(other).into());
        let pods = families(ipam::pods4(other).into(), ipam::pods6(other).into());
        for (gateway, pods) in gateways.into_iter().zip(pods) {
            rtnl.add_neighbour(&Neighbour { link, ip: gateway, mac: Some(node_mac(other)) })?;
            let net = IpNet::new(pods, if pods.is_ipv4() { ipam::POD_PREFIX4 } else { ipam::POD_PREFIX6 })?;
            rtnl.add_route(&Route::to(net).via(gateway).dev(link))?;
        }
    }
    let loopback = index(&mut rtnl, "lo")?;
    rtnl.add_address(loopback, IpNet::from(IpAddr::V4(PROBE_SOURCE)), AddressOptions::default())?;
    // Service addresses are translated before routing; what is not is rejected, and needs a route to come that far.
    let services = families([10, 96, 0, 0].into(), [0xfd00, 0x96, 0, 0, 0, 0, 0, 0].into());
    for address in services {
        let net = IpNet::new(address, if address.is_ipv4() { 16 } else { 112 })?;
        rtnl.add_route(&Route::to(net).dev(link))?;
    }
    Ok(())
}

/// Links a pod's namespace to its node. Undone by the end of the pod's namespace, or by [`detach`].
pub async fn attach(node: &Node, pod: Netns, addresses: PodAddresses) -> anyhow::Result<()> {
    let ipv6 = node.ipv6;
    node.thread.run(move || attach_here(&pod, addresses, ipv6)).await?
}

/// Removes a pod's link and routes. Nothing there is fine.
pub async fn detach(node: &Node, addresses: PodAddresses) -> anyhow::Result<()> {
    node.thread.run(move || anyhow::Ok(Rtnl::open()?.delete_link(&link_name(addresses))?)).await?
}

/// In the node's namespace.
fn attach_here(pod: &Netns, addresses: PodAddresses, ipv6: bool) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let name = link_name(addresses);
    // A link left by a pod that had this address and whose end was not seen.
    rtnl.delete_link(&name)?;
    rtnl.add_veth(&Veth {
        name: &name,
        peer_name: "eth0",
        peer_netns: Some(std::os::fd::AsFd::as_fd(pod)),
        mtu: None,
        mac: Some(GATEWAY_MAC),
        peer_mac: Some(pod_mac(addresses)),
    })
    .context("linking the pod to its node")?;
    let link = index(&mut rtnl, &name)?;
    rtnl.set_up(link)?;
    for address in families(addresses, ipv6) {
        rtnl.add_neighbour(&Neighbour { link, ip: address, mac: Some(pod_mac(addresses)) })?;
        rtnl.add_route(&Route::to(IpNet::from(address)).dev(link))?;
    }
    pod.run_blocking(move || set_up_pod(addresses, ipv6))?
}

/// In the pod's namespace.
fn set_up_pod(addresses: PodAddresses, ipv6: bool) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    if ipv6 {
        quiet_ipv6();
    }
    rtnl.set_loopback_up()?;
    let link = index(&mut rtnl, "eth0")?;
    rtnl.set_up(link)?;
    for address in families(addresses, ipv6) {
        let (gateway, all): (IpAddr, IpNet) = match address {
            IpAddr::V4(_) => (ipam::GATEWAY4.into(), IpNet::new(IpAddr::from([0, 0, 0, 0]), 0)?),
            IpAddr::V6(_) => (ipam::GATEWAY6.into(), IpNet::new(IpAddr::from([0u16; 8]), 0)?),
        };
        rtnl.add_address(link, IpNet::from(address), AddressOptions::default())?;
        rtnl.add_neighbour(&Neighbour { link, ip: gateway, mac: Some(GATEWAY_MAC) })?;
        rtnl.add_route(&Route::to(all).via(gateway).dev(link).onlink())?;
    }
    Ok(())
}

fn families(addresses: PodAddresses, ipv6: bool) -> Vec<IpAddr> {
    let mut families = vec![IpAddr::V4(addresses.v4)];
    if ipv6 {
        families.push(addresses.v6.into());
    }
    families
}

/// No waiting for duplicates and no asking for routers. What cannot be set is a delay, not a failure.
fn quiet_ipv6() {
    for scope in ["all", "default"] {
        for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            let _ = sysctl(&format!("net/ipv6/conf/{scope}/{key}"), value);
        }
    }
}

/// Writes a setting of the calling thread's namespace.
fn sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{key}");
    std::fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
}

fn index(rtnl: &mut Rtnl, name: &str) -> anyhow::Result<u32> {
    Ok(rtnl.link(name)?.with_context(|| format!("link {name} is not there"))?.index)
}

fn link_name(addresses: PodAddresses) -> String {
    format!("pod{}", addresses.v4.octets()[3])
}

fn pod_mac(addresses: PodAddresses) -> [u8; 6] {
    let [a, b, c, d] = addresses.v4.octets();
    [0x02, 0x00, a, b, c, d]
}

fn node_mac(node: u8) -> [u8; 6] {
    let [a, b, c, d] = ipam::node4(node).octets();
    [0x02, 0x01, a, b, c, d]
}
