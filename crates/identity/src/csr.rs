//! A new key and the request to have it certified.

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use stillmesh_core::model::Identity;

/// A key made here and its request.
pub(crate) struct Request {
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) csr_pem: String,
}

/// Makes an ECDSA P-256 key and a CSR with an empty subject and one critical URI SAN (contract 6.1).
pub(crate) fn request(identity: &Identity) -> Result<Request, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
    let csr_pem = params.serialize_request(&key)?.pem()?;
    Ok(Request { key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())), csr_pem })
}
