//! What can be typed after `stillmesh`. Nothing here acts.

use clap::{Args, Parser, Subcommand};

use crate::capture::Capture;
use crate::shop::Shop;

/// A service mesh without sidecars.
#[derive(Debug, Parser)]
#[command(name = "stillmesh", version, about, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The node tunnel (configured by environment variables)
    Ztunnel,
    /// The controller: configuration and certificates for every node (configured by environment variables)
    Controller {
        /// Flags that stand for environment variables; `-- --help` lists them
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// The node agent: puts pods into the mesh (configured by environment variables)
    Agent,
    /// The cluster DNS of a mesh on this machine (configured by environment variables)
    ClusterDns,
    /// A HTTP and TCP server that answers with its own name, what it was sent, and by whom
    Echo(Echo),
    /// Try every operation that a mesh on this machine needs, and say what to change where one is refused
    Precheck(Precheck),
    /// Small real services to try things out with
    Shop(Shop),
    /// Watch an interface: what an eavesdropper would see
    Capture(Capture),
    /// Internal steps; each is run by the one before it
    #[command(name = "internal", hide = true, subcommand)]
    Internal(Internal),
}

/// `stillmesh precheck`.
#[derive(Debug, Args)]
pub(crate) struct Precheck {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Steps that the command runs of itself. Their specifications are JSON written by the step before.
#[derive(Debug, Subcommand)]
pub(crate) enum Internal {
    /// Holds the namespaces of a pod.
    Sandbox {
        /// Specification.
        spec: String,
    },
    /// Enters the namespaces of a pod and starts a container in it.
    Container {
        /// Specification.
        spec: String,
    },
    /// Process 1 of a container.
    Init {
        /// Specification.
        spec: String,
    },
    /// Becomes the program of a container.
    Run {
        /// Specification.
        spec: String,
    },
    /// One part of the pre-check, in a child of its own.
    Probe {
        /// Which part.
        what: String,
    },
}

/// `stillmesh echo`.
#[derive(Debug, Clone, Args)]
pub struct Echo {
    /// Ports to listen on, HTTP and plain TCP on each
    #[arg(long = "port", short, value_delimiter = ',', default_value = "8080", env = "ECHO_PORTS")]
    pub ports: Vec<u16>,
    /// Ports that speak first: a greeting line is sent before anything is read
    #[arg(long = "server-first-port", value_delimiter = ',', env = "ECHO_SERVER_FIRST_PORTS")]
    pub server_first_ports: Vec<u16>,
    /// Name to answer with; the host name when absent
    #[arg(long, env = "ECHO_NAME")]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
