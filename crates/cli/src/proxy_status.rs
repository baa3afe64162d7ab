//! `stillmesh proxy-status`: which proxies are connected to which controller, and how they take what they are sent (contract 10).
//! Every replica is asked for its `/debug/syncz`; an istiod's page reads the same way but for what it does not say.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::cluster::access::Forbidden;
use crate::cluster::args::{Format, MeshNamespace, WhichMesh, namespace_name};
use crate::cluster::value::{list, map, name, namespace, text};
use crate::cluster::zc::{or_none, print};
use crate::machine::{system, tunnels};
use crate::offline::settings::CONTROLLERS;
use crate::output::{aligned, line, note};
use crate::why::place::{MONITORING, Place, Proxy};

/// Labels of tunnels' pods (contract 11.2).
const TUNNELS: &str = "app=ztunnel";

/// `stillmesh proxy-status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0, or 1 when a controller does not answer, tunnels cannot be looked for, or nobody of that name is connected."
)]
pub(crate) struct ProxyStatus {
    /// Only these: a pod, or with a TYPE such as deployment, daemonset or gateway the pods that it has made
    #[arg(value_name = "[TYPE/]NAME[.NAMESPACE]")]
    proxy: Option<String>,
    /// With 1 a column for each type, with how it stands
    #[arg(long, short, default_value_t = 0)]
    verbosity: u8,
    /// How to print; `short` is `table`
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    /// Only proxies of this namespace, whose pods alone need be seen, as those of the namespace in a NAME; any when absent
    #[arg(long, short, value_parser = namespace_name)]
    namespace: Option<String>,
    #[command(flatten)]
    which: WhichMesh,
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// Carries it out.
pub(crate) async fn run(args: &ProxyStatus) -> anyhow::Result<ExitCode> {
    let wanted = args.proxy.as_deref().map(|text| Wanted::parse(text, args.namespace.as_deref())).transpose()?;
    let place = Place::find(&args.which).await?;
    let (mut found, mut whole) = (Vec::new(), true);
    for (pod, controller) in controllers(&place, &args.mesh.mesh_namespace).await? {
        match page(&controller).await {
            Ok(page) => found.extend(streams(&page, &pod)),
            Err(error) => {
                whole = false;
                note(&format!("{pod} has not answered, so who is connected to it is not told: {error:#}"));
            }
        }
    }
    if whole {
        let known: BTreeSet<String> = found.iter().map(|one| text(&one["proxy"]).to_owned()).collect();
        let of = looked_in(wanted.as_ref(), args.namespace.as_deref());
        let (tunnels, missing) = tunnels(&place, of, &args.mesh.mesh_namespace).await?;
        if let Some(missing) = missing {
            whole = false;
            note(&missing);
        }
        let runs = |pod: &&Value| pod["status"]["phase"] == "Running";
        let names = tunnels.iter().filter(runs).map(|pod| format!("{}.{}", name(pod), namespace(pod)));
        found
            .extend(names.filter(|one| !known.contains(one)).map(|one| json!({"proxy": one, "proxy_type": "ztunnel"})));
    }
    found.retain(|one| is_asked_for(text(&one["proxy"]), wanted.as_ref(), args.namespace.as_deref()));
    found.sort_by(|one, other| {
        (text(&one["proxy"]), text(&one["istiod"])).cmp(&(text(&other["proxy"]), text(&other["istiod"])))
    });
    match args.output {
        Format::Table if found.is_empty() => {}
        Format::Table => {
            line(&aligned(&rows(&found, args.verbosity > 0)));
            refusals(&found).iter().for_each(|refusal| note(refusal));
        }
        format => line(&print(&Value::from(found.clone()), format)?),
    }
    if let (true, Some(asked)) = (found.is_empty(), &args.proxy) {
        bail!("nobody named {asked:?} is connected; `stillmesh proxy-status` shows who is");
    }
    if found.is_empty() {
        note("no proxy is connected");
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The one namespace whose pods can be meant: that of the name, where it carries one; `None` where any can.
fn looked_in<'a>(wanted: Option<&'a Wanted>, namespace: Option<&'a str>) -> Option<&'a str> {
    wanted.and_then(|wanted| wanted.namespace.as_deref()).or(namespace)
}

/// Tunnels' pods, of one namespace or all, and what cannot be seen of them, with the right that is missing.
async fn tunnels(
    place: &Place,
    namespace: Option<&str>,
    mesh_namespace: &str,
) -> anyhow::Result<(Vec<Value>, Option<String>)> {
    let error = match place.list("Pod", namespace.unwrap_or_default(), TUNNELS).await {
        Ok(pods) => return Ok((pods, None)),
        Err(error) if error.is::<Forbidden>() => error,
        Err(error) => return Err(error),
    };
    if let Some(namespace) = namespace {
        let missing = format!(
            "tunnels that are not connected are not told: that takes the right to list pods in namespace {namespace} ({error:#})"
        );
        return Ok((Vec::new(), Some(missing)));
    }
    let missing = format!(
        "of tunnels that are not connected those in namespace {mesh_namespace} alone are told: for all it takes the right to \
         list pods in every namespace ({error:#}); -n means one namespace"
    );
    Ok((place.list("Pod", mesh_namespace, TUNNELS).await?, Some(missing)))
}

/// Whether `pod.namespace` is what is asked for.
fn is_asked_for(proxy: &str, wanted: Option<&Wanted>, namespace: Option<&str>) -> bool {
    match (wanted, namespace) {
        (Some(wanted), _) => wanted.means(proxy),
        (None, Some(namespace)) => proxy.rsplit_once('.').is_some_and(|(_, place)| place == namespace),
        (None, None) => true,
    }
}

/// The controllers of a mesh, each with the name of its pod. Never empty.
pub(crate) async fn controllers(place: &Place, mesh_namespace: &str) -> anyhow::Result<Vec<(String, Proxy)>> {
    match place {
        Place::Here { mesh } => {
            let pod = system::CONTROLLER.to_owned();
            let namespace = tunnels::NAMESPACE.to_owned();
            Ok(vec![(pod.clone(), Proxy::Here { mesh: mesh.clone(), namespace, pod })])
        }
        Place::Cluster { .. } => {
            let listed = place.list("Pod", mesh_namespace, CONTROLLERS).await;
            let pods = listed.map_err(|error| match error.is::<Forbidden>() {
                true => error.context(format!(
                    "who is connected is known to the controllers alone: that takes the rights to list pods and to create \
                     pods/portforward in namespace {mesh_namespace}, where they run (--mesh-namespace names another)"
                )),
                false => error,
            })?;
            let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running");
            let found: Vec<_> = running.filter_map(|pod| Some((name(pod).to_owned(), place.proxy(pod)?))).collect();
            ensure!(
                !found.is_empty(),
                "no controller runs in namespace {mesh_namespace} (no running pod labelled {CONTROLLERS}); \
                 --mesh-namespace names another, `stillmesh check` says more"
            );
            Ok(found)
        }
        Place::Objects(_) => bail!("manifests have no controller: a mesh that runs is needed"),
    }
}

async fn page(controller: &Proxy) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&controller.page(MONITORING, "/debug/syncz").await?)?)
}

