//! `stillmesh bench`.
pub(crate) mod load;
