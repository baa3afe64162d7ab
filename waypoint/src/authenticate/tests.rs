use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Request;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use stillmesh_core::model::PolicyKey;
use stillmesh_core::model::access::{Attachment, ClaimHeader, JwtKeys, TokenLocation};
use stillmesh_runtime::tasks::Tasks;

use super::*;

/// An issuer with one key.
struct Issuer {
    key: EncodingKey,
    keys: String,
}

const ISSUER: &str = "https://issuer.example";

impl Issuer {
    fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        let keys = serde_json::to_string(&JwkSet { keys: vec![jwk] }).unwrap();
        Self { key, keys }
    }

    fn sign(&self, id: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = id.map(str::to_owned);
        encode(&header, claims, &self.key).unwrap()
    }
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "alice", "aud": ["shop", "bank"], "exp": now() + 600, "admin": true, "level": 7,
        "nested": {"team": "blue"}, "dotted.name": "d", "groups": ["a", "b"],
    })
}

fn rule(keys: &str) -> JwtRule {
    JwtRule {
        issuer: ISSUER.into(),
        audiences: Vec::new(),
        keys: JwtKeys::Inline(keys.into()),
        from: Vec::new(),
        forwards_token: false,
        payload_header: None,
        claim_headers: Vec::new(),
        timeout: Duration::from_secs(5),
    }
}

fn of(rules: Vec<JwtRule>) -> RequestAuthentication {
    let attached = Attachment::To(Vec::new());
    RequestAuthentication { key: PolicyKey::new("shop", "jwt"), attached, rules, unreadable: None }
}

