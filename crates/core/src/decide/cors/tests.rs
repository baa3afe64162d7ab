use std::borrow::Cow;
use std::time::Duration;

use super::*;
use crate::model::http::{Pattern, TextMatch};

struct Asked<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Asked<'_> {
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
    }
}

fn strings(values: &[&str]) -> Vec<Str> {
    values.iter().map(|value| (*value).into()).collect()
}

fn rule() -> Cors {
    Cors {
        origins: vec![
            TextMatch::Exact("https://www.foo.com".into()),
            TextMatch::Regex(Pattern::new(r"https:\/\/[^/]+\.bar\.com").unwrap()),
        ],
        methods: strings(&["GET", "OPTIONS"]),
        headers: strings(&["x-1", "x-2"]),
        expose: strings(&["x-3", "x-4"]),
        max_age: Some(Duration::from_secs(3600)),
        credentials: true,
        forward_unmatched: false,
    }
}

const QUESTION: [(&str, &str); 3] = [
    ("origin", "https://www.foo.com"),
    ("access-control-request-method", "PUT"),
    ("access-control-request-headers", "x-9, x-8"),
];

fn owned(permission: &[(&'static str, &str)]) -> Permission {
    permission.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

#[test]
fn a_question_is_answered_with_what_the_rule_lists() {
    let all = [
        (ORIGIN, "https://www.foo.com"),
        (CREDENTIALS, "true"),
        (EXPOSE, "x-3, x-4"),
        (METHODS, "GET, OPTIONS"),
        (HEADERS, "x-1, x-2"),
        (MAX_AGE, "3600"),
    ];
    assert_eq!(cross(&rule(), "OPTIONS", &Asked(&QUESTION)), Cross::Question(owned(&all)));
    let bare = Cors { methods: vec![], headers: vec![], expose: vec![], max_age: None, credentials: false, ..rule() };
    let answer = cross(&bare, "OPTIONS", &Asked(&QUESTION));
    assert_eq!(answer, Cross::Question(owned(&all[..1])), "what is not listed is not said");
}

#[test]
fn everything_is_a_star_but_for_requests_with_credentials() {
    let star = strings(&["*"]);
    let open = Cors { methods: star.clone(), headers: star.clone(), expose: star, max_age: None, ..rule() };
    let of = |rule: &Cors| match cross(rule, "OPTIONS", &Asked(&QUESTION)) {
        Cross::Question(permission) => permission,
        other => panic!("{other:?}"),
    };
    let said = of(&open);
    assert!(said.contains(&(METHODS, "PUT".to_owned())) && said.contains(&(HEADERS, "x-9, x-8".to_owned())));
    let said = of(&Cors { credentials: false, ..open });
    assert!(said.contains(&(METHODS, "*".to_owned())) && !said.iter().any(|(name, _)| *name == CREDENTIALS));
}

#[test]
fn requests_of_permitted_origins_get_headers_and_others_lose_those_of_the_endpoint() {
    let from = |origin| cross(&rule(), "GET", &Asked(&[("origin", origin), ("access-control-request-method", "GET")]));
    let Cross::Request(permission) = from("https://x.y.bar.com") else { panic!("it goes on") };
    assert_eq!(permission[0], (ORIGIN, "https://x.y.bar.com".to_owned()));
    assert!(!permission.iter().any(|(name, _)| [METHODS, HEADERS, MAX_AGE].contains(name)));
    for other in ["https://foobar.com", "http://www.foo.com", "https://bar.com", "null", "https://www.foo.com:8443"] {
        assert_eq!(from(other), Cross::Request(vec![]), "{other}");
    }
    assert_eq!(cross(&rule(), "OPTIONS", &Asked(&[])), Cross::No, "no other origin");
    let options = Asked(&QUESTION[..1]);
    assert!(matches!(cross(&rule(), "OPTIONS", &options), Cross::Request(_)), "OPTIONS is not always a question");
}

#[test]
fn a_question_of_an_origin_that_may_not_is_refused_or_left_to_the_endpoint() {
    let asked = [("origin", "https://evil.example"), ("access-control-request-method", "GET")];
    assert_eq!(cross(&rule(), "OPTIONS", &Asked(&asked)), Cross::Question(vec![]));
    let forwarded = Cors { forward_unmatched: true, ..rule() };
    assert_eq!(cross(&forwarded, "OPTIONS", &Asked(&asked)), Cross::No);
}
