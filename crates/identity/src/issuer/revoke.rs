//! Lists of revoked certificates, signed by the CA that issued them.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::{IssueError, Issuer};

impl Issuer {
    /// A CRL, PEM, that names certificates of this CA by their serial numbers (hexadecimal, as [`crate::Leaf::serial`]
    /// says them). Serial numbers that cannot be read are refused.
    pub fn revocation_list(&self, serials: &[&str], life: Duration, now: SystemTime) -> Result<String, IssueError> {
        let revoked = serials.iter().map(|serial| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(
                    &bytes(serial).ok_or_else(|| IssueError::crypto(format!("{serial} is not a serial number")))?,
                ),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + life).into(),
            crl_number: SerialNumber::from(seconds),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect::<Result<_, IssueError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.authority).map_err(IssueError::crypto)?;
        list.pem().map_err(IssueError::crypto)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let even = if hex.len().is_multiple_of(2) { hex.to_owned() } else { format!("0{hex}") };
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = even.as_bytes().chunks(2).map(byte).collect();
    bytes.filter(|bytes| !bytes.is_empty())
}
