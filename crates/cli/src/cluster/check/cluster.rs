//! Facts about the cluster, with or without a mesh. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::version::Info;
use serde_json::Value;

use super::{Fact, foreign_in};
use crate::cluster::foreign::{Parts, refusals};
use crate::cluster::install::apply::helm_release;
use crate::cluster::value::{annotation, holds, label, list, name, namespace, text};
use crate::cluster::view::View;

/// The oldest minor version of Kubernetes 1 that has all that is used.
const OLDEST_SERVER: u32 = 30;
/// The oldest kernel with all that the capture rules use (nftables tproxy and socket matches, tcp_migrate_req).
const OLDEST_KERNEL: (u32, u32) = (5, 14);
/// The architectures that there is an image for.
const ARCHITECTURES: [&str; 1] = ["amd64"];

/// Kinds that an installation writes: group and resource.
pub(super) const RIGHTS: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("", "configmaps"),
    ("", "secrets"),
    ("apps", "deployments"),
    ("apps", "daemonsets"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
];

/// The API server and its version.
pub(super) fn server(url: &str, info: &Info) -> Fact {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let text = format!("API server {url}: Kubernetes {}", info.git_version);
    match (digits(&info.major), digits(&info.minor)) {
        (Some(1), Some(minor)) if minor < OLDEST_SERVER => Fact::bad(
            "api-server",
            text,
            format!("Stillmesh needs Kubernetes 1.{OLDEST_SERVER} or newer; upgrade the cluster"),
        ),
        (Some(_), Some(_)) => Fact::good("api-server", text),
        _ => Fact::doubt(
            "api-server",
            format!("API server {url}: its version is not told"),
            format!("make sure that it is Kubernetes 1.{OLDEST_SERVER} or newer (kubectl version)"),
        ),
    }
}

/// What the asking account may do.
pub(super) fn rights(missing: &[String]) -> Fact {
    if missing.is_empty() {
        return Fact::good("rights", "you may do all that an installation does");
    }
    Fact::bad(
        "rights",
        format!("you may not: {}", missing.join(", ")),
        "install as a cluster administrator (kubectl auth can-i --list says what you may)",
    )
}

/// The kinds of policies.
pub(super) fn definitions(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let there: Vec<&Value> = view.list("CustomResourceDefinition").iter().collect();
    let of_group = |group: &str| there.iter().copied().filter(|one| one["spec"]["group"] == group).collect::<Vec<_>>();
    let mut ours = of_group("security.istio.io");
    let others = [
        "virtualservices.networking.istio.io",
        "destinationrules.networking.istio.io",
        "telemetries.telemetry.istio.io",
    ];
    ours.extend(there.iter().copied().filter(|one| others.contains(&name(one))));
    if ours.is_empty() {
        facts.push(Fact::good("definitions", "the kinds of policies are not there: the installation brings them"));
    }
    for definition in ours {
        let versions: Vec<&str> = list(&definition["spec"]["versions"]).map(|version| text(&version["name"])).collect();
        let what = format!("{} ({})", name(definition), versions.join(", "));
        let kept = annotation(definition, "helm.sh/resource-policy").is_some();
        match (label(definition, "app.kubernetes.io/part-of"), helm_release(definition)) {
            (Some("stillmesh"), None) => facts.push(Fact::good("definitions", format!("{what} is there, of ours"))),
            (_, Some((release, namespace))) => facts.push(Fact::doubt(
                "definitions",
                format!("{what} is there and belongs to the Helm release {release:?} in {namespace}"),
                "if that release is gone, the installation takes it over; else: stillmesh install --set crds.enabled=false",
            )),
            _ if !holds(definition, "Established") => facts.push(Fact::bad(
                "definitions",
                format!("{what} is there and the server does not serve it"),
                format!("kubectl describe crd {}", name(definition)),
            )),
            _ => facts.push(Fact::doubt(
                "definitions",
                format!("{what} is there, from somebody else{}", if kept { " who wants it kept" } else { "" }),
                "leave it there (stillmesh install --set crds.enabled=false), or replace it with ours (--force)",
            )),
        }
    }
    let gateway = of_group("gateway.networking.k8s.io");
    facts.push(match gateway.iter().find_map(|one| annotation(one, "gateway.networking.k8s.io/bundle-version")) {
        Some(version) => Fact::good("gateway-api", format!("Gateway API {version} is there")),
        None if gateway.is_empty() => {
            Fact::good("gateway-api", "the Gateway API is not there; only waypoints and gateways need it")
        }
        None => Fact::good("gateway-api", "the Gateway API is there"),
    });
    facts
}

