//! Lists of revoked certificates, as text.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// How many lists one text may hold.
const MAX_LISTS: usize = 64;

/// Whether a text holds nothing but readable lists, PEM; at least one. The error says what is wrong.
pub fn check(pem: &[u8]) -> Result<(), String> {
    let mut lists = 0;
    for list in CertificateRevocationListDer::pem_slice_iter(pem) {
        let list = list.map_err(|problem| format!("not PEM: {problem}"))?;
        CertificateRevocationList::from_der(&list)
            .map_err(|problem| format!("list {lists} cannot be read: {problem}"))?;
        lists += 1;
        if lists > MAX_LISTS {
            return Err(format!("more than {MAX_LISTS} lists"));
        }
    }
    if lists == 0 { Err("it holds no list (X509 CRL, PEM)".to_owned()) } else { Ok(()) }
}
