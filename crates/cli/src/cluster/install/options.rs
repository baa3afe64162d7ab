//! The chart's values that `install` knows, laid over the rendered objects. Pure.
//!
//! What comes out is what Helm would render with the same values (`deploy/compare` holds them together); anything that is not
//! here needs Helm, and the message says so.

use anyhow::{anyhow, bail, ensure};
use serde_json::{Value, json};
use stillmesh_controller::lease_of;

use super::bundle::{Bundle, Group, MANAGED_BY, RENDERED_NAMESPACE, is_global};
use crate::cluster::args::namespace_name;
use crate::cluster::value::{label, name, text};

/// Name of the controller's objects.
const CONTROLLER: &str = "stillmesh-controller";
/// The controller's variable with the accounts that may ask for certificates of others.
const TRUSTED: &str = "CA_TRUSTED_NODE_ACCOUNTS";

/// Where the containers of a workload are.
const CONTAINERS: &str = "/spec/template/spec/containers";

/// What a value may be.
#[derive(Clone, Copy, Debug)]
enum Accepts {
    Text,
    Flag,
    Count,
    Namespace,
    Path,
    Label,
    OneOf(&'static [&'static str]),
}

/// A value that can be set.
struct Known {
    key: &'static str,
    accepts: Accepts,
    meaning: &'static str,
}

const fn known(key: &'static str, accepts: Accepts, meaning: &'static str) -> Known {
    Known { key, accepts, meaning }
}

/// Every value that can be set, as in the chart.
const KNOWN: &[Known] = &[
    known("image", Accepts::Text, "image of all parts, as REPOSITORY[:TAG][@DIGEST]"),
    known("image.repository", Accepts::Text, "its repository"),
    known("image.tag", Accepts::Text, "its tag"),
    known("image.pullPolicy", Accepts::OneOf(&["Always", "IfNotPresent", "Never"]), "when it is pulled"),
    known("rootNamespace", Accepts::Namespace, "namespace whose policies hold for the whole mesh"),
    known("trustDomain", Accepts::Text, "trust domain of all identities"),
    known("clusterDomain", Accepts::Text, "DNS domain of the cluster's services"),
    known("clusterId", Accepts::Text, "name of this cluster"),
    known("network", Accepts::Text, "network that the pods are on"),
    known("excludeNamespaces", Accepts::Text, "namespaces whose pods are never captured, separated by commas"),
    known("dnsCapture", Accepts::Flag, "whether DNS of captured pods goes through ztunnel"),
    known("log.level", Accepts::Text, "what is logged"),
    known("log.format", Accepts::OneOf(&["text", "json"]), "how it is logged"),
    known("compat.istio", Accepts::Flag, "adds the names that Istio's tools look for"),
    known("ca.workloadCertTtl", Accepts::Text, "life of a workload's certificate"),
    known("webhook.enabled", Accepts::Flag, "whether policies are checked when they are written"),
    known("webhook.failurePolicy", Accepts::OneOf(&["Ignore", "Fail"]), "what if no controller answers"),
    known(
        "crds.enabled",
        Accepts::Flag,
        "whether the kinds of policies, VirtualService and DestinationRule are brought along",
    ),
    known("networkPolicy.enabled", Accepts::Flag, "whether NetworkPolicies guard the mesh's own pods"),
    known("telemetry.podMonitor", Accepts::Flag, "whether PodMonitors are there, for the Prometheus operator"),
    known("telemetry.prometheusRule", Accepts::Flag, "whether its recording and alert rules are"),
    known("telemetry.labels.KEY", Accepts::Label, "a label of both; a dot in KEY is written as \\."),
    known("controller.enabled", Accepts::Flag, "whether there is a controller"),
    known("controller.replicas", Accepts::Count, "how many of it"),
    known("cni.enabled", Accepts::Flag, "whether there is a node agent"),
    known("cni.binDir", Accepts::Path, "where the container runtime looks for plugins"),
    known("cni.confDir", Accepts::Path, "where it looks for their configuration"),
    known("cni.netnsDir", Accepts::Path, "where it keeps pods' network namespaces"),
    known("cni.ownConflist", Accepts::Flag, "writes a conflist of its own"),
    known("cni.admissionPolicy", Accepts::Flag, "whether each agent is held to the pods of its node"),
    known("ztunnel.enabled", Accepts::Flag, "whether there is a node tunnel"),
    known("ztunnel.xdsAddress", Accepts::Text, "the control plane, if it is another one"),
    known("revision", Accepts::Namespace, "revision of the controller; also --revision"),
];

