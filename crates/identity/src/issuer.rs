//! The CA built into the control plane: a self-signed ECDSA P-256 root, kept in a directory, that certifies
//! identities which the caller has authenticated.
//!
//! Nothing of a CSR but its key reaches a certificate: names, usages and times are rebuilt here (contract 6.1).

mod revoke;
mod store;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::{Identity, TrustDomain};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

pub use store::IssuerError;

use crate::TrustBundle;

/// The life of a root.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The life of a leaf when none is asked for (contract 6.1, `DEFAULT_WORKLOAD_CERT_TTL`).
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest life of a leaf (contract 6.1, `MAX_WORKLOAD_CERT_TTL`).
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How far back a certificate's life begins, for clocks that are behind (contract 6.1).
pub const BACKDATE: Duration = Duration::from_secs(2 * 60);

/// The longest CSR that is read.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// A certificate authority. Immutable; share it by `Arc`.
pub struct Issuer {
    trust_domain: TrustDomain,
    authority: rcgen::Issuer<'static, KeyPair>,
    root_pem: String,
    bundle: TrustBundle,
}

/// A certificate for a server of the control plane, and its key.
#[derive(Debug)]
pub struct Serving {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it expires; have a new one made before.
    pub not_after: SystemTime,
}

impl Issuer {
    /// Loads the CA kept in `dir`, or makes one and saves it there. See [`IssuerError`] for what is refused.
    pub fn load_or_create(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, IssuerError> {
        store::load_or_create(dir, trust_domain, now)
    }

    /// A new CA with a root of its own, kept nowhere.
    pub fn create(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, IssuerError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssuerError::crypto)?;
        Self::create_with(key, trust_domain, now)
    }

    fn create_with(key: KeyPair, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, IssuerError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        // The name differs from root to root, so that a stranger's certificate is not taken for a damaged one.
        let mark: String = params.key_identifier(&key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("Stillmesh root {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ROOT_LIFE).into();
        let root_pem = params.self_signed(&key).map_err(IssuerError::crypto)?.pem();
        Self::from_parts(root_pem, key, trust_domain)
    }

    /// A CA from its certificate and key, both PEM. They must belong together.
    pub fn from_pem(cert_pem: &str, key_pem: &str, trust_domain: &TrustDomain) -> Result<Self, IssuerError> {
        let key = KeyPair::from_pem(key_pem).map_err(|problem| IssuerError::Key { problem: problem.to_string() })?;
        Self::from_parts(cert_pem.to_owned(), key, trust_domain)
    }

    fn from_parts(root_pem: String, key: KeyPair, trust_domain: &TrustDomain) -> Result<Self, IssuerError> {
        let bundle = TrustBundle::from_pem(&root_pem).map_err(IssuerError::Root)?;
        let [root] = bundle.roots() else { return Err(IssuerError::NotOneRoot { found: bundle.roots().len() }) };
        let unreadable = |problem: String| IssuerError::Certificate { problem };
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(root)
            .map_err(|problem| unreadable(problem.to_string()))?;
        if !parsed.is_ca() {
            return Err(unreadable("it is not a CA's".to_owned()));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(IssuerError::Mismatch);
        }
        let authority =
            rcgen::Issuer::from_ca_cert_der(root, key).map_err(|problem| unreadable(problem.to_string()))?;
        Ok(Self { trust_domain: trust_domain.clone(), authority, root_pem, bundle })
    }

    /// The root, PEM: what everybody who trusts this CA is given.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root as a bundle.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The trust domain whose identities it certifies.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Certifies the key of a CSR for `identity`, which the caller has authenticated. Answers the leaf and the root,
    /// PEM. `ttl`: none or zero is [`DEFAULT_TTL`], more than [`MAX_TTL`] is refused.
    pub fn issue(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Vec<String>, IssueError> {
        if identity.trust_domain != self.trust_domain {
            return Err(IssueError::ForeignTrustDomain { identity: identity.clone(), own: self.trust_domain.clone() });
        }
        let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL);
        if ttl > MAX_TTL {
            return Err(IssueError::TooLong { ttl });
        }
        let key = requested_key(csr_pem)?;
        let name = Ia5String::try_from(identity.to_string()).map_err(IssueError::crypto)?;
        let mut params = leaf_params(now, ttl);
        params.subject_alt_names = vec![SanType::URI(name)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.authority).map_err(IssueError::crypto)?;
        Ok(vec![leaf.pem(), self.root_pem.clone()])
    }

    /// A certificate for a server of the control plane under these DNS names and IP addresses, with a new key.
    pub fn serving(&self, names: &[String], ttl: Duration, now: SystemTime) -> Result<Serving, IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssueError::crypto)?;
        let mut params = leaf_params(now, ttl);
        for name in names {
            let name = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(IssueError::crypto)?),
            };
            params.subject_alt_names.push(name);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.authority).map_err(IssueError::crypto)?;
        Ok(Serving {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after: now + ttl,
        })
    }

    /// Signs whatever it is given: for tests of those who must refuse it.
    #[cfg(any(test, feature = "fixtures"))]
    pub(crate) fn forge(
        &self,
        params: &CertificateParams,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssueError::crypto)?;
        let leaf = params.signed_by(&key, &self.authority).map_err(IssueError::crypto)?;
        Ok((leaf.der().clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }

    fn key_pem(&self) -> String {
        self.authority.key().serialize_pem()
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// What all leaves have in common (contract 6.1).
fn leaf_params(now: SystemTime, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    params
}

/// The key of a CSR whose signature proves that its sender holds the private half.
fn requested_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, IssueError> {
    let bad = |problem: &dyn std::fmt::Display| IssueError::BadCsr { problem: problem.to_string() };
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(bad(&format_args!("longer than {MAX_CSR_BYTES} bytes")));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|problem| bad(&problem))?;
    CertificateSigningRequestParams::from_der(&der).map_err(|problem| bad(&problem))?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|problem| bad(&problem))?;
    let key = request.certification_request_info.subject_pki.raw;
    SubjectPublicKeyInfo::from_der(key).map_err(|problem| bad(&problem))
}

