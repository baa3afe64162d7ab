use super::*;
use crate::fixtures::{World, service_key};
use crate::model::Str;
use crate::model::http::{RouteKey, RouteKind, RouteParent};
use crate::model::stream::{ServerName, StreamBackend, StreamMatch};
use crate::snapshot::Change;

/// Of service ports, as numbered on the wire.
const HTTP: i32 = 1;
const TCP: i32 = 4;
const TLS: i32 = 5;
const UNNAMED: i32 = 0;

/// Services `web`, `one` and `two` with port 80, and these routes.
fn known(protocol: i32, routes: &[HttpRoute]) -> Snapshot {
    let world = ["web", "one", "two"].into_iter().fold(World::new(), |world, name| {
        let said = |service: &mut Service| {
            service.ports.iter_mut().for_each(|port| port.app_protocol = protocol);
        };
        world.service_with(name, &[(80, 8080), (81, 8081)], &[], said)
    });
    let routes = routes.iter().map(|route| Change::Route(Arc::new(route.clone())));
    world.snapshot().apply(&routes.collect::<Vec<_>>()).0
}

fn route(kind: RouteKind, name: &str, streams: Vec<StreamRule>) -> HttpRoute {
    HttpRoute {
        key: RouteKey { kind, namespace: "ns".into(), name: name.into() },
        parents: vec![RouteParent { service: service_key("web"), port: None }],
        consumer: None,
        created: 1000,
        rules: Vec::new(),
        streams,
    }
}

fn to(name: &str, weight: u32) -> StreamBackend {
    let backend = RouteBackend::Service { service: service_key(name), port: None, subset: None };
    StreamBackend { backend, weight }
}

fn names(names: &[&str]) -> StreamMatch {
    let server_names = names.iter().map(|name| ServerName::read(name)).collect();
    StreamMatch { server_names, port: None }
}

fn rule(matches: Vec<StreamMatch>, name: &str) -> StreamRule {
    StreamRule { name: None, matches, backends: vec![to(name, 1)] }
}

fn tls(name: &str, asked: &[&str], backend: &str) -> HttpRoute {
    route(RouteKind::Tls, name, vec![rule(vec![names(asked)], backend)])
}

fn tcp(name: &str, backend: &str) -> HttpRoute {
    route(RouteKind::Tcp, name, vec![rule(vec![], backend)])
}

fn virtual_service(name: &str, streams: Vec<StreamRule>) -> HttpRoute {
    route(RouteKind::VirtualService, name, streams)
}

fn web(snapshot: &Snapshot, port: u16) -> Target {
    let service = snapshot.service(&service_key("web")).unwrap().clone();
    let port = *service.port(port).unwrap();
    Target::Service { service, port, address: None, subset: None }
}

fn ask(snapshot: &Snapshot, port: u16, opening: Opening<'_>) -> Result<Streamed, Reason> {
    let target = web(snapshot, port);
    let attrs = StreamAttrs { target: &target, client_namespace: "ns", opening, entropy: 7 };
    stream(snapshot, &attrs).map_err(|refusal| refusal.reason)
}

/// The service that takes a connection, by its short name.
fn taken(snapshot: &Snapshot, opening: Opening<'_>) -> Result<Str, Reason> {
    ask(snapshot, 80, opening).map(|streamed| streamed.target.service().unwrap().name.clone())
}

fn no_route(port: u16) -> Reason {
    Reason::NoRoute { service: service_key("web"), port }
}

const BYTES: Opening<'static> = Opening::Bytes;

fn hello(name: &str) -> Opening<'_> {
    Opening::Tls(Some(name))
}

#[test]
fn without_routes_a_connection_goes_where_it_was_dialled() {
    let snapshot = known(TCP, &[]);
    let streamed = ask(&snapshot, 80, BYTES).unwrap();
    assert_eq!((&streamed.target, &streamed.by), (&web(&snapshot, 80), &None));
    assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Nothing);
}

#[test]
fn a_route_for_tcp_takes_every_connection() {
    let snapshot = known(TCP, &[tcp("r", "one")]);
    assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Port);
    for opening in [BYTES, Opening::Tls(None), hello("any.example")] {
        assert_eq!(taken(&snapshot, opening).as_deref(), Ok("one"));
    }
    let (by, rule) = ask(&snapshot, 80, BYTES).unwrap().by.unwrap();
    assert_eq!((by.key.to_string().as_str(), rule), ("TCPRoute ns/r", 0));
}

