//! What an API server would refuse although the types accept it: names, ports, words out of a closed set.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::names::Rule;
use super::node::{Node, Place, Value};
use crate::object::Kind;
use crate::same_node::{DIRECT, SAME_NODE, TUNNEL};

/// Something that an object must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub at: Place,
    pub code: &'static str,
    pub path: String,
    pub message: String,
    pub hint: String,
    /// The object is used all the same.
    pub harmless: bool,
}

/// Collects flaws of one object.
#[derive(Debug, Default)]
pub(super) struct Flaws(pub Vec<Flaw>);

impl Flaws {
    pub fn add(&mut self, code: &'static str, at: Place, path: &str, message: impl Into<String>, hint: &str) {
        let (path, message, hint) = (path.to_owned(), message.into(), hint.to_owned());
        self.0.push(Flaw { at, code, path, message, hint, harmless: false });
    }

    pub fn warn(&mut self, code: &'static str, at: Place, path: &str, message: impl Into<String>, hint: &str) {
        self.add(code, at, path, message, hint);
        if let Some(flaw) = self.0.last_mut() {
            flaw.harmless = true;
        }
    }
}

/// Checks an object of a kind; `root` is its whole document.
pub(super) fn object(kind: Kind, root: &Node, flaws: &mut Flaws) {
    metadata(kind, root, flaws);
    match kind {
        Kind::Namespace => namespace(root, flaws),
        Kind::Service => service(root, flaws),
        Kind::Pod => pod_spec(root, "spec", flaws),
        Kind::Deployment => deployment(root, flaws),
        Kind::EndpointSlice => endpoint_slice(root, flaws),
        Kind::AuthorizationPolicy => super::check_istio::authorization_policy(root, flaws),
        Kind::PeerAuthentication => super::check_istio::peer_authentication(root, flaws),
        Kind::RequestAuthentication => super::check_istio::request_authentication(root, flaws),
        Kind::GatewayClass => super::check_gateway::gateway_class(root, flaws),
        Kind::Gateway => super::check_gateway::gateway(root, flaws),
        Kind::GrpcRoute => super::check_gateway::grpc_route(root, flaws),
        Kind::HttpRoute => super::check_gateway::http_route(root, flaws),
        Kind::TlsRoute => super::check_gateway::tls_route(root, flaws),
        Kind::TcpRoute => super::check_gateway::tcp_route(root, flaws),
        Kind::VirtualService => super::check_virtual::virtual_service(root, flaws),
        Kind::DestinationRule => super::check_virtual::destination_rule(root, flaws),
        Kind::Telemetry => super::check_telemetry::telemetry(root, flaws),
        Kind::ReferenceGrant => super::check_gateway::reference_grant(root, flaws),
        Kind::Node
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::HorizontalPodAutoscaler
        | Kind::PodDisruptionBudget
        | Kind::NetworkPolicy
        | Kind::Bypass
        | Kind::Quarantine => {}
    }
}

/// What a namespace says of its pods' tunnels.
fn namespace(root: &Node, flaws: &mut Flaws) {
    let Some(label) = root.at_path(&["metadata", "labels", SAME_NODE]) else { return };
    let said = label.text().unwrap_or_default();
    if ![DIRECT, TUNNEL].contains(&said) {
        let message = format!("unknown value {said:?}: as {TUNNEL}");
        let hint = format!("{DIRECT} and {TUNNEL} are accepted");
        flaws.warn("MAN007", label.at, &format!("metadata.labels[{SAME_NODE:?}]"), message, &hint);
    }
}

fn metadata(kind: Kind, root: &Node, flaws: &mut Flaws) {
    let rule = match kind {
        Kind::Namespace => Rule::Label,
        Kind::Service => Rule::LetterFirst,
        _ => Rule::Subdomain,
    };
    let metadata = root.get("metadata");
    let at = metadata.map_or(root.at, |metadata| metadata.at);
    let name = metadata.and_then(|metadata| metadata.get("name")).filter(|name| !name.is_null());
    match name.map(|name| (name.at, name.text())) {
        Some((at, Some(name))) if !rule.accepts(name) => {
            flaws.add("MAN007", at, "metadata.name", format!("{name:?} is not a name"), rule.accepted());
        }
        Some((_, Some(_))) => {}
        // A wrong type is reported where the value is read.
        Some((_, None)) => {}
        None => {
            flaws.add("MAN007", at, "metadata.name", "the name is missing", "every object needs a metadata.name");
        }
    }
    each(root, "metadata.namespace", &mut |node, path| {
        if let Some(name) = node.text()
            && !Rule::Label.accepts(name)
        {
            flaws.add("MAN007", node.at, path, format!("{name:?} is not a namespace"), Rule::Label.accepted());
        }
    });
    labels(root, "metadata.labels", flaws);
}

