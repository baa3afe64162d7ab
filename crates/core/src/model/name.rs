//! Names of the mesh's objects. All are cheap to clone: the text is shared.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Shared, immutable text.
pub type Str = Arc<str>;

/// The primary key of a workload, for example `Kubernetes//Pod/shop/page-0` (contract 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct WorkloadUid(pub Str);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The primary key of a service: `<namespace>/<hostname>` (contract 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The namespace that owns the service.
    pub namespace: Str,
    /// Its full hostname, for example `page.shop.svc.cluster.local`.
    pub hostname: Str,
}

/// The primary key of a policy: `<namespace>/<name>` (contract 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The namespace that owns the policy.
    pub namespace: Str,
    /// Its name, unique in that namespace.
    pub name: Str,
}

macro_rules! pair_key {
    ($key:ident, $second:ident) => {
        impl $key {
            /// Builds the key from its two parts.
            pub fn new(namespace: impl Into<Str>, $second: impl Into<Str>) -> Self {
                Self { namespace: namespace.into(), $second: $second.into() }
            }

            /// Reads `namespace/rest`; `None` where there is no slash or a part is empty.
            pub fn parse(text: &str) -> Option<Self> {
                let (namespace, rest) = text.split_once('/')?;
                (!namespace.is_empty() && !rest.is_empty() && !rest.contains('/')).then(|| Self::new(namespace, rest))
            }
        }

        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.$second)
            }
        }

        impl Serialize for $key {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

pair_key!(ServiceKey, hostname);
pair_key!(PolicyKey, name);
