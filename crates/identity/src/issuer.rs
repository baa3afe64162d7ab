//! The CA built into the control plane: a self-signed ECDSA P-256 root of its own, or a signing certificate that is
//! plugged in. It certifies identities which the caller has authenticated.
//!
//! Nothing of a CSR but its key reaches a certificate: names, usages and times are rebuilt here (contract 6.1).

mod plugged;
mod revoke;
pub mod rotation;
mod store;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
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

pub use plugged::Material;
pub use store::IssuerError;

use crate::{TrustBundle, peer};

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
    /// From the signing certificate towards a root; empty where a root signs.
    intermediates: Vec<CertificateDer<'static>>,
    root_pem: String,
    bundle: TrustBundle,
    /// When the signing certificate, or one above it, expires: no leaf lives longer.
    not_after: SystemTime,
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
        Self::create_for(trust_domain, ROOT_LIFE, now)
    }

    fn create_for(trust_domain: &TrustDomain, life: Duration, now: SystemTime) -> Result<Self, IssuerError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssuerError::crypto)?;
        Self::create_with(key, trust_domain, life, now)
    }

    fn create_with(
        key: KeyPair,
        trust_domain: &TrustDomain,
        life: Duration,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        // The name differs from root to root, so that a stranger's certificate is not taken for a damaged one.
        let mark: String = params.key_identifier(&key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("Stillmesh root {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + life).into();
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
        let not_after = peer::expiry(bundle.roots()).ok_or_else(|| unreadable("it has no expiry".to_owned()))?;
        let authority =
            rcgen::Issuer::from_ca_cert_der(root, key).map_err(|problem| unreadable(problem.to_string()))?;
        let trust_domain = trust_domain.clone();
        Ok(Self { trust_domain, authority, intermediates: Vec::new(), root_pem, bundle, not_after })
    }

    /// The same CA, with more roots in what it distributes: PEM, to which its own need not belong.
    pub fn distributing(mut self, roots_pem: &str) -> Result<Self, IssuerError> {
        let mut all = self.bundle.roots().to_vec();
        for root in TrustBundle::from_pem(roots_pem).map_err(IssuerError::Root)?.roots() {
            if !all.contains(root) {
                self.root_pem.push_str(&pem(root));
                all.push(root.clone());
            }
        }
        self.bundle = TrustBundle::from_der(all).map_err(IssuerError::Root)?;
        Ok(self)
    }

    /// Whether another signs with the same key and distributes the same.
    pub fn same(&self, other: &Self) -> bool {
        self.authority.key().subject_public_key_info() == other.authority.key().subject_public_key_info()
            && self.intermediates == other.intermediates
            && self.root_pem == other.root_pem
            && self.not_after == other.not_after
    }

    /// When the signing certificate, or one above it, expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The roots, PEM: what everybody who trusts this CA is given.
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
        let (mut params, _) = self.leaf_params(now, ttl)?;
        let name = Ia5String::try_from(identity.to_string()).map_err(IssueError::crypto)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.authority).map_err(IssueError::crypto)?;
        let intermediates = self.intermediates.iter().map(pem);
        Ok([leaf.pem()].into_iter().chain(intermediates).chain([self.root_pem.clone()]).collect())
    }

    /// A certificate for a server of the control plane under these DNS names and IP addresses, with a new key.
    pub fn serving(&self, names: &[String], ttl: Duration, now: SystemTime) -> Result<Serving, IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssueError::crypto)?;
        let (mut params, not_after) = self.leaf_params(now, ttl)?;
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
            chain: [leaf.der().clone()].into_iter().chain(self.intermediates.iter().cloned()).collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after,
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

    /// The private key, PEM: for whoever keeps it.
    fn key_pem(&self) -> String {
        self.authority.key().serialize_pem()
    }

    /// What all leaves have in common (contract 6.1), and when they expire: never after what signs them.
    fn leaf_params(&self, now: SystemTime, ttl: Duration) -> Result<(CertificateParams, SystemTime), IssueError> {
        let not_after = (now + ttl).min(self.not_after);
        if not_after <= now {
            return Err(IssueError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        Ok((params, not_after))
    }
}

/// A certificate as PEM.
pub(crate) fn pem(der: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
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
    /// The CA's own certificate has expired.
    #[error("the CA's certificate has expired")]
    Expired,
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
            Self::Expired => "IDT044",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Crypto { .. } => Fault::Internal,
            Self::Expired => Fault::Config,
            _ => Fault::Downstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::BadCsr { .. } => "send a PEM CSR with an ECDSA P-256 key and a valid signature",
            Self::TooLong { .. } => "ask for a shorter life (SECRET_TTL)",
            Self::ForeignTrustDomain { .. } => "check trustDomain in the mesh configuration of both sides",
            Self::Expired => "renew the signing certificate that is plugged in",
            Self::Crypto { .. } => "report this: the CA could not sign",
        }
    }
}

#[cfg(test)]
mod tests;
