//! Everything that `check`, `status` and `version` look at, read once. What cannot be read is kept as the reason why,
//! so that one missing right does not hide all the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use http::Method;
use serde_json::Value;

use super::install::bundle::PART_OF;
use super::objects::{Objects, Resource};
use super::pod_http::{DEADLINE, PodPort};
use super::value::{holds, label, list, name, namespace, text};
use crate::why::place::{ADMIN, MONITORING};

/// How many pods are asked at a time.
const AT_ONCE: usize = 16;
/// The part whose pods say who is connected, and what is wrong.
const CONTROLLER: &str = "stillmesh-controller";

/// What was read, or why not.
pub(crate) type Read<T> = Result<T, String>;

/// A page of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The pod.
    pub(crate) pod: String,
    /// Its node.
    pub(crate) node: String,
    /// The page, or why there is none.
    pub(crate) page: Read<Value>,
}

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Where the mesh itself runs.
    pub(crate) mesh_namespace: String,
    /// Objects by kind.
    objects: BTreeMap<&'static str, Read<Vec<Value>>>,
    /// What each controller says of the nodes.
    pub(crate) syncz: Vec<Page>,
    /// What each controller finds wrong.
    pub(crate) findings: Vec<Page>,
    /// Where each controller says that objects and enrolments are in force, where it was asked for that.
    pub(crate) receipts: Vec<Page>,
    /// What each tunnel knows.
    pub(crate) dumps: Vec<Page>,
    /// Whether each agent answers its kubelet's question; no page where it does.
    pub(crate) agents: Vec<Page>,
}

/// Kinds that are read.
const KINDS: [(&str, &str); 13] = [
    ("v1", "Node"),
    ("v1", "Namespace"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
];

impl View {
    /// Reads the objects of some kinds.
    pub(crate) async fn objects(objects: &Objects, mesh_namespace: &str) -> Self {
        let read = futures::stream::iter(KINDS)
            .map(|(api_version, kind)| async move {
                // Of endpoints only the mesh's own count.
                let at = if kind == "EndpointSlice" { mesh_namespace } else { "" };
                let list = objects.list(&Resource::new(api_version, kind), at, "").await;
                (kind, list.map_err(|error| format!("{error:#}")))
            })
            .buffer_unordered(KINDS.len())
            .collect()
            .await;
        Self {
            mesh_namespace: mesh_namespace.to_owned(),
            objects: read,
            syncz: Vec::new(),
            findings: Vec::new(),
            receipts: Vec::new(),
            dumps: Vec::new(),
            agents: Vec::new(),
        }
    }

    /// Asks the mesh's own pods too.
    pub(crate) async fn whole(objects: &Objects, mesh_namespace: &str) -> Self {
        let mut view = Self::objects(objects, mesh_namespace).await;
        let agents = view.ready("stillmesh-cni").filter_map(Question::of_kubelet).collect();
        (view.syncz, view.findings, view.dumps, view.agents) = tokio::join!(
            ask(objects, view.questions(CONTROLLER, MONITORING, "/debug/syncz"), DEADLINE, json),
            ask(objects, view.questions(CONTROLLER, MONITORING, "/debug/findings"), DEADLINE, json),
            ask(objects, view.questions("ztunnel", ADMIN, "/config_dump"), DEADLINE, json),
            // One that hangs is known by it before its kubelet gives up on it.
            ask(objects, agents, ALIVE, |_| Ok(Value::Null)),
        );
        view
    }

    /// With what controllers say of receipts, which costs each a look at every object.
    pub(crate) async fn with_receipts(mut self, objects: &Objects) -> Self {
        self.receipts = ask(objects, self.questions(CONTROLLER, MONITORING, "/debug/receipts"), DEADLINE, json).await;
        self
    }

    /// A view of a mesh on this machine: its objects, and what its tunnels know. Kinds that are not looked at are passed over.
    pub(crate) fn here(mesh_namespace: &str, all: Vec<Value>, dumps: Vec<Page>) -> Self {
        let mut objects: BTreeMap<&'static str, Read<Vec<Value>>> = BTreeMap::new();
        for object in all {
            if let Some((_, kind)) = KINDS.iter().find(|(_, kind)| object["kind"] == *kind)
                && let Ok(list) = objects.entry(kind).or_insert_with(|| Ok(Vec::new()))
            {
                list.push(object);
            }
        }
        let mesh_namespace = mesh_namespace.to_owned();
        let (syncz, findings, receipts, agents) = (vec![], vec![], vec![], vec![]);
        Self { mesh_namespace, objects, syncz, findings, receipts, dumps, agents }
    }

    /// A view of given objects.
    #[cfg(test)]
    pub(crate) fn of(mesh_namespace: &str, all: Vec<Value>) -> Self {
        let mut objects: BTreeMap<&'static str, Read<Vec<Value>>> =
            KINDS.iter().map(|(_, kind)| (*kind, Ok(Vec::new()))).collect();
        for object in all {
            let kind = KINDS.iter().find(|(_, kind)| object["kind"] == *kind).unwrap().1;
            objects.get_mut(kind).unwrap().as_mut().unwrap().push(object);
        }
        let mesh_namespace = mesh_namespace.to_owned();
        let (syncz, findings, receipts) = (vec![], vec![], vec![]);
        Self { mesh_namespace, objects, syncz, findings, receipts, dumps: vec![], agents: vec![] }
    }

    /// Objects of a kind, or why they cannot be read.
    pub(crate) fn read(&self, kind: &str) -> Read<&[Value]> {
        match self.objects.get(kind) {
            Some(Ok(list)) => Ok(list),
            Some(Err(why)) => Err(why.clone()),
            None => Ok(&[]),
        }
    }

    /// Objects of a kind; none where they cannot be read.
    pub(crate) fn list(&self, kind: &str) -> &[Value] {
        self.read(kind).unwrap_or_default()
    }

    /// What could not be read.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.objects.iter().filter_map(|(kind, read)| Some((*kind, read.as_ref().err()?.as_str())))
    }

    /// The mesh's own objects of a kind.
    pub(crate) fn own<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> {
        let ours = |object: &&Value| label(object, PART_OF.0) == Some(PART_OF.1);
        let here = |object: &&Value| namespace(object).is_empty() || namespace(object) == self.mesh_namespace;
        self.list(kind).iter().filter(ours).filter(here)
    }

    /// The mesh's own pods of a part.
    pub(crate) fn part<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a Value> {
        self.own("Pod").filter(move |pod| label(pod, "app.kubernetes.io/name") == Some(part))
    }

    /// Those of a part that can be asked.
    fn ready<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a Value> {
        self.part(part).filter(|pod| holds(pod, "Ready"))
    }

    fn questions(&self, part: &str, port: u16, path: &str) -> Vec<Question> {
        self.ready(part).map(|pod| Question::new(pod, port, path)).collect()
    }

    /// The pod of a part that is ready on a node.
    pub(crate) fn ready_on<'a>(&'a self, part: &'a str, node: &str) -> Option<&'a Value> {
        self.ready(part).find(|pod| text(&pod["spec"]["nodeName"]) == node)
    }
}

