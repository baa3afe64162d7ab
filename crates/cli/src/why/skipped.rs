//! Connections that went without the waypoint that labels ask for: no record tells of it, since nobody told the client's tunnel
//! of a waypoint that takes nothing. So the objects are looked at, as they are now.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize as _;
use serde_json::Value;
use stillmesh_k8s::gateway::binding::{Ask, Binding, Named, Target, USE_WAYPOINT, Waypoint, asked, bind};
use stillmesh_k8s::gateway::{Gateway, GatewayClass};
use stillmesh_k8s::labels;
use stillmesh_k8s::translate::Mesh;
use stillmesh_records::{Hop, Told, short};

use super::join::Connection;
use super::place::Place;
use crate::cluster::value::name;

/// Most destinations that are looked at.
const MOST: usize = 8;
/// What a client's tunnel says of what it carries to a waypoint.
const TO_WAYPOINT: &str = "TO_WAYPOINT";

/// What there is to say of the waypoints that connections went without, one line each.
pub(super) async fn notes(place: &Place, connections: &[Connection]) -> Vec<String> {
    let met: BTreeSet<Met> = connections.iter().filter_map(met).collect();
    let mut notes = Vec::new();
    for one in met.into_iter().take(MOST) {
        match said(place, &one).await {
            Ok(said) => notes.extend(said),
            Err(error) => notes.push(format!("whether {one} asks for a waypoint cannot be seen: {error:#}")),
        }
    }
    notes
}

/// Whom a connection was for that its client's tunnel carried past every waypoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Met {
    is_service: bool,
    namespace: String,
    name: String,
}

impl std::fmt::Display for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_service { "Service" } else { "Pod" };
        write!(f, "{kind} {}/{}", self.namespace, self.name)
    }
}

fn met(connection: &Connection) -> Option<Met> {
    let is_waypoint = |told: &Told| matches!(told.hop, Hop::Connection | Hop::Request);
    let first = connection.hops.first().filter(|told| told.hop == Hop::Outbound)?;
    if first.refused || first.reason == TO_WAYPOINT || connection.hops.iter().any(is_waypoint) {
        return None;
    }
    let to = &first.destination;
    let (is_service, text) = match to.service.as_str() {
        "" => (false, short(&to.endpoint)),
        // `namespace/host`; a ServiceEntry's host is no Service's.
        service => (true, service),
    };
    let (namespace, name) = text.split_once('/')?;
    let name = match is_service {
        true => name.split_once(&format!(".{namespace}.svc"))?.0,
        false => name,
    };
    Some(Met { is_service, namespace: namespace.to_owned(), name: name.to_owned() })
}

async fn said(place: &Place, met: &Met) -> anyhow::Result<Option<String>> {
    let (kind, target) = if met.is_service { ("Service", Target::Service) } else { ("Pod", Target::Workload) };
    let all = place.list(kind, &met.namespace, "").await?;
    let Some(object) = all.into_iter().find(|one| name(one) == met.name) else { return Ok(None) };
    let mut meta = ObjectMeta::deserialize(&object["metadata"])?;
    meta.namespace.get_or_insert_with(|| met.namespace.clone());
    let own = asked(labels::of(&meta.labels), &met.namespace);
    // Who may not see namespaces is not told of their labels.
    let namespace = match place.namespace(&met.namespace).await {
        Ok(found) => found.map(Namespace::deserialize).transpose()?,
        Err(_) if own != Ask::Nothing => None,
        Err(_) => return Ok(None),
    };
    let of_namespace = namespace.as_ref().map(|one| asked(labels::of(&one.metadata.labels), &met.namespace));
    let wanted = match (own, of_namespace) {
        (Ask::Waypoint(wanted), _) | (Ask::Nothing, Some(Ask::Waypoint(wanted))) => wanted,
        _ => return Ok(None),
    };
    let found = waypoint(place, &wanted).await?;
    let binding = bind(target, &meta, namespace.as_ref(), |_| found.as_ref(), &Mesh::default());
    Ok(match binding {
        Binding::Unbound { waypoint, why } => Some(format!(
            "{met} asks for waypoint {waypoint} (label {USE_WAYPOINT}), and connections to it went without one, past its policies \
             and routes. As objects are now: {}",
            why.message(&waypoint)
        )),
        Binding::Bound { waypoint, .. } => Some(format!(
            "{met} is bound to waypoint {waypoint} as objects are now; connections went without it: they began before that, or \
             their tunnel has not been told: `stillmesh ps`"
        )),
        _ => None,
    })
}

