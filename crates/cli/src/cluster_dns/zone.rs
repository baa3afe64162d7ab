//! What the names of a cluster mean (Kubernetes DNS-based service discovery, version 1.1.0). Pure: objects in, answers out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_objects::Change;

/// The label that names the service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Addresses of both families; the caller picks.
    Addresses(Vec<IpAddr>),
    /// Ports and the hosts behind them.
    Services(Vec<Target>),
    /// Another name.
    Alias(String),
    /// The host names of an address.
    Pointers(Vec<String>),
    /// A text.
    Text(String),
    /// A name that exists without records of its own (an empty non-terminal, RFC 8020).
    Nothing,
}

/// One host and port of an SRV answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

/// A service with what is needed to answer for it.
#[derive(Clone, Debug, Default)]
struct Entry {
    vips: Vec<IpAddr>,
    alias: Option<String>,
    /// Name, protocol and port, as the service has them.
    ports: Vec<(String, String, u16)>,
    publish_unready: bool,
}

/// One endpoint of a headless service.
#[derive(Clone, Debug)]
struct Endpoint {
    address: IpAddr,
    hostname: String,
    ready: bool,
    ports: Vec<(String, String, u16)>,
}

/// The cluster's names.
#[derive(Debug)]
pub(super) struct Zone {
    domain: String,
    services: HashMap<(String, String), Entry>,
    slices: HashMap<ObjectKey, ((String, String), Vec<Endpoint>)>,
    pods: HashMap<ObjectKey, Vec<IpAddr>>,
}

