//! In what two answers differ, and which differences are meant.

use stillmesh_core::model::access::{PathNormalization, PathPattern, Wanted};
use stillmesh_core::model::http::TextMatch;

use super::asked::{Answer, Asked};
use super::table::Table;

/// Both answers to one request.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub table: &'a Table,
    pub asked: &'a Asked,
    pub ours: &'a Answer,
    pub envoys: &'a Answer,
}

/// A difference that is meant.
pub struct Meant {
    pub what: &'static str,
    pub why: &'static str,
    /// Whether a case is one of it.
    pub is: fn(&Case<'_>) -> bool,
}

/// Every difference that is meant.
pub const MEANT: &[Meant] = &[
    Meant {
        what: "an ambiguous path is refused",
        why: "escapes that come about when it is decoded, and dot segments with parameters, mean two things to two readers",
        is: |case| case.ours.status == 400 && case.asked.path().contains(['%', ';']) && is_normalized(case),
    },
    Meant {
        what: "a redirect has no port that its scheme means anyway",
        why: "Gateway API, HTTPRequestRedirectFilter; Envoy leaves the port of Host",
        is: |case| {
            let without_port = |answer: &Answer| {
                let location = answer.location.as_deref()?;
                Some(location.replacen(":80/", "/", usize::from(location.starts_with("http:"))))
            };
            let same = Answer { location: without_port(case.envoys), ..case.envoys.clone() };
            case.asked.host.ends_with(":80") && same == *case.ours
        },
    },
    Meant {
        what: "a header in several lines",
        why: "for routes it is one value with commas (RFC 9110 section 5.3), for Envoy any of its lines; policies take it for both, \
              and what any reading denies is denied",
        is: |case| {
            let mut names: Vec<&str> = case.asked.headers.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            names.len() < all
        },
    },
    Meant {
        what: "a header that is not there is not as a pattern says that holds for nothing",
        why: "Envoy, told to take it for empty, finds it as `.*` says",
        is: |case| {
            let rules = case.table.routes.iter().flat_map(|route| &route.rules);
            let mut unwanted = rules.flat_map(|rule| &rule.matches).flat_map(|matched| &matched.without_headers);
            unwanted.any(|one| {
                let is_there = case.asked.headers.iter().any(|(name, _)| *name == &*one.name);
                !is_there && one.value != TextMatch::Present && one.value.holds("")
            })
        },
    },
    Meant {
        what: "a path of nothing but slashes",
        why: "where slashes are merged it is one of them; Envoy leaves two",
        is: |case| {
            let slashes = ["/", "\\", ".", "%2F", "%2f", "%5C", "%2e", "%2E"];
            let rest = slashes.iter().fold(case.asked.path().to_owned(), |path, slash| path.replace(slash, ""));
            case.table.level >= PathNormalization::MergeSlashes && rest.is_empty() && case.asked.path().len() > 1
        },
    },
    Meant {
        what: "a backslash in a template's segment",
        why: "`{*}` is any segment; Envoy's has only characters that RFC 3986 allows there",
        is: |case| {
            let rules = case.table.policies.iter().flat_map(|policy| &policy.rules);
            let conditions = rules.flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.alternatives);
            let mut wanted = conditions.flat_map(|one| &one.conditions).map(|condition| &condition.wanted);
            let is_template = |one: &PathPattern| matches!(one, PathPattern::Template(_));
            case.asked.path().contains('\\')
                && wanted.any(|wanted| matches!(wanted, Wanted::Path(all) if all.iter().any(is_template)))
        },
    },
];

/// Whether anything is done about paths.
fn is_normalized(case: &Case<'_>) -> bool {
    case.table.level > PathNormalization::None
}

/// Whether anything differs that a client or a backend can see.
pub fn differ(case: &Case<'_>) -> bool {
    let (mut ours, mut envoys) = (case.ours.clone(), case.envoys.clone());
    // What a refusal says is a matter of taste; Envoy edits its headers as the route says, which nobody is to learn about here.
    for answer in [&mut ours, &mut envoys] {
        if matches!(answer.status, 400 | 403) && answer.own.is_some() {
            answer.own = None;
            answer.headers.clear();
        }
    }
    ours != envoys
}
