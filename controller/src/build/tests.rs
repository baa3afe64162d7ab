use proptest::prelude::*;
use stillmesh_k8s::parse;

use super::*;

/// Texts of objects in, told changes out.
struct World {
    builder: Builder,
}

fn update(set: &str, removed: &[ObjectKey]) -> objects::Update {
    let found = parse::documents("test.yaml", set);
    assert!(!found.has_errors(), "{:?}", found.findings);
    let sets = found.objects.into_iter().map(objects::Change::Set);
    let changes = sets.chain(removed.iter().cloned().map(objects::Change::Removed)).collect();
    objects::Update { changes, complete: true, ..objects::Update::default() }
}

fn told(changes: &[Change]) -> Vec<String> {
    let one = |change: &Change| match change {
        Change::Workload(one) => format!("workload {}", one.uid),
        Change::WorkloadRemoved(uid) => format!("no workload {uid}"),
        Change::Service(one) => format!("service {}", one.key),
        Change::ServiceRemoved(key) => format!("no service {key}"),
        Change::Policy(one) => format!("policy {}", one.key),
        Change::PolicyRemoved(key) => format!("no policy {key}"),
        Change::Route(one) => format!("route {}", one.key),
        Change::RouteRemoved(key) => format!("no route {key}"),
        Change::Access(one) => format!("access {}", one.key()),
        Change::AccessRemoved(key) => format!("no access {key}"),
        Change::Destination(one) => format!("destination {}", one.key),
        Change::DestinationRemoved(key) => format!("no destination {key}"),
    };
    changes.iter().map(one).collect()
}

impl World {
    fn new(text: &str) -> Self {
        let mut builder = Builder::new(Mesh::default());
        builder.apply(&update(text, &[]));
        Self { builder }
    }

    fn set(&mut self, text: &str) -> Vec<String> {
        told(&self.builder.apply(&update(text, &[])).changes)
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        told(&self.builder.apply(&update("", &[ObjectKey::new(kind, namespace, name)])).changes)
    }

    fn workload(&self, name: &str) -> &Workload {
        &self.builder.workloads[&("shop".into(), name.into())]
    }

    fn policies(&self, name: &str) -> Vec<String> {
        self.workload(name).authorization_policies.iter().map(ToString::to_string).collect()
    }

    fn services(&self, name: &str) -> Vec<String> {
        self.workload(name).services.iter().map(|(key, ports)| format!("{} {ports:?}", key.hostname)).collect()
    }
}

fn pod(name: &str, app: &str, node: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\nspec:\n  nodeName: {node}\n  \
         serviceAccountName: {app}\n  containers: [{{name: main, ports: [{{name: web, containerPort: 8080}}]}}]\nstatus: {{podIP: {ip}, phase: \
         Running, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

fn service(name: &str, app: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: 10.96.0.{port}, selector: {{app: \
         {app}}}, ports: [{{port: {port}, targetPort: web}}]}}\n"
    )
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn gateway(namespace: &str, name: &str, class: &str, traffic: &str, from: &str, ready: bool) -> String {
    let addresses = if ready { "[{type: IPAddress, value: 10.96.9.9}]" } else { "[]" };
    let listener = format!("{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {from}}}}}");
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: \
         {{istio.io/waypoint-for: {traffic}}}}}\nspec: {{gatewayClassName: {class}, listeners: [{listener}]}}\nstatus: {{addresses: {addresses}}}\n"
    )
}

fn shop() -> String {
    [
        pod("page-0", "page", "n1", "10.0.0.1"),
        pod("page-1", "page", "n2", "10.0.0.2"),
        pod("details-0", "details", "n1", "10.0.0.3"),
        service("page", "page", 80),
    ]
    .concat()
}

#[test]
fn one_edited_object_sends_what_it_concerns_and_nothing_else() {
    let mut world = World::new(&shop());
    assert_eq!(world.set(&shop()), [""; 0], "the same again");
    assert_eq!(world.set(&pod("page-0", "page", "n1", "10.0.0.9")), ["workload Kubernetes//Pod/shop/page-0"]);
    let vip = service("page", "page", 80).replace("10.96.0.80", "10.96.0.81");
    assert_eq!(
        world.set(&vip),
        ["service shop/page.shop.svc.cluster.local"],
        "endpoints do not change with an address"
    );
    assert_eq!(world.set("apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: shop}\n"), [""; 0]);
    assert_eq!(world.set("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n"), [""; 0]);
}

#[test]
fn who_may_do_without_a_tunnel_is_said_by_its_namespace_the_mesh_and_network_policies() {
    let mut world = World::new(&shop());
    let namespace = |label: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{stillmesh.io/same-node: {label}}}}}\n"
        )
    };
    let filter = |app: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: f, namespace: shop}}\nspec: {{podSelector: \
             {{matchLabels: {{app: {app}}}}}, ingress: [{{}}]}}\n"
        )
    };
    let direct = |world: &World| ["page-0", "page-1", "details-0"].map(|name| world.workload(name).direct);
    assert_eq!(direct(&world), [false; 3]);
    assert_eq!(world.set(&namespace("direct")).len(), 3);
    assert_eq!(direct(&world), [true; 3]);
    assert_eq!(world.set(&filter("page")).len(), 2, "whom it selects, and nobody else");
    assert_eq!(direct(&world), [false, false, true]);
    assert_eq!(world.set(&filter("details")).len(), 3, "whom it selected, and whom it selects");
    assert_eq!(direct(&world), [true, true, false]);
    assert_eq!(world.remove(Kind::NetworkPolicy, "shop", "f"), ["workload Kubernetes//Pod/shop/details-0"]);
    let mesh = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system, annotations: {{stillmesh.io/same-node: \
             {value}}}}}\n"
        )
    };
    world.set(&namespace("tunnel"));
    world.set(&mesh("direct"));
    assert_eq!(direct(&world), [false; 3], "the namespace has said");
    world.set("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    assert_eq!(direct(&world), [true; 3]);
    world.set(&mesh("tunnel"));
    assert_eq!(direct(&world), [false; 3]);
}

fn route(name: &str, parent: &str, backend: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: \
         [{{group: '', kind: Service, {parent}}}]\n  rules: [{{backendRefs: [{{{backend}}}]}}]\n"
    )
}

fn grpc_route(name: &str, parent: &str, backend: &str) -> String {
    route(name, parent, backend).replace("HTTPRoute", "GRPCRoute")
}

fn stream_route(kind: Kind, name: &str, parent: &str, backend: &str) -> String {
    route(name, parent, backend).replace("HTTPRoute", kind.as_str())
}

fn virtual_service(name: &str, host: &str, destination: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  hosts: \
         ['{host}']\n  http: [{{route: [{{destination: {{host: {destination}}}}}]}}]\n"
    )
}

/// A rule with the subset `v` of the pods with this label.
fn destination(namespace: &str, name: &str, host: &str, app: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  host: \
         '{host}'\n  trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}\n  subsets: [{{name: v, labels: {{app: {app}}}}}]\n"
    )
}

fn grant(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: \
         {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}], to: [{{group: '', kind: Service}}]}}\n"
    )
}

#[test]
fn what_a_route_names_costs_the_routes_that_name_it() {
    use stillmesh_core::model::http::{RouteAction, RouteBackend};
    let abroad = service("abroad", "x", 81).replace("namespace: shop", "namespace: other");
    let mut world = World::new(&(shop() + &abroad));
    let to_abroad = route("r", "name: page", "name: abroad, namespace: other, port: 81");
    assert_eq!(world.set(&to_abroad), ["route HTTPRoute shop/r"]);
    assert_eq!(world.set(&to_abroad), [""; 0], "nothing new");
    let works = |world: &World| {
        let routes = &mut world.builder.published().filter_map(|change| match change {
            Change::Route(route) => Some(route),
            _ => None,
        });
        let route = routes.next().unwrap();
        let RouteAction::Forward(forward) = &route.rules[0].action else { panic!("{route:?}") };
        matches!(forward.backends[0].backend, RouteBackend::Service { .. })
    };
    assert!(!works(&world), "another namespace's Service needs a grant");
    assert_eq!(world.set(&grant("other", "g")), ["route HTTPRoute shop/r"]);
    assert!(works(&world));
    assert_eq!(
        world.remove(Kind::Service, "other", "abroad").last().unwrap(),
        "no service other/abroad.other.svc.cluster.local"
    );
    assert!(!works(&world), "it is not there any more");
    world.set(&abroad);
    assert!(works(&world));
    assert_eq!(world.set(&route("r", "name: nobody", "name: page, port: 80")), ["no route HTTPRoute shop/r"]);
    assert_eq!(world.set(&route("r", "name: page", "name: page, port: 80")), ["route HTTPRoute shop/r"]);
    assert_eq!(world.remove(Kind::HttpRoute, "shop", "r"), ["no route HTTPRoute shop/r"]);
    assert_eq!(world.set(&grant("other", "g")), [""; 0]);
}

