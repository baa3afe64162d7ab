//! Facts about the mesh's own parts. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use stillmesh_k8s::gateway::generate::GATEWAY_NAME;

use super::Fact;
use super::cluster::place;
use crate::cluster::rollout::{pod_trouble, progress};
use crate::cluster::skew::{Version, compatible};
use crate::cluster::value::{holds, is_waypoints, label, list, map, name, namespace, text};
use crate::cluster::version::told;
use crate::cluster::view::{Page, View};
use crate::cluster::zc::entry_facts;

/// A root that ends sooner than this is told.
const ROOT_SOON_SECONDS: i64 = 30 * 24 * 60 * 60;
/// A certificate that signs others and ends sooner than this is told.
const SIGNER_SOON_SECONDS: i64 = 14 * 24 * 60 * 60;
/// A certificate of which more is over should have been renewed: that is begun at half of its life, and tunnels take no new
/// streams from three quarters on.
const RENEWED_LATE_PERCENT: i64 = 70;

/// Deployments, DaemonSets, and each node's share of them.
pub(super) fn workloads(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let pods: Vec<Value> = view.own("Pod").cloned().collect();
    let ns = &view.mesh_namespace;
    for object in view.own("Deployment").chain(view.own("DaemonSet")) {
        let kind = text(&object["kind"]).to_lowercase();
        let progress = progress(object, &pods);
        let text = format!("{kind} {}: {}", place(object), progress.text);
        if progress.done {
            facts.push(Fact::good("workloads", text));
            continue;
        }
        // Of daemons the nodes tell below.
        let waiting =
            progress.waiting.iter().filter(|_| kind != "daemonset").map(|why| format!("; {why}")).collect::<String>();
        facts.push(Fact::bad(
            "workloads",
            format!("{text}{waiting}"),
            format!("kubectl -n {ns} describe {kind} {n}; kubectl -n {ns} logs {kind}/{n}", n = name(object)),
        ));
    }
    for (part, title) in [("stillmesh-cni", "node agent"), ("ztunnel", "ztunnel")] {
        if !view.own("DaemonSet").any(|object| label(object, "app.kubernetes.io/name") == Some(part)) {
            continue;
        }
        let without: Vec<&str> = view
            .list("Node")
            .iter()
            .filter(|node| is_linux(node))
            .map(name)
            .filter(|node| view.ready_on(part, node).is_none())
            .collect();
        for node in without {
            let pod = view.part(part).find(|pod| text(&pod["spec"]["nodeName"]) == node);
            let why = pod.and_then(pod_trouble).map_or("there is none".to_owned(), |why| why);
            let todo = pod
                .map_or(format!("look at the nodeSelector and tolerations of the DaemonSet in {ns}"), |pod| {
                    format!("kubectl -n {ns} logs {}", name(pod))
                });
            facts.push(Fact::bad("workloads", format!("node {node} has no {title} that is ready: {why}"), todo));
        }
    }
    facts.extend(versions(view));
    facts
}

/// Whether waypoints have pods: what is bound to one without is refused.
pub(super) fn waypoints(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut working = 0;
    for deployment in view
        .list("Deployment")
        .iter()
        .filter(|one| is_waypoints(one))
        .filter(|one| one["metadata"]["deletionTimestamp"].is_null())
    {
        if deployment["status"]["readyReplicas"].as_u64().unwrap_or_default() > 0 {
            working += 1;
            continue;
        }
        let (ns, gateway) = (namespace(deployment), label(deployment, GATEWAY_NAME).unwrap_or_default());
        facts.push(Fact::bad(
            "waypoints",
            format!("waypoint {ns}/{gateway} has no pod that is ready: connections to what is bound to it are refused"),
            format!("kubectl -n {ns} describe deployment {}; kubectl -n {ns} get pods", name(deployment)),
        ));
    }
    if working > 0 {
        facts.push(Fact::good("waypoints", format!("{working} waypoints have pods that are ready")));
    }
    facts
}

