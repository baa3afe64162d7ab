//! Policies that do not do what they look like.

use std::collections::BTreeSet;

use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide;
use stillmesh_core::model::access::{Access, Attachment, RequestPolicy, Wanted};
use stillmesh_core::model::{GatewayDestination, ServiceKey, TunnelProtocol};
use stillmesh_k8s::gateway::class::is_of_waypoint;
use stillmesh_k8s::gateway::generate::GATEWAY_NAME;
use stillmesh_k8s::istio::{AuthorizationPolicy, Mode, Source};
use stillmesh_k8s::labels::{self, Labels};
use stillmesh_k8s::translate::policy_targets;
use stillmesh_k8s::{Kind, Object, ObjectKey};

use super::code;
use super::message::Message;
use super::world::World;

/// Annotation of a pod whose inbound traffic is not captured (contract 1.3).
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";

/// All that is to be said of policies.
pub(super) fn said(world: &World) -> Vec<Message> {
    let mut all = Vec::new();
    for (key, object) in &world.objects {
        match &object.object {
            Object::AuthorizationPolicy(written) => {
                principals(world, key, written, &mut all);
                if policy_targets(written, &world.known.mesh).is_empty() {
                    let selector = written.spec.selector.as_ref().map(|one| &one.match_labels);
                    selected(world, key, selector, &mut all);
                }
            }
            Object::PeerAuthentication(written) => {
                let is_strict = written.spec.mtls.is_some_and(|mtls| mtls.mode == Mode::Strict)
                    || written.spec.port_level_mtls.values().any(|mtls| mtls.mode == Mode::Strict);
                if is_strict {
                    let selector = written.spec.selector.as_ref().map(|one| &one.match_labels);
                    selected(world, key, selector, &mut all);
                }
            }
            _ => {}
        }
    }
    tokens(world, &mut all);
    bypassed(world, &mut all);
    all
}

/// Whom a policy selects: pods of waypoints, or pods that are not in the mesh.
fn selected(world: &World, key: &ObjectKey, selector: Option<&Labels>, all: &mut Vec<Message>) {
    let is_root = *key.namespace == *world.known.mesh.root_namespace;
    let pods: Vec<_> = world
        .pods()
        .filter(|(pod, _)| is_root || pod.namespace == key.namespace)
        .filter(|(_, pod)| selector.is_none_or(|wanted| labels::match_all(wanted, labels::of(&pod.metadata.labels))))
        .collect();
    let mut waypoints = pods.iter().map(|(_, pod)| labels::of(&pod.metadata.labels)).filter(|own| is_of_waypoint(own));
    let gateway = waypoints.next().and_then(|own| own.get(GATEWAY_NAME));
    if let (Some(gateway), Some(_), Kind::AuthorizationPolicy) = (gateway, selector, key.kind) {
        let text = format!(
            "its selector picks the pods of Gateway {gateway}: it decides who may connect to the waypoint, and not about \
             requests through it; those are decided by a policy with targetRefs"
        );
        all.push(world.message(code::SELECTOR, key, text));
        return;
    }
    let mut own =
        pods.iter().filter(|(_, pod)| !labels::of(&pod.metadata.labels).contains_key(GATEWAY_NAME)).peekable();
    if !is_root && own.peek().is_some() && !own.any(|(pod_key, pod)| world.is_enrolled(pod_key, pod)) {
        let text = format!(
            "no pod that it is about is in the mesh: nobody enforces it; the label istio.io/dataplane-mode: ambient on \
             Namespace {} puts them into it",
            key.namespace
        );
        all.push(world.message(code::OUTSIDE, key, text));
    }
}

/// Clients that nobody can be.
fn principals(world: &World, key: &ObjectKey, written: &AuthorizationPolicy, all: &mut Vec<Message>) {
    let mut names = BTreeSet::new();
    let (mut namespaces, mut accounts) = (BTreeSet::new(), BTreeSet::new());
    for rule in &written.spec.rules {
        for source in rule.from.iter().filter_map(|from| from.source.as_ref()) {
            let Source { principals, not_principals, .. } = source;
            names.extend(principals.iter().chain(not_principals));
            namespaces.extend(source.namespaces.iter().chain(&source.not_namespaces));
            accounts.extend(source.service_accounts.iter().chain(&source.not_service_accounts));
        }
        for when in &rule.when {
            let values = when.values.iter().chain(&when.not_values);
            match when.key.as_str() {
                "source.principal" => names.extend(values),
                "source.namespace" => namespaces.extend(values),
                "source.serviceAccount" => accounts.extend(values),
                _ => {}
            }
        }
    }
    let of_principals = names
        .into_iter()
        .filter(|name| !name.contains('*'))
        .filter_map(|name| Some((name, no_principal(world, name)?)));
    let of_accounts = accounts.into_iter().filter_map(|name| {
        let (namespace, account) = name.split_once('/').unwrap_or((&key.namespace, name));
        Some((name, no_account(world, namespace, account)?))
    });
    let of_namespaces = namespaces.into_iter().filter(|name| !name.contains('*')).filter_map(|name| {
        let is_gone = world.is_live && !world.has(Kind::Namespace, "", name);
        is_gone.then(|| (name, format!("there is no namespace {name}")))
    });
    for (name, why) in of_principals.chain(of_accounts).chain(of_namespaces) {
        all.push(world.message(code::NO_PRINCIPAL, key, format!("{name:?} is no client that can be: {why}")));
    }
}

