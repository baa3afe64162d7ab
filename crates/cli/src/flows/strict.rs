//! `stillmesh check strict`: who came in clear text within a day and was let in, so that STRICT would refuse them. What was not
//! seen is not called safe: how far the tables go back, and who has not answered, is always said.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use stillmesh_records::{Flow, Hop};

use super::{Asked, gather, merged, time};
use crate::cluster::args::{Report, WhichMesh, namespace_name};
use crate::output::{Mark, Marks, answered, line};
use crate::why::place::Place;

/// A day, as long as tables are kept.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Where probes of a mesh on this machine come from.
const PROBER: &str = "169.254.7.127";

/// `stillmesh check strict`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 when nobody was seen who would be refused, 1 when somebody was, 2 when it cannot be said: no \
    pod of the namespace is in the mesh, or tunnels have not answered or keep no flows. Nobody seen is not nobody there: whoever \
    connects more rarely than the tables go back is not in them."
)]
pub(crate) struct Strict {
    /// Only destinations in this namespace
    #[arg(value_name = "NAMESPACE", value_parser = namespace_name)]
    namespace: Option<String>,
    /// How to print
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    #[command(flatten)]
    which: WhichMesh,
}

/// One client of one destination that came in clear text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    destination: String,
    port: u16,
    client: String,
    count: u64,
    open: u64,
    last_seen: String,
    /// Whether STRICT refuses it.
    breaks: bool,
    todo: String,
}

/// What is known of pods and nodes.
#[derive(Debug, Default)]
struct Known {
    /// Pods by `namespace/name`: whether they are captured.
    pods: BTreeMap<String, bool>,
    /// The ports that probes of a pod ask.
    probed: BTreeMap<String, BTreeSet<u16>>,
    /// Addresses of nodes.
    nodes: BTreeSet<String>,
}

/// Carries it out: 0 where nobody was seen, 1 where somebody was, 2 where it cannot be said.
pub(crate) async fn run(args: &Strict) -> ExitCode {
    answered(answer(args).await)
}

