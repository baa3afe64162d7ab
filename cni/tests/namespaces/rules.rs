use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};

use stillmesh_cni::enroll::older;
use stillmesh_cni::probe_source::ProbeSource;
use stillmesh_cni::rules::apply::{self, FoundRules, Outcome};
use stillmesh_cni::rules::model::RulePlan;
use stillmesh_cni::rules::plan::{self, Facts, Ipv6};
use stillmesh_netlink::nft;
use stillmesh_runtime::sys::socket::{Mark, Options, original_destination, tcp_connect_socket, tcp_listener};
use stillmesh_test_support::isolated;
use stillmesh_test_support::net::Place;

use crate::net::{DEADLINE, PEER, PEER_V6, POD, POD_V6, accept, at, connect, is_dropped, listen, pod_and_peer, talk};

fn capture() -> RulePlan {
    plan::capture(&Facts::default())
}

fn install(place: &Place, plan: RulePlan) -> Outcome {
    place.run(move || apply::install(&plan)).expect("rules")
}

fn remove(place: &Place) -> Outcome {
    place.run(apply::remove).expect("no rules")
}

/// A listener of the tunnel in the pod.
fn tunnel(pod: &Place, port: u16) -> std::net::TcpListener {
    let options = Options { mark: Some(Mark::PROXY), ..Options::default() };
    let listener =
        pod.run(move || tcp_listener(at(std::net::Ipv6Addr::UNSPECIFIED, port), options)).expect("a listener");
    listener.set_nonblocking(false).expect("a blocking listener");
    listener
}

#[test]
fn an_open_connection_survives_capture_leaving_and_removal() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let (outside, inside) = (listen(&peer, at(PEER, 80)), listen(&pod, at(POD, 80)));
        let mut out = connect(&pod, at(PEER, 80));
        let mut out_peer = accept(&outside);
        let mut inbound_peer = connect(&peer, at(POD, 80));
        let mut inbound = accept(&inside);
        let mut both = || {
            talk(&mut out, &mut out_peer);
            // The side that was silent speaks first: connection tracking meets it from there.
            talk(&mut inbound_peer, &mut inbound);
        };
        both();
        pod.run(|| apply::raise_guard(&Facts::default())).unwrap();
        both();
        install(&pod, capture());
        both();
        pod.run(apply::lower_guard).unwrap();
        both();
        install(&pod, plan::leave(&Facts::default()));
        both();
        install(&pod, capture());
        both();
        remove(&pod);
        both();
    });
}

#[test]
fn a_new_connection_reaches_the_tunnel_which_sees_where_it_was_going() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let (out, inbound) = (tunnel(&pod, plan::OUTBOUND_PORT), tunnel(&pod, plan::INBOUND_PORT));
        let _application = listen(&pod, at(POD, 80));
        install(&pod, capture());
        for destination in [at(PEER, 80), at(PEER_V6, 81), at(Ipv4Addr::new(10, 96, 0, 10), 443)] {
            let client = connect(&pod, destination);
            let captured = accept(&out);
            assert_eq!(original_destination(&captured).unwrap(), destination);
            assert_eq!(captured.peer_addr().unwrap().port(), client.local_addr().unwrap().port());
        }
        for destination in [at(POD, 80), at(POD_V6, 8080)] {
            let client = connect(&peer, destination);
            let captured = accept(&inbound);
            assert_eq!(original_destination(&captured).unwrap(), destination);
            let source = captured.peer_addr().unwrap();
            assert_eq!(source.ip().to_canonical(), client.local_addr().unwrap().ip());
        }
    });
}

