//! What of a request can be said on the command line.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use clap::Args;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri};
use serde_json::{Map, Value};

/// A request as it is typed.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Request")]
pub(crate) struct Request {
    /// Path, with its query if it has one; `/` when absent
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// Method; GET when absent
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// Host; the service's name when absent
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// A header; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME:VALUE")]
    pub(crate) headers: Vec<String>,
    /// A claim of its token, which is taken as verified; a value that begins with [ or { is JSON; may be repeated
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub(crate) claims: Vec<String>,
    /// The principal of its token: claims `iss` and `sub`
    #[arg(long, value_name = "ISSUER/SUBJECT")]
    pub(crate) principal: Option<String>,
}

/// A request, read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) headers: HeaderMap,
    /// Of its token; `None`: it has none.
    pub(crate) claims: Option<Map<String, Value>>,
}

impl Default for Read {
    fn default() -> Self {
        Self { method: Method::GET, target: Uri::from_static("/"), host: None, headers: HeaderMap::new(), claims: None }
    }
}

impl Request {
    /// Reads it; `None` where nothing is said of a request.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Read>> {
        let Self { path, method, host, headers, claims, principal } = self;
        let is_silent = path.is_none() && method.is_none() && host.is_none() && principal.is_none();
        if is_silent && headers.is_empty() && claims.is_empty() {
            return Ok(None);
        }
        let mut read = Read::default();
        if let Some(method) = method {
            read.method = method.parse().with_context(|| format!("--method {method:?} is no method"))?;
        }
        if let Some(path) = path {
            if !path.starts_with('/') && path != "*" {
                bail!("--path {path:?}: a path begins with a slash");
            }
            read.target = path.parse().with_context(|| format!("--path {path:?} is no path"))?;
        }
        let value = |text: &str| HeaderValue::try_from(text).with_context(|| format!("{text:?} is no header's value"));
        read.host = host.as_deref().map(value).transpose()?;
        for header in headers {
            let (name, text) =
                header.split_once(':').with_context(|| format!("--header {header:?}: NAME:VALUE is accepted"))?;
            let name = HeaderName::try_from(name.trim()).with_context(|| format!("{name:?} is no header's name"))?;
            read.headers.append(name, value(text.trim())?);
        }
        read.claims = self.read_claims()?;
        Ok(Some(read))
    }

    fn read_claims(&self) -> anyhow::Result<Option<Map<String, Value>>> {
        let mut claims: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        if let Some(principal) = &self.principal {
            let (issuer, subject) = principal
                .rsplit_once('/')
                .with_context(|| format!("--principal {principal:?}: ISSUER/SUBJECT is accepted"))?;
            claims.insert("iss".to_owned(), vec![Value::from(issuer)]);
            claims.insert("sub".to_owned(), vec![Value::from(subject)]);
        }
        for claim in &self.claims {
            let (name, text) =
                claim.split_once('=').with_context(|| format!("--claim {claim:?}: NAME=VALUE is accepted"))?;
            let value = match text.starts_with(['[', '{']) {
                true => serde_json::from_str(text).with_context(|| format!("--claim {name}: {text:?} is no JSON"))?,
                false => Value::from(text),
            };
            claims.entry(name.to_owned()).or_default().push(value);
        }
        let whole = |(name, mut values): (String, Vec<Value>)| match values.len() {
            1 => (name, values.remove(0)),
            _ => (name, Value::Array(values)),
        };
        Ok((!claims.is_empty()).then(|| claims.into_iter().map(whole).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_a_request_and_what_is_not_is_refused() {
        assert!(Request::default().read().unwrap().is_none());
        let typed = Request {
            path: Some("/a?b=c".to_owned()),
            headers: vec!["X-A: 1".to_owned(), "x-a:2".to_owned()],
            claims: vec!["group=a".to_owned(), "group=b".to_owned(), "deep={\"x\": [\"y\"]}".to_owned()],
            principal: Some("https://issuer/me".to_owned()),
            ..Request::default()
        };
        let read = typed.read().unwrap().unwrap();
        assert_eq!((read.target.path(), read.target.query()), ("/a", Some("b=c")));
        assert_eq!(read.headers.get_all("x-a").iter().count(), 2);
        let claims = Value::Object(read.claims.unwrap());
        assert_eq!(claims["iss"], "https://issuer");
        assert_eq!((&claims["group"][1], &claims["deep"]["x"][0]), (&Value::from("b"), &Value::from("y")));
        for bad in [
            Request { path: Some("a".to_owned()), ..Request::default() },
            Request { headers: vec!["a".to_owned()], ..Request::default() },
            Request { claims: vec!["a".to_owned()], ..Request::default() },
            Request { method: Some("G T".to_owned()), ..Request::default() },
        ] {
            assert!(bad.read().is_err(), "{bad:?}");
        }
    }
}
