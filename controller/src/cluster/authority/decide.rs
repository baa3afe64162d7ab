//! Which CA signs, and what is to be written: from what the API server holds, what is remembered, and the clock.
//! Only new keys are not a function of these.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::TrustDomain;
use stillmesh_identity::rotation::{Kept, Times};
use stillmesh_identity::{Issuer, Material, TrustBundle, crl};
use stillmesh_k8s::finding::Severity;
use stillmesh_k8s::{Finding, Position, labels};

use super::{OWN, PLUGGED};
use crate::cluster::roots::ROOT_KEY;

/// Annotation that asks for a new root: any value that it has not had before.
pub(super) const ROTATE: &str = "stillmesh.io/rotate-root";
/// Key of the revoked certificates, in either Secret.
const CRL: &str = "ca-crl.pem";

/// How long a replica that knows nothing waits for one that knows the CA to write it back, where roots have been
/// distributed and the Secret is gone.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the API server holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub own: Option<Arc<Secret>>,
    pub plugged: Option<Arc<Secret>>,
    /// The roots that have been distributed to the own namespace.
    pub distributed: Option<Arc<ConfigMap>>,
}

/// What has been in use.
#[derive(Default)]
pub(super) struct Memory {
    kept: Option<Kept>,
    /// What is plugged in, and since when there is a Secret for it.
    plugged: Option<(Arc<Parts>, Option<SystemTime>)>,
    crl: Option<Arc<str>>,
    missing_since: Option<SystemTime>,
}

/// What is to be written.
#[derive(Debug)]
pub(super) enum Write {
    /// A first Secret, by whoever comes first.
    First(Kept),
    /// The Secret that is gone, by the leader.
    Back(Kept),
    /// Other content, by the leader.
    Instead(Arc<Secret>, Kept),
}

/// What follows.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub issuer: Option<Issuer>,
    pub write: Option<Write>,
    pub problems: Vec<Finding>,
    /// When to decide again at the latest.
    pub again: Option<SystemTime>,
    pub crl: Option<Arc<str>>,
}

pub(super) fn decide(
    held: &Held,
    memory: &mut Memory,
    leads: bool,
    trust_domain: &TrustDomain,
    times: &Times,
    now: SystemTime,
) -> Decision {
    let mut decision = Decision::default();
    let plugged = plugged(held, memory, trust_domain, now, &mut decision);
    // Without a sound `cacerts` from the start nothing may sign: which root the mesh trusts is not known.
    let blocked = held.plugged.is_some() && plugged.is_none();
    let own = own(held, memory, leads, plugged.is_some() || blocked, trust_domain, times, now, &mut decision);
    revoked(held, memory, &mut decision);
    if blocked {
        return decision;
    }
    let own_issuer = |kept: &Kept, decision: &mut Decision| match kept.issuer(trust_domain) {
        Ok(issuer) => Some(issuer),
        Err(error) => {
            decision.problems.push(problem(OWN, "", super::super::chain(&error), ""));
            None
        }
    };
    decision.issuer = match (plugged, own) {
        (None, None) => None,
        (None, Some(kept)) => own_issuer(&kept, &mut decision),
        (Some((parts, since)), kept) => {
            let from = waits_until(held, kept.as_ref(), since, times);
            let signs = from.is_none_or(|from| from <= now);
            let (issuer, others) = match (&kept, signs) {
                (Some(kept), false) => {
                    decision.again = [decision.again, from].into_iter().flatten().min();
                    (own_issuer(kept, &mut decision), Some(parts.roots.clone()))
                }
                _ => {
                    let made = Issuer::plugged(parts.material(), trust_domain, now);
                    let made = made.map_err(|error| super::super::chain(&error));
                    let issuer = made.map_err(|why| decision.problems.push(problem(PLUGGED, "", why, ""))).ok();
                    (issuer, kept.as_ref().map(Kept::roots_pem))
                }
            };
            match (issuer, others) {
                (Some(issuer), Some(others)) => issuer.distributing(&others).ok(),
                (issuer, _) => issuer,
            }
        }
    };
    decision
}

