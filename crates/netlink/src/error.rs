//! What can go wrong with netlink.

use std::io;

use stillmesh_core::{Diagnose, Fault};

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused. Nothing of the request (of the whole batch) was done.
    #[error("cannot {action}{}", .explanation.as_ref().map(|text| format!(" (the kernel says: {text})")).unwrap_or_default())]
    Refused {
        /// What was asked, with the object by name: `add rule 2 of chain output in table inet x`.
        action: String,
        /// The kernel's words, where it has some.
        explanation: Option<String>,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The socket to the kernel failed.
    #[error("netlink: cannot {action}")]
    Socket {
        /// What was being done.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer is not what the protocol says.
    #[error("netlink: the answer to {action} cannot be read")]
    Answer {
        /// What was asked.
        action: String,
    },
    /// The request cannot be encoded: a name is too long, a value does not fit its field, a batch is too large.
    #[error("cannot {action}: {problem}")]
    Invalid {
        /// What was asked.
        action: String,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// The kernel's error number, if it refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket { source, .. } => source.raw_os_error(),
            Self::Answer { .. } | Self::Invalid { .. } => None,
        }
    }

    /// Whether what was to be made is there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether what was asked for is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL))
    }
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "NLK001",
            Self::Socket { .. } => "NLK002",
            Self::Answer { .. } => "NLK003",
            Self::Invalid { .. } => "NLK004",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Internal
    }

    fn remedy(&self) -> &'static str {
        match (self, self.errno()) {
            (_, Some(libc::EPERM | libc::EACCES)) => "grant CAP_NET_ADMIN in the user namespace that owns this network",
            (Self::Refused { .. }, Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)) => {
                "check that the kernel has the nf_tables, nat, conntrack and veth modules that this needs"
            }
            (Self::Refused { .. }, _) => "see what the kernel says; another program may be changing the same objects",
            (Self::Socket { .. }, _) => "check that the kernel has netlink for this and that descriptors are left",
            (Self::Answer { .. }, _) => "report the kernel's version: its answer has a form that is not known here",
            (Self::Invalid { .. }, _) => "shorten the name or split the change, as the message says",
        }
    }
}

/// Where absence is as good as done.
pub(crate) fn absent_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}
