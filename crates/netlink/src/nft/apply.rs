//! Hands a batch to the kernel.

use super::batch::Batch;
use crate::error::Error;

/// Carries the batch out in the network namespace of the calling thread: all of it, or nothing and an error that
/// names the operation that the kernel refused.
pub fn apply(batch: &Batch) -> Result<(), Error> {
    todo!("{}", batch.operations.len())
}
