//! From traffic secrets to keys (RFC 8446 section 7), by aws-lc-rs' HKDF.
//!
//! | value | how | length, bytes |
//! | --- | --- | --- |
//! | `HKDF-Expand-Label(secret, label, "", n)` | HKDF-Expand of `n`(2), `6 + len`(1), `"tls13 "`, label, 0 (7.1) | n |
//! | key | label `key` (7.3) | 16 for AES-128, 32 for AES-256 |
//! | IV | label `iv` (7.3) | 12 |
//! | next generation of the secret | label `traffic upd` (7.2) | 32 for SHA-256, 48 for SHA-384 |
//! | nonce of record number *i* | *i* in 8 bytes, most significant first, XORed into the end of the IV (5.3) | 12 |
//!
//! Suites: `TLS_AES_128_GCM_SHA256` and `TLS_AES_256_GCM_SHA384` (B.4); tags have 16 bytes. Secrets and IVs are wiped when
//! they are dropped; expanded keys live in aws-lc's own memory only, which wipes what it frees.

use std::fmt;

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::{CipherSuite, ConnectionTrafficSecrets};
use zeroize::Zeroizing;

/// A cipher suite whose records are protected here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`.
    Aes128GcmSha256,
    /// `TLS_AES_256_GCM_SHA384`.
    Aes256GcmSha384,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Aes128GcmSha256, Self::Aes256GcmSha384];

    /// Records that one key may protect: beyond 2^24 of full length the chance to tell AES-GCM from a random permutation
    /// is above 2^-60. RFC 8446 section 5.5, in the bounds of rustls' `CipherSuiteCommon::confidentiality_limit`.
    pub const fn confidentiality_limit(self) -> u64 {
        1 << 24
    }

    /// The suite of that name, if it is one of ours.
    pub fn of(name: CipherSuite) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }

    /// Its name in TLS.
    pub fn name(self) -> CipherSuite {
        match self {
            Self::Aes128GcmSha256 => CipherSuite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256GcmSha384 => CipherSuite::TLS13_AES_256_GCM_SHA384,
        }
    }

    /// The length of its traffic secrets, bytes: that of its hash.
    pub fn secret_length(self) -> usize {
        self.hkdf().len()
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128GcmSha256 => &AES_128_GCM,
            Self::Aes256GcmSha384 => &AES_256_GCM,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128GcmSha256 => HKDF_SHA256,
            Self::Aes256GcmSha384 => HKDF_SHA384,
        }
    }
}

/// What the keys of one direction are made of: `client_` or `server_application_traffic_secret_N` (RFC 8446 section 7.1).
pub struct TrafficSecret {
    suite: Suite,
    // On the heap, so that a move leaves no copy behind.
    bytes: Wiped,
}

/// Bytes that are wiped when they are dropped.
type Wiped = Zeroizing<Vec<u8>>;

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficSecret").field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl TrafficSecret {
    /// Takes a secret over. `None`: it has not the length of the suite's hash.
    pub fn new(suite: Suite, bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        (bytes.len() == suite.secret_length()).then_some(Self { suite, bytes })
    }

    /// Its suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The secret of the next generation (RFC 8446 section 7.2).
    pub fn next(&self) -> Result<Self, Unspecified> {
        let bytes = self.expand_label(b"traffic upd", self.bytes.len())?;
        Ok(Self { suite: self.suite, bytes })
    }

    /// The key, unexpanded, and the IV (RFC 8446 section 7.3).
    fn key_and_iv(&self) -> Result<(Wiped, Wiped), Unspecified> {
        Ok((self.expand_label(b"key", self.suite.aead().key_len())?, self.expand_label(b"iv", NONCE_LEN)?))
    }

    /// Whether rustls made the same key and IV of it.
    pub(crate) fn agrees_with(&self, theirs: &ConnectionTrafficSecrets) -> bool {
        let (suite, key, iv) = match theirs {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128GcmSha256, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256GcmSha384, key, iv),
            _ => return false,
        };
        let same = |(own_key, own_iv): (Wiped, Wiped)| {
            verify_slices_are_equal(&own_key, key.as_ref())?;
            verify_slices_are_equal(&own_iv, iv.as_ref())
        };
        suite == self.suite && self.key_and_iv().and_then(same).is_ok()
    }

    /// RFC 8446 section 7.1, with an empty context.
    fn expand_label(&self, label: &[u8], length: usize) -> Result<Wiped, Unspecified> {
        let size = u16::try_from(length).map_err(|_| Unspecified)?.to_be_bytes();
        let label_length = [u8::try_from(PREFIX.len() + label.len()).map_err(|_| Unspecified)?];
        let info: [&[u8]; 5] = [&size, &label_length, PREFIX, label, &[0]];
        let mut out = Zeroizing::new(vec![0; length]);
        Prk::new_less_safe(self.suite.hkdf(), &self.bytes).expand(&info, Length(length))?.fill(&mut out)?;
        Ok(out)
    }
}

const PREFIX: &[u8] = b"tls13 ";

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// One direction's protection: the secret of the current generation, what is made of it, and the number of the next record.
#[derive(Debug)]
pub(crate) struct Protection {
    pub(crate) secret: TrafficSecret,
    pub(crate) aead: LessSafeKey,
    iv: Iv,
    /// Sequence number of the next record, from 0 in each generation. The last, 2^64 - 1, is never used: it cannot wrap.
    pub(crate) number: u64,
}

/// Half of the nonce's secret; not shown.
struct Iv(Zeroizing<[u8; NONCE_LEN]>);

impl fmt::Debug for Iv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iv")
    }
}

impl Protection {
    pub(crate) fn new(secret: TrafficSecret, number: u64) -> Result<Self, Unspecified> {
        let (key, bytes) = secret.key_and_iv()?;
        let mut iv = Iv(Zeroizing::default());
        iv.0.copy_from_slice(bytes.first_chunk::<NONCE_LEN>().ok_or(Unspecified)?);
        Ok(Self { aead: LessSafeKey::new(UnboundKey::new(secret.suite.aead(), &key)?), iv, secret, number })
    }

    /// Goes on with the next generation, whose records count from 0.
    pub(crate) fn update(&mut self) -> Result<(), Unspecified> {
        *self = Self::new(self.secret.next()?, 0)?;
        Ok(())
    }

    /// The nonce of the next record, and the number that comes after it. `None`: numbers are used up.
    pub(crate) fn nonce(&self) -> Option<(Nonce, u64)> {
        let after = self.number.checked_add(1)?;
        let mut nonce = *self.iv.0;
        for (byte, count) in nonce.iter_mut().rev().zip(self.number.to_le_bytes()) {
            *byte ^= count;
        }
        Some((Nonce::assume_unique_for_key(nonce), after))
    }
}

#[cfg(test)]
mod tests;
