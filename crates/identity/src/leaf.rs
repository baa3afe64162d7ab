//! A certificate with its key: what one identity shows in a handshake.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::Identity;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::peer::{system_time, uri_names};
use crate::{BundleError, Revocations, TrustBundle, tls};

/// How many certificates one answer of a CA may hold.
const MAX_CHAIN: usize = 32;

/// A usable certificate of one identity, its key, and the roots that its issuer trusts. Immutable.
pub struct Leaf {
    identity: Identity,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    certified: Arc<CertifiedKey>,
    bundle: Arc<TrustBundle>,
    revocations: Arc<Revocations>,
    server: OnceLock<Arc<ServerConfig>>,
}

impl Leaf {
    /// Checks what a CA answered to a CSR made with `key`: PEM entries, the leaf first, the roots last.
    ///
    /// The leaf must carry exactly `identity`, belong to `key`, and chain to the roots at `now` (contract 6.1).
    pub fn from_signed(
        key: PrivateKeyDer<'static>,
        entries: &[String],
        identity: &Identity,
        now: SystemTime,
    ) -> Result<Self, LeafError> {
        let [chain_entries @ .., root_entry] = entries else { return Err(LeafError::NoRoot) };
        let mut chain = Vec::new();
        for entry in chain_entries {
            for certificate in CertificateDer::pem_slice_iter(entry.as_bytes()) {
                chain.push(certificate.map_err(|problem| LeafError::Unreadable { problem: problem.to_string() })?);
                if chain.len() > MAX_CHAIN {
                    return Err(LeafError::Unreadable { problem: format!("more than {MAX_CHAIN} certificates") });
                }
            }
        }
        let bundle = Arc::new(TrustBundle::from_pem(root_entry)?);
        let first = chain.first().ok_or(LeafError::NoRoot)?;
        let facts = Facts::read(first)?;
        if facts.names != [identity.to_string()] {
            return Err(LeafError::WrongIdentity { asked: identity.clone(), found: facts.names });
        }
        verify_chain(first, &chain, &bundle, now)?;
        Self::assemble(facts, chain, key, bundle, identity)
    }

    /// A leaf from parts that were checked.
    fn assemble(
        facts: Facts,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
        identity: &Identity,
    ) -> Result<Self, LeafError> {
        let key = tls::provider().key_provider.load_private_key(key).map_err(LeafError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(source) => return Err(LeafError::Key(source)),
        }
        Ok(Self {
            identity: identity.clone(),
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
            certified: Arc::new(certified),
            bundle,
            revocations: Arc::default(),
            server: OnceLock::new(),
        })
    }

    /// A leaf that may lie: what it shows is not checked against `identity` or the clock.
    #[cfg(any(test, feature = "fixtures"))]
    pub(crate) fn unchecked(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
        identity: &Identity,
    ) -> Result<Self, LeafError> {
        let facts = Facts::read(chain.first().ok_or(LeafError::NoRoot)?)?;
        Self::assemble(facts, chain, key, bundle, identity)
    }

    /// The same certificate in the hands of somebody who trusts other roots.
    #[cfg(any(test, feature = "fixtures"))]
    pub fn trusting(&self, bundle: Arc<TrustBundle>) -> Self {
        Self {
            identity: self.identity.clone(),
            serial: self.serial.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            certified: self.certified(),
            bundle,
            revocations: Arc::clone(&self.revocations),
            server: OnceLock::new(),
        }
    }

    /// The same, in the hands of somebody who knows of revoked certificates.
    #[must_use]
    pub fn minding(mut self, revocations: Arc<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    /// What its holder knows to be revoked.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its serial number, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When its life began.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it may be used at `now`.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The certificates that are shown to peers, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The roots that came with it: what its holder trusts.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// The server configuration of this leaf, made once.
    pub(crate) fn server<E>(
        &self,
        make: impl FnOnce() -> Result<Arc<ServerConfig>, E>,
    ) -> Result<Arc<ServerConfig>, E> {
        match self.server.get() {
            Some(made) => Ok(Arc::clone(made)),
            None => make().map(|made| Arc::clone(self.server.get_or_init(|| made))),
        }
    }
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf").field("identity", &self.identity).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its names that are URIs.
    pub names: Vec<String>,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When its life begins.
    pub not_before: SystemTime,
    /// When it expires.
    pub not_after: SystemTime,
}

impl Facts {
    /// Reads a certificate; nothing is checked. Errors: it is none.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let unreadable = |problem: &dyn std::fmt::Display| LeafError::Unreadable { problem: problem.to_string() };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|problem| unreadable(&problem))?;
        let validity = parsed.validity();
        let time = |seconds| system_time(seconds).ok_or_else(|| unreadable(&"a validity before 1970"));
        Ok(Self {
            names: uri_names(certificate),
            serial: parsed.serial.to_str_radix(16),
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), LeafError> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let parsed = ParsedCertificate::try_from(leaf).map_err(LeafError::Chain)?;
    verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &bundle.store(),
        chain.get(1..).unwrap_or_default(),
        UnixTime::since_unix_epoch(since_epoch),
        tls::provider().signature_verification_algorithms.all,
    )
    .map_err(LeafError::Chain)
}

/// Why what a CA answered cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeafError {
    /// Fewer than two entries, or no certificate before the roots.
    #[error("the CA answered without a leaf or without a root")]
    NoRoot,
    /// The roots cannot be used.
    #[error("the roots that the CA answered cannot be used")]
    Bundle(#[from] BundleError),
    /// A certificate that cannot be read.
    #[error("the CA answered a certificate that cannot be read: {problem}")]
    Unreadable {
        /// What is wrong.
        problem: String,
    },
    /// Not the identity that was asked for.
    #[error("the CA answered a certificate for {found:?} when {asked} was asked for")]
    WrongIdentity {
        /// Who was asked for.
        asked: Identity,
        /// The URI SANs that came.
        found: Vec<String>,
    },
    /// Does not chain to the roots that came with it, or is not valid now.
    #[error("the CA answered a certificate that its own roots do not vouch for now")]
    Chain(#[source] rustls::Error),
    /// The key is not the certificate's.
    #[error("the CA answered a certificate of another key")]
    Key(#[source] rustls::Error),
}

impl Diagnose for LeafError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoRoot => "IDT010",
            Self::Bundle(inner) => inner.code(),
            Self::Unreadable { .. } => "IDT011",
            Self::WrongIdentity { .. } => "IDT012",
            Self::Chain(_) => "IDT013",
            Self::Key(_) => "IDT014",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Upstream
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Chain(_) => "compare the clocks of this node and of the CA, then the CA's root with its certificates",
            _ => "check that CA_ADDRESS names the mesh's CA and that its certificates and roots belong together",
        }
    }
}
