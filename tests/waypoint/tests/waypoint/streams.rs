//! Routes for connections that are no HTTP: by name of TLS, by weight, and what no route takes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use stillmesh_core::model::http::{RouteBackend, RouteKind};
use stillmesh_core::model::stream::StreamBackend;
use stillmesh_hbone::TunnelError;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::PATIENCE;
use stillmesh_waypoint_tests::streams::{Certificate, Greeters, greeters, greeting, route, rule, to};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Of service ports, as numbered on the wire.
const UNNAMED: i32 = 0;
const TCP: i32 = 4;
const TLS: i32 = 5;

fn certificates() -> [Certificate; 3] {
    let of = |more: &str| Certificate::new(&["a.example", "x.b.example", "y.x.b.example", "other.example", more]);
    [of("web"), of("one"), of("two")]
}

fn by_name() -> Vec<stillmesh_core::snapshot::Change> {
    let rules = |names: &[&str], backend: &str| vec![rule(names, vec![to(backend, 1)])];
    vec![
        route(RouteKind::Tls, "r", rules(&["a.example"], "one")),
        route(RouteKind::Tls, "s", rules(&["*.b.example"], "two")),
    ]
}

async fn passes_through(protocol: i32) {
    let certificates = certificates();
    let [_, one, two] = &certificates;
    let Greeters { world, web } = greeters(protocol, &[], by_name(), Some(&certificates)).await;
    let client = world.client("page", 1);
    // A client believes one certificate: the one of the application that it is to reach.
    for (name, certificate, expected) in
        [("a.example", one, "one"), ("x.b.example", two, "two"), ("y.x.b.example", two, "two")]
    {
        let mut stream = certificate.connect(client.stream(web).await, name).await.unwrap();
        assert_eq!(greeting(&mut stream).await.unwrap(), expected);
        let sent = vec![7; 100_000];
        let mut back = vec![0; sent.len()];
        let (mut read, mut write) = tokio::io::split(stream);
        let (written, read) = tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.flush().await
            },
            read.read_exact(&mut back)
        );
        assert!(written.is_ok() && read.is_ok() && back == sent);
    }
    assert!(one.connect(client.stream(web).await, "other.example").await.is_err(), "no route has this name");
    let to_one = "destination_service=\"one.shop.svc.cluster.local\"";
    world.counts("istio_tcp_connections_opened_total", &[to_one], 1.0).await;
    let refused = ["destination_service=\"web.shop.svc.cluster.local\"", "response_flags=\"NR\""];
    world.counts("istio_tcp_connections_closed_total", &refused, 1.0).await;
}

#[test]
fn tls_goes_by_the_name_that_its_client_asks_for_and_is_passed_through() {
    isolated_async(|| async {
        passes_through(TLS).await;
    });
}

#[test]
fn where_a_port_says_nothing_tls_is_known_by_its_first_bytes() {
    isolated_async(|| async {
        passes_through(UNNAMED).await;
    });
}

#[test]
fn connections_that_are_no_tls_are_refused_where_routes_ask_for_names() {
    isolated_async(|| async {
        let environment = [("HEADER_TIMEOUT", "200ms"), ("PROTOCOL_DETECTION_TIMEOUT", "50ms")];
        let Greeters { world, web } = greeters(UNNAMED, &environment, by_name(), None).await;
        let client = world.client("page", 1);
        // Another protocol, silence, and a hello that never ends.
        for begin in [b"EHLO example\r\n".as_slice(), b"", b"\x16\x03\x01\x02\x00\x01\x00"] {
            let mut stream = client.stream(web).await;
            stream.write_all(begin).await.unwrap();
            stream.flush().await.unwrap();
            assert!(greeting(&mut stream).await.is_err(), "{begin:?}");
        }
        world.counts("istio_tcp_connections_closed_total", &["response_flags=\"NR\""], 3.0).await;
    });
}

