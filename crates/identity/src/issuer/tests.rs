use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use stillmesh_core::diagnose::Diagnose;
use x509_parser::certificate::X509Certificate;

use super::*;
use crate::fixtures::identity;
use crate::{csr, peer};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn issuer() -> Issuer {
    Issuer::create(&TrustDomain::default(), now()).unwrap()
}

fn csr_for(names: &[&str]) -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = names.iter().map(|name| SanType::URI(Ia5String::try_from(*name).unwrap())).collect();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_leaf_carries_the_authenticated_identity_and_nothing_of_the_csr() {
    let issuer = issuer();
    let csr = csr_for(&["spiffe://cluster.local/ns/kube-system/sa/admin", "https://example.org"]);
    let entries = issuer.issue(&csr, &identity("page"), None, now()).unwrap();
    let [leaf, root] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!(root, issuer.root_pem());
    let leaf = der(leaf);
    assert_eq!(peer::uri_names(&leaf), ["spiffe://cluster.local/ns/default/sa/page"]);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    let begin = i64::try_from(now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), begin - 120);
    assert_eq!(leaf.validity().not_after.timestamp(), begin + 24 * 60 * 60);
}

#[test]
fn the_life_of_a_leaf_follows_the_contract() {
    let issuer = issuer();
    let csr = csr::request(&identity("page")).unwrap().csr_pem;
    let cases = [
        (None, Ok(24 * 3600)),
        (Some(0), Ok(24 * 3600)),
        (Some(60), Ok(60)),
        (Some(90 * 24 * 3600), Ok(90 * 24 * 3600)),
        (Some(90 * 24 * 3600 + 1), Err("IDT041")),
    ];
    for (asked, expected) in cases {
        let issued = issuer.issue(&csr, &identity("page"), asked.map(Duration::from_secs), now());
        let life = issued
            .map(|entries| peer::expiry(&[der(&entries[0])]).unwrap().duration_since(now()).unwrap().as_secs())
            .map_err(|problem| problem.code());
        assert_eq!(life, expected, "{asked:?}");
    }
}

#[test]
fn a_csr_that_is_garbage_too_long_or_not_signed_by_its_key_is_refused() {
    let issuer = issuer();
    let good = csr::request(&identity("page")).unwrap().csr_pem;
    let mut tampered = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    let tampered = rcgen_pem("CERTIFICATE REQUEST", &tampered);
    let mut odd = CertificateParams::default();
    odd.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
    let odd = odd.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let long = format!("{good}{}", "\n".repeat(MAX_CSR_BYTES));
    let root = issuer.root_pem().to_owned();
    for (name, csr) in [
        ("empty", String::new()),
        ("text", "not a csr".to_owned()),
        ("a certificate", root),
        ("tampered", tampered),
        ("unknown extension", odd),
        ("long", long),
        ("cut", good[..good.len() / 2].to_owned()),
    ] {
        let refused = issuer.issue(&csr, &identity("page"), None, now()).unwrap_err();
        assert_eq!(refused.code(), "IDT040", "{name}: {refused}");
    }
}

fn rcgen_pem(label: &str, der: &[u8]) -> String {
    // PEM by way of a type of the standard encoding: a base64 of its own would be a dependency.
    let mut text = format!("-----BEGIN {label}-----\n");
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    for group in der.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place) & 63) as usize;
            text.push(if place > group.len() { '=' } else { alphabet[digit] });
        }
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

#[test]
fn an_identity_of_another_trust_domain_is_not_certified() {
    let foreign = Identity::new(TrustDomain::new("other.example").unwrap(), "default", "page");
    let refused = issuer().issue(&csr_for(&[]), &foreign, None, now()).unwrap_err();
    assert_eq!(refused.code(), "IDT042");
}

#[test]
fn a_serving_certificate_carries_dns_and_ip_names() {
    let names = ["istiod.istio-system.svc".to_owned(), "10.96.0.15".to_owned(), "fd00:96::15".to_owned()];
    let serving = issuer().serving(&names, Duration::from_secs(3600), now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&serving.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 3);
    crate::serving_config(&serving).unwrap();
}

#[test]
fn the_root_is_kept_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ca");
    let first = Issuer::load_or_create(&dir, &TrustDomain::default(), now()).unwrap();
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca-key.pem"), 0o600);
    let second = Issuer::load_or_create(&dir, &TrustDomain::default(), now() + Duration::from_secs(1)).unwrap();
    assert_eq!(first.root_pem(), second.root_pem());
    assert_eq!(fs::read_to_string(dir.join("root-cert.pem")).unwrap(), first.root_pem());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
}

#[test]
fn an_interrupted_first_start_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let made = Issuer::load_or_create(dir.path(), &TrustDomain::default(), now()).unwrap();
    fs::remove_file(dir.path().join("ca-cert.pem")).unwrap();
    fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    let again = Issuer::load_or_create(dir.path(), &TrustDomain::default(), now()).unwrap();
    assert_eq!(made.key_pem(), again.key_pem());
    assert_eq!(fs::read_to_string(dir.path().join("root-cert.pem")).unwrap(), again.root_pem());
}

#[test]
fn a_damaged_ca_is_refused_with_its_directory_and_left_as_it_is() {
    let other = issuer();
    let two_roots = format!("{0}{0}", other.root_pem());
    let leaf = other.issue(&csr_for(&[]), &identity("page"), None, now()).unwrap().swap_remove(0);
    let cases = [
        ("half a key", "ca-key.pem", Some("-----BEGIN PRIVATE KEY-----\nMIG".to_owned()), "IDT052"),
        ("empty key", "ca-key.pem", Some(String::new()), "IDT052"),
        ("no key", "ca-key.pem", None, "IDT051"),
        ("another key", "ca-key.pem", Some(other.key_pem()), "IDT054"),
        ("garbage certificate", "ca-cert.pem", Some("garbage".to_owned()), "IDT053"),
        ("two certificates", "ca-cert.pem", Some(two_roots), "IDT053"),
        ("a leaf", "ca-cert.pem", Some(leaf), "IDT053"),
    ];
    for (name, file, content, code) in cases {
        let dir = tempfile::tempdir().unwrap();
        Issuer::load_or_create(dir.path(), &TrustDomain::default(), now()).unwrap();
        let path = dir.path().join(file);
        match &content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let refused = Issuer::load_or_create(dir.path(), &TrustDomain::default(), now()).unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused:?}");
        assert!(refused.to_string().contains(&dir.path().display().to_string()), "{name}: {refused}");
        assert_eq!(fs::read_to_string(&path).ok(), content, "{name}");
    }
}
