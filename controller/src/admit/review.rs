//! One AdmissionReview in, one out.

use serde_json::{Value, json};
use stillmesh_k8s::finding::Severity;
use stillmesh_k8s::translate::{self, Level, Mesh};
use stillmesh_k8s::unusable::explained;
use stillmesh_k8s::{Finding, Object, parse};

/// How many warnings are told, and how long each may be: the API server cuts off beyond.
const MAX_WARNINGS: usize = 16;
const MAX_WARNING_CHARS: usize = 250;

/// What was decided.
#[derive(Debug, PartialEq)]
pub(super) struct Reviewed {
    /// The AdmissionReview to answer.
    pub answer: Value,
    /// The kind, and whether it passed; `None` where there was nothing to check.
    pub checked: Option<(&'static str, bool)>,
}

/// Reviews. The error is what is wrong with the request itself.
pub(super) fn review(body: &[u8], mesh: &Mesh) -> Result<Reviewed, String> {
    let review: Value = serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {error}"))?;
    let request = review.get("request").ok_or("not an AdmissionReview: the request is missing")?;
    let text = |key: &str| request.get(key).and_then(Value::as_str).unwrap_or_default();
    let uid = text("uid");
    if uid.is_empty() {
        return Err("not an AdmissionReview: the uid is missing".to_owned());
    }
    let answer = |response: Value| {
        let mut response = response;
        if let Value::Object(fields) = &mut response {
            fields.insert("uid".to_owned(), uid.into());
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    };
    let passes = || Reviewed { answer: answer(json!({"allowed": true})), checked: None };
    let none = Value::Null;
    let (object, old) = (request.get("object").unwrap_or(&none), request.get("oldObject").unwrap_or(&none));
    let changes = matches!(text("operation"), "CREATE" | "UPDATE") && text("subResource").is_empty();
    // What is on its way out, or only gets other metadata, is not held up for what was let in before.
    let leaving = object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let same = !old.is_null() && old.get("spec") == object.get("spec");
    if !changes || object.is_null() || leaving || same {
        return Ok(passes());
    }
    let kind = match object.get("kind").and_then(Value::as_str) {
        Some("AuthorizationPolicy") => "AuthorizationPolicy",
        Some("PeerAuthentication") => "PeerAuthentication",
        Some("RequestAuthentication") => "RequestAuthentication",
        Some("DestinationRule") => "DestinationRule",
        Some("Telemetry") => "Telemetry",
        Some("VirtualService") if is_for_the_mesh(object) => "VirtualService",
        _ => return Ok(passes()),
    };
    let found = parse::documents("", &named(object, text("namespace")).to_string());
    let (errors, harmless): (Vec<Finding>, Vec<Finding>) =
        found.findings.into_iter().partition(|finding| finding.severity == Severity::Error);
    let mut warnings: Vec<String> = harmless.iter().map(explained).collect();
    warnings.extend(found.objects.iter().flat_map(|placed| odd(&placed.object, mesh)));
    let warnings: Vec<String> =
        warnings.iter().take(MAX_WARNINGS).map(|text| text.chars().take(MAX_WARNING_CHARS).collect()).collect();
    if errors.is_empty() {
        let answer = answer(json!({"allowed": true, "warnings": warnings}));
        return Ok(Reviewed { answer, checked: Some((kind, true)) });
    }
    let causes: Vec<Value> = errors
        .iter()
        .map(|one| json!({"reason": "FieldValueInvalid", "field": one.path, "message": explained(one)}))
        .collect();
    let message: Vec<String> = errors.iter().map(explained).collect();
    let status = json!({
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": message.join("; also: "),
        "details": {"kind": kind, "name": text("name"), "causes": causes},
    });
    let answer = answer(json!({"allowed": false, "status": status, "warnings": warnings}));
    Ok(Reviewed { answer, checked: Some((kind, false)) })
}

/// Whether a VirtualService is for waypoints too: one that is only for somebody else's gateways is theirs to judge.
fn is_for_the_mesh(object: &Value) -> bool {
    let gateways = object.pointer("/spec/gateways").and_then(Value::as_array);
    gateways.is_none_or(|gateways| gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh"))
}

/// The object with a name and its namespace: one that is to be given a name has none yet.
fn named(object: &Value, namespace: &str) -> Value {
    let mut object = object.clone();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return object };
    if !metadata.contains_key("name") {
        let stem = metadata.get("generateName").and_then(Value::as_str).map(|stem| format!("{stem}x"));
        metadata.extend(stem.map(|name| ("name".to_owned(), name.into())));
    }
    if !metadata.contains_key("namespace") && !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    // Written by servers, read by nobody here.
    metadata.remove("managedFields");
    object
}

/// What the engine makes of an object that can be read.
fn odd(object: &Object, mesh: &Mesh) -> Vec<String> {
    match object {
        Object::AuthorizationPolicy(policy) => {
            let condition = translate::authorization(policy, mesh).condition;
            condition.filter(|one| one.reason != "Accepted").map(|one| one.message).into_iter().collect()
        }
        Object::PeerAuthentication(peer) if translate::level(peer, mesh) == Level::Nothing => {
            vec![
                "spec.selector: a selector has no effect in the root namespace; write it in the workloads' namespace"
                    .into(),
            ]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &Value) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
        })
    }

    fn asked(operation: &str, object: &Value, old: &Value) -> Reviewed {
        let request = json!({
            "uid": "u", "operation": operation, "namespace": "shop", "name": "p", "dryRun": true,
            "object": object, "oldObject": old,
        });
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        review(body.to_string().as_bytes(), &Mesh::default()).unwrap()
    }

