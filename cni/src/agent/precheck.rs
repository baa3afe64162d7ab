//! Whether this node can hold captured pods: the rules of a pod are really put into a namespace that is thrown away.

use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_runtime::sys::netns::Netns;

use crate::rules::apply::{self, ApplyError, FoundRules};
use crate::rules::plan::{self, Facts};

/// What the node cannot do.
#[derive(Debug, thiserror::Error)]
pub enum PrecheckError {
    /// Namespaces cannot be made or entered.
    #[error("network namespaces cannot be made or entered: {0}")]
    Namespace(std::io::Error),
    /// The kernel refuses the rules.
    #[error("this node's kernel cannot hold the capture rules: {error}: {cause}")]
    Rules {
        /// What was tried.
        error: ApplyError,
        /// What the kernel said.
        cause: String,
    },
    /// The kernel made something else of them.
    #[error("this node's kernel shows other rules than it was given: {0}")]
    Different(String),
}

impl Diagnose for PrecheckError {
    fn code(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "CNI040",
            Self::Rules { .. } => "CNI041",
            Self::Different(_) => "CNI042",
        }
    }
    fn fault(&self) -> Fault {
        Fault::Config
    }
    fn remedy(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "give the agent CAP_SYS_ADMIN and CAP_NET_ADMIN",
            Self::Rules { .. } => {
                "load the kernel modules nf_tables, nft_chain_nat, nft_redir, nft_ct and nf_conntrack on this node, and \
                 give the agent CAP_NET_ADMIN; kernel 5.14 or later"
            }
            Self::Different(_) => "report this with the kernel's version",
        }
    }
}

/// Tries it. Blocks for some system calls.
pub fn check() -> Result<(), PrecheckError> {
    let netns = Netns::create().map_err(PrecheckError::Namespace)?;
    netns.run_blocking(inside).map_err(PrecheckError::Namespace)?
}

/// Whether this node's kernel can tell ports where somebody listens from others (`nft_socket`, and resets before
/// routing: kernel 5.9). Blocks for some system calls.
pub fn socket_probes() -> bool {
    let try_it = || apply::install(&plan::capture(&Facts { socket_probes: vec![1], ..Facts::default() })).is_ok();
    let lo = || apply::loopback_up().is_ok();
    Netns::create().and_then(|netns| netns.run_blocking(move || lo() && try_it())).unwrap_or(false)
}

fn inside() -> Result<(), PrecheckError> {
    let facts = Facts::default();
    let refused = |error: ApplyError| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        PrecheckError::Rules { error, cause }
    };
    apply::loopback_up().map_err(refused)?;
    apply::raise_guard(&facts).map_err(refused)?;
    let found = apply::inspect(&facts).map_err(refused)?;
    let facts = Facts { ipv6: found.ipv6, ..facts };
    apply::install(&plan::capture(&facts)).map_err(refused)?;
    apply::lower_guard().map_err(refused)?;
    let differences = apply::differences(&plan::capture(&facts)).map_err(refused)?;
    if !differences.is_empty() {
        return Err(PrecheckError::Different(differences.join("; ")));
    }
    let found = apply::inspect(&facts).map_err(refused)?;
    if found.guard || found.rules != FoundRules::Capturing {
        return Err(PrecheckError::Different(format!("{found:?}")));
    }
    Ok(())
}