/// Other meshes.
pub(super) fn other_meshes(view: &View) -> Vec<Fact> {
    let all = Parts { revision: false, agent: true, tunnel: true, controller: true };
    let refused = refusals(&foreign_in(view), all);
    if refused.is_empty() {
        return vec![Fact::good("other-mesh", "no other mesh is in the cluster")];
    }
    let fact = |text: String| {
        let (what, todo) = text.split_once(": ").or(text.split_once(". ")).unwrap_or((&text, "see above"));
        Fact::bad("other-mesh", what.to_owned(), todo.to_owned())
    };
    refused.into_iter().map(fact).collect()
}

/// What gives pods their network, as far as the mesh must know.
pub(super) fn network(view: &View) -> Vec<Fact> {
    const KNOWN: [(&str, &str); 9] = [
        ("calico-node", "Calico"),
        ("cilium", "Cilium"),
        ("kube-flannel-ds", "Flannel"),
        ("aws-node", "Amazon VPC CNI"),
        ("azure-cns", "Azure CNI"),
        ("weave-net", "Weave Net"),
        ("antrea-agent", "Antrea"),
        ("kindnet", "kindnet"),
        ("ovnkube-node", "OVN-Kubernetes"),
    ];
    let daemons = view.list("DaemonSet");
    let found = KNOWN.iter().find(|(daemon, _)| daemons.iter().any(|one| name(one) == *daemon));
    let mut facts = vec![match found {
        Some((_, "Cilium")) => Fact::doubt(
            "cni",
            "Cilium gives pods their network: it removes other plugins' configuration where cni.exclusive is true",
            "set cni.exclusive=false in Cilium's values",
        ),
        Some((_, title)) => Fact::good("cni", format!("{title} gives pods their network")),
        None => Fact::good("cni", "what gives pods their network is none that needs settings of its own"),
    }];
    let versions: Vec<&str> =
        view.list("Node").iter().map(|node| text(&node["status"]["nodeInfo"]["kubeletVersion"])).collect();
    let platform = |mark: &str| versions.iter().any(|version| version.contains(mark));
    for (mark, title, todo) in [
        (
            "+k3s",
            "k3s",
            "--set cni.binDir=/var/lib/rancher/k3s/data/cni --set cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
        ),
        ("+rke2", "RKE2", "leave cni.binDir=/opt/cni/bin; look at /etc/cni/net.d on a node"),
        ("-gke.", "GKE", "--set cni.binDir=/home/kubernetes/bin"),
    ] {
        if platform(mark) {
            facts.push(Fact::doubt(
                "cni",
                format!("the nodes are {title}'s, with CNI directories of their own"),
                format!("install with {todo}"),
            ));
        }
    }
    facts
}

