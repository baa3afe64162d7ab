//! Waypoints of the machine: what runs a Gateway in a cluster, fitted to what a machine has. A waypoint's pods see no
//! more of the machine than a user's pods do, so the mesh's roots and their token come in their environment.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapKeySelector, EnvVar, EnvVarSource, Secret, SecretKeySelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use stillmesh_k8s::gateway::class::{self, Own};
use stillmesh_k8s::gateway::generate::{Generated, Settings, Unmade, account_name, generate_for};
use stillmesh_k8s::gateway::overlay::Overlay;
use stillmesh_k8s::gateway::{Gateway, GatewayClass, GatewayClassSpec, condition};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_runtime::env::Reader;

use super::bootstrap::ROOT;
use super::ipam::CONTROLLER_VIP;
use super::pods::plan::{self, SYSTEM_IMAGE};

/// The ConfigMap of the mesh's roots, and its key.
const ROOTS: (&str, &str) = ("istio-ca-root-cert", "root-cert.pem");
/// The Secret of a waypoint's token ends so; and its key.
const TOKEN: (&str, &str) = ("istio-token", "token");

/// The classes that are there without anybody writing them.
pub(crate) fn classes() -> impl Iterator<Item = Object> {
    class::WAYPOINTS.iter().map(|Own { name, controller, description }| {
        let spec = GatewayClassSpec {
            controller_name: (*controller).to_owned(),
            description: Some((*description).to_owned()),
            ..GatewayClassSpec::default()
        };
        GatewayClass::new(name, spec).into()
    })
}

/// Makes the objects that run a Gateway here; `None` where it is not a waypoint of ours, or cannot be one.
pub(crate) fn objects(
    gateway: &Gateway,
    class: Option<&GatewayClass>,
    overlays: &[Overlay],
    ipv6: bool,
) -> Option<Result<Generated, Unmade>> {
    is_waypoint(gateway, class).then(|| {
        let address = format!("https://{CONTROLLER_VIP}:15012");
        let of_host = Reader::process();
        let settings = Settings {
            image: SYSTEM_IMAGE.to_owned(),
            xds_address: address.clone(),
            ca_address: address,
            log_level: of_host.string("RUST_LOG").unwrap_or_default(),
            log_format: of_host.string("LOG_FORMAT").unwrap_or_default(),
            ..Settings::default()
        };
        generate_for(gateway, &settings, &Mesh::default(), overlays, |made| fit(made, gateway, ipv6))
    })
}

/// Whether a Gateway is one that runs here.
pub(crate) fn is_waypoint(gateway: &Gateway, class: Option<&GatewayClass>) -> bool {
    class::is_waypoint(&gateway.spec.gateway_class_name, class) && gateway.tunnel_listener().is_some()
}

/// What of the overlays has no effect here.
pub(crate) fn ignored(made: &Generated) -> Vec<String> {
    let spec = made.deployment.spec.template.spec.as_ref();
    let mut all = spec.map(|spec| plan::ignored(spec, "deployment: spec.template.spec")).unwrap_or_default();
    let asked =
        [("horizontalPodAutoscaler", made.autoscaler.is_some()), ("podDisruptionBudget", made.budget.is_some())];
    all.extend(asked.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key.to_owned()));
    all
}

/// Takes out what a machine does not have: users, volumes, places.
fn fit(deployment: &mut Deployment, gateway: &Gateway, ipv6: bool) {
    let Some(spec) = &mut deployment.spec.template.spec else { return };
    spec.security_context = None;
    spec.volumes = None;
    spec.topology_spread_constraints = None;
    spec.automount_service_account_token = None;
    spec.termination_grace_period_seconds = Some(5);
    for container in &mut spec.containers {
        container.security_context = None;
        container.volume_mounts = None;
        container.resources = None;
        if let Some(probe) = &mut container.readiness_probe {
            (probe.period_seconds, probe.timeout_seconds) = (Some(1), Some(5));
        }
        let env = container.env.get_or_insert_default();
        env.retain(|one| !matches!(one.name.as_str(), "CA_ROOT_CA" | "CRL_PATH" | "TERMINATION_GRACE_PERIOD_SECONDS"));
        for one in env.iter_mut() {
            let from = match one.name.as_str() {
                "AUTH_TOKEN" => EnvVarSource {
                    secret_key_ref: Some(SecretKeySelector {
                        name: token_secret(account_name(gateway)),
                        key: TOKEN.1.to_owned(),
                        optional: None,
                    }),
                    ..EnvVarSource::default()
                },
                "XDS_ROOT_CA" => EnvVarSource {
                    config_map_key_ref: Some(ConfigMapKeySelector {
                        name: ROOTS.0.to_owned(),
                        key: ROOTS.1.to_owned(),
                        optional: None,
                    }),
                    ..EnvVarSource::default()
                },
                _ => continue,
            };
            (one.value, one.value_from) = (None, Some(from));
        }
        let value = |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        env.push(value("IPV6_ENABLED", ipv6.to_string()));
        env.push(value("TERMINATION_GRACE_PERIOD_SECONDS", "5".to_owned()));
    }
}