fn head(uri: &str, headers: &[(&'static str, &str)]) -> Parts {
    let mut parts = Request::get(uri).body(()).unwrap().into_parts().0;
    for (name, value) in headers {
        parts.headers.append(*name, HeaderValue::try_from(*value).unwrap());
    }
    parts
}

async fn ask(rules: Vec<JwtRule>, head: &mut Parts) -> Result<Option<Token>, Problem> {
    let tasks = Tasks::new("test");
    let keys = Keys::new(Settings::default(), None, tasks);
    authenticate(&keys, &[&of(rules)], head).await
}

async fn bearing(rule: JwtRule, token: &str) -> Result<Option<Token>, Problem> {
    ask(vec![rule], &mut head("/", &[("authorization", &format!("Bearer {token}"))])).await
}

#[tokio::test]
async fn a_token_that_holds_says_who_asks() {
    let issuer = Issuer::new("k1");
    let token = bearing(rule(&issuer.keys), &issuer.sign(Some("k1"), &claims())).await.unwrap().unwrap();
    assert_eq!(token.principal(), Some("https://issuer.example/alice"));
    let texts = |path: &[&str]| {
        let path: Vec<Str> = path.iter().map(|name| Str::from(*name)).collect();
        token.texts(&path).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(texts(&["groups"]), ["a", "b"]);
    assert_eq!(texts(&["nested", "team"]), ["blue"]);
    assert!(texts(&["admin"]).is_empty());
    assert_eq!(ask(vec![rule(&issuer.keys)], &mut head("/", &[])).await, Ok(None), "none is no problem");
    assert!(bearing(rule(&issuer.keys), &issuer.sign(None, &claims())).await.is_ok(), "a key need not be named");
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_refused_with_the_reason() {
    let (issuer, other) = (Issuer::new("k1"), Issuer::new("k1"));
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    let signed = |claims: Value| issuer.sign(Some("k1"), &claims);
    let good = signed(claims());
    let parts: Vec<&str> = good.split('.').collect();
    let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let critical = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"k1","crit":["x"]}"#);
    let changed = BASE64_URL_SAFE_NO_PAD.encode(with("sub", "root".into()).to_string());
    // Signed with the public key as a secret.
    let confused = {
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims(), &EncodingKey::from_secret(issuer.keys.as_bytes())).unwrap()
    };
    let for_bank = |audiences: &[&str]| JwtRule {
        audiences: audiences.iter().map(|text| Str::from(*text)).collect(),
        ..rule(&issuer.keys)
    };
    let plain = || rule(&issuer.keys);
    let table = [
        (plain(), "x".to_owned(), Problem::Malformed),
        (plain(), "a.b.c".to_owned(), Problem::Malformed),
        (plain(), format!("{}.{}", parts[0], parts[1]), Problem::Malformed),
        (plain(), format!("{none}.{}.", parts[1]), Problem::Malformed),
        (plain(), format!("{critical}.{}.{}", parts[1], parts[2]), Problem::Malformed),
        (plain(), format!("{}.{changed}.{}", parts[0], parts[2]), Problem::Signature),
        (plain(), other.sign(Some("k1"), &claims()), Problem::Signature),
        (plain(), issuer.sign(Some("k2"), &claims()), Problem::NoKey),
        (plain(), confused, Problem::NoKey),
        (plain(), signed(with("iss", "https://other".into())), Problem::Issuer),
        (plain(), signed(with("exp", (now() - 120).into())), Problem::Expired),
        (plain(), signed(with("nbf", (now() + 120).into())), Problem::NotYet),
        (for_bank(&["cart"]), good.clone(), Problem::Audience),
        (for_bank(&["cart"]), signed(with("aud", Value::Null)), Problem::Audience),
        (rule("{"), good.clone(), Problem::Keys),
        (rule(r#"{"keys":[]}"#), good.clone(), Problem::Keys),
        (rule(r#"{"keys":[{"kty":"RSA"}]}"#), good.clone(), Problem::Keys),
    ];
    for (rule, token, problem) in table {
        assert_eq!(bearing(rule, &token).await, Err(problem), "{token}");
    }
    assert!(bearing(for_bank(&["cart", "bank"]), &good).await.is_ok());
    assert!(bearing(plain(), &signed(with("exp", (now() - 10).into()))).await.is_ok(), "clocks differ a little");
}

#[tokio::test]
async fn tokens_are_found_where_rules_say_and_taken_out() {
    let issuer = Issuer::new("k1");
    let token = issuer.sign(Some("k1"), &claims());
    let from = |from: Vec<TokenLocation>| JwtRule { from, ..rule(&issuer.keys) };
    let header = |prefix: &str| TokenLocation::Header { name: "x-token".into(), prefix: prefix.into() };
    let (query, cookie) = (format!("/a?x=1&access_token={token}&y=2"), format!("a=b; session={token}; c=d"));
    let spaced = format!("Token {token}");
    let bearer = format!("bearer {token}");
    type Row<'a> = (JwtRule, String, Vec<(&'static str, &'a str)>, bool);
    let table: Vec<Row<'_>> = vec![
        (from(vec![]), "/".into(), vec![("authorization", &bearer)], true),
        (from(vec![]), query.clone(), vec![], true),
        (from(vec![]), "/".into(), vec![("x-token", &token)], false),
        (from(vec![header("")]), "/".into(), vec![("x-token", &token)], true),
        (from(vec![header("Token ")]), "/".into(), vec![("x-token", &spaced)], true),
        (from(vec![header("Token ")]), "/".into(), vec![("x-token", &token)], false),
        (from(vec![header("")]), "/".into(), vec![("authorization", &bearer)], false),
        (from(vec![TokenLocation::Parameter("access_token".into())]), query.clone(), vec![], true),
        (from(vec![TokenLocation::Cookie("session".into())]), "/".into(), vec![("cookie", &cookie)], true),
    ];
    for (rule, uri, headers, found) in table {
        let mut parts = head(&uri, &headers);
        let got = ask(vec![rule.clone()], &mut parts).await.unwrap();
        assert_eq!(got.is_some(), found, "{rule:?} {uri} {headers:?}");
        let left = format!("{} {:?}", parts.uri, parts.headers);
        assert_eq!(left.contains(&token), !found, "a token that was used goes no further: {left}");
        if found && uri == query {
            assert_eq!(parts.uri, "/a?x=1&y=2");
        }
        if headers.iter().any(|(name, _)| *name == "cookie") {
            assert_eq!(parts.headers["cookie"], "a=b; c=d");
        }
        let mut parts = head(&uri, &headers);
        let kept = JwtRule { forwards_token: true, ..rule };
        drop(ask(vec![kept], &mut parts).await);
        assert!(format!("{} {:?}", parts.uri, parts.headers).contains(&token));
    }
}

#[tokio::test]
async fn what_a_token_says_is_told_and_never_what_a_client_says_itself() {
    let issuer = Issuer::new("k1");
    let token = issuer.sign(Some("k1"), &claims());
    let told = |header: &str, claim: &str| ClaimHeader { header: header.into(), claim: claim.into() };
    let rule = JwtRule {
        payload_header: Some("x-payload".into()),
        claim_headers: vec![
            told("x-sub", "sub"),
            told("x-admin", "admin"),
            told("x-level", "level"),
            told("x-team", "nested.team"),
            told("x-dotted", "dotted.name"),
            told("x-groups", "groups"),
            told("x-none", "none"),
        ],
        ..rule(&issuer.keys)
    };
    let mine = [("x-sub", "root"), ("x-none", "root"), ("x-payload", "root"), ("x-team", "root")];
    let mut parts = head("/", &mine);
    assert_eq!(ask(vec![rule.clone()], &mut parts).await, Ok(None));
    assert!(parts.headers.is_empty(), "{:?}", parts.headers);
    let bearer = format!("Bearer {token}");
    let mut parts = head("/", &[&mine[..], &[("authorization", &bearer)]].concat());
    ask(vec![rule], &mut parts).await.unwrap().unwrap();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("x-sub").as_deref(), Some("alice"));
    assert_eq!(header("x-admin").as_deref(), Some("true"));
    assert_eq!(header("x-level").as_deref(), Some("7"));
    assert_eq!(header("x-team").as_deref(), Some("blue"));
    assert_eq!(header("x-dotted").as_deref(), Some("d"));
    assert_eq!(header("x-groups"), Some(BASE64_URL_SAFE_NO_PAD.encode(r#"["a","b"]"#)));
    assert_eq!(header("x-none"), None);
    assert_eq!(header("x-payload").as_deref(), token.split('.').nth(1));
}

#[tokio::test]
async fn of_several_issuers_the_one_that_made_the_token_counts() {
    let (one, two) = (Issuer::new("k1"), Issuer::new("k1"));
    let other = JwtRule { issuer: "https://two".into(), ..rule(&two.keys) };
    let mut second = claims();
    second["iss"] = "https://two".into();
    for token in [one.sign(None, &claims()), two.sign(None, &second)] {
        let mut parts = head("/", &[("authorization", &format!("Bearer {token}"))]);
        assert!(ask(vec![rule(&one.keys), other.clone()], &mut parts).await.unwrap().is_some());
    }
    // The reason is that of the issuer whose token it claims to be.
    let forged = one.sign(None, &second);
    for rules in [vec![rule(&one.keys), other.clone()], vec![other, rule(&one.keys)]] {
        let mut parts = head("/", &[("authorization", &format!("Bearer {forged}"))]);
        assert_eq!(ask(rules, &mut parts).await, Err(Problem::Signature));
    }
}