/// What the nodes are.
pub(super) fn nodes(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut kernels: Vec<&str> = Vec::new();
    let nodes = view.list("Node");
    for node in nodes {
        let info = &node["status"]["nodeInfo"];
        let (name, kernel) = (name(node), text(&info["kernelVersion"]));
        if info["operatingSystem"] != "linux" {
            facts.push(Fact::doubt(
                "nodes",
                format!("node {name} does not run Linux"),
                "its pods stay outside the mesh",
            ));
            continue;
        }
        if !holds(node, "Ready") {
            facts.push(Fact::bad(
                "nodes",
                format!("node {name} is not ready"),
                format!("kubectl describe node {name}"),
            ));
        }
        let architecture = text(&info["architecture"]);
        if !ARCHITECTURES.contains(&architecture) {
            let only = format!("there are images for {} only; keep the mesh's pods off it", ARCHITECTURES.join(", "));
            facts.push(Fact::bad("nodes", format!("node {name} is of architecture {architecture}"), only));
        }
        match kernel_version(kernel) {
            Some(version) if version < OLDEST_KERNEL => facts.push(Fact::bad(
                "nodes",
                format!("node {name} has kernel {kernel}"),
                format!("the capture rules need Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
            )),
            Some(_) if !kernels.contains(&kernel) => kernels.push(kernel),
            Some(_) => {}
            None => facts.push(Fact::doubt(
                "nodes",
                format!("node {name} has a kernel {kernel:?} whose version cannot be read"),
                format!("make sure that it is Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
            )),
        }
    }
    if facts.is_empty() && !nodes.is_empty() {
        facts.push(Fact::good("nodes", format!("{} nodes are ready, with kernel {}", nodes.len(), kernels.join(", "))));
    }
    facts
}

/// `MAJOR.MINOR` of a kernel's version.
fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|byte: char| !byte.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether clocks agree: this machine's with the API server's, and the nodes', by when their kubelets last told the time, with
/// the API server's, or this machine's where that is not known. Certificates live by the clock.
pub(super) fn clocks(told: &[(String, Timestamp)], server: Option<Timestamp>, now: Timestamp) -> Vec<Fact> {
    /// A certificate is valid from two minutes before it is made (contract 6.1).
    const AHEAD_SECONDS: i64 = 60;
    /// A kubelet tells every ten seconds.
    const BEHIND_SECONDS: i64 = 120;
    let mut facts = Vec::new();
    let apart = server.map(|server| now.as_second() - server.as_second()).filter(|apart| apart.abs() > AHEAD_SECONDS);
    if let Some(apart) = apart {
        let way = if apart > 0 { "ahead of" } else { "behind" };
        facts.push(Fact::doubt(
            "clock",
            format!("this machine's clock is {} s {way} the API server's", apart.abs()),
            "set both by NTP: TLS goes by this machine's clock, and so do the ages that commands print",
        ));
    }
    let (now, whose) = server.map_or((now, "this machine's"), |server| (server, "the API server's"));
    for (node, at) in told {
        let behind = now.as_second() - at.as_second();
        if behind < -AHEAD_SECONDS {
            facts.push(Fact::bad(
                "clock",
                format!("the clock of node {node} is {} s ahead of {whose}", -behind),
                "set both by NTP: certificates are refused where clocks differ",
            ));
        } else if behind > BEHIND_SECONDS {
            facts.push(Fact::doubt(
                "clock",
                format!("node {node} last told the time {behind} s ago, by {whose} clock"),
                "its kubelet is silent, or one of the clocks is wrong: set both by NTP",
            ));
        }
    }
    if facts.is_empty() && !told.is_empty() {
        facts.push(Fact::good("clock", format!("the clocks of {} nodes agree with {whose}", told.len())));
    }
    facts
}

/// An object's place, for commands.
pub(super) fn place(object: &Value) -> String {
    format!("{}/{}", namespace(object), name(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::Mark;

    fn node(name: &str, kernel: &str, architecture: &str, ready: &str) -> Value {
        json!({"kind": "Node", "metadata": {"name": name}, "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "nodeInfo": {"operatingSystem": "linux", "kernelVersion": kernel, "architecture": architecture}}})
    }

    #[test]
    fn nodes_that_cannot_hold_the_mesh_are_named() {
        let view = View::of("m", vec![node("a", "6.18.5", "amd64", "True"), node("b", "6.1.0-13", "amd64", "True")]);
        assert_eq!(nodes(&view), [Fact::good("nodes", "2 nodes are ready, with kernel 6.18.5, 6.1.0-13")]);
        let view = View::of("m", vec![node("a", "4.19.0", "amd64", "True"), node("b", "6.1", "arm64", "False")]);
        let facts = nodes(&view);
        assert_eq!(facts.iter().filter(|fact| fact.mark == Mark::Bad).count(), 3, "{facts:?}");
    }

    #[test]
    fn an_old_server_is_refused() {
        let info = |minor: &str| Info { major: "1".into(), minor: minor.into(), ..Info::default() };
        assert_eq!(server("u", &info("34")).mark, Mark::Good);
        assert_eq!(server("u", &info("30+")).mark, Mark::Good);
        assert_eq!(server("u", &info("29")).mark, Mark::Bad);
        assert_eq!(server("u", &Info::default()).mark, Mark::Doubt);
    }

    #[test]
    fn a_clock_that_is_ahead_is_wrong_and_silence_is_a_doubt() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let told = |text: &str| vec![("n1".to_owned(), text.parse().unwrap())];
        let by_ours = |text: &str| clocks(&told(text), None, now)[0].mark;
        assert_eq!(by_ours("2026-01-01T00:09:55Z"), Mark::Good);
        assert_eq!(by_ours("2026-01-01T00:12:00Z"), Mark::Bad);
        assert_eq!(by_ours("2026-01-01T00:00:00Z"), Mark::Doubt);
        assert!(clocks(&[], None, now).is_empty());
        // Where this machine's clock is the wrong one, nodes are not told to be.
        let server = Some("2026-01-01T00:00:05Z".parse().unwrap());
        let facts = clocks(&told("2026-01-01T00:00:00Z"), server, now);
        assert_eq!((facts.len(), facts[0].mark), (1, Mark::Doubt), "{facts:?}");
        assert!(facts[0].text.contains("this machine's clock is 595 s ahead"), "{facts:?}");
    }

    #[test]
    fn definitions_of_somebody_else_are_a_doubt() {
        let definition = |metadata: Value| {
            json!({"kind": "CustomResourceDefinition", "metadata": metadata, "spec": {"group": "security.istio.io",
                "versions": [{"name": "v1"}]}, "status": {"conditions": [{"type": "Established", "status": "True"}]}})
        };
        let marks = |metadata: Value| definitions(&View::of("m", vec![definition(metadata)]))[0].mark;
        assert_eq!(marks(json!({"name": "x", "labels": {"app.kubernetes.io/part-of": "stillmesh"}})), Mark::Good);
        assert_eq!(marks(json!({"name": "x", "labels": {"app": "istio-pilot"}})), Mark::Doubt);
    }
}
