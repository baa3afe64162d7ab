//! Links, addresses, routes, rules and neighbours are what was asked for, and asking twice is fine.

use std::os::fd::AsFd as _;

use stillmesh_netlink::route::*;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_test_support::isolated;
use stillmesh_test_support::net::{Place, join};

#[test]
fn a_veth_pair_is_made_with_its_peer_in_another_namespace_and_can_be_changed() {
    isolated(|| {
        let there = Place::new("there");
        let mut rtnl = Rtnl::open().unwrap();
        let (mac, peer_mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let veth = Veth {
            name: "v0",
            peer_name: "eth0",
            peer_netns: Some(there.netns().as_fd()),
            mtu: Some(1400),
            mac: Some(mac),
            peer_mac: Some(peer_mac),
        };
        rtnl.add_veth(&veth).unwrap();
        assert!(rtnl.add_veth(&veth).unwrap_err().is_exists());
        let here = rtnl.link("v0").unwrap().unwrap();
        assert_eq!((here.kind.as_deref(), here.mtu, here.mac, here.up), (Some("veth"), 1400, Some(mac), false));
        let peer = there.route(|rtnl| rtnl.link("eth0")).unwrap();
        assert_eq!((peer.index, peer.mtu, peer.mac), (here.peer.unwrap(), 1400, Some(peer_mac)));

        rtnl.add_link("br0", LinkKind::Bridge).unwrap();
        let bridge = rtnl.link("br0").unwrap().unwrap();
        let change =
            LinkChange { name: Some("v1"), mtu: Some(1300), master: Some(bridge.index), ..LinkChange::default() };
        rtnl.change_link(here.index, &change).unwrap();
        rtnl.set_up(here.index).unwrap();
        let changed = rtnl.link("v1").unwrap().unwrap();
        assert_eq!(
            (changed.index, changed.mtu, changed.master, changed.up),
            (here.index, 1300, Some(bridge.index), true)
        );
        assert_eq!(rtnl.link("v0").unwrap(), None);
        assert!(rtnl.links().unwrap().contains(&changed));

        let elsewhere = Netns::create().unwrap();
        let change = LinkChange { netns: Some(elsewhere.as_fd()), ..LinkChange::default() };
        rtnl.change_link(here.index, &change).unwrap();
        assert_eq!(rtnl.link("v1").unwrap(), None);
        assert_eq!(elsewhere.run_blocking(|| Rtnl::open().unwrap().link("v1").unwrap().unwrap().mtu).unwrap(), 1300);
        there.route(|rtnl| rtnl.delete_link("eth0"));
        assert_eq!(elsewhere.run_blocking(|| Rtnl::open().unwrap().link("v1").unwrap()).unwrap(), None);
        rtnl.delete_link("never-was").unwrap();
    });
}

#[test]
fn addresses_of_both_families_are_usable_at_once_and_idempotent() {
    isolated(|| {
        let (a, b) = (Place::new("a"), Place::new("b"));
        join((&a, "eth0", &["10.9.0.1/24", "fd09::1/64"]), (&b, "eth0", &["10.9.0.2/24"]));
        let link = a.link("eth0");
        // Without detection of duplicates the IPv6 address can be bound at once.
        a.run(|| std::net::TcpListener::bind("[fd09::1]:80").map(drop)).unwrap();
        a.address("eth0", "fd09::1/64");
        let of_link = move |rtnl: &mut Rtnl| {
            let all = rtnl.addresses()?.into_iter().filter(|address| address.link == link);
            Ok(all.map(|address| address.net.to_string()).filter(|net| !net.starts_with("fe80")).collect::<Vec<_>>())
        };
        assert_eq!(a.route(of_link), ["10.9.0.1/24", "fd09::1/64"]);
        for _ in 0..2 {
            a.route(move |rtnl| rtnl.delete_address(link, "fd09::1/64".parse().unwrap()));
        }
        assert_eq!(a.route(of_link), ["10.9.0.1/24"]);
    });
}

#[test]
fn a_pod_reaches_its_node_point_to_point_by_onlink_routes() {
    isolated(|| {
        let (pod, node) = (Place::new("pod"), Place::new("node"));
        join(
            (&pod, "eth0", &["10.244.1.5/32", "fd00:244:1::5/128"]),
            (&node, "pod5", &["169.254.1.1/32", "fe80::1/64"]),
        );
        let (eth0, pod5) = (pod.link("eth0"), node.link("pod5"));
        pod.route(move |rtnl| {
            for (everything, gateway) in [("0.0.0.0/0", "169.254.1.1"), ("::/0", "fe80::1")] {
                let route = Route::to(everything.parse().unwrap()).via(gateway.parse().unwrap()).dev(eth0).onlink();
                rtnl.add_route(&route)?;
                rtnl.add_route(&route)?;
            }
            Ok(())
        });
        node.route(move |rtnl| {
            rtnl.add_route(&Route::to("10.244.1.5/32".parse().unwrap()).dev(pod5))?;
            rtnl.add_route(&Route::to("fd00:244:1::5/128".parse().unwrap()).dev(pod5))
        });
        node.address("lo", "10.1.1.1/32");
        node.address("lo", "fd01::1/128");
        let listener = node.run(|| std::net::TcpListener::bind("[::]:80").unwrap());
        for target in ["10.1.1.1:80", "[fd01::1]:80"] {
            let target = target.parse().unwrap();
            let timeout = std::time::Duration::from_secs(10);
            let _stream = pod.run(move || std::net::TcpStream::connect_timeout(&target, timeout)).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert!(["10.244.1.5", "fd00:244:1::5"].contains(&peer.ip().to_canonical().to_string().as_str()));
        }
        let default = |rtnl: &mut Rtnl| {
            let routes = rtnl.routes(Some(TABLE_MAIN))?;
            Ok(routes.into_iter().filter(|route| route.destination.prefix_len() == 0).collect::<Vec<_>>())
        };
        let routes = pod.route(default);
        assert_eq!(routes.len(), 2, "{routes:?}");
        assert!(routes.iter().all(|route| route.link == Some(eth0) && route.gateway.is_some()), "{routes:?}");
        for _ in 0..2 {
            pod.route(move |rtnl| {
                for everything in ["0.0.0.0/0", "::/0"] {
                    rtnl.delete_route(&Route::to(everything.parse().unwrap()).dev(eth0))?;
                }
                Ok(())
            });
        }
        assert_eq!(pod.route(default), []);
    });
}

#[test]
fn mark_rules_and_the_local_table_100_are_added_once_and_removed() {
    isolated(|| {
        let place = Place::new("pod");
        let wanted: Vec<_> = [false, true]
            .map(|ipv6| RoutingRule { ipv6, priority: 32764, mark: Some((0x111, 0xfff)), table: 100 })
            .to_vec();
        let ours =
            |rtnl: &mut Rtnl| Ok(rtnl.rules()?.into_iter().filter(|rule| rule.priority == 32764).collect::<Vec<_>>());
        for _ in 0..2 {
            let rules = wanted.clone();
            place.route(move |rtnl| {
                for rule in &rules {
                    rtnl.add_rule(rule)?;
                }
                rtnl.add_route(&Route::to("0.0.0.0/0".parse().unwrap()).local().dev(1).table(100))?;
                rtnl.add_route(&Route::to("::/0".parse().unwrap()).local().dev(1).table(100))
            });
        }
        assert_eq!(place.route(ours), wanted);
        let routes = place.route(|rtnl| rtnl.routes(Some(100)));
        assert_eq!(routes.len(), 2, "{routes:?}");
        assert!(routes.iter().all(|route| route.kind == RouteKind::Local && route.link == Some(1)), "{routes:?}");
        for _ in 0..2 {
            let (rules, routes) = (wanted.clone(), routes.clone());
            place.route(move |rtnl| {
                for rule in &rules {
                    rtnl.delete_rule(rule)?;
                }
                for route in &routes {
                    rtnl.delete_route(route)?;
                }
                Ok(())
            });
        }
        assert_eq!(place.route(ours), []);
        assert_eq!(place.route(|rtnl| rtnl.routes(Some(100))), []);
    });
}

#[test]
fn a_permanent_neighbour_spares_the_question() {
    isolated(|| {
        let (a, b) = (Place::new("a"), Place::new("b"));
        join((&a, "eth0", &["10.9.0.1/24"]), (&b, "eth0", &[]));
        let link = a.link("eth0");
        let mac = b.route(|rtnl| rtnl.link("eth0")).unwrap().mac;
        // The other end answers no question for this address: it comes in only because it is sent there unasked.
        b.address("lo", "10.9.0.2/32");
        b.sysctl("net/ipv4/conf/eth0/arp_ignore", "8");
        b.route(|rtnl| {
            let eth0 = rtnl.link("eth0")?.unwrap().index;
            rtnl.add_route(&Route::to("10.9.0.1/32".parse().unwrap()).dev(eth0))
        });
        let neighbour = Neighbour { link, ip: "10.9.0.2".parse().unwrap(), mac };
        for _ in 0..2 {
            a.route(move |rtnl| rtnl.add_neighbour(&neighbour));
        }
        let receiver = b.run(|| std::net::UdpSocket::bind("0.0.0.0:99").unwrap());
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        a.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", "10.9.0.2:99")).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(receiver.recv(&mut bytes).unwrap(), 5);
        for _ in 0..2 {
            a.route(move |rtnl| rtnl.delete_neighbour(&neighbour));
        }
    });
}

#[test]
fn refusals_say_what_was_asked_and_what_the_kernel_says() {
    isolated(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let route = Route::to("10.0.0.0/8".parse().unwrap()).via("10.1.1.1".parse().unwrap());
        let error = rtnl.add_route(&route).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("cannot add route to 10.0.0.0/8 via 10.1.1.1 in table 254"), "{text}");
        assert!(text.contains("gateway"), "the kernel's explanation: {text}");
    });
}
