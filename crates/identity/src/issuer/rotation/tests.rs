use stillmesh_core::model::Identity;

use super::*;
use crate::fixtures::identity;
use crate::{Leaf, csr};

const TIMES: Times = Times {
    life: Duration::from_secs(1_000_000),
    announce: Duration::from_secs(1000),
    retain: Duration::from_secs(5000),
};

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn after(seconds: u64) -> SystemTime {
    start() + Duration::from_secs(seconds)
}

fn kept() -> Kept {
    Kept::create(&domain(), &TIMES, start()).unwrap()
}

fn content(kept: &Kept) -> BTreeMap<String, Vec<u8>> {
    kept.write().into_iter().map(|(key, text)| (key.to_owned(), text.into_bytes())).collect()
}

fn step(kept: &Kept, request: &str, seconds: u64) -> Option<Kept> {
    kept.step(request, &domain(), &TIMES, after(seconds)).unwrap()
}

fn leaf(kept: &Kept, seconds: u64, ttl: u64) -> Leaf {
    let page: Identity = identity("page");
    let request = csr::request(&page).unwrap();
    let issuer = kept.issuer(&domain()).unwrap();
    let ttl = Some(Duration::from_secs(ttl));
    let entries = issuer.issue(&request.csr_pem, &page, ttl, after(seconds)).unwrap();
    Leaf::from_signed(request.key, &entries, &page, after(seconds)).unwrap()
}

/// Whether somebody who has the roots that were distributed with `trusting` takes `leaf`.
fn trusts(trusting: &Leaf, leaf: &Leaf) -> bool {
    let roots = trusting.bundle().roots();
    let signer = leaf.bundle().roots().first().unwrap();
    roots.contains(signer)
}

#[test]
fn what_is_written_is_read_back() {
    let mut kept = kept();
    assert_eq!(Kept::read(&content(&kept), &domain()).unwrap(), kept);
    kept = step(&kept, "please", 10).unwrap();
    assert!(kept.rotating());
    assert_eq!(Kept::read(&content(&kept), &domain()).unwrap(), kept);
    kept = step(&kept, "please", 1010).unwrap();
    assert!(!kept.rotating());
    assert_eq!(Kept::read(&content(&kept), &domain()).unwrap(), kept);
    assert_eq!(kept.old.len(), 1);
}

#[test]
fn at_every_moment_of_a_rotation_living_leaves_trust_each_other() {
    let mut kept = kept();
    // A leaf is renewed at half of its life, 500 s here, and lives 1000 s.
    let mut living: Vec<(u64, Leaf)> = Vec::new();
    let mut signers = std::collections::BTreeSet::new();
    for seconds in (0..12_000).step_by(250) {
        let request = if seconds < 1000 { "" } else { "rotate" };
        if let Some(next) = step(&kept, request, seconds) {
            kept = next;
        }
        living.retain(|(since, _)| seconds - since < 1000);
        // Any two whose holder has not renewed them yet, and a new one with each.
        living.push((seconds, leaf(&kept, seconds, 1000)));
        let current: Vec<&Leaf> =
            living.iter().filter(|(since, _)| seconds - since <= 500).map(|(_, leaf)| leaf).collect();
        for one in &current {
            for other in &current {
                assert!(trusts(one, other), "at {seconds} s");
            }
        }
        signers.insert(kept.signing.certificate.clone());
    }
    assert_eq!(signers.len(), 2, "it has rotated once");
    assert!(kept.old.is_empty(), "the former root is gone in the end");
}

#[test]
fn a_request_is_heeded_once() {
    let first = kept();
    assert_eq!(step(&first, "", 10), None);
    let announced = step(&first, "one", 10).unwrap();
    assert_eq!(step(&announced, "one", 20), None);
    let switched = step(&announced, "one", 1010).unwrap();
    assert_eq!(step(&switched, "one", 1020), None);
    assert_eq!(step(&switched, "", 1020), None);
    assert!(step(&switched, "two", 1020).unwrap().rotating());
}

