//! Pods: what a manifest asks for ([`plan`]), and the work of a kubelet: namespaces, containers, probes, restarts.

pub mod container;
pub mod env;
mod keep;
pub mod log;
mod lookup;
pub mod plan;
pub mod probe;
pub mod sandbox;
pub mod status;
pub mod worker;
