//! READ FIRST: how a connection is carried. Each file reads capture → lookup → decide → tunnel → deliver, one call
//! each; everything else in this crate serves those calls.

pub mod direct;
mod error;
pub mod inbound;
pub mod outbound;
pub mod passthrough;
pub(crate) mod probe;

pub use error::PathError;
