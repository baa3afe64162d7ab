//! Small networks inside a test's namespaces.

use stillmesh_netlink::route::Rtnl;

/// Switches the loopback device of the calling thread's namespace on.
pub fn loopback_up() {
    Rtnl::open().and_then(|mut rtnl| rtnl.set_loopback_up()).expect("the loopback device to be switched on");
}