/// A page of a pod that is asked for.
struct Question {
    port: PodPort,
    path: String,
    node: String,
}

impl Question {
    fn new(pod: &Value, port: u16, path: &str) -> Self {
        let port = PodPort { namespace: namespace(pod).to_owned(), pod: name(pod).to_owned(), port };
        Self { port, path: path.to_owned(), node: text(&pod["spec"]["nodeName"]).to_owned() }
    }

    /// What the kubelet asks a pod for to know that it is ready.
    fn of_kubelet(pod: &Value) -> Option<Self> {
        let mut probes = list(&pod["spec"]["containers"]).map(|one| &one["readinessProbe"]["httpGet"]);
        let probe = probes.find(|one| one.is_object())?;
        Some(Self::new(pod, u16::try_from(probe["port"].as_u64()?).ok()?, text(&probe["path"])))
    }
}

/// How long a pod may take to say that it is ready; past it, it hangs.
const ALIVE: Duration = Duration::from_secs(15);

/// Asks all, a few at a time, each within so long; the answers are in the order of nodes and pods.
async fn ask(
    objects: &Objects,
    questions: Vec<Question>,
    within: Duration,
    read: fn(&[u8]) -> Read<Value>,
) -> Vec<Page> {
    let mut pages: Vec<Page> = futures::stream::iter(questions)
        .map(|Question { port, path, node }| async move {
            let answer = port.ask_within(objects.client(), Method::GET, &path, within).await;
            let page = match answer {
                Ok(body) => read(&body).map_err(|error| format!("{path} {error}")),
                Err(error) => Err(format!("{error:#}")),
            };
            Page { pod: port.pod, node, page }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    pages.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    pages
}

fn json(body: &[u8]) -> Read<Value> {
    serde_json::from_slice(body).map_err(|error| format!("is no JSON: {error}"))
}
