//! Fetches the parts of a report, a few at a time, each within its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::join_all;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde_json::{Value, json};
use stillmesh_k8s::Kind;
use stillmesh_records::Query;
use tokio::time::{Instant, timeout_at};

use super::archive::{Archive, FILE, Keep};
use super::objects::{Files, Reading};
use super::redact::Redactor;
use crate::analyze::message::fits;
use crate::cluster::access::within;
use crate::cluster::args::Report;
use crate::cluster::check;
use crate::cluster::objects::{Objects, Pages, Resource};
use crate::cluster::value::{is_waypoints, label, list, name, namespace, text};
use crate::cluster::version::{self, SYNCZ};
use crate::machine::control;
use crate::output::note;
use crate::why::place::{ADMIN, MONITORING, Place, Proxy, STATS};

/// How long one part may take.
const PART: Duration = Duration::from_secs(60);
/// Parts that are fetched at a time.
const AT_ONCE: usize = 8;
/// Most pods of the mesh that are asked.
const MOST_PODS: usize = 400;
/// Namespaces that the mesh has something of its own in, whatever it is called.
const ROOT: &str = "istio-system";
/// Kinds of a cluster that are not the mesh's matter, and explain it.
const MORE: [(&str, &str); 8] = [
    ("v1", "Event"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "StatefulSet"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "WorkloadEntry"),
    ("coordination.k8s.io/v1", "Lease"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
];

/// Kinds whose objects have environment variables.
const WITH_VARIABLES: [&str; 4] = ["Pod", "Deployment", "DaemonSet", "StatefulSet"];

/// Objects of these kinds are only of use where the mesh itself is.
const OWN_ONLY: [&str; 2] = ["ConfigMap", "Lease"];

/// What is meant.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Namespaces; all where there are none.
    pub(super) include: Vec<String>,
    /// Namespaces that are not.
    pub(super) exclude: Vec<String>,
    /// That of the mesh itself, which always is.
    pub(super) mesh_namespace: String,
    /// How far back.
    pub(super) since: Duration,
}

impl Scope {
    /// Whether a namespace is meant. What has none always is.
    pub(super) fn takes(&self, namespace: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, namespace));
        namespace.is_empty()
            || self.is_own(namespace)
            || (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    fn is_own(&self, namespace: &str) -> bool {
        namespace == self.mesh_namespace || namespace == ROOT
    }

    fn takes_kind(&self, kind: &str, namespace: &str) -> bool {
        self.takes(namespace) && (!OWN_ONLY.contains(&kind) || self.is_own(namespace))
    }
}

/// A part to be fetched.
enum Part {
    Page { proxy: Proxy, port: u16, page: String },
    Log { namespace: String, pod: String, container: String, before: bool },
    Check,
}

/// Files, and what is missing of them.
pub(super) type Gathered = (Archive, Vec<String>);

/// Fetches.
pub(super) struct Gatherer {
    place: Place,
    scope: Scope,
    until: Instant,
}

impl Gatherer {
    /// Of a mesh, until then.
    pub(super) fn new(place: Place, scope: Scope, until: Instant) -> Self {
        Self { place, scope, until }
    }

    /// What would be fetched.
    pub(super) async fn plan(&self) -> anyhow::Result<Vec<String>> {
        let mut paths = Vec::new();
        self.each(&["v1"], "Namespace", |page| {
            let names = page.iter().map(name).filter(|name| self.scope.takes(name));
            paths.extend(names.map(|name| {
                format!("objects/{name}/ (kinds of Kubernetes, the Gateway API, Istio and the mesh; no Secrets)")
            }));
            Ok(())
        })
        .await?;
        paths.push("objects/_cluster/".to_owned());
        let mut pods = Vec::new();
        self.each(&["v1"], "Pod", |page| {
            pods.extend(page.into_iter().filter(|pod| kind_of(pod).is_some()));
            Ok(())
        })
        .await?;
        paths.extend(self.parts(&pods).into_iter().map(|(path, _)| path));
        Ok(paths)
    }

