//! `${NAME}` in files: replaced by a value, mostly that of an environment variable.

use anyhow::{Context, ensure};

/// Replaces each `${NAME}`. Errors: a name has no value.
pub(crate) fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> anyhow::Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        ensure!(is_name, "${{{name:.20}: a name of letters, digits and _ was to follow, and a closing brace");
        filled.push_str(before);
        filled.push_str(&value(name).with_context(|| format!("${{{name}}}: there is no environment variable {name}"))?);
        rest = after;
    }
    Ok(filled + rest)
}
