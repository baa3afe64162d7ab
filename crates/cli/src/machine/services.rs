//! Services: their addresses, the EndpointSlices that follow the pods, and where each service port leads. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stillmesh_k8s::translate::pod_serves;
use stillmesh_netlink::nft;

use super::ipam::ServicePool;
use super::proxy::{Frontend, Services};

/// Label of a slice with its Service's name.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A pod as far as Services are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Backend<'a> {
    /// The pod; its labels and ports count.
    pub pod: &'a Pod,
    /// Its addresses; empty while it has no network.
    pub ips: &'a [String],
    /// Its node.
    pub node: &'a str,
    /// Takes traffic.
    pub ready: bool,
    /// Is ending.
    pub ending: bool,
}

/// Name, protocol and number of a service port on a pod.
type Target = (String, String, i32);

/// Gives a Service its addresses. The error says what is wrong, and where.
pub fn allocate(service: &mut Service, pool: &mut ServicePool, ipv6: bool) -> Result<(), (String, String)> {
    let key = format!(
        "{}/{}",
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default()
    );
    let spec = service.spec.get_or_insert_default();
    if matches!(spec.cluster_ip.as_deref(), Some("None")) {
        pool.give_back(&key);
        spec.cluster_ips = Some(vec!["None".to_owned()]);
        return Ok(());
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        pool.give_back(&key);
        (spec.cluster_ip, spec.cluster_ips) = (None, None);
        return Ok(());
    }
    let wanted = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
    let (v4, v6) = pool.take(&key, wanted).map_err(|error| ("spec.clusterIP".to_owned(), error))?;
    let dual = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    let families = spec.ip_families.clone().unwrap_or_default();
    let only6 = !dual && families.first().is_some_and(|family| family == "IPv6");
    if !ipv6 && (only6 || spec.ip_family_policy.as_deref() == Some("RequireDualStack")) {
        return Err(("spec.ipFamilies".to_owned(), "IPv6 is off on this machine".to_owned()));
    }
    let ips: Vec<String> = match (only6, dual && ipv6) {
        (true, _) => vec![v6.to_string()],
        (false, true) if families.first().is_some_and(|family| family == "IPv6") => {
            vec![v6.to_string(), v4.to_string()]
        }
        (false, true) => vec![v4.to_string(), v6.to_string()],
        (false, false) => vec![v4.to_string()],
    };
    spec.ip_families = Some(ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned()).collect());
    spec.cluster_ip = ips.first().cloned();
    spec.cluster_ips = Some(ips);
    Ok(())
}

/// The slices of a Service with a selector: one per address family and set of target ports.
pub fn slices(service: &Service, pods: &[Backend<'_>]) -> Vec<EndpointSlice> {
    let (Some(spec), Some(name)) = (&service.spec, &service.metadata.name) else { return Vec::new() };
    let namespace = &service.metadata.namespace;
    let unready = spec.publish_not_ready_addresses == Some(true);
    // By family and target ports.
    let mut groups: BTreeMap<(bool, Vec<Target>), Vec<Endpoint>> = BTreeMap::new();
    for backend in pods {
        if backend.pod.metadata.namespace != *namespace || !pod_serves(service, backend.pod) {
            continue;
        }
        let ports: Vec<_> = spec.ports.iter().flatten().filter_map(|port| resolved(port, backend.pod)).collect();
        for ip in backend.ips {
            let serving = backend.ready;
            let endpoint = Endpoint {
                addresses: vec![ip.clone()],
                conditions: Some(EndpointConditions {
                    ready: Some(unready || serving && !backend.ending),
                    serving: Some(unready || serving),
                    terminating: Some(backend.ending),
                }),
                node_name: Some(backend.node.to_owned()),
                hostname: backend.pod.spec.as_ref().and_then(|spec| {
                    spec.hostname.clone().filter(|_| spec.subdomain.as_deref() == Some(name.as_str()))
                }),
                target_ref: Some(ObjectReference {
                    kind: Some("Pod".to_owned()),
                    name: backend.pod.metadata.name.clone(),
                    namespace: namespace.clone(),
                    uid: backend.pod.metadata.uid.clone(),
                    ..ObjectReference::default()
                }),
                ..Endpoint::default()
            };
            groups.entry((ip.contains(':'), ports.clone())).or_default().push(endpoint);
        }
    }
    let slice = |index: usize, ipv6: bool, ports: Vec<Target>, endpoints: Vec<Endpoint>| {
        let port = |(name, protocol, port): Target| EndpointPort {
            name: Some(name),
            protocol: Some(protocol),
            port: Some(port),
            ..EndpointPort::default()
        };
        EndpointSlice {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{}{index}", if ipv6 { "ipv6-" } else { "ipv4-" })),
                namespace: namespace.clone(),
                labels: Some([(SERVICE_NAME.to_owned(), name.clone())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Service".to_owned(),
                    name: name.clone(),
                    uid: service.metadata.uid.clone().unwrap_or_default(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            address_type: if ipv6 { "IPv6" } else { "IPv4" }.to_owned(),
            endpoints: Some(endpoints),
            ports: Some(ports.into_iter().map(port).collect()),
        }
    };
    let groups = groups.into_iter().enumerate();
    groups.map(|(index, ((ipv6, ports), endpoints))| slice(index, ipv6, ports, endpoints)).collect()
}

/// What a service port is on a pod; `None` where the pod has no port of the target's name.
fn resolved(port: &ServicePort, pod: &Pod) -> Option<Target> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(target)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
            ports
                .find(|one| one.name.as_ref() == Some(target) && one.protocol.as_deref().unwrap_or("TCP") == protocol)?
                .container_port
        }
    };
    Some((port.name.clone().unwrap_or_default(), protocol, number))
}

/// Where each port of each Service's addresses leads: to what its slices say is ready.
pub fn frontends<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: &BTreeMap<(String, String), Vec<&'a EndpointSlice>>,
) -> Services {
    let mut all = Services::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let key =
            (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default());
        let slices = slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let addresses = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok());
        for address in addresses {
            for port in spec.ports.iter().flatten() {
                let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port))
                else {
                    continue;
                };
                let name = port.name.as_deref().unwrap_or_default();
                let endpoints = slices.iter().flat_map(|slice| ready(slice, name, port.protocol.as_deref(), address));
                let frontend = Frontend { address, protocol, port: number };
                all.insert(frontend, endpoints.collect::<BTreeSet<_>>());
            }
        }
    }
    all
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("TCP") => Some(nft::TCP),
        Some("UDP") => Some(nft::UDP),
        Some(_) => None,
    }
}