/// The streams of a controller's page, with who told of them.
fn streams(page: &Value, controller: &str) -> Vec<Value> {
    let told = |one: &Value| {
        let mut one = one.clone();
        one["istiod"] = controller.into();
        one
    };
    list(page).map(told).collect()
}

/// What a type is called in columns: Istio's short names where there is one.
fn short(url: &str) -> &str {
    match url.rsplit_once('.').map_or(url, |(_, kind)| kind) {
        "Address" => "WDS",
        "Authorization" => "WADS",
        kind => kind,
    }
}

fn rows(found: &[Value], every_type: bool) -> Vec<Vec<String>> {
    let kinds: BTreeSet<&str> = found.iter().flat_map(|one| map(&one["types"])).map(|(url, _)| short(url)).collect();
    let mut heads = ["NAME", "CLUSTER", "ISTIOD", "VERSION"].map(str::to_owned).to_vec();
    if every_type {
        heads.extend(kinds.iter().map(|kind| kind.to_uppercase()));
    } else {
        heads.push("SUBSCRIBED TYPES".to_owned());
    }
    let mut rows = vec![heads];
    for one in found {
        let cell = |key: &str| or_none(text(&one[key]));
        let mut row = ["proxy", "cluster_id", "istiod", "istio_version"].map(cell).to_vec();
        let states: BTreeMap<&str, &str> =
            map(&one["types"]).map(|(url, state)| (short(url), text(&state["status"]))).collect();
        if every_type {
            row.extend(kinds.iter().map(|kind| or_none(states.get(kind).copied().unwrap_or_default())));
        } else if one["types"].is_object() {
            let asked: Vec<&str> =
                states.iter().filter(|(_, status)| **status != "IGNORED").map(|(kind, _)| *kind).collect();
            row.push(format!("{} ({})", asked.len(), asked.join(",")));
        } else {
            row.push("not connected".to_owned());
        }
        rows.push(row);
    }
    rows
}

