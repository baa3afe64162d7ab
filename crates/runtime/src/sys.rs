//! System calls: everything that needs `unsafe`, wrapped so that nothing else does.
#![expect(unsafe_code, reason = "this module is where the project keeps it; each block says why it is sound")]

pub mod fds;
pub mod inotify;
pub mod memory;
pub mod netns;
pub mod packet;
pub mod pipe;
pub mod process;
pub mod socket;
pub mod unix;
