//! The node agent and the client side of the CNI plugin: pods get their capture rules and reach the tunnel.
//!
//! [`enroll`] is the heart: a pod enters or leaves the mesh, each step repeatable and undoable. [`rules`] says what is
//! in the kernel. The agent decides who is captured from the objects of its node, the same way the plugin does.
#![forbid(unsafe_code)]

pub mod config;
pub mod enroll;
pub mod plugin;
pub mod rules;

pub use config::Config;

/// Runs the agent until `drain` starts. Rules stay in place: running pods do not notice.
pub async fn run(_config: Config, drain: stillmesh_runtime::drain::Watch) -> anyhow::Result<()> {
    drain.signaled().await;
    Ok(())
}
