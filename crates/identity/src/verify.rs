//! The two checks of contract 3.1: the chain first, then the SPIFFE identities of the leaf.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use stillmesh_core::model::{Identity, TrustDomain};

use crate::peer::{identities, uri_names};
use crate::revocation::{CertificateIds, Side};
use crate::{Revocations, TlsError, TrustBundle, tls};

/// Why a certificate whose chain is good is refused all the same. Travels inside rustls's error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("the certificate carries no SPIFFE identity")]
    NoIdentity,
    #[error("the certificate is for {found}, of another trust domain than {own}")]
    ForeignTrustDomain { found: Identity, own: TrustDomain },
    #[error("the certificate is for {found:?}, not for one of {expected:?}")]
    WrongIdentity { found: Vec<String>, expected: Vec<Identity> },
}

impl From<NameError> for Error {
    fn from(problem: NameError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(problem))))
    }
}

/// The dialling side's check: one URI SAN equals one of the expected identities.
#[derive(Debug)]
pub(crate) struct ExpectIdentity {
    bundle: Arc<TrustBundle>,
    expected: Vec<Identity>,
    texts: Vec<String>,
    revocations: Arc<Revocations>,
}

impl ExpectIdentity {
    pub(crate) fn new(bundle: Arc<TrustBundle>, expected: Vec<Identity>, revocations: Arc<Revocations>) -> Self {
        let texts = expected.iter().map(ToString::to_string).collect();
        Self { bundle, expected, texts, revocations }
    }
}

impl ServerCertVerifier for ExpectIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = tls::provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.bundle.store(), intermediates, now, algorithms)?;
        unrevoked(&self.revocations, end_entity, intermediates, Side::Source)?;
        let found = uri_names(end_entity);
        if found.iter().any(|name| self.texts.contains(name)) {
            return Ok(ServerCertVerified::assertion());
        }
        if identities(end_entity).is_empty() {
            return Err(NameError::NoIdentity.into());
        }
        Err(NameError::WrongIdentity { found, expected: self.expected.clone() }.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &tls::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &tls::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The answering side's check: at least one URI SAN is an identity of the own trust domain.
#[derive(Debug)]
pub(crate) struct ExpectTrustDomain {
    chain: Arc<dyn ClientCertVerifier>,
    own: TrustDomain,
    revocations: Arc<Revocations>,
}

impl ExpectTrustDomain {
    pub(crate) fn new(
        bundle: Arc<TrustBundle>,
        own: TrustDomain,
        revocations: Arc<Revocations>,
    ) -> Result<Self, TlsError> {
        let chain = WebPkiClientVerifier::builder_with_provider(bundle.store(), tls::provider())
            .build()
            .map_err(|problem| TlsError::Setup { problem: problem.to_string() })?;
        Ok(Self { chain, own, revocations })
    }
}

impl ClientCertVerifier for ExpectTrustDomain {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every peer has one certificate: no hint is needed, and none is told to strangers.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        unrevoked(&self.revocations, end_entity, intermediates, Side::Destination)?;
        let mut found = identities(end_entity);
        if found.iter().any(|identity| identity.trust_domain == self.own) {
            return Ok(verified);
        }
        if found.is_empty() {
            return Err(NameError::NoIdentity.into());
        }
        Err(NameError::ForeignTrustDomain { found: found.swap_remove(0), own: self.own.clone() }.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn unrevoked(
    revocations: &Revocations,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    side: Side,
) -> Result<(), Error> {
    let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
    match revocations.refuses(&CertificateIds::of(&chain), side) {
        true => Err(Error::InvalidCertificate(CertificateError::Revoked)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
