//! AuthorizationPolicy with `targetRefs` to what waypoints enforce (contract 7.4).
//!
//! What of a policy cannot be carried out makes it stricter, never weaker, and is said in its status: an ALLOW rule with
//! such a part is left out, a DENY rule is enforced as if it had not asked for it. CUSTOM needs an authorizer that nobody
//! here can ask: what its rules match is refused.

use stillmesh_core::model::access::{
    Alternative, Attachment, Condition, PathPattern, PathTemplate, RequestAction, RequestClause, RequestPolicy,
    RequestRule, Sense, Wanted,
};
use stillmesh_core::model::{PolicyKey, Str, StringMatch};

use super::Mesh;
use super::authorization::{block, is_dry_run, port, service_account, string};
use super::targets::{Found, Target, Targets, targets};
use crate::istio;
use crate::status;

/// What an AuthorizationPolicy means for waypoints.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestAuthorization {
    /// As waypoints are told.
    pub policy: RequestPolicy,
    /// What its status says.
    pub condition: status::Condition,
}

/// What a policy is attached to; empty where it is not for waypoints.
pub fn policy_targets(written: &istio::AuthorizationPolicy, mesh: &Mesh) -> Vec<Result<Target, String>> {
    let refs = written.spec.target_ref.iter().chain(&written.spec.target_refs);
    targets(refs, namespace(written), mesh)
}

/// Whether a policy refuses something, so that nobody may go round who enforces it.
pub fn guards(written: &istio::AuthorizationPolicy) -> bool {
    written.spec.action != istio::Action::Audit && !is_dry_run(&written.metadata)
}

fn namespace(written: &istio::AuthorizationPolicy) -> &str {
    written.metadata.namespace.as_deref().unwrap_or(crate::object::DEFAULT_NAMESPACE)
}

/// Translates a policy; `None` where it is not for waypoints.
pub fn request_authorization(
    written: &istio::AuthorizationPolicy,
    known: &dyn Targets,
    mesh: &Mesh,
) -> Option<RequestAuthorization> {
    let refs = policy_targets(written, mesh);
    if refs.is_empty() {
        return None;
    }
    let found = Found::new(&refs, known, mesh);
    let namespace: Str = namespace(written).into();
    let action = match written.spec.action {
        istio::Action::Allow => RequestAction::Allow,
        istio::Action::Deny | istio::Action::Custom => RequestAction::Deny,
        istio::Action::Audit => RequestAction::Audit,
    };
    let mut flaws = Vec::new();
    let rules = written.spec.rules.iter().enumerate();
    let rules = rules.filter_map(|(index, one)| rule(action, index, one, &namespace, &mut flaws)).collect();
    let condition = match written.spec.action {
        istio::Action::Custom => Found::refused(
            "the CUSTOM action is not supported: there is nobody to ask, and what its rules match is denied".to_owned(),
        ),
        _ => found.condition(&flaws),
    };
    let policy = RequestPolicy {
        key: PolicyKey::new(namespace, written.metadata.name.as_deref().unwrap_or_default()),
        attached: Attachment::To(found.services),
        action,
        rules,
        dry_run: is_dry_run(&written.metadata),
        unreadable: None,
    };
    Some(RequestAuthorization { policy, condition })
}

/// One rule: a clause from all `from`, one from all `to`, one per `when`. `None` leaves the rule out.
fn rule(
    action: RequestAction,
    index: usize,
    written: &istio::Rule,
    namespace: &Str,
    flaws: &mut Vec<String>,
) -> Option<RequestRule> {
    let mut reading = Reading { action, place: format!("rules[{index}]"), flaws, broken: false };
    let mut clauses = Vec::new();
    if !written.from.is_empty() {
        let none = istio::Source::default();
        let of = |from: &istio::RuleFrom| reading.source(from.source.as_ref().unwrap_or(&none), namespace);
        clauses.push(RequestClause { alternatives: written.from.iter().map(of).collect() });
    }
    if !written.to.is_empty() {
        let none = istio::Operation::default();
        let of = |to: &istio::RuleTo| reading.operation(to.operation.as_ref().unwrap_or(&none));
        clauses.push(RequestClause { alternatives: written.to.iter().map(of).collect() });
    }
    for condition in &written.when {
        let conditions = reading.when(condition, namespace);
        if !conditions.is_empty() {
            clauses.push(RequestClause { alternatives: vec![Alternative { conditions }] });
        }
    }
    let left_out = reading.broken && action == RequestAction::Allow;
    (!left_out).then_some(RequestRule { clauses })
}

/// Reads the values of one rule.
struct Reading<'a> {
    action: RequestAction,
    place: String,
    flaws: &'a mut Vec<String>,
    /// Something of the rule cannot be carried out.
    broken: bool,
}

