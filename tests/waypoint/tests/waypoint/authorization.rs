//! Policies: which requests and connections pass, and what becomes of their paths before.

use std::sync::Arc;

use http::StatusCode;
use stillmesh_core::fixtures::policy_key;
use stillmesh_core::model::StringMatch;
use stillmesh_core::model::access::{
    Access, PathNormalization, PathPattern, RequestAction, RequestPolicy, RequestSettings, Wanted,
};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::access::{exact, of, policy, published};
use stillmesh_waypoint_tests::routes::{asked, routed, shop};
use stillmesh_waypoint_tests::{Http, PATIENCE};

fn path(text: &str) -> Wanted {
    Wanted::Path(vec![PathPattern::Text(StringMatch::Exact(text.into()))])
}

async fn until(http: &mut Http, path: &str, status: StatusCode) {
    let begin = tokio::time::Instant::now();
    while http.get(path).await.0 != status {
        assert!(begin.elapsed() < PATIENCE, "{path} is {status} in time");
    }
}

#[test]
fn a_refused_request_is_answered_403_with_an_id_and_no_more() {
    isolated_async(|| async {
        let rules = vec![of(Wanted::Method(exact(&["GET"])))];
        let allow = published(policy("shop/only-get", RequestAction::Allow, rules));
        let shop = shop(1, &[], vec![allow]).await;
        let (world, web) = (shop.world, shop.web);
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            assert_eq!(http.get("/name").await, (StatusCode::OK, "web".to_owned()));
            let seen = shop.apps[0].requests();
            let response = http.send(http.request("POST", "/name", "x")).await.unwrap();
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            assert!(response.headers().get("grpc-message").is_none());
            let body = http_body_util::BodyExt::collect(response).await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            let id = body.strip_prefix("denied: ").expect("an id");
            assert!(id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{body}");
            let mut grpc = http.request("POST", "/shop.Cart/Add", "");
            grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            let response = http.send(grpc).await.unwrap();
            assert_eq!(
                (response.status(), &response.headers()["grpc-status"]),
                (StatusCode::OK, &"7".parse().unwrap())
            );
            assert_eq!(shop.apps[0].requests(), seen, "no endpoint sees it");
        }
        world.counts("istio_requests_total", &["response_code=\"403\"", "response_flags=\"-\""], 2.0).await;
        let name = "stillmesh_waypoint_authorizations_total";
        world.counts(name, &["verdict=\"denied\"", "reason=\"NO_ALLOW_MATCHED\""], 4.0).await;
        world.counts(name, &["verdict=\"allowed\"", "reason=\"ALLOWED_BY\""], 2.0).await;
    });
}

#[test]
fn what_was_authorized_is_what_is_forwarded() {
    isolated_async(|| async {
        let deny = published(policy("shop/p", RequestAction::Deny, vec![of(path("/admin/who"))]));
        let (world, web) = routed(vec![deny]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            for evasion in
                ["/admin/who", "/x/../admin/who", "/admin/./who", "/%61dmin/who", "/admin\\who", "/admin/who?a=b"]
            {
                assert_eq!(http.get(evasion).await.0, StatusCode::FORBIDDEN, "{evasion}");
            }
            assert_eq!(http.get("/Admin/who").await.0, StatusCode::NOT_FOUND, "case counts, and stays");
            let (_, body) = asked(&mut http, "/x/../%77ho?a=/../b", &[]).await;
            let who: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(who["target"].as_str().is_some_and(|target| target.ends_with("/who?a=/../b")), "{who}");
            assert_eq!(http.get("/a%00b").await.0, StatusCode::BAD_REQUEST);
        }
        let settings = RequestSettings {
            key: policy_key("istio-system/istio"),
            normalization: PathNormalization::None,
            gateways: Vec::new(),
        };
        world.control.store.publish(vec![Change::Access(Arc::new(Access::Settings(settings)))]);
        let mut http = client.http1(web).await;
        // As it was written, it is no path that the application knows.
        until(&mut http, "/%77ho", StatusCode::NOT_FOUND).await;
    });
}

