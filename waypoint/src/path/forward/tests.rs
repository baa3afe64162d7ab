use http::Request;
use stillmesh_core::model::TrustDomain;

use super::*;

fn head(method: &str, uri: &str, version: http::Version, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri).version(version);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn get(headers: &[(&str, &str)]) -> Parts {
    head("GET", "/", http::Version::HTTP_11, headers)
}

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    get(headers).headers
}

#[test]
fn a_request_must_say_for_which_one_host_it_is() {
    for (headers, what) in [
        (&[][..], "no Host header"),
        (&[("host", "a"), ("host", "a")], "more than one Host header"),
        (&[("host", "a b")], "a malformed Host header"),
        (&[("host", "user@a")], "a malformed Host header"),
    ] {
        let error = check(&get(headers), Version::One).unwrap_err();
        assert_eq!(error.to_string(), what);
    }
    assert!(check(&get(&[("host", "a:80")]), Version::One).is_ok());
    assert!(check(&head("GET", "/", http::Version::HTTP_10, &[]), Version::One).is_ok());
    let differs = head("GET", "http://a/", http::Version::HTTP_2, &[("host", "b")]);
    assert!(check(&differs, Version::Two).is_err());
    assert!(check(&head("CONNECT", "a:80", http::Version::HTTP_11, &[("host", "a")]), Version::One).is_err());
}

#[test]
fn what_is_for_one_hop_stays_here() {
    let mut headers = map(&[
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, trailers"),
        ("upgrade", "websocket"),
        ("proxy-connection", "keep-alive"),
        ("host", "a"),
        ("accept", "*/*"),
    ]);
    strip(&mut headers);
    let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["accept", "host", "te"]);
    assert_eq!(headers["te"], "trailers");
}

#[test]
fn a_client_cannot_have_the_endpoint_miss_what_the_request_is_about() {
    let mut headers =
        map(&[("connection", "host, authorization, content-length"), ("host", "a"), ("authorization", "b")]);
    strip(&mut headers);
    assert!(headers.contains_key("host") && headers.contains_key("authorization"));
}

#[test]
fn upgrades_are_passed_on_but_not_to_http2() {
    assert_eq!(upgrade(&map(&[("connection", "Upgrade"), ("upgrade", "websocket")])).unwrap(), "websocket");
    assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
    assert!(upgrade(&map(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")])).is_none());
}

#[test]
fn only_gateways_are_believed_about_others() {
    let identity = |account: &str| Identity::new(TrustDomain::default(), "ns", account);
    let (client, own) = (identity("client"), identity("waypoint"));
    let told = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-client-cert", "URI=x"), ("x-forwarded-proto", "https")];
    for (is_gateway, addresses, certificates, proto) in [
        (false, "10.0.0.1", format!("By={own};URI={client}"), "http"),
        (true, "192.0.2.1,10.0.0.1", format!("URI=x,By={own};URI={client}"), "https"),
    ] {
        let mut headers = map(&told);
        introduce(&mut headers, &Introduction::new([10, 0, 0, 1].into(), &client, &own), is_gateway);
        assert_eq!(headers[FORWARDED_FOR], addresses);
        assert_eq!(headers[FORWARDED_CERTIFICATE], certificates.as_str());
        assert_eq!(headers[FORWARDED_PROTO], proto);
    }
}

#[test]
fn a_request_without_an_id_gets_a_uuid() {
    let mut headers = HeaderMap::new();
    let id = RequestId::of(&mut headers, u128::MAX);
    assert_eq!(id.header(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(id.number(), 0xffff_ffff_ffff_4fff_bfff_ffff_ffff_ffff);
    assert_eq!(headers[REQUEST_ID], id.header());
    let again = RequestId::of(&mut headers, 0);
    assert_eq!((again.header(), again.number()), (id.header(), id.number()), "one that has an id keeps it");
    for other in ["7", "ffffffff-ffff-4fff-bfff-fffffffffffg"] {
        let own = RequestId::of(&mut map(&[("x-request-id", other)]), 0);
        assert_eq!((own.header().to_str().unwrap(), own.number()), (other, 0));
    }
}

#[test]
fn host_and_authority_are_kept_as_they_came() {
    let mut origin = get(&[("host", "web:80")]);
    target(&mut origin, Version::One).unwrap();
    assert_eq!((origin.uri.to_string(), origin.headers["host"].to_str().unwrap()), ("/".to_owned(), "web:80"));

    let mut absolute = head("GET", "http://web/a?b", http::Version::HTTP_11, &[("host", "other")]);
    target(&mut absolute, Version::One).unwrap();
    assert_eq!((absolute.uri.to_string(), absolute.headers["host"].to_str().unwrap()), ("/a?b".to_owned(), "web"));

    let mut two = head("GET", "http://web/a?b", http::Version::HTTP_2, &[]);
    target(&mut two, Version::Two).unwrap();
    assert_eq!(two.uri.to_string(), "http://web/a?b");
}