async fn answer(args: &Strict) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.which).await?;
    let mut gathered = gather(&place, DAY).await?;
    // Nothing comes to waypoints in clear text.
    gathered.asked.retain(|asked| asked.by.starts_with("ztunnel"));
    // By pod: what was counted before its Service was known is no other client's.
    gathered.flows.iter_mut().filter(|flow| flow.hop == Hop::Inbound).for_each(|flow| flow.service.clear());
    let known = Known::of(&place.list("Pod", "", "").await?, &place.list("Node", "", "").await?);
    let wanted = |flow: &Flow| {
        let in_namespace = |namespace: &String| flow.endpoint.starts_with(&format!("{namespace}/"));
        flow.hop == Hop::Inbound && flow.clear && !flow.refused && args.namespace.as_ref().is_none_or(in_namespace)
    };
    let overflow = gathered.flows.iter().filter(|flow| flow.overflow).map(|flow| flow.count).sum::<u64>();
    let peers: Vec<Peer> = merged(gathered.flows, wanted).iter().map(|flow| known.peer(flow)).collect();
    let is_silent = |asked: &&Asked| asked.reaches_back_s.is_none();
    let silent: Vec<&Asked> = gathered.asked.iter().filter(is_silent).collect();
    let shortest = gathered.asked.iter().filter_map(|asked| asked.reaches_back_s).min();
    let breaks = peers.iter().any(|peer| peer.breaks);
    if !breaks {
        known.must_see(args.namespace.as_deref())?;
    }
    let reach = reach(shortest, &silent, gathered.asked.len(), overflow);
    match args.output {
        Some(format) => {
            let whole = json!({ "breaks": breaks, "peers": peers, "reachesBackS": shortest, "asked": gathered.asked, "notes": reach });
            line(&format.of(&whole)?);
        }
        None => print(&peers, &reach, args.namespace.as_deref()),
    }
    Ok(match (breaks, shortest.is_none() || !silent.is_empty()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(2),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn print(peers: &[Peer], reach: &[String], namespace: Option<&str>) {
    let marks = Marks::out();
    for peer in peers {
        let mark = if peer.breaks { Mark::Bad } else { Mark::Good };
        let open = if peer.open > 0 { format!(", {} open", peer.open) } else { String::new() };
        line(&format!(
            "{} {}:{} from {} in clear text: {} connections{open}, last {}\n    → {}",
            marks.show(mark),
            peer.destination,
            peer.port,
            peer.client,
            peer.count,
            peer.last_seen,
            peer.todo
        ));
    }
    if !peers.iter().any(|peer| peer.breaks) {
        let of = namespace.map(|namespace| format!(" of {namespace}")).unwrap_or_default();
        line(&format!("nobody was seen that STRICT would refuse at the pods{of}"));
    }
    reach.iter().for_each(|text| line(text));
}

/// How much was seen.
fn reach(shortest: Option<u64>, silent: &[&Asked], asked: usize, overflow: u64) -> Vec<String> {
    let mut all = Vec::new();
    match shortest {
        Some(seconds) => {
            let (hours, minutes) = (seconds / 3600, seconds % 3600 / 60);
            all.push(format!(
                "the tables of all who answered ({} of {asked}) go back {hours} h {minutes} min at least; who connects more rarely, or to \
                 pods that were not in the mesh then, is not in them",
                asked - silent.len()
            ));
        }
        None => all.push("nobody has a table: nothing can be said".to_owned()),
    }
    for one in silent {
        let why = one.error.as_deref().unwrap_or("it keeps no flows (FLOWS_MEMORY is 0)");
        all.push(format!("{} has said nothing, so its part is missing: {why}", one.by));
    }
    if overflow > 0 {
        all.push(format!(
            "{overflow} connections and requests were counted beyond the tables' budget, without names (FLOWS_MEMORY)"
        ));
    }
    all
}

impl Known {
    fn of(pods: &[Value], nodes: &[Value]) -> Self {
        let mut known = Self::default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for pod in pods {
            let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            let is_captured = pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled";
            known.probed.insert(name.clone(), probed(pod));
            known.pods.insert(name, is_captured);
        }
        for node in nodes {
            let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
            known.nodes.extend(addresses.map(|one| text(&one["address"])));
            let ranges = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
            // Bridges of many CNIs have the first address of the node's range.
            known.nodes.extend(ranges.filter_map(|range| first_of(range.as_str()?)));
        }
        known
    }

    /// Fails where nobody has seen what reaches the pods that are asked about: then nothing can be said of their clients.
    fn must_see(&self, namespace: Option<&str>) -> anyhow::Result<()> {
        let is_meant = |pod: &str| namespace.is_none_or(|namespace| pod.split('/').next() == Some(namespace));
        let meant: Vec<bool> =
            self.pods.iter().filter(|(pod, _)| is_meant(pod)).map(|(_, captured)| *captured).collect();
        let whose = namespace.map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
        ensure!(!meant.is_empty(), "there is no pod{whose}: nothing can be said");
        ensure!(
            meant.contains(&true),
            "no pod{whose} is in the mesh, so nobody has seen who comes to them: nothing can be said"
        );
        Ok(())
    }

    fn peer(&self, flow: &Flow) -> Peer {
        let is_node = flow.source == PROBER || self.nodes.contains(&flow.source);
        let is_probed = self.probed.get(&flow.endpoint).is_some_and(|ports| ports.contains(&flow.port));
        let (client, breaks, todo) = match (self.pods.get(&flow.source), is_node) {
            (None, true) if is_probed => (
                format!("{} (a node)", flow.source),
                false,
                "the kubelet's probes ask this port and pass under STRICT; another program of the host would not".to_owned(),
            ),
            (None, true) => (
                format!("{} (a node)", flow.source),
                true,
                "a program of the host's network, no probe: leave this port PERMISSIVE (portLevelMtls), or reach it from a pod of \
                 the mesh"
                    .to_owned(),
            ),
            (Some(true), _) => (
                format!("pod {}", flow.source),
                true,
                "it is in the mesh, and this came past it: from before it was captured, or from an address that it does not have; \
                 make it connect anew"
                    .to_owned(),
            ),
            (Some(false), _) => (
                format!("pod {}", flow.source),
                true,
                "put it into the mesh: label istio.io/dataplane-mode=ambient on it or its namespace".to_owned(),
            ),
            (None, false) => (
                flow.source.clone(),
                true,
                "not a pod of now: an ingress, a load balancer, another cluster, or a pod that is gone; lead it through a gateway of \
                 the mesh, or leave this port PERMISSIVE (portLevelMtls)"
                    .to_owned(),
            ),
        };
        Peer {
            destination: flow.endpoint.clone(),
            port: flow.port,
            client,
            count: flow.count,
            open: flow.open,
            last_seen: time(flow.last_us),
            breaks,
            todo,
        }
    }
}

/// The ports that a pod's probes ask.
fn probed(pod: &Value) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
        let named = |name: &str| {
            let all = container["ports"].as_array().into_iter().flatten();
            all.clone().find(|port| port["name"] == name).and_then(|port| port["containerPort"].as_u64())
        };
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            for way in ["httpGet", "tcpSocket", "grpc"] {
                let port = &container[probe][way]["port"];
                let number = port.as_u64().or_else(|| named(port.as_str()?));
                ports.extend(number.and_then(|number| u16::try_from(number).ok()));
            }
        }
    }
    ports
}

