//! What the mesh itself says: findings of reading, findings of objects seen together, and what it writes into statuses.

use std::collections::BTreeMap;

use serde_json::Value;
use stillmesh_controller::build::Verdict;
use stillmesh_k8s::gateway::condition::Said;
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::translate::{self, Target};
use stillmesh_k8s::{Finding, Kind, Object, ObjectKey, Severity};

use super::code::{self, Code};
use super::message::Message;
use super::world::World;

/// Rules that waypoints do not take: found while reading, with their place.
const RULE: &str = "MAN020";

/// All of it.
pub(super) fn said(world: &World) -> Vec<Message> {
    let mut all: Vec<Message> = world.known.findings.iter().filter_map(|one| of_finding(world, one)).collect();
    for verdict in &world.known.verdicts {
        of_verdict(world, verdict, &mut all);
    }
    let verdicts: BTreeMap<&ObjectKey, &Verdict> = world.known.verdicts.iter().map(|one| (&one.object, one)).collect();
    for (key, placed) in &world.objects {
        of_status(world, &placed.object, verdicts.get(key).copied(), &mut all);
    }
    all
}

fn of_finding(world: &World, finding: &Finding) -> Option<Message> {
    let code = match (finding.code, finding.severity) {
        ("MAN016", _) if finding.path.starts_with("metadata.") => code::NO_WAYPOINT,
        // What is for waypoints and has none: its status says it too.
        ("MAN016", _) => return None,
        ("MAN013", _) if finding.message.starts_with("no pod") => code::NO_WORKLOADS,
        ("MAN013", _) => code::INEFFECTIVE,
        (RULE, _) if !finding.object.starts_with("Telemetry ") => code::INVALID,
        (_, Severity::Error) => code::INVALID,
        (_, Severity::Warning) => code::PARTLY,
    };
    let mut text = finding.message.clone();
    if !finding.path.is_empty() {
        text = format!("{}: {text}", finding.path);
    }
    if !finding.hint.is_empty() {
        text = format!("{text}; {}", finding.hint);
    }
    // What is seen together has the place of its object.
    let key = world.objects.keys().find(|key| key.to_string() == finding.object);
    Some(match key.filter(|_| finding.at.file.is_empty() || finding.at.file.starts_with('(')) {
        Some(key) => world.message(code, key, text),
        None => Message::titled(code, &finding.object, finding.at.clone(), text),
    })
}

fn of_verdict(world: &World, verdict: &Verdict, all: &mut Vec<Message>) {
    let key = &verdict.object;
    if let Some(parents) = &verdict.parents {
        parents.said.iter().for_each(|said| of_parent(world, key, said, all));
    }
    let object = world.objects.get(key).map(|placed| &placed.object);
    let Some(condition) = &verdict.condition else {
        all.extend(object.and_then(|object| unattached(world, key, object)));
        return;
    };
    let mut say = |code, text: &str| all.push(world.message(code, key, text));
    match (key.kind, condition.type_) {
        (Kind::Service, _) if condition.status == "False" => {
            // A label that asks in vain is told where it stands.
            let titles = [key.clone(), ObjectKey::new(Kind::Namespace, "", &key.namespace)].map(|one| one.to_string());
            let is_told = |one: &Finding| one.code == "MAN016" && titles.contains(&one.object);
            if !world.known.findings.iter().any(is_told) {
                say(code::NOT_READY, &condition.message);
            }
        }
        (Kind::AuthorizationPolicy, "ZtunnelAccepted") => {
            let policy = match object {
                Some(Object::AuthorizationPolicy(written)) => {
                    translate::authorization(written, &world.known.mesh).policy
                }
                _ => None,
            };
            match (condition.status, condition.reason) {
                ("False", "Invalid") => {}
                ("False", _) => say(code::INEFFECTIVE, &format!("nobody enforces it: {}", condition.message)),
                (_, "Accepted") => {}
                _ => {
                    let allows = |one: &stillmesh_core::model::Policy| {
                        one.action == stillmesh_core::model::Action::Allow && one.rules.is_empty()
                    };
                    let denies_all = policy.as_ref().is_some_and(allows);
                    say(if denies_all { code::DENIES_ALL } else { code::STRICTER }, &condition.message);
                }
            }
        }
        (Kind::VirtualService | Kind::DestinationRule, _) => of_holder(world, key, condition, all),
        (Kind::AuthorizationPolicy | Kind::RequestAuthentication | Kind::Telemetry, _) => {
            let is_missing = object.is_some_and(|object| names_missing(world, object));
            let has_selector = matches!(object, Some(Object::Telemetry(one)) if one.spec.selector.is_some());
            match (condition.status, condition.reason) {
                (_, "Accepted") => {}
                (_, "TargetNotFound") | (_, "PartiallyInvalid") if is_missing => {
                    say(code::NOT_FOUND, &condition.message)
                }
                (_, "AncestorNotBound") => say(code::INEFFECTIVE, &condition.message),
                (_, "Invalid") if has_selector => say(code::SELECTOR, &condition.message),
                ("False", _) => say(code::INVALID, &condition.message),
                // Told where it stands.
                _ if is_told(world, key) => {}
                _ => say(code::PARTLY, &condition.message),
            }
        }
        _ => {}
    }
}