/// Type, status and message of what is said to the first parent of a route.
fn said_to_parent(built: &Built) -> Vec<(&'static str, &'static str, String)> {
    let verdict = built.verdicts.iter().find(|one| one.parents.is_some()).expect("a route's verdict");
    let said = &verdict.parents.as_ref().unwrap().said[0].conditions;
    said.iter().map(|one| (one.type_, one.status, one.message.clone())).collect()
}

#[test]
fn a_routes_status_follows_its_services_and_what_these_are_bound_to() {
    let mut world = World::new(&shop());
    let mut apply = |text: &str| world.builder.apply(&update(text, &[]));
    let said = |built: &Built| said_to_parent(built).into_iter().map(|(_, status, _)| status).collect::<Vec<_>>();
    let waypoints = |built: &Built| said_to_parent(built)[2].2.clone();
    let built = apply(&route("r", "name: page", "name: details, port: 90"));
    assert_eq!(said(&built), ["True", "False", "True"]);
    assert!(waypoints(&built).contains("neither the parent nor its namespace has label istio.io/use-waypoint"));
    assert_eq!(said(&apply(&service("details", "details", 90))), ["True", "True", "True"]);
    assert!(waypoints(&apply(ASKING)).contains("there is no Gateway shop/w"));
    let of = |ready| gateway("shop", "w", "istio-waypoint", "service", "{}", ready);
    assert!(waypoints(&apply(&of(false))).contains("will carry it out once it is ready"));
    assert_eq!(waypoints(&apply(&of(true))), "carried out by waypoint shop/w");
    let built = world.builder.apply(&update("", &[ObjectKey::new(Kind::Service, "shop", "page")]));
    assert_eq!(said(&built), ["False", "True", "True"]);
    let built = world.builder.apply(&update("", &[ObjectKey::new(Kind::HttpRoute, "shop", "r")]));
    assert_eq!(built.verdicts.last().unwrap().parents, None, "nothing is written to what is gone");
}

#[test]
fn a_route_on_a_waypoint_is_told_to_name_a_service_and_one_on_another_gateway_is_told_nothing() {
    let mut world = World::new(&shop());
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
                 spec: {parentRefs: [{name: w}], rules: [{backendRefs: [{name: page, port: 80}]}]}\n";
    let said = |built: &Built| {
        let parents = built.verdicts.iter().find_map(|one| one.parents.clone()).expect("a route's verdict");
        let conditions =
            parents.said.into_iter().flat_map(|one| one.conditions.into_iter().map(move |it| (one.controller, it)));
        conditions.map(|(controller, one)| (controller, one.type_, one.reason, one.message)).collect::<Vec<_>>()
    };
    let mut apply = |text: &str| world.builder.apply(&update(text, &[]));
    let built = apply(route);
    assert_eq!((said(&built), told(&built.changes)), (vec![], vec![]), "nobody knows whose the Gateway is");
    let of = |class: &str| gateway("shop", "w", class, "service", "{}", true);
    assert_eq!(said(&apply(&of("istio"))), [], "somebody else's");
    for (class, controller) in
        [("istio-waypoint", "istio.io/mesh-controller"), ("stillmesh-waypoint", "stillmesh.io/waypoint-controller")]
    {
        let said = said(&apply(&of(class)));
        let told: Vec<_> = said.iter().map(|(whose, type_, reason, _)| (*whose, *type_, *reason)).collect();
        let resolved = (controller, "ResolvedRefs", "ResolvedRefs");
        assert_eq!(told, [(controller, "Accepted", "NotAllowedByListeners"), resolved]);
        assert!(said[0].3.contains("kind: Service"), "{said:?}");
    }
    let built = apply(&route.replace("name: w}", "name: w, sectionName: web}"));
    assert_eq!(said(&built)[0].2, "NoMatchingParent");
    let gone = world.builder.apply(&update("", &[ObjectKey::new(Kind::Gateway, "shop", "w")]));
    assert_eq!(said(&gone), []);
}

#[test]
fn an_http_route_gives_way_to_grpc_routes_on_its_port_and_comes_back() {
    let mut world = World::new(&shop());
    let to = "name: page, port: 80";
    assert_eq!(world.set(&route("h", "name: page", to)), ["route HTTPRoute shop/h"]);
    let grpc = grpc_route("g", "name: page, port: 80", to);
    let built = world.builder.apply(&update(&grpc, &[]));
    assert_eq!(told(&built.changes), ["route GRPCRoute shop/g", "no route HTTPRoute shop/h"]);
    let said = |built: &Built, name: &str| {
        let verdict = built.verdicts.iter().find(|one| *one.object.name == *name).unwrap();
        let accepted = verdict.parents.as_ref().unwrap().said[0].conditions[0].clone();
        (accepted.status, accepted.reason)
    };
    assert_eq!(said(&built, "g"), ("True", "Accepted"));
    assert_eq!(said(&built, "h"), ("False", "Conflicted"));
    let back = ["route HTTPRoute shop/h", "no route GRPCRoute shop/g"];
    assert_eq!(world.set(&grpc_route("g", "name: page, port: 90", to)), back, "the Service has no such port");
    assert_eq!(world.set(&grpc), ["route GRPCRoute shop/g", "no route HTTPRoute shop/h"]);
    assert_eq!(world.remove(Kind::GrpcRoute, "shop", "g"), back);
}

#[test]
fn a_virtual_service_follows_those_that_it_delegates_to_and_their_services() {
    let mut world = World::new(&shop());
    let inner = |port: u16| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: inner, namespace: shop}}\nspec: {{http: \
             [{{route: [{{destination: {{host: late, port: {{number: {port}}}}}}}]}}]}}\n"
        )
    };
    let root = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root, namespace: shop}\nspec: \
                {hosts: [page], http: [{delegate: {name: inner}}]}\n";
    let rules = |world: &World| {
        let mut all = world.builder.published().filter_map(|change| match change {
            Change::Route(route) => Some(format!("{:?}", route.rules)),
            _ => None,
        });
        all.next().unwrap_or_default()
    };
    assert_eq!(world.set(root), ["route VirtualService shop/root"]);
    assert_eq!(rules(&world), "[]", "its delegate is not there");
    assert_eq!(world.set(&inner(90)), ["route VirtualService shop/root"], "its delegate has come");
    assert!(rules(&world).contains("Invalid"), "the delegate's Service is not there: {}", rules(&world));
    assert!(world.set(&service("late", "page", 90)).contains(&"route VirtualService shop/root".to_owned()));
    assert!(!rules(&world).contains("Invalid"));
    assert_eq!(world.set(&inner(91)), ["route VirtualService shop/root"], "its delegate has changed");
    assert_eq!(world.remove(Kind::VirtualService, "shop", "inner"), ["route VirtualService shop/root"]);
    assert_eq!(rules(&world), "[]");
}

#[test]
fn a_tcp_route_gives_way_to_tls_routes_on_its_port_and_both_to_what_the_port_says() {
    let mut world = World::new(&shop());
    let (parent, to) = ("name: page, port: 80", "name: page, port: 80");
    let tcp = stream_route(Kind::TcpRoute, "c", parent, to);
    assert_eq!(world.set(&tcp), ["route TCPRoute shop/c"]);
    let tls = stream_route(Kind::TlsRoute, "s", parent, to);
    assert_eq!(world.set(&tls), ["route TLSRoute shop/s", "no route TCPRoute shop/c"]);
    assert_eq!(world.set(&grpc_route("g", parent, to)), ["route GRPCRoute shop/g"], "requests are something else");
    let http = service("page", "page", 80).replace("port: 80,", "port: 80, appProtocol: http,");
    assert!(world.set(&http).contains(&"no route TLSRoute shop/s".to_owned()));
    let tcp_port = http.replace("appProtocol: http", "appProtocol: tcp");
    assert!(world.set(&tcp_port).contains(&"route TCPRoute shop/c".to_owned()));
    assert_eq!(world.remove(Kind::TcpRoute, "shop", "c"), ["no route TCPRoute shop/c"]);
}

