//! Matching of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// An object's labels.
pub type Labels = BTreeMap<String, String>;

/// Whether every wanted label is there with its value. Nothing wanted matches everything.
pub fn match_all(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a label selector of Kubernetes matches. An empty one matches everything, an unknown operator nothing.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.as_ref().is_none_or(|wanted| match_all(wanted, labels))
        && selector.match_expressions.iter().flatten().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = || value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// The labels, or none.
pub fn of(labels: &Option<Labels>) -> &Labels {
    static NONE: Labels = Labels::new();
    labels.as_ref().unwrap_or(&NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
            }]),
        }
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(selects(&LabelSelector::default(), &labels(&[])));
        assert!(match_all(&labels(&[]), &labels(&[("app", "page")])));
    }

    #[test]
    fn not_in_matches_an_absent_label_and_in_does_not() {
        assert!(selects(&expression("mode", "NotIn", &["none"]), &labels(&[])));
        assert!(!selects(&expression("mode", "NotIn", &["none"]), &labels(&[("mode", "none")])));
        assert!(!selects(&expression("mode", "In", &["none"]), &labels(&[])));
        assert!(selects(&expression("mode", "In", &["none"]), &labels(&[("mode", "none")])));
    }

    #[test]
    fn existence_and_unknown_operators() {
        assert!(selects(&expression("mode", "Exists", &[]), &labels(&[("mode", "")])));
        assert!(selects(&expression("mode", "DoesNotExist", &[]), &labels(&[])));
        assert!(!selects(&expression("mode", "Like", &[]), &labels(&[("mode", "")])));
    }
}