/// What proxies have refused, one line each.
fn refusals(found: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for one in found {
        for (url, state) in map(&one["types"]) {
            for refused in list(&state["rejected"]) {
                let (kind, proxy) = (short(url), text(&one["proxy"]));
                lines.push(format!("{proxy} refuses {kind} {}: {}", text(&refused["name"]), text(&refused["reason"])));
            }
        }
    }
    lines
}

/// Which proxies are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    name: String,
    namespace: Option<String>,
    /// The name is that of what has made the pods.
    is_owner: bool,
}

impl Wanted {
    /// Reads `[TYPE/]NAME[.NAMESPACE]`.
    pub(crate) fn parse(text: &str, namespace: Option<&str>) -> anyhow::Result<Self> {
        let (is_owner, rest) = match text.split_once('/') {
            None | Some(("pod" | "pods" | "po", _)) => (false, text.split_once('/').map_or(text, |(_, rest)| rest)),
            Some((
                "deployment" | "deployments" | "deploy" | "daemonset" | "daemonsets" | "ds" | "statefulset" | "sts"
                | "gateway" | "gateways" | "gtw" | "waypoint",
                rest,
            )) => (true, rest),
            Some((kind, _)) => bail!(
                "{text:?}: proxies are found by pod, deployment, daemonset, statefulset or gateway, not by {kind}"
            ),
        };
        let (name, place) = match rest.rsplit_once('.') {
            Some((name, place)) => (name, Some(place)),
            None => (rest, namespace),
        };
        let good =
            |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        ensure!(!name.is_empty() && good(name), "{text:?} names no pod; [TYPE/]NAME[.NAMESPACE] is accepted");
        if let Some(place) = place {
            namespace_name(place).map_err(|why| anyhow::anyhow!("{text:?}: {why}"))?;
        }
        Ok(Self { name: name.to_owned(), namespace: place.map(str::to_owned), is_owner })
    }

    /// Whether the name is that of what has made the pods.
    pub(crate) fn is_owner(&self) -> bool {
        self.is_owner
    }