    fn allowed(reviewed: &Reviewed) -> bool {
        reviewed.answer["response"]["allowed"] == true && reviewed.answer["response"]["uid"] == "u"
    }

    fn bad() -> Value {
        policy(&json!({"rules": [{"to": [{"operation": {"ports": ["x", "80"]}}], "when": [{"key": ""}]}]}))
    }

    #[test]
    fn a_refusal_names_each_place_what_is_wrong_and_what_is_accepted() {
        let reviewed = asked("CREATE", &bad(), &Value::Null);
        assert!(!allowed(&reviewed));
        assert_eq!(reviewed.checked, Some(("AuthorizationPolicy", false)));
        let status = &reviewed.answer["response"]["status"];
        let message = status["message"].as_str().unwrap();
        for word in [
            "spec.rules[0].to[0].operation.ports[0]: \"x\" is not a port",
            "a number from 1 to 65535",
            "key is missing",
        ] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(status["details"]["causes"][0]["field"], "spec.rules[0].to[0].operation.ports[0]");
        assert!(status["details"]["causes"].as_array().unwrap().len() >= 3);
    }

    #[test]
    fn a_good_policy_passes_and_what_the_engine_thinks_of_it_is_a_warning() {
        let good = asked("CREATE", &policy(&json!({"rules": [{}]})), &Value::Null);
        assert!(allowed(&good));
        assert_eq!(good.answer["response"]["warnings"], json!([]));
        for (spec, word) in [
            (json!({"action": "AUDIT", "rules": [{}]}), "does not support the AUDIT action"),
            (json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}), "methods"),
            (json!({"action": "DENY"}), "denies nothing"),
        ] {
            let reviewed = asked("CREATE", &policy(&spec), &Value::Null);
            assert!(allowed(&reviewed));
            let warnings = reviewed.answer["response"]["warnings"].to_string();
            assert!(warnings.contains(word), "{warnings}");
        }
    }

    #[test]
    fn a_virtual_service_for_the_mesh_is_judged_and_others_are_not() {
        let of = |spec: &Value| {
            let metadata = json!({"name": "v", "namespace": "shop"});
            let api = "networking.istio.io/v1";
            json!({"apiVersion": api, "kind": "VirtualService", "metadata": metadata, "spec": spec})
        };
        let route = json!([{"destination": {"host": "a"}}]);
        let spec = |rule: Value| json!({"hosts": ["a"], "http": [rule]});
        assert!(allowed(&asked("CREATE", &of(&spec(json!({"route": route}))), &Value::Null)));
        let bad = spec(json!({"route": route, "redirect": {"uri": "/"}}));
        let reviewed = asked("CREATE", &of(&bad), &Value::Null);
        assert_eq!(reviewed.checked, Some(("VirtualService", false)));
        assert!(reviewed.answer["response"]["status"]["message"].as_str().unwrap().contains("both route and redirect"));
        let odd = json!({"route": route, "fault": {"abort": {"http2Error": "x"}}});
        let unsupported = asked("CREATE", &of(&spec(odd)), &Value::Null);
        assert!(allowed(&unsupported), "it may be what others carry out");
        assert!(unsupported.answer["response"]["warnings"].to_string().contains("grpcStatus is needed"));
        let mut elsewhere = bad;
        elsewhere["gateways"] = json!(["ingress"]);
        assert!(allowed(&asked("CREATE", &of(&elsewhere), &Value::Null)));
    }

    #[test]
    fn a_destination_rule_is_judged_and_what_others_may_carry_out_passes_with_a_warning() {
        let of = |spec: Value| {
            let metadata = json!({"name": "d", "namespace": "shop"});
            json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata, "spec": spec})
        };
        assert!(allowed(&asked("CREATE", &of(json!({"host": "a"})), &Value::Null)));
        let nameless = asked("CREATE", &of(json!({"trafficPolicy": {}})), &Value::Null);
        assert_eq!(nameless.checked, Some(("DestinationRule", false)));
        assert!(nameless.answer["response"]["status"]["message"].as_str().unwrap().contains("spec.host: no host"));
        let unsupported = of(json!({"host": "a", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}));
        let unsupported = asked("CREATE", &unsupported, &Value::Null);
        assert!(allowed(&unsupported));
        assert!(unsupported.answer["response"]["warnings"].to_string().contains("tls.mode SIMPLE is not supported"));
    }

    #[test]
    fn what_is_in_already_can_be_deleted_and_released() {
        assert!(allowed(&asked("DELETE", &Value::Null, &bad())));
        assert!(allowed(&asked("UPDATE", &bad(), &bad())), "its spec is as before");
        let mut leaving = bad();
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(allowed(&asked("UPDATE", &leaving, &policy(&json!({})))));
        assert!(!allowed(&asked("UPDATE", &bad(), &policy(&json!({})))));
    }

    #[test]
    fn other_kinds_and_objects_without_a_name_yet_pass() {
        let other = json!({"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "spec": {"x": 1}});
        assert!(allowed(&asked("CREATE", &other, &Value::Null)));
        let mut nameless = policy(&json!({}));
        nameless["metadata"] = json!({"generateName": "p-"});
        assert!(allowed(&asked("CREATE", &nameless, &Value::Null)));
    }

    #[test]
    fn what_is_no_review_is_an_error() {
        for body in ["", "[]", "{}", "{\"request\": {}}", "\u{0}"] {
            assert!(review(body.as_bytes(), &Mesh::default()).is_err(), "{body}");
        }
    }
}