#[test]
fn a_root_is_replaced_within_the_last_fifth_of_its_life() {
    let first = kept();
    assert_eq!(step(&first, "", 799_000), None);
    assert!(first.due(&TIMES) > after(799_000) && first.due(&TIMES) < after(801_000));
    assert!(step(&first, "", 801_000).unwrap().rotating());
}

#[test]
fn an_expired_root_is_replaced_at_once_by_the_next() {
    let announced = step(&kept(), "", 999_900).unwrap();
    let switched = step(&announced, "", 1_000_100).unwrap();
    assert!(!switched.rotating());
    assert!(switched.old.is_empty());
}

#[test]
fn garbage_is_refused_by_the_name_of_its_key() {
    let good = content(&step(&kept(), "x", 10).unwrap());
    for (key, value) in [
        (CERTIFICATE, None),
        (KEY, None),
        (KEY, Some("x")),
        (CERTIFICATE, Some("x")),
        (NEXT_KEY, None),
        (NEXT_CERTIFICATE, None),
        (NEXT_SINCE, Some("soon")),
        (OLD_UNTIL, Some("5")),
    ] {
        let mut content = good.clone();
        match value {
            Some(text) => content.insert(key.to_owned(), text.into()),
            None => content.remove(key),
        };
        let error = Kept::read(&content, &domain());
        assert!(error.is_err(), "{key} {value:?}");
    }
    let other = content(&kept());
    let mut mixed = good;
    mixed.insert(KEY.to_owned(), other[KEY].clone());
    assert!(matches!(Kept::read(&mixed, &domain()), Err(IssuerError::Mismatch)));
}

#[test]
fn roots_of_a_lost_key_stay_trusted_for_as_long_as_its_leaves_live() {
    let (lost, new) = (kept(), kept());
    let old_leaf = leaf(&lost, 0, 1000);
    let bundle = TrustBundle::from_pem(&lost.roots_pem()).unwrap();
    let new = new.remembering(&bundle, &TIMES, start());
    assert!(trusts(&leaf(&new, 10, 1000), &old_leaf));
    assert_eq!(new.remembering(&bundle, &TIMES, start()), new);
    let later = step(&new, "", 5001).unwrap();
    assert!(!trusts(&leaf(&later, 5001, 1000), &old_leaf));
}

#[test]
fn a_plugged_intermediate_signs_what_its_root_vouches_for_and_nothing_else_is_taken() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let ca = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = (start() - Duration::from_secs(10)).into();
        params.not_after = after(50_000).into();
        params
    };
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate().unwrap()).unwrap();
    let other = CertifiedIssuer::self_signed(ca("other"), KeyPair::generate().unwrap()).unwrap();
    let middle = CertifiedIssuer::signed_by(ca("middle"), KeyPair::generate().unwrap(), &root).unwrap();
    let signing = CertifiedIssuer::signed_by(ca("signing"), KeyPair::generate().unwrap(), &middle).unwrap();
    let (certificate, key) = (signing.pem(), signing.key().serialize_pem());
    let (chain, roots) = (format!("{}{}{}", signing.pem(), middle.pem(), root.pem()), root.pem());
    let material = super::super::Material { certificate: &certificate, key: &key, chain: &chain, roots: &roots };
    let issuer = Issuer::plugged(material, &domain(), start()).unwrap();
    let page = identity("page");
    let request = csr::request(&page).unwrap();
    let entries = issuer.issue(&request.csr_pem, &page, Some(Duration::from_secs(80_000)), start()).unwrap();
    assert_eq!(entries.len(), 4, "leaf, two intermediates, roots");
    let leaf = Leaf::from_signed(request.key, &entries, &page, start()).unwrap();
    assert_eq!(leaf.not_after(), after(50_000), "no leaf lives longer than what signs it");
    for broken in [
        super::super::Material { chain: "", ..material },
        super::super::Material { roots: &other.pem(), ..material },
        super::super::Material { key: &other.key().serialize_pem(), ..material },
        super::super::Material { certificate: "", ..material },
        super::super::Material { roots: "", ..material },
    ] {
        assert!(Issuer::plugged(broken, &domain(), start()).is_err());
    }
    assert!(Issuer::plugged(material, &domain(), after(60_000)).is_err(), "expired");
}
