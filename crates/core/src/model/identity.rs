//! Who a workload is: a SPIFFE identity of the form `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Str;
use crate::diagnose::{Diagnose, Fault};

/// The name of a trust domain, for example `cluster.local`: the root under which identities are comparable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Str);

impl TrustDomain {
    /// What an empty trust domain means on the wire (contract 4.3).
    pub const DEFAULT: &str = "cluster.local";

    /// Checks and keeps a trust domain's name: 1 to 255 of `a-z 0-9 . - _` (SPIFFE ID specification, section 2.1).
    pub fn new(text: &str) -> Result<Self, IdentityError> {
        Self::try_from(Str::from(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Str> for TrustDomain {
    type Error = IdentityError;

    /// As [`TrustDomain::new`], with the text shared.
    fn try_from(text: Str) -> Result<Self, IdentityError> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(legal) {
            return Err(IdentityError::TrustDomain(text.as_ref().into()));
        }
        Ok(Self(text))
    }
}

impl Default for TrustDomain {
    /// [`TrustDomain::DEFAULT`].
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity. Displays and parses as its SPIFFE URI.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain that vouches for it.
    pub trust_domain: TrustDomain,
    /// The Kubernetes namespace.
    pub namespace: Str,
    /// The service account in that namespace.
    pub service_account: Str,
}

impl Identity {
    /// Builds an identity from its parts. Namespace and account are trusted to be Kubernetes names.
    pub fn new(trust_domain: TrustDomain, namespace: impl Into<Str>, service_account: impl Into<Str>) -> Self {
        Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() }
    }

    /// The identity as text, made at once: what `to_string` makes grows piece by piece.
    pub fn uri(&self) -> String {
        let Self { trust_domain, namespace, service_account } = self;
        ["spiffe://", &trust_domain.0, "/ns/", namespace, "/sa/", service_account].concat()
    }

    /// The identity without `spiffe://`, the form that policies' principals are written in (contract 5.2).
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Reads exactly five path parts `td/ns/NS/sa/SA` (contract 3.1); anything else is refused.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed(text.chars().take(256).collect());
        let path = text.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let mut parts = path.split('/');
        let mut part = || parts.next().ok_or_else(malformed);
        let (trust_domain, ns, namespace, sa, service_account) = (part()?, part()?, part()?, part()?, part()?);
        let name = |text: &str| {
            (1..=253).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        if parts.next().is_some() || ns != "ns" || sa != "sa" || !name(namespace) || !name(service_account) {
            return Err(malformed());
        }
        Ok(Self::new(TrustDomain::new(trust_domain)?, namespace, service_account))
    }
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The trust domain breaks its rules.
    #[error("{0:?} is not a trust domain: 1 to 255 of a-z, 0-9, '.', '-', '_' are accepted")]
    TrustDomain(String),
    /// Not of the form of a workload's identity.
    #[error("{0:?} is not an identity: spiffe://<trust domain>/ns/<namespace>/sa/<service account> is accepted")]
    Malformed(String),
}

impl Diagnose for IdentityError {
    fn code(&self) -> &'static str {
        match self {
            Self::TrustDomain(_) => "IDENTITY_TRUST_DOMAIN",
            Self::Malformed(_) => "IDENTITY_MALFORMED",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Config
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::TrustDomain(_) => "correct the trust domain where it is configured",
            Self::Malformed(_) => {
                "check who issued the certificate: the mesh names workloads by namespace and service account"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_display_and_parse_as_their_uri() {
        for text in ["spiffe://cluster.local/ns/shop/sa/page", "spiffe://a.b-c_d/ns/x/sa/y.z"] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
            assert_eq!(format!("spiffe://{}", identity.principal()), text);
        }
    }

    #[test]
    fn anything_but_five_parts_is_refused() {
        let long = format!("spiffe://cluster.local/ns/{}/sa/y", "x".repeat(254));
        for text in [
            "",
            "cluster.local/ns/x/sa/y",
            "spiffe://cluster.local/ns/x/sa",
            "spiffe://cluster.local/ns/x/sa/",
            "spiffe://cluster.local/ns//sa/y",
            "spiffe:///ns/x/sa/y",
            "spiffe://cluster.local/ns/x/sa/y/z",
            "spiffe://cluster.local/sa/x/ns/y",
            "SPIFFE://cluster.local/ns/x/sa/y",
            "spiffe://Cluster.local/ns/x/sa/y",
            "spiffe://cluster.local/ns/x y/sa/z",
            "spiffe://cluster.local/ns/x/sa/y?z",
            &long,
        ] {
            let refused = text.parse::<Identity>().unwrap_err();
            assert!(refused.code().starts_with("IDENTITY_") && !refused.remedy().is_empty(), "{text}");
        }
    }
}