#[test]
fn a_virtual_service_follows_the_services_that_its_hosts_mean_and_their_waypoints() {
    let abroad = service("abroad", "x", 81).replace("namespace: shop", "namespace: other");
    let mut world = World::new(&(shop() + &abroad));
    let parents = |world: &World| {
        let mut all = world.builder.published().filter_map(|change| match change {
            Change::Route(route) => Some(route),
            _ => None,
        });
        let parents =
            all.next().map(|route| route.parents.iter().map(|one| one.service.to_string()).collect::<Vec<_>>());
        parents.unwrap_or_default()
    };
    let said = |built: &Built| {
        let verdict = built.verdicts.iter().find(|one| one.object.kind == Kind::VirtualService).unwrap();
        verdict.condition.as_ref().map(|one| (one.status, one.reason, one.message.clone()))
    };
    let named = virtual_service("v", "page", "details");
    let built = world.builder.apply(&update(&named, &[]));
    assert_eq!(told(&built.changes), ["route VirtualService shop/v"]);
    let (status, reason, message) = said(&built).unwrap();
    assert_eq!((status, reason), ("False", "AncestorNotBound"));
    assert!(message.contains("\"details\" is not a Service here"), "{message}");
    let built = world.builder.apply(&update(&(service("details", "details", 90) + ASKING), &[]));
    assert!(told(&built.changes).contains(&"route VirtualService shop/v".to_owned()), "its destination is there");
    let of = gateway("shop", "w", "istio-waypoint", "service", "{from: All}", true);
    let built = world.builder.apply(&update(&of, &[]));
    assert_eq!(said(&built).unwrap(), ("True", "Accepted", "bound to shop/w".to_owned()));
    // Any Service that one of its namespace's waypoints serves.
    world.set(&virtual_service("v", "*", "details"));
    let own = ["shop/details.shop.svc.cluster.local", "shop/page.shop.svc.cluster.local"];
    assert_eq!(parents(&world), own);
    let asks = "namespace: other, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: shop}";
    assert_eq!(world.set(&abroad.replace("namespace: other", asks)).last().unwrap(), "route VirtualService shop/v");
    assert_eq!(parents(&world)[0], "other/abroad.other.svc.cluster.local");
    let elsewhere = named.replace("hosts:", "gateways: [ingress]\n  hosts:");
    let built = world.builder.apply(&update(&elsewhere, &[]));
    assert_eq!((told(&built.changes), said(&built)), (vec!["no route VirtualService shop/v".to_owned()], None));
    assert_eq!(built.verdicts[0].retracted, Some("WaypointAccepted"));
}

#[test]
fn a_virtual_service_that_is_refused_stays_as_it_was() {
    let mut world = World::new(&shop());
    let good = virtual_service("v", "page", "page");
    assert_eq!(world.set(&good), ["route VirtualService shop/v"]);
    let bad = good.replace("http: [{route:", "http: [{fault: {abort: {http2Error: x}}, route:");
    let built = world.builder.apply(&update(&bad, &[]));
    assert_eq!(told(&built.changes), [""; 0]);
    let condition = built.verdicts[0].condition.as_ref().unwrap();
    assert_eq!((condition.status, condition.reason), ("False", "Invalid"));
    assert!(condition.message.ends_with("its last accepted version stays in force"), "{}", condition.message);
    assert_eq!(world.remove(Kind::VirtualService, "shop", "v"), ["no route VirtualService shop/v"]);
}

#[test]
fn a_destination_rule_follows_the_pods_of_its_subsets_and_its_services() {
    let mut world = World::new(&shop());
    let rule = destination("shop", "d", "page", "page");
    assert_eq!(world.set(&rule), ["destination shop/d"]);
    let members = |world: &World| -> Vec<String> {
        let rule = world.builder.published().find_map(|change| match change {
            Change::Destination(rule) => Some(rule),
            _ => None,
        });
        rule.map(|rule| rule.subsets[0].members.iter().map(ToString::to_string).collect()).unwrap_or_default()
    };
    let before = members(&world);
    assert!(!before.is_empty());
    assert_eq!(world.set(&pod("page-9", "page", "n1", "10.0.0.99")).len(), 2, "the pod and the rule");
    assert_eq!(members(&world).len(), before.len() + 1);
    assert_eq!(world.set(&pod("details-9", "details", "n1", "10.0.0.98")).len(), 1, "nothing of it");
    world.remove(Kind::Pod, "shop", "page-9");
    assert_eq!(members(&world), before);
    let built = world.builder.apply(&update(&rule.replace("RANDOM", "FASTEST"), &[]));
    assert_eq!(told(&built.changes), [""; 0]);
    let condition = built.verdicts[0].condition.as_ref().unwrap();
    assert_eq!((condition.status, condition.reason), ("False", "Invalid"));
    assert!(condition.message.ends_with("its last accepted version stays in force"), "{}", condition.message);
    assert!(
        world.remove(Kind::Service, "shop", "page").contains(&"destination shop/d".to_owned())
            || members(&world) == before
    );
    assert_eq!(world.remove(Kind::DestinationRule, "shop", "d"), ["no destination shop/d"]);
}

#[test]
fn a_route_whose_new_version_is_refused_stays_as_it_was_and_says_so() {
    let mut world = World::new(&shop());
    let good = route("r", "name: page", "name: page, port: 80");
    let bad = good.replace("rules: [{", "rules: [{filters: [{type: ExtensionRef}], ");
    let built = world.builder.apply(&update(&bad, &[]));
    assert_eq!(told(&built.changes), [""; 0]);
    assert!(!said_to_parent(&built)[0].2.contains("last accepted version"));
    assert_eq!(world.set(&good), ["route HTTPRoute shop/r"]);
    let built = world.builder.apply(&update(&bad, &[]));
    assert_eq!(told(&built.changes), [""; 0]);
    let (_, status, message) = said_to_parent(&built).remove(0);
    assert_eq!(status, "False");
    assert!(message.ends_with("its last accepted version stays in force"), "{message}");
    assert_eq!(world.remove(Kind::HttpRoute, "shop", "r"), ["no route HTTPRoute shop/r"]);
}

const ASKING: &str =
    "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n";

#[test]
fn a_gateway_costs_those_who_ask_for_it() {
    let other = service("other", "other", 81).replace("namespace: shop", "namespace: elsewhere");
    let mut world = World::new(&(shop() + &service("details", "details", 90) + &other));
    let services = ["service shop/details.shop.svc.cluster.local", "service shop/page.shop.svc.cluster.local"];
    let of = |traffic: &str, ready| gateway("shop", "w", "istio-waypoint", traffic, "{}", ready);
    assert_eq!(world.set(ASKING), [""; 0], "there is none yet");
    assert_eq!(world.set(&of("service", false)), services, "bound before it is ready");
    let waypoint = |world: &World| {
        let service = &world.builder.services[&("shop".into(), "page".into())];
        service.waypoint.as_ref().map(|one| format!("{}:{}", one.destination, one.hbone_mtls_port))
    };
    assert_eq!(waypoint(&world).as_deref(), Some("shop/w.shop.svc.cluster.local:15008"));
    assert_eq!(world.set(&of("service", true)), [""; 0], "an address changes nothing for nodes");
    assert_eq!(world.set(&of("all", true)).len(), 3, "its workloads are bound besides");
    let opted_out = service("page", "page", 80)
        .replace("namespace: shop", "namespace: shop, labels: {istio.io/use-waypoint: none}");
    assert_eq!(world.set(&opted_out), ["service shop/page.shop.svc.cluster.local"]);
    assert_eq!(waypoint(&world), None);
    let direct =
        of("service", false).replace("labels:", "annotations: {stillmesh.io/waypoint-fallback: direct}, labels:");
    assert_eq!(world.set(&direct).len(), 4, "whoever was bound is not");
    assert_eq!(world.set(&of("service", true)), ["service shop/details.shop.svc.cluster.local"]);
    assert_eq!(world.remove(Kind::Gateway, "shop", "w"), ["service shop/details.shop.svc.cluster.local"]);
}

