//! Names as people write them, and what records are found by.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, bail};
use serde_json::Value;
use stillmesh_records::Term;

use super::place::Place;

/// Pods of one end that records are looked for by name; a service's further ones are found by the service.
const MOST_PODS: usize = 32;

/// So many names are told to whoever names somebody that is not there.
const MOST_NAMES: usize = 12;

/// Which end somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Who connected.
    Source,
    /// To whom.
    Destination,
}

/// Somebody, found.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    shown: String,
    /// What of records is theirs.
    pub(crate) terms: Vec<Term>,
    /// Their pods.
    pub(crate) pods: Vec<PodFacts>,
    /// Whether it is a Service.
    pub(crate) is_service: bool,
}

/// What is to be known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    /// Namespace and name.
    pub(crate) name: String,
    node: String,
    is_captured: bool,
    on_host_network: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl End {
    /// The nodes of its pods.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = String> {
        self.pods.iter().map(|pod| pod.node.clone()).filter(|node| !node.is_empty())
    }
}

/// `NAME:PORT`, or a name alone. An IPv6 address stands in brackets where a port follows.
pub(crate) fn port_of(text: &str) -> anyhow::Result<(&str, Option<u16>)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((name, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            let port = port.with_context(|| format!("DST {text:?}: what follows the colon is no port"))?;
            Ok((name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name), Some(port)))
        }
    }
}

/// A name taken apart: kind, namespace, name.
fn parts<'a>(text: &'a str, namespace: &'a str) -> anyhow::Result<(Option<Kind>, &'a str, &'a str)> {
    let pieces: Vec<&str> = text.split('/').collect();
    let (kind, namespace, name) = match pieces.as_slice() {
        [name] => match name.split_once('.') {
            // A service as DNS has it: name.namespace.svc…; name.namespace may be anybody.
            Some((name, rest)) => match rest.split_once('.') {
                Some((namespace, _)) => (Some(Kind::Service), namespace, name),
                None => (None, rest, name),
            },
            None => (None, namespace, *name),
        },
        [first, name] => match Kind::of(first) {
            Some(kind) => (Some(kind), namespace, *name),
            None => (None, *first, *name),
        },
        [first, second, name] => match (Kind::of(first), Kind::of(second)) {
            (Some(kind), _) => (Some(kind), *second, *name),
            (None, Some(kind)) => (Some(kind), *first, *name),
            (None, None) => bail!("{text:?}: {first:?} is no kind; pod, deploy and service are"),
        },
        _ => bail!("{text:?}: NAME, NAMESPACE/NAME, KIND/NAME, KIND/NAMESPACE/NAME or an address is accepted"),
    };
    let good = |part: &str| {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        !part.is_empty() && part.bytes().all(legal)
    };
    if !good(namespace) || !good(name) {
        bail!("{text:?}: NAME, NAMESPACE/NAME, KIND/NAME, KIND/NAMESPACE/NAME or an address is accepted");
    }
    Ok((kind, namespace, name))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Deployment,
    Service,
}

impl Kind {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "pod" | "pods" | "po" => Self::Pod,
            "deployment" | "deployments" | "deploy" => Self::Deployment,
            "service" | "services" | "svc" => Self::Service,
            _ => return None,
        })
    }
}

/// Finds who is meant. A name without a kind is, of a client, a pod, a Deployment or a Service's pods, the first that is there;
/// of a server, a Service comes first.
pub(crate) async fn find(place: &Place, text: &str, namespace: &str, role: Role) -> anyhow::Result<End> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let all = place.list("Pod", "", "").await?;
        let pods: Vec<&Value> = all.iter().filter(|pod| ips(pod).contains(&ip) && !is_over(pod)).collect();
        let mut end = of_pods(ip.to_string(), &pods);
        end.terms = vec![Term::Ip(ip)];
        return Ok(end);
    }
    let (kind, namespace, name) = parts(text, namespace)?;
    let shown = format!("{namespace}/{name}");
    let pods = place.list("Pod", namespace, "").await?;
    let is_named = |object: &&Value| object["metadata"]["name"] == name;
    let order = match (kind, role) {
        (Some(kind), _) => vec![kind],
        (None, Role::Source) => vec![Kind::Pod, Kind::Deployment, Kind::Service],
        (None, Role::Destination) => vec![Kind::Service, Kind::Pod, Kind::Deployment],
    };
    for kind in &order {
        match kind {
            Kind::Pod => {
                if let Some(pod) = pods.iter().find(is_named) {
                    return Ok(of_pods(format!("pod {shown}"), &[pod]));
                }
            }
            Kind::Deployment => {
                let all = place.list("Deployment", namespace, "").await?;
                if let Some(deployment) = all.iter().find(is_named) {
                    let selected = selected(&pods, &deployment["spec"]["selector"]["matchLabels"]);
                    return Ok(of_pods(format!("deployment {shown}"), &selected));
                }
            }
            Kind::Service => {
                let all = place.list("Service", namespace, "").await?;
                if let Some(service) = all.iter().find(is_named) {
                    let mut end = of_pods(format!("service {shown}"), &selected(&pods, &service["spec"]["selector"]));
                    if role == Role::Destination {
                        end.terms.push(Term::Service(shown.clone()));
                        end.terms.extend(addresses(service).map(Term::Ip));
                    }
                    end.is_service = true;
                    return Ok(end);
                }
            }
        }
    }
    let kinds: Vec<&str> = order
        .iter()
        .map(|kind| match kind {
            Kind::Pod => "pod",
            Kind::Deployment => "deployment",
            Kind::Service => "service",
        })
        .collect();
    let services = if role == Role::Destination { place.list("Service", namespace, "").await? } else { Vec::new() };
    let lists = [("services", &services), ("pods", &pods)];
    let there: Vec<String> = lists
        .iter()
        .filter(|(_, some)| !some.is_empty())
        .map(|(what, some)| format!("{what} of that namespace are {}", names(some)))
        .collect();
    let hint = if there.is_empty() {
        format!("nothing is in namespace {namespace:?}; -n names another, or write NAMESPACE/NAME")
    } else {
        there.join("; ")
    };
    bail!("there is no {} named {name:?} in namespace {namespace:?}; {hint}", kinds.join(", "))
}

