//! Whether a request may pass a waypoint, by the policies attached to what it is for (contract 7.4), and whether a
//! connection may that is no HTTP.
//!
//! A connection has no method, path, header or token. An ALLOW rule that asks for one does not match it; a DENY rule is
//! enforced as if it had not asked (contract 5.3): never less than was meant.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};

use super::Target;
use crate::attrs::AccessAttrs;
use crate::explain::{NAMED_POLICIES, Reason};
use crate::model::access::{Alternative, Condition, RequestAction, RequestClause, RequestPolicy, Sense, Wanted};
use crate::model::{PolicyKey, StringMatch};
use crate::snapshot::Snapshot;

/// Whether a request may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestVerdict {
    /// The answer.
    pub allowed: bool,
    /// Why: names the policy and the rule.
    pub reason: Reason,
    /// Dry-run policies that would have decided otherwise.
    pub dry_run: Vec<Reason>,
    /// Audit policies that matched, and by which rule.
    pub audited: Vec<(PolicyKey, usize)>,
}

impl RequestVerdict {
    /// Whether what is carried already ends by this verdict, as with [`super::Verdict::ends_open_connection`].
    pub fn ends_open_connection(&self) -> bool {
        !self.allowed && !self.reason.is_undecided()
    }
}

/// Whether `attrs` may pass under the policies of `snapshot`.
///
/// In this order: a deny policy that matches refuses. A policy that cannot be read refuses. Where allow policies apply, one
/// of them must match. Dry-run and audit policies decide nothing. Of several policies the first by name is the reason.
pub fn authorize_request(snapshot: &Snapshot, attrs: &AccessAttrs<'_>) -> RequestVerdict {
    let policies = snapshot.request_policies(attrs.waypoint, attrs.target.service().map(|service| &service.key));
    if policies.is_empty() {
        return RequestVerdict { allowed: true, reason: Reason::NoPolicy, dry_run: Vec::new(), audited: Vec::new() };
    }
    let seen = RequestSeen::new(attrs);
    let (dry_run, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.dry_run);
    let reason = first_denial(&enforced, &seen)
        .or_else(|| first_unreadable(&enforced))
        .unwrap_or_else(|| admission(&enforced, &seen));
    let allowed = matches!(reason, Reason::NoPolicy | Reason::AllowedBy { .. });
    let dry_run = if dry_run.is_empty() { Vec::new() } else { otherwise(&dry_run, &enforced, &reason, &seen) };
    let audits = readable(&enforced, RequestAction::Audit);
    let audited = audits.filter_map(|policy| Some((policy.key.clone(), matching_rule(policy, &seen)?))).collect();
    RequestVerdict { allowed, reason, dry_run, audited }
}

fn readable<'a>(
    policies: &'a [&'a RequestPolicy],
    action: RequestAction,
) -> impl Iterator<Item = &'a RequestPolicy> + 'a {
    policies.iter().copied().filter(move |policy| policy.action == action && policy.unreadable.is_none())
}

fn first_denial(policies: &[&RequestPolicy], seen: &RequestSeen<'_>) -> Option<Reason> {
    readable(policies, RequestAction::Deny).find_map(|policy| {
        let rule = matching_rule(policy, seen)?;
        Some(Reason::DeniedBy { policy: policy.key.clone(), rule })
    })
}

fn first_unreadable(policies: &[&RequestPolicy]) -> Option<Reason> {
    policies.iter().find_map(|policy| {
        let detail = policy.unreadable.clone()?;
        Some(Reason::PolicyUnreadable { policy: policy.key.clone(), detail })
    })
}

/// What the allow policies say.
fn admission(policies: &[&RequestPolicy], seen: &RequestSeen<'_>) -> Reason {
    let mut missed = Vec::new();
    for policy in readable(policies, RequestAction::Allow) {
        if let Some(rule) = matching_rule(policy, seen) {
            return Reason::AllowedBy { policy: policy.key.clone(), rule };
        }
        if missed.len() < NAMED_POLICIES {
            missed.push(policy.key.clone());
        }
    }
    if missed.is_empty() { Reason::NoPolicy } else { Reason::NoAllowMatched { policies: missed } }
}