/// Whether the parts' versions go together.
fn versions(view: &View) -> Vec<Fact> {
    // What is connected says it itself: of a waypoint whose image is pinned the label tells the controller's version.
    let said: BTreeMap<String, String> = view.syncz.iter().flat_map(|page| page.page.iter().flat_map(told)).collect();
    let of = |pod: &Value| said.get(&format!("{}.{}", name(pod), namespace(pod))).cloned();
    let labelled = |pod: &Value| label(pod, "app.kubernetes.io/version").map(str::to_owned);
    let own = view
        .own("Pod")
        .filter_map(|pod| Some((label(pod, "app.kubernetes.io/name")?.to_owned(), of(pod).or_else(|| labelled(pod))?)));
    let waypoints = view.list("Pod").iter().filter(|pod| is_waypoints(pod));
    let waypoints = waypoints.filter_map(|pod| {
        let gateway = label(pod, GATEWAY_NAME).unwrap_or_default();
        Some((format!("waypoint {}/{gateway}", namespace(pod)), of(pod)?))
    });
    let mut there: Vec<(String, String)> = own.chain(waypoints).collect();
    there.sort();
    there.dedup();
    let parsed: Vec<Version> = there.iter().filter_map(|(_, version)| Version::parse(version)).collect();
    let words: Vec<String> = there.iter().map(|(part, version)| format!("{part} {version}")).collect();
    let apart = parsed.iter().any(|a| parsed.iter().any(|b| !compatible(a, b)));
    match parsed.iter().max().filter(|newest| parsed.iter().any(|one| one != *newest)) {
        _ if apart => vec![Fact::bad(
            "versions",
            format!("parts are more than one minor version apart: {}", words.join(", ")),
            "stillmesh upgrade",
        )],
        Some(_) => vec![Fact::doubt(
            "versions",
            format!("parts of several versions: {}", words.join(", ")),
            "stillmesh upgrade finishes it",
        )],
        None => parsed.first().map(of_command).into_iter().collect(),
    }
}

/// Whether this command goes with the parts, which are all of one version.
fn of_command(parts: &Version) -> Fact {
    let own = env!("CARGO_PKG_VERSION");
    match Version::parse(own) {
        Some(command) if command == *parts => {
            Fact::good("versions", format!("all parts are of version {parts}, as this command"))
        }
        Some(command) if compatible(&command, parts) => Fact::good(
            "versions",
            format!("all parts are of version {parts}; this command is {own}, which goes with them"),
        ),
        _ => Fact::doubt(
            "versions",
            format!("all parts are of version {parts}, and this command is {own}: more than one minor version apart"),
            format!("use the command of version {parts}, or stillmesh upgrade"),
        ),
    }
}

fn is_linux(node: &Value) -> bool {
    node["status"]["nodeInfo"]["operatingSystem"].as_str().is_none_or(|system| system == "linux")
}

/// Whether every part can be asked.
pub(super) fn answers(view: &View) -> Vec<Fact> {
    let all = [&view.agents, &view.dumps, &view.syncz];
    all.into_iter().flat_map(|pages| unanswered(pages, &view.mesh_namespace)).collect()
}

fn unanswered(pages: &[Page], ns: &str) -> Vec<Fact> {
    let fact = |page: &Page| {
        let why = page.page.as_ref().err()?;
        Some(Fact::bad(
            "answers",
            format!("{} on node {} does not answer: {why}", page.pod, page.node),
            format!("kubectl -n {ns} logs {}", page.pod),
        ))
    };
    pages.iter().filter_map(fact).collect()
}

/// The streams on a page of a controller.
fn streams_of(page: &Value) -> impl Iterator<Item = &Value> {
    list(page).chain(list(&page["nodes"]))
}

