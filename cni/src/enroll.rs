//! A pod enters or leaves the mesh.
//!
//! [`steps`] says what to do next (pure), [`pod`] does it for one pod, [`older`] counts the connections that were open
//! before. Every step can be repeated and undone; the order is the promise: the guard stands before the first rule
//! and falls after a tunnel has taken the pod.

pub mod older;
pub mod pod;
pub mod steps;
pub mod window;
