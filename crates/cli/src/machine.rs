//! The one-machine mesh: what its parts are made of. The runner that joins them is not there yet.

pub mod bootstrap;
pub mod control;
pub mod deploy;
pub mod init;
pub mod ipam;
pub mod network;
pub mod pods;
pub mod precheck;
pub mod proxy;
