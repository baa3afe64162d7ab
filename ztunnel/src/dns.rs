//! The DNS proxy of captured pods (contract 4.6): names of the mesh are answered here, everything else is passed on
//! to ztunnel's own resolvers over marked sockets in the pod's namespace.
//!
//! [`answer`] decides and is pure; [`message`] turns bytes into questions and answers into bytes; [`forward`] and
//! [`server`] move them.

pub mod answer;
pub mod forward;
pub mod message;
pub mod resolv;
pub mod server;
