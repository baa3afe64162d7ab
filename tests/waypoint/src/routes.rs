//! Routes, and a world that they are for.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::http::{
    Forward, HeaderEdit, HttpRoute, PathMatch, RequestMatch, RouteAction, RouteBackend, RouteKey, RouteKind,
    RouteParent, RouteRule, WeightedBackend,
};
use stillmesh_core::snapshot::Change;

use crate::{App, Http, World};

/// A rule without edits.
pub fn rule(matches: Vec<RequestMatch>, action: RouteAction) -> RouteRule {
    RouteRule {
        name: None,
        matches,
        action,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        fault: None,
        cors: None,
    }
}

/// A match of a path's beginning.
pub fn path(path: &str) -> Vec<RequestMatch> {
    vec![RequestMatch { path: Some(PathMatch::segments(path)), ..RequestMatch::default() }]
}

/// Service `shop/NAME` as a backend.
pub fn to(name: &str, weight: u32) -> WeightedBackend {
    let service = service_key(&format!("shop/{name}"));
    WeightedBackend {
        backend: RouteBackend::Service { service, port: NonZeroU16::new(80), subset: None },
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        authority: None,
    }
}

/// To these backends.
pub fn forward(backends: Vec<WeightedBackend>) -> RouteAction {
    RouteAction::Forward(Forward { backends, ..Forward::default() })
}

/// A route on service `shop/web`.
pub fn route(name: &str, consumer: Option<&str>, rules: Vec<RouteRule>) -> Change {
    Change::Route(Arc::new(HttpRoute {
        key: RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() },
        parents: vec![RouteParent { service: service_key("shop/web"), port: None }],
        consumer: consumer.map(Into::into),
        created: 0,
        rules,
        streams: Vec::new(),
    }))
}

/// Sets one header.
pub fn set(name: &str, value: &str) -> HeaderEdit {
    HeaderEdit { set: vec![(name.into(), value.into())], ..HeaderEdit::default() }
}

/// Services `web`, `one` and `two`, with an application each.
pub struct Shop {
    /// What is on both sides of the waypoint.
    pub world: World,
    /// Where `web` is dialled.
    pub web: SocketAddr,
    /// The applications, in that order.
    pub apps: Vec<App>,
}

/// A shop with these routes on `web`, and a waypoint with further environment. `protocol` is that of all ports.
pub async fn shop(protocol: i32, environment: &[(&str, &str)], routes: Vec<Change>) -> Shop {
    let mut world = World::new().await;
    let (mut web, mut apps) = (None, Vec::new());
    for (number, name) in ["web", "one", "two"].into_iter().enumerate() {
        let workload = world.workload(name);
        let address = world.service(name, &format!("10.1.0.{}", number + 1), protocol, &[&workload]);
        apps.push(world.endpoint(&workload).await.app(name).await);
        web.get_or_insert(address);
    }
    world.control.store.publish(routes);
    world.start(environment).await;
    Shop { world, web: web.expect("the first of three"), apps }
}

/// [`shop`] of HTTP, without its applications.
pub async fn routed(routes: Vec<Change>) -> (World, SocketAddr) {
    let shop = shop(1, &[], routes).await;
    (shop.world, shop.web)
}

/// GET with these headers: the response's head, and its body as text.
pub async fn asked(http: &mut Http, path: &str, headers: &[(&'static str, &str)]) -> (http::response::Parts, String) {
    let mut request = http.request("GET", path, "");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a header's value"));
    }
    let (head, body) = http.send(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a whole answer").to_bytes();
    (head, String::from_utf8_lossy(&body).into_owned())
}
