//! RequestAuthentication with `targetRefs` to what waypoints do (contract 7.4). One that cannot be carried out as it is
//! written refuses what it is attached to: less than was asked for would let pass what nobody vouches for.

use std::time::Duration;

use stillmesh_core::model::access::{
    Attachment, ClaimHeader, JwtKeys, JwtRule, RequestAuthentication as Model, TokenLocation,
};
use stillmesh_core::model::{PolicyKey, Str};

use super::Mesh;
use super::targets::{Found, Target, Targets, targets};
use crate::istio::{self, RequestAuthentication};
use crate::status::Condition;

/// What Istio gives the fetching of keys where a rule does not say it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What one is attached to; empty where it is not for waypoints.
pub fn authentication_targets(written: &RequestAuthentication, mesh: &Mesh) -> Vec<Result<Target, String>> {
    let refs = written.spec.target_ref.iter().chain(&written.spec.target_refs);
    targets(refs, namespace(written), mesh)
}

fn namespace(written: &RequestAuthentication) -> &str {
    written.metadata.namespace.as_deref().unwrap_or(crate::object::DEFAULT_NAMESPACE)
}

/// Translates one, and says what its status says; `None` where it is not for waypoints.
pub fn request_authentication(
    written: &RequestAuthentication,
    known: &dyn Targets,
    mesh: &Mesh,
) -> Option<(Model, Condition)> {
    let refs = authentication_targets(written, mesh);
    if refs.is_empty() {
        return None;
    }
    let found = Found::new(&refs, known, mesh);
    let rules = written.spec.jwt_rules.iter().enumerate();
    let rules: Result<Vec<JwtRule>, String> =
        rules.map(|(index, one)| rule(one).map_err(|problem| format!("jwtRules[{index}]: {problem}"))).collect();
    let (rules, unreadable, condition) = match rules {
        Ok(rules) => (rules, None, found.condition(&[])),
        Err(problem) => {
            let message = format!("{problem}: what it is attached to is refused until it can be carried out");
            (Vec::new(), Some(Str::from(problem)), Found::refused(message))
        }
    };
    let key = PolicyKey::new(namespace(written), written.metadata.name.as_deref().unwrap_or_default());
    Some((Model { key, attached: Attachment::To(found.services), rules, unreadable }, condition))
}

fn rule(written: &istio::JwtRule) -> Result<JwtRule, String> {
    if written.issuer.is_empty() {
        return Err("the issuer is missing".to_owned());
    }
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Str::from);
    let keys = match (text(&written.jwks), text(&written.jwks_uri)) {
        (Some(_), Some(_)) => return Err("both jwks and jwksUri".to_owned()),
        (Some(keys), None) => JwtKeys::Inline(keys),
        (None, Some(uri)) if is_fetchable(&uri) => JwtKeys::At(uri),
        (None, Some(uri)) => return Err(format!("jwksUri {uri:?} is neither http nor https")),
        (None, None) if is_fetchable(&written.issuer) => JwtKeys::Discovered,
        (None, None) => return Err("neither jwks nor jwksUri, and the issuer is no place to look for them".to_owned()),
    };
    let mut from = Vec::new();
    for one in &written.from_headers {
        let prefix = one.prefix.as_deref().unwrap_or_default().into();
        from.push(TokenLocation::Header { name: header(&one.name)?, prefix });
    }
    from.extend(written.from_params.iter().map(|name| TokenLocation::Parameter(name.as_str().into())));
    from.extend(written.from_cookies.iter().map(|name| TokenLocation::Cookie(name.as_str().into())));
    let claimed = |one: &istio::ClaimToHeader| {
        if one.claim.is_empty() {
            return Err("a claim's name is missing".to_owned());
        }
        Ok(ClaimHeader { header: header(&one.header)?, claim: one.claim.as_str().into() })
    };
    let payload = written.output_payload_to_header.as_deref().filter(|name| !name.is_empty());
    Ok(JwtRule {
        issuer: written.issuer.as_str().into(),
        audiences: written.audiences.iter().map(|audience| Str::from(audience.as_str())).collect(),
        keys,
        from,
        forwards_token: written.forward_original_token.unwrap_or(false),
        payload_header: payload.map(header).transpose()?,
        claim_headers: written.output_claim_to_headers.iter().map(claimed).collect::<Result<_, _>>()?,
        timeout: match written.timeout.as_deref() {
            None | Some("") => TIMEOUT,
            Some(text) => duration(text).ok_or_else(|| format!("timeout {text:?} is no duration"))?,
        },
    })
}

fn is_fetchable(uri: &str) -> bool {
    uri.starts_with("https://") || uri.starts_with("http://")
}