/// Whether every tunnel has what its controller has sent.
pub(super) fn sync(view: &View) -> Vec<Fact> {
    let answered: Vec<(&Page, &Value)> =
        view.syncz.iter().filter_map(|page| Some((page, page.page.as_ref().ok()?))).collect();
    if answered.is_empty() {
        return Vec::new();
    }
    let mut facts = Vec::new();
    let mut synced = 0;
    for tunnel in view.part("ztunnel").filter(|pod| holds(pod, "Ready")) {
        let node = text(&tunnel["spec"]["nodeName"]);
        let streams: Vec<(&Page, &Value)> = answered
            .iter()
            .flat_map(|(page, value)| streams_of(value).map(move |one| (*page, one)))
            .filter(|(_, one)| text(&one["proxy"]).starts_with(name(tunnel)) || text(&one["node"]) == node)
            .collect();
        if streams.is_empty() {
            facts.push(Fact::bad(
                "sync",
                format!("ztunnel of node {node} has no stream to a controller: it goes on with what it knows"),
                format!("kubectl -n {} logs {}", view.mesh_namespace, name(tunnel)),
            ));
            continue;
        }
        let before = facts.len();
        for (page, stream) in streams {
            for (kind, state) in map(&stream["types"]) {
                let kind = kind.rsplit('.').next().unwrap_or(kind);
                if state["status"] == "REJECTED" {
                    let why: Vec<String> = list(&state["rejected"])
                        .map(|one| format!("{}: {}", text(&one["name"]), text(&one["reason"])))
                        .collect();
                    facts.push(Fact::bad(
                        "sync",
                        format!("ztunnel of node {node} refuses {kind} of {}: {}", page.pod, why.join("; ")),
                        "it keeps the version before; change the object that is named, or upgrade the older part",
                    ));
                } else if state["status"] == "STALE" {
                    facts.push(Fact::doubt(
                        "sync",
                        format!("ztunnel of node {node} has not confirmed the newest {kind} of {}", page.pod),
                        "ask again in a second; if it stays so, look at the ztunnel's log",
                    ));
                }
            }
        }
        if facts.len() == before {
            synced += 1;
        }
    }
    if synced > 0 {
        facts.push(Fact::good("sync", format!("{synced} ztunnels have the newest configuration")));
    }
    facts
}

/// Whether the certificates that tunnels hold, those that signed them, and the roots are valid, and how old they are.
pub(super) fn certificates(view: &View, now: Timestamp) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut valid: Vec<Life> = Vec::new();
    let (mut roots, mut signers) = (BTreeMap::<String, Timestamp>::new(), BTreeMap::<String, Timestamp>::new());
    for page in &view.dumps {
        let Ok(dump) = &page.page else { continue };
        for entry in list(&dump["certificates"]) {
            let (identity, state) = (text(&entry["identity"]), text(&entry["state"]));
            let mut chain = list(&entry["certChain"]).map(entry_facts);
            let leaf = chain.next();
            signers.extend(chain.flatten().map(|signer| (signer.serial, signer.not_after)));
            roots.extend(list(&entry["rootCerts"]).filter_map(entry_facts).map(|root| (root.serial, root.not_after)));
            let logs = format!("kubectl -n {} logs {}", view.mesh_namespace, page.pod);
            let life = leaf.flatten().map(|leaf| Life { from: leaf.not_before, to: leaf.not_after });
            match life {
                _ if state.starts_with("Unavailable") => facts.push(Fact::bad(
                    "certificates",
                    format!("node {}: no certificate for {identity}: {state}", page.node),
                    format!("kubectl -n {} logs deployment/stillmesh-controller", view.mesh_namespace),
                )),
                Some(life) if life.to < now => facts.push(Fact::bad(
                    "certificates",
                    format!("node {}: the certificate of {identity} ended at {}", page.node, life.to),
                    format!("check the clocks of the nodes, and for why it got no new one: {logs}"),
                )),
                Some(life) if life.from > now => facts.push(Fact::bad(
                    "certificates",
                    format!("node {}: the certificate of {identity} is valid from {} on, and not yet", page.node, life.from),
                    "the clock of who made it is ahead: set the nodes' clocks by NTP",
                )),
                Some(life) if life.over(now) > RENEWED_LATE_PERCENT => facts.push(Fact::doubt(
                    "certificates",
                    format!(
                        "node {}: the certificate of {identity} was not renewed: {} % of its life are over, it ends at {}",
                        page.node,
                        life.over(now),
                        life.to
                    ),
                    format!("it is renewed at half of its life; for why not: {logs}"),
                )),
                Some(life) => valid.push(life),
                None => facts.push(Fact::doubt(
                    "certificates",
                    format!("node {}: the certificate of {identity} is still being asked for ({state})", page.node),
                    "ask again in a second",
                )),
            }
        }
    }
    // Chains end with a root.
    signers.retain(|serial, _| !roots.contains_key(serial));
    let todo = "replace Secret cacerts by a newer signing certificate of the same root";
    for (serial, end) in &signers {
        facts.push(ends("signing certificate", serial, *end, now, SIGNER_SOON_SECONDS, todo));
    }
    for (serial, end) in &roots {
        facts.push(ends(
            "root",
            serial,
            *end,
            now,
            ROOT_SOON_SECONDS,
            "rotate the root: annotation stillmesh.io/rotate-root",
        ));
    }
    if let Some(oldest) = valid.iter().max_by_key(|life| life.over(now)) {
        let hours = (oldest.to.as_second() - oldest.from.as_second()) / 3600;
        let text = format!(
            "{} certificates of workloads are valid; of the oldest {} % of {hours} h are over (renewed at half)",
            valid.len(),
            oldest.over(now)
        );
        facts.push(Fact::good("certificates", text));
    }
    facts
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug)]
struct Life {
    from: Timestamp,
    to: Timestamp,
}

