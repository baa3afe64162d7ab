//! Planted failures: each is explained by `stillmesh why` so that the reader knows what to mend.
//!
//! One namespace has them all, side by side; each is met by a real client and then asked about. How long the answers took is
//! printed (`--nocapture`).

use std::time::Instant;

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, PATIENCE, peer, shared, text};
use crate::waypoint::GATEWAY;

/// Where everything is planted; `NS` in the objects.
const NAMESPACE: &str = "planted";

/// Keys of an issuer, made for this test alone, and tokens that are signed with them: one that holds until 2100, one that was
/// over in 2001, one of an issuer that nobody has heard of.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k","alg":"ES256","x":"4yWRQwsCI1yS9OnVicf6xohhHpoqPG5SG31DSUemJ3Y","y":"vTdAN_MvEGgyOizS6UxrqE8TeHd2g039vx_RUbqcyd0"}]}"#;
const HOLDS: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJpc3N1ZXJAc2hvcCIsInN1YiI6ImFsaWNlIiwiZXhwIjo0MTAyNDQ0ODAwfQ.YMP0b1Ut06VHrEOnpQRUKkL_rh0PPzKbrb8ZgfBKhGcDQJWlZ18YKoHhZPbnTAjF4QPdBc_SiJ1IGECyeoBmhw";
const EXPIRED: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJpc3N1ZXJAc2hvcCIsInN1YiI6ImFsaWNlIiwiZXhwIjoxMDAwMDAwMDAwfQ.lt4wQYNFXlNdM2ZGJVri14vHikQe-Is3gMm4n5GpdJvEjdVy0yprkh2SJK0kahLdxT3pcTIdPEkyq6EQ6V4SMQ";
const FOREIGN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJvdGhlckBzaG9wIiwic3ViIjoiYWxpY2UiLCJleHAiOjQxMDI0NDQ4MDB9.6zuPWBUP9vwskVtC1dUd47se0KWlBDUxc3x1S0DEAp8RUIVWpJtkF9gxUnvzqs210xAJwk3g1mRQ3j5Lb73Y_A";

/// A failure.
struct Planted {
    /// What it is called, and the Service or pod that it is planted at.
    name: &'static str,
    /// The objects that make it.
    objects: String,
    /// How the client meets it: a shell command in pod `client`.
    met: String,
    /// What is asked then, after the client's name.
    asked: Vec<&'static str>,
    /// What must be told.
    told: Vec<&'static str>,
}

/// A Service for `app` that is bound to the waypoint.
fn bound(name: &str, app: &str, target: u16) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: NS, labels: {{istio.io/use-waypoint: waypoint}}}}
spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}
"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: NS}}
spec: {spec}
"
    )
}

/// A policy for a Service.
fn at_service(name: &str, spec: &str) -> String {
    policy(name, &format!("{{targetRefs: [{{kind: Service, group: '', name: {name}}}], {spec}}}"))
}

/// A policy for pods.
fn at_pod(name: &str, spec: &str) -> String {
    policy(name, &format!("{{selector: {{matchLabels: {{app: {name}}}}}, {spec}}}"))
}

fn authentication(name: &str, rule: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: {name}, namespace: NS}}
spec: {{targetRefs: [{{kind: Service, group: '', name: {name}}}], jwtRules: [{{issuer: issuer@shop, {rule}}}]}}
"
    )
}

fn virtual_service(name: &str, http: &str) -> String {
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: NS}}
spec: {{hosts: [{name}], http: [{{{http}, route: [{{destination: {{host: {name}}}}}]}}]}}
"
    )
}

fn destination_rule(name: &str, policy: &str) -> String {
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: NS}}
spec: {{host: {name}, trafficPolicy: {policy}}}
"
    )
}

fn http_route(name: &str, rules: &str) -> String {
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: NS}}
spec:
  parentRefs: [{{kind: Service, group: '', name: {name}}}]
  rules: {rules}
"
    )
}

/// A pod whose container `web` is the mesh's own echo server.
fn echo(name: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: NS, labels: {{app: {name}}}}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{{name: web, image: stillmesh/echo, ports: [{{containerPort: 8080}}]}}]
"
    )
}

