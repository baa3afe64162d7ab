//! Certificates of a dump. What the dump does not say of one is read from the certificate itself. Pure but for the
//! clock, which the caller may set.

use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::dump::Dump;
use super::tables::{Section, heads};
use crate::cluster::value::{list, text};

/// What a table says of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// In hexadecimal digits.
    pub(crate) serial: String,
    /// First moment of its life.
    pub(crate) not_before: Timestamp,
    /// Last moment of its life.
    pub(crate) not_after: Timestamp,
}

/// The certificates of a dump, as they are now.
pub(super) fn section(dump: &Dump) -> Section {
    at(dump, Timestamp::try_from(SystemTime::now()).unwrap_or_default())
}

/// The same at some time.
pub(super) fn at(dump: &Dump, now: Timestamp) -> Section {
    let names = ["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    let mut rows = heads(&names);
    let mut items = Vec::new();
    let mut entries = dump.list("certificates");
    entries.sort_by_key(|entry| text(&entry["identity"]));
    for entry in entries {
        let (identity, state) = (text(&entry["identity"]), text(&entry["state"]));
        let row = |kind: &str, facts: Option<Facts>| {
            let cells = match facts {
                Some(facts) => [
                    (facts.not_before <= now && now <= facts.not_after).to_string(),
                    facts.serial,
                    facts.not_after.to_string(),
                    facts.not_before.to_string(),
                ],
                None => ["false", "-", "-", "-"].map(str::to_owned),
            };
            let mut row = vec![identity.to_owned(), kind.to_owned(), state.to_owned()];
            row.extend(cells);
            row
        };
        if list(&entry["certChain"]).next().is_none() {
            rows.push(row("Leaf", None));
        }
        for (place, certificate) in list(&entry["certChain"]).enumerate() {
            rows.push(row(if place == 0 { "Leaf" } else { "Intermediate" }, entry_facts(certificate)));
        }
        for certificate in list(&entry["rootCerts"]) {
            rows.push(row("Root", entry_facts(certificate)));
        }
        items.push(entry.clone());
    }
    Section { items, rows }
}

/// Facts of an entry of a dump.
pub(crate) fn entry_facts(certificate: &Value) -> Option<Facts> {
    let said = || {
        Some(Facts {
            serial: hexadecimal(certificate["serialNumber"].as_str()?)?,
            not_before: certificate["validFrom"].as_str()?.parse().ok()?,
            not_after: certificate["expirationTime"].as_str()?.parse().ok()?,
        })
    };
    said().or_else(|| of_pem(&BASE64_STANDARD.decode(certificate["pem"].as_str()?).ok()?))
}

/// Facts of the first certificate of a PEM text.
fn of_pem(pem: &[u8]) -> Option<Facts> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let validity = certificate.validity();
    Some(Facts {
        serial: trimmed(&certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
    })
}

/// A decimal number of any length, in hexadecimal digits.
pub(super) fn hexadecimal(decimal: &str) -> Option<String> {
    // Least significant byte first.
    let mut bytes: Vec<u8> = Vec::new();
    for digit in decimal.chars() {
        let mut carry = digit.to_digit(10)?;
        for byte in &mut bytes {
            let value = u32::from(*byte) * 10 + carry;
            *byte = u8::try_from(value & 0xff).ok()?;
            carry = value >> 8;
        }
        if carry > 0 {
            bytes.push(u8::try_from(carry).ok()?);
        }
    }
    (!decimal.is_empty()).then(|| trimmed(&bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn trimmed(digits: &str) -> String {
    match digits.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}
