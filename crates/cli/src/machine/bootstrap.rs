//! How this executable starts itself again, and the mounts of a process namespace.
//!
//! Every step into namespaces is this same executable started again, so no step inherits threads, locks or descriptors
//! of the one before. Mounts exist only in a new mount namespace, so they go with it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use serde::Serialize;

/// This executable, also after its file was replaced or hidden.
pub const SELF: &str = "/proc/self/exe";
/// Everything a machine keeps; a tmpfs of its own, seen by nobody outside.
pub const ROOT: &str = "/run/stillmesh";

/// Mounts the `/proc` of this process namespace.
pub fn mount_proc() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context("mounting a new /proc")
}

/// Mounts an empty tmpfs.
pub fn mount_tmpfs(target: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0755"))
        .with_context(|| format!("mounting a tmpfs on {target}"))
}

/// The command of one internal step, its specification as the argument.
pub fn step(name: &str, spec: &impl Serialize) -> anyhow::Result<Command> {
    let mut command = Command::new(SELF);
    command.arg0("stillmesh").args(["internal", name]).arg(serde_json::to_string(spec)?);
    Ok(command)
}
