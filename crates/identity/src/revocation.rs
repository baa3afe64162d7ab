//! Which certificates are revoked, as the operator's file of CRLs says (contract 3.1): refused in handshakes, and told
//! to those who hold connections so that they close them. A certificate that no list speaks of is fine.
//!
//! The file is the operator's own, like the roots: its lists are taken at their word, by issuer's name and serial number.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use stillmesh_core::diagnose::{Diagnose, Fault};
use tokio::sync::watch;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// How many revoked certificates one file may name; more is a mistake or an attack.
pub const MAX_REVOKED: usize = 1 << 20;

/// Which end found a revoked certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Source,
    /// The one that answered.
    Destination,
}

/// The certificates of one chain, by issuer and serial number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateIds(Vec<Id>);

type Id = (Box<[u8]>, Box<[u8]>);

impl CertificateIds {
    /// Of the chain that a peer showed. What cannot be read is left out: it cannot be verified either.
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        let id = |certificate: &CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            Some((parsed.issuer().as_raw().into(), parsed.raw_serial().into()))
        };
        Self(chain.iter().filter_map(id).collect())
    }
}

/// What is revoked now. Share it by `Arc`.
#[derive(Debug)]
pub struct Revocations {
    revoked: RwLock<Arc<HashSet<Id>>>,
    changed: watch::Sender<u64>,
    refused: [AtomicU64; 2],
}

impl Default for Revocations {
    fn default() -> Self {
        Self { revoked: RwLock::default(), changed: watch::Sender::new(0), refused: Default::default() }
    }
}

impl Revocations {
    /// Takes the lists of a PEM file instead of those before. Says how many certificates they name. On an error those
    /// before stay.
    pub fn set(&self, pem: &str) -> Result<usize, RevocationError> {
        let mut revoked = HashSet::new();
        let mut lists = 0;
        for list in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
            let list = list.map_err(|problem| RevocationError::Unreadable { problem: problem.to_string() })?;
            let (_, list) = CertificateRevocationList::from_der(&list)
                .map_err(|problem| RevocationError::Unreadable { problem: problem.to_string() })?;
            let issuer: Box<[u8]> = list.issuer().as_raw().into();
            for certificate in list.iter_revoked_certificates() {
                revoked.insert((issuer.clone(), certificate.raw_serial().into()));
                if revoked.len() > MAX_REVOKED {
                    return Err(RevocationError::TooMany);
                }
            }
            lists += 1;
        }
        if lists == 0 && !pem.trim().is_empty() {
            return Err(RevocationError::Unreadable { problem: "it holds no X509 CRL".to_owned() });
        }
        let count = revoked.len();
        *self.revoked.write() = Arc::new(revoked);
        self.changed.send_modify(|generation| *generation += 1);
        Ok(count)
    }

    /// Whether a list names a certificate of the chain; counts it where it does.
    pub fn refuses(&self, ids: &CertificateIds, side: Side) -> bool {
        let revoked = Arc::clone(&self.revoked.read());
        let refused = ids.0.iter().any(|id| revoked.contains(id));
        if refused && let Some(counter) = self.refused.get(side as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        refused
    }

    /// How many handshakes and connections were refused or ended on a side.
    pub fn refused(&self, side: Side) -> u64 {
        self.refused.get(side as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Returns when the lists come to name a certificate of the chain. Cancel-safe.
    pub async fn revoked(&self, ids: &CertificateIds, side: Side) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if self.refuses(ids, side) {
                return;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Why a file of CRLs is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RevocationError {
    /// Not PEM, or not CRLs.
    #[error("the file of CRLs cannot be read: {problem}")]
    Unreadable {
        /// What is wrong.
        problem: String,
    },
    /// More certificates than a file may name.
    #[error("the file of CRLs names more than {MAX_REVOKED} certificates")]
    TooMany,
}

impl Diagnose for RevocationError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "IDT030",
            Self::TooMany => "IDT031",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Config
    }

    fn remedy(&self) -> &'static str {
        "check the file that CRL_PATH names: PEM, blocks of X509 CRL; what was read before stays in force"
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{
        CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
        RevokedCertParams, SerialNumber,
    };

    use super::*;

    fn ca(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().unwrap())
    }

    fn leaf(ca: &(CertificateParams, KeyPair), serial: u64) -> CertificateIds {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &Issuer::from_params(&ca.0, &ca.1)).unwrap();
        CertificateIds::of(&[signed.der().clone()])
    }

    fn list(ca: &(CertificateParams, KeyPair), serials: &[u64]) -> String {
        let now = SystemTime::now();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&Issuer::from_params(&ca.0, &ca.1)).unwrap().pem().unwrap()
    }

    #[test]
    fn what_a_list_of_the_same_issuer_names_is_revoked_and_nothing_else() {
        let (one, two) = (ca("one"), ca("two"));
        let revocations = Revocations::default();
        assert!(!revocations.refuses(&leaf(&one, 7), Side::Source), "nothing is known");
        assert_eq!(revocations.set(&(list(&one, &[7, 300]) + &list(&two, &[9]))).unwrap(), 3);
        assert!(revocations.refuses(&leaf(&one, 7), Side::Source));
        assert!(revocations.refuses(&leaf(&one, 300), Side::Destination));
        assert!(revocations.refuses(&leaf(&two, 9), Side::Destination));
        for fine in [leaf(&one, 8), leaf(&two, 7), CertificateIds::default()] {
            assert!(!revocations.refuses(&fine, Side::Source));
        }
        assert_eq!((revocations.refused(Side::Source), revocations.refused(Side::Destination)), (1, 2));
        revocations.set("").unwrap();
        assert!(!revocations.refuses(&leaf(&one, 7), Side::Source), "lifted");
    }

    #[test]
    fn a_file_that_cannot_be_read_changes_nothing() {
        let one = ca("one");
        let revocations = Revocations::default();
        revocations.set(&list(&one, &[7])).unwrap();
        let broken = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        for text in ["garbage", broken] {
            assert!(revocations.set(text).is_err(), "{text}");
        }
        assert!(revocations.refuses(&leaf(&one, 7), Side::Source));
    }

    #[tokio::test]
    async fn who_holds_a_connection_is_told() {
        let one = ca("one");
        let revocations = Arc::new(Revocations::default());
        let ids = leaf(&one, 7);
        let told = revocations.revoked(&ids, Side::Destination);
        let publish = async {
            revocations.set(&list(&one, &[8])).unwrap();
            tokio::task::yield_now().await;
            revocations.set(&list(&one, &[7])).unwrap();
        };
        tokio::join!(told, publish);
        assert_eq!(revocations.refused(Side::Destination), 1);
    }
}
