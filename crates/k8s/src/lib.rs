//! Kubernetes and Istio objects: their types, reading them from text, and what they mean for the mesh.
//!
//! This crate is pure: text and objects in, objects, model and findings out; no I/O, clock or randomness. The
//! controller translates with it, the node agent selects pods with it, `stillmesh up` admits manifests with it.
//!
//! Read in this order: [`object`] (what there is), [`parse`] (text to objects), [`select`] (who is in the mesh), [`capture`] (how far that has come),
//! [`gateway`] (waypoints: whose, who is bound, what runs them), [`translate`] (objects to the model of
//! `stillmesh-core`), [`status`] (conditions to write back). [`network_policy`] is Kubernetes' own filter in front of it all, [`same_node`] who may do without
//! tunnels where there is none.
#![forbid(unsafe_code)]

pub mod capture;
mod duration;
pub mod finding;
pub mod gateway;
pub mod istio;
pub mod labels;
pub mod mesh_config;
pub mod network_policy;
pub mod object;
pub mod parse;
pub mod same_node;
pub mod select;
pub mod status;
pub mod steering;
pub mod translate;
pub mod unusable;

pub use finding::{Finding, Position, Severity};
pub use object::{Kind, Object, ObjectKey, Placed};
pub use unusable::Unusable;