impl Life {
    /// How much of it is over, percent.
    fn over(self, now: Timestamp) -> i64 {
        let whole = (self.to.as_second() - self.from.as_second()).max(1);
        (now.as_second() - self.from.as_second()) * 100 / whole
    }
}

/// When something ends that others are signed by.
fn ends(what: &str, serial: &str, end: Timestamp, now: Timestamp, soon_seconds: i64, todo: &str) -> Fact {
    let left = end.as_second() - now.as_second();
    let title = format!("the {what} with serial number {serial}");
    match left {
        ..0 => Fact::bad("certificates", format!("{title} ended at {end}"), todo),
        _ if left < soon_seconds => {
            Fact::doubt("certificates", format!("{title} ends at {end}"), format!("{todo}, before"))
        }
        _ => Fact::good("certificates", format!("{title} ends in {} days", left / (24 * 60 * 60))),
    }
}

/// Whether the API server can ask the controller when policies are written.
pub(super) fn webhooks(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    for object in view.own("ValidatingWebhookConfiguration") {
        for webhook in list(&object["webhooks"]) {
            let what = format!("webhook {}", name(object));
            let service = text(&webhook["clientConfig"]["service"]["name"]);
            let slices = view.list("EndpointSlice").iter();
            let slices = slices.filter(|slice| label(slice, "kubernetes.io/service-name") == Some(service));
            // One for each family of addresses.
            let ready: BTreeSet<String> = slices
                .flat_map(|slice| list(&slice["endpoints"]))
                .filter(|one| one["conditions"]["ready"] != false)
                .map(|one| {
                    one["targetRef"]["name"].as_str().map_or_else(|| one["addresses"].to_string(), str::to_owned)
                })
                .collect();
            let ready = ready.len();
            let logs = format!("kubectl -n {} logs deployment/stillmesh-controller", view.mesh_namespace);
            if text(&webhook["clientConfig"]["caBundle"]).is_empty() {
                facts.push(Fact::bad(
                    "webhook",
                    format!("{what} has no certificate authority: policies are stored unchecked"),
                    logs,
                ));
            } else if ready == 0 {
                facts.push(Fact::bad(
                    "webhook",
                    format!("{what}: service {service} has no endpoint that is ready"),
                    logs,
                ));
            } else {
                facts.push(Fact::good("webhook", format!("{what} is trusted, and {ready} endpoints answer it")));
            }
        }
    }
    facts
}

