//! The environment as given: text by key, nothing interpreted. Kept to show at the admin port what was set.

use std::collections::BTreeMap;

use stillmesh_runtime::env::Reader;

use super::rows::ROWS;

/// The keys of [`ROWS`] that are set. Tokens are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(pub BTreeMap<String, String>);

impl Raw {
    /// Takes what is set.
    pub fn read(reader: &Reader) -> Self {
        let set = ROWS
            .iter()
            .filter(|row| row.key != "AUTH_TOKEN" && !row.key.ends_with('*'))
            .filter_map(|row| Some((row.key.to_owned(), reader.string(row.key)?)));
        Self(set.collect())
    }
}
