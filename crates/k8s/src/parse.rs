//! Reading manifests: ordinary Kubernetes YAML or JSON, several documents in a file.
//!
//! A document is read twice over one tree: once into the kind's type, whose complaints about types and unknown
//! fields get their place from the tree, and once by the checks that an API server would make. Whatever is wrong is
//! told with file, line, column, object and what is accepted; one bad document does not spoil the others.

mod check;
mod check_gateway;
mod check_istio;
mod check_telemetry;
mod check_virtual;
mod names;
mod node;
mod read;
mod split;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node as KubeNode, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::finding::{Finding, Position, Severity};
use crate::gateway::grpc_route::GrpcRoute;
use crate::gateway::http_route::{HttpRoute, ReferenceGrant};
use crate::gateway::stream_route::{TcpRoute, TlsRoute};
use crate::gateway::{Gateway, GatewayClass};
use crate::istio::destination_rule::DestinationRule;
use crate::istio::telemetry::Telemetry;
use crate::istio::virtual_service::VirtualService;
use crate::istio::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::object::{DEFAULT_NAMESPACE, Kind, Object, ObjectKey, Placed};
use crate::steering::{Bypass, Quarantine};
use crate::translate::{self, Mesh};
use check::Flaws;
use node::{Node, Place};
use read::{Mismatch, Unknown};

/// What a text held. One bad document does not spoil the others.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// The objects, in order of the text; lists are flattened, absent namespaces are `default`.
    pub objects: Vec<Placed>,
    /// What is wrong: errors for what is not among the objects, warnings for parts that have no effect.
    pub findings: Vec<Finding>,
}

impl Documents {
    /// Whether a document is missing from the objects.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Reads every document of a text. `file` is only used to name places. Never fails as a whole and never panics.
pub fn documents(file: &str, text: &str) -> Documents {
    let mut found = Reading { file: file.into(), documents: Documents::default() };
    if let Some(documents) = json(file, text) {
        return documents;
    }
    for part in split::documents(text) {
        match tree(part.text, DuplicateKeyPolicy::Error) {
            Ok(mut root) => {
                root.shift(part.lines_before);
                found.document(&root);
            }
            Err(error) => found.unreadable(part, &error),
        }
    }
    found.documents
}

/// A document of a kind that is not read here, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// All of it.
    pub value: serde_json::Value,
    /// Its first line.
    pub at: Position,
    /// The kind that is read here and was probably meant: of nearly this name, and of this `apiVersion`.
    pub meant: Option<Kind>,
}

/// The documents of a text that say what they are and are of kinds that [`documents`] does not read. What cannot be read as
/// YAML is left out: [`documents`] tells it.
pub fn foreign(file: &str, text: &str) -> Vec<Foreign> {
    fn take(root: &Node, file: &Arc<str>, found: &mut Vec<Foreign>) {
        let word = |key: &str| root.get(key).and_then(Node::text);
        match (word("kind"), word("apiVersion")) {
            (Some("List"), Some("v1")) => {
                root.get("items").map_or(&[][..], Node::items).iter().for_each(|item| take(item, file, found));
            }
            (Some(kind), Some(version)) if Kind::named(kind).is_none() => {
                let at = Position::new(Arc::clone(file), root.at.line, root.at.column);
                let of_version = Kind::ALL.iter().filter(|one| one.api_versions().contains(&version));
                let near: Vec<&str> = of_version.map(|one| one.as_str()).collect();
                let meant = names::nearest(kind, &near).and_then(Kind::named);
                found.push(Foreign { value: root.plain(), at, meant });
            }
            _ => {}
        }
    }
    let (file, mut found) = (Arc::from(file), Vec::new());
    for part in split::documents(text) {
        if let Ok(mut root) = tree(part.text, DuplicateKeyPolicy::Error) {
            root.shift(part.lines_before);
            take(&root, &file, &mut found);
        }
    }
    found
}

