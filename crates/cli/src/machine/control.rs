//! Where the other commands find a running mesh: an abstract unix socket in the host's network namespace.
//!
//! `stillmesh/<uid>/<name>` speaks HTTP: what runs, logs, commands to run in pods (the connection is then taken over and
//! carries the caller's standard descriptors). Abstract sockets leave no file and vanish with their owner.
//! `up` makes it before it enters namespaces, so its credentials are the user's own: a client refuses a socket
//! that another user has put there.

use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use anyhow::{Context, bail, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::getuid;
use serde_json::Value;
use stillmesh_runtime::admin::client::{Client, Endpoint};

use crate::cluster::args::Access;
use crate::output::note;

/// Largest list of objects of a running mesh, in bytes.
const LIST_BYTES: usize = 256 << 20;

/// Takes the name. Errors: a mesh of this name runs already.
pub fn bind(name: &str) -> anyhow::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(socket_name(name))?;
    UnixListener::bind_addr(&address).with_context(|| {
        format!(
            "a mesh named {name:?} already runs; end it with `stillmesh down --name {name}`, or choose another --name"
        )
    })
}

/// A client of a running mesh. The error names the meshes that do run.
pub fn client(name: &str) -> anyhow::Result<Client> {
    let address = SocketAddr::from_abstract_name(socket_name(name))?;
    let stream = UnixStream::connect_addr(&address).map_err(|error| absent(name, &error))?;
    check_peer(&stream)?;
    Ok(Client::new(Endpoint::Abstract(socket_name(name))))
}

/// Objects of a kind of a running mesh, in a namespace or, where that is empty, everywhere.
pub(crate) async fn objects(mesh: &str, kind: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let query = if namespace.is_empty() { String::new() } else { format!("?namespace={namespace}") };
    let answer = client(mesh)?.body_bytes(LIST_BYTES).get(&format!("/objects/{kind}{query}")).await?;
    ensure!(answer.status.is_success(), "{}", answer.text().trim());
    let listed: Value = serde_json::from_slice(&answer.body)?;
    Ok(listed.as_array().cloned().unwrap_or_default())
}

/// Names of the meshes that run for this user.
pub fn running() -> Vec<String> {
    std::fs::read_to_string("/proc/net/unix").map(|table| names(&table, getuid().as_raw())).unwrap_or_default()
}

/// The mesh on this machine that a command means: the named one, or, where no cluster is chosen, one that runs.
pub(crate) fn here(name: Option<&str>, access: &Access) -> Option<String> {
    if name.is_some() || access.chosen() {
        return name.map(str::to_owned);
    }
    let running = running();
    let mesh = running.iter().find(|name| *name == "default").or(running.first())?;
    note(&format!("in the mesh {mesh:?} on this machine; --kubeconfig or --context mean a cluster"));
    Some(mesh.clone())
}

/// Whether a peer of the runner's sockets may command it: the user whose mesh it is. Inside a user namespace that
/// is uid 0, and everybody else, root included, is no number at all.
pub fn may_command(uid: u32) -> bool {
    uid == 0
}

fn names(table: &str, uid: u32) -> Vec<String> {
    let prefix = format!("@stillmesh/{uid}/");
    let mut names: Vec<String> = table
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.strip_prefix(&prefix))
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn absent(name: &str, error: &io::Error) -> anyhow::Error {
    let others = running();
    let found = match others.as_slice() {
        [] => "no mesh runs for this user; start one with `stillmesh up DIR`".to_owned(),
        [one] => format!("one named {one:?} does: add `--name {one}`"),
        many => format!("these do: {}", many.join(", ")),
    };
    if error.kind() == io::ErrorKind::ConnectionRefused {
        anyhow::anyhow!("no mesh named {name:?} runs; {found}")
    } else {
        anyhow::anyhow!("the mesh named {name:?} cannot be reached: {error}; {found}")
    }
}

/// Refuses a socket that another user has put where the mesh's is expected. To be asked of each connection that gets
/// something of value.
pub fn check_peer(socket: &impl AsFd) -> anyhow::Result<()> {
    let owner = getsockopt(socket, PeerCredentials)?.uid();
    if owner != getuid().as_raw() && owner != 0 {
        bail!("the socket of this mesh belongs to user {owner}, not to you; it is not used");
    }
    Ok(())
}

fn socket_name(name: &str) -> String {
    format!("stillmesh/{}/{name}", getuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_meshes_are_read_from_the_kernels_table() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 1 @stillmesh/7/shop\n\
            0: 00000002 00000000 00010000 0005 01 2 @stillmesh/7/shop/exec\n\
            0: 00000002 00000000 00010000 0001 01 3 @stillmesh/70/other\n\
            0: 00000002 00000000 00010000 0001 01 4 /run/x\n\
            0: 00000003 00000000 00000000 0001 03 5 @stillmesh/7/shop\n\
            0: 00000003 00000000 00000000 0001 03 5\n\
            0: 00000002 00000000 00010000 0001 01 6 @stillmesh/7/another\n";
        assert_eq!(names(table, 7), ["another", "shop"]);
        assert!(names(table, 8).is_empty());
    }
}
