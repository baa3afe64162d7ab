//! What a report never has in it: private keys, tokens, passwords, cookies, values of `Authorization` and of environment
//! variables. Objects are cut by their structure, every text by its shape, and what was seen as the value of a secret variable
//! is cut wherever it stands. Pure.
//!
//! What cannot be told from other text by name, place or shape stays: reports are for people who may see the mesh.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use regex::{Captures, Regex};
use serde_json::{Value, json};

use crate::cluster::value::{list, text};

/// What stands in place of what was cut.
pub(super) const CUT: &str = "REDACTED";
/// Shortest value of a variable that is looked for elsewhere, bytes: shorter ones would be found in everything.
const SHORTEST: usize = 6;
/// Most values that are looked for elsewhere.
const MOST_VALUES: usize = 1000;

/// Names that end so are those of secrets; compared without case, dots, hyphens and underscores.
const NAMES: [&str; 21] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secretkey",
    "apikey",
    "accesskey",
    "accesskeyid",
    "privatekey",
    "token",
    "authorization",
    "cookie",
    "credential",
    "credentials",
    "sessionid",
    "jwks",
    "signature",
    "authkey",
    "encryptionkey",
    "connectionstring",
];
/// Objects under names like these only say where a secret is, or what a cookie is called.
const PLACES: [&str; 4] = ["secret", "httpcookie", "serviceaccounttoken", "bootstraptoken"];

/// Cuts.
pub(super) struct Redactor {
    rules: Vec<(Regex, &'static str)>,
    keys: Regex,
    flag: Regex,
    values: Vec<String>,
}

impl Redactor {
    /// One that knows no values yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let header = r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token|x-amz-security-token|x-csrf-token)";
        let named = r"(?i)([a-z0-9_.\-]*(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|secret[_-]?key|credentials?|token|session[_-]?id|signature))";
        let assigned = r#"(\\*["']?[ \t]*(?:=|:)[ \t]*\[?[ \t]*)"#;
        let quoted = r#"\\+"(?:[^"\\]|\\[^"])*\\+"|"(?:[^"\\]|\\.)*"|'[^']*'"#;
        let rule = |pattern: &str, put: &'static str| anyhow::Ok((Regex::new(pattern)?, put));
        Ok(Self {
            rules: vec![
                rule(
                    r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\z)",
                    CUT,
                )?,
                // Its beginning may be cut off already.
                rule(r"(?s)\A(?:[^-]|-[^-])*?-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----", CUT)?,
                // A JWT, and everything else that is JSON in base64.
                rule(r"\beyJ[A-Za-z0-9_\-+/=]{8,}(?:\.[A-Za-z0-9_\-+/=]*)*", CUT)?,
                rule(
                    &format!(r#"{header}{assigned}(?:digest [^\r\n]+|{quoted}|(?:[^\r\n"']|"[^"\r\n]*")+)"#),
                    "${1}${2}REDACTED",
                )?,
                rule(r"(?i)\b(bearer|basic|negotiate)((?:[ +]|%20)+)[A-Za-z0-9._~+/=\-]{6,}", "${1}${2}REDACTED")?,
                rule(&format!(r#"{named}{assigned}(?:{quoted}|[^\s"'\\,;&}}\])]+)"#), "${1}${2}REDACTED")?,
                rule(
                    r#"(?i)((?:^|\s)--?[a-z0-9\-]*(?:password|passwd|secret|token|api-?key|passphrase|credentials?)[ \t]+)[^\s\-"'][^\s"']*"#,
                    "${1}REDACTED",
                )?,
                rule(r#"(\b[A-Za-z][A-Za-z0-9+.\-]*://)[^/\s"'<>]+@"#, "${1}REDACTED@")?,
                // Secret parts of keys of JSON Web Key Sets.
                rule(r#"(\\*"(?:k|d|p|q|dp|dq|qi)\\*"\s*:\s*\\*")[A-Za-z0-9_\-+/=]{16,}"#, "${1}REDACTED")?,
                // Tokens that are known by how they begin.
                rule(
                    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|xox[abeprs]-[\w\-]{10,}|AIza[\w\-]{30,}|sk-[A-Za-z0-9_\-]{16,}|[rs]k_(?:live|test)_\w{10,}|npm_[A-Za-z0-9]{30,}|hv[bs]\.[\w\-]{20,}|dckr_pat_[\w\-]{20,}|AGE-SECRET-KEY-[0-9A-Z]{20,})",
                    CUT,
                )?,
            ],
            keys: Regex::new(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]{20,}(?:\r?\n[ \t]*[A-Za-z0-9+/=]{16,})*")?,
            flag: Regex::new(
                r"(?i)^--?[a-z0-9\-_]*(?:password|passwd|secret|token|api-?key|passphrase|credentials?)$",
            )?,
            values: Vec::new(),
        })
    }

    /// Learns values of secret variables from objects, before these are cut.
    pub(super) fn learn(&mut self, object: &Value) {
        let mut found = Vec::new();
        self.variables(object, &mut found);
        for value in found {
            // A path says where a secret is.
            if value.len() >= SHORTEST
                && !value.starts_with('/')
                && self.values.len() < MOST_VALUES
                && !self.values.contains(&value)
            {
                self.values.push(value);
            }
        }
        // Of two, one within the other, the longer one goes first.
        self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    fn variables(&self, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(all) => {
                for variable in all.get("env").into_iter().flat_map(list) {
                    let value = text(&variable["value"]);
                    if is_secret(text(&variable["name"])) || self.shapes(value) != value {
                        found.push(value.to_owned());
                    }
                }
                all.values().for_each(|one| self.variables(one, found));
            }
            Value::Array(all) => all.iter().for_each(|one| self.variables(one, found)),
            _ => {}
        }
    }

    /// Cuts an object, or anything else that is JSON.
    pub(super) fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(all) => self.array(all),
            Value::Object(all) => {
                if all.get("kind").is_some_and(|kind| kind == "Secret") && all.contains_key("metadata") {
                    *value = json!({"kind": "Secret", "data": CUT});
                    return;
                }
                // Said again what stands elsewhere, as it was written.
                all.remove("managedFields");
                all.remove("kubectl.kubernetes.io/last-applied-configuration");
                let mut names = ["name", "key", "header"].into_iter().filter_map(|key| all.get(key)?.as_str());
                let is_named = names.any(is_secret);
                for (key, one) in all.iter_mut() {
                    if key == "env" && one.is_array() {
                        self.environment(one);
                    } else if is_named
                        && ["value", "values", "notValues", "exact", "prefix", "regex"].contains(&key.as_str())
                        || is_secret(key) && (!one.is_object() || !PLACES.contains(&plain(key).as_str()))
                    {
                        cut(one);
                    } else {
                        self.value(one);
                    }
                }
            }
            _ => {}
        }
    }