/// A single object in JSON without fault, as programs write them, is read without the YAML parser. Anything else is
/// left to it, since it knows places.
fn json(file: &str, text: &str) -> Option<Documents> {
    let node::Unplaced(root) = text.starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()?;
    let unusual = root.get("kind").and_then(Node::text) == Some("List") || root.repeats_a_key();
    let mut found = Reading { file: file.into(), documents: Documents::default() };
    if !unusual {
        found.document(&root);
    }
    Some(found.documents).filter(|documents| documents.findings.is_empty() && documents.objects.len() == 1)
}

/// The keys of a map, with the values that are texts. For configuration within objects.
pub(crate) fn top_level(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    if split::documents(text).is_empty() {
        return Ok(Vec::new());
    }
    let root = tree(text, DuplicateKeyPolicy::Error).map_err(|error| {
        format!("not YAML: {}", error.without_snippet().to_string().lines().next().unwrap_or_default())
    })?;
    match root.value {
        node::Value::Map(entries) => {
            Ok(entries.into_iter().map(|entry| (entry.key, entry.node.text().map(str::to_owned))).collect())
        }
        _ => Err("not a map".to_owned()),
    }
}

/// One map as it is written, places forgotten. For configuration within objects.
pub(crate) fn map(text: &str) -> Result<serde_json::Value, String> {
    let parts = split::documents(text);
    let [part] = parts.as_slice() else { return Err("one map is accepted".to_owned()) };
    let root = tree(part.text, DuplicateKeyPolicy::Error).map_err(|error| {
        let text = error.without_snippet().to_string();
        format!("not YAML: {}", text.lines().next().unwrap_or_default())
    })?;
    match root.value {
        node::Value::Map(_) => Ok(root.plain()),
        _ => Err("not a map".to_owned()),
    }
}

/// Reads an object that a program has put together: anything that would be said of it is an error.
pub(crate) fn object(value: &serde_json::Value) -> Result<Object, String> {
    let mut found = documents("", &value.to_string());
    if let Some(Finding { path, message, hint, .. }) = found.findings.into_iter().next() {
        let hint = if hint.is_empty() { hint } else { format!(" ({hint})") };
        return Err(format!("{path}: {message}{hint}"));
    }
    found.objects.pop().map(|placed| placed.object).ok_or_else(|| "no object".to_owned())
}

/// A text inside a map that is under a key of the map; `None` where there is none.
pub(crate) fn inner_text(text: &str, path: &[&str]) -> Option<String> {
    let root = tree(text, DuplicateKeyPolicy::Error).ok()?;
    root.at_path(path)?.text().map(str::to_owned)
}

fn tree(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Node, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! { max_depth: 32, flow_nesting_limit: 32 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    };
    serde_saphyr::from_str_with_options(text, options)
}

struct Reading {
    file: Arc<str>,
    documents: Documents,
}

impl Reading {
    fn add(&mut self, severity: Severity, code: &'static str, at: Place, object: &str, path: &str, text: [&str; 2]) {
        let [message, hint] = text.map(str::to_owned);
        let at = Position::new(self.file.clone(), at.line, at.column);
        let (object, path) = (object.to_owned(), path.to_owned());
        self.documents.findings.push(Finding { at, severity, code, object, path, message, hint });
    }

    fn error(&mut self, code: &'static str, at: Place, object: &str, path: &str, text: [&str; 2]) {
        self.add(Severity::Error, code, at, object, path, text);
    }

