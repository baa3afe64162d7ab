use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service as KubeService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use stillmesh_core::model::{
    Health, HealthPolicy, IpFamilies, Mode, NetworkMode, PortMapping, RoutingScope, TunnelProtocol, Visibility,
    WorkloadType,
};

use super::*;
use crate::object::Object;

fn object(text: &str) -> Object {
    let mut found = crate::parse::documents("a.yaml", text);
    assert_eq!(found.objects.len(), 1, "{:?}", found.findings);
    found.objects.remove(0).object
}

fn pod(extra: &str, status: &str) -> Pod {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: page-7d9-x\n  namespace: shop\n{extra}spec:\n  nodeName: node-1\n  containers:\n  \
         - name: main\n    ports: [{{name: web, containerPort: 8080}}, {{name: dns, containerPort: 53, protocol: UDP}}]\nstatus: {status}\n"
    );
    match object(&text) {
        Object::Pod(pod) => (*pod).clone(),
        other => panic!("{other:?}"),
    }
}

fn kube_service(spec: &str, annotations: &str) -> KubeService {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: page, namespace: shop, annotations: {annotations}}}\nspec: {spec}\n"
    );
    match object(&text) {
        Object::Service(service) => (*service).clone(),
        other => panic!("{other:?}"),
    }
}

const RUNNING: &str = "{phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}";

fn one(pod: &Pod) -> stillmesh_core::model::Workload {
    workload(pod, None, Attached::default(), &Mesh::default()).unwrap()
}

#[test]
fn a_pod_becomes_a_workload() {
    let pod = pod(
        "  labels: {app: page, version: v1, pod-template-hash: 7d9}\n  annotations: {ambient.istio.io/redirection: enabled}\n  \
         ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: page-7d9, uid: u, controller: true}]\n",
        RUNNING,
    );
    let found = one(&pod);
    assert_eq!(found.uid.to_string(), "Kubernetes//Pod/shop/page-7d9-x");
    assert_eq!(found.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(found.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!((found.tunnel_protocol, found.native_tunnel), (TunnelProtocol::Hbone, false));
    assert_eq!((&*found.workload_name, found.workload_type), ("page", WorkloadType::Deployment));
    assert_eq!((&*found.canonical_name, &*found.canonical_revision), ("page", "v1"));
    assert_eq!((&*found.node, found.health, found.network_mode), ("node-1", Health::Healthy, NetworkMode::Standard));
}

#[test]
fn only_an_accepted_pod_is_reached_by_tunnel() {
    let mode = |extra: &str| (one(&pod(extra, RUNNING)).tunnel_protocol, one(&pod(extra, RUNNING)).native_tunnel);
    assert_eq!(mode(""), (TunnelProtocol::None, false));
    assert_eq!(mode("  labels: {istio.io/dataplane-mode: ambient}\n"), (TunnelProtocol::None, false));
    assert_eq!(mode("  annotations: {ambient.istio.io/redirection: pending}\n"), (TunnelProtocol::None, false));
    assert_eq!(mode("  annotations: {ambient.istio.io/redirection: enabled}\n"), (TunnelProtocol::Hbone, false));
    assert_eq!(mode("  labels: {networking.istio.io/tunnel: http}\n"), (TunnelProtocol::Hbone, true));
}

#[test]
fn pods_without_address_or_at_their_end_are_no_workloads_and_unready_ones_are_unhealthy() {
    let health =
        |status: &str| workload(&pod("", status), None, Attached::default(), &Mesh::default()).map(|one| one.health);
    assert_eq!(health("{}"), None);
    assert_eq!(health("{podIP: 10.0.0.1, phase: Succeeded}"), None);
    assert_eq!(health("{podIP: nonsense}"), None);
    assert_eq!(health("{podIP: 10.0.0.1, phase: Running}"), Some(Health::Unhealthy));
    assert_eq!(health(RUNNING), Some(Health::Healthy));
    let leaving = pod("  deletionTimestamp: '2026-01-01T00:00:00Z'\n", RUNNING);
    assert_eq!(one(&leaving).health, Health::Unhealthy);
}

#[test]
fn owners_are_found_behind_what_they_generate() {
    let owned = |kind: &str, name: &str, labels: &str| {
        let extra = format!(
            "  labels: {labels}\n  ownerReferences: [{{apiVersion: x/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]\n"
        );
        let (name, kind) = owner(&pod(&extra, "{}"));
        (name.to_string(), kind)
    };
    let is = |name: &str, kind| (name.to_owned(), kind);
    assert_eq!(owned("ReplicaSet", "page-7d9", "{pod-template-hash: 7d9}"), is("page", WorkloadType::Deployment));
    assert_eq!(owned("ReplicaSet", "page-7d9", "{}"), is("page-7d9", WorkloadType::Pod));
    assert_eq!(owned("ReplicaSet", "page-7d9", "{pod-template-hash: '0'}"), is("page-7d9", WorkloadType::Pod));
    assert_eq!(owned("Deployment", "page", "{}"), is("page", WorkloadType::Deployment));
    assert_eq!(owned("Job", "clean-28000000", "{}"), is("clean", WorkloadType::CronJob));
    assert_eq!(owned("Job", "clean-2", "{}"), is("clean-2", WorkloadType::Job));
    assert_eq!(owned("StatefulSet", "db", "{}"), is("db", WorkloadType::Pod));
    assert_eq!(owned("StatefulSet", "db", "{service.istio.io/workload-name: my-db}"), is("my-db", WorkloadType::Pod));
    assert_eq!(owner(&pod("", "{}")), ("page-7d9-x".into(), WorkloadType::Pod));
}

#[test]
fn a_nodes_labels_say_where_its_pods_are() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: node, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}\n";
    let Object::Node(node) = object(text) else { panic!() };
    let found = workload(&pod("", RUNNING), Some(&node), Attached::default(), &Mesh::default()).unwrap();
    assert_eq!((&*found.locality.region, &*found.locality.zone, &*found.locality.subzone), ("r", "z", "s"));
    assert_eq!(locality(&Node::default()), Default::default());
}

