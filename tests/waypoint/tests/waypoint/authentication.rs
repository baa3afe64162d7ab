//! Tokens in requests: whose are believed, and what endpoints are told of them.

use http::StatusCode;
use stillmesh_core::model::StringMatch;
use stillmesh_core::model::access::{ClaimHeader, JwtKeys, RequestAction, Wanted};
use stillmesh_core::model::http::{ClaimMatch, RequestMatch, TextMatch};
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::World;
use stillmesh_waypoint_tests::access::{of, policy, published};
use stillmesh_waypoint_tests::issuer::{ISSUER, Signer, Web, believed};
use stillmesh_waypoint_tests::routes::{asked, forward, route, rule, shop, to};

#[test]
fn keys_are_fetched_once_and_tokens_say_who_asks() {
    isolated_async(|| async {
        let shop = shop(1, &[], Vec::new()).await;
        let (world, web) = (shop.world, shop.web);
        let (alice, other) = (Signer::new("k1"), Signer::new("k1"));
        let keys = Web::start(&world, &alice.keys).await;
        let told = ClaimHeader { header: "x-sub".into(), claim: "sub".into() };
        let at = JwtKeys::At(format!("http://{}/keys", keys.address).into());
        let authentication = believed(at, |one| one.rules[0].claim_headers.push(told));
        let principal = StringMatch::Exact(format!("{ISSUER}/alice").into());
        let allow = policy("shop/p", RequestAction::Allow, vec![of(Wanted::RequestPrincipal(vec![principal]))]);
        world.control.store.publish(vec![authentication, published(allow)]);
        let mut http = world.client("page", 1).http1(web).await;
        let begin = tokio::time::Instant::now();
        while asked(&mut http, "/who", &[]).await.0.status != StatusCode::FORBIDDEN {
            assert!(begin.elapsed() < stillmesh_waypoint_tests::PATIENCE, "who has no token is nobody");
        }
        let bearer = alice.bearer("alice");
        for _ in 0..3 {
            let headers = [("authorization", bearer.as_str()), ("x-sub", "root")];
            let (head, body) = asked(&mut http, "/who", &headers).await;
            assert_eq!(head.status, StatusCode::OK, "{body}");
            let who: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(who["headers"]["x-sub"], "alice");
            assert!(who["headers"]["authorization"].is_null(), "a token goes no further: {who}");
        }
        assert_eq!(keys.asked(), 1);
        let (head, _) = asked(&mut http, "/who", &[("authorization", &alice.bearer("bob"))]).await;
        assert_eq!(head.status, StatusCode::FORBIDDEN, "somebody else");
        let (head, body) = asked(&mut http, "/who", &[("authorization", &other.bearer("alice"))]).await;
        assert_eq!((head.status, body.as_str()), (StatusCode::UNAUTHORIZED, "Jwt verification fails"));
        let challenge = head.headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Bearer realm=") && challenge.contains("invalid_token"), "{challenge}");
        let grpc = [("authorization", "Bearer x"), ("content-type", "application/grpc")];
        let (head, _) = asked(&mut http, "/who", &grpc).await;
        assert_eq!((head.status, &head.headers["grpc-status"]), (StatusCode::OK, &"16".parse().unwrap()));
        world.counts("stillmesh_waypoint_authorizations_total", &["reason=\"TOKEN_REFUSED\""], 2.0).await;
    });
}

/// A world whose tokens are believed by keys at `at`, once that is known.
async fn believing(environment: &[(&str, &str)], at: JwtKeys) -> (World, std::net::SocketAddr) {
    let shop = shop(1, environment, vec![believed(at, |_| ())]).await;
    (shop.world, shop.web)
}