#[test]
fn a_port_of_a_socket_probe_is_captured_only_while_somebody_listens() {
    isolated(|| {
        assert!(stillmesh_cni::agent::precheck::socket_probes());
        let (pod, peer) = pod_and_peer();
        let inbound = tunnel(&pod, plan::INBOUND_PORT);
        let plan = plan::capture(&Facts { socket_probes: vec![80, 81], ..Facts::default() });
        install(&pod, plan.clone());
        assert_eq!(pod.run(move || apply::differences(&plan)).unwrap(), [""; 0]);
        let try_to = |address: SocketAddr| peer.run(move || TcpStream::connect_timeout(&address, DEADLINE));
        let refused =
            |address| try_to(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        assert!(refused(at(POD, 80)) && refused(at(POD_V6, 80)) && refused(at(POD, 81)));
        // Of another port the tunnel finds out itself.
        drop((connect(&peer, at(POD, 82)), accept(&inbound)));
        for address in [at(POD, 80), at(POD_V6, 80)] {
            let application = listen(&pod, address);
            let client = connect(&peer, address);
            let captured = accept(&inbound);
            assert_eq!(original_destination(&captured).unwrap(), address);
            drop((client, captured, application));
            assert!(refused(address));
        }
        // A listener of both families.
        let application = listen(&pod, at(std::net::Ipv6Addr::UNSPECIFIED, 81));
        drop((connect(&peer, at(POD, 81)), accept(&inbound)));
        // The tunnel's own way to the application.
        let mut client = pod.run(|| connect_as_tunnel(at(POD, 81), Some(Ipv4Addr::new(10, 9, 0, 7).into())));
        talk(&mut client, &mut accept(&application));
    });
}

#[test]
fn what_a_node_opens_comes_from_the_address_of_probes_where_that_is_wanted() {
    isolated(|| {
        let (pod, node) = pod_and_peer();
        pod.route_via("::/0", &PEER_V6.to_string());
        let inbound = tunnel(&pod, plan::INBOUND_PORT);
        install(&pod, capture());
        let keep =
            |pods: Vec<IpAddr>| node.run(move || ProbeSource::default().keep(pods.into_iter().collect())).unwrap();
        keep(vec![POD.into(), POD_V6.into()]);
        for (address, source) in
            [(at(POD, 80), IpAddr::from(plan::PROBE_SOURCE)), (at(POD_V6, 80), plan::PROBE_SOURCE_V6.into())]
        {
            let application = listen(&pod, address);
            let mut probe = connect(&node, address);
            let mut answer = accept(&application);
            assert_eq!(answer.peer_addr().unwrap().ip(), source);
            talk(&mut probe, &mut answer);
        }
        // A pod that is not captured any more is reached as ever, and so is everybody without the rules.
        for rest in [Some(vec![POD_V6.into()]), None] {
            match rest {
                Some(pods) => keep(pods),
                None => node.run(|| ProbeSource::default().remove()).unwrap(),
            }
            let client = connect(&node, at(POD, 80));
            assert_eq!(accept(&inbound).peer_addr().unwrap().ip().to_canonical(), IpAddr::from(PEER));
            drop(client);
        }
    });
}

#[test]
fn hbone_loopback_and_the_pods_own_address_are_not_redirected() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        install(&pod, capture());
        let hbone = tunnel(&pod, plan::HBONE_PORT);
        let application = listen(&pod, at(Ipv4Addr::UNSPECIFIED, 80));
        for (place, address, listener) in [
            (&peer, at(POD, plan::HBONE_PORT), &hbone),
            (&pod, at(Ipv4Addr::LOCALHOST, 80), &application),
            (&pod, at(POD, 80), &application),
        ] {
            let mut client = connect(place, address);
            talk(&mut client, &mut accept(listener));
        }
    });
}

#[test]
fn the_tunnels_own_connections_pass_with_its_own_and_with_a_borrowed_address() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        install(&pod, capture());
        let (outside, application) = (listen(&peer, at(PEER, 80)), listen(&pod, at(POD, 80)));
        let borrowed = Ipv4Addr::new(10, 9, 0, 7).into();
        for (destination, source, listener) in
            [(at(PEER, 80), None, &outside), (at(POD, 80), Some(borrowed), &application)]
        {
            let mut client = pod.run(move || connect_as_tunnel(destination, source));
            let mut server = accept(listener);
            talk(&mut client, &mut server);
            if let Some(source) = source {
                assert_eq!(server.peer_addr().unwrap().ip(), source);
            }
        }
    });
}

fn connect_as_tunnel(destination: SocketAddr, source: Option<IpAddr>) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tcp_connect_socket(destination, Some(Mark::PROXY), source.map(|ip| SocketAddr::new(ip, 0)))
            .expect("a socket");
        tokio::time::timeout(DEADLINE, socket.connect(destination)).await.expect("in time").expect("a connection")
    });
    let stream = stream.into_std().expect("a stream");
    stream.set_nonblocking(false).expect("a blocking stream");
    stream.set_read_timeout(Some(DEADLINE)).expect("a read deadline");
    stream
}

#[test]
fn a_connection_in_the_tunnel_survives_leaving() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let (out, inbound) = (tunnel(&pod, plan::OUTBOUND_PORT), tunnel(&pod, plan::INBOUND_PORT));
        install(&pod, capture());
        let mut client = connect(&pod, at(PEER, 80));
        let mut captured = accept(&out);
        let mut outsider = connect(&peer, at(POD, 80));
        let mut captured_inbound = accept(&inbound);
        talk(&mut client, &mut captured);
        talk(&mut outsider, &mut captured_inbound);
        let counted = pod.run(|| older::in_tunnel(&older::sockets().expect("sockets")));
        assert_eq!(counted, 2);

        assert_eq!(install(&pod, plan::leave(&Facts::default())), Outcome::Changed);
        talk(&mut client, &mut captured);
        talk(&mut captured_inbound, &mut outsider);
        let outside = listen(&peer, at(PEER, 80));
        let mut direct = connect(&pod, at(PEER, 80));
        talk(&mut direct, &mut accept(&outside));
    });
}