impl Zone {
    pub(super) fn new(domain: &str) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        Self { domain, services: HashMap::new(), slices: HashMap::new(), pods: HashMap::new() }
    }

    /// Takes what changed; kinds without names are passed over.
    pub(super) fn take(&mut self, change: &Change) {
        match change {
            Change::Set(placed) => self.set(&placed.object),
            Change::Removed(key) => self.remove(key),
        }
    }

    fn set(&mut self, object: &Object) {
        let key = object.key();
        match object {
            Object::Service(service) => {
                self.services.insert((key.namespace.to_string(), key.name.to_string()), entry(service));
            }
            Object::EndpointSlice(slice) => {
                let labels = slice.metadata.labels.as_ref();
                if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) {
                    let service = (key.namespace.to_string(), service.clone());
                    self.slices.insert(key, (service, endpoints(slice)));
                } else {
                    self.slices.remove(&key);
                }
            }
            Object::Pod(pod) => {
                self.pods.insert(key, pod_addresses(pod));
            }
            _ => {}
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Service => drop(self.services.remove(&(key.namespace.to_string(), key.name.to_string()))),
            Kind::EndpointSlice => drop(self.slices.remove(key)),
            Kind::Pod => drop(self.pods.remove(key)),
            _ => {}
        }
    }

    /// What a name means; `None` where it does not exist. `name` is without its final dot, in lower case.
    pub(super) fn meaning(&self, name: &str) -> Option<Meaning> {
        if let Some(address) = reverse(name) {
            return self.pointers(address);
        }
        let inside = match name.strip_suffix(&self.domain) {
            Some("") => return Some(Meaning::Nothing),
            Some(rest) => rest.strip_suffix('.')?,
            None => return None,
        };
        let labels: Vec<&str> = inside.rsplit('.').collect();
        match labels.as_slice() {
            ["dns-version"] => Some(Meaning::Text("1.1.0".to_owned())),
            ["svc" | "pod"] => Some(Meaning::Nothing),
            ["svc", namespace] => self.knows_namespace(namespace).then_some(Meaning::Nothing),
            ["svc", namespace, service] => self.service(namespace, service),
            ["svc", namespace, service, last] => self.endpoint_or_protocol(namespace, service, last),
            ["svc", namespace, service, protocol, port] => self.port(namespace, service, protocol, port),
            ["pod", namespace, dashed] => self.pod(namespace, dashed),
            _ => None,
        }
    }

    /// Whether the cluster answers for a name at all: else the question belongs elsewhere.
    pub(super) fn owns(&self, name: &str) -> bool {
        let inside = |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        inside(&self.domain) || reverse(name).is_some()
    }

    fn knows_namespace(&self, namespace: &str) -> bool {
        self.services.keys().any(|(owner, _)| owner == namespace)
    }

    fn entry(&self, namespace: &str, service: &str) -> Option<&Entry> {
        self.services.get(&(namespace.to_owned(), service.to_owned()))
    }

    fn service(&self, namespace: &str, service: &str) -> Option<Meaning> {
        let entry = self.entry(namespace, service)?;
        if let Some(alias) = &entry.alias {
            return Some(Meaning::Alias(alias.clone()));
        }
        if !entry.vips.is_empty() {
            return Some(Meaning::Addresses(entry.vips.clone()));
        }
        let addresses = self.endpoints(namespace, service, entry).map(|endpoint| endpoint.address).collect();
        Some(Meaning::Addresses(addresses))
    }

    fn endpoints<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
        entry: &'a Entry,
    ) -> impl Iterator<Item = &'a Endpoint> + 'a {
        let of_service = move |owner: &(String, String)| owner.0 == namespace && owner.1 == service;
        let slices = self.slices.values().filter(move |(owner, _)| of_service(owner));
        slices.flat_map(|(_, endpoints)| endpoints).filter(|endpoint| endpoint.ready || entry.publish_unready)
    }

    fn endpoint_or_protocol(&self, namespace: &str, service: &str, last: &str) -> Option<Meaning> {
        let entry = self.entry(namespace, service)?;
        if last.starts_with('_') {
            let has = entry.ports.iter().any(|(_, protocol, _)| last.strip_prefix('_') == Some(protocol));
            return has.then_some(Meaning::Nothing);
        }
        let named = self.endpoints(namespace, service, entry).filter(|endpoint| endpoint.hostname == last);
        let addresses: Vec<IpAddr> = named.map(|endpoint| endpoint.address).collect();
        (!addresses.is_empty()).then_some(Meaning::Addresses(addresses))
    }

    fn port(&self, namespace: &str, service: &str, protocol: &str, port: &str) -> Option<Meaning> {
        let entry = self.entry(namespace, service)?;
        let (protocol, port) = (protocol.strip_prefix('_')?, port.strip_prefix('_')?);
        let wanted = |(name, of, _): &&(String, String, u16)| name == port && of == protocol;
        let base = format!("{service}.{namespace}.svc.{}", self.domain);
        let targets: Vec<Target> = if entry.vips.is_empty() {
            let hosts = self.endpoints(namespace, service, entry);
            let of_host = |endpoint: &Endpoint| {
                let port = endpoint.ports.iter().find(wanted).map(|(_, _, port)| *port)?;
                Some(Target { host: format!("{}.{base}", endpoint.hostname), port })
            };
            hosts.filter_map(of_host).collect()
        } else {
            entry.ports.iter().filter(wanted).map(|(_, _, port)| Target { host: base.clone(), port: *port }).collect()
        };
        (!targets.is_empty()).then_some(Meaning::Services(targets))
    }

    fn pod(&self, namespace: &str, dashed: &str) -> Option<Meaning> {
        let in_namespace = self.pods.iter().filter(|(key, _)| &*key.namespace == namespace);
        let mut addresses = in_namespace.flat_map(|(_, addresses)| addresses);
        let address = addresses.find(|address| dashes(address) == dashed)?;
        Some(Meaning::Addresses(vec![*address]))
    }

    fn pointers(&self, address: IpAddr) -> Option<Meaning> {
        let mut names: BTreeMap<String, ()> = BTreeMap::new();
        for ((namespace, service), entry) in &self.services {
            let base = format!("{service}.{namespace}.svc.{}", self.domain);
            if entry.vips.contains(&address) {
                names.insert(base, ());
            } else if entry.vips.is_empty() {
                let mut endpoints = self.endpoints(namespace, service, entry);
                if let Some(endpoint) = endpoints.find(|endpoint| endpoint.address == address) {
                    names.insert(format!("{}.{base}", endpoint.hostname), ());
                }
            }
        }
        (!names.is_empty()).then(|| Meaning::Pointers(names.into_keys().collect()))
    }
}

fn entry(service: &Service) -> Entry {
    let Some(spec) = &service.spec else { return Entry::default() };
    let mut vips: Vec<IpAddr> = Vec::new();
    for vip in spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|vip| vip.parse().ok()) {
        if !vips.contains(&vip) {
            vips.push(vip);
        }
    }
    let external = spec.type_.as_deref() == Some("ExternalName");
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port).ok()?))
    };
    Entry {
        vips,
        alias: spec.external_name.clone().filter(|_| external).map(|name| name.trim_end_matches('.').to_owned()),
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        publish_unready: spec.publish_not_ready_addresses.unwrap_or(false),
    }
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
    };
    let ports: Vec<_> = slice.ports.iter().flatten().filter_map(port).collect();
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        for address in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
            let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashes(&address));
            found.push(Endpoint { address, hostname, ready, ports: ports.clone() });
        }
    }
    found
}

fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let several = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    several.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect()
}

/// An address as one label: dots and colons become dashes.
fn dashes(address: &IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = octets.rsplit('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u8> =
        nibbles.rsplit('.').map(|digit| u8::from_str_radix(digit, 16)).collect::<Result<_, _>>().ok()?;
    let bytes = nibbles.chunks_exact(2).map(|pair| match pair {
        [high, low] if *high < 16 && *low < 16 => Some(high << 4 | low),
        _ => None,
    });
    let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
    (nibbles.len() == 32).then(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))?
}

#[cfg(test)]
mod tests;