fn token_secret(account: &str) -> String {
    format!("{account}-{}", TOKEN.0)
}

/// How far a Gateway's objects are: the addresses of its Service, and how many of its pods are ready.
pub(crate) fn progress(service: Option<&Object>, ready: usize) -> condition::Progress {
    let addresses = match service {
        Some(Object::Service(service)) => service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()),
        _ => None,
    };
    let addresses = addresses.unwrap_or_default().iter().filter_map(|ip| ip.parse().ok()).collect();
    condition::Progress { addresses, ready: u32::try_from(ready).unwrap_or(u32::MAX), ..Default::default() }
}

/// Namespace and account.
type Account = (String, String);

/// The tokens by which the controller knows waypoints. Each is for one account and lives as long as its Gateway.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    tokens: BTreeMap<Account, String>,
}

impl Tokens {
    /// Makes and forgets tokens, so that these accounts have one each. What waypoints' pods need besides, as objects:
    /// the tokens, and the mesh's roots once there are any.
    pub fn keep(&mut self, accounts: &[Account]) -> anyhow::Result<Vec<Object>> {
        let before = self.tokens.len();
        self.tokens.retain(|account, _| accounts.contains(account));
        let mut changed = self.tokens.len() != before;
        for account in accounts {
            if !self.tokens.contains_key(account) {
                changed = true;
                let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
                self.tokens.insert(account.clone(), token);
            }
        }
        if changed {
            write(&Path::new(ROOT).join("join-tokens.json"), &self.tokens)?;
        }
        let roots = std::fs::read_to_string(Path::new(ROOT).join("ca/root-cert.pem")).ok();
        Ok(self.tokens.iter().flat_map(|(account, token)| needed(account, token, roots.as_deref())).collect())
    }
}

