//! The last hop: connects inside the pod's namespace and moves bytes until both sides end.

pub mod connect;
pub mod copy;
pub mod proxy_header;
pub mod sockets;