#[test]
fn the_guard_drops_what_opens_and_leaves_the_rest_alone() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let (outside, inside) = (listen(&peer, at(PEER, 80)), listen(&pod, at(POD, 80)));
        let mut open = connect(&pod, at(PEER, 80));
        let mut open_peer = accept(&outside);
        let raise = || apply::raise_guard(&Facts::default());
        assert_eq!(pod.run(raise).unwrap(), Outcome::Changed);
        assert_eq!(pod.run(raise).unwrap(), Outcome::Unchanged);
        assert!(is_dropped(&pod, at(PEER, 80)), "out");
        assert!(is_dropped(&pod, at(PEER_V6, 80)), "out, IPv6");
        assert!(is_dropped(&peer, at(POD, 80)), "in");
        talk(&mut open, &mut open_peer);
        let mut own = connect(&pod, at(POD, 80));
        talk(&mut own, &mut accept(&inside));
        assert_eq!(pod.run(apply::lower_guard).unwrap(), Outcome::Changed);
        assert_eq!(pod.run(apply::lower_guard).unwrap(), Outcome::Unchanged);
        let mut late = connect(&peer, at(POD, 80));
        talk(&mut late, &mut accept(&inside));
    });
}

#[test]
fn applying_again_changes_nothing_and_removal_leaves_nothing() {
    isolated(|| {
        let (pod, _peer) = pod_and_peer();
        // The kernel's own routes of IPv6 come when it has brought the link up, at any moment.
        let routing = || {
            let (rules, mut routes) = pod.route(|rtnl| Ok((rtnl.rules()?, rtnl.routes(None)?)));
            routes.retain(|route| route.table == plan::REPLY_TABLE || route.destination.network().is_ipv4());
            (rules, routes)
        };
        let before = routing();
        assert_eq!(pod.run(|| apply::inspect(&Facts::default())).unwrap().rules, FoundRules::Nothing);
        assert_eq!(install(&pod, capture()), Outcome::Changed);
        assert_eq!(install(&pod, capture()), Outcome::Unchanged);
        let found = pod.run(|| apply::inspect(&Facts::default())).unwrap();
        assert_eq!((found.rules, found.ipv6, found.guard), (FoundRules::Capturing, Ipv6::On, false));
        assert_eq!(install(&pod, plan::leave(&Facts::default())), Outcome::Changed);
        assert_eq!(install(&pod, plan::leave(&Facts::default())), Outcome::Unchanged);
        assert_eq!(pod.run(|| apply::inspect(&Facts::default())).unwrap().rules, FoundRules::Leaving);
        assert_eq!(remove(&pod), Outcome::Changed);
        assert_eq!(remove(&pod), Outcome::Unchanged);
        assert_eq!(pod.run(nft::tables).unwrap(), []);
        assert_eq!(routing(), before);
    });
}

#[test]
fn rules_that_somebody_changed_are_found_and_put_right() {
    isolated(|| {
        let (pod, _peer) = pod_and_peer();
        install(&pod, capture());
        let inspect = || apply::inspect(&Facts::default()).expect("what is there").rules;
        let damage = |change: fn(&mut nft::Batch)| {
            pod.run(move || {
                let mut batch = nft::Batch::new();
                change(&mut batch);
                nft::apply(&batch).expect("the damage");
            });
        };
        damage(|batch| batch.flush_chain(nft::Family::Inet, plan::NAT_TABLE, plan::OUTPUT_CHAIN));
        assert_eq!(pod.run(inspect), FoundRules::Damaged);
        assert_eq!(install(&pod, capture()), Outcome::Changed);
        damage(|batch| batch.delete_table(nft::Family::Inet, plan::MANGLE_TABLE));
        assert_eq!(pod.run(inspect), FoundRules::Different);
        assert_eq!(install(&pod, capture()), Outcome::Changed);
        pod.route(|rtnl| {
            let mut ours = rtnl.rules()?.into_iter().filter(|rule| rule.priority == plan::REPLY_RULE_PRIORITY);
            ours.try_for_each(|rule| rtnl.delete_rule(&rule))
        });
        assert_eq!(pod.run(inspect), FoundRules::Different);
        assert_eq!(install(&pod, capture()), Outcome::Changed);
        assert_eq!(pod.run(inspect), FoundRules::Capturing);
        let direct = Facts { dns: plan::Dns::Direct, ..Facts::default() };
        assert_eq!(install(&pod, plan::capture(&direct)), Outcome::Changed);
        assert_eq!(pod.run(inspect), FoundRules::Different);
        assert!(pod.run(nft::tables).unwrap().iter().all(|table| table.name != plan::RAW_TABLE));
    });
}

