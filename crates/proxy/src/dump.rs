//! What proxies show of themselves at `/config_dump`, in the shape that istioctl reads (contract 9.5): what they know
//! ([`model`]) and the certificates that they hold. No keys.

pub mod model;

use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_identity::{Facts, Secrets};

/// Every workload, in order.
pub fn workloads(snapshot: &Snapshot) -> Vec<Value> {
    let mut all: Vec<_> = snapshot.workloads().collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.into_iter().map(|workload| model::workload(workload)).collect()
}

/// Every service with its endpoints, in order.
pub fn services(snapshot: &Snapshot) -> Vec<Value> {
    let mut all: Vec<_> = snapshot.services().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all.into_iter().map(|service| model::service(snapshot, service)).collect()
}

/// Every policy about connections, in order.
pub fn policies(snapshot: &Snapshot) -> Vec<Value> {
    let mut all: Vec<_> = snapshot.policies().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all.into_iter().map(|policy| model::policy(policy)).collect()
}

/// The program; `version`: what it is called in metrics.
pub fn version(version: &str) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": "",
        "rustVersion": "",
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "buildStatus": "",
        "istioVersion": version,
        "cryptoProvider": "aws-lc",
    })
}

/// Certificates with their roots, by identity.
pub fn certificates(secrets: &Secrets) -> Vec<Value> {
    let mut statuses = secrets.status();
    statuses.sort_by(|a, b| a.identity.cmp(&b.identity));
    let dump = statuses.into_iter().map(|status| {
        let state = match (&status.leaf, status.why_not()) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(why)) => format!("Unavailable: {why}"),
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