/// What `--set` accepts, for the help.
pub(crate) fn help() -> String {
    let width = KNOWN.iter().map(|known| known.key.len()).max().unwrap_or_default();
    let rows = KNOWN.iter().map(|known| format!("  {:width$}  {}", known.key, known.meaning));
    format!("Values of --set:\n{}", rows.collect::<Vec<_>>().join("\n"))
}

/// A value that is set, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    key: String,
    value: String,
}

/// What the keys of labels of what is for the Prometheus operator begin with.
const LABELS: &str = "telemetry.labels.";

impl Known {
    /// Whether this key is meant.
    fn is(&self, key: &str) -> bool {
        match self.accepts {
            Accepts::Label => key.strip_prefix(LABELS).is_some_and(|label| !label.is_empty()),
            _ => self.key == key,
        }
    }
}

/// Whether Kubernetes takes a label.
fn is_label(key: &str, value: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_name = |text: &str| {
        let bytes = text.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        bytes.len() <= 63 && bytes.iter().all(inner) && is_end(bytes.first()) && is_end(bytes.last())
    };
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_domain = |text: &str| text.len() <= 253 && text.split('.').all(|part| namespace_name(part).is_ok());
    prefix.is_none_or(is_domain) && is_name(name) && (value.is_empty() || is_name(value))
}

/// Whether what is for the Prometheus operator has a label of this key of itself.
fn has_itself(key: &str) -> Result<bool, String> {
    let objects = Bundle::of_operator().map_err(|error| format!("{error:#}"))?;
    Ok(objects.iter().any(|object| label(object, key).is_some()))
}

/// The label that a setting is, as the chart's value names it: a dot of its key is written as `\.`.
fn label_of(setting: &Setting) -> Option<(String, &str)> {
    Some((setting.key.strip_prefix(LABELS)?.replace("\\.", "."), setting.value.as_str()))
}

/// Reads `key=value`.
pub(crate) fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: key=value is accepted"))?;
    let known = KNOWN.iter().find(|known| known.is(key)).ok_or_else(|| {
        format!(
            "value {key:?} is not one that this command knows (`stillmesh install --help` lists them); with Helm: \
             helm install stillmesh CHART -n NAMESPACE --create-namespace --set {text}"
        )
    })?;
    let accepted = match known.accepts {
        Accepts::Text if !value.is_empty() && !value.contains(char::is_whitespace) => Ok(()),
        Accepts::Text => Err("a text without spaces".to_owned()),
        Accepts::Flag if matches!(value, "true" | "false") => Ok(()),
        Accepts::Flag => Err("true or false".to_owned()),
        Accepts::Count if value.parse::<u16>().is_ok() => Ok(()),
        Accepts::Count => Err("a number up to 65535".to_owned()),
        Accepts::Namespace => namespace_name(value).map(|_| ()),
        Accepts::Path if value.starts_with('/') && !value.split('/').any(|part| part == "..") => Ok(()),
        Accepts::Path => Err("an absolute path on the nodes".to_owned()),
        // A dot that stands for itself would be a level of values.
        Accepts::Label => {
            let label = key.strip_prefix(LABELS).unwrap_or_default().replace("\\.", "\u{0}");
            let (is_one, label) = (!label.contains('.'), label.replace('\u{0}', "."));
            match is_one && is_label(&label, value) {
                true if has_itself(&label)? => Err(format!(
                    "a label that these objects do not have already, and {label} says whose they are: use another key"
                )),
                true => Ok(()),
                false => Err("a label of Kubernetes, dots in its key written as \\.".to_owned()),
            }
        }
        Accepts::OneOf(words) if words.contains(&value) => Ok(()),
        Accepts::OneOf(words) => Err(words.join(" or ")),
    };
    match accepted {
        Ok(()) => Ok(Setting { key: key.to_owned(), value: value.to_owned() }),
        Err(accepted) => Err(format!("{key}={value:?}: accepted is {accepted}")),
    }
}

