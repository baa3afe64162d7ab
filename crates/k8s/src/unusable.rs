//! Policies that are there and cannot be read. They are never skipped: what can still be said about them (whom they
//! are about) is kept, so that it can be refused.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::finding::{Finding, Severity};
use crate::istio::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, JwtRule, PolicyTargetReference, RequestAuthentication,
    RequestAuthenticationSpec, Rule, Status, StatusCondition, WorkloadSelector,
};
use crate::object::{Kind, Object, ObjectKey};
use crate::status::Condition;
use crate::translate::ACCEPTED;

/// An AuthorizationPolicy or RequestAuthentication that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unusable {
    /// Which of the two.
    kind: Kind,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Whom it selects, as far as that can be read; nobody in particular is everybody in its scope.
    pub selector: Option<WorkloadSelector>,
    /// What it is attached to, where it is for waypoints only.
    pub targets: Vec<PolicyTargetReference>,
    /// The conditions that it has.
    pub conditions: Vec<StatusCondition>,
    /// What is wrong with it, first things first.
    pub why: String,
}

impl Unusable {
    /// What is left of a policy about which there are these findings. `None` for other kinds, and where the object
    /// does not even say what it is.
    pub fn read(object: &Value, findings: &[Finding]) -> Option<Self> {
        let named = Kind::named(object.get("kind")?.as_str()?)?;
        let kind = matches!(named, Kind::AuthorizationPolicy | Kind::RequestAuthentication).then_some(named)?;
        let metadata = part::<ObjectMeta>(object.get("metadata")).unwrap_or_else(|| metadata(object));
        metadata.name.as_ref()?;
        let spec = object.get("spec");
        let there = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(|value| !value.is_null());
        let selector = part(spec.and_then(|spec| spec.get("selector")));
        let listed = spec.and_then(|spec| spec.get("targetRefs")).and_then(Value::as_array);
        let single = spec.and_then(|spec| spec.get("targetRef")).filter(|one| !one.is_null());
        let refs = single.into_iter().chain(listed.into_iter().flatten());
        // Where one of them cannot be read, nobody knows what it is about: all of its namespace.
        let targets: Option<Vec<PolicyTargetReference>> = refs.map(|one| part(Some(one))).collect();
        let targets = targets.filter(|_| selector.is_none() && !there("selector")).unwrap_or_default();
        let status: Status = part(object.get("status")).unwrap_or_default();
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
        let why: Vec<String> = errors.map(explained).collect();
        Some(Self { kind, metadata, selector, targets, conditions: status.conditions, why: why.join("; ") })
    }

    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let namespace = match text(&self.metadata.namespace) {
            empty if empty.is_empty() => crate::object::DEFAULT_NAMESPACE.to_owned(),
            namespace => namespace,
        };
        ObjectKey::new(self.kind, &namespace, &text(&self.metadata.name))
    }

    /// What stands for it until it can be read: one that refuses everything that it would be about.
    pub fn stand_in(&self) -> Object {
        let status = Some(Status { conditions: self.conditions.clone(), ..Status::default() });
        let (metadata, selector) = (self.metadata.clone(), self.selector.clone());
        if self.kind == Kind::RequestAuthentication {
            let spec = RequestAuthenticationSpec {
                selector,
                target_refs: self.targets.clone(),
                // A rule without an issuer cannot be carried out, and then what it is attached to is refused.
                jwt_rules: vec![JwtRule::default()],
                ..RequestAuthenticationSpec::default()
            };
            return RequestAuthentication { metadata, spec, status }.into();
        }
        let spec = AuthorizationPolicySpec {
            selector,
            target_refs: self.targets.clone(),
            action: Action::Deny,
            // A rule that asks for nothing holds for everything.
            rules: vec![Rule::default()],
            ..AuthorizationPolicySpec::default()
        };
        AuthorizationPolicy { metadata, spec, status }.into()
    }

    /// What its status says.
    pub fn condition(&self, last_good: LastGood) -> Condition {
        let outcome = match last_good {
            LastGood::Kept => "its last readable version stays in force",
            LastGood::None => "everything that it applies to is refused until it can be read",
        };
        let message = format!("the policy cannot be read, and {outcome}: {}", self.why);
        match self.targets.is_empty() && self.kind == Kind::AuthorizationPolicy {
            true => Condition::ztunnel_accepted("False", "Invalid", message),
            false => Condition { type_: ACCEPTED, status: "False", reason: "Invalid", message },
        }
    }
}

/// Whether an earlier version of an object is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastGood {
    /// It is.
    Kept,
    /// There is none.
    None,
}

/// A finding without the object that it is about.
pub fn explained(finding: &Finding) -> String {
    let mut text = finding.message.clone();
    if !finding.path.is_empty() {
        text = format!("{}: {text}", finding.path);
    }
    if !finding.hint.is_empty() {
        text = format!("{text}; {}", finding.hint);
    }
    text
}

fn part<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
    T::deserialize(value?).ok()
}

/// Name and namespace of an object whose metadata cannot be read as a whole.
fn metadata(object: &Value) -> ObjectMeta {
    let text = |key: &str| object.get("metadata")?.get(key)?.as_str().map(str::to_owned);
    ObjectMeta { name: text("name"), namespace: text("namespace"), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use crate::translate::{self, Mesh};
    use serde_json::json;
    use stillmesh_core::model::{Action, Scope};

    fn unusable(spec: &Value) -> Unusable {
        let metadata = json!({"name": "p", "namespace": "shop", "generation": 4, "resourceVersion": "9"});
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec,
        });
        let found = parse::documents("", &object.to_string());
        assert!(found.has_errors(), "{spec}");
        Unusable::read(&object, &found.findings).unwrap()
    }

    #[test]
    fn what_it_would_be_about_is_refused() {
        for (spec, scope) in [
            (json!({"rules": [{"to": [{"operation": {"ports": ["x"]}}]}]}), Some(Scope::Namespace)),
            (json!({"selector": {"matchLabels": {"a": "b"}}, "action": "ODD"}), Some(Scope::WorkloadSelector)),
            (json!({"selector": "a", "action": "DENY"}), Some(Scope::Namespace)),
            (json!({"targetRefs": [{"kind": "Service", "name": "x"}], "action": "ODD"}), None),
            (
                json!({"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [{"kind": "x"}]}),
                Some(Scope::WorkloadSelector),
            ),
        ] {
            let unusable = unusable(&spec);
            let Object::AuthorizationPolicy(stand_in) = unusable.stand_in() else { panic!("another kind") };
            let policy = translate::authorization(&stand_in, &Mesh::default()).policy;
            assert_eq!(policy.as_ref().map(|policy| policy.scope), scope, "{spec}");
            if let Some(policy) = policy {
                assert_eq!((policy.action, policy.rules.len()), (Action::Deny, 1));
                assert!(policy.rules[0].clauses.is_empty(), "it matches everything");
            }
        }
    }

    #[test]
    fn its_status_says_what_is_wrong_and_what_follows() {
        let spec = json!({"rules": [{"to": [{"operation": {"ports": ["x"]}}]}]});
        let condition = unusable(&spec).condition(LastGood::None);
        assert_eq!(condition.status, "False");
        for word in ["spec.rules[0].to[0].operation.ports[0]", "\"x\" is not a port", "is refused until"] {
            assert!(condition.message.contains(word), "{}", condition.message);
        }
        assert!(unusable(&spec).condition(LastGood::Kept).message.contains("stays in force"));
    }
}