/// The first address of a range that somebody can have.
fn first_of(range: &str) -> Option<String> {
    let range: ipnet::IpNet = range.parse().ok()?;
    range.hosts().next().map(|ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known() -> Known {
        let pod = |namespace: &str, name: &str, captured: bool| {
            let state = if captured { "enabled" } else { "none" };
            json!({"metadata": {"namespace": namespace, "name": name, "annotations": {"ambient.istio.io/redirection": state}},
                "spec": {"containers": [{"ports": [{"name": "health", "containerPort": 9000}],
                    "readinessProbe": {"httpGet": {"port": "health"}}, "livenessProbe": {"tcpSocket": {"port": 8080}}}]}})
        };
        let node =
            json!({"status": {"addresses": [{"address": "172.18.0.2"}]}, "spec": {"podCIDRs": ["10.244.1.0/24"]}});
        Known::of(&[pod("shop", "stock", true), pod("street", "visitor", false)], &[node])
    }

    fn peer(source: &str, port: u16) -> Peer {
        let endpoint = "shop/stock".to_owned();
        known().peer(&Flow { source: source.to_owned(), endpoint, port, clear: true, count: 2, ..Flow::default() })
    }

    #[test]
    fn every_client_in_clear_text_is_told_what_to_do() {
        for (source, port, breaks, todo) in [
            ("street/visitor", 80, true, "put it into the mesh"),
            ("shop/stock", 80, true, "connect anew"),
            ("203.0.113.7", 80, true, "not a pod of now"),
            ("172.18.0.2", 80, true, "no probe"),
            ("172.18.0.2", 9000, false, "probes ask this port"),
            ("10.244.1.1", 8080, false, "probes ask this port"),
        ] {
            let found = peer(source, port);
            assert_eq!(found.breaks, breaks, "{source}");
            assert!(found.todo.contains(todo), "{source}: {}", found.todo);
        }
    }

    #[test]
    fn of_pods_that_nobody_sees_nothing_is_said() {
        let said = |namespace| known().must_see(namespace).map_err(|error| error.to_string());
        assert_eq!((said(None), said(Some("shop"))), (Ok(()), Ok(())));
        assert!(said(Some("street")).is_err_and(|why| why.contains("no pod of namespace street is in the mesh")));
        assert!(said(Some("shopp")).is_err_and(|why| why.starts_with("there is no pod of namespace shopp")));
    }

    #[test]
    fn how_far_it_was_seen_is_always_said() {
        let silent = Asked { by: "ztunnel-node2".to_owned(), reaches_back_s: None, error: Some("gone".to_owned()) };
        let said = reach(Some(7260), &[&silent], 3, 5).join("\n");
        for part in ["(2 of 3)", "2 h 1 min", "ztunnel-node2 has said nothing", "gone", "5 connections and requests"] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert!(reach(None, &[], 0, 0)[0].contains("nothing can be said"));
    }
}
