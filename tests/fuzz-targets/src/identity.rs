//! Names in certificates, certificates, and requests to have one.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_identity::peer::{MAX_NAMES, identities};
use stillmesh_identity::revocation::{CertificateIds, Revocations, Side};
use stillmesh_identity::{Issuer, TrustBundle, expiry, peer_identity};

/// A file of CRLs: what cannot be read changes nothing.
pub(crate) fn revocations(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let revocations = Revocations::default();
    let set = revocations.set(text);
    assert!(!revocations.refuses(&CertificateIds::default(), Side::Source), "nobody is revoked");
    set.is_ok()
}

/// A SPIFFE id: displays as what it was read from, and is the only text that reads as it.
pub(crate) fn spiffe(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    if let Ok(domain) = TrustDomain::new(text) {
        assert_eq!(domain.as_str(), text);
    }
    let Ok(identity) = text.parse::<Identity>() else { return false };
    assert_eq!(identity.to_string(), text);
    assert_eq!(format!("spiffe://{}", identity.principal()), text);
    assert_eq!(text.split('/').count(), 7, "{text}");
    let parts = [identity.trust_domain.as_str(), &identity.namespace, &identity.service_account];
    assert!(parts.iter().all(|part| !part.is_empty() && part.len() <= 255));
    true
}

/// A certificate of a peer, DER: its names and its expiry. The same bytes are tried as a bundle's text.
pub(crate) fn certificate(input: &[u8]) -> bool {
    let der = CertificateDer::from(input.to_vec());
    let names = identities(&der);
    assert!(names.len() <= MAX_NAMES);
    assert_eq!(peer_identity(std::slice::from_ref(&der)), names.first().cloned());
    for name in &names {
        assert_eq!(name.to_string().parse().as_ref(), Ok(name));
    }
    let root = TrustBundle::from_der(vec![der.clone()]);
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(bundle) = TrustBundle::from_pem(text)
    {
        assert!(!bundle.roots().is_empty());
        assert!(TrustBundle::from_der(bundle.roots().to_vec()).is_ok());
    }
    expiry(std::slice::from_ref(&der)).is_some() || root.is_ok()
}

/// A certificate signing request, PEM: the certificate is for the caller who was authenticated, whatever the request
/// says.
pub(crate) fn csr(input: &[u8]) -> bool {
    static ISSUER: OnceLock<Issuer> = OnceLock::new();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let issuer = ISSUER.get_or_init(|| Issuer::create(&TrustDomain::default(), now).expect("a root can be made"));
    let caller = Identity::new(TrustDomain::default(), "shop", "page");
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(issued) = issuer.issue(text, &caller, None, now) else { return false };
    let [leaf, root] = issued.as_slice() else { unreachable!("a leaf and a root") };
    assert_eq!(root, issuer.root_pem());
    let leaf = TrustBundle::from_pem(leaf).expect("a certificate");
    assert_eq!(leaf.roots().iter().flat_map(identities).collect::<Vec<_>>(), [caller]);
    true
}
