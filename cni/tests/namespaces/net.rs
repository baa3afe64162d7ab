//! A pod and its peer on one link.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use stillmesh_test_support::net::{Place, join};

pub const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1);
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
/// How long anything may take before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Two places on one link: the pod and somebody outside.
pub fn pod_and_peer() -> (Place, Place) {
    let (pod, peer) = (Place::new("pod"), Place::new("peer"));
    join((&pod, "eth0", &["10.1.0.1/24", "fd01::1/64"]), (&peer, "eth0", &["10.1.0.2/24", "fd01::2/64"]));
    pod.route_via("0.0.0.0/0", "10.1.0.2");
    peer.route_via("10.9.0.0/16", "10.1.0.1");
    (pod, peer)
}

pub fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

pub fn listen(place: &Place, address: SocketAddr) -> TcpListener {
    place.run(move || TcpListener::bind(address)).expect("a listener")
}

pub fn connect(place: &Place, address: SocketAddr) -> TcpStream {
    let stream = place.run(move || TcpStream::connect_timeout(&address, DEADLINE)).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a read deadline");
    stream
}

pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("an accepted connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a read deadline");
    stream
}

/// Whether a new connection is not even answered: neither accepted nor refused.
pub fn is_dropped(place: &Place, address: SocketAddr) -> bool {
    let result = place.run(move || TcpStream::connect_timeout(&address, Duration::from_millis(300)));
    matches!(result, Err(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// Sends a few bytes each way.
pub fn talk(one: &mut TcpStream, other: &mut TcpStream) {
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut *one, &mut *other];
        ends[from].write_all(b"still there").expect("to send");
        let mut bytes = [0; 11];
        ends[to].read_exact(&mut bytes).expect("to receive");
        assert_eq!(&bytes, b"still there");
    }
}