fn ready(slice: &EndpointSlice, name: &str, protocol: Option<&str>, family: IpAddr) -> Vec<SocketAddr> {
    let number = slice.ports.iter().flatten().find(|port| {
        port.name.as_deref().unwrap_or_default() == name
            && port.protocol.as_deref().unwrap_or("TCP") == protocol.unwrap_or("TCP")
    });
    let Some(number) = number.and_then(|port| u16::try_from(port.port?).ok()) else { return Vec::new() };
    let takes = |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|all| all.ready) != Some(false);
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(takes)
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .filter(|ip| ip.is_ipv4() == family.is_ipv4())
        .map(|ip| SocketAddr::new(ip, number))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, labels: serde_json::Value, port: u16) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]}}))
        .unwrap()
    }

    fn ips(list: &[&str]) -> Vec<String> {
        list.iter().map(|ip| (*ip).to_owned()).collect()
    }

    fn lead(service: &Service, slices: &[EndpointSlice]) -> Vec<(String, Vec<String>)> {
        let key = ("shop".to_owned(), "web".to_owned());
        let by = [(key, slices.iter().collect())].into();
        frontends([service], &by)
            .into_iter()
            .map(|(frontend, to)| {
                let to = to.iter().map(ToString::to_string).collect();
                (SocketAddr::new(frontend.address, frontend.port).to_string(), to)
            })
            .collect()
    }

    #[test]
    fn a_named_port_leads_to_each_pods_own_number() {
        let mut service = service(json!({"selector": {"app": "web"}, "clusterIP": "10.96.3.3",
            "ports": [{"port": 80, "targetPort": "http"}]}));
        allocate(&mut service, &mut ServicePool::default(), true).unwrap();
        let (one, two, other) = (
            pod("one", json!({"app": "web"}), 8080),
            pod("two", json!({"app": "web"}), 9090),
            pod("other", json!({}), 1),
        );
        let (first, second, third) =
            (ips(&["10.244.1.2", "fd00:244:1::2"]), ips(&["10.244.2.2"]), ips(&["10.244.2.3"]));
        let backend = |pod, ips| Backend { pod, ips, node: "node1", ready: true, ending: false };
        let pods = [backend(&one, &first[..]), backend(&two, &second[..]), backend(&other, &third[..])];
        let made = slices(&service, &pods);
        assert_eq!(made.len(), 3);
        let expected = vec![("10.96.3.3:80".to_owned(), ips(&["10.244.1.2:8080", "10.244.2.2:9090"]))];
        assert_eq!(lead(&service, &made), expected);
    }

    #[test]
    fn pods_that_are_not_ready_or_ending_get_no_new_connections() {
        let mut web = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        allocate(&mut web, &mut ServicePool::default(), true).unwrap();
        let (pod, ip) = (pod("one", json!({"app": "web"}), 80), ips(&["10.244.1.2"]));
        for (ready, ending, takes) in [(true, false, 1), (false, false, 0), (true, true, 0)] {
            let made = slices(&web, &[Backend { pod: &pod, ips: &ip, node: "n", ready, ending }]);
            assert_eq!(lead(&web, &made)[0].1.len(), takes, "{ready} {ending}");
        }
    }

    #[test]
    fn families_are_those_that_were_asked_for() {
        let given = |spec: serde_json::Value, ipv6| {
            let mut one = service(spec);
            allocate(&mut one, &mut ServicePool::default(), ipv6)
                .map(|()| one.spec.unwrap().cluster_ips.unwrap_or_default())
        };
        let families = |ips: Vec<String>| ips.iter().map(|ip| if ip.contains(':') { 6 } else { 4 }).collect::<Vec<_>>();
        assert_eq!(families(given(json!({}), true).unwrap()), [4]);
        assert_eq!(families(given(json!({"ipFamilyPolicy": "PreferDualStack"}), true).unwrap()), [4, 6]);
        assert_eq!(families(given(json!({"ipFamilyPolicy": "PreferDualStack"}), false).unwrap()), [4]);
        assert_eq!(families(given(json!({"ipFamilies": ["IPv6"]}), true).unwrap()), [6]);
        assert!(given(json!({"ipFamilies": ["IPv6"]}), false).is_err());
        assert_eq!(given(json!({"clusterIP": "None"}), true).unwrap(), ["None"]);
        assert!(given(json!({"clusterIP": "1.2.3.4"}), true).unwrap_err().1.contains("10.96.0.0/16"));
    }
}
