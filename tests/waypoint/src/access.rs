//! What decides about requests.

use std::sync::Arc;

use stillmesh_core::fixtures::{policy_key, service_key};
use stillmesh_core::model::StringMatch;
use stillmesh_core::model::access::{
    Access, Alternative, Attachment, Condition, RequestAction, RequestClause, RequestPolicy, RequestRule, Sense, Wanted,
};
use stillmesh_core::snapshot::Change;

/// A policy on service `shop/web`.
pub fn policy(name: &str, action: RequestAction, rules: Vec<RequestRule>) -> RequestPolicy {
    RequestPolicy {
        key: policy_key(name),
        attached: Attachment::To(vec![service_key("shop/web")]),
        action,
        rules,
        dry_run: false,
        unreadable: None,
    }
}

/// A rule that asks for one thing.
pub fn of(wanted: Wanted) -> RequestRule {
    let conditions = vec![Condition { sense: Sense::AnyOf, wanted }];
    RequestRule { clauses: vec![RequestClause { alternatives: vec![Alternative { conditions }] }] }
}

/// These texts.
pub fn exact(texts: &[&str]) -> Vec<StringMatch> {
    texts.iter().map(|text| StringMatch::Exact((*text).into())).collect()
}

/// As it is published.
pub fn published(policy: RequestPolicy) -> Change {
    Change::Access(Arc::new(Access::Policy(policy)))
}
