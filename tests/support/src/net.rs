//! Small networks inside a test's namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use stillmesh_netlink::route::{AddressOptions, Route, Rtnl, Veth};
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};

/// Switches the loopback device of the calling thread's namespace on.
pub fn loopback_up() {
    Rtnl::open().and_then(|mut rtnl| rtnl.set_loopback_up()).expect("the loopback device to be switched on");
}

/// A network namespace with a thread in it: a host, node or pod of a test's network.
#[derive(Clone, Debug)]
pub struct Place {
    thread: Arc<NetnsThread>,
}

impl Place {
    /// A new namespace with its loopback device up.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let netns = Netns::create().expect("a network namespace");
        let thread = NetnsThread::spawn(name, netns).expect("a thread in the namespace");
        let place = Self { thread: Arc::new(thread) };
        place.run(loopback_up);
        place
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        self.thread.netns()
    }

    /// Runs code in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.thread.run_blocking(work).expect("the work in the namespace to end")
    }

    /// [`Place::run`] for async code, which must not be blocked.
    pub async fn run_async<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.thread.run(work).await.expect("the work in the namespace to end")
    }

    /// Works on the namespace's links, addresses, routes and rules.
    pub fn route<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Rtnl) -> Result<T, stillmesh_netlink::Error> + Send + 'static,
    ) -> T {
        let result = self.run(|| Rtnl::open().and_then(|mut rtnl| work(&mut rtnl)));
        result.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
    }

    /// Index of a device.
    #[must_use]
    pub fn link(&self, name: &str) -> u32 {
        let name = name.to_owned();
        self.route(move |rtnl| rtnl.link(&name)).expect("the link to be there").index
    }

    /// Adds an address to a device that is up.
    pub fn address(&self, link: &str, net: &str) {
        let (link, net): (u32, IpNet) = (self.link(link), net.parse().expect("a network"));
        self.route(move |rtnl| rtnl.add_address(link, net, AddressOptions::default()));
    }

    /// Adds a route by a next hop.
    pub fn route_via(&self, destination: &str, gateway: &str) {
        let destination: IpNet = destination.parse().expect("a network");
        let gateway: IpAddr = gateway.parse().expect("an address");
        self.route(move |rtnl| rtnl.add_route(&Route::to(destination).via(gateway)));
    }

    /// Passes packets on between its devices.
    pub fn forward(&self) {
        self.sysctl("net/ipv4/ip_forward", "1");
        self.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// Sets a kernel parameter of the namespace, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/{name}"), value.to_owned());
        self.run(move || std::fs::write(&path, &value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }
}

/// Joins two places by a pair of devices, both up, with the given addresses (such as `10.0.0.1/24`).
pub fn join(left: (&Place, &str, &[&str]), right: (&Place, &str, &[&str])) {
    let (name, peer_name) = (left.1.to_owned(), right.1.to_owned());
    let peer_netns = right.0.netns().clone();
    left.0.route(move |rtnl| {
        let peer_netns = Some(std::os::fd::AsFd::as_fd(&peer_netns));
        let (name, peer_name) = (name.as_str(), peer_name.as_str());
        rtnl.add_veth(&Veth { name, peer_name, peer_netns, mtu: None, mac: None, peer_mac: None })
    });
    for (place, link, addresses) in [left, right] {
        let index = place.link(link);
        place.route(move |rtnl| rtnl.set_up(index));
        for address in addresses {
            place.address(link, address);
        }
    }
}