/// What curl does.
fn curl(arguments: &str) -> String {
    format!("curl -sS -m 20 -o /dev/null {arguments}")
}

/// What the peer's client does.
fn dial(to: &str) -> String {
    format!("{} client echo {to}", peer().display())
}

/// Failures at the waypoint.
fn of_requests() -> Vec<Planted> {
    let plant = |name, objects: String, met: String, asked: &[&'static str], told: &[&'static str]| Planted {
        name,
        objects,
        met,
        asked: asked.to_vec(),
        told: told.to_vec(),
    };
    let web = |name: &str| bound(name, "web", 8080);
    let token = |token: &str, path: &str| curl(&format!("-H 'Authorization: Bearer {token}' http://token{path}"));
    let slow = |name: &str| curl(&format!("'http://{name}/?delay=60s'"));
    vec![
        plant(
            "path",
            web("path") + &at_service("path", "rules: [{to: [{operation: {paths: ['/open/*']}}]}]"),
            curl("http://path/closed"),
            &["path", "--path", "/closed"],
            &["answered 403", "NO_ALLOW_MATCHED", "NS/path wants path /open/*, seen is /closed"],
        ),
        plant(
            "method",
            web("method") + &at_service("method", "rules: [{to: [{operation: {methods: [GET]}}]}]"),
            curl("-X POST http://method/"),
            &["method", "--method", "POST"],
            &["answered 403", "NS/method wants method GET, seen is POST"],
        ),
        plant(
            "header",
            web("header")
                + &at_service("header", "rules: [{when: [{key: 'request.headers[x-team]', values: [blue]}]}]"),
            curl("http://header/"),
            &["header"],
            &["answered 403", "NS/header wants header x-team blue"],
        ),
        plant(
            "denied",
            web("denied") + &at_service("denied", "action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]"),
            curl("http://denied/admin/x"),
            &["denied", "--path", "/admin/x"],
            &["answered 403", "DENIED_BY", "rule 0 of policy NS/denied", "this is the policy at work"],
        ),
        plant(
            "wrong subject",
            web("token")
                + &authentication("token", &format!("jwks: '{KEYS}'"))
                + &at_service("token", "rules: [{from: [{source: {requestPrincipals: ['issuer@shop/bob']}}]}]"),
            token(HOLDS, "/subject"),
            &["token", "--path", "/subject"],
            &["answered 403", "NS/token wants request_principal issuer@shop/bob"],
        ),
        plant(
            "expired token",
            String::new(),
            token(EXPIRED, "/late"),
            &["token", "--path", "/late"],
            &["answered 401", "TOKEN_REFUSED", "jwt_expired"],
        ),
        plant(
            "token of another issuer",
            String::new(),
            token(FOREIGN, "/foreign"),
            &["token", "--path", "/foreign"],
            &["answered 401", "TOKEN_REFUSED", "jwt_issuer"],
        ),
        plant(
            "no token at all",
            String::new(),
            token("abc", "/garbled"),
            &["token", "--path", "/garbled"],
            &["answered 401", "TOKEN_REFUSED", "jwt_malformed"],
        ),
        plant(
            "keys that nobody serves",
            web("keyless") + &authentication("keyless", "jwksUri: 'http://nowhere.NS.svc.cluster.local/keys'"),
            curl(&format!("-H 'Authorization: Bearer {HOLDS}' http://keyless/")),
            &["keyless"],
            &["answered 401", "TOKEN_REFUSED", "jwks_unavailable"],
        ),
        plant(
            "retries used up",
            web("failing") + &virtual_service("failing", "retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}"),
            curl("'http://failing/?status=503'"),
            &["failing"],
            &["answered 503", "3 more tries", "URX (all tries were made)", "VirtualService NS/failing"],
        ),
        plant(
            "timeout",
            web("slow") + &virtual_service("slow", "timeout: 300ms"),
            slow("slow"),
            &["slow"],
            &["answered 504", "WAY011", "300ms, which the route allows", "allow more in the route's timeouts"],
        ),
        plant(
            "fault",
            web("fault") + &virtual_service("fault", "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"),
            curl("http://fault/"),
            &["fault"],
            &["answered 418", "VirtualService NS/fault", "FI (the route lets requests fail on purpose)"],
        ),
        plant(
            "no route",
            web("unrouted")
                + &http_route(
                    "unrouted",
                    "[{matches: [{path: {value: /known}}], backendRefs: [{name: unrouted, port: 80}]}]",
                ),
            curl("http://unrouted/other"),
            &["unrouted"],
            &["answered 404", "NO_ROUTE", "add a route that takes the rest"],
        ),
        plant(
            "backend that is not there",
            web("backless") + &http_route("backless", "[{backendRefs: [{name: nothing, port: 80}]}]"),
            curl("http://backless/"),
            &["backless"],
            &["answered 500", "BACKEND_INVALID", "HTTPRoute NS/backless", "nothing"],
        ),
        plant(
            "backend without a grant",
            web("ungranted") + &http_route("ungranted", "[{backendRefs: [{name: server, namespace: mesh, port: 80}]}]"),
            curl("http://ungranted/"),
            &["ungranted"],
            &["answered 500", "BACKEND_INVALID", "HTTPRoute NS/ungranted", "ReferenceGrant"],
        ),
        plant(
            "unknown subset",
            web("subset")
                + &virtual_service("subset", "name: x").replace("{host: subset}", "{host: subset, subset: newest}"),
            curl("http://subset/"),
            &["subset"],
            &["answered 503", "SUBSET_UNKNOWN", "\"newest\"", "add the subset to a DestinationRule"],
        ),
        plant(
            "ejected",
            bound("ejected", "lone", 8080)
                + &destination_rule(
                    "ejected",
                    "{outlierDetection: {consecutive5xxErrors: 2, interval: 100ms, baseEjectionTime: 300s, maxEjectionPercent: 100}}",
                ),
            curl("'http://ejected/?status=500'"),
            &["ejected"],
            &["answered 503", "ENDPOINTS_EJECTED", "see why the endpoints failed"],
        ),
        plant(
            "full",
            web("full") + &destination_rule("full", "{connectionPool: {http: {http2MaxRequests: 1}}}"),
            format!("{} & {}; wait", curl("'http://full/?delay=1s'"), curl("'http://full/?delay=1s'")),
            &["full"],
            &["answered 503", "WAY014", "1 requests to the service are open already", "connectionPool", "UO"],
        ),
        plant(
            "nobody listens",
            bound("dead", "web", 9999),
            curl("http://dead/"),
            &["dead"],
            &["answered 503", "Connection refused", "UF,URX", "check that the destination listens on that port"],
        ),
        plant(
            "no endpoint",
            bound("empty", "nobody", 8080),
            curl("http://empty/"),
            &["empty"],
            &["answered 503", "NO_HEALTHY_ENDPOINT", "match the service's selector"],
        ),
        plant(
            "no such port",
            web("noport"),
            curl("http://noport:81/"),
            &["noport:81"],
            &["NO_SERVICE_PORT", "has no port 81", "add this one to the Service"],
        ),
        plant(
            "the server does not speak HTTP",
            bound("banner", "banner", 7002),
            curl("http://banner/"),
            &["banner"],
            &["answered 503", "WAY006", "UC (the endpoint broke off)"],
        ),
        plant(
            "the client has no patience",
            web("patient"),
            "curl -sS -m 1 'http://patient/?delay=60s'".to_owned(),
            &["patient"],
            &["DC (the client broke off)"],
        ),
        plant(
            "a waypoint that is not there",
            bound("bare", "lone", 8080).replace("use-waypoint: waypoint", "use-waypoint: absent"),
            curl("http://bare/"),
            &["bare"],
            &["carried", "Service NS/bare asks for waypoint NS/absent", "there is no Gateway NS/absent"],
        ),
        plant(
            "the pod's address is no way round the waypoint",
            String::new(),
            "curl -sS -m 20 -o /dev/null http://IP_OF_web:8080/".to_owned(),
            &["pod/web:8080"],
            &["DENIED_BY", "dial service NS/", "HTTP policies guard it"],
        ),
    ]
}