/// Annotation of the mesh's workloads with what was set.
pub(crate) const SETTINGS: &str = "stillmesh.io/settings";

/// The value that counts of a key.
pub(crate) fn value<'a>(settings: &'a [Setting], key: &str) -> Option<&'a str> {
    settings.iter().rev().find(|setting| setting.key == key).map(|setting| setting.value.as_str())
}

/// Settings as they are typed.
pub(crate) fn words(settings: &[Setting]) -> String {
    settings.iter().map(|setting| format!("{}={}", setting.key, setting.value)).collect::<Vec<_>>().join(" ")
}

/// Which earlier settings still hold. An image goes with its version: of it only the repository is kept for another.
pub(crate) fn keep(before: &[Setting], now: &[Setting], same_version: bool) -> Vec<Setting> {
    let image = |key: &str| matches!(key, "image" | "image.repository" | "image.tag");
    let set = |key: &str| now.iter().any(|setting| setting.key == key);
    let set_image = now.iter().any(|setting| image(&setting.key));
    let kept = before.iter().filter(|setting| !(set(&setting.key) || set_image && image(&setting.key)));
    kept.filter_map(|setting| match setting.key.as_str() {
        "image.tag" if !same_version => None,
        "image" if !same_version => {
            let value = split_image(&setting.value).0.to_owned();
            Some(Setting { key: "image.repository".to_owned(), value })
        }
        _ => Some(setting.clone()),
    })
    .collect()
}

/// Repository and tag of an image; a colon before the last slash belongs to a port.
fn split_image(image: &str) -> (&str, Option<&str>) {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (image, None),
    }
}

/// Writes at the workloads what was set.
pub(crate) fn remember(bundle: &mut Bundle, settings: &[Setting]) {
    if settings.is_empty() {
        return;
    }
    let mut texts: Vec<String> = Vec::new();
    for (place, setting) in settings.iter().enumerate() {
        if !settings.iter().skip(place + 1).any(|later| later.key == setting.key) {
            texts.push(format!("{}={}", setting.key, setting.value));
        }
    }
    texts.sort();
    for object in &mut bundle.objects {
        if matches!(text(&object["kind"]), "Deployment" | "DaemonSet") {
            object["metadata"]["annotations"][SETTINGS] = json!(texts.join(" "));
        }
    }
}

/// Reads what [`remember`] wrote. What this version does not know any more is left out.
pub(crate) fn recall(text: &str) -> Vec<Setting> {
    text.split_whitespace().filter_map(|text| setting(text).ok()).collect()
}