/// Some of the objects' names; `none` where there are no objects.
pub(crate) fn names(objects: &[Value]) -> String {
    let mut names: Vec<&str> = objects.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let all = names.join(", ");
    match more {
        _ if all.is_empty() => "none".to_owned(),
        0 => all,
        _ => format!("{all} and {more} more"),
    }
}

/// Pods as an end. One that is gone is still found by its name.
fn of_pods(shown: String, pods: &[&Value]) -> End {
    let mut end = End { shown, ..End::default() };
    for pod in pods {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let on_host_network = pod["spec"]["hostNetwork"] == true;
        if end.pods.len() < MOST_PODS {
            end.terms.push(Term::Pod(name.clone()));
            // A host's address is that of all that run there.
            if !on_host_network {
                end.terms.extend(ips(pod).into_iter().map(Term::Ip));
            }
        }
        end.pods.push(PodFacts {
            name,
            node: text(&pod["spec"]["nodeName"]),
            is_captured: pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled",
            on_host_network,
        });
    }
    end
}

fn selected<'a>(pods: &'a [Value], selector: &Value) -> Vec<&'a Value> {
    let Some(wanted) = selector.as_object().filter(|wanted| !wanted.is_empty()) else { return Vec::new() };
    let has = |pod: &&Value| wanted.iter().all(|(label, value)| pod["metadata"]["labels"][label.as_str()] == *value);
    pods.iter().filter(has).collect()
}

fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn ips(pod: &Value) -> Vec<IpAddr> {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
    all.filter_map(|one| one["ip"].as_str()?.parse().ok()).collect()
}

fn addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    let one = service["spec"]["clusterIP"].clone();
    let mut all: Vec<IpAddr> = all.iter().chain([&one]).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter()
}

/// What may explain that nothing was found.
pub(crate) fn why_nothing(source: &End, destination: &End) -> Vec<String> {
    let mut notes = Vec::new();
    for (end, what) in
        [(source, "its connections leave the node unseen"), (destination, "nothing sees what arrives there")]
    {
        for pod in end.pods.iter().filter(|pod| !pod.is_captured).take(3) {
            let how = if pod.on_host_network { "is on the host's network, and so" } else { "is not in the mesh:" };
            notes.push(format!(
                "pod {} {how} {what}{}",
                pod.name,
                if pod.on_host_network {
                    ""
                } else {
                    " (label istio.io/dataplane-mode=ambient on it or its namespace)"
                }
            ));
        }
    }
    if source.pods.is_empty() && source.shown.parse::<IpAddr>().is_ok() {
        notes.push(format!("no pod has address {source}: a client from outside, or a pod that is gone"));
    } else if source.pods.is_empty() {
        notes.push(format!("{source} has no pods: nobody could have connected"));
    }
    if destination.is_service && destination.pods.is_empty() {
        notes.push(format!("{destination} selects no pods"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (text, kind, namespace, name) in [
            ("web", None, "d", "web"),
            ("shop/web", None, "shop", "web"),
            ("deploy/web", Some(Kind::Deployment), "d", "web"),
            ("svc/shop/web", Some(Kind::Service), "shop", "web"),
            ("shop/pod/web-0", Some(Kind::Pod), "shop", "web-0"),
            ("web.shop", None, "shop", "web"),
            ("web.shop.svc.cluster.local", Some(Kind::Service), "shop", "web"),
        ] {
            assert_eq!(parts(text, "d").ok(), Some((kind, namespace, name)), "{text}");
        }
        for text in ["", "a/b/c", "a/b/c/d", "Web", "shop/", "a b"] {
            assert!(parts(text, "d").is_err(), "{text}");
        }
        assert_eq!(port_of("web:80").ok(), Some(("web", Some(80))));
        assert_eq!(port_of("[fd00::1]:80").ok(), Some(("fd00::1", Some(80))));
        assert_eq!(port_of("fd00::1").ok(), Some(("fd00::1", None)));
        assert!(port_of("web:x").is_err() && port_of("web:0").is_err());
    }

    #[test]
    fn pods_are_found_by_name_and_address_but_not_by_a_hosts() {
        let pod = |host: bool| {
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "node1", "hostNetwork": host},
                "status": {"podIPs": [{"ip": "10.0.0.1"}]}})
        };
        let end = of_pods("p".to_owned(), &[&pod(false)]);
        assert_eq!(end.terms.iter().map(ToString::to_string).collect::<Vec<_>>(), ["pod/n/p", "ip/10.0.0.1"]);
        assert_eq!(of_pods("p".to_owned(), &[&pod(true)]).terms.len(), 1);
        assert!(why_nothing(&end, &end).iter().any(|note| note.contains("not in the mesh")));
    }
}