    /// Fetches all. Of the objects one kind is in memory at a time, within bounds.
    pub(super) async fn gather(&self, mut archive: Archive) -> anyhow::Result<Gathered> {
        let (mut missing, mut redactor) = (Vec::new(), Redactor::new()?);
        note("reading objects ...");
        let mut kinds = self.kinds();
        // What is a secret anywhere is cut everywhere: whoever has variables is read first, for that alone.
        let mut unread = BTreeSet::new();
        for (versions, kind) in kinds.iter().filter(|(_, kind)| WITH_VARIABLES.contains(kind)) {
            let learnt = self.each(versions, kind, |page| {
                page.iter().for_each(|object| redactor.learn(object));
                Ok(())
            });
            if let Err(error) = learnt.await {
                missing.push(redactor.text(&format!("objects of kind {kind}: {error:#}")));
                unread.insert(*kind);
            }
        }
        kinds.retain(|(_, kind)| !unread.contains(kind));
        let (mut pods, mut vain) = (Vec::new(), self.scope.include.clone());
        for (versions, kind) in kinds {
            let mut files = Files::default();
            let read = self.each(&versions, kind, |page| {
                for object in page {
                    if kind == "Namespace" {
                        vain.retain(|pattern| !fits(pattern, name(&object)));
                    }
                    if kind == "Pod" && kind_of(&object).is_some() {
                        pods.push(object.clone());
                    }
                    redactor.learn(&object);
                    self.add_object(kind, object, &redactor, &mut files)?;
                }
                Ok(())
            });
            match read.await {
                Ok(()) if kind == "Namespace" => missing
                    .extend(vain.iter().map(|pattern| format!("--include {pattern}: there is no such namespace"))),
                Ok(()) => {}
                Err(error) => missing.push(redactor.text(&format!("objects of kind {kind}: {error:#}"))),
            }
            missing.extend(files.pack(kind, &mut archive)?);
        }
        let (parts, mut said) = (self.parts(&pods), BTreeMap::new());
        note(&format!("reading {} logs, dumps and pages of the mesh's own pods ...", parts.len()));
        for some in parts.chunks(AT_ONCE) {
            // Nothing is under way while texts are cut: that takes long, and the time of what is fetched would go by.
            let answers = join_all(some.iter().map(|(_, part)| self.timed(self.fetch(part)))).await;
            for ((path, part), answer) in some.iter().zip(answers) {
                if let (Part::Page { page, .. }, Ok(bytes)) = (part, &answer)
                    && page == SYNCZ
                {
                    // What is no JSON is missing, and told as that below.
                    said.extend(version::told(&serde_json::from_slice(bytes).unwrap_or_default()));
                }
                let keep = if matches!(part, Part::Log { .. }) { Keep::Tail } else { Keep::Head };
                match answer.and_then(|bytes| written(&redactor, path, &bytes)) {
                    Ok(content) => {
                        let cut = archive.add(path, content, keep)?;
                        missing.extend(cut.map(|cut| format!("{path}: {cut}")));
                    }
                    Err(error) => missing.push(redactor.text(&format!("{path}: {error:#}"))),
                }
            }
        }
        let own = pods.iter().filter(|pod| self.is_asked(pod)).count();
        if own > MOST_PODS {
            missing.push(format!(
                "{} more pods of the mesh: {MOST_PODS} are asked; --include names fewer",
                own - MOST_PODS
            ));
        }
        let mut versioned = self.versioned(&pods);
        version::tell(&mut versioned, &said);
        archive.add_last("versions.yaml", Report::Yaml.of(&version::report(&versioned))?)?;
        archive.add_last("report.yaml", Report::Yaml.of(&self.about(&missing))?)?;
        archive.add_last("missing.txt", missing.join("\n"))?;
        Ok((archive, missing))
    }

    /// What a reader wants to know first.
    fn about(&self, missing: &[String]) -> Value {
        let place = match &self.place {
            Place::Here { mesh } => format!("mesh {mesh:?} on one machine"),
            _ => "cluster".to_owned(),
        };
        json!({
            "madeBy": format!("stillmesh {}", version::OWN),
            "madeAt": jiff::Timestamp::now().to_string(),
            "of": place,
            "meshNamespace": self.scope.mesh_namespace,
            "reachesBackSeconds": self.scope.since.as_secs(),
            "include": self.scope.include,
            "exclude": self.scope.exclude,
            "missing": missing.len(),
        })
    }

    fn versioned(&self, pods: &[Value]) -> Vec<Value> {
        let of_mesh = |pod: &&Value| kind_of(pod).is_some_and(|kind| kind != "agent");
        pods.iter().filter(of_mesh).cloned().collect()
    }

    /// Kinds with the versions in which they may be served. Secrets are not among them.
    fn kinds(&self) -> Vec<(Vec<&'static str>, &'static str)> {
        let known = Kind::ALL.iter().filter(|kind| **kind != Kind::Secret);
        let mut kinds: Vec<_> = known.map(|kind| (kind.api_versions().to_vec(), kind.as_str())).collect();
        if matches!(self.place, Place::Cluster { .. }) {
            kinds.extend(MORE.iter().map(|(version, kind)| (vec![*version], *kind)));
        }
        kinds
    }

