//! Workloads, services and policies as istioctl reads them. Pure. What equals its default is left out.

use serde_json::{Map, Value, json};
use stillmesh_core::model::{
    Action, Gateway, GatewayDestination, Health, Match, NetworkMode, Policy, Scope, Service, StringMatch,
    TunnelProtocol, Visibility, Workload,
};
use stillmesh_core::snapshot::Snapshot;

/// Adds what is not empty.
struct Object(Map<String, Value>);

impl Object {
    fn new() -> Self {
        Self(Map::new())
    }

    fn always(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.always(key, value) }
    }

    fn list(self, key: &str, values: impl Iterator<Item = Value>) -> Self {
        let values: Vec<Value> = values.collect();
        if values.is_empty() { self } else { self.always(key, values) }
    }

    fn maybe(self, key: &str, value: Option<Value>) -> Self {
        match value {
            Some(value) => self.always(key, value),
            None => self,
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// A workload.
pub fn workload(workload: &Workload) -> Value {
    let locality = &workload.locality;
    let region =
        Object::new().text("region", &locality.region).text("zone", &locality.zone).text("subzone", &locality.subzone);
    Object::new()
        .always("workloadIps", workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
        .maybe("waypoint", workload.waypoint.as_ref().map(gateway))
        .maybe("networkGateway", workload.network_gateway.as_deref().map(gateway))
        .always(
            "protocol",
            match workload.tunnel_protocol {
                TunnelProtocol::None => "TCP",
                TunnelProtocol::Hbone => "HBONE",
            },
        )
        .maybe("networkMode", (workload.network_mode == NetworkMode::HostNetwork).then(|| "HostNetwork".into()))
        .always("uid", &*workload.uid.0)
        .text("name", &workload.name)
        .text("namespace", &workload.namespace)
        .text("trustDomain", workload.trust_domain.as_str())
        .text("serviceAccount", &workload.service_account)
        .text("network", &workload.network)
        .text("workloadName", &workload.workload_name)
        .always("workloadType", workload.workload_type.as_str())
        .text("canonicalName", &workload.canonical_name)
        .text("canonicalRevision", &workload.canonical_revision)
        .text("hostname", &workload.hostname)
        .text("node", &workload.node)
        .maybe("nativeTunnel", workload.native_tunnel.then_some(Value::Bool(true)))
        .maybe(
            "applicationTunnel",
            workload.application_tunnel.map(|tunnel| {
                let protocol = if tunnel.proxy_protocol { "PROXY" } else { "NONE" };
                json!({ "protocol": protocol, "port": tunnel.port })
            }),
        )
        .list("authorizationPolicies", workload.authorization_policies.iter().map(|key| key.to_string().into()))
        .always(
            "status",
            match workload.health {
                Health::Healthy => "Healthy",
                Health::Unhealthy => "Unhealthy",
            },
        )
        .text("clusterId", &workload.cluster)
        .maybe("locality", Some(region.done()).filter(|region| region.as_object().is_some_and(|map| !map.is_empty())))
        .list("services", workload.services.iter().map(|(key, _)| key.to_string().into()))
        .maybe("capacity", (workload.capacity != 1).then(|| workload.capacity.into()))
        .maybe("direct", workload.direct.then_some(Value::Bool(true)))
        .done()
}

/// A service with its endpoints.
pub fn service(snapshot: &Snapshot, service: &Service) -> Value {
    let ports: Map<String, Value> = service
        .ports
        .iter()
        .map(|port| (port.mapping.service_port.to_string(), port.mapping.target_port.into()))
        .collect();
    let endpoints: Map<String, Value> = snapshot
        .members(&service.key)
        .map(|workload| {
            let ports = workload.services.iter().find(|(key, _)| *key == service.key).map(|(_, ports)| ports);
            let ports: Map<String, Value> = ports
                .into_iter()
                .flatten()
                .map(|port| (port.service_port.to_string(), port.target_port.into()))
                .collect();
            let uid = workload.uid.to_string();
            (uid.clone(), json!({ "workloadUid": uid, "port": ports, "status": format!("{:?}", workload.health) }))
        })
        .collect();
    let preferences = &service.load_balancing;
    Object::new()
        .text("name", &service.name)
        .text("namespace", &service.key.namespace)
        .text("hostname", &service.key.hostname)
        .always("vips", service.vips.iter().map(ToString::to_string).collect::<Vec<_>>())
        .list("cidrVips", service.cidr_vips.iter().filter_map(|cidr| serde_json::to_value(cidr).ok()))
        .always("ports", ports)
        .always("endpoints", endpoints)
        .list("subjectAltNames", service.subject_alt_names.iter().map(|name| (&**name).into()))
        .maybe("waypoint", service.waypoint.as_ref().map(gateway))
        .list(
            "weightedWaypoints",
            service.weighted_waypoints.iter().map(|(to, weight)| json!({ "waypoint": gateway(to), "weight": weight })),
        )
        .maybe(
            "loadBalancer",
            (*preferences != Default::default()).then(|| {
                json!({
                    "routingPreferences": preferences.routing_preferences,
                    "mode": preferences.mode,
                    "healthPolicy": preferences.health_policy,
                })
            }),
        )
        .always("ipFamilies", serde_json::to_value(service.ip_families).unwrap_or_default())
        .maybe("canonical", service.canonical.then_some(Value::Bool(true)))
        .maybe("visibility", (service.visibility == Visibility::Namespace).then(|| "Namespace".into()))
        .done()
}

/// A policy.
pub fn policy(policy: &Policy) -> Value {
    let rules = policy.rules.iter().map(|rule| {
        let clauses = rule.clauses.iter().map(|clause| clause.matches.iter().map(rule_match).collect::<Vec<_>>());
        Value::from(clauses.map(Value::from).collect::<Vec<_>>())
    });
    Object::new()
        .always("name", &*policy.key.name)
        .always("namespace", &*policy.key.namespace)
        .always(
            "scope",
            match policy.scope {
                Scope::Global => "Global",
                Scope::Namespace => "Namespace",
                Scope::WorkloadSelector => "WorkloadSelector",
            },
        )
        .always(
            "action",
            match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
        )
        .always("rules", rules.collect::<Vec<_>>())
        .maybe("dryRun", policy.dry_run.then_some(Value::Bool(true)))
        .maybe("unreadable", policy.unreadable.as_deref().map(Value::from))
        .done()
}

fn rule_match(rule: &Match) -> Value {
    let account = |account: &stillmesh_core::model::ServiceAccountMatch| json!({ "namespace": &*account.namespace, "serviceAccount": &*account.service_account });
    let port = |port: &u16| Value::from(*port);
    let net = |net: &ipnet::IpNet| Value::from(net.to_string());
    Object::new()
        .list("namespaces", rule.namespaces.iter().map(string_match))
        .list("notNamespaces", rule.not_namespaces.iter().map(string_match))
        .list("serviceAccounts", rule.service_accounts.iter().map(account))
        .list("notServiceAccounts", rule.not_service_accounts.iter().map(account))
        .list("principals", rule.principals.iter().map(string_match))
        .list("notPrincipals", rule.not_principals.iter().map(string_match))
        .list("sourceIps", rule.source_ips.iter().map(net))
        .list("notSourceIps", rule.not_source_ips.iter().map(net))
        .list("destinationIps", rule.destination_ips.iter().map(net))
        .list("notDestinationIps", rule.not_destination_ips.iter().map(net))
        .list("destinationPorts", rule.destination_ports.iter().map(port))
        .list("notDestinationPorts", rule.not_destination_ports.iter().map(port))
        .done()
}

fn string_match(text: &StringMatch) -> Value {
    match text {
        StringMatch::Exact(text) => json!({ "Exact": &**text }),
        StringMatch::Prefix(text) => json!({ "Prefix": &**text }),
        StringMatch::Suffix(text) => json!({ "Suffix": &**text }),
        StringMatch::Presence => json!({ "Presence": [] }),
    }
}

fn gateway(gateway: &Gateway) -> Value {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.hbone_mtls_port })
}
