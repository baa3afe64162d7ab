//! The certificates of this node's workloads, in the words that the rest of this crate needs.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use stillmesh_api::ca::Client;
use stillmesh_core::model::Identity;
use stillmesh_identity::{Facts, Revocations, SecretLimits, Secrets, SystemClock};
use stillmesh_proxy::revocations;
use stillmesh_runtime::tasks::Tasks;

use crate::config::Config;

/// All certificates that this node holds.
#[derive(Clone)]
pub struct Identities {
    secrets: Secrets,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Identities {
    /// Fetches from the configured authority, on the current runtime.
    pub fn new(config: &Config, tasks: &Tasks) -> Self {
        let limits = SecretLimits { ttl: config.secret_ttl, ..SecretLimits::default() };
        let signer = Arc::new(Client::new(config.ca.clone()));
        let revocations = Arc::new(Revocations::default());
        if let Some(path) = &config.crl {
            tasks.spawn("crl", revocations::follow(path.clone(), revocations.clone()));
        }
        Self::with(Secrets::minding(signer, Arc::new(SystemClock), limits, tasks, revocations))
    }

    /// Over any source.
    pub fn with(secrets: Secrets) -> Self {
        Self { secrets }
    }

    /// The certificates themselves.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Has a certificate ready before it is needed.
    pub fn prefetch(&self, identity: &Identity) {
        if let Err(error) = self.secrets.prefetch(identity) {
            tracing::warn!(%error, %identity, "certificate not prefetched");
        }
    }

    /// The last pod of an account has gone.
    pub fn forget_account(&self, namespace: &str, service_account: &str) {
        for status in self.secrets.status() {
            let identity = status.identity;
            if &*identity.namespace == namespace && &*identity.service_account == service_account {
                self.secrets.forget(&identity);
            }
        }
    }

    /// As `/config_dump` shows them (contract 9.5). No keys.
    pub fn dump(&self) -> Vec<Value> {
        let mut statuses = self.secrets.status();
        statuses.sort_by(|a, b| a.identity.cmp(&b.identity));
        let dump = statuses.into_iter().map(|status| {
            let state = match (&status.leaf, &status.failure) {
                (Some(_), _) => "Available".to_owned(),
                (None, Some(failure)) => format!("Unavailable: {failure}"),
                (None, None) => "Initializing".to_owned(),
            };
            let (chain, roots) = match &status.leaf {
                None => (Vec::new(), Vec::new()),
                Some(leaf) => (
                    leaf.chain().iter().map(certificate).collect(),
                    leaf.bundle().roots().iter().map(certificate).collect(),
                ),
            };
            json!({ "identity": status.identity, "state": state, "certChain": chain, "rootCerts": roots })
        });
        dump.collect()
    }
}

fn certificate(der: &CertificateDer<'_>) -> Value {
    let mut entry = json!({ "pem": BASE64_STANDARD.encode(pem(der)) });
    if let (Ok(facts), Some(entry)) = (Facts::read(der), entry.as_object_mut()) {
        entry.insert("serialNumber".to_owned(), decimal(&facts.serial).into());
        entry.insert("validFrom".to_owned(), timestamp(facts.not_before).into());
        entry.insert("expirationTime".to_owned(), timestamp(facts.not_after).into());
    }
    entry
}

fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let text = BASE64_STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn timestamp(time: std::time::SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// A hexadecimal number, any length, in decimal: what istioctl prints again as hexadecimal.
fn decimal(hex: &str) -> String {
    let mut digits = vec![0u8];
    for nibble in hex.chars().filter_map(|letter| letter.to_digit(16)) {
        let mut carry = nibble;
        for digit in &mut digits {
            let value = u32::from(*digit) * 16 + carry;
            *digit = u8::try_from(value % 10).unwrap_or(0);
            carry = value / 10;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 10).unwrap_or(0));
            carry /= 10;
        }
    }
    digits.iter().rev().map(|digit| char::from(b'0' + digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_decimal() {
        assert_eq!(decimal("0"), "0");
        assert_eq!(decimal("ff"), "255");
        assert_eq!(decimal("10000000000000000"), "18446744073709551616");
        assert_eq!(decimal("0a:1b"), "2587");
    }
}