#[test]
fn connections_are_shared_by_weight_and_a_changed_route_holds_for_the_next() {
    isolated_async(|| async {
        let tcp = |one, two| route(RouteKind::Tcp, "r", vec![rule(&[], vec![to("one", one), to("two", two)])]);
        let Greeters { world, web } = greeters(TCP, &[], vec![tcp(1, 1)], None).await;
        let client = world.client("page", 1);
        let mut counts = [0, 0];
        for _ in 0..40 {
            let name = greeting(&mut client.stream(web).await).await.unwrap();
            counts[usize::from(name == "two")] += 1;
            assert_ne!(name, "web");
        }
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
        let mut open = client.stream(web).await;
        greeting(&mut open).await.unwrap();
        world.control.store.publish(vec![tcp(0, 1)]);
        let begin = tokio::time::Instant::now();
        let mut streak = 0;
        while streak < 20 {
            let name = greeting(&mut client.stream(web).await).await.unwrap();
            streak = if name == "two" { streak + 1 } else { 0 };
            assert!(begin.elapsed() < PATIENCE, "the change arrives");
        }
        open.write_all(b"abc").await.unwrap();
        open.flush().await.unwrap();
        assert_eq!(greeting(&mut open).await.unwrap(), "abc", "what is open stays");
    });
}

#[test]
fn a_backend_that_is_not_there_refuses_its_share() {
    isolated_async(|| async {
        let gone = RouteBackend::Invalid { problem: "Service shop/gone is not there".into() };
        let rules = vec![rule(&[], vec![StreamBackend { backend: gone, weight: 1 }])];
        let routes = vec![route(RouteKind::Tcp, "r", rules)];
        let Greeters { world, web } = greeters(TCP, &[], routes, None).await;
        let client = world.client("page", 1);
        let Err(TunnelError::Refused { status, .. }) = client.open(web).await else { panic!("it leads nowhere") };
        assert_eq!(status, 400);
        assert_eq!(world.admin("/config_dump").await["routes"][0]["key"]["kind"], "TCPRoute", "what is known is told");
        world.counts("istio_tcp_connections_closed_total", &["response_flags=\"NR\""], 1.0).await;
    });
}

#[test]
fn a_port_that_says_nothing_is_not_taken_for_http_where_routes_are_for_tcp() {
    isolated_async(|| async {
        let tcp = route(RouteKind::Tcp, "r", vec![rule(&[], vec![to("one", 1)])]);
        let Greeters { world, web } = greeters(UNNAMED, &[], vec![tcp], None).await;
        let mut stream = world.client("page", 1).stream(web).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(greeting(&mut stream).await.unwrap(), "one");
        assert_eq!(greeting(&mut stream).await.unwrap(), "GET", "bytes are bytes");
    });
}

#[test]
fn a_virtual_services_tcp_takes_what_its_tls_does_not() {
    isolated_async(|| async {
        let rules = vec![rule(&["a.example"], vec![to("one", 1)]), rule(&[], vec![to("two", 1)])];
        let routes = vec![route(RouteKind::VirtualService, "v", rules)];
        let environment = [("PROTOCOL_DETECTION_TIMEOUT", "50ms")];
        let certificates = certificates();
        let [_, one, two] = &certificates;
        let Greeters { world, web } = greeters(UNNAMED, &environment, routes, Some(&certificates)).await;
        let client = world.client("page", 1);
        let mut stream = one.connect(client.stream(web).await, "a.example").await.unwrap();
        assert_eq!(greeting(&mut stream).await.unwrap(), "one");
        let mut stream = two.connect(client.stream(web).await, "other.example").await.unwrap();
        assert_eq!(greeting(&mut stream).await.unwrap(), "two");
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_where_routes_ask_for_names_too() {
    isolated_async(|| async {
        let rules = vec![rule(&["a.example"], vec![to("one", 1)]), rule(&[], vec![to("two", 1)])];
        let routes = vec![route(RouteKind::VirtualService, "v", rules)];
        let environment = [("PROTOCOL_DETECTION_TIMEOUT", "50ms")];
        let Greeters { world, web } = greeters(UNNAMED, &environment, routes, None).await;
        let mut stream = world.client("page", 1).stream(web).await;
        assert_eq!(greeting(&mut stream).await.unwrap(), "two", "after a short silence");
    });
}