/// A header's name, in lower case (RFC 9110 section 5.1).
fn header(name: &str) -> Result<Str, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !name.is_empty() && name.bytes().all(legal) {
        true => Ok(name.to_ascii_lowercase().into()),
        false => Err(format!("{name:?} is no header's name")),
    }
}

/// As Istio writes them: numbers and units, `1.5s`, `1m30s`, `200ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut whole) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let number = rest.find(|next: char| !next.is_ascii_digit() && next != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|next: char| next.is_ascii_digit() || next == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        whole = whole.checked_add(Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::binding::{Binding, Named};
    use crate::object::Object;

    /// Every Service is there and bound to nothing.
    struct Anywhere;

    impl Targets for Anywhere {
        fn service(&self, _: &Named) -> Option<Binding> {
            Some(Binding::Unasked)
        }
        fn gateway(&self, _: &Named) -> Option<Str> {
            None
        }
        fn class(&self, _: &str) -> Option<Vec<(Named, Str)>> {
            None
        }
    }

    fn translated(spec: &str) -> Option<(Model, Condition)> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: j, namespace: shop}}\nspec: {spec}\n"
        );
        let found = crate::parse::documents("j.yaml", &text);
        let Some(Object::RequestAuthentication(one)) = found.objects.first().map(|one| &one.object) else {
            panic!("{:?}", found.findings)
        };
        request_authentication(one, &Anywhere, &Mesh::default())
    }

    fn attached(rule: &str) -> (Model, Condition) {
        translated(&format!("{{targetRefs: [{{kind: Service, name: reviews}}], jwtRules: [{rule}]}}")).unwrap()
    }

    #[test]
    fn every_field_of_a_rule_is_translated() {
        let (model, condition) = attached(
            "{issuer: 'https://i', audiences: [a, b], jwksUri: 'https://i/keys', fromHeaders: [{name: X-Token, prefix: 'T '}], \
             fromParams: [t], fromCookies: [c], outputPayloadToHeader: X-Payload, forwardOriginalToken: true, \
             outputClaimToHeaders: [{header: X-Sub, claim: sub}], timeout: 1m1.5s}",
        );
        let rule = JwtRule {
            issuer: "https://i".into(),
            audiences: vec!["a".into(), "b".into()],
            keys: JwtKeys::At("https://i/keys".into()),
            from: vec![
                TokenLocation::Header { name: "x-token".into(), prefix: "T ".into() },
                TokenLocation::Parameter("t".into()),
                TokenLocation::Cookie("c".into()),
            ],
            forwards_token: true,
            payload_header: Some("x-payload".into()),
            claim_headers: vec![ClaimHeader { header: "x-sub".into(), claim: "sub".into() }],
            timeout: Duration::from_millis(61_500),
        };
        assert_eq!((model.rules, model.unreadable), (vec![rule], None));
        assert_eq!(condition.reason, "AncestorNotBound", "as for any policy");
        let (model, _) = attached("{issuer: 'https://i', jwks: '{}'}");
        assert_eq!((model.rules[0].keys.clone(), model.rules[0].timeout), (JwtKeys::Inline("{}".into()), TIMEOUT));
        assert_eq!(attached("{issuer: 'https://i'}").0.rules[0].keys, JwtKeys::Discovered);
        assert!(translated("{jwtRules: [{issuer: 'https://i'}]}").is_none(), "it is for nobody here");
    }

    #[test]
    fn what_cannot_be_carried_out_refuses_what_it_is_attached_to() {
        for (rule, problem) in [
            ("{}", "the issuer is missing"),
            ("{issuer: i}", "neither jwks nor jwksUri"),
            ("{issuer: i, jwks: a, jwksUri: 'https://b'}", "both jwks and jwksUri"),
            ("{issuer: i, jwksUri: 'file:///etc/passwd'}", "neither http nor https"),
            ("{issuer: i, jwks: a, fromHeaders: [{name: 'a b'}]}", "no header's name"),
            ("{issuer: i, jwks: a, outputClaimToHeaders: [{header: '', claim: a}]}", "no header's name"),
            ("{issuer: i, jwks: a, outputClaimToHeaders: [{header: a}]}", "claim's name is missing"),
            ("{issuer: i, jwks: a, timeout: soon}", "no duration"),
        ] {
            let (model, condition) = attached(rule);
            assert!(model.unreadable.as_ref().is_some_and(|why| why.contains(problem)), "{rule}: {model:?}");
            assert_eq!((condition.status, condition.reason), ("False", "Invalid"), "{rule}");
            assert!(condition.message.contains(problem) && model.rules.is_empty(), "{rule}");
        }
    }
}
