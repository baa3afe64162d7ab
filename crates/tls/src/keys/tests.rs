use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls::crypto::cipher::{AeadKey, Iv as TheirIv};

use super::*;
use crate::fixtures::{hex, rfc8448};

#[test]
fn keys_are_those_of_rfc_8448() {
    for (secret, key, iv) in [
        (rfc8448::client(), "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"),
        (rfc8448::server(), "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"),
    ] {
        let (found_key, found_iv) = secret.key_and_iv().unwrap();
        assert_eq!((found_key.to_vec(), found_iv.to_vec()), (hex(key), hex(iv)));
    }
}

#[test]
fn nonces_are_the_iv_with_the_number_in_its_end() {
    let mut protection = Protection::new(rfc8448::client(), 0).unwrap();
    for (number, nonce) in [
        (0, "5b78923dee08579033e523d9"),
        (1, "5b78923dee08579033e523d8"),
        (0x0102_0304_0506_0708, "5b78923def0a549436e324d1"),
        (u64::MAX - 1, "5b78923d11f7a86fcc1adc27"),
    ] {
        protection.number = number;
        let (found, after) = protection.nonce().unwrap();
        assert_eq!((found.as_ref().to_vec(), after), (hex(nonce), number + 1));
    }
    protection.number = u64::MAX;
    assert!(protection.nonce().is_none());
}

#[test]
fn limits_are_those_of_rustls() {
    for (suite, theirs) in
        [(Suite::Aes128GcmSha256, TLS13_AES_128_GCM_SHA256), (Suite::Aes256GcmSha384, TLS13_AES_256_GCM_SHA384)]
    {
        let common = &theirs.tls13().unwrap().common;
        assert_eq!(suite.confidentiality_limit(), common.confidentiality_limit);
        assert_eq!(Suite::of(common.suite), Some(suite));
        assert_eq!(suite.secret_length(), common.hash_provider.output_len());
    }
    assert_eq!(Suite::of(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256), None);
}

#[test]
fn secrets_have_the_length_of_the_hash_and_are_not_shown() {
    for suite in Suite::ALL {
        let length = suite.secret_length();
        for wrong in [0, length - 1, length + 1] {
            assert!(TrafficSecret::new(suite, Zeroizing::new(vec![0xab; wrong])).is_none());
        }
        let protection = Protection::new(TrafficSecret::new(suite, Zeroizing::new(vec![0xab; length])).unwrap(), 7);
        let shown = format!("{:?}", protection.unwrap());
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("ab,"), "{shown}");
        assert!(shown.contains("TrafficSecret { suite: "), "{shown}");
    }
}

#[test]
fn the_next_generation_is_another_secret_and_counts_from_zero() {
    let mut protection = Protection::new(rfc8448::client(), 17).unwrap();
    let next = rfc8448::client().next().unwrap();
    protection.update().unwrap();
    assert_eq!(protection.number, 0);
    assert_eq!(protection.secret.bytes(), next.bytes());
    assert_ne!(next.bytes(), rfc8448::client().bytes());
}

#[test]
fn what_rustls_goes_on_with_is_compared_as_a_whole() {
    let secret = crate::fixtures::secret(Suite::Aes256GcmSha384, 9);
    let (key, iv) = secret.key_and_iv().unwrap();
    let key: [u8; 32] = key.to_vec().try_into().unwrap();
    let iv: [u8; 12] = iv.to_vec().try_into().unwrap();
    let theirs = |key: [u8; 32], iv: [u8; 12]| ConnectionTrafficSecrets::Aes256Gcm {
        key: AeadKey::from(key),
        iv: TheirIv::from(iv),
    };
    assert!(secret.agrees_with(&theirs(key, iv)));
    for at in [0, 31] {
        let mut other = key;
        other[at] ^= 1;
        assert!(!secret.agrees_with(&theirs(other, iv)));
    }
    for at in [0, 11] {
        let mut other = iv;
        other[at] ^= 1;
        assert!(!secret.agrees_with(&theirs(key, other)));
    }
    let other = ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from(key), iv: TheirIv::from(iv) };
    assert!(!secret.agrees_with(&other));
}
