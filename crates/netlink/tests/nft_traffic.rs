//! What the rules do to real connections.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use stillmesh_netlink::nft::*;
use stillmesh_netlink::route::{Route, RoutingRule};
use stillmesh_runtime::sys::socket::{Mark, Options, original_destination, tcp_connect_socket, tcp_listener_any};
use stillmesh_test_support::net::{Place, join};
use stillmesh_test_support::{isolated, isolated_async};

const DEADLINE: Duration = Duration::from_secs(10);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn apply_in(place: &Place, table: &Table) {
    let mut batch = Batch::new();
    batch.replace_table(table);
    place.run(move || apply(&batch).unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error))));
}

fn listen(place: &Place, address: &str) -> TcpListener {
    let address = address.to_owned();
    place.run(move || TcpListener::bind(&address).unwrap_or_else(|error| panic!("{address}: {error}")))
}

fn connect(place: &Place, address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    let stream = place.run(move || TcpStream::connect_timeout(&address, DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Accepts a connection on a listener that may be nonblocking.
fn accept_one(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(false).unwrap();
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    (stream, peer)
}

/// Bytes pass both ways.
fn assert_carries(left: &mut TcpStream, right: &mut TcpStream) {
    let pass = |from: &mut TcpStream, to: &mut TcpStream| {
        from.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        to.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
    };
    pass(left, right);
    pass(right, left);
}

/// Two places joined by a link, `a` with .1 and `b` with .2, both families.
fn two() -> (Place, Place) {
    let (a, b) = (Place::new("a"), Place::new("b"));
    join((&a, "eth0", &["10.9.0.1/24", "fd09::1/64"]), (&b, "eth0", &["10.9.0.2/24", "fd09::2/64"]));
    (a, b)
}

fn redirect_opening(port: u16) -> Table {
    Table::new(Family::Inet, "capture").chain(Chain::base("output", Kind::Nat, Hook::Output, -100).rule(Rule::new([
        syn_only(),
        masked_ne(Field::MetaMark, 0xfffu32, 0x539u32),
        counter(),
        redirect(port),
    ])))
}

#[test]
fn a_syn_only_redirect_takes_new_connections_and_leaves_older_ones_alone() {
    isolated(|| {
        let (client, server) = two();
        let service = listen(&server, "[::]:80");
        let capture = client.run(|| {
            tcp_listener_any(15001, Options { mark: Some(Mark::PROXY), transparent: true, reuse_port: false }).unwrap()
        });
        for address in ["10.9.0.2:80", "[fd09::2]:80"] {
            let mut older = connect(&client, address).unwrap();
            let (mut older_server, _) = accept_one(&service);
            assert_carries(&mut older, &mut older_server);
            apply_in(&client, &redirect_opening(15001));
            let mut newer = connect(&client, address).unwrap();
            let (mut captured, _) = accept_one(&capture);
            assert_eq!(original_destination(&captured).unwrap().to_string(), address);
            assert_carries(&mut newer, &mut captured);
            assert_carries(&mut older, &mut older_server);
            // What the tunnel itself opens is marked and not captured.
            let target: SocketAddr = address.parse().unwrap();
            let mut own = client.run(move || {
                let socket = tcp_connect_socket(target, Some(Mark::PROXY), None).unwrap();
                connect_blocking(socket, target)
            });
            let (mut own_server, _) = accept_one(&service);
            assert_eq!(original_destination(&own_server).unwrap().to_string(), address);
            assert_carries(&mut own, &mut own_server);
            // The rules go, the translated connection's hooks with them; the older one does not notice either.
            let mut batch = Batch::new();
            batch.delete_table(Family::Inet, "capture");
            let counted = client.run(|| counters(Family::Inet, "capture").unwrap());
            assert_eq!(counted.iter().map(|counter| counter.packets).collect::<Vec<_>>(), [1]);
            client.run(move || apply(&batch).unwrap());
            assert_carries(&mut older, &mut older_server);
        }
    });
}

/// Connects a tokio socket without a runtime, as tests of rules do.
fn connect_blocking(socket: tokio::net::TcpSocket, target: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = async { tokio::time::timeout(DEADLINE, socket.connect(target)).await.unwrap().unwrap().into_std() };
    let stream = runtime.block_on(connected).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn service_table(ipv6: bool) -> Table {
    let (family, daddr, address, vip) = if ipv6 {
        (Family::Ip6, Field::Ip6Daddr, DataType::Ipv6, ip("fd96::10"))
    } else {
        (Family::Ip, Field::IpDaddr, DataType::Ipv4, ip("10.96.0.10"))
    };
    let backends = [if ipv6 { ip("fd09::2") } else { ip("10.9.0.2") }; 2];
    let endpoints = Set::endpoints("svc-endpoints", backends.into_iter().zip(8080..).map(SocketAddr::from));
    let key = [address, DataType::Protocol, DataType::Port];
    let services = Set::verdicts("services", key)
        .element(Element::verdict([vip.into(), TCP.into(), 80u16.into()], Verdict::Goto("svc".to_owned())))
        .element(Element::verdict([vip.into(), TCP.into(), 81u16.into()], Verdict::Goto("empty".to_owned())));
    let dispatch = || {
        Rule::new([Expr::VerdictMap {
            key: Key::Fields(vec![daddr, Field::L4Proto, Field::ThDport]),
            map: "services".to_owned(),
        }])
    };
    let to = NatTarget::Map { key: Key::RoundRobin { modulus: 2 }, map: "svc-endpoints".to_owned(), ipv6 };
    Table::new(family, "services")
        .set(endpoints)
        .set(services)
        .chain(Chain::new("svc").rule(Rule::new([eq(Field::L4Proto, TCP), counter(), Expr::Dnat(to)])))
        .chain(Chain::base("output", Kind::Nat, Hook::Output, -100).rule(dispatch()))
        .chain(Chain::base("prerouting", Kind::Nat, Hook::Prerouting, -100).rule(dispatch()))
        .chain(Chain::new("empty").rule(Rule::new([set_meta_mark(0x8000, 0x8000)])))
        .chain(
            Chain::base("refuse", Kind::Filter, Hook::Output, 0)
                .rule(Rule::new([masked_eq(Field::MetaMark, 0x8000u32, 0x8000u32), reject_tcp_reset()])),
        )
        .chain(
            Chain::base("postrouting", Kind::Nat, Hook::Postrouting, 100)
                .rule(Rule::new([any_of(Field::CtStatus, Field::DNAT), masquerade()])),
        )
}

#[test]
fn a_service_address_is_spread_over_its_endpoints_and_one_without_endpoints_refuses() {
    isolated(|| {
        let (client, server) = two();
        client.route_via("10.96.0.0/16", "10.9.0.2");
        client.route_via("fd96::/112", "fd09::2");
        let first = listen(&server, "[::]:8080");
        let second = listen(&server, "[::]:8081");
        for (ipv6, vip) in [(false, "10.96.0.10"), (true, "[fd96::10]")] {
            apply_in(&client, &service_table(ipv6));
            for _ in 0..2 {
                for listener in [&first, &second] {
                    let mut stream = connect(&client, &format!("{vip}:80")).unwrap();
                    let (mut accepted, _) = accept_one(listener);
                    assert_carries(&mut stream, &mut accepted);
                    assert_eq!(stream.peer_addr().unwrap().to_string(), format!("{vip}:80"));
                }
            }
            let refused = connect(&client, &format!("{vip}:81")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn masquerade_hides_the_client_behind_the_router() {
    isolated(|| {
        let [client, router, server] = ["client", "router", "server"].map(Place::new);
        join((&client, "eth0", &["10.1.0.1/24", "fd01::1/64"]), (&router, "left", &["10.1.0.2/24", "fd01::2/64"]));
        join((&server, "eth0", &["10.2.0.1/24", "fd02::1/64"]), (&router, "right", &["10.2.0.2/24", "fd02::2/64"]));
        router.forward();
        client.route_via("0.0.0.0/0", "10.1.0.2");
        client.route_via("::/0", "fd01::2");
        let table = Table::new(Family::Inet, "nat").chain(
            Chain::base("post", Kind::Nat, Hook::Postrouting, 100)
                .rule(Rule::new([eq(Field::OifName, "right"), masquerade()])),
        );
        apply_in(&router, &table);
        let service = listen(&server, "[::]:80");
        for (target, seen) in [("10.2.0.1:80", "10.2.0.2"), ("[fd02::1]:80", "fd02::2")] {
            // The server has no way back to the client: it works only by the router's address.
            let mut stream = connect(&client, target).unwrap();
            let (mut accepted, peer) = accept_one(&service);
            assert_eq!(peer.ip().to_canonical(), ip(seen));
            assert_carries(&mut stream, &mut accepted);
        }
    });
}

/// The part of contract 2.1 that brings the answers to a connection with a borrowed source address back to the tunnel.
fn borrowed_source_table() -> Table {
    Table::new(Family::Inet, "mangle")
        .chain(
            Chain::base("prerouting", Kind::Filter, Hook::Prerouting, -150)
                .rule(Rule::new([masked_eq(Field::MetaMark, 0xfffu32, 0x539u32), set_ct_mark(0x111, 0xfff)])),
        )
        .chain(Chain::base("output", Kind::Route, Hook::Output, -150).rule(Rule::new([
            masked_eq(Field::CtMark, 0xfffu32, 0x111u32),
            Expr::SetMetaMark { source: MarkSource::OtherMark },
        ])))
}

#[test]
fn a_connection_with_a_borrowed_source_address_gets_its_answers() {
    isolated_async(|| async {
        let (pod, node) = (Place::new("pod"), Place::new("node"));
        join((&pod, "eth0", &["10.7.0.1/24", "fd07::1/64"]), (&node, "pod", &["10.7.0.2/24", "fd07::2/64"]));
        // The answer must have some way out before the rules turn it back.
        pod.route_via("0.0.0.0/0", "10.7.0.2");
        pod.route_via("::/0", "fd07::2");
        let app = listen(&pod, "[::]:8080");
        apply_in(&pod, &borrowed_source_table());
        pod.route(|rtnl| {
            for (ipv6, everything) in [(false, "0.0.0.0/0"), (true, "::/0")] {
                rtnl.add_route(&Route::to(everything.parse().unwrap()).local().dev(1).table(100))?;
                rtnl.add_rule(&RoutingRule { ipv6, priority: 32764, mark: Some((0x111, 0xfff)), table: 100 })?;
            }
            Ok(())
        });
        for (target, source) in [("10.7.0.1:8080", "192.0.2.7"), ("[fd07::1]:8080", "2001:db8::7")] {
            let (target, source): (SocketAddr, IpAddr) = (target.parse().unwrap(), ip(source));
            let socket = pod
                .run_async(move || tcp_connect_socket(target, Some(Mark::PROXY), Some(SocketAddr::new(source, 0))))
                .await;
            let stream = tokio::time::timeout(DEADLINE, socket.unwrap().connect(target)).await.unwrap().unwrap();
            let (mut accepted, peer) = accept_one(&app);
            assert_eq!(peer.ip().to_canonical(), source);
            let mut stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            assert_carries(&mut stream, &mut accepted);
        }
    });
}

#[test]
fn untracked_zoned_and_owned_packets_are_told_apart() {
    isolated(|| {
        let place = Place::new("a");
        let table = Table::new(Family::Inet, "t")
            .chain(
                Chain::base("raw", Kind::Filter, Hook::Output, -300)
                    .rule(Rule::new([eq(Field::UdpDport, 53u16), set_ct_zone(1)]))
                    .rule(Rule::new([eq(Field::UdpDport, 54u16), Expr::Notrack])),
            )
            .chain(
                Chain::base("count", Kind::Filter, Hook::Output, 0).rules([
                    Rule::new([eq(Field::UdpDport, 54u16), any_of(Field::CtState, Field::UNTRACKED), counter()])
                        .comment("untracked"),
                    Rule::new([eq(Field::UdpDport, 53u16), any_of(Field::CtState, Field::NEW), counter()])
                        .comment("new"),
                    Rule::new([eq(Field::SkUid, 0u32), counter()]).comment("owner"),
                    Rule::new([eq(Field::SkUid, 1u32), counter()]).comment("other owner"),
                    Rule::new([in_cidr(Field::IpDaddr, "127.0.0.0/8".parse().unwrap()), counter()]).comment("loopback"),
                    Rule::new([eq(Field::FibDaddrType, 2u32), counter()]).comment("local"),
                ]),
            );
        apply_in(&place, &table);
        let counted = place.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for port in [53, 54, 54] {
                socket.send_to(b"x", ("127.0.0.1", port)).unwrap();
            }
            counters(Family::Inet, "t").unwrap()
        });
        let facts: Vec<_> = counted.iter().map(|c| (c.comment.as_deref().unwrap(), c.packets)).collect();
        // Three datagrams and the kernel's ICMP answers to them, which nobody owns.
        let expected = [("untracked", 2), ("new", 1), ("owner", 3), ("other owner", 0), ("loopback", 6), ("local", 6)];
        assert_eq!(facts, expected);
    });
}