/// Of a VirtualService or DestinationRule: each thing that is said by itself.
fn of_holder(world: &World, key: &ObjectKey, condition: &Condition, all: &mut Vec<Message>) {
    let mut say = |code, text: &str| all.push(world.message(code, key, text));
    let is_rule = key.kind == Kind::DestinationRule;
    match condition.reason {
        "Accepted" => {}
        "Invalid" if is_told(world, key) => {}
        "Invalid" => say(code::INVALID, &condition.message),
        "TargetNotFound" => say(
            match (condition.message.contains(" for none of its Services"), is_rule) {
                (true, _) => code::INEFFECTIVE,
                (false, true) => code::UNKNOWN_HOST,
                (false, false) => code::NOT_FOUND,
            },
            &condition.message,
        ),
        _ => {
            for part in condition.message.split("; ") {
                match part {
                    bound if bound.starts_with("bound to ") || bound.starts_with("it has no hosts: ") => {}
                    // A rule for endpoints holds without a waypoint for nobody, either.
                    nobody if nobody.starts_with("none of its Services") => say(code::INEFFECTIVE, nobody),
                    gone if gone.contains(": its share is ") => say(code::NOT_FOUND, gone),
                    elsewhere if elsewhere.starts_with("it does not hold for ") => say(code::INEFFECTIVE, elsewhere),
                    other => say(code::PARTLY, other),
                }
            }
        }
    }
}

/// Whether what is wrong with an object's rules was found while reading, where they stand.
fn is_told(world: &World, key: &ObjectKey) -> bool {
    let title = key.to_string();
    world.known.findings.iter().any(|one| one.code == RULE && one.object == title)
}

/// Of a route, to one parent.
fn of_parent(world: &World, key: &ObjectKey, said: &Said, all: &mut Vec<Message>) {
    for condition in &said.conditions {
        let code: &'static Code = match (condition.type_, condition.status, condition.reason) {
            ("Accepted", "False", "NoMatchingParent") => code::NOT_FOUND,
            ("Accepted", "False", "Conflicted" | "NotAllowedByListeners") => code::INEFFECTIVE,
            ("Accepted", "False", _) => code::INVALID,
            ("ResolvedRefs", "False", "RefNotPermitted") => code::NOT_GRANTED,
            ("ResolvedRefs", "False", _) => code::NOT_FOUND,
            ("ResolvedWaypoints", ..) if condition.message.starts_with("carried out by nobody") => {
                let namespace = said.parent.namespace.as_deref().unwrap_or(&key.namespace);
                if !world.has(Kind::Service, namespace, &said.parent.name) {
                    continue;
                }
                code::INEFFECTIVE
            }
            _ => continue,
        };
        all.push(world.message(code, key, format!("parent {}: {}", said.parent.name, condition.message)));
    }
}

