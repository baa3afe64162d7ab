//! How a Quarantine reaches nodes: as two policies that refuse, under names that say so. No user's object can have such a name:
//! Kubernetes names have no `_`. A ztunnel that knows nothing of quarantines enforces them as the policies that they are.

use super::{PolicyKey, Str, Workload};

/// Of the policy that is named by the workloads that are cut off: nobody reaches them.
const OF: &str = "stillmesh_quarantine_";
/// Of the policy for the whole mesh: what comes from their addresses is refused.
const FROM: &str = "stillmesh_quarantined_";

impl PolicyKey {
    /// The policy that is named by workloads that a Quarantine cuts off.
    pub fn of_quarantine(namespace: impl Into<Str>, order: &str) -> Self {
        Self::new(namespace, format!("{OF}{order}"))
    }

    /// The policy by which the whole mesh refuses what comes from the addresses of such workloads.
    pub fn from_quarantine(namespace: impl Into<Str>, order: &str) -> Self {
        Self::new(namespace, format!("{FROM}{order}"))
    }

    /// The name of the Quarantine that it was made of, in the policy's own namespace.
    pub fn quarantine(&self) -> Option<&str> {
        self.name.strip_prefix(OF).or_else(|| self.name.strip_prefix(FROM))
    }
}

impl Workload {
    /// The Quarantine that cuts it off, as the policy that it names for that.
    pub fn quarantine(&self) -> Option<&PolicyKey> {
        self.authorization_policies.iter().find(|policy| policy.name.starts_with(OF))
    }
}
