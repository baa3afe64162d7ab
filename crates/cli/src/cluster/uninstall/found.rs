//! What of ours is in a cluster.

use std::collections::BTreeMap;

use serde_json::Value;
use stillmesh_controller::LEASE;

use crate::cluster::install::apply::applied_by;
use crate::cluster::install::bundle::{is_global, sort, title};
use crate::cluster::install::{MADE, own_kinds, own_labels};
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::value::{annotation, name, namespace, text};

/// Who writes, of our controllers.
const CONTROLLER: &str = "stillmesh-controller";
/// What the controller writes into every namespace (contract 6.4).
const ROOTS: [&str; 2] = ["istio-ca-root-cert", "istio-ca-crl"];
/// What it keeps in its own.
const SECRETS: [&str; 2] = ["stillmesh-ca", "stillmesh-webhook"];
/// Conditions that it writes at policies (contract 7.6).
pub(super) const CONDITIONS: [&str; 2] = ["ZtunnelAccepted", "WaypointAccepted"];

/// Objects of ours, in the order in which they would be applied.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    objects: Vec<Value>,
}

impl Found {
    /// Looks for everything; for definitions only where they are to go too.
    pub(super) async fn look(objects: &Objects, at: &str, purge: bool) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for kind in own_kinds() {
            let place = if is_global(kind.kind()) { "" } else { at };
            found.extend(objects.list(&kind, place, &own_labels()).await?);
        }
        let own_secrets = objects.list(&Resource::new("v1", "Secret"), at, "").await?;
        found.extend(own_secrets.into_iter().filter(|secret| SECRETS.contains(&name(secret))));
        let leases = objects.list(&Resource::new("coordination.k8s.io/v1", "Lease"), at, "").await?;
        found.extend(leases.into_iter().filter(|lease| name(lease).starts_with(LEASE)));
        for map in ROOTS {
            found
                .extend(objects.named(&Resource::new("v1", "ConfigMap"), map).await?.into_iter().filter(written_by_us));
        }
        if purge {
            found.extend(definitions(objects).await?);
        }
        let own_namespace = objects.get(&Resource::new("v1", "Namespace"), "", at).await?;
        found.extend(own_namespace.filter(|namespace| annotation(namespace, MADE).is_some()));
        sort(&mut found);
        Ok(Self { objects: found })
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// All of it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter()
    }

    /// Takes some of it out, in the order in which it goes.
    pub(super) fn take(&mut self, which: impl Fn(&Value) -> bool) -> Vec<Value> {
        let (taken, rest) = std::mem::take(&mut self.objects).into_iter().partition(which);
        self.objects = rest;
        let mut taken: Vec<Value> = taken;
        taken.reverse();
        taken
    }

    /// What it is, for people: objects of one name in many namespaces are one line.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut maps: BTreeMap<&str, usize> = BTreeMap::new();
        let mut lines = Vec::new();
        for object in &self.objects {
            if object["kind"] == "ConfigMap" && ROOTS.contains(&name(object)) {
                *maps.entry(name(object)).or_default() += 1;
            } else {
                lines.push(title(object));
            }
        }
        lines.extend(maps.iter().map(|(name, count)| format!("ConfigMap {name} in {count} namespaces")));
        lines
    }
}

/// Whether our controller wrote a map: another control plane may own those of the same name.
fn written_by_us(map: &Value) -> bool {
    applied_by(map, CONTROLLER)
}

/// Our definitions.
pub(super) async fn definitions(objects: &Objects) -> anyhow::Result<Vec<Value>> {
    objects.list(&Resource::new("apiextensions.k8s.io/v1", "CustomResourceDefinition"), "", &own_labels()).await
}

/// Every policy and route of the kinds that we have defined: they go with the definitions.
pub(super) async fn policies(objects: &Objects) -> anyhow::Result<Vec<Value>> {
    let mut policies = Vec::new();
    for definition in definitions(objects).await? {
        let spec = &definition["spec"];
        let api_version = format!("{}/v1", text(&spec["group"]));
        policies.extend(objects.list(&Resource::new(&api_version, text(&spec["names"]["kind"])), "", "").await?);
    }
    policies.sort_by_key(|policy| {
        (text(&policy["kind"]).to_owned(), namespace(policy).to_owned(), name(policy).to_owned())
    });
    Ok(policies)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::install::bundle::{Bundle, Group};

    fn map(namespace: &str, manager: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-ca-root-cert", "namespace": namespace,
            "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": {"f:data": {}}}]}})
    }

    #[test]
    fn another_control_planes_roots_are_not_ours() {
        assert!(written_by_us(&map("shop", "stillmesh-controller")));
        assert!(!written_by_us(&map("shop", "pilot-discovery")));
    }

    #[test]
    fn what_needs_something_goes_before_it() {
        let mut found = Found { objects: Bundle::own().unwrap().objects };
        let order: Vec<Value> = found.take(|_| true);
        let place = |group: Group| order.iter().position(|object| Group::of(object) == group).unwrap();
        assert!(place(Group::Tunnel) < place(Group::Agent) && place(Group::Controller) < place(Group::Access));
        assert_eq!(order.last().unwrap()["kind"], "Namespace");
        assert!(found.is_empty());
    }

    #[test]
    fn maps_of_many_namespaces_are_one_line() {
        let found = Found { objects: vec![map("a", "x"), map("b", "x")] };
        assert_eq!(found.lines(), ["ConfigMap istio-ca-root-cert in 2 namespaces"]);
    }
}
