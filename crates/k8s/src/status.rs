//! Status conditions that are written back to objects (contract 7.6).

use serde::Serialize;

use crate::gateway::binding::{Binding, USE_WAYPOINT};
use crate::istio::StatusCondition;

/// A condition before it is written: without its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// One word.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Condition {
    /// Whether nodes enforce a policy.
    pub(crate) fn ztunnel_accepted(status: &'static str, reason: &'static str, message: String) -> Self {
        Self { type_: "ZtunnelAccepted", status, reason, message }
    }

    /// A parent takes a route.
    pub(crate) fn accepted(reason: &'static str, message: String) -> Self {
        Self { type_: "Accepted", status: "True", reason, message }
    }

    /// A parent does not take a route.
    pub(crate) fn not_accepted(reason: &'static str, message: String) -> Self {
        Self { type_: "Accepted", status: "False", reason, message }
    }

    /// All that a route refers to is there.
    pub(crate) fn resolved(message: String) -> Self {
        Self { type_: "ResolvedRefs", status: "True", reason: "ResolvedRefs", message }
    }

    /// Something that a route refers to is not there, or not for it.
    pub(crate) fn unresolved(reason: &'static str, message: String) -> Self {
        Self { type_: "ResolvedRefs", status: "False", reason, message }
    }
}

impl Condition {
    /// Whether a waypoint carries out what a route says. Always true: the message says what a user should know.
    pub(crate) fn waypoints(binding: &Binding) -> Self {
        let message = match binding {
            Binding::Bound { waypoint, ready: true, .. } => format!("carried out by waypoint {waypoint}"),
            Binding::Bound { waypoint, ready: false, .. } => {
                format!("waypoint {waypoint} will carry it out once it is ready")
            }
            Binding::Unbound { waypoint, why } => format!("carried out by nobody: {}", why.message(waypoint)),
            Binding::Unasked => {
                format!("carried out by nobody: neither the parent nor its namespace has label {USE_WAYPOINT}")
            }
            Binding::OptedOut => format!("carried out by nobody: the parent has label {USE_WAYPOINT}: none"),
            Binding::OfGateway => "carried out by nobody: the parent is a gateway's own Service".to_owned(),
            Binding::NotMeant => {
                "carried out by nobody: the waypoint of the parent's namespace is not for services".to_owned()
            }
        };
        Self { type_: "ResolvedWaypoints", status: "True", reason: "ResolvedWaypoints", message }
    }
}

/// The conditions of an object with this one in them: `lastTransitionTime` moves only with the status, conditions of
/// others stay. `None` where nothing changes. `now` is RFC 3339.
pub fn merged(
    existing: &[StatusCondition],
    condition: &Condition,
    generation: Option<i64>,
    now: &str,
) -> Option<Vec<StatusCondition>> {
    let old = existing.iter().find(|one| one.type_ == condition.type_);
    let same_status = old.filter(|old| old.status == condition.status);
    let new = StatusCondition {
        type_: condition.type_.to_owned(),
        status: condition.status.to_owned(),
        reason: condition.reason.to_owned(),
        message: condition.message.clone(),
        last_transition_time: same_status
            .and_then(|old| old.last_transition_time.clone())
            .or_else(|| Some(now.to_owned())),
        observed_generation: generation,
    };
    if old == Some(&new) {
        return None;
    }
    let others = existing.iter().filter(|one| one.type_ != condition.type_).cloned();
    Some(others.chain([new]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes_and_leaves_others_alone() {
        let accepted = Condition::ztunnel_accepted("True", "Accepted", "attached to ztunnel".into());
        let foreign = StatusCondition { type_: "Other".into(), status: "True".into(), ..StatusCondition::default() };
        let first = merged(std::slice::from_ref(&foreign), &accepted, Some(1), "t1").unwrap();
        assert_eq!(first[0], foreign);
        assert_eq!(first[1].last_transition_time.as_deref(), Some("t1"));
        assert_eq!(merged(&first, &accepted, Some(1), "t2"), None);
        let more = Condition { message: "other".into(), ..accepted.clone() };
        assert_eq!(merged(&first, &more, Some(2), "t2").unwrap()[1].last_transition_time.as_deref(), Some("t1"));
        let rejected = Condition { status: "False", ..accepted };
        assert_eq!(merged(&first, &rejected, Some(2), "t2").unwrap()[1].last_transition_time.as_deref(), Some("t2"));
    }
}