/// Lays settings over a bundle. Later ones win.
pub(crate) fn adapt(bundle: &mut Bundle, mesh_namespace: &str, settings: &[Setting]) -> anyhow::Result<()> {
    let value = |key: &str| value(settings, key);
    let flag = |key: &str, default: bool| value(key).map_or(default, |value| value == "true");
    let version = bundle.version.clone();
    let of_operator = |object: &Value| match text(&object["kind"]) {
        "PodMonitor" => Some("telemetry.podMonitor"),
        "PrometheusRule" => Some("telemetry.prometheusRule"),
        _ => None,
    };
    for object in Bundle::of_operator()? {
        let is_there = bundle.objects.iter().any(|one| one["kind"] == object["kind"] && name(one) == name(&object));
        if of_operator(&object).is_some_and(|key| flag(key, false)) && !is_there {
            bundle.objects.push(object);
        }
    }
    let labels: Vec<(String, &str)> = settings.iter().filter_map(label_of).collect();
    for object in bundle.objects.iter_mut().filter(|object| of_operator(object).is_some()) {
        for (key, value) in &labels {
            object["metadata"]["labels"][key] = json!(value);
        }
    }
    bundle.objects.retain(|object| {
        let kind = text(&object["kind"]);
        let component = label(object, "app.kubernetes.io/name");
        let part = match component {
            Some("ztunnel") => flag("ztunnel.enabled", true),
            Some("stillmesh-cni") => flag("cni.enabled", true),
            Some("stillmesh-controller") => flag("controller.enabled", true),
            _ => true,
        };
        part && match kind {
            "CustomResourceDefinition" => flag("crds.enabled", true),
            "ValidatingWebhookConfiguration" => flag("webhook.enabled", true),
            "ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding" if component == Some("stillmesh-cni") => {
                flag("cni.admissionPolicy", true)
            }
            "NetworkPolicy" => flag("networkPolicy.enabled", true),
            _ => of_operator(object).is_none_or(|key| flag(key, true)),
        }
    });
    if !flag("webhook.enabled", true) {
        // Nothing is to be written there then.
        let webhooks = |rule: &Value| rule["resources"] == json!(["validatingwebhookconfigurations"]);
        for role in bundle.objects.iter_mut().filter(|object| object["kind"] == "ClusterRole") {
            if let Some(rules) = role["rules"].as_array_mut() {
                rules.retain(|rule| !webhooks(rule));
            }
        }
    }
    let revision = value("revision").unwrap_or("default");
    if revision != "default" {
        let renamed = format!("{CONTROLLER}-{revision}");
        ensure!(renamed.len() <= 63, "revision {revision:?} is too long: {renamed} must not exceed 63 characters");
        for object in &mut bundle.objects {
            revise(object, revision, &renamed);
        }
    }
    if flag("compat.istio", false) {
        compatible(bundle, mesh_namespace, value("rootNamespace"));
    }
    let image = image(&value)?;
    for object in &mut bundle.objects {
        object["metadata"]["labels"][MANAGED_BY] = json!("stillmesh");
        let group = Group::of(object);
        for container in items(object, CONTAINERS) {
            container_values(container, group, &value, &image, &version);
        }
        match group {
            Group::Controller => {
                if let Some(replicas) = value("controller.replicas").and_then(|count| count.parse::<u16>().ok()) {
                    object["spec"]["replicas"] = json!(replicas);
                }
            }
            Group::Agent => {
                for (key, volume) in [("cni.binDir", "cni-bin"), ("cni.confDir", "cni-conf"), ("cni.netnsDir", "netns")]
                {
                    if let Some(path) = value(key) {
                        set_host_path(object, volume, path)?;
                        if volume == "netns" {
                            // Links in it point to where they stand on the node.
                            set_mount_path(object, volume, path);
                        }
                    }
                }
            }
            Group::Webhook => {
                if let Some(policy) = value("webhook.failurePolicy") {
                    for webhook in items(object, "/webhooks") {
                        webhook["failurePolicy"] = json!(policy);
                    }
                }
            }
            _ => {}
        }
    }
    if mesh_namespace != RENDERED_NAMESPACE {
        for object in &mut bundle.objects {
            rename_namespace(object, mesh_namespace);
        }
    }
    for object in &mut bundle.objects {
        if !is_global(text(&object["kind"])) && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!(mesh_namespace);
        }
    }
    super::bundle::sort(&mut bundle.objects);
    Ok(())
}

/// What is set of the image.
struct Image {
    whole: Option<String>,
    repository: Option<String>,
    tag: Option<String>,
}

fn image<'a>(value: &impl Fn(&str) -> Option<&'a str>) -> anyhow::Result<Image> {
    let (whole, repository, tag) = (value("image"), value("image.repository"), value("image.tag"));
    if whole.is_some() && (repository.is_some() || tag.is_some()) {
        bail!("image is the whole reference: it does not go with image.repository and image.tag");
    }
    Ok(Image {
        whole: whole.map(str::to_owned),
        repository: repository.map(str::to_owned),
        tag: tag.map(str::to_owned),
    })
}