#[test]
fn a_class_decides_who_runs_its_gateways() {
    let mut world = World::new(&(shop() + ASKING + &gateway("shop", "w", "mine", "service", "{}", false)));
    assert!(world.builder.services[&("shop".into(), "page".into())].waypoint.is_none());
    let class = |controller: &str| {
        let api = "gateway.networking.k8s.io/v1";
        format!(
            "apiVersion: {api}\nkind: GatewayClass\nmetadata: {{name: mine}}\nspec: {{controllerName: {controller}}}\n"
        )
    };
    let service = ["service shop/page.shop.svc.cluster.local"];
    let running = world.builder.running();
    assert_eq!(world.set(&class("istio.io/mesh-controller")), service);
    assert!(running.is_waypoint("shop", "w") && !running.is_waypoint("shop", "page"), "it is given configuration");
    assert_eq!(world.set(&class("x.example/y")), service);
    assert!(!running.is_waypoint("shop", "w"));
    assert_eq!(world.remove(Kind::GatewayClass, "", "mine"), [""; 0]);
}

#[test]
fn a_services_status_says_what_it_is_bound_to_and_no_more_once_it_is_not() {
    let mut world = World::new(&(shop() + ASKING));
    let said = |built: &Built| {
        let verdict = built.verdicts.iter().find(|one| one.object.kind == Kind::Service).unwrap().clone();
        (verdict.condition.map(|one| (one.status, one.reason)), verdict.retracted)
    };
    let apply = |world: &mut World, text: &str| world.builder.apply(&update(text, &[]));
    let of = |ready| gateway("shop", "w", "istio-waypoint", "service", "{}", ready);
    assert_eq!(said(&apply(&mut world, ASKING)), (Some(("False", "WaypointIsNotReady")), None));
    let findings: Vec<String> = world.builder.findings().iter().map(ToString::to_string).collect();
    assert_eq!(
        findings,
        [
            "test.yaml:2:1: Namespace shop: metadata.labels[\"istio.io/use-waypoint\"]: there is no Gateway shop/w: traffic goes without a \
             waypoint; create the Gateway (stillmesh waypoint apply), or change the label"
        ]
    );
    assert_eq!(said(&apply(&mut world, &of(false))), (Some(("False", "WaypointIsNotReady")), None));
    assert_eq!(said(&apply(&mut world, &of(true))), (Some(("True", "WaypointAccepted")), None));
    assert!(world.builder.findings().is_empty());
    let plain = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    assert_eq!(said(&apply(&mut world, plain)), (None, Some("istio.io/WaypointBound")));
}

#[test]
fn a_service_joins_and_leaves_its_endpoints() {
    let mut world = World::new(&shop());
    assert_eq!(
        world.services("page-0"),
        ["page.shop.svc.cluster.local [PortMapping { service_port: 80, target_port: 8080 }]"]
    );
    assert_eq!(
        world.set(&service("details", "details", 90)),
        ["service shop/details.shop.svc.cluster.local", "workload Kubernetes//Pod/shop/details-0"]
    );
    assert_eq!(
        world.set(&service("details", "page", 90)),
        [
            "service shop/details.shop.svc.cluster.local",
            "workload Kubernetes//Pod/shop/details-0",
            "workload Kubernetes//Pod/shop/page-0",
            "workload Kubernetes//Pod/shop/page-1"
        ]
        .into_iter()
        .filter(|line| !line.starts_with("service"))
        .collect::<Vec<_>>(),
        "a selector is not part of the resource"
    );
    let gone = world.remove(Kind::Service, "shop", "details");
    assert_eq!(gone.last().unwrap(), "no service shop/details.shop.svc.cluster.local", "after its endpoints: {gone:?}");
    assert_eq!(gone.len(), 3);
}

#[test]
fn policies_come_before_the_workloads_that_name_them_and_go_after() {
    let mut world = World::new(&shop());
    let deny = policy("shop", "p", "{selector: {matchLabels: {app: page}}, action: DENY, rules: [{}]}");
    assert_eq!(
        world.set(&deny),
        ["policy shop/p", "workload Kubernetes//Pod/shop/page-0", "workload Kubernetes//Pod/shop/page-1"]
    );
    assert_eq!(world.policies("page-0"), ["shop/p"]);
    let other_rules = deny.replace("[{}]", "[{from: [{source: {namespaces: [a]}}]}]");
    assert_eq!(world.set(&other_rules), ["policy shop/p"], "who names it stays the same");
    assert_eq!(
        world.remove(Kind::AuthorizationPolicy, "shop", "p"),
        ["workload Kubernetes//Pod/shop/page-0", "workload Kubernetes//Pod/shop/page-1", "no policy shop/p"]
    );
}

#[test]
fn a_policy_for_a_namespace_or_the_mesh_touches_no_workload() {
    let mut world = World::new(&shop());
    assert_eq!(world.set(&policy("shop", "p", "{}")), ["policy shop/p"]);
    assert_eq!(world.set(&policy("istio-system", "q", "{}")), ["policy istio-system/q"]);
    let selecting = policy("istio-system", "r", "{selector: {matchLabels: {app: details}}}");
    assert_eq!(world.set(&selecting), ["policy istio-system/r", "workload Kubernetes//Pod/shop/details-0"]);
    assert_eq!(world.policies("details-0"), ["istio-system/r"]);
}

#[test]
fn a_rejected_policy_is_not_named_and_its_verdict_says_why() {
    let mut world = World::new(&shop());
    let built = world
        .builder
        .apply(&update(&policy("shop", "p", "{selector: {matchLabels: {app: page}}, action: AUDIT}"), &[]));
    assert_eq!(told(&built.changes), [""; 0]);
    let [verdict] = &built.verdicts[..] else { panic!("{built:?}") };
    assert_eq!(verdict.object.to_string(), "AuthorizationPolicy shop/p");
    assert_eq!(verdict.condition.as_ref().unwrap().reason, "UnsupportedValue");
    let gone = world.builder.apply(&update("", std::slice::from_ref(&verdict.object)));
    assert_eq!(gone.verdicts[0].condition, None);
}

#[test]
fn strict_for_a_namespace_is_one_policy_named_by_all_of_it() {
    let mut world = World::new(&shop());
    let strict = "istio-system/istio_converted_static_strict";
    let told = world.set(&peer("shop", "p", "{mtls: {mode: STRICT}}"));
    assert_eq!((told.len(), told[0].as_str()), (4, "policy istio-system/istio_converted_static_strict"));
    assert_eq!(world.policies("details-0"), [strict]);
    let open = peer("shop", "q", "{selector: {matchLabels: {app: page}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}");
    assert_eq!(world.set(&open).len(), 3);
    assert_eq!(world.policies("page-0"), ["shop/converted_peer_authentication_q"]);
    assert_eq!(world.policies("details-0"), [strict]);
    let told = world.remove(Kind::PeerAuthentication, "shop", "p");
    assert!(
        told.contains(&"no policy shop/converted_peer_authentication_q".to_owned()),
        "nothing differs any more: {told:?}"
    );
    assert_eq!(world.policies("page-0"), [""; 0]);
    assert_eq!(
        world.remove(Kind::PeerAuthentication, "shop", "q"),
        ["no policy istio-system/istio_converted_static_strict"]
    );
}

#[test]
fn capture_is_told_by_one_workload() {
    let mut world = World::new(&shop());
    let captured = pod("page-0", "page", "n1", "10.0.0.1")
        .replace("labels: {app: page}", "labels: {app: page}, annotations: {ambient.istio.io/redirection: enabled}");
    assert_eq!(world.set(&captured), ["workload Kubernetes//Pod/shop/page-0"]);
    assert_eq!(world.workload("page-0").tunnel_protocol, stillmesh_core::model::TunnelProtocol::Hbone);
}

