//! `stillmesh version`: of this command, of the control plane, of the node tunnels (contract 10).

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use futures::future::join_all;
use serde_json::{Value, json};

use super::args::{MeshNamespace, Report, WhichMesh};
use super::objects::Resource;
use super::value::{label, list, name, namespace, text};
use crate::offline::settings::CONTROLLERS;
use crate::output::{line, note};
use crate::proxy_status::controllers;
use crate::why::place::{MONITORING, Place};

/// The version of this command.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

/// A controller's page of who is connected to it.
pub(crate) const SYNCZ: &str = "/debug/syncz";

/// Labels of waypoints' pods.
const WAYPOINTS: &str = "gateway.istio.io/managed=istio.io-mesh-controller";

/// `stillmesh version`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --kubeconfig and --context, a cluster that cannot be reached is noted and is no error."
)]
pub(crate) struct Version {
    /// Numbers only
    #[arg(long, short)]
    short: bool,
    /// Ask the cluster too
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    remote: Option<bool>,
    /// How to print
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    /// Where.
    #[command(flatten)]
    which: WhichMesh,
    /// The mesh's namespace.
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// Carries it out.
pub(crate) async fn run(args: &Version) -> anyhow::Result<ExitCode> {
    let pods = if args.remote.unwrap_or(true) { pods(args).await } else { Ok(Vec::new()) };
    let pods = match pods {
        Ok(pods) => pods,
        Err(error) if args.which.chosen() => return Err(error),
        Err(error) => {
            note(&format!("stillmesh: only the client's version: {error:#}"));
            Vec::new()
        }
    };
    match args.output {
        Some(format) => line(&format.of(&report(&pods))?),
        None => line(&lines(&pods, args.short).join("\n")),
    }
    Ok(ExitCode::SUCCESS)
}

/// The pods of controllers and tunnels, of whomever they are.
async fn pods(args: &Version) -> anyhow::Result<Vec<Value>> {
    let place = Place::find(&args.which).await?;
    let Place::Cluster { objects } = &place else { return running(&place).await };
    let pod = Resource::new("v1", "Pod");
    let mut pods = objects.list(&pod, &args.mesh.mesh_namespace, CONTROLLERS).await?;
    pods.extend(objects.list(&pod, "", "app=ztunnel").await?);
    pods.extend(objects.list(&pod, "", WAYPOINTS).await?);
    if !pods.iter().any(|pod| is_proxy(&pod)) {
        return Ok(pods);
    }
    match connected(&place, &args.mesh.mesh_namespace).await {
        Ok(answers) => {
            let (said, silent) = of_all(answers);
            tell(&mut pods, &said);
            silent.iter().for_each(|silent| note(&format!("stillmesh: {silent}")));
        }
        Err(error) => {
            note(&format!("stillmesh: versions of proxies are as their labels say, not as they do: {error:#}"));
        }
    }
    Ok(pods)
}

/// How long a controller may take to say of what versions its proxies are.
const PATIENCE: Duration = Duration::from_secs(15);

/// A controller's pod, and its page of the proxies that are connected to it.
type Answer = (String, anyhow::Result<Value>);

/// What each controller says of the proxies that are connected to it.
async fn connected(place: &Place, mesh_namespace: &str) -> anyhow::Result<Vec<Answer>> {
    let asked = controllers(place, mesh_namespace).await?.into_iter().map(|(pod, controller)| async move {
        let page = tokio::time::timeout(PATIENCE, controller.page(MONITORING, SYNCZ)).await;
        let page = page.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        (pod, page.and_then(|page| Ok(serde_json::from_slice(&page)?)))
    });
    Ok(join_all(asked).await)
}

/// Versions of proxies by `pod.namespace`, and of each controller that has not answered a sentence.
fn of_all(answers: Vec<Answer>) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut said, mut silent) = (BTreeMap::new(), Vec::new());
    for (pod, answer) in answers {
        match answer {
            Ok(page) => said.extend(told(&page)),
            Err(error) => silent.push(format!(
                "{pod} does not say of what versions the proxies are that are connected to it, which are told as their labels \
                 say: {error:#}"
            )),
        }
    }
    (said, silent)
}

/// The versions of the proxies that are connected to a controller, by `pod.namespace`: theirs, whatever their labels say.
pub(crate) fn told(page: &Value) -> impl Iterator<Item = (String, String)> {
    list(page).map(|one| (text(&one["proxy"]).to_owned(), text(&one["istio_version"]).to_owned()))
}

/// Labels of waypoints are of the controller's version, whatever image is pinned.
pub(crate) fn tell(pods: &mut [Value], said: &BTreeMap<String, String>) {
    for pod in pods {
        if let Some(version) = said.get(&format!("{}.{}", name(pod), namespace(pod))) {
            pod["metadata"]["labels"]["app.kubernetes.io/version"] = version.as_str().into();
        }
    }
}

