//! Whether an object is as it was asked for.

use serde_json::Value;

/// Whether everything that is wanted is there: the API server and others may have added to it. Nothing wanted is there
/// where nothing is.
pub(super) fn contains(actual: &Value, wanted: &Value) -> bool {
    match (wanted, actual) {
        (Value::Object(wanted), Value::Object(actual)) => wanted.iter().all(|(key, wanted)| match actual.get(key) {
            // Others may own it too.
            Some(actual) if key == "ownerReferences" => includes(actual, wanted),
            Some(actual) => contains(actual, wanted),
            None => is_nothing(wanted),
        }),
        (Value::Array(wanted), Value::Array(actual)) => {
            wanted.len() == actual.len() && wanted.iter().zip(actual).all(|(wanted, actual)| contains(actual, wanted))
        }
        (wanted, actual) => wanted == actual || is_nothing(wanted) && is_nothing(actual),
    }
}

/// What is wanted as the server wrote it: `cpu: 1000m` becomes `1`, and what it does not keep is not missed. That is what
/// has to be there from then on.
pub(super) fn as_answered(wanted: &Value, answer: &Value) -> Value {
    match (wanted, answer) {
        (Value::Object(wanted), Value::Object(answer)) => {
            let kept = wanted.iter().filter_map(|(key, wanted)| {
                let value = match key.as_str() {
                    "ownerReferences" => wanted.clone(),
                    key => as_answered(wanted, answer.get(key)?),
                };
                Some((key.clone(), value))
            });
            Value::Object(kept.collect())
        }
        (Value::Array(wanted), Value::Array(answer)) if wanted.len() == answer.len() => {
            wanted.iter().zip(answer).map(|(wanted, answer)| as_answered(wanted, answer)).collect()
        }
        (_, answer) => answer.clone(),
    }
}

fn includes(actual: &Value, wanted: &Value) -> bool {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let there = items(actual);
    items(wanted).iter().all(|wanted| there.iter().any(|actual| contains(actual, wanted)))
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_added_is_no_difference_and_what_was_changed_is() {
        let wanted = json!({"a": 1, "b": [{"c": "x"}], "d": {}});
        for (actual, same) in [
            (json!({"a": 1, "b": [{"c": "x", "default": true}], "status": {}}), true),
            (json!({"a": 2, "b": [{"c": "x"}]}), false),
            (json!({"a": 1, "b": [{"c": "y"}]}), false),
            (json!({"a": 1, "b": []}), false),
            (json!({"a": 1, "b": [{"c": "x"}, {}]}), false),
            (json!({"b": [{"c": "x"}]}), false),
        ] {
            assert_eq!(contains(&actual, &wanted), same, "{actual}");
        }
        let owned =
            |uids: &[&str]| json!({"ownerReferences": uids.iter().map(|uid| json!({"uid": uid})).collect::<Vec<_>>()});
        assert!(contains(&owned(&["old", "new"]), &owned(&["new"])));
        assert!(!contains(&owned(&["old"]), &owned(&["new"])));
    }

    #[test]
    fn what_the_server_writes_differently_is_wanted_as_it_wrote_it() {
        let wanted = json!({"cpu": "1000m", "env": [{"name": "A", "value": ""}], "n": 1});
        let answer = json!({"cpu": "1", "env": [{"name": "A"}], "n": 1, "status": {"x": 1}});
        assert!(!contains(&answer, &wanted));
        let settled = as_answered(&wanted, &answer);
        assert!(contains(&answer, &settled));
        assert!(contains(&json!({"cpu": "1", "env": [{"name": "A"}], "n": 1, "more": 2}), &settled));
        for changed in [json!({"cpu": "2", "env": [{"name": "A"}], "n": 1}), json!({"cpu": "1", "env": [], "n": 1})] {
            assert!(!contains(&changed, &settled), "{changed}");
        }
    }
}