fn needed((namespace, account): &Account, token: &str, roots: Option<&str>) -> Vec<Object> {
    let metadata =
        |name: String| ObjectMeta { name: Some(name), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
    let secret = Secret {
        metadata: metadata(token_secret(account)),
        data: Some([(TOKEN.1.to_owned(), ByteString(token.as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    let map = roots.map(|roots| ConfigMap {
        metadata: metadata(ROOTS.0.to_owned()),
        data: Some([(ROOTS.1.to_owned(), roots.to_owned())].into()),
        ..ConfigMap::default()
    });
    map.map(Object::from).into_iter().chain([secret.into()]).collect()
}

/// Writes the file of join tokens anew: nodes' stay, accounts' are these.
fn write(file: &Path, tokens: &BTreeMap<Account, String>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mut all: BTreeMap<String, Value> = serde_json::from_str(&text)?;
    all.retain(|_, holder| holder.is_string());
    for ((namespace, account), token) in tokens {
        let holder = serde_json::json!({"namespace": namespace, "account": account});
        all.insert(stillmesh_controller::token_digest(token), holder);
    }
    let part = file.with_extension("part");
    let mut out = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    std::io::Write::write_all(&mut out, &serde_json::to_vec(&all)?)?;
    std::fs::rename(&part, file).with_context(|| format!("writing {}", file.display()))
}

/// Says whose the objects are that run Gateways: their owners are known once all objects have been given what the API server
/// adds.
pub(crate) fn own(objects: &mut BTreeMap<ObjectKey, Object>) {
    let owned = |object: &Object| object.metadata().owner_references.iter().flatten().any(|one| one.uid.is_empty());
    let keys: Vec<ObjectKey> = objects.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.clone()).collect();
    for key in keys {
        let uid_of = |kind: &str, name: &str| {
            let owner = ObjectKey::new(Kind::named(kind)?, &key.namespace, name);
            objects.get(&owner)?.metadata().uid.clone()
        };
        let owners = objects.get(&key).and_then(|object| object.metadata().owner_references.clone());
        let mut owners = owners.unwrap_or_default();
        for owner in owners.iter_mut().filter(|owner| owner.uid.is_empty()) {
            owner.uid = uid_of(&owner.kind, &owner.name).unwrap_or_default();
        }
        owners.retain(|owner| !owner.uid.is_empty());
        if let Some(object) = objects.get_mut(&key) {
            object.metadata_mut().owner_references = Some(owners);
        }
    }
}

/// The key of a Gateway's Deployment or Service.
pub(crate) fn key_of(kind: Kind, gateway: &Gateway) -> ObjectKey {
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(stillmesh_k8s::object::DEFAULT_NAMESPACE);
    ObjectKey::new(kind, namespace, stillmesh_k8s::gateway::binding::service_name(gateway))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::pods::plan::{Origin, Program};

    fn gateway() -> Gateway {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: shop}\n\
                    spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
        let found = stillmesh_k8s::parse::documents("g", text);
        match found.objects.into_iter().next().unwrap().object {
            Object::Gateway(gateway) => (*gateway).clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_waypoints_pods_can_run_here_with_what_comes_in_their_environment() {
        let made = objects(&gateway(), None, &[], true).unwrap().unwrap();
        assert_eq!(ignored(&made), [""; 0]);
        let template = made.deployment.spec.template;
        let spec = template.spec.unwrap();
        let pod = k8s_openapi::api::core::v1::Pod { spec: Some(spec.clone()), ..Default::default() };
        let plan = plan::plan(&pod, "spec", Origin::System).unwrap();
        assert_eq!(plan.service_account, "w");
        assert_eq!(plan.containers[0].program, Program::Own(vec!["proxy".to_owned(), "waypoint".to_owned()]));
        let env = spec.containers[0].env.as_deref().unwrap();
        let from = |name: &str| {
            let from = env.iter().find(|one| one.name == name)?.value_from.clone()?;
            let of_map = from.config_map_key_ref.map(|one| (one.name, one.key));
            from.secret_key_ref.map(|one| (one.name, one.key)).or(of_map)
        };
        let key = |name: &str, key: &str| Some((name.to_owned(), key.to_owned()));
        assert_eq!(from("AUTH_TOKEN"), key("w-istio-token", "token"));
        assert_eq!(from("XDS_ROOT_CA"), key("istio-ca-root-cert", "root-cert.pem"));
        let needed = needed(&("shop".to_owned(), "w".to_owned()), "t", Some("R"));
        let names: Vec<String> = needed.iter().map(|object| object.key().to_string()).collect();
        assert_eq!(names, ["ConfigMap shop/istio-ca-root-cert", "Secret shop/w-istio-token"]);
    }

    #[test]
    fn what_runs_a_gateway_names_it_by_its_uid() {
        let mut gateway = gateway();
        let made: Vec<Object> = objects(&gateway, None, &[], true).unwrap().unwrap().objects().collect();
        gateway.metadata.uid = Some("u7".to_owned());
        let mut all: BTreeMap<ObjectKey, Object> = made.into_iter().map(|one| (one.key(), one)).collect();
        let uids = |all: &BTreeMap<ObjectKey, Object>| -> Vec<Vec<String>> {
            let owners = all
                .values()
                .filter(|one| one.kind() != Kind::Gateway)
                .map(|one| one.metadata().owner_references.clone());
            owners.map(|owners| owners.into_iter().flatten().map(|one| one.uid).collect()).collect()
        };
        let mut orphans = all.clone();
        own(&mut orphans);
        assert_eq!(uids(&orphans), vec![Vec::<String>::new(); 3]);
        let gateway = Object::from(gateway);
        all.insert(gateway.key(), gateway);
        own(&mut all);
        assert_eq!(uids(&all), vec![vec!["u7".to_owned()]; 3]);
    }

    #[test]
    fn a_gateway_of_another_class_is_none_of_ours() {
        let mut gateway = gateway();
        gateway.spec.gateway_class_name = "nginx".to_owned();
        assert!(objects(&gateway, None, &[], true).is_none());
    }

    #[test]
    fn tokens_of_accounts_stand_beside_those_of_nodes_and_go_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("join-tokens.json");
        std::fs::write(&file, "{\"aa\": \"node1\"}").unwrap();
        let tokens = BTreeMap::from([(("shop".to_owned(), "w".to_owned()), "t".to_owned())]);
        write(&file, &tokens).unwrap();
        let read =
            || serde_json::from_str::<BTreeMap<String, Value>>(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(read()[&stillmesh_controller::token_digest("t")]["account"], "w");
        write(&file, &BTreeMap::new()).unwrap();
        assert_eq!(read(), BTreeMap::from([("aa".to_owned(), Value::from("node1"))]));
    }
}
