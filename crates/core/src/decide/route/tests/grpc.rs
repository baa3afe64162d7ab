use super::*;

fn grpc(name: &str, rules: Vec<RouteRule>) -> HttpRoute {
    object(RouteKind::Grpc, name, rules)
}

#[test]
fn most_of_the_service_then_of_the_method_then_most_headers_come_first() {
    let of = |path: Option<PathMatch>, headers: usize| {
        let headers = ["x-a", "x-b"][..headers].iter().map(|name| header(name, TextMatch::Present)).collect();
        vec![RequestMatch { path, headers, ..RequestMatch::default() }]
    };
    let pattern = |service, method| Some(PathMatch::grpc(service, method).unwrap());
    // From the strongest to the weakest; all of them take the request.
    let ordered = [
        rule("both", of(Some(PathMatch::Exact("/shop.Cart/AddItem".into())), 0)),
        rule("service, two headers", of(Some(PathMatch::segments("/shop.Cart")), 2)),
        rule("service", of(Some(PathMatch::segments("/shop.Cart")), 0)),
        rule("shorter service, method", of(pattern(Some("shop.+"), Some("AddItem")), 0)),
        rule("shorter service", of(pattern(Some("shop.+"), None), 2)),
        rule("method", of(pattern(None, Some("AddItem")), 0)),
        rule("shorter method", of(pattern(None, Some("Add.+")), 2)),
        rule("header", of(None, 1)),
        rule("everything", vec![]),
    ];
    let headers = Listed(&[("x-a", "1"), ("x-b", "2")]);
    let request = RequestAttrs { method: "POST", ..get("/shop.Cart/AddItem", &headers) };
    for strongest in 0..ordered.len() {
        let mut rules: Vec<RouteRule> = ordered[strongest..].to_vec();
        for _ in 0..rules.len() {
            rules.rotate_left(1);
            let routes = known([grpc("r", rules.clone())]);
            assert_eq!(taken(&routes, &request), ordered[strongest].name);
        }
    }
}

#[test]
fn beside_a_grpc_route_an_http_route_means_nothing_on_the_same_port() {
    let on = |route: HttpRoute, port: Option<u16>| HttpRoute {
        parents: vec![RouteParent { service: web(), port }],
        ..route
    };
    let older = HttpRoute {
        created: 1,
        ..http("http", vec![rule("http", vec![path(PathMatch::Exact("/shop.Cart/AddItem".into()))])])
    };
    let routes = known([on(older, None), on(grpc("grpc", vec![rule("grpc", vec![])]), Some(8080))]);
    let asked = get("/shop.Cart/AddItem", &NONE);
    assert_eq!(taken(&routes, &asked).as_deref(), Some("grpc"));
    assert_eq!(taken(&routes, &RequestAttrs { port: 80, ..asked }).as_deref(), Some("http"));
}
