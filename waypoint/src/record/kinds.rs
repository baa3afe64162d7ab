//! What the records of one CONNECT's requests have in common, written once for each kind of request: to format it anew would cost more
//! than all else of a record.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use stillmesh_core::model::http::HttpRoute;
use stillmesh_core::model::{Service, Workload};
use stillmesh_records::Common;

use super::decision::Rule;

/// What requests of one client differ in, as records tell, unless they were refused or failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind<'a> {
    /// Where it went.
    pub service: Option<&'a Arc<Service>>,
    /// Who took it.
    pub endpoint: Option<&'a Arc<Workload>>,
    /// What decided so; nothing where no route is attached.
    pub rule: Option<&'a Rule>,
}

/// A kind that is known. It keeps nothing alive, and nothing else has its objects' addresses as long as it is here.
#[derive(Debug)]
struct Known {
    service: Weak<Service>,
    endpoint: Weak<Workload>,
    rule: (Weak<HttpRoute>, usize),
    common: Arc<Common>,
}

impl Known {
    fn new(kind: Kind<'_>, common: Arc<Common>) -> Self {
        Self {
            service: weak(kind.service),
            endpoint: weak(kind.endpoint),
            rule: (weak(kind.rule.map(|rule| &rule.route)), kind.rule.map_or(0, |rule| rule.index)),
            common,
        }
    }

    /// Whether it is this one for certain: what was published anew is another one.
    fn is(&self, kind: Kind<'_>) -> bool {
        let (route, index) = (kind.rule.map(|rule| &rule.route), kind.rule.map_or(0, |rule| rule.index));
        is(&self.rule.0, route)
            && self.rule.1 == index
            && is(&self.endpoint, kind.endpoint)
            && is(&self.service, kind.service)
    }
}

fn weak<T>(one: Option<&Arc<T>>) -> Weak<T> {
    one.map_or_else(Weak::new, Arc::downgrade)
}

fn is<T>(known: &Weak<T>, one: Option<&Arc<T>>) -> bool {
    known.as_ptr() == one.map_or_else(|| Weak::new().as_ptr(), Arc::as_ptr)
}

/// Kinds that are kept at a time; the oldest goes.
const MOST: usize = 8;

/// The kinds of one CONNECT.
#[derive(Debug, Default)]
pub(super) struct Kinds(Mutex<Vec<Known>>);

impl Kinds {
    /// What requests of this kind have in common; `write` says it of the first.
    pub fn common(&self, kind: Kind<'_>, write: impl FnOnce() -> Common) -> Arc<Common> {
        let mut known = self.0.lock();
        if let Some(known) = known.iter().find(|known| known.is(kind)) {
            return known.common.clone();
        }
        let common = Arc::new(write());
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push(Known::new(kind, common.clone()));
        common
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_core::fixtures;
    use stillmesh_core::model::http::{RouteKey, RouteKind};
    use stillmesh_records::{Draft, Field, Record, Recorded as _};

    use super::*;

    fn route() -> Arc<HttpRoute> {
        let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() };
        Arc::new(HttpRoute { key, parents: vec![], consumer: None, created: 0, rules: vec![], streams: vec![] })
    }

    /// What is known of a kind; where nothing is, `text` from now on.
    fn told(kinds: &Kinds, kind: Kind<'_>, text: &str) -> String {
        let mut draft = Draft::new(Record::default());
        draft.name_str(Field::Because, text);
        let common = kinds.common(kind, || Common::of(&draft));
        draft.begin_like(Record::default(), &common);
        draft.text(Field::Because).to_owned()
    }

    #[test]
    fn kinds_differ_by_service_endpoint_route_and_rule_also_when_the_same_is_published_anew() {
        let kinds = Kinds::default();
        let services = [(); 2].map(|()| Arc::new(fixtures::service("shop/web", &[(80, 80)])));
        let endpoints = [(); 2].map(|()| Arc::new(fixtures::workload("shop/web")));
        let rules = [Rule::new(&route(), 0), Rule::new(&route(), 0)];
        let second = Rule::new(&rules[0].route, 1);
        let kind = Kind { service: Some(&services[0]), endpoint: Some(&endpoints[0]), rule: Some(&rules[0]) };
        let all = [
            kind,
            Kind { service: Some(&services[1]), ..kind },
            Kind { endpoint: Some(&endpoints[1]), ..kind },
            Kind { endpoint: None, ..kind },
            Kind { rule: Some(&rules[1]), ..kind },
            Kind { rule: Some(&second), ..kind },
            Kind { rule: None, ..kind },
        ];
        for again in ["", " again"] {
            for (number, kind) in all.iter().enumerate() {
                assert_eq!(told(&kinds, *kind, &format!("{number}{again}")), number.to_string());
            }
        }
    }

    #[test]
    fn few_kinds_are_kept_and_none_keeps_a_route_alive() {
        let kinds = Kinds::default();
        let mut gone = Vec::new();
        for number in 0..100 {
            let rule = Rule::new(&route(), 0);
            let kind = Kind { service: None, endpoint: None, rule: Some(&rule) };
            assert_eq!(told(&kinds, kind, &number.to_string()), number.to_string());
            gone.push(Arc::downgrade(&rule.route));
        }
        assert!(kinds.0.lock().len() <= MOST && gone.iter().all(|route| route.strong_count() == 0));
    }
}
