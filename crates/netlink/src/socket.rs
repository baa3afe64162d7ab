//! The socket to the kernel.
