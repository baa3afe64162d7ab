//! The one-machine mesh: `stillmesh up` and the commands that talk to it.
//!
//! [`bootstrap`] leads from the user's shell into namespaces of our own, [`runner`] is what runs there. Its loop
//! (`reconcile`) reads manifests, runs [`pods`], gives addresses ([`ipam`]), keeps `services` reachable ([`proxy`])
//! and publishes the objects (`publish`) that the mesh's own parts (`system`) follow.

mod admit;
mod api;
pub mod bootstrap;
pub mod commands;
pub mod control;
pub mod deploy;
pub(crate) mod foreign;
pub mod init;
pub mod ipam;
pub mod network;
mod node_http;
pub mod pods;
pub mod precheck;
pub mod proxy;
mod publish;
pub(crate) mod receipts;
pub(crate) mod reconcile;
mod report;
pub mod runner;
pub(crate) mod services;
mod state;
pub(crate) mod system;
pub(crate) mod tunnels;
pub(crate) mod waypoints;

pub use api::CaptureSpec;