    /// Whether `pod.namespace` is meant.
    pub(crate) fn means(&self, proxy: &str) -> bool {
        let (pod, place) = proxy.rsplit_once('.').unwrap_or((proxy, ""));
        // What a ReplicaSet and a pod add to a name, and no more: another's name may begin like this one.
        let is_added = |rest: &str| rest.strip_prefix('-').is_some_and(|rest| rest.split('-').count() <= 2);
        let of_owner = || pod.strip_prefix(self.name.as_str()).is_some_and(|rest| rest.is_empty() || is_added(rest));
        let is_named = if self.is_owner { of_owner() } else { pod == self.name };
        is_named && self.namespace.as_deref().is_none_or(|wanted| wanted == place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::access::reach;
    use crate::cluster::fake::{self, ApiServer};
    use crate::cluster::objects::Objects;

    /// Taken from the controller of a running mesh.
    fn ours() -> Vec<Value> {
        let page: Value = serde_json::from_str(include_str!("../fixtures/proxy/syncz.json")).unwrap();
        streams(&page, "stillmesh-controller")
    }

    #[test]
    fn the_tables_of_a_running_mesh_are_as_they_were() {
        let mut found = ours();
        found.push(json!({"proxy": "ztunnel-node9.istio-system", "proxy_type": "ztunnel"}));
        assert_eq!(aligned(&rows(&found, false)), include_str!("../fixtures/proxy/status.txt").trim_end());
        assert_eq!(aligned(&rows(&found, true)), include_str!("../fixtures/proxy/status-types.txt").trim_end());
        assert!(refusals(&found).is_empty());
    }

    /// A cluster whose user may list pods in these namespaces; each has one tunnel.
    async fn cluster(may: &'static [&'static str]) -> (ApiServer, Place) {
        let server = ApiServer::start(move |path, _| {
            let namespace = path.strip_prefix("/api/v1/namespaces/").and_then(|rest| rest.strip_suffix("/pods"));
            let pod =
                |namespace| json!({"metadata": {"name": "z", "namespace": namespace}, "status": {"phase": "Running"}});
            match namespace.filter(|one| may.contains(one)) {
                Some(namespace) => Some(fake::list(&[pod(namespace)])),
                None => path.ends_with("/pods").then(|| fake::forbidden("pods is forbidden: jo")),
            }
        });
        let server = server.await.unwrap();
        let objects = Objects::new(reach(&server.access()).await.unwrap().client());
        (server, Place::Cluster { objects })
    }

    #[tokio::test]
    async fn who_may_see_one_namespace_is_told_of_it_and_which_right_is_missing() {
        let (_server, place) = cluster(&["mesh", "shop"]).await;
        let named = |pods: &[Value]| pods.iter().map(|pod| namespace(pod).to_owned()).collect::<Vec<_>>();
        let (pods, missing) = tunnels(&place, Some("shop"), "mesh").await.unwrap();
        assert_eq!((named(&pods), missing), (vec!["shop".to_owned()], None));
        let wanted = Wanted::parse("gateway/waypoint.shop", None).unwrap();
        let (pods, missing) = tunnels(&place, looked_in(Some(&wanted), None), "mesh").await.unwrap();
        assert_eq!((named(&pods), missing), (vec!["shop".to_owned()], None), "the name says where");
        let (pods, missing) = tunnels(&place, None, "mesh").await.unwrap();
        assert_eq!(named(&pods), ["mesh"]);
        let missing = missing.unwrap();
        assert!(missing.contains("list pods in every namespace") && missing.contains("jo"), "{missing}");
        let (pods, missing) = tunnels(&place, Some("other"), "mesh").await.unwrap();
        assert_eq!(named(&pods), Vec::<String>::new());
        assert!(missing.unwrap().contains("list pods in namespace other"));
        assert_eq!(controllers(&place, "mesh").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_may_not_see_the_controllers_is_told_what_it_takes() {
        let (_server, place) = cluster(&["shop"]).await;
        let Err(error) = controllers(&place, "mesh").await else { panic!("controllers were found") };
        let error = format!("{error:#}");
        for part in ["list pods", "create pods/portforward in namespace mesh", "jo"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_namespace_alone_means_all_its_proxies() {
        let asked = |proxy, name: Option<&str>, namespace| {
            let wanted = name.map(|name| Wanted::parse(name, namespace).unwrap());
            is_asked_for(proxy, wanted.as_ref(), namespace)
        };
        assert!(asked("w.shop", None, None) && asked("w.shop", None, Some("shop")));
        assert!(!asked("w.shop", None, Some("hop")) && !asked("w.shop", None, Some("other")));
        assert!(asked("w.shop", Some("w"), Some("shop")) && !asked("v.shop", Some("w"), Some("shop")));
        assert!(asked("w.shop", Some("w.shop"), Some("other")), "the name carries one");
    }

    #[test]
    fn what_is_refused_is_said_by_name() {
        let url = "type.googleapis.com/istio.security.Authorization";
        let one = json!({"proxy": "z.m", "types": {url: {"status": "REJECTED", "rejected": [{"name": "a/b", "reason": "odd"}]}}});
        assert_eq!(refusals(std::slice::from_ref(&one)), ["z.m refuses WADS a/b: odd"]);
        assert_eq!(rows(&[one], true)[1][4], "REJECTED");
    }

    #[test]
    fn proxies_are_meant_by_pod_or_by_what_has_made_them() {
        let means =
            |text: &str, namespace: Option<&str>, proxy: &str| Wanted::parse(text, namespace).unwrap().means(proxy);
        assert!(means("web-1", None, "web-1.shop") && means("pod/web-1.shop", Some("x"), "web-1.shop"));
        assert!(!means("web", None, "web-1.shop") && !means("web-1", Some("other"), "web-1.shop"));
        assert!(means("deploy/web", None, "web-1-x.shop") && !means("deploy/web", None, "webby-1.shop"));
        for (wrong, says) in
            [("svc/web", "not by svc"), ("", "names no pod"), ("a b", "names no pod"), ("x.N", "lower case")]
        {
            let error = Wanted::parse(wrong, None).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
