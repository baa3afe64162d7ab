//! A small HTTP/1 server and client over TCP or unix sockets, for everything that is not the data path: readiness,
//! metrics, admin pages, the CNI plugin's socket, the one-machine mesh's control socket.
//!
//! The server is bounded in every direction: connections, time for the request's head and body, time between
//! requests, size of the body, time of the handler, time that a peer may refuse to read. A handler may answer with a
//! stream of chunks, or take the raw connection over after a `101`.

pub mod client;
mod message;
mod route;
mod server;
mod stall;

pub use message::{Chunks, Raw, Request, Response};
pub use route::Handler;
pub use server::{Limits, Server};
