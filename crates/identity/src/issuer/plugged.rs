//! A signing certificate that somebody else made: an intermediate of an organisation's own CA (contract 6.4).
//!
//! What is plugged in is tried before it is used: a certificate is signed with it and verified as every node will.

use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use stillmesh_core::model::TrustDomain;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{Issuer, IssuerError};
use crate::{TrustBundle, peer, tls};

/// How many certificates one chain may hold.
const MAX_CHAIN: usize = 16;

/// What is plugged in, all PEM.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// The signing certificate; others after it are taken for intermediates.
    pub certificate: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Intermediates between it and a root; may be empty, may repeat the certificate and the root.
    pub chain: &'a str,
    /// The roots that are distributed.
    pub roots: &'a str,
}

impl Issuer {
    /// A CA that signs with what is plugged in. Refused unless a certificate that it signs now is good for everybody
    /// who has its roots.
    pub fn plugged(material: Material<'_>, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, IssuerError> {
        let key =
            KeyPair::from_pem(material.key).map_err(|problem| IssuerError::Key { problem: problem.to_string() })?;
        let unreadable = |problem: String| IssuerError::Certificate { problem };
        let bundle = TrustBundle::from_pem(material.roots).map_err(IssuerError::Root)?;
        let mut certificates = Vec::new();
        for text in [material.certificate, material.chain] {
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let certificate = certificate.map_err(|problem| unreadable(problem.to_string()))?;
                if certificates.len() == MAX_CHAIN {
                    return Err(unreadable(format!("more than {MAX_CHAIN} certificates")));
                }
                if !certificates.contains(&certificate) {
                    certificates.push(certificate);
                }
            }
            if certificates.is_empty() {
                return Err(unreadable("it holds no certificate".to_owned()));
            }
        }
        let signing = certificates.first().ok_or_else(|| unreadable("it holds no certificate".to_owned()))?.clone();
        let (_, parsed) = X509Certificate::from_der(&signing).map_err(|problem| unreadable(problem.to_string()))?;
        if !parsed.is_ca() {
            return Err(unreadable("it is not a CA's".to_owned()));
        }
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(IssuerError::Mismatch);
        }
        certificates.retain(|certificate| !bundle.roots().contains(certificate));
        let expiries = certificates.iter().chain([&signing]).map(|one| peer::expiry(std::slice::from_ref(one)));
        let not_after = expiries.min().flatten().ok_or_else(|| unreadable("it has no expiry".to_owned()))?;
        let authority =
            rcgen::Issuer::from_ca_cert_der(&signing, key).map_err(|problem| unreadable(problem.to_string()))?;
        let root_pem = bundle.roots().iter().map(super::pem).collect();
        let trust_domain = trust_domain.clone();
        let issuer = Self { trust_domain, authority, intermediates: certificates, root_pem, bundle, not_after };
        issuer.prove(now)?;
        Ok(issuer)
    }

    /// Signs a certificate and verifies it as a node would.
    fn prove(&self, now: SystemTime) -> Result<(), IssuerError> {
        let bad = |problem: String| IssuerError::Chain { problem };
        let trial = self
            .serving(&["trial.invalid".to_owned()], Duration::from_secs(60), now)
            .map_err(|problem| bad(problem.to_string()))?;
        let [leaf, intermediates @ ..] = trial.chain.as_slice() else {
            return Err(bad("nothing was signed".to_owned()));
        };
        let parsed = ParsedCertificate::try_from(leaf).map_err(|problem| bad(problem.to_string()))?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let algorithms = tls::provider().signature_verification_algorithms.all;
        let store = self.bundle.store();
        let at = UnixTime::since_unix_epoch(since);
        verify_server_cert_signed_by_trust_anchor(&parsed, &store, intermediates, at, algorithms)
            .map_err(|problem| bad(problem.to_string()))
    }
}