#[test]
fn requests_of_an_open_connection_are_decided_by_the_newest_policies() {
    isolated_async(|| async {
        let (world, web) = routed(Vec::new()).await;
        let mut http = world.client("page", 1).http2(web).await;
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
        let deny = policy("shop/p", RequestAction::Deny, vec![of(path("/name"))]);
        world.control.store.publish(vec![published(deny.clone())]);
        until(&mut http, "/name", StatusCode::FORBIDDEN).await;
        let dry = RequestPolicy { dry_run: true, ..deny.clone() };
        world.control.store.publish(vec![published(dry)]);
        until(&mut http, "/name", StatusCode::OK).await;
        assert!(world.metric("stillmesh_waypoint_authorizations_total", &["verdict=\"dry_run\""]).await >= 1.0);
        // What cannot be read does not replace what can.
        world.control.store.publish(vec![published(deny.clone())]);
        until(&mut http, "/name", StatusCode::FORBIDDEN).await;
        let broken = RequestPolicy { unreadable: Some("odd".into()), ..deny.clone() };
        let other = policy("shop/q", RequestAction::Deny, vec![of(path("/who"))]);
        world.control.store.publish(vec![published(broken.clone()), published(other)]);
        until(&mut http, "/who", StatusCode::FORBIDDEN).await;
        assert_eq!(http.get("/none").await.0, StatusCode::NOT_FOUND, "the last good version is in force");
        world.control.store.publish(vec![Change::AccessRemoved(Access::Policy(deny).key())]);
        until(&mut http, "/name", StatusCode::OK).await;
        world.control.store.publish(vec![published(broken)]);
        until(&mut http, "/name", StatusCode::FORBIDDEN).await;
        assert_eq!(http.get("/none").await.0, StatusCode::FORBIDDEN, "without one, all is refused");
    });
}

#[test]
fn connections_that_are_no_http_are_decided_by_what_is_about_connections() {
    isolated_async(|| async {
        let pass = policy("shop/p", RequestAction::Allow, vec![of(Wanted::Namespace(exact(&["shop"])))]);
        let shop = shop(4, &[], vec![published(pass)]).await;
        let (world, web) = (shop.world, shop.web);
        let client = world.client("page", 1);
        assert!(client.open(web).await.is_ok(), "a namespace is one");
        let get = || vec![of(Wanted::Method(exact(&["GET"])))];
        let deny = policy("shop/q", RequestAction::Deny, get());
        world.control.store.publish(vec![published(deny.clone())]);
        let begin = tokio::time::Instant::now();
        while client.open(web).await.is_ok() {
            assert!(begin.elapsed() < PATIENCE, "a method is none: a deny holds without it");
        }
        // The last of them may have been open already, and closed.
        assert!(client.open(web).await.is_err());
        let name = "stillmesh_waypoint_authorizations_total";
        assert!(world.metric(name, &["verdict=\"denied\"", "reason=\"DENIED_BY\""]).await >= 1.0);
        let allow = policy("shop/p", RequestAction::Allow, get());
        let gone = Change::AccessRemoved(Access::Policy(deny).key());
        world.control.store.publish(vec![published(allow), gone]);
        while world.metric(name, &["reason=\"NO_ALLOW_MATCHED\""]).await < 1.0 {
            assert!(client.open(web).await.is_err() && begin.elapsed() < PATIENCE, "an allow does not hold");
        }
    });
}

#[test]
fn whom_a_client_speaks_for_counts_where_it_is_a_gateway() {
    isolated_async(|| async {
        let remote = Wanted::RemoteIp(vec!["203.0.113.0/24".parse().unwrap()]);
        let allow = published(policy("shop/p", RequestAction::Allow, vec![of(remote)]));
        let gateways = [("GATEWAY_IDENTITIES", "spiffe://cluster.local/ns/shop/sa/ingress")];
        let shop = shop(1, &gateways, vec![allow]).await;
        let (world, web) = (shop.world, shop.web);
        let spoken = [("x-forwarded-for", "10.9.9.9, 203.0.113.7")];
        let mut ingress = world.client("ingress", 1).http1(web).await;
        assert_eq!(asked(&mut ingress, "/name", &spoken).await.0.status, StatusCode::OK);
        assert_eq!(asked(&mut ingress, "/name", &[]).await.0.status, StatusCode::FORBIDDEN);
        let mut page = world.client("page", 2).http1(web).await;
        assert_eq!(asked(&mut page, "/name", &spoken).await.0.status, StatusCode::FORBIDDEN);
        let settings = RequestSettings {
            key: policy_key("istio-system/istio"),
            normalization: PathNormalization::Base,
            gateways: vec!["spiffe://cluster.local/ns/shop/sa/page".parse().unwrap()],
        };
        world.control.store.publish(vec![Change::Access(Arc::new(Access::Settings(settings)))]);
        let begin = tokio::time::Instant::now();
        while asked(&mut page, "/name", &spoken).await.0.status != StatusCode::OK {
            assert!(begin.elapsed() < PATIENCE, "the control plane says who is one, too");
        }
    });
}