#[test]
fn a_nodes_place_is_told_by_the_workloads_on_it() {
    let mut world = World::new(&shop());
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/zone: z}}\n";
    assert_eq!(world.set(node), ["workload Kubernetes//Pod/shop/page-1"]);
    assert_eq!(world.remove(Kind::Node, "", "n2"), ["workload Kubernetes//Pod/shop/page-1"]);
}

#[test]
fn slices_give_a_service_without_selector_its_endpoints() {
    let mut world = World::new(&shop());
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {ports: [{name: sql, port: 5432}]}\n---\n";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\n\
                 addressType: IPv4\nports: [{name: sql, port: 15432}]\nendpoints:\n- {addresses: [10.0.0.3], targetRef: {kind: Pod, name: details-0}}\n\
                 - {addresses: [192.0.2.7]}\n";
    assert_eq!(
        world.set(&format!("{service}{slice}")),
        [
            "service shop/db.shop.svc.cluster.local",
            "workload Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.7",
            "workload Kubernetes//Pod/shop/details-0"
        ]
    );
    assert_eq!(
        world.services("details-0"),
        ["db.shop.svc.cluster.local [PortMapping { service_port: 5432, target_port: 15432 }]"]
    );
    assert_eq!(
        world.remove(Kind::EndpointSlice, "shop", "db-1"),
        [
            "workload Kubernetes//Pod/shop/details-0",
            "no workload Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.7"
        ]
    );
}

#[test]
fn the_root_namespace_and_the_trust_domain_come_from_the_meshs_config() {
    let mut world = World::new(&(shop() + &policy("shop", "p", "{}")));
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'rootNamespace: shop'}\n";
    assert_eq!(world.set(config), ["policy shop/p"]);
    assert_eq!(world.builder.policies.values().next().unwrap().scope, stillmesh_core::model::Scope::Global);
    world.builder.fix_trust_domain();
    assert_eq!(world.set(&config.replace("rootNamespace: shop", "trustDomain: other")), ["policy shop/p"]);
    assert_eq!(world.workload("page-0").trust_domain, Default::default());
    let findings: Vec<&str> = world.builder.mesh_config.findings.iter().map(|one| one.code).collect();
    assert_eq!(findings, ["MAN014"]);
}

#[test]
fn policies_that_select_nothing_are_told_with_their_place() {
    let mut world = World::new(&shop());
    let nothing = policy("shop", "p", "{selector: {matchLabels: {app: pgae}}}");
    world.set(&(nothing.clone() + &peer("istio-system", "q", "{selector: {matchLabels: {app: page}}}")));
    let told: Vec<String> = world.builder.findings().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        told[0],
        "test.yaml:2:1: AuthorizationPolicy shop/p: spec.selector: no pod has these labels: the policy does nothing; check the labels, and \
         that the policy is in the namespace of the pods"
    );
    let placed =
        nothing.replace("namespace: shop}", "namespace: shop, annotations: {stillmesh.io/source: 'a/b.yaml:7:3'}}");
    world.set(&placed);
    assert_eq!(world.builder.findings()[0].at, Position::new("a/b.yaml", 7, 3));
    world.set(&pod("x", "pgae", "n1", "10.0.0.7"));
    assert_eq!(world.builder.findings().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_ca_learns_who_runs_where() {
    let mut world = World::new(&shop());
    let running = world.builder.running();
    let patience = std::time::Duration::from_secs(1);
    assert!(
        running.runs("n1", "shop", "page")
            && running.runs("n2", "shop", "page")
            && running.runs("n1", "shop", "details")
    );
    assert!(!running.runs("n2", "shop", "details") && !running.runs("n3", "shop", "page"));
    assert!(!running.comes_to_run("n2", "shop", "details", patience).await);
    world.set(&pod("details-0", "details", "n2", "10.0.0.3"));
    assert!(running.comes_to_run("n2", "shop", "details", patience).await);
    assert!(!running.runs("n1", "shop", "details"));
    world.set(&pod("page-0", "page", "n1", "10.0.0.1").replace("Running", "Failed"));
    assert!(!running.runs("n1", "shop", "page"));
    let waiting = running.comes_to_run("n9", "shop", "page", patience);
    let (came, _) = tokio::join!(waiting, async { world.set(&pod("page-9", "page", "n9", "10.0.0.5")) });
    assert!(came);
    world.remove(Kind::Pod, "shop", "page-9");
    assert!(!running.runs("n9", "shop", "page"));
}

fn any_object() -> impl Strategy<Value = (String, ObjectKey)> {
    let app = || prop_oneof![Just("page"), Just("details")];
    let spec = prop_oneof![
        Just("{}"),
        Just("{selector: {matchLabels: {app: page}}}"),
        Just("{action: DENY, selector: {matchLabels: {app: details}}, rules: [{}]}"),
        Just("{action: AUDIT, selector: {matchLabels: {app: page}}}"),
        Just("{targetRefs: [{kind: Service, name: s0}], rules: [{to: [{operation: {methods: [GET]}}]}]}"),
        Just("{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w0}], action: DENY, rules: [{}]}"),
        Just("{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]}"),
        Just("{targetRefs: [{kind: Service, name: s1}], action: AUDIT, rules: [{}]}"),
    ];
    let modes = prop_oneof![
        Just("{mtls: {mode: STRICT}}"),
        Just("{mtls: {mode: PERMISSIVE}}"),
        Just("{selector: {matchLabels: {app: page}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}"),
        Just("{selector: {matchLabels: {app: page}}, portLevelMtls: {8080: {mode: STRICT}}}"),
    ];
    let space = || prop_oneof![Just("shop"), Just("istio-system"), Just("other")];
    let ask = || {
        prop_oneof![
            Just(""),
            Just(", istio.io/use-waypoint: w0"),
            Just(", istio.io/use-waypoint: w1, istio.io/use-waypoint-namespace: other"),
            Just(", istio.io/use-waypoint: none"),
        ]
    };
    let from = prop_oneof![Just("{from: All}"), Just("{}"), Just("{from: Selector, selector: {matchLabels: {a: b}}}")];
    let traffic = prop_oneof![Just("service"), Just("workload"), Just("all")];
    let controller = prop_oneof![Just("istio.io/mesh-controller"), Just("x.example/y")];
    let config = prop_oneof![
        Just("rootNamespace: other"),
        Just("trustDomain: td"),
        Just("pathNormalization: {normalization: NONE}"),
        Just("{}")
    ];
    prop_oneof![
        (0..3_u8, app(), 0..3_u8, 1..9_u8, ask()).prop_map(|(name, app, node, ip, ask)| {
            let name = format!("p{name}");
            let pod = pod(&name, app, &format!("n{node}"), &format!("10.0.0.{ip}"));
            (pod.replace(&format!("app: {app}}}"), &format!("app: {app}{ask}}}")), ObjectKey::new(Kind::Pod, "shop", &name))
        }),
        (0..3_u8, app(), 80..83_u16, ask()).prop_map(|(name, app, port, ask)| {
            let name = format!("s{name}");
            let labelled = format!("namespace: shop, labels: {{a: b{ask}}}}}");
            let service = service(&name, app, port).replace("namespace: shop}", &labelled);
            (service, ObjectKey::new(Kind::Service, "shop", &name))
        }),
        (any::<bool>(), ask()).prop_map(|(labelled, ask)| {
            let label = if labelled { "b" } else { "c" };
            let text = format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{a: {label}{ask}}}}}\n");
            (text, ObjectKey::new(Kind::Namespace, "", "shop"))
        }),
        (space(), 0..2_u8, from, traffic, any::<(bool, bool, bool)>()).prop_map(|(space, name, from, traffic, (own, ready, around))| {
            let name = format!("w{name}");
            let text = gateway(space, &name, if own { "istio-waypoint" } else { "mine" }, traffic, from, ready);
            let annotated = format!("namespace: {space}, annotations: {{stillmesh.io/waypoint-fallback: direct}},");
            let text = if around { text.replace(&format!("namespace: {space},"), &annotated) } else { text };
            (text, ObjectKey::new(Kind::Gateway, space, &name))
        }),
        (any::<bool>(), controller).prop_map(|(own, controller)| {
            let name = if own { "istio-waypoint" } else { "mine" };
            let api = "gateway.networking.k8s.io/v1";
            let text = format!("---\napiVersion: {api}\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n");
            (text, ObjectKey::new(Kind::GatewayClass, "", name))
        }),
        (0..3_u8, 0..3_u8, 0..3_u8, 80..83_u16, space()).prop_map(|(name, parent, backend, port, abroad)| {
            let name = format!("r{name}");
            let backend = format!("name: s{backend}, namespace: {abroad}, port: {port}");
            (route(&name, &format!("name: s{parent}"), &backend), ObjectKey::new(Kind::HttpRoute, "shop", &name))
        }),
        (0..2_u8, prop_oneof![Just("s0"), Just("s1.shop.svc.cluster.local"), Just("*"), Just("*.other.svc.cluster.local")], 0..3_u8).prop_map(
            |(name, host, destination)| {
                let name = format!("v{name}");
                let text = virtual_service(&name, host, &format!("s{destination}"));
                (text, ObjectKey::new(Kind::VirtualService, "shop", &name))
            }
        ),
        (0..2_u8, 0..3_u8, 0..3_u8, 80..83_u16, any::<bool>()).prop_map(|(name, parent, backend, port, any)| {
            let name = format!("q{name}");
            let parent = if any { format!("name: s{parent}") } else { format!("name: s{parent}, port: {port}") };
            let text = grpc_route(&name, &parent, &format!("name: s{backend}, port: {port}"));
            (text, ObjectKey::new(Kind::GrpcRoute, "shop", &name))
        }),
        (0..2_u8, 0..3_u8, 80..83_u16, any::<bool>(), any::<bool>()).prop_map(|(name, parent, port, any, is_tls)| {
            let parent = if any { format!("name: s{parent}") } else { format!("name: s{parent}, port: {port}") };
            let kind = if is_tls { Kind::TlsRoute } else { Kind::TcpRoute };
            let name = format!("t{name}");
            (stream_route(kind, &name, &parent, "name: s0, port: 80"), ObjectKey::new(kind, "shop", &name))
        }),
        (space(), 0..2_u8, prop_oneof![Just("s0"), Just("s1.shop.svc.cluster.local"), Just("bare1"), Just("*")], app()).prop_map(
            |(namespace, name, host, app)| {
                let name = format!("d{name}");
                (destination(namespace, &name, host, app), ObjectKey::new(Kind::DestinationRule, namespace, &name))
            }
        ),
        (space(), 0..2_u8).prop_map(|(namespace, name)| {
            let name = format!("g{name}");
            (grant(namespace, &name), ObjectKey::new(Kind::ReferenceGrant, namespace, &name))
        }),
        (space(), 0..3_u8, spec).prop_map(|(namespace, name, spec)| {
            let name = format!("a{name}");
            (policy(namespace, &name, spec), ObjectKey::new(Kind::AuthorizationPolicy, namespace, &name))
        }),
        (space(), 0..3_u8, modes).prop_map(|(namespace, name, spec)| {
            let name = format!("m{name}");
            (peer(namespace, &name, spec), ObjectKey::new(Kind::PeerAuthentication, namespace, &name))
        }),
        (space(), 0..2_u8).prop_map(|(namespace, name)| {
            let name = format!("j{name}");
            (authentication(namespace, &name, "{kind: Service, name: s2}"), ObjectKey::new(Kind::RequestAuthentication, namespace, &name))
        }),
        (0..3_u8, 0..3_u8).prop_map(|(name, zone)| {
            let text = format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{name}, labels: {{topology.kubernetes.io/zone: z{zone}}}}}\n");
            (text, ObjectKey::new(Kind::Node, "", &format!("n{name}")))
        }),
        (0..3_u8, 0..3_u8, 0..2_u8).prop_map(|(name, service, pod)| {
            let text = format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{name}, namespace: shop, labels: {{kubernetes.io/service-name: \
                 bare{service}}}}}\naddressType: IPv4\nports: [{{port: 9000}}]\nendpoints:\n- {{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: p{pod}}}}}\n\
                 - {{addresses: [192.0.2.{name}]}}\n"
            );
            (text, ObjectKey::new(Kind::EndpointSlice, "shop", &format!("e{name}")))
        }),
        (0..3_u8, 80..83_u16).prop_map(|(name, port)| {
            let text =
                format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: bare{name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n");
            (text, ObjectKey::new(Kind::Service, "shop", &format!("bare{name}")))
        }),
        config.prop_map(|mesh| {
            let text = format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n");
            (text, ObjectKey::new(Kind::ConfigMap, "istio-system", "istio"))
        }),
    ]
}