#[test]
fn a_service_has_its_addresses_ports_and_families() {
    let spec = "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00:96::1'], ipFamilies: [IPv4, IPv6], ports: [{name: http, port: 80, targetPort: \
                web}, {name: grpc-x, port: 90, targetPort: 9090}, {name: d, port: 53, protocol: UDP}, {name: tls, port: 443}]}";
    let found = service(&kube_service(spec, "{}"), None, None, &Mesh::default()).unwrap();
    assert_eq!(found.key.to_string(), "shop/page.shop.svc.cluster.local");
    assert_eq!(found.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/10.96.0.1", "/fd00:96::1"]);
    let ports: Vec<(u16, u16, i32)> = found
        .ports
        .iter()
        .map(|port| (port.mapping.service_port, port.mapping.target_port, port.app_protocol))
        .collect();
    assert_eq!(ports, [(80, 0, 1), (90, 9090, 3), (443, 443, 5)]);
    assert_eq!((found.ip_families, found.canonical, found.visibility), (IpFamilies::Dual, true, Visibility::Public));
}

#[test]
fn headless_services_have_no_address_and_names_that_lead_out_are_none() {
    let headless = service(
        &kube_service("{clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}", "{}"),
        None,
        None,
        &Mesh::default(),
    );
    assert_eq!(headless.unwrap().vips, []);
    let external = kube_service("{type: ExternalName, externalName: example.org}", "{}");
    assert_eq!(service(&external, None, None, &Mesh::default()), None);
    assert!(!pod_serves(&external, &pod("", RUNNING)));
}

#[test]
fn preferences_come_from_the_service_then_its_annotation_then_its_namespace() {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    let mut namespace = Namespace::default();
    namespace.metadata.annotations =
        Some([("networking.istio.io/traffic-distribution".to_owned(), "prefersamenode".to_owned())].into());
    let found = |spec: &str, annotations: &str, namespace: Option<&Namespace>| {
        let spec = format!("{{ports: [{{port: 80}}]{spec}}}");
        let lb = service(&kube_service(&spec, annotations), namespace, None, &Mesh::default()).unwrap().load_balancing;
        (lb.mode, lb.routing_preferences, lb.health_policy)
    };
    let healthy = HealthPolicy::OnlyHealthy;
    let close = (Mode::Failover, vec![Network, Region, Zone], healthy);
    let node = (Mode::Failover, vec![Network, Region, Zone, Subzone, Node], healthy);
    let annotation = "{networking.istio.io/traffic-distribution: PreferClose}";
    assert_eq!(found("", "{}", None), (Mode::Standard, vec![], healthy));
    assert_eq!(found(", trafficDistribution: PreferSameZone", "{}", None), close);
    assert_eq!(found(", trafficDistribution: PreferSameNode", annotation, None), node);
    assert_eq!(found("", annotation, Some(&namespace)), close);
    assert_eq!(found("", "{}", Some(&namespace)), node);
    assert_eq!(found(", internalTrafficPolicy: Local", annotation, None), (Mode::Strict, vec![Node], healthy));
    assert_eq!(found(", publishNotReadyAddresses: true", "{}", None).2, HealthPolicy::AllowAll);
}

#[test]
fn a_service_exported_to_its_own_namespace_is_visible_there_only() {
    let found = |annotation: &str| {
        let annotation = format!("{{networking.istio.io/exportTo: '{annotation}'}}");
        service(&kube_service("{ports: [{port: 80}]}", &annotation), None, None, &Mesh::default()).unwrap().visibility
    };
    assert_eq!(found("."), Visibility::Namespace);
    assert_eq!(found("shop, ~"), Visibility::Namespace);
    assert_eq!(found("*"), Visibility::Public);
    assert_eq!(found(".,other"), Visibility::Public);
    assert_eq!(found(""), Visibility::Public);
}

#[test]
fn named_ports_lead_to_each_endpoints_own_port() {
    let service = kube_service(
        "{selector: {app: page}, ports: [{name: a, port: 80, targetPort: web}, {name: b, port: 81, targetPort: none}, {name: c, port: 82, targetPort: dns}, {name: d, port: 83}]}",
        "{}",
    );
    let page = pod("  labels: {app: page}\n", RUNNING);
    assert!(pod_serves(&service, &page));
    assert!(!pod_serves(&service, &pod("", RUNNING)));
    let is = |service_port, target_port| PortMapping { service_port, target_port };
    assert_eq!(endpoint_ports(&service, &page), [is(80, 8080), is(83, 83)]);
    assert!(!pod_serves(&kube_service("{ports: [{port: 80}]}", "{}"), &page), "no selector picks nothing");
}

#[test]
fn slices_lead_to_pods_and_to_addresses_that_are_no_pods() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: page}}\n\
                addressType: IPv4\nports: [{name: a, port: 9000}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}\n\
                - {addresses: [192.0.2.1], conditions: {ready: false}, nodeName: node, zone: z}\n- {addresses: [192.0.2.2]}\n";
    let Object::EndpointSlice(slice) = object(text) else { panic!() };
    let slice: &EndpointSlice = &slice;
    assert_eq!(slice_service(slice), Some("page"));
    let found = slice_endpoints(slice);
    assert_eq!(found.pods, ["p"]);
    assert_eq!(found.others.len(), 2);
    let ports = slice_ports(&kube_service("{ports: [{name: a, port: 80}, {name: b, port: 81}]}", "{}"), slice);
    assert_eq!(ports, [PortMapping { service_port: 80, target_port: 9000 }]);
    let (endpoint, addresses) = found.others[0].clone();
    let workload = slice_workload(slice, endpoint, addresses, vec![], &Mesh::default()).unwrap();
    assert_eq!(workload.uid.to_string(), "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.1");
    assert_eq!(workload.network_mode, stillmesh_core::model::NetworkMode::HostNetwork);
    assert_eq!((workload.health, &*workload.locality.zone, &*workload.node), (Health::Unhealthy, "z", "node"));
}

proptest! {
    #[test]
    fn odd_numbers_never_panic(port in any::<i32>(), target in any::<i32>(), ips in proptest::collection::vec("\\PC{0,12}", 0..3)) {
        let mut written = kube_service("{selector: {app: page}, ports: [{port: 80}]}", "{}");
        let spec = written.spec.as_mut().unwrap();
        let one = &mut spec.ports.as_mut().unwrap()[0];
        one.port = port;
        one.target_port = Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target));
        spec.cluster_ips = Some(ips.clone());
        let mut page = pod("  labels: {app: page}\n", RUNNING);
        page.status.as_mut().unwrap().pod_ip = ips.first().cloned();
        page.metadata.name = None;
        for mapping in endpoint_ports(&written, &page) {
            prop_assert!(mapping.service_port > 0 && mapping.target_port > 0);
        }
        let translated = service(&written, None, None, &Mesh::default()).unwrap();
        prop_assert!(translated.ports.iter().all(|port| port.mapping.service_port > 0));
        workload(&page, None, Attached::default(), &Mesh::default());
    }
}
