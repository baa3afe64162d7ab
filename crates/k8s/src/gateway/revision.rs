//! Which revision of the control plane handles a Gateway (contract 7.2): the one that label `istio.io/rev` of the Gateway
//! names, else that of its namespace, else the default one. Pure.

use k8s_openapi::api::core::v1::Namespace;

use super::Gateway;
use crate::labels;

/// Label of a Gateway or a namespace that names a revision.
pub const REVISION: &str = "istio.io/rev";
/// The revision that is meant where none is named.
pub const DEFAULT: &str = "default";

/// The revision that is to handle a Gateway; `None` is the default one.
pub fn of<'a>(gateway: &'a Gateway, namespace: Option<&'a Namespace>) -> Option<&'a str> {
    let named = labels::of(&gateway.metadata.labels).get(REVISION).filter(|name| !name.is_empty());
    let around = || labels::of(&namespace?.metadata.labels).get(REVISION).filter(|name| !name.is_empty());
    named.or_else(around).map(String::as_str).filter(|name| !is_default(name))
}

/// Whether a revision is the default one.
pub fn is_default(revision: &str) -> bool {
    matches!(revision, "" | DEFAULT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gateways_own_label_counts_before_that_of_its_namespace() {
        for (gateway, namespace, wanted) in [
            (json!({}), json!({}), None),
            (json!({REVISION: "a"}), json!({REVISION: "b"}), Some("a")),
            (json!({}), json!({REVISION: "b"}), Some("b")),
            (json!({REVISION: ""}), json!({REVISION: "b"}), Some("b")),
            (json!({REVISION: "default"}), json!({REVISION: "b"}), None),
        ] {
            let gateway: Gateway =
                serde_json::from_value(json!({"metadata": {"labels": gateway}, "spec": {}})).unwrap();
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"labels": namespace}})).unwrap();
            assert_eq!(of(&gateway, Some(&namespace)), wanted);
            assert_eq!(of(&gateway, None), of(&gateway, Some(&Namespace::default())));
        }
    }
}