#[test]
fn names_are_asked_whole_ones_first_then_the_longest_ends() {
    let routes = [
        tls("a", &["*"], "web"),
        tls("b", &["*.example.com"], "one"),
        tls("c", &["*.shop.example.com", "whole.example.com"], "two"),
    ];
    let snapshot = known(TLS, &routes);
    assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Opening);
    for (name, expected) in [
        ("whole.example.com", "two"),
        ("a.shop.example.com", "two"),
        ("a.b.shop.example.com", "two"),
        ("shop.example.com", "one"),
        ("other.example.com", "one"),
        ("example.com", "web"),
        ("example.org", "web"),
    ] {
        assert_eq!(taken(&snapshot, hello(name)).as_deref(), Ok(expected), "{name}");
    }
    assert_eq!(taken(&snapshot, Opening::Tls(None)).as_deref(), Ok("web"), "no name is asked for");
    assert_eq!(taken(&snapshot, BYTES), Err(no_route(80)), "it is no TLS");
}

#[test]
fn a_name_that_no_route_has_is_refused() {
    let snapshot = known(UNNAMED, &[tls("r", &["a.example"], "one")]);
    assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("one"));
    for opening in [hello("b.example"), hello("x.a.example"), Opening::Tls(None), BYTES] {
        assert_eq!(taken(&snapshot, opening), Err(no_route(80)), "{opening:?}");
    }
}

#[test]
fn of_equal_names_the_oldest_route_counts_then_its_name() {
    let older = HttpRoute { created: 1, ..tls("z", &["a.example"], "two") };
    let snapshot = known(TLS, &[tls("a", &["a.example"], "one"), older]);
    assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("two"));
    let snapshot = known(TLS, &[tls("b", &["a.example"], "two"), tls("a", &["a.example"], "one")]);
    assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("one"));
}

#[test]
fn routes_for_tcp_give_way_to_routes_for_tls() {
    let snapshot = known(TLS, &[tls("r", &["a.example"], "one"), tcp("r", "two")]);
    assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("one"));
    assert_eq!(taken(&snapshot, hello("b.example")), Err(no_route(80)));
}

#[test]
fn a_virtual_services_first_rule_counts_and_tls_comes_before_tcp() {
    let rules =
        vec![rule(vec![], "two"), rule(vec![names(&["*.example"])], "one"), rule(vec![names(&["a.example"])], "web")];
    let snapshot = known(TLS, &[virtual_service("v", rules)]);
    assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("one"), "in its own order");
    assert_eq!(taken(&snapshot, hello("a.other")).as_deref(), Ok("two"), "then TCP");
    assert_eq!(taken(&snapshot, BYTES).as_deref(), Ok("two"));
    // Beside the Gateway API's routes, after them.
    let beside =
        [virtual_service("v", vec![rule(vec![names(&["a.example"])], "two")]), tls("r", &["*.example"], "one")];
    assert_eq!(taken(&known(TLS, &beside), hello("a.example")).as_deref(), Ok("one"));
}

#[test]
fn a_port_that_is_not_tls_is_not_asked_for_names() {
    let both = virtual_service("v", vec![rule(vec![names(&["a.example"])], "one"), rule(vec![], "two")]);
    for protocol in [TCP, HTTP] {
        let snapshot = known(protocol, std::slice::from_ref(&both));
        assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Port);
        assert_eq!(taken(&snapshot, hello("a.example")).as_deref(), Ok("two"));
    }
    let snapshot = known(TCP, &[tls("r", &["a.example"], "one")]);
    assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Nothing);
    assert_eq!(taken(&snapshot, BYTES).as_deref(), Ok("web"));
}