    /// A document that is not even a tree.
    fn unreadable(&mut self, part: split::Part<'_>, error: &serde_saphyr::Error) {
        let place = error.location().map_or(Place { line: 1, column: 1 }, node::place).below(part.lines_before);
        // Read leniently, a document with a repeated key still tells what it is.
        let object = tree(part.text, DuplicateKeyPolicy::FirstWins).map(|root| title(&root)).ok();
        let object = object.filter(|title| !title.is_empty()).unwrap_or_else(|| split::guess(part.text));
        let text = error.without_snippet().to_string();
        // The place in the message counts from the document's first line, ours from the file's.
        let text = text.lines().next().unwrap_or_default();
        let message = text.split(" at line ").next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
            let message =
                key.as_ref().map_or("a key is there twice".to_owned(), |key| format!("the key {key:?} is there twice"));
            self.error("MAN009", place, &object, "", [&message, "every key is accepted once in a map"]);
            return;
        }
        self.error("MAN001", place, &object, "", [&format!("not YAML: {message}"), ""]);
    }

    /// A document, or an item of a list.
    fn document(&mut self, root: &Node) {
        if root.is_null() {
            return;
        }
        let object = title(root);
        if !matches!(root.value, node::Value::Map(_)) {
            let hint = "a map with apiVersion, kind and metadata is accepted";
            return self.error("MAN002", root.at, "", "", ["not an object", hint]);
        }
        let word = |key: &str| root.get(key).map_or((root.at, None), |node| (node.at, node.text()));
        let (kind_at, kind) = word("kind");
        let (version_at, version) = word("apiVersion");
        let (Some(kind), Some(version)) = (kind, version) else {
            let (missing, at) = if kind.is_none() { ("kind", kind_at) } else { ("apiVersion", version_at) };
            let kinds = accepted_kinds();
            return self.error("MAN002", at, &object, missing, [&format!("the {missing} is missing"), &kinds]);
        };
        if kind == "List" && version == "v1" {
            for item in root.get("items").map_or(&[][..], Node::items) {
                self.document(item);
            }
            return;
        }
        let Some(kind) = Kind::named(kind) else {
            let near = Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>();
            let near = names::nearest(kind, &near).map(|near| format!("is {near} meant? ")).unwrap_or_default();
            let message = format!("unknown kind {kind:?}");
            return self.error("MAN003", kind_at, &object, "kind", [&message, &format!("{near}{}", accepted_kinds())]);
        };
        if !kind.api_versions().contains(&version) {
            let message = format!("unknown apiVersion {version:?} of kind {kind}");
            let hint = format!("{} is accepted", kind.api_versions().join(" or "));
            return self.error("MAN004", version_at, &object, "apiVersion", [&message, &hint]);
        }
        self.object(kind, root, &object);
    }

    fn object(&mut self, kind: Kind, root: &Node, title: &str) {
        let mut flaws = Flaws::default();
        check::object(kind, root, &mut flaws);
        let mut broken = false;
        for flaw in flaws.0 {
            broken |= !flaw.harmless;
            let severity = if flaw.harmless { Severity::Warning } else { Severity::Error };
            self.add(severity, flaw.code, flaw.at, title, &flaw.path, [&flaw.message, &flaw.hint]);
        }
        match typed(kind, root) {
            Ok((mut object, mut unknown)) => {
                let strict = matches!(
                    kind,
                    Kind::AuthorizationPolicy
                        | Kind::PeerAuthentication
                        | Kind::RequestAuthentication
                        | Kind::VirtualService
                        | Kind::DestinationRule
                        | Kind::Telemetry
                        | Kind::Bypass
                        | Kind::Quarantine
                );
                // A status is written by controllers, not by the one who reads these messages.
                unknown.retain(|field| !field.path.starts_with("status."));
                let severity = if strict { Severity::Error } else { Severity::Warning };
                broken |= strict && !unknown.is_empty();
                for field in unknown {
                    let text = [format!("unknown field {:?}", field.name), hint_for(&field)];
                    self.add(severity, "MAN008", field.at, title, &field.path, [&text[0], &text[1]]);
                }
                if broken {
                    return;
                }
                self.flaws_of_rules(&object, root, title);
                if kind.namespaced() {
                    let namespace = &mut object.metadata_mut().namespace;
                    if namespace.as_deref().unwrap_or_default().is_empty() {
                        *namespace = Some(DEFAULT_NAMESPACE.to_owned());
                    }
                }
                let at = Position::new(self.file.clone(), root.at.line, root.at.column);
                self.documents.objects.push(Placed { object, at });
            }
            Err(Mismatch { at, path, message, hint }) => {
                let at = at.unwrap_or(root.at);
                // An impossible port is also an impossible number: say it once.
                let said =
                    self.documents.findings.iter().any(|one| one.at.line == at.line && one.at.column == at.column);
                if !said {
                    self.error("MAN005", at, title, &path, [&message, &hint]);
                }
            }
        }
    }
}