#[test]
fn a_key_that_nobody_knows_has_keys_fetched_again() {
    isolated_async(|| async {
        let keys_of = World::new().await;
        let (old, new) = (Signer::new("k1"), Signer::new("k2"));
        let keys = Web::start(&keys_of, &old.keys).await;
        let at = JwtKeys::At(format!("http://{}/keys", keys.address).into());
        let (world, web) = believing(&[("JWKS_UNKNOWN_KEY_INTERVAL", "0s")], at).await;
        let mut http = world.client("page", 1).http1(web).await;
        let with = |bearer: String| [("authorization", bearer)];
        for (signer, status) in [(&old, StatusCode::OK), (&new, StatusCode::UNAUTHORIZED)] {
            let [(name, value)] = with(signer.bearer("a"));
            assert_eq!(asked(&mut http, "/name", &[(name, &value)]).await.0.status, status);
        }
        keys.serve(&new.keys);
        let [(name, value)] = with(new.bearer("a"));
        assert_eq!(asked(&mut http, "/name", &[(name, &value)]).await.0.status, StatusCode::OK);
        assert_eq!(keys.asked(), 3);
        // What is no set of keys does not take away those that were good.
        keys.serve("oops");
        let [(_, unknown)] = with(Signer::new("k3").bearer("a"));
        assert_eq!(asked(&mut http, "/name", &[(name, &unknown)]).await.0.status, StatusCode::UNAUTHORIZED);
        assert_eq!(asked(&mut http, "/name", &[(name, &value)]).await.0.status, StatusCode::OK);
    });
}

/// A token is refused with these words, and a request without one passes as nobody's.
async fn verifies_nothing(at: JwtKeys, said: &str) {
    let (world, web) = believing(&[], at).await;
    let mut http = world.client("page", 1).http1(web).await;
    let bearer = Signer::new("k1").bearer("a");
    let (head, body) = asked(&mut http, "/name", &[("authorization", &bearer)]).await;
    assert_eq!((head.status, body.as_str()), (StatusCode::UNAUTHORIZED, said));
    assert_eq!(http.get("/name").await.0, StatusCode::OK);
}

#[test]
fn keys_that_cannot_be_fetched_verify_nothing() {
    isolated_async(|| async {
        let at = JwtKeys::At("http://127.0.5.9:1/keys".into());
        verifies_nothing(at, "Jwks remote fetch is failed").await;
    });
}

#[test]
fn keys_that_are_none_verify_nothing() {
    isolated_async(|| async {
        verifies_nothing(JwtKeys::Inline("{}".into()), "Jwks is invalid").await;
    });
}

#[test]
fn an_authentication_that_cannot_be_read_refuses_everything() {
    isolated_async(|| async {
        let broken = believed(JwtKeys::Discovered, |one| one.unreadable = Some("odd".into()));
        let shop = shop(1, &[], vec![broken]).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        assert_eq!(http.get("/name").await.0, StatusCode::FORBIDDEN);
    });
}

#[test]
fn a_route_asks_for_claims_of_verified_tokens_alone() {
    isolated_async(|| async {
        let claim = ClaimMatch { path: vec!["sub".into()], value: TextMatch::Exact("alice".into()) };
        let for_alice = vec![RequestMatch { claims: vec![claim], ..RequestMatch::default() }];
        let rules = vec![rule(for_alice, forward(vec![to("two", 1)])), rule(vec![], forward(vec![to("one", 1)]))];
        let (known, other) = (Signer::new("k1"), Signer::new("k1"));
        let published = vec![route("r", None, rules), believed(JwtKeys::Inline(known.keys.as_str().into()), |_| ())];
        let shop = shop(1, &[], published).await;
        let mut http = shop.world.client("page", 1).http1(shop.web).await;
        let bearer = |signer: &Signer, subject| signer.bearer(subject);
        for (token, status, expected) in [
            (None, StatusCode::OK, "one"),
            (Some(bearer(&known, "bob")), StatusCode::OK, "one"),
            (Some(bearer(&known, "alice")), StatusCode::OK, "two"),
            (Some(bearer(&other, "alice")), StatusCode::UNAUTHORIZED, "Jwt verification fails"),
        ] {
            let headers: Vec<_> = token.iter().map(|token| ("authorization", token.as_str())).collect();
            let (head, body) = asked(&mut http, "/name", &headers).await;
            assert_eq!((head.status, body.as_str()), (status, expected));
        }
    });
}
