//! Reads back what is in the kernel.

use super::model::{Family, Table};
use crate::error::Error;

/// A table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its chain.
    pub chain: String,
    /// What it is deleted by.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// Packets and bytes of its first counter, if it has one.
    pub counter: Option<(u64, u64)>,
}

/// A counter that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its rule's chain.
    pub chain: String,
    /// Its rule's comment.
    pub comment: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The tables of the namespace (of the families known here).
pub fn tables() -> Result<Vec<TableInfo>, Error> {
    todo!()
}

/// The rules of a table, chain by chain, in order. An absent table has none.
pub fn list(family: Family, table: &str) -> Result<Vec<Listed>, Error> {
    todo!("{family} {table}")
}

/// The counters of a table's rules, in order. An absent table has none.
pub fn counters(family: Family, table: &str) -> Result<Vec<Counter>, Error> {
    todo!("{family} {table}")
}

/// How what is in the kernel differs from the table as it should be, one line each; nothing if it does not. Counts do
/// not matter.
pub fn differences(table: &Table) -> Result<Vec<String>, Error> {
    todo!("{}", table.name)
}