/// Why no certificate is issued.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IssueError {
    /// The CSR is unusable.
    #[error("the certificate signing request is not accepted: {problem}")]
    BadCsr {
        /// What is wrong.
        problem: String,
    },
    /// A life beyond [`MAX_TTL`].
    #[error("a certificate for {ttl:?} was asked for; at most {MAX_TTL:?} is given")]
    TooLong {
        /// What was asked for.
        ttl: Duration,
    },
    /// Not an identity of this CA's trust domain.
    #[error("{identity} is not of the trust domain {own}")]
    ForeignTrustDomain {
        /// For whom.
        identity: Identity,
        /// The CA's own.
        own: TrustDomain,
    },
    /// Signing failed.
    #[error("the certificate could not be signed: {problem}")]
    Crypto {
        /// What the library says.
        problem: String,
    },
}

impl IssueError {
    fn crypto(problem: impl std::fmt::Display) -> Self {
        Self::Crypto { problem: problem.to_string() }
    }
}

impl Diagnose for IssueError {
    fn code(&self) -> &'static str {
        match self {
            Self::BadCsr { .. } => "IDT040",
            Self::TooLong { .. } => "IDT041",
            Self::ForeignTrustDomain { .. } => "IDT042",
            Self::Crypto { .. } => "IDT043",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Crypto { .. } => Fault::Internal,
            _ => Fault::Downstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::BadCsr { .. } => "send a PEM CSR with an ECDSA P-256 key and a valid signature",
            Self::TooLong { .. } => "ask for a shorter life (SECRET_TTL)",
            Self::ForeignTrustDomain { .. } => "check trustDomain in the mesh configuration of both sides",
            Self::Crypto { .. } => "report this: the CA could not sign",
        }
    }
}

#[cfg(test)]
mod tests;