/// From when on what is plugged in signs, in a mesh that has had a root of its own: when everybody knows its roots.
fn waits_until(held: &Held, kept: Option<&Kept>, since: Option<SystemTime>, times: &Times) -> Option<SystemTime> {
    kept?;
    let (since, own) = (since?, created(&held.own.as_ref()?.metadata)?);
    (own < since).then_some(since + times.announce)
}

/// What is plugged in, as it is to be used. Bad content leaves what was there before.
fn plugged(
    held: &Held,
    memory: &mut Memory,
    trust_domain: &TrustDomain,
    now: SystemTime,
    decision: &mut Decision,
) -> Option<(Arc<Parts>, Option<SystemTime>)> {
    let Some(secret) = &held.plugged else {
        if memory.plugged.is_some() {
            let hint = "put it back; with the next start the mesh begins with a root of its own";
            decision.problems.push(problem(PLUGGED, "", "it is gone; what it held goes on signing".into(), hint));
        }
        return memory.plugged.clone();
    };
    let read = Parts::read(secret).and_then(|parts| {
        Issuer::plugged(parts.material(), trust_domain, now).map_err(|error| super::super::chain(&error))?;
        let before = memory.plugged.as_ref().and_then(|(before, _)| TrustBundle::from_pem(&before.roots).ok());
        let after = TrustBundle::from_pem(&parts.roots).map_err(|error| super::super::chain(&error))?;
        match before {
            Some(before) if !before.roots().iter().all(|root| after.roots().contains(root)) => {
                Err("its roots leave out one that is in use: keep it in root-cert.pem until no certificate of it \
                     lives"
                    .to_owned())
            }
            _ => Ok(parts),
        }
    });
    match read {
        Ok(parts) => memory.plugged = Some((Arc::new(parts), created(&secret.metadata))),
        Err(why) => {
            let hint = match memory.plugged {
                Some(_) => "what it held before goes on signing",
                None => "no certificate is signed until it is good or deleted",
            };
            decision.problems.push(problem(PLUGGED, "data", why, hint));
        }
    }
    memory.plugged.clone()
}

/// The CA's own roots, as they are to be used.
#[expect(clippy::too_many_arguments, reason = "one step of `decide`, apart for its length")]
fn own(
    held: &Held,
    memory: &mut Memory,
    leads: bool,
    not_needed: bool,
    trust_domain: &TrustDomain,
    times: &Times,
    now: SystemTime,
    decision: &mut Decision,
) -> Option<Kept> {
    let Some(secret) = &held.own else {
        if not_needed {
            return None;
        }
        return missing(held, memory, leads, trust_domain, times, now, decision);
    };
    memory.missing_since = None;
    let kept = match Kept::read(&data(secret), trust_domain) {
        Ok(kept) => kept,
        Err(error) => {
            let hint = match memory.kept {
                Some(_) => "what it held before goes on signing and is written back",
                None => "restore it from a backup; or delete it, and the mesh begins with a new root",
            };
            decision.problems.push(problem(OWN, "data", super::super::chain(&error), hint));
            if leads && let Some(kept) = &memory.kept {
                decision.write = Some(Write::Instead(Arc::clone(secret), kept.clone()));
            }
            return memory.kept.clone();
        }
    };
    let mut wanted = kept.clone();
    match &memory.kept {
        // Somebody put another root in place: those who know only the former one stay trusted, and trust.
        Some(before) if !kept.knows(before) => {
            if let Ok(bundle) = TrustBundle::from_pem(&before.roots_pem()) {
                wanted = wanted.remembering(&bundle, times, now);
            }
        }
        _ => memory.kept = Some(kept.clone()),
    }
    let request = labels::of(&secret.metadata.annotations).get(ROTATE).map(String::as_str).unwrap_or_default();
    match wanted.step(request, trust_domain, times, now) {
        Ok(Some(next)) => wanted = next,
        Ok(None) => {}
        Err(error) => decision.problems.push(problem(OWN, "", super::super::chain(&error), "")),
    }
    if wanted != kept && leads {
        decision.write = Some(Write::Instead(Arc::clone(secret), wanted));
    }
    decision.again = Some(kept.due(times));
    Some(kept)
}