fn no_principal(world: &World, name: &str) -> Option<String> {
    let domain = &world.known.mesh.trust_domain;
    if let Some(rest) = name.strip_prefix("spiffe://") {
        return Some(format!("principals are written without spiffe://, {rest:?}"));
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [trust_domain, "ns", namespace, "sa", account] = parts.as_slice() else {
        return Some(format!("a principal is {domain}/ns/NAMESPACE/sa/ACCOUNT"));
    };
    if *trust_domain != domain.to_string() {
        return Some(format!("the trust domain of this mesh is {domain}"));
    }
    no_account(world, namespace, account)
}

/// Why nobody runs under an account; `None` where somebody may.
fn no_account(world: &World, namespace: &str, account: &str) -> Option<String> {
    // Manifests seldom hold all namespaces.
    if !world.knows_clients_of(namespace) {
        return None;
    }
    if world.is_live && !world.has(Kind::Namespace, "", namespace) {
        return Some(format!("there is no namespace {namespace}"));
    }
    let of_pods = world.pods().filter(|(key, _)| &*key.namespace == namespace).filter_map(|(_, pod)| {
        let name = pod.spec.as_ref()?.service_account_name.as_deref();
        Some(name.unwrap_or("default"))
    });
    let is_there = world.has(Kind::ServiceAccount, namespace, account) || of_pods.into_iter().any(|one| one == account);
    (!is_there)
        .then(|| format!("no pod of namespace {namespace} runs as {account}, and there is no such ServiceAccount"))
}

/// Policies that ask for tokens which nobody verifies.
fn tokens(world: &World, all: &mut Vec<Message>) {
    let known = &world.known;
    let asks = |policy: &RequestPolicy| {
        let conditions = policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.alternatives);
        conditions.flat_map(|one| &one.conditions).any(|one| {
            matches!(
                one.wanted,
                Wanted::RequestPrincipal(_) | Wanted::Audience(_) | Wanted::Presenter(_) | Wanted::Claim { .. }
            )
        })
    };
    let attached = |attachment: &Attachment| match attachment {
        Attachment::To(keys) => keys.clone(),
        Attachment::Everything => Vec::new(),
    };
    let verified: BTreeSet<ServiceKey> = known
        .accesses
        .iter()
        .filter_map(|access| match &**access {
            Access::Authentication(one) => Some(attached(&one.attached)),
            _ => None,
        })
        .flatten()
        .collect();
    // A waypoint's own Service stands for all that it carries.
    let around = |key: &ServiceKey| {
        let waypoints = known.snapshot.service(key).into_iter().flat_map(|service| gateways(service.waypoints()));
        let behind = known.services.iter().filter(|one| gateways(one.waypoints()).iter().any(|gateway| gateway == key));
        waypoints.chain(behind.map(|one| one.key.clone())).chain([key.clone()]).collect::<Vec<_>>()
    };
    for access in &known.accesses {
        let Access::Policy(policy) = &**access else { continue };
        let keys = attached(&policy.attached);
        if asks(policy) && !keys.is_empty() && !keys.iter().flat_map(around).any(|key| verified.contains(&key)) {
            let key = ObjectKey::new(Kind::AuthorizationPolicy, &policy.key.namespace, &policy.key.name);
            let text = "a rule asks for a token, and no RequestAuthentication with the same targetRefs verifies any: the \
                        rule never matches";
            all.push(world.message(code::NO_TOKENS, &key, text));
        }
    }
}

/// The Services of waypoints.
pub(super) fn gateways<'a>(waypoints: impl Iterator<Item = &'a stillmesh_core::model::Gateway>) -> Vec<ServiceKey> {
    waypoints
        .filter_map(|gateway| match &gateway.destination {
            GatewayDestination::Hostname(key) => Some(key.clone()),
            GatewayDestination::Address(_) => None,
        })
        .collect()
}

/// Pods whose inbound traffic is not captured, and to which policies refuse clear text.
fn bypassed(world: &World, all: &mut Vec<Message>) {
    let is_on = |text: &String| matches!(text.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
    for (key, pod) in world.pods() {
        if !labels::of(&pod.metadata.annotations).get(BYPASS_INBOUND).is_some_and(is_on) {
            continue;
        }
        let Some(workload) = world.workload(key).filter(|one| one.tunnel_protocol == TunnelProtocol::Hbone) else {
            continue;
        };
        let Some(ip) = workload.addresses.first().copied() else { continue };
        let declared = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|one| one.ports.iter().flatten());
        let ports = declared.filter_map(|port| u16::try_from(port.container_port).ok()).chain([1]);
        let refused = ports.into_iter().find_map(|port| {
            let upstream = (ip, port).into();
            let attrs = InboundAttrs { destination: workload, upstream, source_ip: ip, source_identity: None };
            let verdict = decide::authorize(&world.known.snapshot, &attrs);
            (!verdict.allowed).then_some(verdict.reason)
        });
        if let Some(reason) = refused {
            let text = format!(
                "annotation {BYPASS_INBOUND}: its inbound traffic is not captured, so nobody enforces what policies say of \
                 clear text ({reason})"
            );
            all.push(world.message(code::NOT_CAPTURED, &world.told(key), text));
        }
    }
}