    fn environment(&self, variables: &mut Value) {
        for variable in variables.as_array_mut().into_iter().flatten() {
            if let Some(value) = variable.get_mut("value") {
                *value = CUT.into();
            }
            self.value(variable);
        }
    }

    fn array(&self, all: &mut [Value]) {
        // A name and what it stands for, as headers are in dumps.
        let is_pair = all.len() == 2 && all.first().and_then(Value::as_str).is_some_and(is_secret);
        let mut next = false;
        for (place, one) in all.iter_mut().enumerate() {
            if next || (is_pair && place == 1) {
                cut(one);
            }
            next = one.as_str().is_some_and(|argument| self.flag.is_match(argument));
            self.value(one);
        }
    }

    /// Cuts a text.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = self.shapes(text);
        for value in self.values.iter().filter(|value| value.as_str() != CUT) {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), CUT);
            }
        }
        text
    }

    fn shapes(&self, text: &str) -> String {
        let key = |found: &Captures<'_>| {
            let whole = found.get(0).map_or("", |whole| whole.as_str());
            let text: String = whole.split_whitespace().collect();
            let decoded = text.get(..text.len() / 4 * 4).and_then(|text| BASE64_STANDARD.decode(text).ok());
            let is_public = decoded.is_some_and(|pem| {
                let begins = pem.starts_with(b"-----BEGIN CERTIFICATE") || pem.starts_with(b"-----BEGIN PUBLIC");
                begins && !String::from_utf8_lossy(&pem).contains("PRIVATE KEY")
            });
            if is_public { whole.to_owned() } else { CUT.to_owned() }
        };
        let mut text = self.keys.replace_all(text, key).into_owned();
        for (rule, put) in &self.rules {
            if rule.is_match(&text) {
                text = rule.replace_all(&text, *put).into_owned();
            }
        }
        text
    }
}

/// A name in lower case, of letters and digits only.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Whether a secret stands under a name; also as AuthorizationPolicies name headers: `request.headers[authorization]`.
fn is_secret(name: &str) -> bool {
    let name = plain(name);
    // Several, or one of several.
    let one = name.trim_end_matches(|letter: char| letter == 's' || letter.is_ascii_digit());
    // A shell's working directory is none.
    !["pwd", "oldpwd"].contains(&name.as_str()) && NAMES.iter().any(|end| name.ends_with(end) || one.ends_with(end))
}

/// Cuts every text below.
fn cut(value: &mut Value) {
    match value {
        Value::String(text) => CUT.clone_into(text),
        Value::Number(_) => *value = CUT.into(),
        Value::Array(all) => all.iter_mut().for_each(cut),
        Value::Object(all) => all.values_mut().for_each(cut),
        Value::Bool(_) | Value::Null => {}
    }
}