/// There is no Secret.
fn missing(
    held: &Held,
    memory: &mut Memory,
    leads: bool,
    trust_domain: &TrustDomain,
    times: &Times,
    now: SystemTime,
    decision: &mut Decision,
) -> Option<Kept> {
    if let Some(kept) = &memory.kept {
        if leads {
            decision.write = Some(Write::Back(kept.clone()));
        }
        return Some(kept.clone());
    }
    let since = *memory.missing_since.get_or_insert(now);
    let distributed = held.distributed.as_ref().and_then(|map| map.data.as_ref()?.get(ROOT_KEY));
    let distributed = distributed.and_then(|pem| TrustBundle::from_pem(pem).ok());
    if distributed.is_some() && now < since + PATIENCE {
        decision.again = Some(since + PATIENCE);
        let text = "it is gone although roots of it have been distributed: waiting for who knows its key";
        decision.problems.push(problem(OWN, "", text.to_owned(), ""));
        return None;
    }
    match Kept::create(trust_domain, times, now) {
        Ok(kept) => {
            // What the lost key signed stays trusted.
            let kept = distributed.map_or(kept.clone(), |roots| kept.remembering(&roots, times, now));
            decision.write = Some(Write::First(kept));
        }
        Err(error) => decision.problems.push(problem(OWN, "", super::super::chain(&error), "")),
    }
    None
}

/// The list of revoked certificates. A bad one leaves the one before.
fn revoked(held: &Held, memory: &mut Memory, decision: &mut Decision) {
    let from = |secret: &Option<Arc<Secret>>| Some(secret.as_ref()?.data.as_ref()?.get(CRL)?.0.clone());
    let (name, bytes) = match (from(&held.plugged), from(&held.own)) {
        (Some(bytes), _) => (PLUGGED, Some(bytes)),
        (None, bytes) => (OWN, bytes),
    };
    match bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| (crl::check(&bytes), bytes)) {
        None => memory.crl = None,
        Some((Ok(()), bytes)) => match String::from_utf8(bytes) {
            Ok(text) => memory.crl = Some(text.into()),
            Err(_) => decision.problems.push(problem(name, "data.ca-crl.pem", "not text".to_owned(), "")),
        },
        Some((Err(why), _)) => {
            let hint = "the list before stays in force";
            decision.problems.push(problem(name, "data.ca-crl.pem", why, hint));
        }
    }
    decision.crl = memory.crl.clone();
}

/// What is plugged in, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    certificate: String,
    key: String,
    chain: String,
    roots: String,
}

impl Parts {
    /// Reads either form (contract 6.4).
    fn read(secret: &Secret) -> Result<Self, String> {
        let data = data(secret);
        let text = |key: &str| {
            let text = data.get(key).map(|bytes| String::from_utf8(bytes.clone())).transpose();
            text.map_err(|_| format!("{key} is not text"))
        };
        let needed = |key: &str| text(key)?.ok_or_else(|| format!("{key} is missing"));
        let [certificate, key, roots] = if data.contains_key("ca-cert.pem") || !data.contains_key("tls.crt") {
            ["ca-cert.pem", "ca-key.pem", "root-cert.pem"]
        } else {
            ["tls.crt", "tls.key", "ca.crt"]
        };
        let chain = text("cert-chain.pem")?.unwrap_or_default();
        Ok(Self { certificate: needed(certificate)?, key: needed(key)?, chain, roots: needed(roots)? })
    }

    fn material(&self) -> Material<'_> {
        Material { certificate: &self.certificate, key: &self.key, chain: &self.chain, roots: &self.roots }
    }
}

fn data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect()
}

fn created(metadata: &ObjectMeta) -> Option<SystemTime> {
    Some(SystemTime::from(metadata.creation_timestamp.as_ref()?.0))
}

fn problem(secret: &str, path: &str, message: String, hint: &str) -> Finding {
    Finding {
        at: Position::file(""),
        severity: Severity::Error,
        code: "MAN017",
        object: format!("Secret {secret}"),
        path: path.to_owned(),
        message,
        hint: hint.to_owned(),
    }
}
