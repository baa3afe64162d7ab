//! What is kept of requests and connections, as the admin port tells it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use http::StatusCode;
use serde_json::Value;
use stillmesh_core::model::StringMatch;
use stillmesh_core::model::access::{PathPattern, RequestAction, Wanted};
use stillmesh_core::model::http::{Forward, Retry, RetryOn, RouteAction};
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::World;
use stillmesh_waypoint_tests::access::{of, policy, published};
use stillmesh_waypoint_tests::routes::{path, route, rule, shop, to};

/// Of the records that a question brings the first one that is wanted.
async fn told(world: &World, question: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let answer = world.admin(&format!("/decisions?{question}")).await;
        if let Some(found) = answer["decisions"].as_array().unwrap().iter().find(|told| wanted(told)) {
            return found.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn a_403_is_told_by_the_id_that_its_client_saw_with_the_path_that_was_wanted() {
    isolated_async(|| async {
        let pattern = Wanted::Path(vec![PathPattern::Text(StringMatch::Exact("/name".into()))]);
        let allow = published(policy("shop/only-name", RequestAction::Allow, vec![of(pattern)]));
        let shop = shop(1, &[], vec![allow]).await;
        let client = shop.world.client("page", 1);
        let mut http = client.http1(shop.web).await;
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
        let (status, body) = http.get("/names").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let id = body.strip_prefix("denied: ").unwrap();
        let refused = told(&shop.world, &format!("id={id}"), |_| true).await;
        assert_eq!((&refused["hop"], &refused["reason"]), (&"request".into(), &"NO_ALLOW_MATCHED".into()));
        assert_eq!((&refused["path"], &refused["method"]), (&"/names".into(), &"GET".into()));
        assert_eq!((&refused["status"], &refused["decision"]), (&403.into(), &id.into()));
        let miss = &refused["misses"][0];
        assert_eq!(
            (&miss["attribute"], &miss["wanted"], &miss["seen"]),
            (&"path".into(), &"/name".into(), &"/names".into())
        );
        assert!(refused["now"].is_null(), "{refused}");
        // The one that passed leads on to the CONNECT that carried it.
        let passed =
            told(&shop.world, "src=identity/spiffe://cluster.local/ns/shop/sa/page&path=/name&method=GET", |told| {
                told["refused"] == false
            })
            .await;
        assert_eq!(passed["id"], refused["id"], "one connection of the client's");
        assert!(passed["next"].as_str().unwrap() != passed["id"].as_str().unwrap());
        let back = told(&shop.world, &format!("id={}", passed["next"].as_str().unwrap()), |_| true).await;
        assert_eq!(back["path"], "/name");
    });
}

#[test]
fn a_retried_request_tells_its_route_and_how_often() {
    isolated_async(|| async {
        let retry = Retry { attempts: 3, per_try: None, backoff: None, on: vec![RetryOn::Status(500)] };
        let action =
            RouteAction::Forward(Forward { backends: vec![to("one", 1)], retry: Some(retry), ..Forward::default() });
        let shop = shop(1, &[], vec![route("r", None, vec![rule(path("/first"), action)])]).await;
        let client = shop.world.client("page", 1);
        let mut http = client.http1(shop.web).await;
        assert_eq!(http.get("/first/2/500").await.0, StatusCode::OK);
        let told = told(&shop.world, "dst=service/shop/one.shop.svc.cluster.local", |_| true).await;
        assert_eq!((&told["retries"], &told["reason"], &told["status"]), (&2.into(), &"ROUTED".into(), &200.into()));
        assert!(told["object"].as_str().unwrap().contains("shop/r"), "{told}");
    });
}

#[test]
fn nothing_is_kept_where_it_may_take_no_memory() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let app = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&app]);
        world.start(&[("DECISION_RECORDS_MEMORY", "0")]).await;
        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        assert_eq!(http.get("/").await.0, StatusCode::SERVICE_UNAVAILABLE);
        let answer = world.admin("/decisions").await;
        assert_eq!((&answer["isOn"], &answer["written"]), (&false.into(), &0.into()));
    });
}

#[test]
fn requests_are_told_and_added_up_at_once_and_in_their_order_however_many_there_were() {
    isolated_async(|| async {
        let shop = shop(1, &[], vec![]).await;
        let client = shop.world.client("page", 1);
        let mut http = client.http1(shop.web).await;
        // More than are written at once, and no multiple of it.
        for number in 0..150 {
            http.get(&format!("/name/{number}")).await;
        }
        told(&shop.world, "path=/name/149", |_| true).await;
        let answer = shop.world.admin("/decisions?limit=200").await;
        let paths: Vec<&str> =
            answer["decisions"].as_array().unwrap().iter().filter_map(|one| one["path"].as_str()).collect();
        let expected: Vec<String> = (0..150).rev().map(|number| format!("/name/{number}")).collect();
        assert_eq!(paths, expected);
        let flows = shop.world.admin("/flows").await;
        // In two rows where an hour ended meanwhile.
        let rows = flows["flows"].as_array().unwrap().iter().filter(|flow| flow["path"] == "/name/{id}");
        assert_eq!(rows.filter_map(|flow| flow["count"].as_u64()).sum::<u64>(), 150);
    });
}

#[test]
fn requests_that_come_together_keep_their_own_texts() {
    isolated_async(|| async {
        let forward = |name| RouteAction::Forward(Forward { backends: vec![to(name, 1)], ..Forward::default() });
        let rules = vec![rule(path("/one"), forward("one")), rule(path("/two"), forward("two"))];
        let shop = shop(1, &[], vec![route("r", None, rules)]).await;
        let (page, cart) = (shop.world.client("page", 1), shop.world.client("cart", 2));
        let mut clients = [("page", page.http1(shop.web).await), ("cart", cart.http2(shop.web).await)];
        let mut expected = Vec::new();
        for number in 0..40 {
            for (name, http) in &mut clients {
                for (method, path, app) in [("GET", "/one", 0), ("POST", "/one", 0), ("GET", "/two", 1)] {
                    let path = format!("{path}/{number}");
                    let request = http.request(method, &path, "");
                    let status = http.send(request).await.unwrap().status();
                    expected.push(format!("{name} {method} {path} rule {app} {}", status.as_u16()));
                }
            }
        }
        told(&shop.world, "path=/two/39&src=identity/spiffe://cluster.local/ns/shop/sa/cart", |_| true).await;
        let answer = shop.world.admin("/decisions?limit=1000").await;
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let mut found: Vec<String> = Vec::new();
        for one in answer["decisions"].as_array().unwrap() {
            let client = text(&one["source"], "identity");
            let (client, rule) = (client.rsplit('/').next().unwrap(), text(one, "object"));
            let (_, rule) = rule.rsplit_once(", ").unwrap();
            found.push(format!("{client} {} {} {rule} {}", text(one, "method"), text(one, "path"), one["status"]));
        }
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    });
}
