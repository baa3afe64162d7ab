//! What is shown of a dump: which items, in which order, in which columns (contract 10). Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::dump::Dump;
use super::{Direction, certificates};
use crate::cluster::value::{list, map, text};

/// Which part of a dump, and which of its items.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    Workloads { namespace: Option<String>, node: Option<String>, address: Option<IpAddr> },
    Services { namespace: Option<String> },
    Policies { namespace: Option<String> },
    Certificates,
    Connections { namespace: Option<String>, direction: Option<Direction>, names: bool },
}

/// A part of a dump.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    /// The items, as they are in the dump.
    pub(super) items: Vec<Value>,
    /// The table; its first row are the headings.
    pub(super) rows: Vec<Vec<String>>,
}

impl Filter {
    /// Every part, whole.
    pub(super) fn everything() -> [Self; 5] {
        [
            Self::Workloads { namespace: None, node: None, address: None },
            Self::Services { namespace: None },
            Self::Policies { namespace: None },
            Self::Certificates,
            Self::Connections { namespace: None, direction: None, names: true },
        ]
    }

    /// What its items are called.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Workloads { .. } => "workloads",
            Self::Services { .. } => "services",
            Self::Policies { .. } => "policies",
            Self::Certificates => "certificates",
            Self::Connections { .. } => "connections",
        }
    }

    /// What stands over its section.
    pub(super) fn heading(&self) -> &'static str {
        match self {
            Self::Workloads { .. } => "WORKLOAD",
            Self::Services { .. } => "SERVICE",
            Self::Policies { .. } => "POLICY",
            Self::Certificates => "CERTIFICATE",
            Self::Connections { .. } => "CONNECTIONS",
        }
    }

    /// The part of a dump.
    pub(super) fn section(&self, dump: &Dump) -> Section {
        match self {
            Self::Workloads { namespace, node, address } => {
                workloads(dump, namespace.as_deref(), node.as_deref(), *address)
            }
            Self::Services { namespace } => services(dump, namespace.as_deref()),
            Self::Policies { namespace } => policies(dump, namespace.as_deref()),
            Self::Certificates => certificates::section(dump),
            Self::Connections { namespace, direction, names } => {
                connections(dump, namespace.as_deref(), *direction, *names)
            }
        }
    }
}

/// Headings.
pub(crate) fn heads(names: &[&str]) -> Vec<Vec<String>> {
    vec![names.iter().map(|name| (*name).to_owned()).collect()]
}

fn wanted(filter: Option<&str>, value: &Value) -> bool {
    filter.is_none_or(|filter| text(value) == filter)
}

/// A cell that is never empty.
pub(crate) fn or_none(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn sorted<'a>(mut items: Vec<&'a Value>, keys: [&str; 2]) -> Vec<&'a Value> {
    items.sort_by(|a, b| keys.map(|key| text(&a[key])).cmp(&keys.map(|key| text(&b[key]))));
    items
}

fn workloads(dump: &Dump, namespace: Option<&str>, node: Option<&str>, address: Option<IpAddr>) -> Section {
    let names = Names::of(dump);
    let mut rows = heads(&["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"]);
    let mut items = Vec::new();
    for workload in sorted(dump.list("workloads"), ["namespace", "name"]) {
        let has = |address: IpAddr| list(&workload["workloadIps"]).any(|ip| text(ip).parse() == Ok(address));
        if !wanted(namespace, &workload["namespace"]) || !wanted(node, &workload["node"]) || !address.is_none_or(has) {
            continue;
        }
        let addresses: Vec<&str> = list(&workload["workloadIps"]).map(text).collect();
        rows.push(vec![
            or_none(text(&workload["namespace"])),
            text(&workload["name"]).to_owned(),
            or_none(&addresses.join(",")),
            or_none(text(&workload["node"])),
            names.waypoint(workload),
            workload["protocol"].as_str().unwrap_or("TCP").to_owned(),
        ]);
        items.push(workload.clone());
    }
    Section { items, rows }
}

fn services(dump: &Dump, namespace: Option<&str>) -> Section {
    let names = Names::of(dump);
    let mut rows = heads(&["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"]);
    let mut items = Vec::new();
    for service in sorted(dump.list("services"), ["namespace", "name"]) {
        if !wanted(namespace, &service["namespace"]) {
            continue;
        }
        let vips: Vec<&str> = list(&service["vips"]).map(|vip| bare(text(vip))).collect();
        let endpoints: Vec<&Value> = match &service["endpoints"] {
            Value::Array(endpoints) => endpoints.iter().collect(),
            endpoints => map(endpoints).map(|(_, endpoint)| endpoint).collect(),
        };
        // What is healthy may be left out.
        let healthy = endpoints.iter().filter(|one| one["status"].as_str().is_none_or(|status| status == "Healthy"));
        rows.push(vec![
            text(&service["namespace"]).to_owned(),
            text(&service["name"]).to_owned(),
            or_none(&vips.join(",")),
            names.waypoint(service),
            format!("{}/{}", healthy.count(), endpoints.len()),
        ]);
        items.push(service.clone());
    }
    Section { items, rows }
}