const KINDS_OF_ROUTES: [Kind; 6] =
    [Kind::GrpcRoute, Kind::HttpRoute, Kind::TlsRoute, Kind::TcpRoute, Kind::VirtualService, Kind::DestinationRule];

/// What was last said of each route that is there.
fn said_of_routes(before: &mut BTreeMap<ObjectKey, String>, built: &Built) {
    let is_route = |kind| KINDS_OF_ROUTES.contains(&kind);
    for verdict in built.verdicts.iter().filter(|one| is_route(one.object.kind)) {
        match (&verdict.parents, &verdict.condition) {
            (None, None) => drop(before.remove(&verdict.object)),
            said => drop(before.insert(verdict.object.clone(), format!("{said:?}"))),
        }
    }
}

/// What the changes add up to on a node.
#[derive(Default)]
struct Node {
    held: BTreeMap<String, String>,
    policies: BTreeSet<String>,
}

impl Node {
    fn take(&mut self, changes: &[Change]) {
        for change in changes {
            let (name, content) = match change {
                Change::Workload(one) => (format!("w {}", one.uid), Some(format!("{one:?}"))),
                Change::WorkloadRemoved(uid) => (format!("w {uid}"), None),
                Change::Service(one) => (format!("s {}", one.key), Some(format!("{one:?}"))),
                Change::ServiceRemoved(key) => (format!("s {key}"), None),
                Change::Policy(one) => (format!("p {}", one.key), Some(format!("{one:?}"))),
                Change::PolicyRemoved(key) => (format!("p {key}"), None),
                Change::Route(one) => (format!("r {}", one.key), Some(format!("{one:?}"))),
                Change::RouteRemoved(key) => (format!("r {key}"), None),
                Change::Access(one) => (format!("a {}", one.key()), Some(format!("{one:?}"))),
                Change::AccessRemoved(key) => (format!("a {key}"), None),
                Change::Destination(one) => (format!("d {}", one.key), Some(format!("{one:?}"))),
                Change::DestinationRemoved(key) => (format!("d {key}"), None),
            };
            match content {
                Some(content) => assert_ne!(self.held.insert(name, content.clone()), Some(content), "sent for nothing"),
                None => assert!(self.held.remove(&name).is_some(), "{name} was not there"),
            }
            if let Change::Workload(one) = change {
                for policy in &one.authorization_policies {
                    assert!(
                        self.held.contains_key(&format!("p {policy}")),
                        "{} names {policy}, which is not here",
                        one.uid
                    );
                }
            }
            self.policies = self.held.keys().filter(|name| name.starts_with("p ")).cloned().collect();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn following_changes_gives_what_building_anew_gives(
        steps in proptest::collection::vec((proptest::collection::vec(any_object(), 1..4), any::<bool>()), 1..16)
    ) {
        let mut builder = Builder::new(Mesh::default());
        let (mut node, mut said) = (Node::default(), BTreeMap::new());
        let mut objects: BTreeMap<ObjectKey, String> = BTreeMap::new();
        for (step, removes) in steps {
            let built = if removes {
                let keys: Vec<ObjectKey> = step.into_iter().map(|(_, key)| key).collect();
                keys.iter().for_each(|key| { objects.remove(key); });
                builder.apply(&update("", &keys))
            } else {
                let mut text = String::new();
                for (object, key) in step {
                    text.push_str(&object);
                    objects.insert(key, object);
                }
                builder.apply(&update(&text, &[]))
            };
            node.take(&built.changes);
            said_of_routes(&mut said, &built);
            let mut anew = Builder::new(Mesh::default());
            let text: String = objects.values().cloned().collect();
            let mut said_anew = BTreeMap::new();
            said_of_routes(&mut said_anew, &anew.apply(&update(&text, &[])));
            let mut expected = Node::default();
            expected.take(&anew.published().collect::<Vec<_>>());
            prop_assert_eq!(&node.held, &expected.held);
            prop_assert_eq!(&said, &said_anew);
        }
    }
}

fn unusable(text: &str) -> objects::Update {
    let object: serde_json::Value = serde_json::from_str(text).unwrap();
    let found = parse::documents("", text);
    assert!(found.has_errors(), "{text}");
    let unusable = vec![Unusable::read(&object, &found.findings).unwrap()];
    objects::Update { unusable, ..objects::Update::default() }
}

fn broken(generation: u32) -> String {
    let metadata = format!("{{\"name\": \"p\", \"namespace\": \"shop\", \"generation\": {generation}}}");
    format!(
        "{{\"apiVersion\": \"security.istio.io/v1\", \"kind\": \"AuthorizationPolicy\", \"metadata\": {metadata}, \"spec\": {{\"selector\": \
         {{\"matchLabels\": {{\"app\": \"page\"}}}}, \"action\": \"ODD\"}}}}"
    )
}

#[test]
fn a_policy_that_cannot_be_read_refuses_what_it_would_be_about_until_it_can() {
    let mut world = World::new(&(pod("page-0", "page", "n1", "10.0.0.1") + &pod("cart-0", "cart", "n1", "10.0.0.2")));
    let built = world.builder.apply(&unusable(&broken(1)));
    assert_eq!(told(&built.changes), ["policy shop/p", "workload Kubernetes//Pod/shop/page-0"]);
    assert_eq!(built.verdicts[0].generation, Some(1));
    let condition = built.verdicts[0].condition.as_ref().unwrap();
    assert_eq!((condition.status, condition.message.contains("is refused until")), ("False", true));
    let good = policy("shop", "p", "{selector: {matchLabels: {app: page}}, rules: [{}]}");
    let built = world.builder.apply(&update(&good, &[]));
    assert_eq!(told(&built.changes), ["policy shop/p"]);
    assert_eq!(built.verdicts[0].condition.as_ref().unwrap().status, "True");
    let built = world.builder.apply(&unusable(&broken(3)));
    assert_eq!(told(&built.changes), [""; 0], "the last good version stays");
    let condition = built.verdicts[0].condition.as_ref().unwrap();
    assert_eq!((condition.status, condition.message.contains("stays in force")), ("False", true));
    let built = world.builder.apply(&unusable(&broken(4)));
    assert!(built.verdicts[0].condition.as_ref().unwrap().message.contains("stays in force"));
    assert_eq!(
        world.remove(Kind::AuthorizationPolicy, "shop", "p"),
        ["workload Kubernetes//Pod/shop/page-0", "no policy shop/p"]
    );
    assert!(!told(&world.builder.apply(&unusable(&broken(5))).changes).is_empty(), "nothing is kept of a deleted one");
}

fn targeted(name: &str, target: &str, rest: &str) -> String {
    policy("shop", name, &format!("{{targetRefs: [{target}], {rest}}}"))
}

const PAGE: &str = "{kind: Service, name: page}";
const GATE: &str = "{group: gateway.networking.k8s.io, kind: Gateway, name: gate}";

fn bound_shop(ready: bool) -> String {
    let asking = service("page", "page", 80)
        .replace("namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: gate}}");
    shop() + &asking + &gateway("shop", "gate", "istio-waypoint", "service", "{}", ready)
}

fn said(world: &mut World, text: &str) -> Vec<String> {
    let built = world.builder.apply(&update(text, &[]));
    let told = built.verdicts.iter().filter(|one| one.object.kind == Kind::AuthorizationPolicy).filter_map(|one| {
        let condition = one.condition.as_ref()?;
        Some(format!("{} {} {} {}", condition.type_, condition.status, condition.reason, condition.message))
    });
    told.collect()
}

#[test]
fn what_waypoints_enforce_makes_endpoints_take_their_connections_alone() {
    let mut world = World::new(&bound_shop(true));
    let guard = "shop/stillmesh_waypoint_only_page";
    let allow = targeted("p", PAGE, "rules: [{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!(
        world.set(&allow),
        [
            "access AuthorizationPolicy shop/p",
            "policy shop/stillmesh_waypoint_only_page",
            "workload Kubernetes//Pod/shop/page-0",
            "workload Kubernetes//Pod/shop/page-1",
        ],
        "the guard comes before those that name it"
    );
    assert_eq!((world.policies("page-0"), world.policies("details-0").len()), (vec![guard.to_owned()], 0));
    let policy = &world.builder.policies[&PolicyKey::new("shop", "stillmesh_waypoint_only_page")];
    let matched = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(matched.not_principals[0].to_string(), "cluster.local/ns/shop/sa/gate");
    assert_eq!(matched.destination_ports, [8080], "the port that the service names");
    // A pod that defines the name otherwise.
    let other = pod("page-2", "page", "n1", "10.0.0.4").replace("8080", "9090");
    assert_eq!(world.set(&other), ["policy shop/stillmesh_waypoint_only_page", "workload Kubernetes//Pod/shop/page-2"]);
    assert_eq!(world.remove(Kind::Pod, "shop", "page-2").len(), 2);
    // Opted out, and back.
    let bypass = "labels: {istio.io/use-waypoint: gate}, annotations: {stillmesh.io/waypoint-bypass: allow}}";
    let opted = service("page", "page", 80).replace("namespace: shop}", &format!("namespace: shop, {bypass}"));
    world.set(&opted);
    assert!(world.policies("page-0").is_empty());
    world.set(&bound_shop(true));
    assert_eq!(world.policies("page-0"), [guard]);
    assert!(world.remove(Kind::AuthorizationPolicy, "shop", "p").contains(&format!("no policy {guard}")));
    assert!(world.policies("page-0").is_empty());
    // What only writes things down guards nothing; what is attached to the waypoint guards all behind it.
    world.set(&targeted("q", PAGE, "action: AUDIT, rules: [{}]"));
    assert!(world.policies("page-0").is_empty());
    world.set(&targeted("q", GATE, "action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]"));
    assert_eq!(world.policies("page-0"), [guard]);
}

#[test]
fn a_guarded_service_is_never_reached_round_its_waypoint() {
    let around = |text: String| {
        text.replace(
            "name: gate, namespace: shop,",
            "name: gate, namespace: shop, annotations: {stillmesh.io/waypoint-fallback: direct},",
        )
    };
    let mut world = World::new(&around(bound_shop(false)));
    let bound = |world: &World| world.builder.services[&("shop".into(), "page".into())].waypoint.is_some();
    assert!(!bound(&world), "it falls back while the waypoint is not ready");
    world.set(&targeted("p", PAGE, "rules: [{}]"));
    assert!(bound(&world));
    world.remove(Kind::AuthorizationPolicy, "shop", "p");
    assert!(!bound(&world));
    world.set(&policy(
        "istio-system",
        "all",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]}",
    ));
    assert!(bound(&world));
}

