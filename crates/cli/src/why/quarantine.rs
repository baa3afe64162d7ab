//! Quarantines that refused something: who asked for them, and why, as their objects say.

use std::collections::BTreeSet;

use serde_json::Value;
use stillmesh_core::model::PolicyKey;

use super::join::Connection;
use super::place::Place;
use crate::cluster::value::{name, text};

/// What there is to say of the quarantines that connections were refused for, one line each.
pub(super) async fn notes(place: &Place, connections: &[Connection]) -> Vec<String> {
    let told = connections.iter().flat_map(|one| &one.hops);
    let orders: BTreeSet<(String, String)> =
        told.filter(|told| told.reason == "QUARANTINED").filter_map(|told| order(&told.object)).collect();
    let mut notes = Vec::new();
    for (namespace, order) in orders {
        let all = place.list("Quarantine", &namespace, "").await;
        notes.push(match all.map(|all| all.into_iter().find(|one| name(one) == order)) {
            Ok(Some(found)) => said(&namespace, &found),
            Ok(None) => format!("Quarantine {namespace}/{order}: it is over, and its object is gone"),
            Err(error) => format!("Quarantine {namespace}/{order}: its object cannot be read: {error:#}"),
        });
    }
    notes
}

/// The order that a policy was made of: namespace and name.
fn order(policy: &str) -> Option<(String, String)> {
    let (namespace, name) = policy.split_once('/')?;
    Some((namespace.to_owned(), PolicyKey::new(namespace, name).quarantine()?.to_owned()))
}

fn said(namespace: &str, order: &Value) -> String {
    let (spec, status) = (&order["spec"], &order["status"]);
    let when = match (text(&status["endedAt"]), text(&status["until"])) {
        ("", "") => String::new(),
        ("", until) => format!(", until {until}"),
        (ended, _) => format!(", ended {ended}"),
    };
    let since = match text(&status["since"]) {
        "" => String::new(),
        since => format!(", since {since}"),
    };
    let (by, reason) = (text(&spec["requestedBy"]), text(&spec["reason"]));
    format!("Quarantine {namespace}/{}: by {by}{since}{when}: {reason}", name(order))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_asked_for_it_and_why_is_said() {
        assert_eq!(order("shop/stillmesh_quarantine_q-1"), Some(("shop".into(), "q-1".into())));
        assert_eq!(order("shop/stillmesh_quarantined_q-1"), Some(("shop".into(), "q-1".into())));
        assert_eq!(order("shop/no-guests"), None);
        let order = json!({"metadata": {"name": "q-1"}, "spec": {"requestedBy": "jo", "reason": "odd traffic"},
            "status": {"since": "S", "until": "U"}});
        assert_eq!(said("shop", &order), "Quarantine shop/q-1: by jo, since S, until U: odd traffic");
    }
}
