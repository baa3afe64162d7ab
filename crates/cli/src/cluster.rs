//! A mesh in a Kubernetes cluster: putting it there, looking at it, taking it away.
//!
//! [`access`] is how the cluster is reached, [`zc`] what the node tunnels hold. What to print and which order to
//! keep is decided by pure functions over objects as the API server sends them; only the outermost layer waits.

pub(crate) mod access;
pub(crate) mod args;
pub(crate) mod check;
#[cfg(test)]
pub(crate) mod fake;
mod foreign;
pub(crate) mod install;
pub(crate) mod objects;
pub(crate) mod pod_http;
pub(crate) mod progress;
mod rollout;
mod skew;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod value;
pub(crate) mod version;
mod view;
pub(crate) mod waypoint;
pub(crate) mod zc;
