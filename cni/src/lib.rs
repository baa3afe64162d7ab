//! The node agent and the client side of the CNI plugin: pods get their capture rules and reach the tunnel.
//!
//! [`enroll`] is the heart: a pod enters or leaves the mesh, each step repeatable and undoable. [`rules`] says what is
//! in the kernel. [`agent`] decides who is captured from the objects of its node ([`world`]), the same way the plugin
//! does ([`plugin`], whose other end is [`intake`]). [`handover`] brings pods to the node's tunnels, [`probes`]
//! tells those which connections are the kubelet's. On a node of a
//! cluster the agent puts the plugin ([`chained`]: the same executable under another name) in place ([`install`]).
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod belief;
pub mod chained;
pub mod config;
pub mod enroll;
pub mod handover;
pub mod install;
pub mod intake;
pub mod known;
pub mod metrics;
pub mod netns;
pub mod plugin;
pub mod probe_source;
pub mod probes;
pub mod receipt;
pub mod rules;
pub mod world;
pub mod writeback;

pub use agent::run;
pub use config::Config;