/// Failures at nodes.
fn of_connections() -> Vec<Planted> {
    let plant = |name, spec: &str, told: &[&'static str]| Planted {
        name,
        objects: server("NS", name, "node2") + &at_pod(name, spec),
        met: dial(&format!("IP_OF_{name}:7000")),
        asked: vec![name],
        told: told.to_vec(),
    };
    let allow = "NO_ALLOW_MATCHED";
    let to = |name, met: String, asked: &[&'static str], told: &[&'static str]| Planted {
        name,
        objects: String::new(),
        met,
        asked: asked.to_vec(),
        told: told.to_vec(),
    };
    vec![
        plant(
            "by-principal",
            "rules: [{from: [{source: {principals: [cluster.local/ns/NS/sa/other]}}]}]",
            &[allow, "wants principal cluster.local/ns/NS/sa/other, seen is cluster.local/ns/NS/sa/client"],
        ),
        plant(
            "by-namespace",
            "rules: [{from: [{source: {namespaces: [elsewhere]}}]}]",
            &[allow, "wants namespace elsewhere, seen is NS"],
        ),
        plant(
            "by-address",
            "rules: [{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}]",
            &[allow, "wants source_ip 192.0.2.0/24, seen is "],
        ),
        plant(
            "by-port",
            "rules: [{to: [{operation: {ports: ['7001']}}]}]",
            &[allow, "wants destination_port 7001, seen is 7000"],
        ),
        plant("by-nothing", "action: ALLOW", &[allow, "nothing: the policy has no rules"]),
        plant("by-denial", "action: DENY, rules: [{}]", &["DENIED_BY", "rule 0 of policy NS/by-denial"]),
        plant("by-method", "rules: [{to: [{operation: {methods: [GET]}}]}]", &[allow, "NS/by-method"]),
        to(
            "nobody listens there",
            dial("IP_OF_banner:7999"),
            &["pod/banner:7999"],
            &["PATH006", "Connection refused", "check that the destination listens on that port"],
        ),
        to(
            "a port of the mesh itself",
            dial("IP_OF_web:15008"),
            &["pod/web:15008"],
            &["PROXY_PORT", "15001, 15006 and 15008 are the mesh's"],
        ),
    ]
}