fn container_values<'a>(
    container: &mut Value,
    group: Group,
    value: &impl Fn(&str) -> Option<&'a str>,
    image: &Image,
    version: &str,
) {
    let rendered = text(&container["image"]).to_owned();
    container["image"] = json!(match image {
        Image { whole: Some(whole), .. } => whole.clone(),
        Image { repository, tag, .. } => {
            let (before, after) = split_image(&rendered);
            let after = after.unwrap_or(version);
            format!("{}:{}", repository.as_deref().unwrap_or(before), tag.as_deref().unwrap_or(after))
        }
    });
    if let Some(policy) = value("image.pullPolicy") {
        container["imagePullPolicy"] = json!(policy);
    }
    let mut env: Vec<(&str, Option<String>)> = vec![
        ("RUST_LOG", value("log.level").map(str::to_owned)),
        ("LOG_FORMAT", value("log.format").map(str::to_owned)),
    ];
    let own = |key: &str| value(key).map(str::to_owned);
    match group {
        Group::Controller => {
            env.extend([
                ("CLUSTER_DOMAIN", own("clusterDomain")),
                ("CLUSTER_ID", own("clusterId")),
                ("DEFAULT_WORKLOAD_CERT_TTL", own("ca.workloadCertTtl")),
                ("NETWORK", own("network")),
                ("ROOT_NAMESPACE", own("rootNamespace")),
                ("TRUST_DOMAIN", own("trustDomain")),
                ("WAYPOINT_IMAGE", Some(text(&container["image"]).to_owned())),
                ("WAYPOINT_PULL_POLICY", own("image.pullPolicy")),
            ]);
        }
        Group::Agent => env.extend([
            ("AMBIENT_DNS_CAPTURE", own("dnsCapture")),
            ("CNI_OWN_CONFLIST", own("cni.ownConflist")),
            ("EXCLUDE_NAMESPACES", own("excludeNamespaces")),
        ]),
        Group::Tunnel => env.extend([
            ("CLUSTER_DOMAIN", own("clusterDomain")),
            ("DNS_CAPTURE", own("dnsCapture")),
            ("ISTIO_META_CLUSTER_ID", own("clusterId")),
            ("NETWORK", own("network")),
            ("SECRET_TTL", own("ca.workloadCertTtl")),
            ("TRUST_DOMAIN", own("trustDomain")),
            ("XDS_ADDRESS", own("ztunnel.xdsAddress")),
            ("CA_ADDRESS", own("ztunnel.xdsAddress")),
        ]),
        _ => {}
    }
    for (key, value) in env {
        if let Some(value) = value {
            set_env(container, key, &value);
        }
    }
}

/// The items of a list in an object, by JSON pointer; none where there is no such list.
fn items<'a>(object: &'a mut Value, at: &str) -> impl Iterator<Item = &'a mut Value> {
    object.pointer_mut(at).and_then(Value::as_array_mut).into_iter().flatten()
}

fn env_value(container: &Value, key: &str) -> Option<String> {
    let env = container["env"].as_array()?;
    env.iter().find(|one| one["name"] == key)?["value"].as_str().map(str::to_owned)
}

/// Sets a variable. Those with values are in the order of their names, after those that come from the pod itself.
fn set_env(container: &mut Value, key: &str, value: &str) {
    let Some(env) = container["env"].as_array_mut() else {
        container["env"] = json!([{"name": key, "value": value}]);
        return;
    };
    let entry = json!({"name": key, "value": value});
    if let Some(there) = env.iter_mut().find(|one| one["name"] == key) {
        *there = entry;
        return;
    }
    let after = env.iter().position(|one| one["valueFrom"].is_null() && text(&one["name"]) > key);
    env.insert(after.unwrap_or(env.len()), entry);
}

fn set_host_path(object: &mut Value, volume: &str, path: &str) -> anyhow::Result<()> {
    let found = items(object, "/spec/template/spec/volumes").find(|one| one["name"] == volume);
    found.ok_or_else(|| anyhow!("the node agent has no volume {volume:?}"))?["hostPath"]["path"] = json!(path);
    Ok(())
}

fn set_mount_path(object: &mut Value, volume: &str, path: &str) {
    for container in items(object, CONTAINERS) {
        for mount in items(container, "/volumeMounts").filter(|mount| mount["name"] == volume) {
            mount["mountPath"] = json!(path);
        }
    }
}