fn labels(root: &Node, path: &str, flaws: &mut Flaws) {
    each(root, path, &mut |labels, path| {
        for entry in labels.entries() {
            let (prefix, name) = entry.key.split_once('/').map_or((None, entry.key.as_str()), |(a, b)| (Some(a), b));
            if name.is_empty()
                || !Rule::LabelValue.accepts(name)
                || prefix.is_some_and(|prefix| !Rule::Subdomain.accepts(prefix))
            {
                let hint = "a name is accepted, or a domain, '/' and a name";
                flaws.add("MAN007", entry.at, path, format!("{:?} is not a label's name", entry.key), hint);
            }
            if let Some(value) = entry.node.text()
                && !Rule::LabelValue.accepts(value)
            {
                let message = format!("{value:?} is not a label's value");
                flaws.add(
                    "MAN007",
                    entry.node.at,
                    &format!("{path}.{}", entry.key),
                    message,
                    Rule::LabelValue.accepted(),
                );
            }
        }
    });
}

fn service(root: &Node, flaws: &mut Flaws) {
    ports(root, "spec.ports[].port", Least::One, flaws);
    ports(root, "spec.ports[].nodePort", Least::Zero, flaws);
    port_or_name(root, "spec.ports[].targetPort", flaws);
    one_of(root, "spec.ports[].protocol", &["TCP", "UDP", "SCTP"], flaws);
    one_of(root, "spec.type", &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"], flaws);
    one_of(root, "spec.ipFamilies[]", &["IPv4", "IPv6"], flaws);
    one_of(root, "spec.ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"], flaws);
    one_of(root, "spec.internalTrafficPolicy", &["Cluster", "Local"], flaws);
    one_of(root, "spec.trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"], flaws);
    one_of(root, "spec.sessionAffinity", &["None", "ClientIP"], flaws);
    for path in ["spec.clusterIP", "spec.clusterIPs[]"] {
        each(root, path, &mut |node, path| {
            if let Some(text) = node.text()
                && !matches!(text, "" | "None")
                && text.parse::<IpAddr>().is_err()
            {
                let message = format!("{text:?} is not an address");
                flaws.add("MAN005", node.at, path, message, "an IPv4 or IPv6 address is accepted, or None");
            }
        });
    }
    let Some(spec) = root.get("spec") else {
        flaws.add("MAN005", root.at, "spec", "the spec is missing", "a Service needs at least spec.ports");
        return;
    };
    let text = |key: &str| spec.get(key).and_then(Node::text);
    let list = spec.get("ports").map_or(&[][..], Node::items);
    if list.is_empty() && text("type") != Some("ExternalName") && text("clusterIP") != Some("None") {
        flaws.add("MAN005", spec.at, "spec.ports", "no port", "at least one port is needed, except for headless ones");
    }
    let mut names = BTreeMap::new();
    for (index, port) in list.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        if port.get("port").is_none_or(Node::is_null) {
            flaws.add("MAN006", port.at, &path, "the port is missing", PORT);
        }
        match port.get("name").and_then(Node::text) {
            None | Some("") if list.len() > 1 => {
                let hint = "every port of a Service with several ports needs a name";
                flaws.add("MAN007", port.at, &path, "the port's name is missing", hint);
            }
            Some(name) if !name.is_empty() && !Rule::Label.accepts(name) => {
                let message = format!("{name:?} is not a port's name");
                flaws.add("MAN007", port.at, &path, message, Rule::Label.accepted());
            }
            Some(name) if !name.is_empty() => {
                if let Some(first) = names.insert(name, index) {
                    let message = format!("the name {name:?} is taken by spec.ports[{first}]");
                    flaws.add("MAN007", port.at, &path, message, "the names of a Service's ports differ");
                }
            }
            _ => {}
        }
    }
}

