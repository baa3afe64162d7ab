//! Threads in namespaces, and sockets as the node tunnel makes them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use stillmesh_runtime::sys::netns::{Netns, NetnsThread};
use stillmesh_runtime::sys::socket::{
    Keepalive, Mark, Options, mark, original_destination, reset_on_close, set_mark, tcp_connect_socket, tcp_listener,
    tcp_listener_any, tune, udp_socket,
};
use stillmesh_test_support::net::Place;
use stillmesh_test_support::{isolated, isolated_async};

const PROXY: Options = Options { mark: Some(Mark::PROXY), transparent: true, reuse_port: false };

#[test]
fn a_namespace_thread_makes_sockets_there_and_nowhere_else() {
    isolated_async(|| async {
        let here = Netns::current().unwrap();
        let place = Place::new("pod");
        assert_ne!(&here, place.netns());
        let inode = place.run_async(|| Netns::current().unwrap().inode()).await;
        assert_eq!(inode, place.netns().inode());
        let _listener = place.run_async(|| TcpListener::bind("127.0.0.1:80").unwrap()).await;
        assert!(TcpStream::connect("127.0.0.1:80").is_err());
        assert!(place.run_async(|| TcpStream::connect("127.0.0.1:80")).await.is_ok());
        assert_eq!(Netns::current().unwrap(), here);
    });
}

#[test]
fn a_panic_on_a_namespace_thread_is_an_error_and_the_thread_goes_on() {
    isolated_async(|| async {
        let thread = NetnsThread::spawn("t", Netns::create().unwrap()).unwrap();
        let error = thread.run(|| panic!("planted")).await.map(|()| 0).unwrap_err();
        assert!(error.to_string().contains("planted"), "{error}");
        assert_eq!(thread.run(|| 7).await.unwrap(), 7);
        assert_eq!(thread.run_blocking(|| 8).unwrap(), 8);
    });
}

#[test]
fn a_namespace_lives_as_long_as_somebody_holds_it_and_no_longer() {
    isolated(|| {
        let netns = Netns::create().unwrap();
        let dir = std::env::temp_dir().join(format!("stillmesh-netns-{}", netns.inode()));
        netns.bind_to(&dir).unwrap();
        let again = Netns::open(&dir).unwrap();
        assert_eq!((again.inode(), again.path()), (netns.inode(), Some(dir.as_path())));
        Netns::unbind(&dir).unwrap();
        Netns::unbind(&dir).unwrap();
        assert!(Netns::open(&dir).is_err());
        let passed = Netns::from_fd(netns.try_clone_fd().unwrap()).unwrap();
        assert_eq!(passed, netns);
        // Neither a file nor a namespace of another kind passes for one.
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(Netns::from_fd(file.into()).is_err());
        assert!(Netns::open("/proc/self/ns/mnt").is_err());
    });
}

fn connect_and_accept(listener: &TcpListener, target: SocketAddr) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(target).unwrap();
    listener.set_nonblocking(false).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

#[test]
fn a_listener_takes_both_families_and_an_unredirected_connection_has_its_own_destination() {
    isolated(|| {
        let listener = tcp_listener_any(15001, PROXY).unwrap();
        assert_eq!(mark(&listener).unwrap(), Mark::PROXY);
        for target in ["127.0.0.1:15001", "[::1]:15001"] {
            let target: SocketAddr = target.parse().unwrap();
            let (client, server) = connect_and_accept(&listener, target);
            assert_eq!(original_destination(&server).unwrap(), target);
            assert_eq!(mark(&server).unwrap(), Mark::PROXY, "an accepted socket has its listener's mark");
            tune(&client, Some(Keepalive::default())).unwrap();
            assert!(client.nodelay().unwrap());
        }
    });
}

#[test]
fn without_ipv6_the_listener_falls_back_to_ipv4() {
    isolated(|| {
        let place = Place::new("v4only");
        place.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        place.sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
        let reachable = place.run(|| {
            let listener = tcp_listener_any(15001, PROXY).unwrap();
            let (_client, server) = connect_and_accept(&listener, "127.0.0.1:15001".parse().unwrap());
            original_destination(&server).unwrap().to_string()
        });
        assert_eq!(reachable, "127.0.0.1:15001");
    });
}

#[test]
fn two_listeners_share_a_port_only_if_both_allow_it() {
    isolated(|| {
        let shared = Options { reuse_port: true, ..PROXY };
        let _first = tcp_listener_any(15008, shared).unwrap();
        let _second = tcp_listener_any(15008, shared).unwrap();
        let _alone = tcp_listener("127.0.0.1:15001".parse().unwrap(), PROXY).unwrap();
        let refused = tcp_listener("127.0.0.1:15001".parse().unwrap(), PROXY).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    });
}

#[test]
fn a_socket_connects_from_an_address_that_is_not_ours_to_be_seen_by_the_other_end() {
    isolated_async(|| async {
        // The whole of 192.0.2.0/24 is local, but bound to no device: only a transparent socket may use it so.
        let place = Place::new("pod");
        place.route(|rtnl| {
            use stillmesh_netlink::route::Route;
            rtnl.add_route(&Route::to("192.0.2.0/24".parse().unwrap()).local().dev(1))?;
            rtnl.add_route(&Route::to("2001:db8::/32".parse().unwrap()).local().dev(1))
        });
        let listener = place.run_async(|| tcp_listener_any(80, Options::default()).unwrap()).await;
        listener.set_nonblocking(false).unwrap();
        for (target, source) in [
            ("127.0.0.1:80", "192.0.2.7:0"),
            ("[::1]:80", "[2001:db8::7]:0"),
            ("127.0.0.1:80", "192.0.2.7:2000"),
            ("[::1]:80", "[2001:db8::7]:2000"),
        ] {
            let (target, source): (SocketAddr, SocketAddr) = (target.parse().unwrap(), source.parse().unwrap());
            let socket = place.run_async(move || tcp_connect_socket(target, Some(Mark::PROXY), Some(source))).await;
            let socket = socket.unwrap();
            assert_eq!(mark(&socket.as_fd()).unwrap(), Mark::PROXY);
            let connected = tokio::time::timeout(Duration::from_secs(10), socket.connect(target)).await;
            let _stream = connected.unwrap().unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip().to_canonical(), source.ip());
            assert!(peer.port() == source.port() || source.port() == 0);
            if source.port() != 0 {
                // The same pair of ends cannot be had twice.
                let again = place.run_async(move || tcp_connect_socket(target, None, Some(source))).await.unwrap();
                assert_eq!(again.connect(target).await.unwrap_err().kind(), std::io::ErrorKind::AddrNotAvailable);
            }
        }
        let mixed = tcp_connect_socket("127.0.0.1:80".parse().unwrap(), None, Some("[::1]:0".parse().unwrap()));
        assert_eq!(mixed.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn a_datagram_socket_is_marked_and_a_reset_is_a_reset() {
    isolated(|| {
        let udp = udp_socket("127.0.0.1:53".parse().unwrap(), Options { transparent: false, ..PROXY }).unwrap();
        assert_eq!(mark(&udp).unwrap(), Mark::PROXY);
        set_mark(&udp, Mark(7)).unwrap();
        assert_eq!(mark(&udp).unwrap(), Mark(7));
        let listener = tcp_listener("127.0.0.1:80".parse().unwrap(), Options::default()).unwrap();
        let (mut client, mut server) = connect_and_accept(&listener, "127.0.0.1:80".parse().unwrap());
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        reset_on_close(&server).unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}