#[test]
fn statuses_of_targeted_policies_follow_what_they_are_attached_to() {
    let mut world = World::new(&shop());
    let mine = targeted("p", PAGE, "rules: [{}]");
    assert!(said(&mut world, &mine)[0].starts_with("WaypointAccepted False AncestorNotBound"));
    assert_eq!(said(&mut world, &bound_shop(true)), ["WaypointAccepted True Accepted bound to shop/gate"]);
    let key = ObjectKey::new(Kind::Gateway, "shop", "gate");
    let built = world.builder.apply(&update("", &[key]));
    let reasons: Vec<_> = built.verdicts.iter().filter_map(|one| Some(one.condition.as_ref()?.reason)).collect();
    assert!(reasons.contains(&"AncestorNotBound"), "{reasons:?}");
    let told = said(&mut world, &targeted("q", GATE, "action: ALLOW"));
    let missing = "WaypointAccepted False TargetNotFound Gateway shop/gate is not there".to_owned();
    assert!(told.contains(&missing), "{told:?}");
    world.set(&bound_shop(true));
    assert!(world.set(&targeted("q", GATE, "action: DENY")).contains(&"access AuthorizationPolicy shop/q".to_owned()));
}

#[test]
fn a_targeted_policy_that_cannot_be_read_refuses_where_it_is_attached() {
    let mut world = World::new(&bound_shop(true));
    let attached = r#""targetRefs": [{"kind": "Service", "name": "page"}], "action": "ODD""#;
    let odd = broken(1).replace(r#""selector": {"matchLabels": {"app": "page"}}, "action": "ODD""#, attached);
    assert!(odd.contains("targetRefs"));
    let unusable = unusable(&odd);
    let built = world.builder.apply(&unusable);
    let access = built.changes.iter().find_map(|change| match change {
        Change::Access(access) => Some(access.clone()),
        _ => None,
    });
    assert!(access.is_some_and(|access| access.unreadable().is_some_and(|why| why.contains("ODD"))));
    let condition = built.verdicts.iter().find_map(|one| one.condition.as_ref()).unwrap();
    assert_eq!((condition.type_, condition.status, condition.reason), ("WaypointAccepted", "False", "Invalid"));
    // Read once, it stays as it was.
    let good = targeted("p", PAGE, "action: ALLOW, rules: [{}]");
    world.set(&good);
    assert!(world.builder.apply(&unusable).changes.is_empty());
}

#[test]
fn an_authentication_that_cannot_be_read_refuses_what_it_is_attached_to_until_it_can() {
    let mut world = World::new(&bound_shop(true));
    let odd = r#"{"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {"name": "jwt", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "page"}], "jwtRules": [{"issuer": 5}]}}"#;
    let unusable = unusable(odd);
    let built = world.builder.apply(&unusable);
    let access = built.changes.iter().find_map(|change| match change {
        Change::Access(access) => Some(access.clone()),
        _ => None,
    });
    assert!(access.is_some_and(|access| access.unreadable().is_some()), "{:?}", built.changes);
    let condition = built.verdicts.iter().find(|one| one.object.kind == Kind::RequestAuthentication).unwrap();
    let condition = condition.condition.as_ref().unwrap();
    assert_eq!((condition.type_, condition.status, condition.reason), ("WaypointAccepted", "False", "Invalid"));
    assert!(
        condition.message.contains("issuer") && condition.message.contains("is refused until"),
        "{}",
        condition.message
    );
    // Read once, it stays as it was, and says so.
    world.set(&authentication("shop", "jwt", PAGE));
    let built = world.builder.apply(&unusable);
    assert!(built.changes.is_empty());
    assert!(built.verdicts[0].condition.as_ref().unwrap().message.contains("stays in force"));
    let told = world.remove(Kind::RequestAuthentication, "shop", "jwt");
    assert!(told.contains(&"no access RequestAuthentication shop/jwt".to_owned()), "{told:?}");
}

#[test]
fn paths_are_normalized_as_the_meshs_config_says() {
    let mut world = World::new(&shop());
    let config = |level: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: 'pathNormalization: {{normalization: {level}}}'}}\n"
        )
    };
    assert_eq!(world.set(&config("NONE")), ["access MeshConfig istio-system/istio"]);
    assert_eq!(world.set(&config("NONE")), [""; 0]);
    assert_eq!(world.set(&config("BASE")), ["no access MeshConfig istio-system/istio"]);
}