    /// Takes the objects of a kind page by page, in the first version in which there are any; each page within the time of a part.
    async fn each(
        &self,
        versions: &[&str],
        kind: &str,
        mut take: impl FnMut(Vec<Value>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for version in versions {
            let mut reading = self.timed(self.reading(version, kind)).await?;
            let mut is_there = false;
            while let Some(page) = self.timed(reading.next()).await? {
                is_there |= !page.is_empty();
                take(page)?;
            }
            if is_there {
                break;
            }
        }
        Ok(())
    }

    async fn reading(&self, version: &str, kind: &str) -> anyhow::Result<Reading> {
        match &self.place {
            Place::Here { mesh } => Ok(Reading::Whole(Some(control::objects(mesh, kind, "").await?))),
            Place::Cluster { objects } => Ok(Reading::Paged(self.lists(objects, &Resource::new(version, kind)))),
            Place::Objects(_) => bail!("manifests have no mesh that runs"),
        }
    }

    /// Everywhere, or in the namespaces that are named: who may not see all may see these.
    fn lists(&self, objects: &Objects, resource: &Resource) -> Vec<Pages> {
        let is_namespaced = Kind::named(resource.kind())
            .map_or_else(|| !resource.kind().ends_with("WebhookConfiguration"), Kind::namespaced);
        let are_names = !self.scope.include.is_empty() && self.scope.include.iter().all(|one| !one.contains('*'));
        let is_own = OWN_ONLY.contains(&resource.kind());
        if !is_namespaced || !(are_names || is_own) {
            return vec![objects.pages(resource, "", "")];
        }
        let own = [self.scope.mesh_namespace.as_str(), ROOT];
        let named = self.scope.include.iter().filter(|_| !is_own).map(String::as_str);
        let all: BTreeSet<&str> = named.chain(own).collect();
        all.into_iter().map(|namespace| objects.pages(resource, namespace, "")).collect()
    }

    /// Cuts an object, and takes it into its file, where it is meant.
    fn add_object(&self, kind: &str, mut object: Value, redactor: &Redactor, files: &mut Files) -> anyhow::Result<()> {
        let place = if kind == "Namespace" { name(&object) } else { namespace(&object) };
        if !self.scope.takes_kind(kind, place) {
            return Ok(());
        }
        let folder = match namespace(&object) {
            "" => "_cluster",
            namespace => namespace,
        };
        let path = format!("objects/{folder}/{kind}.yaml");
        redactor.value(&mut object);
        files.add(path, &Report::Yaml.of(&[object])?);
        Ok(())
    }

    /// Whether a pod is one of the mesh's own that are wanted.
    fn is_asked(&self, pod: &Value) -> bool {
        self.scope.takes(namespace(pod)) && kind_of(pod).is_some()
    }

    /// What is fetched of the mesh's own pods, by the file that it goes to.
    fn parts(&self, pods: &[Value]) -> Vec<(String, Part)> {
        let mut parts = vec![(
            match self.place {
                Place::Here { .. } => "status.json".to_owned(),
                _ => "check.json".to_owned(),
            },
            Part::Check,
        )];
        for pod in pods.iter().filter(|pod| self.is_asked(pod)).take(MOST_PODS) {
            let place = format!("pods/{}/{}", namespace(pod), name(pod));
            for container in list(&pod["spec"]["containers"]).map(|one| text(&one["name"])) {
                let log = |before| Part::Log {
                    namespace: namespace(pod).to_owned(),
                    pod: name(pod).to_owned(),
                    container: container.to_owned(),
                    before,
                };
                parts.push((format!("{place}/{container}.log"), log(false)));
                let statuses = list(&pod["status"]["containerStatuses"]);
                let again = statuses
                    .filter(|one| text(&one["name"]) == container)
                    .any(|one| one["restartCount"].as_u64() > Some(0));
                if again && matches!(self.place, Place::Cluster { .. }) {
                    parts.push((format!("{place}/{container}.previous.log"), log(true)));
                }
            }
            if pod["status"]["phase"] != "Running" {
                continue;
            }
            for (file, port, page) in self.pages(kind_of(pod)) {
                if let Some(proxy) = self.place.proxy(pod) {
                    parts.push((format!("{place}/{file}"), Part::Page { proxy, port, page }));
                }
            }
        }
        parts
    }

    /// Files, ports and pages of a pod of the mesh.
    fn pages(&self, kind: Option<&str>) -> Vec<(&'static str, u16, String)> {
        let since = self.scope.since.as_secs().max(1);
        let query = Query { since: Some(self.scope.since.max(Duration::from_secs(1))), ..Query::all() };
        match kind {
            Some("controller") => vec![
                ("metrics.txt", MONITORING, "/metrics".to_owned()),
                ("syncz.json", MONITORING, SYNCZ.to_owned()),
                ("receipts.json", MONITORING, "/debug/receipts".to_owned()),
                ("findings.json", MONITORING, "/debug/findings".to_owned()),
            ],
            Some("agent") => vec![("metrics.txt", MONITORING, "/metrics".to_owned())],
            _ => vec![
                ("metrics.txt", STATS, "/metrics".to_owned()),
                ("config_dump.json", ADMIN, "/config_dump".to_owned()),
                ("decisions.json", ADMIN, format!("/decisions?{query}")),
                ("flows.json", ADMIN, format!("/flows?since={since}")),
            ],
        }
    }

    /// Within the time of a part, and of all.
    async fn timed<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let end = self.until.min(Instant::now() + PART);
        match timeout_at(end, work).await {
            Ok(done) => done,
            Err(_) if end == self.until => bail!("the time of the whole report was up (--timeout)"),
            Err(_) => bail!("no answer within {PART:?}"),
        }
    }