/// Takes everything away again.
struct Planter<'a>(&'a Mesh);

impl Drop for Planter<'_> {
    fn drop(&mut self) {
        self.0.delete("planted.yaml");
    }
}

/// A command with the addresses of the pods that it names as `IP_OF_…`.
fn addressed(mesh: &Mesh, command: &str) -> String {
    let Some((before, rest)) = command.split_once("IP_OF_") else { return command.to_owned() };
    let (pod, rest) = rest.split_once(':').expect("a port follows");
    format!("{before}{}:{rest}", mesh.ips(NAMESPACE, pod)[0])
}

#[test]
fn each_planted_failure_is_explained() {
    let planted: Vec<Planted> = of_requests().into_iter().chain(of_connections()).collect();
    let mut objects = GATEWAY.to_owned() + &echo("web") + &echo("lone") + &server("NS", "banner", "node2");
    objects += &client("NS", "client", "node1");
    planted.iter().for_each(|one| objects += &one.objects);
    let mesh = shared();
    let _planted = Planter(&mesh);
    mesh.apply("planted.yaml", &(namespace(NAMESPACE, true) + &objects.replace("NS", NAMESPACE)));
    // And the waypoint's.
    mesh.settled(NAMESPACE, objects.matches("\nkind: Pod\n").count() + 1);
    for one in &planted {
        let met = addressed(&mesh, &one.met);
        let mut arguments = vec!["why", "-n", NAMESPACE, "client"];
        arguments.extend(&one.asked);
        let end = Instant::now() + PATIENCE;
        // Until what was planted is in force.
        let took = loop {
            mesh.exec(NAMESPACE, "client", &["sh", "-c", &met]);
            let began = Instant::now();
            let story = text(&mesh.command(&arguments));
            let took = began.elapsed();
            let is_told = |part: &&&str| story.contains(&part.replace("NS", NAMESPACE));
            let lacking: Vec<_> = one.told.iter().filter(|part| !is_told(part)).collect();
            if lacking.is_empty() {
                break took;
            }
            assert!(Instant::now() < end, "{}: {lacking:?} is not told:\n{story}", one.name);
        };
        eprintln!("{}: explained in {took:?}", one.name);
    }
}
