//! Server side.