    async fn fetch(&self, part: &Part) -> anyhow::Result<Vec<u8>> {
        match (part, &self.place) {
            (Part::Page { proxy, port, page }, _) => Ok(proxy.page(*port, page).await?.into()),
            (Part::Check, Place::Here { mesh }) => Ok(control::client(mesh)?.get("/status").await?.body.into()),
            (Part::Check, Place::Cluster { objects }) => {
                let report = check::report(objects, &self.scope.mesh_namespace).await?;
                Ok(serde_json::to_vec_pretty(&report)?)
            }
            (Part::Log { namespace, pod, container, .. }, Place::Here { mesh }) => {
                let path = format!("/logs/{namespace}/{pod}?follow=false&container={container}");
                let mut stream = control::client(mesh)?.stream(Method::GET, &path, "").await?;
                let mut log = Vec::new();
                while let Some(chunk) = stream.chunk().await? {
                    log.extend_from_slice(&chunk);
                    // Only the end is kept.
                    if log.len() > 2 * FILE {
                        log.drain(..log.len() - FILE);
                    }
                }
                if !stream.status.is_success() {
                    bail!("{}", String::from_utf8_lossy(&log).trim());
                }
                Ok(log)
            }
            (Part::Log { namespace, pod, container, before }, Place::Cluster { objects }) => {
                let pods: Api<Pod> = Api::namespaced(objects.client().clone(), namespace);
                let wanted = LogParams {
                    container: Some(container.clone()),
                    previous: *before,
                    since_seconds: (!before).then(|| i64::try_from(self.scope.since.as_secs()).unwrap_or(i64::MAX)),
                    tail_lines: Some(50_000),
                    timestamps: true,
                    ..LogParams::default()
                };
                let log = within("reading the log", pods.logs(pod, &wanted)).await?;
                Ok(log.into_bytes())
            }
            (_, Place::Objects(_)) => bail!("manifests have no mesh that runs"),
        }
    }
}

/// What a file is to have in it.
fn written(redactor: &Redactor, path: &str, bytes: &[u8]) -> anyhow::Result<String> {
    if path.ends_with(".json") {
        let mut value: Value = serde_json::from_slice(bytes).context("this is no JSON")?;
        redactor.value(&mut value);
        return Ok(serde_json::to_string_pretty(&value)?);
    }
    Ok(redactor.text(&String::from_utf8_lossy(bytes)))
}

/// Which part of the mesh a pod is.
pub(super) fn kind_of(pod: &Value) -> Option<&'static str> {
    part_of(pod).or_else(|| is_waypoints(pod).then_some("waypoint"))
}

fn part_of(pod: &Value) -> Option<&'static str> {
    let named = label(pod, "app.kubernetes.io/name").unwrap_or_default();
    let app = label(pod, "app").or_else(|| label(pod, "k8s-app")).unwrap_or_default();
    match (named, app) {
        ("stillmesh-controller", _) | (_, "istiod") => Some("controller"),
        ("stillmesh-cni", _) | (_, "istio-cni-node") => Some("agent"),
        (_, "ztunnel") => Some("ztunnel"),
        _ => None,
    }
}