impl Reading<'_> {
    fn flaw(&mut self, what: &str) {
        self.broken = true;
        let outcome = match self.action {
            RequestAction::Allow => "the rule is left out",
            RequestAction::Deny | RequestAction::Audit => "the rule is enforced without it",
        };
        self.flaws.push(format!("{}: {what}: {outcome}", self.place));
    }

    /// One list of values. Where one of them cannot be read, a DENY does not ask for any of them.
    fn list<T>(
        &mut self,
        into: &mut Vec<Condition>,
        (sense, values): (Sense, &[String]),
        read: impl Fn(&str) -> Option<T>,
        wanted: impl FnOnce(Vec<T>) -> Wanted,
    ) {
        if values.is_empty() {
            return;
        }
        match values.iter().map(|value| read(value).ok_or(value)).collect::<Result<Vec<T>, _>>() {
            Ok(values) => into.push(Condition { sense, wanted: wanted(values) }),
            Err(value) => self.flaw(&format!("{value:?} cannot be read")),
        }
    }

    /// A list and its opposite.
    fn both<T>(
        &mut self,
        into: &mut Vec<Condition>,
        values: &[String],
        not_values: &[String],
        read: impl Fn(&str) -> Option<T>,
        wanted: impl Fn(Vec<T>) -> Wanted,
    ) {
        self.list(into, (Sense::AnyOf, values), &read, &wanted);
        self.list(into, (Sense::NoneOf, not_values), &read, &wanted);
    }

    fn source(&mut self, one: &istio::Source, namespace: &Str) -> Alternative {
        let account = |text: &str| Some(service_account(text, namespace));
        let mut all = Vec::new();
        let into = &mut all;
        self.both(into, &one.principals, &one.not_principals, string, Wanted::Principal);
        self.both(into, &one.request_principals, &one.not_request_principals, string, Wanted::RequestPrincipal);
        self.both(into, &one.namespaces, &one.not_namespaces, string, Wanted::Namespace);
        self.both(into, &one.service_accounts, &one.not_service_accounts, account, Wanted::ServiceAccount);
        self.both(into, &one.ip_blocks, &one.not_ip_blocks, block, Wanted::SourceIp);
        self.both(into, &one.remote_ip_blocks, &one.not_remote_ip_blocks, block, Wanted::RemoteIp);
        Alternative { conditions: all }
    }

    fn operation(&mut self, one: &istio::Operation) -> Alternative {
        let mut all = Vec::new();
        let into = &mut all;
        self.both(into, &one.hosts, &one.not_hosts, string, Wanted::host);
        self.both(into, &one.ports, &one.not_ports, port, Wanted::DestinationPort);
        self.both(into, &one.methods, &one.not_methods, string, Wanted::Method);
        self.both(into, &one.paths, &one.not_paths, path, Wanted::Path);
        Alternative { conditions: all }
    }

    fn when(&mut self, one: &istio::Condition, namespace: &Str) -> Vec<Condition> {
        let account = |text: &str| Some(service_account(text, namespace));
        let (values, not) = (&one.values[..], &one.not_values[..]);
        let mut all = Vec::new();
        let into = &mut all;
        match one.key.as_str() {
            "source.ip" => self.both(into, values, not, block, Wanted::SourceIp),
            "remote.ip" => self.both(into, values, not, block, Wanted::RemoteIp),
            "source.namespace" => self.both(into, values, not, string, Wanted::Namespace),
            "source.principal" => self.both(into, values, not, string, Wanted::Principal),
            "source.serviceAccount" => self.both(into, values, not, account, Wanted::ServiceAccount),
            "destination.ip" => self.both(into, values, not, block, Wanted::DestinationIp),
            "destination.port" => self.both(into, values, not, port, Wanted::DestinationPort),
            "connection.sni" => self.both(into, values, not, string, Wanted::ServerName),
            "request.auth.principal" => self.both(into, values, not, string, Wanted::RequestPrincipal),
            "request.auth.audiences" => self.both(into, values, not, string, Wanted::Audience),
            "request.auth.presenter" => self.both(into, values, not, string, Wanted::Presenter),
            key => match (brackets(key, "request.headers"), brackets(key, "request.auth.claims")) {
                (Some(names), _) if names.len() == 1 => {
                    let name = names.first().copied().unwrap_or_default();
                    self.both(into, values, not, string, |values| Wanted::header(name, values));
                }
                (_, Some(names)) => {
                    let path: Vec<Str> = names.into_iter().map(Str::from).collect();
                    self.both(into, values, not, string, |values| Wanted::Claim { path: path.clone(), values });
                }
                _ => self.flaw(&format!("the condition {key:?} is not supported")),
            },
        }
        all
    }
}

/// The names in `prefix[a][b]`; at least one, none of them empty.
fn brackets<'a>(key: &'a str, prefix: &str) -> Option<Vec<&'a str>> {
    let mut rest = key.strip_prefix(prefix)?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() {
            return None;
        }
        names.push(name);
        rest = after;
    }
    (!names.is_empty()).then_some(names)
}

fn path(text: &str) -> Option<PathPattern> {
    if PathTemplate::is_meant(text) {
        return PathTemplate::new(text).ok().map(PathPattern::Template);
    }
    string(text).map(|text: StringMatch| PathPattern::Text(text))
}

#[cfg(test)]
mod tests;
