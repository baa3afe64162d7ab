//! A node tunnel of another make in place of ours, as a file names it (`up --ztunnel`); docs/bench.md says how it is written.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use stillmesh_runtime::env::Reader;

use crate::fill::fill;

/// A command that is the node tunnel of every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForeignTunnel {
    /// What it is called.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Its environment, beside what every node tunnel is told, and before that.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
}

impl ForeignTunnel {
    /// Reads a file. Errors: it cannot be read, is not such a file, a variable in it is not set, there is no such program.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let named = || format!("node tunnel {}", path.display());
        let env = Reader::process();
        let exe = std::env::current_exe()?.to_string_lossy().into_owned();
        let value = |name: &str| if name == "STILLMESH" { Some(exe.clone()) } else { env.string(name) };
        let text = std::fs::read_to_string(path).with_context(named)?;
        let search = env.string("PATH").unwrap_or_default();
        Self::parse(&text, value, &search).with_context(named)
    }

    fn parse(text: &str, value: impl Fn(&str) -> Option<String>, search: &str) -> anyhow::Result<Self> {
        let mut tunnel: Self = toml::from_str(text)?;
        for word in tunnel.command.iter_mut().chain(tunnel.env.values_mut()) {
            *word = fill(word, &value)?;
        }
        let name = &tunnel.name;
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            (1..=40).contains(&name.len())
                && name.bytes().all(is_label)
                && !name.starts_with('-')
                && !name.ends_with('-'),
            "name = {name:?}: 1 to 40 of a-z, 0-9 and - are accepted, no - first or last"
        );
        let program = tunnel.command.first().context("command = []: a program and its arguments were to follow")?;
        let is_there = match program.contains('/') {
            true => program.starts_with('/') && Path::new(program).is_file(),
            false => search.split(':').any(|folder| Path::new(folder).join(program).is_file()),
        };
        ensure!(is_there, "command: there is no program {program:?}; an absolute path, or a name in PATH, is accepted");
        Ok(tunnel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ForeignTunnel, String> {
        let value = |name: &str| (name == "SHELL_FILE").then(|| "/bin/sh".to_owned());
        ForeignTunnel::parse(text, value, "/usr/bin:/bin").map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn variables_are_filled_in_without_being_read_as_toml() {
        let tunnel =
            parse("name = 'other'\ncommand = ['${SHELL_FILE}', '-c', 'x']\nenv = { FILE = '${SHELL_FILE}' }").unwrap();
        assert_eq!(tunnel.command, ["/bin/sh", "-c", "x"]);
        assert_eq!(tunnel.env["FILE"], "/bin/sh");
        assert!(parse("name = 'other'\ncommand = ['sh']").is_ok());
    }

    #[test]
    fn what_is_no_tunnel_is_refused_with_what_is_wrong() {
        for (text, words) in [
            ("", "missing field"),
            ("name = 'a'\ncommand = ['sh']\nargs = []", "unknown field"),
            ("name = 'A b'\ncommand = ['sh']", "a-z, 0-9 and -"),
            ("name = 'a'\ncommand = []", "a program and its arguments"),
            ("name = 'a'\ncommand = ['/no/such']", "there is no program \"/no/such\""),
            ("name = 'a'\ncommand = ['./sh']", "an absolute path"),
            ("name = 'a'\ncommand = ['${NOBODY}']", "no environment variable NOBODY"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(words), "{text}: {refusal}");
        }
    }
}
