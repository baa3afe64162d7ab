//! The control plane: objects in, workloads, services and policies out to every node, and the certificate authority.
//!
//! Read in this order: [`app`] (how the parts are joined), [`build`] (objects to resources, incrementally),
//! [`serve`] (nodes: who they are, what they get, which certificates), [`config`].

mod app;
pub mod build;
pub mod config;
mod metrics;
mod monitoring;
pub mod serve;
mod status;

pub use app::run;
pub use config::Config;
pub use serve::token_digest;
