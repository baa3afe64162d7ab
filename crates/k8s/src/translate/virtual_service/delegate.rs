//! Rules that a VirtualService has in others, to which it delegates: one without hosts, of this or another namespace. What the
//! root asks of requests holds for all of the delegate's rules, and what the root says besides holds where the delegate says
//! nothing, as in Istio.

use std::collections::BTreeMap;

use super::Reader;
use crate::istio::virtual_service::{Destination, HttpMatch, HttpRoute, StringMatch, VirtualService};
use crate::object::DEFAULT_NAMESPACE;
use crate::translate::route::References;
use crate::translate::service_key;

/// A rule, and where it is written.
pub(super) type Placed = (String, HttpRoute);

/// The VirtualServices that one delegates to, by namespace and name.
pub fn delegates(written: &VirtualService) -> impl Iterator<Item = (&str, &str)> {
    let own = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let named = written.spec.http.iter().filter_map(|rule| rule.delegate.as_ref());
    named.map(move |one| (if one.namespace.is_empty() { own } else { one.namespace.as_str() }, one.name.as_str()))
}

/// What is wrong with a rule that delegates, whatever is in the delegate.
pub(super) fn flaw(rule: &HttpRoute) -> Option<String> {
    let delegate = rule.delegate.as_ref()?;
    if delegate.name.is_empty() {
        return Some("delegate: the name is missing".to_owned());
    }
    let is_alone = rule.route.is_empty() && rule.redirect.is_none() && rule.direct_response.is_none();
    (!is_alone).then(|| "exactly one of route, redirect, directResponse and delegate is needed".to_owned())
}

impl<R: References> Reader<'_, R> {
    /// All rules, those of delegates in place of the ones that delegate.
    pub(super) fn expanded(&mut self, written: &[HttpRoute]) -> Result<Vec<Placed>, String> {
        let mut rules = Vec::new();
        for (at, rule) in written.iter().enumerate() {
            let place = format!("spec.http[{at}]");
            match &rule.delegate {
                None => rules.push((place, rule.clone())),
                Some(_) => self.delegated(&place, rule, &mut rules)?,
            }
        }
        Ok(rules)
    }

    fn delegated(&mut self, place: &str, rule: &HttpRoute, rules: &mut Vec<Placed>) -> Result<(), String> {
        if let Some(flaw) = flaw(rule) {
            return Err(format!("{place}: {flaw}"));
        }
        let Some(delegate) = &rule.delegate else { return Ok(()) };
        let namespace = if delegate.namespace.is_empty() { self.namespace } else { delegate.namespace.as_str() };
        let named = format!("VirtualService {namespace}/{}", delegate.name);
        let found = self.references.virtual_service(namespace, &delegate.name);
        let problem = match found.as_deref() {
            None => Some("is not there"),
            Some(one) if !one.spec.hosts.is_empty() => Some("has hosts of its own, so that nobody can delegate to it"),
            Some(one) if !is_exported(&one.spec.export_to, namespace, self.namespace) => {
                Some("is not exported to here")
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            self.notes.insert(format!("{place}: {named} {problem}: the rule is left out"));
            return Ok(());
        }
        for (at, inner) in found.iter().flat_map(|one| &one.spec.http).enumerate() {
            let place = format!("{place}: {named}: spec.http[{at}]");
            if inner.delegate.is_some() {
                return Err(format!("{place}: a delegate cannot delegate"));
            }
            match merged(rule, inner) {
                Some(mut rule) => {
                    self.qualify(&mut rule, inner, namespace);
                    rules.push((place, rule));
                }
                None => {
                    let what = "asks for requests that the rule which delegates to it does not take: left out";
                    self.notes.insert(format!("{place} {what}"));
                }
            }
        }
        Ok(())
    }

    /// Short names of hosts that a delegate has written are those of its own namespace.
    fn qualify(&self, rule: &mut HttpRoute, inner: &HttpRoute, namespace: &str) {
        let whole = |destination: &mut Destination| {
            if !destination.host.contains('.') {
                destination.host = service_key(namespace, &destination.host, self.mesh).hostname.to_string();
            }
        };
        rule.route.iter_mut().for_each(|one| whole(&mut one.destination));
        if inner.mirror.is_some() {
            rule.mirror.iter_mut().for_each(whole);
        }
        if !inner.mirrors.is_empty() {
            rule.mirrors.iter_mut().for_each(|one| whole(&mut one.destination));
        }
    }
}

/// Whether a VirtualService of a namespace is seen in another.
fn is_exported(export_to: &[String], namespace: &str, to: &str) -> bool {
    export_to.is_empty() || export_to.iter().any(|one| one == "*" || one == to || (one == "." && namespace == to))
}