/// Gives the controller's objects the names of a revision.
fn revise(object: &mut Value, revision: &str, renamed: &str) {
    let own = label(object, "app.kubernetes.io/name") == Some(CONTROLLER);
    each_text(object, &mut |path, text| match path.last().map(String::as_str) {
        Some("istio.io/rev") => Some(revision.to_owned()),
        Some("app" | "app.kubernetes.io/name") => None,
        _ if text == CONTROLLER && own => Some(renamed.to_owned()),
        // A revision has a lease of its own beside that of all.
        _ if text == lease_of("") => Some(lease_of(revision)),
        _ if text == "stillmesh-validator" => Some(format!("{text}-{revision}")),
        _ => text
            .contains(&format!("{CONTROLLER}."))
            .then(|| text.replace(&format!("{CONTROLLER}."), &format!("{renamed}."))),
    });
    if object["kind"] == "ValidatingWebhookConfiguration" {
        let selector = json!({"matchExpressions": [{"key": "istio.io/rev", "operator": "In", "values": [revision]}]});
        for webhook in items(object, "/webhooks") {
            webhook["objectSelector"] = selector.clone();
        }
    }
    for container in items(object, CONTAINERS).filter(|_| own) {
        set_env(container, "REVISION", revision);
    }
}

/// Adds the names that Istio's tools look for, and trusts the account of Istio's own ztunnel.
fn compatible(bundle: &mut Bundle, mesh_namespace: &str, root_namespace: Option<&str>) {
    let mut services = Vec::new();
    for object in &mut bundle.objects {
        let controller = label(object, "app.kubernetes.io/name") == Some(CONTROLLER);
        let mut places = vec!["/metadata/labels"];
        if matches!(text(&object["kind"]), "Deployment" | "DaemonSet") {
            places.push("/spec/template/metadata/labels");
        }
        for place in places {
            let Some(labels) = object.pointer_mut(place).and_then(Value::as_object_mut) else { continue };
            if labels.get("app").is_some_and(|app| app == CONTROLLER) {
                labels.insert("app".to_owned(), json!("istiod"));
                labels.insert("istio".to_owned(), json!("pilot"));
            }
            if labels.contains_key("k8s-app") {
                labels.insert("k8s-app".to_owned(), json!("istio-cni-node"));
            }
        }
        for container in items(object, CONTAINERS).filter(|_| controller) {
            let root = root_namespace.map(str::to_owned).or_else(|| env_value(container, "ROOT_NAMESPACE"));
            let trusted = env_value(container, TRUSTED).unwrap_or_default();
            if let Some(root) = root.filter(|root| root != mesh_namespace) {
                set_env(container, TRUSTED, &format!("{trusted},{root}/ztunnel"));
            }
        }
        if controller && object["kind"] == "Service" {
            let mut service = object.clone();
            service["metadata"]["name"] = json!(name(object).replace(CONTROLLER, "istiod"));
            services.push(service);
        }
    }
    bundle.objects.extend(services);
}

/// Moves an object to another namespace, with all that is said of it elsewhere.
fn rename_namespace(object: &mut Value, to: &str) {
    let whole = object["kind"] == "Namespace";
    each_text(object, &mut |path, text| {
        let key = path.last().map(String::as_str);
        if text == RENDERED_NAMESPACE {
            let namespace = key == Some("namespace") || whole && key == Some("name");
            return (namespace || path.iter().any(|part| part == "env")).then(|| to.to_owned());
        }
        // Host names and accounts in the environment of containers.
        path.iter().any(|part| part == "env").then(|| {
            text.replace(&format!(".{RENDERED_NAMESPACE}."), &format!(".{to}."))
                .replace(&format!("{RENDERED_NAMESPACE}/"), &format!("{to}/"))
        })
    });
}

/// Offers every text of a value, with the keys that lead to it; what comes back takes its place.
fn each_text(value: &mut Value, change: &mut impl FnMut(&[String], &str) -> Option<String>) {
    fn walk(value: &mut Value, path: &mut Vec<String>, change: &mut impl FnMut(&[String], &str) -> Option<String>) {
        match value {
            Value::String(text) => {
                if let Some(new) = change(path, text) {
                    *text = new;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, path, change)),
            Value::Object(entries) => {
                for (key, value) in entries.iter_mut() {
                    path.push(key.clone());
                    walk(value, path, change);
                    path.pop();
                }
            }
            _ => {}
        }
    }
    walk(value, &mut Vec::new(), change);
}

#[cfg(test)]
mod tests;