fn authentication(namespace: &str, name: &str, target: &str) -> String {
    let rule = "{issuer: 'https://i', jwks: '{}'}";
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{target}], jwtRules: [{rule}]}}\n"
    )
}

#[test]
fn whose_tokens_are_believed_reaches_waypoints_and_guards() {
    let mut world = World::new(&bound_shop(true));
    let told = world.set(&authentication("shop", "jwt", PAGE));
    assert_eq!(told[..2], ["access RequestAuthentication shop/jwt", "policy shop/stillmesh_waypoint_only_page"]);
    assert_eq!(world.policies("page-0"), ["shop/stillmesh_waypoint_only_page"]);
    let built = world.builder.apply(&update(&authentication("shop", "jwt", GATE), &[]));
    let said = built.verdicts.iter().find(|one| one.object.kind == Kind::RequestAuthentication).unwrap();
    assert_eq!(said.condition.as_ref().map(|one| one.message.as_str()), Some("bound to shop/gate"));
    let told = world.remove(Kind::RequestAuthentication, "shop", "jwt");
    assert!(told.contains(&"no access RequestAuthentication shop/jwt".to_owned()), "{told:?}");
    assert!(world.policies("page-0").is_empty());
}

#[test]
fn a_canary_takes_its_share_and_what_is_guarded_takes_both() {
    let asking = |weight: &str| {
        let labels = "labels: {istio.io/use-waypoint: gate, istio.io/use-waypoint-canary: next}";
        let asks =
            format!("namespace: shop, {labels}, annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}}}");
        service("page", "page", 80).replace("namespace: shop}", &asks)
    };
    let next = |ready| gateway("shop", "next", "istio-waypoint", "service", "{}", ready);
    let mut world = World::new(&bound_shop(true));
    world.set(&targeted("p", PAGE, "rules: [{to: [{operation: {methods: [GET]}}]}]"));
    let mut told = |text: &str| -> (Vec<u32>, usize) {
        world.set(text);
        let service = &world.builder.services[&("shop".into(), "page".into())];
        assert!(service.waypoint.is_some());
        let guard = &world.builder.policies[&PolicyKey::new("shop", "stillmesh_waypoint_only_page")];
        let weights = service.weighted_waypoints.iter().map(|(_, weight)| *weight).collect();
        (weights, guard.rules[0].clauses[0].matches[0].not_principals.len())
    };
    assert_eq!(told(&asking("20")), (Vec::new(), 1), "there is none yet");
    assert_eq!(told(&next(false)), (Vec::new(), 1), "it is not ready");
    assert_eq!(told(&next(true)), (vec![80, 20], 2));
    assert_eq!(told(&asking("0")), (Vec::new(), 1));
    assert_eq!(told(&asking("x")), (Vec::new(), 1));
    let findings: Vec<String> = world.builder.findings().iter().map(ToString::to_string).collect();
    assert!(
        findings.iter().any(|one| one.contains("metadata.labels[\"istio.io/use-waypoint-canary\"]")),
        "{findings:?}"
    );
    world.set(&asking("5"));
    assert!(world.builder.findings().is_empty());
    assert!(!world.remove(Kind::Gateway, "shop", "next").is_empty());
    assert_eq!(world.builder.findings().len(), 1, "what it named is gone");
}

fn telemetry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn telemetry_reaches_waypoints_says_what_holds_and_binds_nothing() {
    let mut world = World::new(&bound_shop(true));
    let logs = "accessLogging: [{providers: [{name: file}]}]";
    let attached = telemetry("t", "shop", &format!("{{targetRefs: [{PAGE}], {logs}}}"));
    let built = world.builder.apply(&update(&attached, &[]));
    let said = built.verdicts.iter().filter_map(|one| one.condition.as_ref());
    let words: Vec<String> = said.map(|one| format!("{} {}", one.reason, one.message)).collect();
    assert!(words.iter().any(|one| one.contains("PartiallyInvalid bound to shop/gate; accessLogging[0]")), "{words:?}");
    assert!(world.policies("page-0").is_empty(), "it guards nothing");
    // Which providers there are is said by the mesh's configuration.
    let mesh = "extensionProviders: [{name: file, envoyFileAccessLog: {path: /dev/stdout}}]";
    let config = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n"
    );
    let built = world.builder.apply(&update(&config, &[]));
    assert_eq!(told(&built.changes), ["access TelemetrySettings istio-system/istio", "access Telemetry shop/t"]);
    let condition = built.verdicts.iter().find(|one| one.object.kind == Kind::Telemetry).unwrap().condition.as_ref();
    assert_eq!(condition.map(|one| one.message.as_str()), Some("bound to shop/gate"));
    assert_eq!(
        world.set(&telemetry("m", "istio-system", "{accessLogging: [{}]}")),
        ["access Telemetry istio-system/m"]
    );
    assert_eq!(world.remove(Kind::Telemetry, "shop", "t"), ["no access Telemetry shop/t"]);
    assert_eq!(
        world.remove(Kind::ConfigMap, "istio-system", "istio"),
        ["no access TelemetrySettings istio-system/istio"]
    );
}
