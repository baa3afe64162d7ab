//! What the API server itself refuses, without the webhook: rules in the schemas of the CRDs. They say no more than the
//! parser does; what only it can say (addresses, identities), it says.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};

/// A port from 1 to 65535 as text.
const PORT: &str = "^0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// Rules of a kind's `spec`: the expression, and what is said where it does not hold.
fn rules(kind: &str) -> &'static [(&'static str, &'static str)] {
    match kind {
        "AuthorizationPolicy" => &[
            (
                "!has(self.selector) || (!has(self.targetRef) && (!has(self.targetRefs) || size(self.targetRefs) == 0))",
                "a policy has a selector, or targetRefs, or neither",
            ),
            (
                "has(self.provider) == (has(self.action) && self.action == 'CUSTOM')",
                "action CUSTOM needs a provider, and no other action has one",
            ),
        ],
        "PeerAuthentication" => &[
            (
                "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && \
                 size(self.selector.matchLabels) > 0)",
                "modes of single ports (portLevelMtls) need a selector with labels",
            ),
            (
                "!has(self.portLevelMtls) || self.portLevelMtls.all(port, port.matches('^[0-9]{1,5}$') && \
                 int(port) >= 1 && int(port) <= 65535)",
                "a key of portLevelMtls is a port, a number from 1 to 65535",
            ),
        ],
        "RequestAuthentication" => &[(
            "!has(self.selector) || (!has(self.targetRef) && (!has(self.targetRefs) || size(self.targetRefs) == 0))",
            "a RequestAuthentication has a selector, or targetRefs, or neither",
        )],
        _ => &[],
    }
}

/// Puts the rules into a CRD's schemas.
pub(super) fn add(crd: &mut CustomResourceDefinition) {
    let kind = crd.spec.names.kind.clone();
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        if let Some(spec) = at(root, &["spec"]) {
            let rules = rules(&kind).iter().map(|(rule, message)| ValidationRule {
                rule: (*rule).to_owned(),
                message: Some((*message).to_owned()),
                ..ValidationRule::default()
            });
            spec.x_kubernetes_validations = Some(rules.collect());
        }
        for list in ["ports", "notPorts"] {
            if let Some(port) = at(root, &["spec", "rules", "[]", "to", "[]", "operation", list, "[]"]) {
                port.pattern = Some(PORT.to_owned());
            }
        }
        if let Some(key) = at(root, &["spec", "rules", "[]", "when", "[]", "key"]) {
            // An empty default would be refused by its own schema.
            key.default = None;
            key.min_length = Some(1);
        }
        // So that what evaluating the rule may cost is bounded.
        if let Some(ports) = at(root, &["spec", "portLevelMtls"]) {
            ports.max_properties = Some(1024);
        }
    }
}

/// The schema at a path; `[]` goes from a list to its items.
fn at<'a>(schema: &'a mut JSONSchemaProps, path: &[&str]) -> Option<&'a mut JSONSchemaProps> {
    let Some((first, rest)) = path.split_first() else { return Some(schema) };
    let next = match *first {
        "[]" => match schema.items.as_mut()? {
            JSONSchemaPropsOrArray::Schema(item) => &mut **item,
            JSONSchemaPropsOrArray::Schemas(_) => return None,
        },
        name => schema.properties.as_mut()?.get_mut(name)?,
    };
    at(next, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_place() {
        // A VirtualService is whatever Istio takes.
        let policies = |crd: &CustomResourceDefinition| crd.spec.group == "security.istio.io";
        for mut crd in crate::istio::crds().into_iter().filter(policies) {
            let kind = crd.spec.names.kind.clone();
            for version in &mut crd.spec.versions {
                let root = version.schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
                let spec = at(root, &["spec"]).unwrap();
                assert_eq!(spec.x_kubernetes_validations.as_ref().unwrap().len(), rules(&kind).len(), "{kind}");
                assert!(!rules(&kind).is_empty(), "{kind}");
                let places: &[&[&str]] = match kind.as_str() {
                    "AuthorizationPolicy" => &[
                        &["spec", "rules", "[]", "to", "[]", "operation", "ports", "[]"],
                        &["spec", "rules", "[]", "to", "[]", "operation", "notPorts", "[]"],
                    ],
                    _ => &[],
                };
                for place in places {
                    assert_eq!(at(root, place).unwrap().pattern.as_deref(), Some(PORT));
                }
            }
        }
    }
}
