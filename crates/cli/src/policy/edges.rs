//! The edges of a mesh: who may ask, whom, and for what. Each is decided by [`walk`], as a single one is by `stillmesh simulate`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use stillmesh_core::model::access::{Access, Attachment, Wanted};
use stillmesh_core::model::{GatewayDestination, ServiceKey, TunnelProtocol, Workload};

use crate::offline::Known;
use crate::simulate::request::Read;
use crate::simulate::walk::{self, Asked, Client, To};

/// The client that is in no mesh.
const OUTSIDE: &str = "outside (clear text)";
/// Its address (RFC 5737).
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// How often what is left to chance is drawn for each edge.
const DRAWS: u64 = 8;
/// Methods and paths of one service that are tried.
const MOST_METHODS: usize = 6;
const MOST_PATHS: usize = 16;

/// A destination by name, the same in both meshes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    /// A port of a service.
    Service(ServiceKey, u16),
    /// A port of a workload: namespace, the Deployment's or pod's name, port.
    Workload(String, String, u16),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key, port) => write!(f, "service {}:{port}", key.hostname),
            Self::Workload(namespace, name, port) => write!(f, "workload {namespace}/{name}:{port}"),
        }
    }
}

/// What is said of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) reason: String,
    pub(super) because: String,
    /// The policy that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) object: String,
}

/// Whether it passes; from better to worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Always.
    Allowed,
    /// It depends on what is left to chance: the endpoint, a weight.
    Mixed,
    /// Never.
    Refused,
}

/// A workload that stands for all of its Deployment, and the ports that are known of it.
type Ported<'a> = (&'a Arc<Workload>, BTreeSet<u16>);

/// One of both meshes, by names.
pub(super) struct World<'a> {
    known: &'a Known,
    /// One workload for each identity.
    clients: BTreeMap<String, &'a Arc<Workload>>,
    /// One for each Deployment.
    workloads: BTreeMap<(String, String), Ported<'a>>,
}

impl<'a> World<'a> {
    pub(super) fn new(known: &'a Known) -> Self {
        let captured = || known.workloads.iter().filter(|one| one.tunnel_protocol == TunnelProtocol::Hbone);
        let mut clients = BTreeMap::new();
        let mut workloads: BTreeMap<_, Ported<'_>> = BTreeMap::new();
        for workload in captured().filter(|workload| !workload.native_tunnel) {
            clients.entry(workload.identity().to_string()).or_insert(workload);
            let key = (workload.namespace.to_string(), workload.workload_name.to_string());
            let (_, ports) = workloads.entry(key).or_insert_with(|| (workload, BTreeSet::new()));
            ports.extend(declared(known, workload));
            for (service, mapped) in &workload.services {
                ports.extend(mapped.iter().map(|port| port.target_port));
                let service = known.snapshot.service(service);
                ports.extend(service.iter().flat_map(|one| &one.ports).map(|port| port.mapping.target_port));
            }
            ports.remove(&0);
        }
        Self { known, clients, workloads }
    }

    fn destinations(&self) -> impl Iterator<Item = Name> + '_ {
        let services = self.known.services.iter().flat_map(|service| {
            service.ports.iter().map(|port| Name::Service(service.key.clone(), port.mapping.service_port))
        });
        let workloads = self.workloads.iter().flat_map(|((namespace, name), (_, ports))| {
            ports.iter().map(|port| Name::Workload(namespace.clone(), name.clone(), *port))
        });
        services.chain(workloads)
    }

    /// Both ends of an edge; `None` where one is not here.
    pub(super) fn ends(&self, client: &str, to: &Name) -> Option<(Client, To)> {
        let client = match client {
            OUTSIDE => Client { workload: None, ip: NOBODY },
            identity => {
                let workload = Arc::clone(self.clients.get(identity)?);
                let ip = workload.addresses.first().copied().unwrap_or(NOBODY);
                Client { workload: Some(workload), ip }
            }
        };
        let to = match to {
            Name::Service(key, port) => {
                let service = self.known.snapshot.service(key)?.clone();
                service.port(*port)?;
                To::Service { service, port: *port }
            }
            Name::Workload(namespace, name, port) => {
                let (workload, ports) = self.workloads.get(&(namespace.clone(), name.clone()))?;
                let port = ports.get(port)?;
                To::Address(SocketAddr::new(*workload.addresses.first()?, *port))
            }
        };
        Some((client, to))
    }

    /// What is said of an edge.
    pub(super) fn judge(&self, (client, to): &(Client, To), request: Option<&Read>) -> Judged {
        let asked = Asked { snapshot: &self.known.snapshot, client, to, request, server_name: None };
        let ways: Vec<_> = (0..DRAWS).map(|draw| walk::walk(&asked, walk::entropy(draw))).collect();
        let refused = ways.iter().filter(|way| way.is_refused()).count();
        let verdict = match refused {
            0 => Verdict::Allowed,
            all if all == ways.len() => Verdict::Refused,
            _ => Verdict::Mixed,
        };
        let told = ways.iter().find(|way| way.is_refused()).or(ways.first()).and_then(|way| way.decisive());
        let told = told.cloned().unwrap_or_default();
        Judged { verdict, reason: told.reason, because: told.because, object: told.object }
    }
}

