//! Everything that `check`, `status` and `version` look at, read once. What cannot be read is kept as the reason why,
//! so that one missing right does not hide all the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use http::Method;
use serde_json::Value;

use super::install::bundle::PART_OF;
use super::objects::{Objects, Resource};
use super::pod_http::PodPort;
use super::value::{holds, label, list, name, namespace, text};
use crate::why::place::{ADMIN, MONITORING};

/// How many pods are asked at a time.
const AT_ONCE: usize = 16;

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
    /// Where each controller says that objects and enrolments are in force.
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
        let controllers = view.answering("stillmesh-controller");
        let tunnels = view.answering("ztunnel");
        let agents: Vec<Asked> =
            view.part("stillmesh-cni").filter(|pod| holds(pod, "Ready")).filter_map(asked).collect();
        (view.syncz, view.findings, view.receipts, view.dumps, view.agents) = tokio::join!(
            pages(objects, &controllers, MONITORING, "/debug/syncz"),
            pages(objects, &controllers, MONITORING, "/debug/findings"),
            pages(objects, &controllers, MONITORING, "/debug/receipts"),
            pages(objects, &tunnels, ADMIN, "/config_dump"),
            alive(objects, &agents),
        );
        view
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

    /// Those that can be asked.
    fn answering(&self, part: &str) -> Vec<(PodPort, String)> {
        let pods = self.part(part).filter(|pod| holds(pod, "Ready"));
        pods.map(|pod| (port_of(pod, 0), text(&pod["spec"]["nodeName"]).to_owned())).collect()
    }

    /// The pod of a part that is ready on a node.
    pub(crate) fn ready_on<'a>(&'a self, part: &'a str, node: &str) -> Option<&'a Value> {
        self.part(part).find(|pod| text(&pod["spec"]["nodeName"]) == node && holds(pod, "Ready"))
    }
}

fn port_of(pod: &Value, port: u16) -> PodPort {
    PodPort { namespace: namespace(pod).to_owned(), pod: name(pod).to_owned(), port }
}

/// A pod with the page that its kubelet asks it for, and its node.
type Asked = (PodPort, String, String);

/// What the kubelet asks a pod for to know that it is ready.
fn asked(pod: &Value) -> Option<Asked> {
    let probe =
        list(&pod["spec"]["containers"]).map(|one| &one["readinessProbe"]["httpGet"]).find(|one| one.is_object())?;
    let port = port_of(pod, u16::try_from(probe["port"].as_u64()?).ok()?);
    Some((port, text(&probe["path"]).to_owned(), text(&pod["spec"]["nodeName"]).to_owned()))
}

/// How long a pod may take to say that it is ready; past it, it hangs.
const ALIVE: Duration = Duration::from_secs(15);

/// Asks what kubelets ask: one that hangs is known by it before its kubelet gives up on it.
async fn alive(objects: &Objects, pods: &[Asked]) -> Vec<Page> {
    let mut pages: Vec<Page> = futures::stream::iter(pods)
        .map(|(place, path, node)| async move {
            let said = place.ask_within(objects.client(), Method::GET, path, ALIVE).await;
            let page = said.map(|_| Value::Null).map_err(|error| format!("{error:#}"));
            Page { pod: place.pod.clone(), node: node.clone(), page }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    pages.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    pages
}

async fn pages(objects: &Objects, pods: &[(PodPort, String)], port: u16, path: &str) -> Vec<Page> {
    let mut pages: Vec<Page> = futures::stream::iter(pods)
        .map(|(place, node)| async move {
            let place = PodPort { port, ..place.clone() };
            let page = match place.ask(objects.client(), Method::GET, path).await {
                Ok(body) => serde_json::from_slice(&body).map_err(|error| format!("{path} is no JSON: {error}")),
                Err(error) => Err(format!("{error:#}")),
            };
            Page { pod: place.pod, node: node.clone(), page }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    pages.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    pages
}