/// The same of a mesh on this machine, whose pods have no images: what they say of themselves.
async fn running(place: &Place) -> anyhow::Result<Vec<Value>> {
    let pod = |app: &str, (name, namespace): (&str, &str), version: &str| {
        let labels = json!({"app": app, "app.kubernetes.io/version": version});
        json!({"metadata": {"name": name, "namespace": namespace, "labels": labels}})
    };
    let mut pods = Vec::new();
    for (name, controller) in controllers(place, "").await? {
        let said = controller.page(MONITORING, "/version").await?;
        let said = String::from_utf8_lossy(&said);
        pods.push(pod("istiod", (&name, ""), said.trim().split("-stillmesh").next().unwrap_or_default()));
        let page: Value = serde_json::from_slice(&controller.page(MONITORING, SYNCZ).await?)?;
        pods.extend(list(&page).map(|one| {
            let named = text(&one["proxy"]);
            pod("ztunnel", named.rsplit_once('.').unwrap_or((named, "")), text(&one["istio_version"]))
        }));
    }
    Ok(pods)
}

/// The version of a pod: its label's, else its image's.
fn version(pod: &Value) -> String {
    let labelled = label(pod, "app.kubernetes.io/version").map(str::to_owned);
    let image = || {
        let image = list(&pod["spec"]["containers"]).next().map(|container| text(&container["image"]))?;
        Some(image.split('@').next()?.rsplit_once(':')?.1.to_owned())
    };
    labelled.or_else(image).unwrap_or_else(|| "unknown".to_owned())
}

fn counted<'a>(pods: impl Iterator<Item = &'a Value>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(version(pod)).or_default() += 1;
    }
    counts
}

/// Tunnels and waypoints.
fn is_proxy(pod: &&Value) -> bool {
    let is_controller = |key| ["stillmesh-controller", "istiod"].contains(&label(pod, key).unwrap_or_default());
    !is_controller("app") && !is_controller("app.kubernetes.io/name")
}

fn lines(pods: &[Value], short: bool) -> Vec<String> {
    let mut lines = vec![if short { OWN.to_owned() } else { format!("client version: {OWN}") }];
    for version in counted(pods.iter().filter(|pod| !is_proxy(pod))).keys() {
        lines.push(if short { version.clone() } else { format!("control plane version: {version}") });
    }
    let tunnels = counted(pods.iter().filter(is_proxy));
    let words: Vec<String> = tunnels.iter().map(|(version, count)| format!("{version} ({count} proxies)")).collect();
    if !words.is_empty() {
        lines.push(if short { words.join(", ") } else { format!("data plane version: {}", words.join(", ")) });
    }
    lines
}

/// The same, for programs.
pub(crate) fn report(pods: &[Value]) -> Value {
    let id = |pod: &Value| format!("{}.{}", name(pod), namespace(pod));
    let control: Vec<Value> = pods
        .iter()
        .filter(|pod| !is_proxy(pod))
        .map(|pod| {
            let revision = label(pod, "istio.io/rev").unwrap_or("default");
            json!({"component": "controller", "id": id(pod), "revision": revision, "info": {"version": version(pod)}})
        })
        .collect();
    let data: Vec<Value> =
        pods.iter().filter(is_proxy).map(|pod| json!({"id": id(pod), "istioVersion": version(pod)})).collect();
    json!({"clientVersion": {"version": OWN}, "meshVersion": control, "dataPlaneVersion": data})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(app: &str, name: &str, labelled: Option<&str>, image: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "m", "labels": {"app": app, "app.kubernetes.io/version": labelled}},
            "spec": {"containers": [{"image": image}]}})
    }

    #[test]
    fn the_lines_are_istioctls() {
        let pods = [
            pod("stillmesh-controller", "c", Some("0.2.0"), "x:0.2.0"),
            pod("ztunnel", "z1", Some("0.1.0"), "x:0.1.0"),
            pod("ztunnel", "z2", Some("0.2.0"), "x:0.2.0"),
            pod("ztunnel", "z3", None, "host:5000/istio/ztunnel:1.31.0@sha256:00"),
        ];
        let expected = [
            &format!("client version: {OWN}"),
            "control plane version: 0.2.0",
            "data plane version: 0.1.0 (1 proxies), 0.2.0 (1 proxies), 1.31.0 (1 proxies)",
        ];
        assert_eq!(lines(&pods, false), expected);
        assert_eq!(lines(&pods, true)[1], "0.2.0");
        assert_eq!(report(&pods)["dataPlaneVersion"][2]["istioVersion"], "1.31.0");
    }

    #[test]
    fn what_a_proxy_says_of_itself_holds_over_its_label() {
        let mut pods = [pod("", "waypoint-1", Some("0.2.0"), "x:mine"), pod("ztunnel", "z1", Some("0.2.0"), "x:0.2.0")];
        let page = json!([{"proxy": "waypoint-1.m", "istio_version": "0.1.0"}]);
        tell(&mut pods, &told(&page).collect());
        assert_eq!(lines(&pods, false)[1], "data plane version: 0.1.0 (1 proxies), 0.2.0 (1 proxies)");
    }

    #[test]
    fn a_controller_that_does_not_answer_takes_nothing_from_what_others_say() {
        let page = json!([{"proxy": "z1.m", "istio_version": "0.1.0"}]);
        let (said, silent) =
            of_all(vec![("c1".to_owned(), Ok(page)), ("c2".to_owned(), Err(anyhow!("no answer within 15s")))]);
        assert_eq!(said, BTreeMap::from([("z1.m".to_owned(), "0.1.0".to_owned())]));
        assert!(
            silent.len() == 1 && silent[0].starts_with("c2 ") && silent[0].ends_with("no answer within 15s"),
            "{silent:?}"
        );
    }

    #[test]
    fn without_a_mesh_only_the_client_is_told() {
        assert_eq!(lines(&[], false), [format!("client version: {OWN}")]);
    }
}