/// Policies that are not in force as they are written.
pub(super) fn policies(view: &View) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut accepted = 0;
    for policy in view.list("AuthorizationPolicy").iter().chain(view.list("PeerAuthentication")) {
        let negative: Vec<String> = list(&policy["status"]["conditions"])
            .filter(|condition| condition["status"] == "False")
            .map(|condition| {
                format!("{}: {}: {}", text(&condition["type"]), text(&condition["reason"]), text(&condition["message"]))
            })
            .collect();
        let kind = text(&policy["kind"]);
        if negative.is_empty() {
            accepted += 1;
        } else {
            facts.push(Fact::bad(
                "policies",
                format!("{kind} {} is not in force as it is written: {}", place(policy), negative.join("; ")),
                format!(
                    "kubectl -n {} describe {} {}",
                    crate::cluster::value::namespace(policy),
                    kind.to_lowercase(),
                    name(policy)
                ),
            ));
        }
    }
    if accepted > 0 {
        facts.push(Fact::good("policies", format!("{accepted} policies have no status that is False")));
    }
    facts
}

/// What the controllers find wrong with objects.
pub(super) fn found(view: &View) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::new();
    for page in &view.findings {
        for finding in page.page.iter().flat_map(list) {
            let (object, path) = (text(&finding["object"]), text(&finding["path"]));
            let place = [object, path]
                .iter()
                .filter(|part| !part.is_empty())
                .map(|part| format!("{part}: "))
                .collect::<String>();
            let text = format!("{place}{} ({})", text(&finding["message"]), text(&finding["code"]));
            let hint = match finding["hint"].as_str() {
                Some(hint) if !hint.is_empty() => hint.to_owned(),
                _ => "look at the object".to_owned(),
            };
            let fact = if finding["severity"] == "error" {
                Fact::bad("findings", text, hint)
            } else {
                Fact::doubt("findings", text, hint)
            };
            if !facts.contains(&fact) {
                facts.push(fact);
            }
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stillmesh_k8s::gateway::binding::MANAGED;
    use stillmesh_k8s::gateway::generate::CLASS_NAME;

    use super::*;
    use crate::output::Mark;

    fn own(kind: &str, name: &str, part: &str, rest: Value) -> Value {
        let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": "m", "generation": 1, "labels": {
            "app.kubernetes.io/part-of": "stillmesh", "app.kubernetes.io/name": part, "app.kubernetes.io/version": "0.1.0"}}});
        for (key, value) in rest.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    }

    fn node(name: &str) -> Value {
        json!({"kind": "Node", "metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    }

    fn tunnel(node: &str, ready: &str) -> Value {
        own(
            "Pod",
            &format!("ztunnel-{node}"),
            "ztunnel",
            json!({"spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}),
        )
    }

    fn page(value: Value) -> Page {
        Page { pod: "stillmesh-controller-1".into(), node: "n1".into(), page: Ok(value) }
    }

    #[test]
    fn a_waypoint_without_pods_is_wrong_and_a_gateway_is_none() {
        let of = |name: &str, class: &str, ready: u64| {
            json!({"kind": "Deployment", "metadata": {"name": name, "namespace": "shop", "labels":
                {GATEWAY_NAME: name, CLASS_NAME: class}}, "status": {"readyReplicas": ready}})
        };
        let mut own_class = of("mine", "mine", 1);
        own_class["metadata"]["labels"][MANAGED] = json!("istio.io-mesh-controller");
        let all =
            vec![own_class, of("works", "istio-waypoint", 1), of("gone", "istio-waypoint", 0), of("edge", "istio", 0)];
        let facts = waypoints(&View::of("m", all));
        let said: Vec<(Mark, &str)> = facts.iter().map(|fact| (fact.mark, fact.text.as_str())).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].0 == Mark::Bad && said[0].1.starts_with("waypoint shop/gone has no pod"), "{said:?}");
        assert_eq!(said[1], (Mark::Good, "2 waypoints have pods that are ready"));
    }

    #[test]
    fn an_agent_that_does_not_answer_is_named_with_its_node() {
        let mut view = View::of("m", vec![]);
        let page = |why: &str| Page { pod: "agent-1".into(), node: "n1".into(), page: Err(why.into()) };
        view.agents = vec![page("no answer within 15s"), Page { page: Ok(Value::Null), ..page("") }];
        let facts = answers(&view);
        assert_eq!(facts.len(), 1);
        assert_eq!(facts[0].text, "agent-1 on node n1 does not answer: no answer within 15s");
    }

    #[test]
    fn a_node_without_a_ready_tunnel_is_named_with_the_command_to_run() {
        let daemon = own(
            "DaemonSet",
            "ztunnel",
            "ztunnel",
            json!({"spec": {"selector": {"matchLabels": {}}}, "status": {
            "observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": 1}}),
        );
        let view = View::of("m", vec![daemon, node("n1"), node("n2"), tunnel("n1", "True"), tunnel("n2", "False")]);
        let facts = workloads(&view);
        let bad: Vec<&Fact> = facts.iter().filter(|fact| fact.mark == Mark::Bad).collect();
        assert_eq!(bad.len(), 2, "{facts:?}");
        assert!(bad[1].text.starts_with("node n2 has no ztunnel"), "{bad:?}");
        assert_eq!(bad[1].todo.as_deref(), Some("kubectl -n m logs ztunnel-n2"));
    }

    #[test]
    fn what_a_tunnel_refuses_is_told_with_the_reason() {
        let mut view = View::of("m", vec![tunnel("n1", "True"), tunnel("n2", "True"), tunnel("n3", "True")]);
        let stream = |node: &str, status: Value| {
            json!({"proxy": format!("ztunnel-{node}.m"), "node": node, "types": {
            "type.googleapis.com/istio.security.Authorization": status}})
        };
        view.syncz = vec![page(json!({"nodes": [
            stream("n1", json!({"status": "SYNCED"})),
            stream("n2", json!({"status": "REJECTED", "rejected": [{"name": "shop/p", "reason": "unknown field"}]})),
        ]}))];
        let facts = sync(&view);
        let said: Vec<(Mark, &str)> = facts.iter().map(|fact| (fact.mark, fact.text.as_str())).collect();
        assert_eq!(
            said[0],
            (Mark::Bad, "ztunnel of node n2 refuses Authorization of stillmesh-controller-1: shop/p: unknown field")
        );
        assert!(said[1].1.contains("node n3 has no stream"), "{said:?}");
        assert_eq!(said[2], (Mark::Good, "1 ztunnels have the newest configuration"));
    }

    #[test]
    fn certificates_are_judged_by_their_age() {
        let one = |serial: &str, from: &str, to: &str| json!({"serialNumber": serial, "validFrom": from, "expirationTime": to});
        let root = one("1", "2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z");
        let told = |leaf: Value, signer: Value, root: &Value| {
            let entry = json!({"identity": "spiffe://d/ns/a/sa/b", "state": "Available",
                "certChain": [leaf, signer, root], "rootCerts": [root]});
            let mut view = View::of("m", vec![]);
            view.dumps = vec![page(json!({"certificates": [entry]}))];
            let facts = certificates(&view, "2026-02-01T12:00:00Z".parse().unwrap());
            facts.iter().map(|fact| fact.mark).collect::<Vec<_>>()
        };
        let leaf = |from: &str, to: &str| one("9", from, to);
        let fresh = || leaf("2026-02-01T06:00:00Z", "2026-02-02T06:00:00Z");
        let signer = || one("2", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
        assert_eq!(told(fresh(), signer(), &root), [Mark::Good; 3]);
        for (leaf, mark) in [
            (leaf("2026-01-31T17:00:00Z", "2026-02-01T17:00:00Z"), Mark::Doubt),
            (leaf("2026-01-30T06:00:00Z", "2026-01-31T06:00:00Z"), Mark::Bad),
            (leaf("2026-02-01T13:00:00Z", "2026-02-02T13:00:00Z"), Mark::Bad),
        ] {
            assert_eq!(told(leaf.clone(), signer(), &root), [mark, Mark::Good, Mark::Good], "{leaf}");
        }
        let soon = one("2", "2026-01-01T00:00:00Z", "2026-02-10T00:00:00Z");
        assert_eq!(told(fresh(), soon, &root), [Mark::Doubt, Mark::Good, Mark::Good]);
        let ended = one("1", "2016-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
        assert_eq!(told(fresh(), signer(), &ended), [Mark::Good, Mark::Bad, Mark::Good]);
    }

    #[test]
    fn a_webhook_that_nobody_trusts_is_wrong() {
        let hook = |bundle: &str| {
            own(
                "ValidatingWebhookConfiguration",
                "v",
                "stillmesh-controller",
                json!({"webhooks": [
            {"clientConfig": {"caBundle": bundle, "service": {"name": "c"}}}]}),
            )
        };
        let slice = json!({"kind": "EndpointSlice", "metadata": {"name": "c-1", "namespace": "m", "labels": {
            "kubernetes.io/service-name": "c"}}, "endpoints": [{"conditions": {"ready": true}}]});
        let mark = |objects: Vec<Value>| webhooks(&View::of("m", objects))[0].mark;
        let mut global = hook("x");
        global["metadata"]["namespace"] = Value::Null;
        assert_eq!(mark(vec![global.clone(), slice]), Mark::Good);
        assert_eq!(mark(vec![global]), Mark::Bad);
        assert_eq!(mark(vec![hook("")]), Mark::Bad);
    }

    #[test]
    fn a_policy_that_is_not_in_force_is_wrong() {
        let policy = |status: &str| {
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
            "status": {"conditions": [{"type": "ZtunnelAccepted", "status": status, "reason": "R", "message": "why"}]}})
        };
        assert_eq!(policies(&View::of("m", vec![policy("True")]))[0].mark, Mark::Good);
        let bad = policies(&View::of("m", vec![policy("False")]));
        assert!(bad[0].mark == Mark::Bad && bad[0].text.contains("ZtunnelAccepted: R: why"), "{bad:?}");
    }

    #[test]
    fn parts_of_versions_too_far_apart_are_wrong() {
        let pod = |part: &str, version: &str| {
            let mut pod = own("Pod", part, part, json!({}));
            pod["metadata"]["labels"]["app.kubernetes.io/version"] = json!(version);
            pod
        };
        let marks = |a: &str, b: &str| {
            let facts = versions(&View::of("m", vec![pod("ztunnel", a), pod("stillmesh-controller", b)]));
            facts.first().map(|fact| fact.mark)
        };
        assert_eq!(marks("0.1.0", "0.1.0"), Some(Mark::Good));
        assert_eq!(marks("0.9.0", "0.9.0"), Some(Mark::Doubt), "this command is older");
        assert_eq!(marks("0.1.0", "0.2.0"), Some(Mark::Doubt));
        assert_eq!(marks("0.1.0", "0.3.0"), Some(Mark::Bad));
        // A waypoint whose image is pinned is labelled with the controller's version all the same.
        let waypoint = json!({"kind": "Pod", "metadata": {"name": "w-1", "namespace": "shop", "labels":
            {GATEWAY_NAME: "w", CLASS_NAME: "istio-waypoint", "app.kubernetes.io/version": "0.3.0"}}});
        let mut view = View::of("m", vec![pod("stillmesh-controller", "0.3.0"), waypoint]);
        view.syncz = vec![page(json!([{"proxy": "w-1.shop", "istio_version": "0.1.0"}]))];
        let facts = versions(&view);
        assert!(facts[0].mark == Mark::Bad && facts[0].text.contains("waypoint shop/w 0.1.0"), "{facts:?}");
    }
}