/// What dry-run policies would have turned round, if they were enforced beside the others.
fn otherwise(
    dry_run: &[&RequestPolicy],
    enforced: &[&RequestPolicy],
    reason: &Reason,
    seen: &RequestSeen<'_>,
) -> Vec<Reason> {
    let admitted = admission(dry_run, seen);
    match reason {
        Reason::NoPolicy | Reason::AllowedBy { .. } => {
            let by_allow = matches!(admitted, Reason::NoAllowMatched { .. })
                && readable(enforced, RequestAction::Allow).next().is_none();
            first_denial(dry_run, seen).into_iter().chain(by_allow.then_some(admitted)).collect()
        }
        Reason::NoAllowMatched { .. } if matches!(admitted, Reason::AllowedBy { .. }) => vec![admitted],
        _ => Vec::new(),
    }
}

/// The request as policies see it. What costs something is made when a policy asks.
pub(crate) struct RequestSeen<'a> {
    attrs: &'a AccessAttrs<'a>,
    source_ip: IpAddr,
    remote_ip: IpAddr,
    destination_ip: Option<IpAddr>,
    port: u16,
    principal: OnceCell<String>,
    host: OnceCell<String>,
}

impl<'a> RequestSeen<'a> {
    pub(crate) fn new(attrs: &'a AccessAttrs<'a>) -> Self {
        let (address, port) = match attrs.target {
            Target::Service { port, address, .. } => (*address, port.mapping.service_port),
            Target::Workload { address, .. } => (Some(*address), address.port()),
        };
        Self {
            attrs,
            source_ip: attrs.source_ip.to_canonical(),
            remote_ip: attrs.remote_ip.to_canonical(),
            destination_ip: address.map(|address: SocketAddr| address.ip().to_canonical()),
            port,
            principal: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    fn principal(&self) -> Option<&str> {
        let identity = self.attrs.source_identity?;
        Some(self.principal.get_or_init(|| identity.principal()))
    }

    fn host(&self) -> Option<&str> {
        let request = self.attrs.request?;
        Some(self.host.get_or_init(|| request.authority.to_ascii_lowercase()))
    }

    fn claim(&self, path: &[crate::model::Str]) -> Vec<&str> {
        self.attrs.token.map(|token| token.texts(path)).unwrap_or_default()
    }

    /// What the request has where `wanted` compares, as text.
    pub(crate) fn text(&self, wanted: &Wanted) -> String {
        let none = || "none".to_owned();
        let text = |text: Option<&str>| text.map_or_else(none, str::to_owned);
        let texts = |texts: Vec<&str>| if texts.is_empty() { none() } else { texts.join(", ") };
        let identity = self.attrs.source_identity;
        match wanted {
            Wanted::Namespace(_) => text(identity.map(|identity| &*identity.namespace)),
            Wanted::Principal(_) => text(self.principal()),
            Wanted::ServiceAccount(_) => {
                identity.map_or_else(none, |one| format!("{}/{}", one.namespace, one.service_account))
            }
            Wanted::SourceIp(_) => self.source_ip.to_string(),
            Wanted::RemoteIp(_) => self.remote_ip.to_string(),
            Wanted::DestinationIp(_) => self.destination_ip.map_or_else(none, |ip| ip.to_string()),
            Wanted::DestinationPort(_) => self.port.to_string(),
            Wanted::ServerName(_) => text(self.attrs.server_name),
            Wanted::RequestPrincipal(_) => text(self.attrs.token.and_then(|token| token.principal())),
            Wanted::Audience(_) => texts(self.claim(&["aud".into()])),
            Wanted::Presenter(_) => texts(self.claim(&["azp".into()])),
            Wanted::Claim { path, .. } => texts(self.claim(path)),
            Wanted::Host(_) => text(self.host()),
            Wanted::Method(_) => text(self.attrs.request.map(|request| request.method)),
            Wanted::Path(_) => text(self.attrs.request.map(|request| request.path)),
            Wanted::Header { name, .. } => match self.header(name) {
                Some(value) => value.into_owned(),
                None => none(),
            },
        }
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.attrs.request?.headers.value(name)
    }
}

/// Whether one of the values is what the request has. An attribute that it has not is none of any values.
fn has(wanted: &Wanted, seen: &RequestSeen<'_>) -> bool {
    let any = |values: &[StringMatch], text: Option<&str>| {
        text.is_some_and(|text| values.iter().any(|value| value.matches(text)))
    };
    let any_of = |values: &[StringMatch], texts: Vec<&str>| texts.into_iter().any(|text| any(values, Some(text)));
    let identity = seen.attrs.source_identity;
    let (request, token) = (seen.attrs.request, seen.attrs.token);
    match wanted {
        // Empty without an identity (contract 5.2).
        Wanted::Namespace(values) => any(values, Some(identity.map_or("", |identity| &identity.namespace))),
        Wanted::Principal(values) => any(values, seen.principal()),
        Wanted::ServiceAccount(values) => {
            identity.is_some_and(|identity| values.iter().any(|value| value.matches(identity)))
        }
        Wanted::SourceIp(ranges) => ranges.iter().any(|range| range.contains(&seen.source_ip)),
        Wanted::RemoteIp(ranges) => ranges.iter().any(|range| range.contains(&seen.remote_ip)),
        Wanted::DestinationIp(ranges) => {
            seen.destination_ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
        }
        Wanted::DestinationPort(ports) => ports.contains(&seen.port),
        Wanted::ServerName(values) => any(values, seen.attrs.server_name),
        Wanted::RequestPrincipal(values) => any(values, token.and_then(|token| token.principal())),
        Wanted::Audience(values) => any_of(values, seen.claim(&["aud".into()])),
        Wanted::Presenter(values) => any_of(values, seen.claim(&["azp".into()])),
        Wanted::Claim { path, values } => any_of(values, seen.claim(path)),
        Wanted::Host(values) => any(values, seen.host()),
        Wanted::Method(values) => any(values, request.map(|request| request.method)),
        Wanted::Path(values) => request.is_some_and(|request| values.iter().any(|value| value.matches(request.path))),
        Wanted::Header { name, values } => seen.header(name).is_some_and(|text| any_header(values, &text)),
    }
}

/// Whether a condition holds. On a connection that is no HTTP, one that only requests have does what makes the policy
/// stricter.
pub(crate) fn holds(condition: &Condition, action: RequestAction, seen: &RequestSeen<'_>) -> bool {
    if seen.attrs.request.is_none() && condition.wanted.is_of_requests() {
        return action == RequestAction::Deny;
    }
    let expected = condition.sense == Sense::AnyOf;
    let holds = has(&condition.wanted, seen) == expected;
    let Wanted::Header { name, values } = &condition.wanted else { return holds };
    // All lines of a header together are one value (RFC 9110 section 5.3), and there are endpoints that take any of them for it.
    // So a line more is no way past a policy: what one of these readings denies is denied, what is allowed is by all of them.
    let lines = seen.attrs.request.map(|request| request.headers.lines(name)).unwrap_or_default();
    let mut by_line = lines.iter().map(|line| any_header(values, line) == expected);
    match action {
        RequestAction::Deny | RequestAction::Audit => holds || by_line.any(|holds| holds),
        RequestAction::Allow => holds && by_line.all(|holds| holds),
    }
}

fn any_header(values: &[StringMatch], text: &str) -> bool {
    values.iter().any(|value| *value == StringMatch::Presence || value.matches(text))
}

fn alternative_holds(alternative: &Alternative, action: RequestAction, seen: &RequestSeen<'_>) -> bool {
    alternative.conditions.iter().all(|condition| holds(condition, action, seen))
}

pub(crate) fn clause_holds(clause: &RequestClause, action: RequestAction, seen: &RequestSeen<'_>) -> bool {
    clause.alternatives.iter().any(|alternative| alternative_holds(alternative, action, seen))
}

/// The first rule that matches.
pub(crate) fn matching_rule(policy: &RequestPolicy, seen: &RequestSeen<'_>) -> Option<usize> {
    policy.rules.iter().position(|rule| rule.clauses.iter().all(|clause| clause_holds(clause, policy.action, seen)))
}

#[cfg(test)]
mod tests;
