//! What a peer's certificate says: its SPIFFE identities and its expiry. Bytes come from the peer and never panic.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use stillmesh_core::model::Identity;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// How many SANs of one certificate are looked at; those beyond do not count.
pub const MAX_NAMES: usize = 64;

/// The identity of the peer that sent this chain: the leaf's first URI SAN that is a SPIFFE identity (contract 3.1).
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<Identity> {
    identities(chain.first()?).into_iter().next()
}

/// When the first certificate of a chain expires.
pub fn expiry(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    system_time(certificate.validity().not_after.timestamp())
}

/// When a certificate's life begins.
pub(crate) fn begin(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    system_time(certificate.validity().not_before.timestamp())
}

/// All SPIFFE identities of a certificate, in order. Unreadable certificates have none.
pub fn identities(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    uri_names(certificate).iter().filter_map(|uri| uri.parse().ok()).collect()
}

/// All URI SANs of a certificate, in order.
pub(crate) fn uri_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().take(MAX_NAMES).filter_map(uri).collect()
}

/// Seconds since 1970 as a time; `None` for what lies before.
pub(crate) fn system_time(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}