fn deployment(root: &Node, flaws: &mut Flaws) {
    pod_spec(root, "spec.template.spec", flaws);
    labels(root, "spec.template.metadata.labels", flaws);
    one_of(root, "spec.template.spec.restartPolicy", &["Always"], flaws);
    each(root, "spec.replicas", &mut |node, path| {
        if let Value::Integer(replicas) = node.value
            && replicas < 0
        {
            flaws.add(
                "MAN005",
                node.at,
                path,
                format!("{replicas} is not a number of replicas"),
                "0 or more is accepted",
            );
        }
    });
    let Some(spec) = root.get("spec") else {
        flaws.add("MAN005", root.at, "spec", "the spec is missing", "a Deployment needs a selector and a template");
        return;
    };
    let labels = spec.at_path(&["template", "metadata", "labels"]);
    match spec.at_path(&["selector", "matchLabels"]).map(Node::entries) {
        None | Some([]) if spec.at_path(&["selector", "matchExpressions"]).is_none() => {
            let hint = "labels of the template that select its pods";
            flaws.add("MAN005", spec.at, "spec.selector", "the selector is missing", hint);
        }
        None => {}
        Some(wanted) => {
            for entry in wanted {
                let value = labels.and_then(|labels| labels.get(&entry.key)).and_then(Node::text);
                if value != entry.node.text() {
                    let message = format!("the template's labels do not have {}", entry.key);
                    let hint = "a Deployment's selector matches its own template";
                    flaws.add("MAN005", entry.at, "spec.selector.matchLabels", message, hint);
                }
            }
        }
    }
}

fn pod_spec(root: &Node, prefix: &str, flaws: &mut Flaws) {
    one_of(root, &format!("{prefix}.restartPolicy"), &["Always", "OnFailure", "Never"], flaws);
    let keys: Vec<&str> = prefix.split('.').collect();
    let spec = root.at_path(&keys);
    if spec.and_then(|spec| spec.get("containers")).map_or(&[][..], Node::items).is_empty() {
        let (at, path) = (spec.map_or(root.at, |spec| spec.at), format!("{prefix}.containers"));
        flaws.add("MAN005", at, &path, "no container", "a pod needs at least one container");
    }
    let mut names = BTreeMap::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec.and_then(|spec| spec.get(list)).map_or(&[][..], Node::items).iter().enumerate() {
            let path = format!("{prefix}.{list}[{index}].name");
            let name = container.get("name").filter(|name| !name.is_null());
            match name.map(|name| (name.at, name.text())) {
                None => flaws.add("MAN007", container.at, &path, "the name is missing", "every container needs a name"),
                Some((at, Some(name))) if !Rule::Label.accepts(name) => {
                    flaws.add("MAN007", at, &path, format!("{name:?} is not a name"), Rule::Label.accepted());
                }
                Some((at, Some(name))) => {
                    if names.insert(name, ()).is_some() {
                        flaws.add(
                            "MAN007",
                            at,
                            &path,
                            format!("two containers {name:?}"),
                            "names of a pod's containers differ",
                        );
                    }
                }
                Some((_, None)) => {}
            }
        }
        let container = format!("{prefix}.{list}[]");
        has_port(root, &format!("{container}.ports[]"), "containerPort", flaws);
        ports(root, &format!("{container}.ports[].containerPort"), Least::One, flaws);
        ports(root, &format!("{container}.ports[].hostPort"), Least::Zero, flaws);
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            for how in ["httpGet", "tcpSocket", "grpc"] {
                has_port(root, &format!("{container}.{probe}.{how}"), "port", flaws);
            }
            port_or_name(root, &format!("{container}.{probe}.httpGet.port"), flaws);
            port_or_name(root, &format!("{container}.{probe}.tcpSocket.port"), flaws);
            ports(root, &format!("{container}.{probe}.grpc.port"), Least::One, flaws);
        }
        for hook in ["postStart", "preStop"] {
            has_port(root, &format!("{container}.lifecycle.{hook}.httpGet"), "port", flaws);
            port_or_name(root, &format!("{container}.lifecycle.{hook}.httpGet.port"), flaws);
        }
    }
}