/// Of what is for waypoints and says for none.
fn unattached(world: &World, key: &ObjectKey, object: &Object) -> Option<Message> {
    let (has_selector, what) = match object {
        Object::RequestAuthentication(written) => {
            (written.spec.selector.is_some(), "tokens are verified by waypoints alone")
        }
        Object::VirtualService(_) => {
            let text = "its gateways are not the mesh (mesh), and this mesh has no others: nobody carries it out";
            return Some(world.message(code::INEFFECTIVE, key, text));
        }
        _ => return None,
    };
    let text = format!("{what}: name by targetRefs the Service or Gateway that it is for");
    Some(world.message(if has_selector { code::SELECTOR } else { code::INEFFECTIVE }, key, text))
}

/// Whether something that a policy is attached to is not there.
fn names_missing(world: &World, object: &Object) -> bool {
    let mesh = &world.known.mesh;
    let targets = match object {
        Object::AuthorizationPolicy(written) => translate::policy_targets(written, mesh),
        Object::RequestAuthentication(written) => translate::authentication_targets(written, mesh),
        Object::Telemetry(written) => translate::telemetry_targets(written, mesh),
        _ => Vec::new(),
    };
    targets.iter().flatten().any(|target| match target {
        Target::Service(named) => !world.has(Kind::Service, &named.namespace, &named.name),
        Target::Gateway(named) => !world.has(Kind::Gateway, &named.namespace, &named.name),
        Target::Class(name) => !world.has(Kind::GatewayClass, "", name),
    })
}

/// What an object's status says already, as far as nothing newer is known.
fn of_status(world: &World, object: &Object, verdict: Option<&Verdict>, all: &mut Vec<Message>) {
    /// They are False where all is well.
    const NEGATIVE: [&str; 2] = ["Conflicted", "OverlappingTLSConfig"];
    let key = object.key();
    let has_none = [
        Kind::Pod,
        Kind::Node,
        Kind::Deployment,
        Kind::Namespace,
        Kind::EndpointSlice,
        Kind::NetworkPolicy,
        Kind::ServiceAccount,
        Kind::ConfigMap,
        Kind::Secret,
        Kind::Bypass,
    ];
    if has_none.contains(&key.kind) {
        return;
    }
    let value = serde_json::to_value(object).unwrap_or_default();
    let generation = object.metadata().generation;
    let is_decided = |kind: &str| {
        let own = verdict.and_then(|verdict| verdict.condition.as_ref()).is_some_and(|one| one.type_ == kind);
        own || verdict.is_some_and(|verdict| verdict.retracted == Some(kind))
    };
    let status = &value["status"];
    let items = |list: &'static str| status[list].as_array().into_iter().flatten();
    let parents = items("parents").filter(|parent| {
        let said = verdict.and_then(|verdict| verdict.parents.as_ref());
        !said.is_some_and(|said| said.said.iter().any(|one| parent["parentRef"]["name"] == *one.parent.name))
    });
    let groups = parents.chain(items("listeners")).map(|one| &one["conditions"]);
    for condition in [&status["conditions"]].into_iter().chain(groups).filter_map(Value::as_array).flatten() {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        let is_old = generation.zip(condition["observedGeneration"].as_i64()).is_some_and(|(now, then)| then < now);
        if text("status") == "False" && !NEGATIVE.contains(&text("type")) && !is_old && !is_decided(text("type")) {
            let said = format!("its status says {}=False, {}: {}", text("type"), text("reason"), text("message"));
            all.push(world.message(code::NEGATIVE, &key, said));
        }
    }
}