/// A delegate's rule under the rule that delegates to it. `None`: no request is for both.
fn merged(root: &HttpRoute, inner: &HttpRoute) -> Option<HttpRoute> {
    let matches = matches(&root.matches, &inner.matches)?;
    let name = match (root.name.as_str(), inner.name.as_str()) {
        (one, "") | ("", one) => one.to_owned(),
        (root, inner) => format!("{root}-{inner}"),
    };
    fn or<T: Clone>(inner: &Option<T>, root: &Option<T>) -> Option<T> {
        inner.clone().or_else(|| root.clone())
    }
    let mirrors = if inner.mirrors.is_empty() { &root.mirrors } else { &inner.mirrors };
    Some(HttpRoute {
        name,
        matches,
        route: inner.route.clone(),
        redirect: inner.redirect.clone(),
        direct_response: inner.direct_response.clone(),
        delegate: None,
        rewrite: or(&inner.rewrite, &root.rewrite),
        timeout: or(&inner.timeout, &root.timeout),
        retries: or(&inner.retries, &root.retries),
        fault: or(&inner.fault, &root.fault),
        mirror: or(&inner.mirror, &root.mirror),
        mirrors: mirrors.clone(),
        mirror_percent: inner.mirror_percent.or(root.mirror_percent),
        mirror_percentage: inner.mirror_percentage.or(root.mirror_percentage),
        cors_policy: or(&inner.cors_policy, &root.cors_policy),
        headers: or(&inner.headers, &root.headers),
    })
}

/// What both ask for: every match of the delegate under each of the root's that it is a part of. `None`: one is a part of none.
fn matches(root: &[HttpMatch], inner: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || inner.is_empty() {
        return Some(if root.is_empty() { inner } else { root }.to_vec());
    }
    let mut all = Vec::new();
    for one in inner {
        let before = all.len();
        all.extend(root.iter().filter(|outer| is_part(one, outer)).map(|outer| both(outer, one)));
        if all.len() == before {
            return None;
        }
    }
    Some(all)
}

/// Whether a match asks for nothing that another excludes.
fn is_part(inner: &HttpMatch, root: &HttpMatch) -> bool {
    let one = |inner: &Option<StringMatch>, root: &Option<StringMatch>| match (inner, root) {
        (Some(inner), Some(root)) => is_narrower(inner, root),
        _ => true,
    };
    let all = |inner: &BTreeMap<String, StringMatch>, root: &BTreeMap<String, StringMatch>| {
        inner.iter().all(|(name, inner)| root.get(name).is_none_or(|root| is_narrower(inner, root)))
    };
    let labels =
        inner.source_labels.iter().all(|(key, value)| root.source_labels.get(key).is_none_or(|one| one == value));
    let gateways = root.gateways.is_empty() || inner.gateways.iter().all(|one| root.gateways.contains(one));
    one(&inner.uri, &root.uri)
        && one(&inner.scheme, &root.scheme)
        && one(&inner.method, &root.method)
        && one(&inner.authority, &root.authority)
        && all(&inner.headers, &root.headers)
        // What the root excludes stays excluded.
        && all(&root.without_headers, &inner.without_headers)
        && all(&inner.query_params, &root.query_params)
        && inner.ignore_uri_case == root.ignore_uri_case
        && inner.port.zip(root.port).is_none_or(|(inner, root)| inner == root)
        && (root.source_namespace.is_empty() || inner.source_namespace == root.source_namespace)
        && labels
        && gateways
}

/// Whether every text that one describes is described by another. Of expressions nobody knows.
fn is_narrower(inner: &StringMatch, root: &StringMatch) -> bool {
    let parts = |one: &StringMatch| (one.exact.clone(), one.prefix.clone(), one.regex.clone());
    match (parts(inner), parts(root)) {
        (_, (None, None, None)) => true,
        ((Some(inner), None, None), (Some(root), None, None)) => inner == root,
        ((Some(inner), None, None) | (None, Some(inner), None), (None, Some(root), None)) => inner.starts_with(&root),
        _ => false,
    }
}

/// What two matches ask for together; what the delegate asks for is a part of what the root does.
fn both(root: &HttpMatch, inner: &HttpMatch) -> HttpMatch {
    let or = |inner: &Option<StringMatch>, root: &Option<StringMatch>| inner.clone().or_else(|| root.clone());
    let all = |root: &BTreeMap<String, StringMatch>, inner: &BTreeMap<String, StringMatch>| {
        root.iter().chain(inner).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let text = |inner: &String, root: &String| if inner.is_empty() { root } else { inner }.clone();
    HttpMatch {
        name: text(&inner.name, &root.name),
        uri: or(&inner.uri, &root.uri),
        scheme: or(&inner.scheme, &root.scheme),
        method: or(&inner.method, &root.method),
        authority: or(&inner.authority, &root.authority),
        headers: all(&root.headers, &inner.headers),
        without_headers: all(&root.without_headers, &inner.without_headers),
        query_params: all(&root.query_params, &inner.query_params),
        port: inner.port.or(root.port),
        source_labels: root
            .source_labels
            .iter()
            .chain(&inner.source_labels)
            .map(|(a, b)| (a.clone(), b.clone()))
            .collect(),
        source_namespace: text(&inner.source_namespace, &root.source_namespace),
        gateways: if inner.gateways.is_empty() { &root.gateways } else { &inner.gateways }.clone(),
        ignore_uri_case: inner.ignore_uri_case,
        stat_prefix: text(&inner.stat_prefix, &root.stat_prefix),
    }
}

#[cfg(test)]
mod tests;