fn endpoint_slice(root: &Node, flaws: &mut Flaws) {
    ports(root, "ports[].port", Least::One, flaws);
    one_of(root, "addressType", &["IPv4", "IPv6", "FQDN"], flaws);
    if root.get("addressType").is_none_or(Node::is_null) {
        flaws.add(
            "MAN005",
            root.at,
            "addressType",
            "the address type is missing",
            "one of IPv4, IPv6, FQDN is accepted",
        );
    }
    let names = root.get("addressType").and_then(Node::text) == Some("FQDN");
    each(root, "endpoints[].addresses[]", &mut |node, path| {
        if let Some(text) = node.text()
            && !names
            && text.parse::<IpAddr>().is_err()
        {
            flaws.add(
                "MAN005",
                node.at,
                path,
                format!("{text:?} is not an address"),
                "an IPv4 or IPv6 address is accepted",
            );
        }
    });
}

/// What a port is.
pub(super) const PORT: &str = "a port is a number from 1 to 65535";

pub(super) enum Least {
    Zero,
    One,
}

pub(super) fn ports(root: &Node, path: &str, least: Least, flaws: &mut Flaws) {
    let least = match least {
        Least::Zero => 0,
        Least::One => 1,
    };
    each(root, path, &mut |node, path| port(node, path, least, flaws));
}

/// What names a port must: without it the type's own default, 0, would be taken.
pub(super) fn has_port(root: &Node, path: &str, key: &str, flaws: &mut Flaws) {
    each(root, path, &mut |node, path| {
        if matches!(node.value, Value::Map(_)) && node.get(key).is_none_or(Node::is_null) {
            flaws.add("MAN006", node.at, &format!("{path}.{key}"), "the port is missing", PORT);
        }
    });
}

fn port(node: &Node, path: &str, least: i64, flaws: &mut Flaws) {
    let wrong = match node.value {
        Value::Integer(number) if !(least..=65535).contains(&number) => number.to_string(),
        Value::Large(number) => number.to_string(),
        _ => return,
    };
    flaws.add("MAN006", node.at, path, format!("{wrong} is not a port"), PORT);
}

fn port_or_name(root: &Node, path: &str, flaws: &mut Flaws) {
    each(root, path, &mut |node, path| {
        port(node, path, 1, flaws);
        let Some(name) = node.text() else { return };
        if !Rule::PortName.accepts(name) {
            let number = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty();
            let hint = if number { "a port's number is written without quotes" } else { Rule::PortName.accepted() };
            flaws.add("MAN006", node.at, path, format!("{name:?} is not a port's name"), hint);
        }
    });
}

pub(super) fn one_of(root: &Node, path: &str, accepted: &[&str], flaws: &mut Flaws) {
    each(root, path, &mut |node, path| {
        if let Some(text) = node.text()
            && !accepted.contains(&text)
        {
            let hint = match accepted {
                [one] => format!("{one} is accepted"),
                several => format!("one of {} is accepted", several.join(", ")),
            };
            flaws.add("MAN005", node.at, path, format!("unknown value {text:?}"), &hint);
        }
    });
}

/// Calls `found` for every value at a path such as `spec.ports[].port`, with the path of that very value.
pub(super) fn each(root: &Node, path: &str, found: &mut dyn FnMut(&Node, &str)) {
    fn walk(node: &Node, steps: &[&str], path: &str, found: &mut dyn FnMut(&Node, &str)) {
        let Some((step, rest)) = steps.split_first() else {
            if !node.is_null() {
                found(node, path);
            }
            return;
        };
        let (key, list) = step.strip_suffix("[]").map_or((*step, false), |key| (key, true));
        let Some(child) = node.get(key) else { return };
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        if !list {
            return walk(child, rest, &path, found);
        }
        for (index, item) in child.items().iter().enumerate() {
            walk(item, rest, &format!("{path}[{index}]"), found);
        }
    }
    let steps: Vec<&str> = path.split('.').collect();
    walk(root, &steps, "", found);
}