fn policies(dump: &Dump, namespace: Option<&str>) -> Section {
    let mut rows = heads(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    let mut items = Vec::new();
    for policy in sorted(dump.list("policies"), ["namespace", "name"]) {
        if !wanted(namespace, &policy["namespace"]) {
            continue;
        }
        let cell = |key: &str| text(&policy[key]).to_owned();
        rows.push(vec![cell("namespace"), cell("name"), cell("action"), cell("scope")]);
        items.push(policy.clone());
    }
    Section { items, rows }
}

fn connections(dump: &Dump, namespace: Option<&str>, direction: Option<Direction>, resolve: bool) -> Section {
    let names = if resolve { Names::of(dump) } else { Names::default() };
    let mut rows = heads(&["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"]);
    let mut items = Vec::new();
    let mut states: Vec<&Value> = dump.list("workloadState");
    states.sort_by_key(|state| (text(&state["info"]["namespace"]), text(&state["info"]["name"])));
    for state in states {
        if !wanted(namespace, &state["info"]["namespace"]) {
            continue;
        }
        let workload = format!("{}.{}", text(&state["info"]["name"]), text(&state["info"]["namespace"]));
        let mut shown = state.clone();
        for (of, key, word, local, remote) in [
            (Direction::Inbound, "inbound", "Inbound", "actualDst", "src"),
            (Direction::Outbound, "outbound", "Outbound", "src", "actualDst"),
        ] {
            if direction.is_some_and(|direction| direction != of) {
                shown["connections"][key] = json!([]);
                continue;
            }
            for connection in list(&state["connections"][key]) {
                rows.push(vec![
                    workload.clone(),
                    word.to_owned(),
                    names.address(text(&connection[local])),
                    names.address(text(&connection[remote])),
                    names.address(text(&connection["originalDst"])),
                    text(&connection["protocol"]).to_owned(),
                ]);
            }
        }
        items.push(shown);
    }
    Section { items, rows }
}

/// `network/address` without the network.
fn bare(address: &str) -> &str {
    address.rsplit_once('/').map_or(address, |(_, address)| address)
}

/// Names of addresses and waypoints in a dump.
#[derive(Debug, Default)]
struct Names<'a> {
    /// Addresses of services and workloads. Several networks may use one address twice; the first one counts.
    addresses: HashMap<IpAddr, String>,
    /// Services by `namespace/hostname`.
    services: HashMap<String, &'a str>,
}

impl<'a> Names<'a> {
    fn of(dump: &'a Dump) -> Self {
        let mut names = Self::default();
        for service in dump.list("services") {
            let key = format!("{}/{}", text(&service["namespace"]), text(&service["hostname"]));
            names.services.insert(key, text(&service["name"]));
            for vip in list(&service["vips"]) {
                if let Ok(address) = bare(text(vip)).parse() {
                    names.addresses.entry(address).or_insert_with(|| text(&service["hostname"]).to_owned());
                }
            }
        }
        for workload in dump.list("workloads") {
            // Many share their node's address.
            if workload["networkMode"] == "HostNetwork" {
                continue;
            }
            for address in list(&workload["workloadIps"]).filter_map(|ip| text(ip).parse().ok()) {
                let name = || format!("{}.{}", text(&workload["name"]), text(&workload["namespace"]));
                names.addresses.entry(address).or_insert_with(name);
            }
        }
        names
    }

    /// `address:port` with the address's name, where it has one.
    fn address(&self, text: &str) -> String {
        let parsed: Option<std::net::SocketAddr> = text.parse().ok();
        match parsed.and_then(|socket| Some((self.addresses.get(&socket.ip())?, socket.port()))) {
            Some((name, port)) => format!("{name}:{port}"),
            None => or_none(text),
        }
    }

    /// The waypoint of a workload or service.
    fn waypoint(&self, of: &Value) -> String {
        let Some(destination) = of["waypoint"]["destination"].as_str() else { return "None".to_owned() };
        if let Some(name) = self.services.get(destination) {
            return (*name).to_owned();
        }
        match bare(destination).parse::<IpAddr>() {
            // The first label of a host name is the service's name.
            Ok(address) => self.addresses.get(&address).map_or(destination, |name| first_label(name)).to_owned(),
            Err(_) => first_label(bare(destination)).to_owned(),
        }
    }
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}
