//! The capture rules of one pod: [`plan`] says what they are (pure, in the
//! terms of [`model`]), [`apply`] puts them in place and takes them out.
//!
//! Called by [`crate::enroll`] only. Nothing here decides who is captured, and nothing outside touches the kernel's
//! tables in a pod's namespace.

pub mod apply;
pub mod model;
pub mod plan;
mod text;
