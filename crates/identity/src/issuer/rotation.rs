//! The CA's own roots over time: which one signs, which one is next, which are still trusted. Pure: content and clock
//! in, new content out; whoever keeps the content (the controller, in a Secret) writes it whole.
//!
//! A new root is first only distributed. It signs once every leaf has been renewed since, so that everybody trusts it
//! by then. The one before stays among the roots until no leaf that it signed can live. Nothing restarts.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use stillmesh_core::model::TrustDomain;

use super::{Issuer, IssuerError, pem};
use crate::{TrustBundle, peer};

/// Key of the signing root (contract 6.4).
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Key of its private key.
pub const KEY: &str = "ca-key.pem";
/// Key of the roots that are distributed.
pub const ROOTS: &str = "root-cert.pem";
const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const NEXT_SINCE: &str = "next-since";
const OLD_CERTIFICATES: &str = "old-certs.pem";
const OLD_UNTIL: &str = "old-until";
const HANDLED: &str = "rotated-for";

/// How many former roots are kept at most; no rotation begins beyond.
const MAX_OLD: usize = 16;

/// How long the phases last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The life of a new root. It is replaced within the last fifth.
    pub life: Duration,
    /// How long a root is distributed before it signs: the life of a leaf.
    pub announce: Duration,
    /// How long a root is distributed after it signed last: the longest life of a leaf.
    pub retain: Duration,
}

/// A root with its key.
#[derive(Clone, PartialEq, Eq)]
struct Root {
    certificate: String,
    key: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The roots and what is to become of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    signing: Root,
    /// The root that signs next, and since when it is distributed.
    next: Option<(Root, SystemTime)>,
    /// Former roots, PEM, and how long they are distributed.
    old: Vec<(String, SystemTime)>,
    /// The request for a rotation that has been heeded.
    handled: String,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("next", &self.next.is_some()).field("old", &self.old.len()).finish_non_exhaustive()
    }
}

impl Kept {
    /// A first root.
    pub fn create(trust_domain: &TrustDomain, times: &Times, now: SystemTime) -> Result<Self, IssuerError> {
        let signing = Root::create(trust_domain, times.life, now)?;
        Ok(Self { signing, next: None, old: Vec::new(), handled: String::new() })
    }

