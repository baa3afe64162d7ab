//! What is said to the writer of a manifest: where, about which object, what is wrong, what is accepted.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// A place in a manifest. Lines and columns count from 1; 0 means that only the file is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Name of the file, as the reader of the message knows it.
    pub file: Arc<str>,
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

impl Position {
    /// A place in a file.
    pub fn new(file: impl Into<Arc<str>>, line: u32, column: u32) -> Self {
        Self { file: file.into(), line, column }
    }

    /// A file as a whole.
    pub fn file(file: impl Into<Arc<str>>) -> Self {
        Self::new(file, 0, 0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match (self.line, self.column) {
            (0, _) => Ok(()),
            (line, 0) => write!(f, ":{line}"),
            (line, column) => write!(f, ":{line}:{column}"),
        }
    }
}

/// Whether the object is used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object, or this version of it, is not used.
    Error,
    /// It is used; a part has no effect.
    Warning,
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Where.
    pub at: Position,
    /// Whether the object is used all the same.
    pub severity: Severity,
    /// Stable short code, for example `MAN004`.
    pub code: &'static str,
    /// About what, for example `Service shop/page`; empty where the text does not tell.
    pub object: String,
    /// Where in the object, for example `spec.ports[0].port`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What is accepted, or what to do; empty where the message says it.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An object of an API server is in no file.
        if !self.at.file.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}