/// All edges of either, in order.
pub(super) fn all(old: &World<'_>, new: &World<'_>) -> Vec<(String, Name)> {
    let clients: BTreeSet<&String> = old.clients.keys().chain(new.clients.keys()).collect();
    let to: BTreeSet<Name> = old.destinations().chain(new.destinations()).collect();
    let clients: Vec<String> = clients.into_iter().cloned().chain([OUTSIDE.to_owned()]).collect();
    to.iter().flat_map(|to| clients.iter().map(move |client| (client.clone(), to.clone()))).collect()
}

/// The requests that are tried of each service.
#[derive(Debug, Default)]
pub(super) struct Requests {
    of: BTreeMap<ServiceKey, Vec<Option<Read>>>,
    none: Vec<Option<Read>>,
}

impl Requests {
    /// Of a destination; one without a request where policies name nothing of requests.
    pub(super) fn of(&self, to: &Name) -> &[Option<Read>] {
        match to {
            Name::Service(key, _) => self.of.get(key).unwrap_or(&self.none),
            Name::Workload(..) => &self.none,
        }
    }
}

/// What policies of either mesh name of requests to each service.
pub(super) fn requests(old: &World<'_>, new: &World<'_>) -> Requests {
    let mut named: BTreeMap<ServiceKey, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for world in [old, new] {
        for service in &world.known.services {
            let gateways: Vec<&ServiceKey> = service
                .waypoints()
                .filter_map(|gateway| match &gateway.destination {
                    GatewayDestination::Hostname(key) => Some(key),
                    GatewayDestination::Address(_) => None,
                })
                .collect();
            let is_about = |one: &&Arc<Access>| match one.attached() {
                Some(Attachment::To(keys)) => keys.iter().any(|key| *key == service.key || gateways.contains(&key)),
                Some(Attachment::Everything) => true,
                None => false,
            };
            for access in world.known.accesses.iter().filter(is_about) {
                let (methods, paths) = named.entry(service.key.clone()).or_default();
                let Access::Policy(policy) = &**access else { continue };
                let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
                let conditions = clauses.flat_map(|clause| &clause.alternatives).flat_map(|one| &one.conditions);
                for condition in conditions {
                    let values = condition.wanted.values();
                    match &condition.wanted {
                        Wanted::Method(_) => methods.extend(values.iter().map(|value| example(value, "X"))),
                        Wanted::Path(_) => paths.extend(values.iter().map(|value| example(value, "x"))),
                        _ => {}
                    }
                }
            }
        }
    }
    let mut requests = Requests { of: BTreeMap::new(), none: vec![None] };
    for (service, (methods, paths)) in named {
        let usual = ["GET", "POST"].map(str::to_owned).into_iter();
        let methods: BTreeSet<String> = methods.into_iter().take(MOST_METHODS - 2).chain(usual).collect();
        let paths: BTreeSet<String> = paths.into_iter().take(MOST_PATHS - 1).chain(["/".to_owned()]).collect();
        let each = methods.iter().flat_map(|method| paths.iter().map(move |path| (method, path)));
        let read = |(method, path): (&String, &String)| {
            Some(Read { method: method.parse().ok()?, target: path.parse().ok()?, ..Read::default() })
        };
        requests.of.insert(service, each.filter_map(read).map(Some).collect());
    }
    requests
}

/// A text that a pattern takes: `x*`, `*x`, `*`, and `{*}` and `{**}` of a path.
fn example(pattern: &str, filler: &str) -> String {
    let text = pattern.replace("{**}", filler).replace("{*}", filler).replace('*', filler);
    if filler == "x" && !text.starts_with('/') { format!("/{text}") } else { text }
}

/// The TCP ports that a workload's containers declare.
fn declared(known: &Known, workload: &Workload) -> Vec<u16> {
    let is_it = |object: &&Value| {
        object["kind"] == "Pod"
            && object["metadata"]["name"] == *workload.name
            && object["metadata"]["namespace"] == *workload.namespace
    };
    let pod = known.objects.iter().find(is_it);
    let containers = pod.and_then(|pod| pod["spec"]["containers"].as_array()).into_iter().flatten();
    let ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
    let is_tcp = |port: &&Value| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
    ports.filter(is_tcp).filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok()).collect()
}
