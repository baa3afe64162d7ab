//! The roots that one side trusts.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use stillmesh_core::diagnose::{Diagnose, Fault};

/// How many roots one bundle may hold; more is a mistake or an attack.
pub const MAX_ROOTS: usize = 64;

/// One or several root certificates. Immutable; share it by `Arc`.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
}

impl TrustBundle {
    /// Reads concatenated PEM certificates. Anything in it that is not a certificate is refused.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        let mut roots = Vec::new();
        for root in CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_ROOTS + 1) {
            roots.push(root.map_err(|problem| BundleError::Pem { problem: problem.to_string() })?);
        }
        Self::from_der(roots)
    }

    /// Takes parsed roots.
    pub fn from_der(roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        if roots.len() > MAX_ROOTS {
            return Err(BundleError::TooMany);
        }
        let mut store = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            store.add(root.clone()).map_err(|source| BundleError::Root { index, source })?;
        }
        Ok(Self { roots, store: Arc::new(store) })
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as rustls wants them.
    pub fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }
}

/// Why a text is not a trust bundle.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BundleError {
    /// Not PEM.
    #[error("the trust bundle is not PEM: {problem}")]
    Pem {
        /// What is wrong.
        problem: String,
    },
    /// Nothing in it.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// More than 64 certificates.
    #[error("the trust bundle holds more than {MAX_ROOTS} certificates")]
    TooMany,
    /// A certificate that cannot be a root.
    #[error("certificate {index} of the trust bundle cannot be used as a root")]
    Root {
        /// Its place, from 0.
        index: usize,
        /// What rustls says.
        #[source]
        source: rustls::Error,
    },
}

impl Diagnose for BundleError {
    fn code(&self) -> &'static str {
        match self {
            Self::Pem { .. } => "IDT001",
            Self::Empty => "IDT002",
            Self::TooMany => "IDT003",
            Self::Root { .. } => "IDT004",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Config
    }

    fn remedy(&self) -> &'static str {
        "check the root certificates that the control plane distributes: concatenated PEM of CA certificates"
    }
}
