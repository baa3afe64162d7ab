//! TCP sockets are listed, found by their addresses, and reset.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use stillmesh_netlink::sock_diag::{State, destroy, find_tcp, tcp_sockets};
use stillmesh_test_support::isolated;

#[test]
fn sockets_are_listed_by_state_and_found_by_their_addresses() {
    isolated(|| {
        // Dual-stack, so the IPv4 connection's far end is a mapped address on an IPv6 socket.
        let listener = TcpListener::bind("[::]:80").unwrap();
        for target in ["127.0.0.1:80", "[::1]:80"] {
            let client = TcpStream::connect(target).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let open = tcp_sockets(&[State::Established]).unwrap();
            for (local, remote) in [(local, remote), (remote, local)] {
                let listed: Vec<_> = open.iter().filter(|s| s.local == local && s.remote == remote).collect();
                assert_eq!(listed.len(), 1, "{local} to {remote} in {open:?}");
                let found = find_tcp(local, remote).unwrap().unwrap();
                assert_eq!((found.cookie, found.inode, found.uid), (listed[0].cookie, listed[0].inode, 0));
                assert!(found.inode != 0 && found.state == State::Established);
            }
            drop(server);
        }
        let listening = tcp_sockets(&[State::Listen]).unwrap();
        assert_eq!(listening.iter().map(|socket| socket.local.port()).collect::<Vec<_>>(), [80]);
        assert!(tcp_sockets(&[]).unwrap().len() > listening.len());
        // Nobody connected from there; the listener that would take it does not count.
        let (local, remote) = ("127.0.0.1:80".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        assert_eq!(find_tcp(local, remote).unwrap(), None);
        assert!(find_tcp(local, "[::1]:9".parse().unwrap()).is_err());
    });
}

#[test]
fn a_destroyed_connection_ends_on_both_sides() {
    isolated(|| {
        let listener = TcpListener::bind("127.0.0.1:80").unwrap();
        let mut client = TcpStream::connect("127.0.0.1:80").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let socket = find_tcp(client.local_addr().unwrap(), client.peer_addr().unwrap()).unwrap().unwrap();
        destroy(&socket).unwrap();
        destroy(&socket).unwrap();
        let mut byte = [0];
        let own = client.read(&mut byte).unwrap_err();
        assert_eq!(own.kind(), std::io::ErrorKind::ConnectionAborted);
        let peer = server.read(&mut byte).unwrap_err();
        assert_eq!(peer.kind(), std::io::ErrorKind::ConnectionReset);
    });
}
