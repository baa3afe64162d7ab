//! What a Quarantine would cut: who spoke with its pods within a day, and what of that is open, by the flows that tunnels and
//! waypoints keep; and which of its pods it cannot cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use stillmesh_k8s::select::{Enrolment, NotEnrolled, why_not};
use stillmesh_k8s::steering::Order;
use stillmesh_k8s::{Object, Placed, labels};
use stillmesh_records::Flow;

use super::place::Place;
use crate::cluster::args::WhichMesh;
use crate::flows::{gather, merged, notes};
use crate::offline;
use crate::output::{aligned, note};
use crate::why::place::Place as Proxies;

/// How far back.
const SINCE: Duration = Duration::from_secs(24 * 3600);
/// Most rows that are shown.
const SHOWN: usize = 30;

/// The pods that orders mean.
#[derive(Debug, Default, PartialEq)]
struct Meant {
    /// `namespace/name`, those in the mesh.
    pods: BTreeSet<String>,
    /// How flows name them as clients.
    identities: BTreeSet<String>,
    /// Those that are not in the mesh, and why.
    outside: Vec<String>,
}

/// Says what orders would cut. What cannot be known is said, too.
pub(super) async fn tell(place: &Place, which: &WhichMesh, system: &str, orders: &[Value]) {
    let meant = match meant_by(place, system, orders).await {
        Ok(meant) => meant,
        Err(error) => {
            note(&format!("Which pods would be cut off cannot be told: {error:#}"));
            return;
        }
    };
    note(&match meant.pods.len() {
        0 => "No pod of the mesh would be cut off now; those that start meanwhile are.".to_owned(),
        _ => format!("Cut off would be: {}", joined(meant.pods.iter())),
    });
    if !meant.outside.is_empty() {
        note(&format!("Not cut off would be, since they are not in the mesh: {}", joined(meant.outside.iter())));
    }
    let gathered = match Proxies::find(which).await {
        Ok(proxies) => gather(&proxies, SINCE).await,
        Err(error) => Err(error),
    };
    match gathered {
        Ok(gathered) => {
            let flows = merged(gathered.flows, |flow| !flow.refused && concerns(&meant, flow));
            match flows.is_empty() {
                true => note("Nobody is known to have spoken with them within a day."),
                false => {
                    note(&format!("Within a day these spoke with each other, and would be cut:\n{}", table(&flows)))
                }
            }
            notes(&gathered.asked).iter().for_each(|text| note(text));
        }
        Err(error) => note(&format!("Who speaks with them cannot be told: {error:#}")),
    }
}

async fn meant_by(place: &Place, system: &str, orders: &[Value]) -> anyhow::Result<Meant> {
    let mut written = place.objects("v1", "Namespace", "").await.unwrap_or_default();
    let namespaces: BTreeSet<&str> = orders.iter().map(crate::cluster::value::namespace).collect();
    for namespace in namespaces {
        written.extend(place.objects("v1", "Pod", namespace).await?);
    }
    Ok(meant(&written, orders, system))
}

/// The pods that are meant. Pure.
fn meant(written: &[Value], orders: &[Value], system: &str) -> Meant {
    let written: Vec<Placed> = written.iter().flat_map(offline::placed).collect();
    let ordered = orders.iter().flat_map(offline::placed);
    let orders: Vec<Order> = ordered.filter_map(|placed| Order::of(&placed.object, system)).collect();
    let enrolment = Enrolment { system_namespace: system.to_owned(), ..Enrolment::default() };
    let mut meant = Meant::default();
    for placed in &written {
        let Object::Pod(pod) = &placed.object else { continue };
        let (namespace, name) = (placed.object.namespace(), placed.object.name());
        let pod_labels = labels::of(&pod.metadata.labels);
        if !orders.iter().any(|order| order.means(namespace, name, pod_labels)) {
            continue;
        }
        let its = written.iter().find_map(|one| match &one.object {
            Object::Namespace(found) if one.object.name() == namespace => Some(&**found),
            _ => None,
        });
        match why_not(pod, its, &enrolment) {
            None => {
                let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
                meant.identities.insert(format!("/ns/{namespace}/sa/{}", account.unwrap_or("default")));
                meant.pods.insert(format!("{namespace}/{name}"));
            }
            Some(NotEnrolled::Terminal) => {}
            Some(why) => meant.outside.push(format!("{namespace}/{name} ({why})")),
        }
    }
    meant
}

/// Whether one end of a flow is meant. Flows know clients by their account, which other pods may share.
fn concerns(meant: &Meant, flow: &Flow) -> bool {
    meant.pods.contains(&flow.endpoint)
        || meant.pods.contains(&flow.source)
        || meant.identities.iter().any(|identity| flow.source.ends_with(identity))
}

fn table(flows: &[Flow]) -> String {
    let mut rows = vec![["CLIENT", "DESTINATION", "PORT", "OPEN", "WITHIN A DAY"].map(str::to_owned).to_vec()];
    for flow in flows.iter().take(SHOWN) {
        let to = if flow.endpoint.is_empty() { &flow.service } else { &flow.endpoint };
        let (port, open, count) = (flow.port.to_string(), flow.open.to_string(), flow.count.to_string());
        rows.push(vec![flow.source.clone(), to.clone(), port, open, count]);
    }
    let mut text = aligned(&rows);
    if flows.len() > SHOWN {
        text += &format!("\nand {} more; stillmesh flows shows them", flows.len() - SHOWN);
    }
    text
}

fn joined<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    const NAMED: usize = 10;
    let more = names.len().saturating_sub(NAMED);
    let named = names.take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_of_the_mesh_are_cut_off_and_others_are_named() {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
            "labels": {"istio.io/dataplane-mode": "ambient"}}});
        let pod = |name: &str, mode: &str| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "labels": {"istio.io/dataplane-mode": mode}},
                "spec": {"serviceAccountName": "web", "containers": [{"name": "main"}]}})
        };
        let order = json!({"apiVersion": "stillmesh.io/v1alpha1", "kind": "Quarantine",
            "metadata": {"name": "q", "namespace": "shop"}, "spec": {"reason": "r", "pods": ["a", "c"]}});
        let written = [namespace, pod("a", "ambient"), pod("b", "ambient"), pod("c", "none")];
        let meant = meant(&written, &[order], "istio-system");
        assert_eq!(meant.pods, ["shop/a".to_owned()].into());
        assert!(meant.outside.len() == 1 && meant.outside[0].starts_with("shop/c ("), "{:?}", meant.outside);
        let flow =
            |source: &str, endpoint: &str| Flow { source: source.into(), endpoint: endpoint.into(), ..Flow::default() };
        assert!(concerns(&meant, &flow("x", "shop/a")));
        assert!(concerns(&meant, &flow("spiffe://td/ns/shop/sa/web", "y")));
        assert!(!concerns(&meant, &flow("spiffe://td/ns/shop/sa/other", "shop/b")));
    }
}
