//! What every error of the mesh can say of itself.

use serde::Serialize;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The client that asked.
    Downstream,
    /// What the connection was going to.
    Upstream,
    /// An object that a user wrote.
    Config,
    /// The mesh itself.
    Internal,
}

/// Implemented by every error enum: a stable code, whose fault it is, and what to do.
pub trait Diagnose: std::error::Error {
    /// Stable short code for logs and dashboards, for example `TUN001`.
    fn code(&self) -> &'static str;
    /// Whose fault it is.
    fn fault(&self) -> Fault;
    /// One line: what the reader should do next.
    fn remedy(&self) -> &'static str;
}