impl Reading {
    /// Rules that the translation refuses: they are refused with a status, and told here with their place.
    fn flaws_of_rules(&mut self, object: &Object, root: &Node, title: &str) {
        if let Object::DestinationRule(written) = object
            && let Some(problem) = translate::destination_rule_flaw(written)
        {
            let hint = "waypoints do not take it; the last version that they took stays in force";
            self.add(Severity::Warning, "MAN020", root.at, title, "spec", [&problem, hint]);
        }
        let Object::VirtualService(written) = object else { return };
        for (list, index, problem) in translate::virtual_service_flaws(written, &Mesh::default()) {
            let rules = root.at_path(&["spec", list]).map_or(&[][..], Node::items);
            let at = rules.get(index).map_or(root.at, |rule| rule.at);
            let hint = "waypoints do not take it; the last version that they took stays in force";
            let path = format!("spec.{list}[{index}]");
            self.add(Severity::Warning, "MAN020", at, title, &path, [&problem, hint]);
        }
    }
}

fn typed(kind: Kind, root: &Node) -> Result<(Object, Vec<Unknown>), Mismatch> {
    fn read<T: DeserializeOwned + Into<Object>>(root: &Node) -> Result<(Object, Vec<Unknown>), Mismatch> {
        read::typed::<T>(root, &["apiVersion", "kind"]).map(|(object, unknown)| (object.into(), unknown))
    }
    match kind {
        Kind::Namespace => read::<Namespace>(root),
        Kind::Node => read::<KubeNode>(root),
        Kind::ServiceAccount => read::<ServiceAccount>(root),
        Kind::ConfigMap => read::<ConfigMap>(root),
        Kind::Secret => read::<Secret>(root),
        Kind::Pod => read::<Pod>(root),
        Kind::Deployment => read::<Deployment>(root),
        Kind::HorizontalPodAutoscaler => read::<HorizontalPodAutoscaler>(root),
        Kind::PodDisruptionBudget => read::<PodDisruptionBudget>(root),
        Kind::Service => read::<Service>(root),
        Kind::EndpointSlice => read::<EndpointSlice>(root),
        Kind::NetworkPolicy => read::<NetworkPolicy>(root),
        Kind::AuthorizationPolicy => read::<AuthorizationPolicy>(root),
        Kind::PeerAuthentication => read::<PeerAuthentication>(root),
        Kind::RequestAuthentication => read::<RequestAuthentication>(root),
        Kind::GatewayClass => read::<GatewayClass>(root),
        Kind::Gateway => read::<Gateway>(root),
        Kind::GrpcRoute => read::<GrpcRoute>(root),
        Kind::HttpRoute => read::<HttpRoute>(root),
        Kind::TlsRoute => read::<TlsRoute>(root),
        Kind::TcpRoute => read::<TcpRoute>(root),
        Kind::VirtualService => read::<VirtualService>(root),
        Kind::DestinationRule => read::<DestinationRule>(root),
        Kind::Telemetry => read::<Telemetry>(root),
        Kind::ReferenceGrant => read::<ReferenceGrant>(root),
        Kind::Bypass => read::<Bypass>(root),
        Kind::Quarantine => read::<Quarantine>(root),
    }
}

fn hint_for(field: &Unknown) -> String {
    match names::nearest(&field.name, field.accepted) {
        Some(near) => format!("is {near} meant?"),
        None if field.accepted.len() > 16 => String::new(),
        None => format!("{} are accepted", field.accepted.join(", ")),
    }
}

fn accepted_kinds() -> String {
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    format!("{} and List are accepted", kinds.join(", "))
}

/// What a document says it is, for messages; empty where it does not say.
fn title(root: &Node) -> String {
    let text = |path: &[&str]| root.at_path(path).and_then(Node::text).unwrap_or_default();
    let (kind, name) = (text(&["kind"]), text(&["metadata", "name"]));
    let namespace = match text(&["metadata", "namespace"]) {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    match (Kind::named(kind), name) {
        (_, "") => kind.to_owned(),
        (Some(kind), name) => ObjectKey::new(kind, namespace, name).to_string(),
        (None, name) => format!("{kind} {namespace}/{name}"),
    }
}

#[cfg(test)]
mod tests;
