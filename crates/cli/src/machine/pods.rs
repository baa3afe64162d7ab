//! Pods: what a manifest asks for ([`plan`]), and the work of a kubelet: namespaces, containers, probes, restarts.

pub mod env;
pub mod log;
pub mod plan;
pub mod probe;
pub mod status;