    /// Reads the content of a Secret. Anything in it that is not understood is refused: a root that is dropped by
    /// mistake cuts the mesh in two.
    pub fn read(content: &BTreeMap<String, Vec<u8>>, trust_domain: &TrustDomain) -> Result<Self, IssuerError> {
        let text = |key: &'static str| match content.get(key) {
            None => Ok(None),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(bad(key, "not text")),
            },
        };
        let needed = |key: &'static str| text(key)?.ok_or_else(|| bad(key, "missing"));
        let signing = Root::read(needed(CERTIFICATE)?, needed(KEY)?, trust_domain)?;
        let next = match (text(NEXT_CERTIFICATE)?, text(NEXT_KEY)?) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let since = time(NEXT_SINCE, needed(NEXT_SINCE)?)?;
                Some((Root::read(certificate, key, trust_domain)?, since))
            }
            (None, Some(_)) => return Err(bad(NEXT_CERTIFICATE, "missing beside its key")),
            (Some(_), None) => return Err(bad(NEXT_KEY, "missing beside its certificate")),
        };
        let old = match (text(OLD_CERTIFICATES)?, text(OLD_UNTIL)?) {
            (None, None) => Vec::new(),
            (certificates, until) => {
                let until: Vec<SystemTime> =
                    until.unwrap_or_default().lines().map(|line| time(OLD_UNTIL, line)).collect::<Result<_, _>>()?;
                let bundle = TrustBundle::from_pem(certificates.unwrap_or_default()).map_err(IssuerError::Root)?;
                if bundle.roots().len() != until.len() {
                    return Err(bad(OLD_UNTIL, "one time per certificate of old-certs.pem is needed"));
                }
                bundle.roots().iter().map(pem).zip(until).collect()
            }
        };
        let handled = text(HANDLED)?.unwrap_or_default().to_owned();
        Ok(Self { signing, next, old, handled })
    }

    /// Whether a key of the Secret is written here; others are left alone.
    pub fn owns(key: &str) -> bool {
        [CERTIFICATE, KEY, ROOTS, NEXT_CERTIFICATE, NEXT_KEY, NEXT_SINCE, OLD_CERTIFICATES, OLD_UNTIL, HANDLED]
            .contains(&key)
    }

    /// The content to keep.
    pub fn write(&self) -> BTreeMap<&'static str, String> {
        let mut content = BTreeMap::from([
            (CERTIFICATE, self.signing.certificate.clone()),
            (KEY, self.signing.key.clone()),
            (ROOTS, self.roots_pem()),
        ]);
        if let Some((next, since)) = &self.next {
            content.insert(NEXT_CERTIFICATE, next.certificate.clone());
            content.insert(NEXT_KEY, next.key.clone());
            content.insert(NEXT_SINCE, seconds(*since).to_string());
        }
        if !self.old.is_empty() {
            content.insert(OLD_CERTIFICATES, self.old.iter().map(|(certificate, _)| certificate.as_str()).collect());
            let until: Vec<String> = self.old.iter().map(|(_, until)| seconds(*until).to_string()).collect();
            content.insert(OLD_UNTIL, until.join("\n"));
        }
        if !self.handled.is_empty() {
            content.insert(HANDLED, self.handled.clone());
        }
        content
    }

    /// What has to be kept from now on; `None` where nothing is due. `request` asks for a rotation when it is
    /// neither empty nor the one that was heeded before.
    pub fn step(
        &self,
        request: &str,
        trust_domain: &TrustDomain,
        times: &Times,
        now: SystemTime,
    ) -> Result<Option<Self>, IssuerError> {
        let mut after = self.clone();
        after.old.retain(|(_, until)| *until > now);
        match &self.next {
            Some((next, since)) if *since + times.announce <= now || self.signing.not_after <= now => {
                let until = (now + times.retain).min(self.signing.not_after);
                if until > now {
                    after.old.push((self.signing.certificate.clone(), until));
                }
                after.signing = next.clone();
                after.next = None;
            }
            Some(_) => {}
            None => {
                let asked = !request.is_empty() && request != self.handled;
                if (asked || self.signing.late() <= now) && after.old.len() < MAX_OLD {
                    after.next = Some((Root::create(trust_domain, times.life, now)?, whole(now)));
                    if asked {
                        request.clone_into(&mut after.handled);
                    }
                }
            }
        }
        Ok((after != *self).then_some(after))
    }

    /// When [`Kept::step`] is due next without being asked.
    pub fn due(&self, times: &Times) -> SystemTime {
        let own = match &self.next {
            Some((_, since)) => (*since + times.announce).min(self.signing.not_after),
            None => self.signing.late(),
        };
        self.old.iter().map(|(_, until)| *until).fold(own, SystemTime::min)
    }

    /// The same, distributing more roots for a while: those of a CA whose key is lost, so that what it signed stays
    /// good. Roots that have expired are left out.
    pub fn remembering(&self, roots: &TrustBundle, times: &Times, now: SystemTime) -> Self {
        let mut after = self.clone();
        let known = self.roots_pem();
        for root in roots.roots() {
            let (text, expiry) = (pem(root), peer::expiry(std::slice::from_ref(root)).unwrap_or(now));
            if !known.contains(&text) && expiry > now && after.old.len() < MAX_OLD {
                after.old.push((text, whole((now + times.retain).min(expiry))));
            }
        }
        after
    }

    /// Whether the root that signs in `other` is distributed here.
    pub fn knows(&self, other: &Self) -> bool {
        self.roots_pem().contains(&other.signing.certificate)
    }

    /// Whether a rotation is under way: a next root is distributed and does not sign yet.
    pub fn rotating(&self) -> bool {
        self.next.is_some()
    }

    /// All roots that are distributed, the signing one first, PEM.
    pub fn roots_pem(&self) -> String {
        let next = self.next.iter().map(|(root, _)| root.certificate.as_str());
        let old = self.old.iter().map(|(certificate, _)| certificate.as_str());
        [self.signing.certificate.as_str()].into_iter().chain(next).chain(old).collect()
    }

    /// The CA that signs now.
    pub fn issuer(&self, trust_domain: &TrustDomain) -> Result<Issuer, IssuerError> {
        Issuer::from_pem(&self.signing.certificate, &self.signing.key, trust_domain)?.distributing(&self.roots_pem())
    }
}

impl Root {
    fn create(trust_domain: &TrustDomain, life: Duration, now: SystemTime) -> Result<Self, IssuerError> {
        let issuer = Issuer::create_for(trust_domain, life, now)?;
        Self::read(issuer.root_pem(), &issuer.key_pem(), trust_domain)
    }

    /// Reads a pair; it must be usable.
    fn read(certificate: &str, key: &str, trust_domain: &TrustDomain) -> Result<Self, IssuerError> {
        let issuer = Issuer::from_pem(certificate, key, trust_domain)?;
        let unreadable = |problem: &str| IssuerError::Certificate { problem: problem.to_owned() };
        let der =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| unreadable(&error.to_string()))?;
        let not_before = peer::begin(&der).ok_or_else(|| unreadable("it has no beginning"))?;
        Ok(Self { certificate: pem(&der), key: key.to_owned(), not_before, not_after: issuer.not_after() })
    }

    /// When the last fifth of its life begins.
    fn late(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - life / 5
    }
}

fn bad(key: &'static str, problem: &str) -> IssuerError {
    IssuerError::Content { key, problem: problem.to_owned() }
}

/// Seconds since 1970, as times are kept.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time as it is read back.
fn whole(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(time))
}

fn time(key: &'static str, text: &str) -> Result<SystemTime, IssuerError> {
    let seconds: u64 = text.trim().parse().map_err(|_| bad(key, "seconds since 1970 are accepted"))?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(|| bad(key, "too far away"))
}