/// A SYN that left before capture: the connection must not complete behind the tunnel's back.
#[test]
fn a_connection_that_is_half_open_at_capture_opens_through_the_tunnel() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let out = tunnel(&pod, plan::OUTBOUND_PORT);
        let _outside = listen(&peer, at(PEER, 80));
        // Holds the answer back, without connection tracking.
        let answers_lost = nft::Table::new(nft::Family::Inet, "answers-lost").chain(
            nft::Chain::base("prerouting", nft::Kind::Filter, nft::Hook::Prerouting, -400)
                .rule(nft::Rule::new([nft::eq(nft::Field::TcpSport, 80u16), nft::drop()])),
        );
        pod.run(move || {
            let mut batch = nft::Batch::new();
            batch.replace_table(&answers_lost);
            nft::apply(&batch).expect("a rule");
        });
        let client = pod.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("a nonblocking socket");
            let started = socket.connect(&at(PEER, 80).into());
            assert_eq!(started.unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            socket
        });
        install(&pod, capture());
        pod.run(|| {
            let mut batch = nft::Batch::new();
            batch.delete_table(nft::Family::Inet, "answers-lost");
            nft::apply(&batch).expect("no rule");
        });
        let captured = accept(&out);
        assert_eq!(original_destination(&captured).unwrap(), at(PEER, 80));
        drop(client);
    });
}

#[test]
fn older_connections_are_counted_until_they_end_and_can_be_cut() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let (outside, inside) = (listen(&peer, at(PEER, 80)), listen(&pod, at(POD, 80)));
        let out = connect(&pod, at(PEER, 80));
        let mut out_peer = accept(&outside);
        let inbound_peer = connect(&peer, at(POD, 80));
        let inbound = accept(&inside);
        let own = connect(&pod, at(POD, 80));
        let counted = pod.run(|| older::uncaptured(&Facts::default(), &older::sockets().expect("sockets")));
        assert_eq!(counted.len(), 2, "{counted:?}");
        install(&pod, capture());
        drop((inbound, inbound_peer));
        let (before, counted) = (counted.clone(), counted);
        let left = pod.run(move || older::remaining(&counted, &older::sockets().expect("sockets")));
        assert_eq!(left.iter().map(|one| one.remote).collect::<Vec<_>>(), [at(PEER, 80)]);
        assert_eq!(pod.run(move || older::cut(&before)).expect("to cut"), 1);
        let mut bytes = [0; 1];
        let error = std::io::Read::read(&mut out_peer, &mut bytes).expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        drop((out, own));
    });
}

#[test]
fn dns_goes_to_the_tunnels_proxy_and_answers_come_back_as_if_from_the_server() {
    isolated(|| {
        let (pod, _peer) = pod_and_peer();
        install(&pod, capture());
        let proxy = pod.run(|| {
            let proxy = UdpSocket::bind(at(Ipv4Addr::LOCALHOST, plan::DNS_PORT)).expect("a socket");
            stillmesh_runtime::sys::socket::set_mark(&proxy, Mark::PROXY).expect("a mark");
            proxy
        });
        let client = pod.run(|| UdpSocket::bind(at(POD, 0)).expect("a socket"));
        for socket in [&proxy, &client] {
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let server = at(Ipv4Addr::new(10, 96, 0, 10), 53);
        client.send_to(b"question", server).unwrap();
        let mut bytes = [0; 64];
        let (count, from) = proxy.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"question");
        proxy.send_to(b"answer", from).unwrap();
        let (count, from) = client.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..count], from), (&b"answer"[..], server));
    });
}

#[test]
fn without_ipv6_it_stays_a_way_out_for_nobody() {
    isolated(|| {
        let (pod, peer) = pod_and_peer();
        let _outside = listen(&peer, at(PEER_V6, 80));
        pod.sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
        let found = pod.run(|| apply::inspect(&Facts::default())).unwrap();
        assert_eq!(found.ipv6, Ipv6::Off);
        install(&pod, plan::capture(&Facts { ipv6: Ipv6::Off, ..Facts::default() }));
        assert!(is_dropped(&pod, at(PEER_V6, 80)));
        assert_eq!(pod.run(|| apply::inspect(&Facts::default())).unwrap().rules, FoundRules::Capturing);
    });
}

#[test]
fn a_node_that_can_hold_the_rules_passes_its_check() {
    isolated(|| stillmesh_cni::agent::precheck::check().expect("this kernel holds the rules"));
}
