//! Connections that went without the waypoint that labels ask for: no record tells of it, since nobody told the client's tunnel
//! of a waypoint that takes nothing. So the objects are looked at, as they are now.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize as _;
use stillmesh_k8s::gateway::binding::{Ask, Binding, Named, Target, USE_WAYPOINT, Waypoint, Why, asked, bind};
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
    let (namespace, no_namespace) = match place.namespace(&met.namespace).await {
        Ok(found) => (found.map(Namespace::deserialize).transpose()?, None),
        Err(error) if own != Ask::Nothing => (None, Some(error)),
        Err(_) => return Ok(None),
    };
    let of_namespace = namespace.as_ref().map(|one| asked(labels::of(&one.metadata.labels), &met.namespace));
    let wanted = match (own, of_namespace) {
        (Ask::Waypoint(wanted), _) | (Ask::Nothing, Some(Ask::Waypoint(wanted))) => wanted,
        _ => return Ok(None),
    };
    let (found, no_classes) = waypoint(place, &wanted).await?;
    let binding = bind(target, &meta, namespace.as_ref(), |_| found.as_ref(), &Mesh::default());
    Ok(match binding {
        Binding::Unbound { waypoint, why } => {
            // What labels of a namespace or a class decide is no reason where these cannot be seen.
            let unseen = match why {
                Why::NotAllowed => no_namespace,
                Why::NoAddress => no_classes,
                _ => None,
            };
            let why = match unseen {
                Some(error) => format!("Why cannot be seen: {error:#}"),
                None => format!("As objects are now: {}", why.message(&waypoint)),
            };
            Some(format!(
                "{met} asks for waypoint {waypoint} (label {USE_WAYPOINT}), and connections to it went without one, past its \
                 policies and routes. {why}"
            ))
        }
        Binding::Bound { waypoint, .. } => Some(format!(
            "{met} is bound to waypoint {waypoint} as objects are now; connections went without it: they began before that, or \
             their tunnel has not been told: `stillmesh ps`"
        )),
        _ => None,
    })
}

/// A waypoint as binding sees it, and why its class cannot be seen: it is who its name says then.
async fn waypoint(place: &Place, wanted: &Named) -> anyhow::Result<(Option<Waypoint>, Option<anyhow::Error>)> {
    let all = place.list("Gateway", &wanted.namespace, "").await?;
    let Some(found) = all.into_iter().find(|one| name(one) == &*wanted.name) else { return Ok((None, None)) };
    let gateway = Gateway::deserialize(&found)?;
    let (classes, unseen) = match place.list("GatewayClass", "", "").await {
        Ok(classes) => (classes, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let class = classes.iter().find(|one| name(one) == gateway.spec.gateway_class_name);
    let class = class.map(GatewayClass::deserialize).transpose()?;
    Ok((Some(Waypoint::read(&gateway, class.as_ref())), unseen))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::access::reach;
    use crate::cluster::fake::{self, ApiServer};
    use crate::cluster::objects::Objects;

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

    /// What is said of Service `web`, which asks for that Gateway, where what such a path ends in may not be seen.
    async fn told_without(hidden: &'static str, gateway: Value) -> String {
        let server = ApiServer::start(move |path, _| match path {
            _ if !hidden.is_empty() && path.ends_with(hidden) => Some(fake::forbidden("it is forbidden")),
            "/api/v1/namespaces/shop/services" => Some(fake::list(&shop("here", "")[..1])),
            "/api/v1/namespaces/shop" => Some((200, shop("here", "")[2].clone())),
            "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways" => {
                Some(fake::list(std::slice::from_ref(&gateway)))
            }
            _ => None,
        });
        let server = server.await.unwrap();
        let place = Place::Cluster { objects: Objects::new(reach(&server.access()).await.unwrap().client()) };
        let web = connection("TO_ENDPOINT", "shop/web.shop.svc.cluster.local", "x//Pod/shop/web-0");
        notes(&place, &[web]).await.join("\n")
    }

    #[tokio::test]
    async fn a_reason_that_hangs_on_what_cannot_be_seen_is_not_told() {
        let mut selecting = gateway("here", "");
        selecting["spec"]["listeners"][0]["allowedRoutes"] =
            json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "shop"}}}});
        let said = told_without("", selecting.clone()).await;
        assert!(said.contains("As objects are now: allowedRoutes of waypoint shop/here does not let"), "{said}");
        let said = told_without("/namespaces/shop", selecting).await;
        assert!(said.contains("Why cannot be seen: ") && said.ends_with("it is forbidden"), "{said}");
        let mut elsewhere = gateway("here", "");
        elsewhere["spec"]["gatewayClassName"] = json!("other");
        let said = told_without("", elsewhere.clone()).await;
        assert!(said.contains("As objects are now: waypoint shop/here is another controller's"), "{said}");
        let said = told_without("/gatewayclasses", elsewhere).await;
        assert!(said.contains("Why cannot be seen: ") && said.ends_with("it is forbidden"), "{said}");
    }

    async fn told(objects: Vec<Value>, connection: Connection) -> Vec<String> {
        notes(&Place::Objects(objects), &[connection]).await
    }
}