#[test]
fn a_rule_for_one_port_says_nothing_about_others() {
    let on_81 = StreamMatch { server_names: Vec::new(), port: Some(81) };
    let snapshot = known(TCP, &[virtual_service("v", vec![rule(vec![on_81], "one")])]);
    assert_eq!(ask(&snapshot, 81, BYTES).unwrap().target.service().unwrap().name.as_ref(), "one");
    assert_eq!(taken(&snapshot, BYTES).as_deref(), Ok("web"));
    let attached =
        HttpRoute { parents: vec![RouteParent { service: service_key("web"), port: Some(81) }], ..tcp("r", "one") };
    let snapshot = known(TCP, &[attached]);
    assert_eq!(ask(&snapshot, 80, BYTES).unwrap().by, None);
    assert!(ask(&snapshot, 81, BYTES).unwrap().by.is_some());
}

#[test]
fn a_consumers_route_stands_in_place_of_the_services_own_for_its_clients() {
    let mine = HttpRoute { consumer: Some("ns".into()), ..tcp("c", "two") };
    let snapshot = known(TCP, &[tcp("p", "one"), mine]);
    assert_eq!(taken(&snapshot, BYTES).as_deref(), Ok("two"));
    let target = web(&snapshot, 80);
    let attrs = StreamAttrs { target: &target, client_namespace: "other", opening: BYTES, entropy: 7 };
    assert_eq!(stream(&snapshot, &attrs).unwrap().target.service().unwrap().name.as_ref(), "one");
}

#[test]
fn what_leads_nowhere_is_refused_with_the_routes_name() {
    let with = |backends: Vec<StreamBackend>| {
        let rule = StreamRule { name: None, matches: Vec::new(), backends };
        taken(&known(TCP, &[route(RouteKind::Tcp, "r", vec![rule])]), BYTES).unwrap_err()
    };
    let gone = RouteBackend::Invalid { problem: "Service ns/gone is not there".into() };
    for (backends, expected) in [
        (vec![], "it has no backend with a weight"),
        (vec![to("one", 0)], "it has no backend with a weight"),
        (vec![StreamBackend { backend: gone, weight: 1 }], "Service ns/gone is not there"),
        (vec![to("nobody", 1)], "service ns/nobody.ns.svc.cluster.local is not known here"),
    ] {
        assert_eq!(with(backends), Reason::BackendInvalid { route: "TCPRoute ns/r".into(), problem: expected.into() },);
    }
    let port = NonZeroU16::new(9);
    let backend = RouteBackend::Service { service: service_key("one"), port, subset: None };
    assert_eq!(
        with(vec![StreamBackend { backend, weight: 1 }]),
        Reason::NoServicePort { service: service_key("one"), port: 9 }
    );
}

#[test]
fn backends_are_chosen_by_weight_and_a_subset_stays() {
    let v2 = RouteBackend::Service { service: service_key("two"), port: None, subset: Some("v2".into()) };
    let backends = vec![to("one", 3), StreamBackend { backend: v2, weight: 1 }];
    let rule = StreamRule { name: None, matches: Vec::new(), backends };
    let snapshot = known(TCP, &[route(RouteKind::Tcp, "r", vec![rule])]);
    let target = web(&snapshot, 80);
    let mut to_two = 0;
    for entropy in 0..4000 {
        let attrs = StreamAttrs { target: &target, client_namespace: "ns", opening: BYTES, entropy };
        let streamed = stream(&snapshot, &attrs).unwrap();
        let is_two = *streamed.target.service().unwrap().name == *"two";
        let Target::Service { subset, .. } = &streamed.target else { panic!("a service") };
        assert_eq!(subset.is_some(), is_two);
        to_two += usize::from(is_two);
    }
    assert!((850..1150).contains(&to_two), "{to_two} of 4000");
}

#[test]
fn what_is_about_requests_says_nothing_about_other_connections() {
    let only_http = virtual_service("v", Vec::new());
    let snapshot = known(UNNAMED, &[only_http, route(RouteKind::Http, "h", Vec::new())]);
    assert_eq!(asked(&snapshot, &web(&snapshot, 80), "ns"), Asked::Nothing);
    assert!(snapshot.routes(&service_key("web"), 80, None).is_some());
    let snapshot = known(UNNAMED, &[tcp("r", "one"), virtual_service("v", vec![rule(vec![], "two")])]);
    assert!(snapshot.routes(&service_key("web"), 80, None).is_none(), "requests go where they were dialled");
}