/// A waypoint as binding sees it.
async fn waypoint(place: &Place, wanted: &Named) -> anyhow::Result<Option<Waypoint>> {
    let all = place.list("Gateway", &wanted.namespace, "").await?;
    let Some(found) = all.into_iter().find(|one| name(one) == &*wanted.name) else { return Ok(None) };
    let gateway = Gateway::deserialize(&found)?;
    // Without the right to see classes a class is who its name says.
    let classes: Vec<Value> = place.list("GatewayClass", "", "").await.unwrap_or_default();
    let class = classes.iter().find(|one| name(one) == gateway.spec.gateway_class_name);
    let class = class.map(GatewayClass::deserialize).transpose()?;
    Ok(Some(Waypoint::read(&gateway, class.as_ref())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn connection(reason: &str, service: &str, endpoint: &str) -> Connection {
        let told: Told = serde_json::from_value(json!({"hop": "outbound", "reason": reason,
            "destination": {"service": service, "endpoint": endpoint}}))
        .unwrap();
        Connection { id: "1".into(), refused: false, hops: vec![told] }
    }

    fn object(kind: &str, name: &str, labels: Value, spec: Value) -> Value {
        let namespace = if matches!(kind, "Namespace" | "GatewayClass") { Value::Null } else { json!("shop") };
        json!({"kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": spec})
    }

    /// A Service `web` with such a label, in a namespace with another.
    fn shop(own: &str, of_namespace: &str) -> Vec<Value> {
        vec![
            object("Service", "web", json!({USE_WAYPOINT: own}), json!({})),
            object("Pod", "web-0", json!({}), json!({})),
            object("Namespace", "shop", json!({USE_WAYPOINT: of_namespace}), json!({})),
        ]
    }

    fn gateway(name: &str, annotation: &str) -> Value {
        let listeners = json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]);
        let spec = json!({"gatewayClassName": "istio-waypoint", "listeners": listeners});
        let mut gateway = object("Gateway", name, json!({}), spec);
        gateway["metadata"]["annotations"] = json!({"stillmesh.io/waypoint-fallback": annotation});
        gateway
    }

    #[tokio::test]
    async fn a_connection_past_an_absent_waypoint_is_told_of() {
        let web = || connection("TO_ENDPOINT", "shop/web.shop.svc.cluster.local", "x//Pod/shop/web-0");
        let absent = "Service shop/web asks for waypoint shop/gone (label istio.io/use-waypoint), and connections to it went without \
            one, past its policies and routes. As objects are now: there is no Gateway shop/gone: traffic goes without a waypoint";
        assert_eq!(told(shop("gone", ""), web()).await, [absent]);
        assert_eq!(told(shop("", "gone"), web()).await, [absent], "its namespace asks");
        for silent in [shop("", ""), shop("none", "gone"), vec![]] {
            assert_eq!(told(silent, web()).await, Vec::<String>::new());
        }
        let there = |annotation| [shop("here", ""), vec![gateway("here", annotation)]].concat();
        let said = told(there(""), web()).await;
        assert!(said.len() == 1 && said[0].contains("is bound to waypoint shop/here as objects are now"), "{said:?}");
        assert!(said[0].ends_with("or their tunnel has not been told: `stillmesh ps`"), "{said:?}");
        let said = told(there("direct"), web()).await;
        assert!(
            said.len() == 1 && said[0].contains("waypoint shop/here is not ready: traffic goes round it"),
            "{said:?}"
        );
        // By its address a pod is met, which waypoints of services do not take.
        let pod = || connection("TO_ENDPOINT", "", "x//Pod/shop/web-0");
        let said = told(shop("gone", "gone"), pod()).await;
        assert!(said.len() == 1 && said[0].starts_with("Pod shop/web-0 asks for waypoint shop/gone"), "{said:?}");
        assert!(told([shop("", "here"), vec![gateway("here", "")]].concat(), pod()).await.is_empty());
        // What went to a waypoint, was refused, or came in clear text went past none.
        let mut refused = web();
        refused.hops[0].refused = true;
        let mut clear = web();
        clear.hops[0].hop = Hop::Inbound;
        for one in [refused, clear, connection(TO_WAYPOINT, "shop/web.shop.svc.cluster.local", "")] {
            assert!(told(shop("gone", ""), one).await.is_empty());
        }
    }

    async fn told(objects: Vec<Value>, connection: Connection) -> Vec<String> {
        notes(&Place::Objects(objects), &[connection]).await
    }
}
